"""The VAE: shapes, what training mode changes, and which of mean and sample is shown."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from vae.distributions import Normal
from vae.errors import InputError
from vae.likelihoods import (
    BernoulliHead,
    ContinuousBernoulliHead,
    CrossEntropyHead,
    DiscretizedLogisticHead,
    GaussianHead,
    Likelihood,
    SquaredErrorHead,
)
from vae.model import VAE
from vae.networks import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from vae.objectives import ELBO, IWAE, MMD, TotalCorrelation, log_weights

D, K, B, SHAPE = 4, 2, 3, (2, 7, 5)
HEADS = {
    "squared_error": SquaredErrorHead,
    "squared_error_mean": partial(SquaredErrorHead, "mean"),
    "gaussian": GaussianHead,
    "gaussian_shared": partial(GaussianHead, "shared"),
    "gaussian_pixel": partial(GaussianHead, "pixel"),
    "gaussian_optimal": partial(GaussianHead, "optimal"),
    "bernoulli": BernoulliHead,
    "cross_entropy": CrossEntropyHead,
    "continuous_bernoulli": ContinuousBernoulliHead,
    "discretized_logistic": DiscretizedLogisticHead,
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def build(likelihood: Likelihood | None = None, kind: str = "mlp", dropout: float = 0.0) -> VAE:
    settings: dict[str, Any] = {"hidden": (8, 6), "dropout": dropout}
    if kind == "conv":
        settings |= {"channels": (3, 6)}
    halves = (MLPEncoder, MLPDecoder) if kind == "mlp" else (ConvEncoder, ConvDecoder)
    encoder, decoder = (partial(half, **settings) for half in halves)
    return VAE(encoder, decoder, likelihood or GaussianHead(0.1), D, SHAPE)


def binary(*shape: int) -> Tensor:
    return torch.randint(2, shape).float()


@pytest.mark.parametrize("kind", ["mlp", "conv"])
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_shapes_from_image_to_score(head: type[Likelihood], kind: str) -> None:
    vae, x = build(head(), kind), binary(B, *SHAPE)
    q = vae.encode(x)
    assert q.batch_shape == (B, D)
    assert vae.prior.batch_shape == (D,)
    assert kl_divergence(q, vae.prior).shape == (B, D)
    z = q.rsample(torch.Size((K,)))
    assert z.shape == (K, B, D)
    p = vae.decode(z)
    assert (p.batch_shape, p.event_shape) == ((K, B), SHAPE)
    assert p.mean.shape == p.stddev.shape == p.sample().shape == (K, B, *SHAPE)
    assert p.log_prob(x).shape == (K, B)
    assert vae.reconstruct(x).shape == x.shape
    assert vae.sample(6).shape == (6, *SHAPE)


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_samples_and_images_are_decoded_each_for_itself(head: type[Likelihood]) -> None:
    """No leak between the samples, the images and the parameters of a pixel that share an axis on the way."""
    vae = build(head()).double().eval()
    z, x = torch.randn(K, B, D).double(), binary(B, *SHAPE).double()
    whole = vae.decode(z)
    scores = whole.log_prob(x)
    for b in range(B):
        for k in range(K):
            alone = vae.decode(z[k : k + 1, b : b + 1])
            torch.testing.assert_close(alone.mean[0, 0], whole.mean[k, b])
            torch.testing.assert_close(alone.stddev[0, 0], whole.stddev[k, b])
            if not isinstance(vae.likelihood, SquaredErrorHead) or vae.likelihood.reconstruct == "mean":
                torch.testing.assert_close(alone.log_prob(x[b : b + 1])[0, 0], scores[k, b])


def test_the_first_parameters_of_all_channels_come_first() -> None:
    """(P, C) and not (C, P): features 0..C-1 are the means, which is where a start at the mean image is written."""
    vae = build(SquaredErrorHead(mean="sigmoid"))
    out = vae.decoder.out
    assert isinstance(out, torch.nn.Linear)
    torch.nn.init.zeros_(out.weight)
    out.bias.data[:70], out.bias.data[70:] = torch.linspace(-3, 3, 70), 0.5
    p = vae.decode(torch.zeros(1, 1, D))
    torch.testing.assert_close(p.mean.flatten(), torch.sigmoid(torch.linspace(-3, 3, 70)))
    torch.testing.assert_close(p.stddev.flatten(), torch.full((70,), 0.25).exp())


def test_the_encoder_gives_the_mean_and_the_log_variance() -> None:
    vae, x = build(), torch.rand(B, *SHAPE)
    raw = vae.encoder(x)
    q = vae.encode(x)
    torch.testing.assert_close(q.mean, raw[:, :D])
    torch.testing.assert_close(q.variance.log(), raw[:, D:])


def test_the_prior_is_standard_normal_and_moves_with_the_model() -> None:
    vae = build().double()
    assert torch.equal(vae.prior.mean, torch.zeros(D).double())
    assert torch.equal(vae.prior.stddev, torch.ones(D).double())
    assert vae.sample(3).dtype == torch.float64
    assert not any("prior" in name for name in vae.state_dict())


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_evaluation_switches_dropout_off_and_changes_nothing_else(kind: str) -> None:
    x = torch.rand(B, *SHAPE)
    vae = build(kind=kind)
    training, evaluation = vae.train().encode(x), vae.eval().encode(x)
    assert type(training) is type(evaluation) is Normal
    assert torch.equal(training.mean, evaluation.mean)
    assert torch.equal(training.stddev, evaluation.stddev)
    z = torch.randn(K, B, D)
    assert torch.equal(vae.train().decode(z).log_prob(x), vae.eval().decode(z).log_prob(x))
    dropped = build(kind=kind, dropout=0.5)
    assert not torch.equal(dropped.train().encode(x).mean, dropped.encode(x).mean)
    assert torch.equal(dropped.eval().encode(x).mean, dropped.encode(x).mean)


# Mean or sample


def test_reconstruct_takes_the_mean_of_both_unless_told() -> None:
    vae, x = build(GaussianHead(0.1)).eval(), torch.rand(B, *SHAPE)
    expected = vae.decode(vae.encode(x).mean.unsqueeze(0)).mean.squeeze(0)
    assert torch.equal(vae.reconstruct(x), expected)
    assert torch.equal(vae.reconstruct(x, z="mean", x_hat="mean"), expected)


@pytest.mark.parametrize(("z", "x_hat"), [("sample", "mean"), ("mean", "sample"), ("sample", "sample")])
def test_reconstruct_draws_what_it_is_told_to_draw(z: str, x_hat: str) -> None:
    vae, x = build(GaussianHead(0.1)).eval(), torch.rand(B, *SHAPE)
    first, second = vae.reconstruct(x, z, x_hat), vae.reconstruct(x, z, x_hat)
    assert first.shape == x.shape
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    q = vae.encode(x)
    p = vae.decode(q.mean.unsqueeze(0) if z == "mean" else q.sample(torch.Size((1,))))
    expected = (p.mean if x_hat == "mean" else p.sample()).squeeze(0)
    torch.manual_seed(5)
    assert torch.equal(vae.reconstruct(x, z, x_hat), expected)


def test_sampled_pixels_scatter_about_the_mean_by_sigma() -> None:
    vae = build(GaussianHead(0.1)).eval()
    z = torch.randn(1, D).expand(2000, D)
    residual = vae.sample(z, x="sample") - vae.sample(z)
    assert residual.std().item() == pytest.approx(0.1, rel=0.01)
    assert residual.mean().abs().item() < 4 * 0.1 / residual.numel() ** 0.5


def test_sample_takes_latents_or_a_number_of_them() -> None:
    vae, z = build().eval(), torch.randn(6, D)
    assert torch.equal(vae.sample(z), vae.decode(z.unsqueeze(0)).mean.squeeze(0))
    torch.manual_seed(5)
    drawn = vae.sample(6)
    torch.manual_seed(5)
    assert torch.equal(drawn, vae.sample(vae.prior.sample(torch.Size((6,)))))
    assert not torch.equal(drawn, vae.sample(6))


@pytest.mark.parametrize("modes", [{"z": "meen"}, {"x_hat": "meen"}, {"z": "", "x_hat": "sample"}])
def test_reconstruct_refuses_an_unknown_mode(modes: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="neither 'mean' nor 'sample'"):
        build().reconstruct(torch.rand(B, *SHAPE), **modes)


BAD = {
    "no channel": torch.zeros(B, *SHAPE[1:]),
    "channels last": torch.zeros(B, *SHAPE[1:], SHAPE[0]),
    "another size": torch.zeros(B, 2, 7, 6),
    "one image alone": torch.zeros(SHAPE),
    "bytes": torch.zeros(B, *SHAPE, dtype=torch.uint8),
    "integers": torch.zeros(B, *SHAPE, dtype=torch.int64),
    "booleans": torch.zeros(B, *SHAPE, dtype=torch.bool),
    "below 0": torch.full((B, *SHAPE), -0.01),
    "above 1": torch.full((B, *SHAPE), 1.01),
    "NaN": torch.full((B, *SHAPE), math.nan),
    "infinity": torch.full((B, *SHAPE), math.inf),
}
DOORS: dict[str, Callable[[VAE, Tensor], object]] = {
    "encode": VAE.encode,
    "reconstruct": VAE.reconstruct,
    "elbo": lambda vae, x: ELBO()(vae, x, 0),
    "iwae": lambda vae, x: IWAE(2)(vae, x, 0),
    "tc": lambda vae, x: TotalCorrelation()(vae, x, 0),
    "mmd": lambda vae, x: MMD()(vae, x, 0),
    "log_weights": lambda vae, x: log_weights(vae, x, 2),
}


@pytest.mark.parametrize("bad", BAD)
def test_no_door_takes_images_of_another_shape_type_or_range(bad: str) -> None:
    for head in HEADS.values():
        vae = build(head())
        for door in DOORS.values():
            with pytest.raises(InputError, match=r"^images "):
                door(vae, BAD[bad])


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_a_model_takes_the_images_that_its_likelihood_is_defined_on_and_no_others(head: type[Likelihood]) -> None:
    vae = build(head())
    grey, levels = torch.rand(B, *SHAPE), torch.randint(256, (B, *SHAPE)) / 255
    refused = {"unit": [], "levels": [grey], "binary": [grey, levels]}[vae.likelihood.support]
    for x in (grey, grey.double(), levels, binary(B, *SHAPE), grey[:0]):
        if any(x.shape == y.shape and torch.equal(x, y.to(x)) for y in refused):
            with pytest.raises(InputError, match=r"takes (0 and 1|the 256 grey levels)"):
                vae.encode(x)
        else:
            assert vae.encode(x).mean.isfinite().all()


def test_a_gaussian_with_a_linear_mean_takes_any_real_image() -> None:
    vae = build(GaussianHead(mean="linear"))
    assert vae.encode(5 * torch.randn(B, *SHAPE)).mean.isfinite().all()
    with pytest.raises(InputError, match="NaN"):
        vae.encode(BAD["NaN"])


def test_sample_refuses_an_unknown_mode() -> None:
    with pytest.raises(ValueError, match="'mode' is neither 'mean' nor 'sample'"):
        build().sample(2, x="mode")
