"""Priors, posteriors and the objectives that need them: exact on linear-Gaussian models, invertible, normalised."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from conftest import process, settings_of
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence, register_kl

from vae import fit
from vae.distributions import (
    MONTE_CARLO,
    PER_LATENT,
    TOGETHER,
    Flowed,
    FullNormal,
    Mixture,
    Normal,
    detach,
    divergence,
    kl_form,
    log_density,
    paired_noise,
)
from vae.errors import InputError
from vae.evaluation.draws import prior_quantiles
from vae.evaluation.estimates import bounds, objective_metrics, posteriors
from vae.flows import Autoregressive, Chain, Coupling
from vae.likelihoods import BernoulliHead, GaussianHead
from vae.model import VAE
from vae.networks import MLPDecoder, MLPEncoder
from vae.noise import fixed_noise
from vae.objectives import ELBO, IWAE, MMD, Terms, TotalCorrelation, log_weights, squared_mmd
from vae.posteriors import IAF, Diagonal, Full
from vae.priors import Flow, GaussianMixture, Standard, Vamp
from vae.run.build import build_data

SHAPE, D, B, K = (2, 3, 2), 3, 4, 5
M = TypeVar("M", bound=nn.Module)
PIXELS = math.prod(SHAPE)
PRIORS: dict[str, Any] = {
    "standard": Standard,
    "mixture": partial(GaussianMixture, components=6),
    "vamp": partial(Vamp, inputs=7),
    "flow": partial(Flow, layers=3, hidden=8),
}
POSTERIORS: dict[str, Any] = {"diagonal": Diagonal, "full": Full, "iaf": partial(IAF, layers=2, hidden=8)}
PAIRS = [(p, q) for p in PRIORS for q in POSTERIORS if (p, q) != ("vamp", "iaf")]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def build(prior: str = "standard", posterior: str = "diagonal", **halves: Any) -> VAE:
    encoder, decoder = partial(MLPEncoder, hidden=(9,)), partial(MLPDecoder, hidden=(9,))
    vae = VAE(encoder, decoder, BernoulliHead(), D, SHAPE, PRIORS[prior], POSTERIORS[posterior]).double().eval()
    return stirred(vae)


def stirred(module: M, spread: float = 0.3) -> M:
    """Away from a start at zero, where a flow would be the identity."""
    for parameter in module.parameters():
        parameter.data += spread * torch.randn_like(parameter)
    return module


def images(count: int = B) -> Tensor:
    return torch.randint(2, (count, *SHAPE)).double()


# --- every pair of a prior and a posterior ----------------------------------------------------------------------------


@pytest.mark.parametrize(("prior", "posterior"), PAIRS)
def test_shapes_and_finite_gradients(prior: str, posterior: str) -> None:
    vae, x = build(prior, posterior), images()
    q, p = vae.encode(x), vae.prior
    z = q.rsample(torch.Size((K,)))
    assert z.shape == (K, B, D)
    assert q.mean.shape == (B, D)
    assert log_density(p, z).shape == log_density(q, z).shape == (K, B)
    by_latent = (prior, posterior) == ("standard", "diagonal")
    assert divergence(q, p, z).shape == (B, D if by_latent else 1)
    assert vae.sample(6).shape == (6, *SHAPE)
    assert vae.reconstruct(x, z="sample").shape == x.shape
    terms = ELBO(samples=2)(vae, x, 0)
    terms.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())
    assert sum(p.grad.abs().sum() > 0 for p in vae.prior_head.parameters()) == len([*vae.prior_head.parameters()])


@pytest.mark.parametrize(("prior", "posterior"), PAIRS)
def test_the_kl_of_the_loss_is_that_of_the_log_weights(prior: str, posterior: str) -> None:
    """In expectation: log p(x|z) - KL and log w have the same mean, whichever form the KL has."""
    vae, x = build(prior, posterior), images()
    with torch.no_grad():
        q = vae.encode(x)
        z = q.rsample(torch.Size((4000,)))
        kl = divergence(q, vae.prior, z).sum(-1)
        draws = log_density(q, z) - log_density(vae.prior, z)  # (K, B)
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - kl).abs() <= 4 * error + 1e-9).all()


@pytest.mark.parametrize(("prior", "posterior"), PAIRS)
def test_the_importance_weights_average_to_log_p_of_brute_force(prior: str, posterior: str) -> None:
    """p(x) is also the mean of p(x|z) over the model's own prior; a posterior wider than the truth has light tails."""
    vae, x = build(prior, posterior), images(3)
    out = vae.encoder.out
    assert isinstance(out, nn.Linear)
    out.weight.data *= 0.2
    out.bias.data[D : 2 * D] = 1.0
    for parameter in vae.prior_head.parameters():
        parameter.data *= 0.5
    with torch.no_grad():
        weights = log_weights(vae, x, 20_000).exp()  # (K, 3)
        likely = vae.decode(vae.prior.sample(torch.Size((100_000, 1)))).log_prob(x).exp()
    error = (weights.var(0) / len(weights) + likely.var(0) / len(likely)).sqrt()
    assert (error < 0.1 * likely.mean(0)).all()
    assert ((weights.mean(0) - likely.mean(0)).abs() <= 4 * error).all()


@pytest.mark.parametrize(("prior", "posterior"), PAIRS)
def test_evaluations_use_the_model_s_own_prior_and_posterior(prior: str, posterior: str) -> None:
    vae, x = build(prior, posterior).float(), (images(60) * 255).to(torch.uint8)
    found = posteriors(vae, x)
    by_latent = (prior, posterior) == ("standard", "diagonal")
    assert (found.kl_per_latent is not None) == by_latent
    elbo, bound, *_ = bounds(vae, x, 200, seed=0)
    assert (bound >= elbo).all()
    scores = objective_metrics(vae, ELBO(), x, "dev", seed=0, step=0, batch=7)
    assert scores["dev/neg_elbo"] == pytest.approx(-elbo.mean().item(), abs=5 * scores["dev/neg_elbo_error"])
    assert scores["dev/kl"] == pytest.approx(found.kl.sum(1).mean().item(), abs=4 * scores["dev/kl_error"] + 1e-3)


@pytest.mark.parametrize("prior", PRIORS)
def test_draws_of_the_prior_are_a_function_of_the_noise(prior: str) -> None:
    vae = build(prior)
    noise = torch.randn(5000, vae.noise_per_draw).double()
    z = vae.draw_prior(noise)
    assert z.shape == (5000, D)
    torch.testing.assert_close(vae.draw_prior(noise[:7]), z[:7])
    assert not z.requires_grad
    quantiles = prior_quantiles(vae.float(), torch.tensor([0.1, 0.5, 0.9]))
    share = (z[None] <= quantiles[:, None]).double().mean(1)  # (3, D)
    torch.testing.assert_close(share, torch.tensor([[0.1], [0.5], [0.9]]).double().expand(3, D), atol=0.03, rtol=0)
    with pytest.raises(ValueError, match="a draw of this prior takes"):
        vae.draw_prior(noise[:, 1:])


def test_the_words_for_the_kl_are_those_of_its_form() -> None:
    full, diagonal = (build(posterior=name).encode(images()) for name in ("full", "diagonal"))
    assert kl_form(diagonal, build().prior) == PER_LATENT
    assert kl_form(full, build().prior) == TOGETHER
    assert kl_form(diagonal, build("mixture").prior) == MONTE_CARLO


def test_an_estimated_kl_below_zero_counts_as_it_is() -> None:
    """A floor of 0 under one draw's estimate would bias the loss upwards, and stop the gradient of the KL."""
    vae, x = build("vamp", "full"), images(2)
    below = [terms for terms in (ELBO()(vae, x, 0) for _ in range(50)) if terms.kl.mean() < 0]
    assert below
    for terms in below:
        torch.testing.assert_close(terms.loss, -terms.elbo.mean())


class Joint(MultivariateNormal):
    """A prior of someone's own, of event (D,)."""


@register_kl(Normal, Joint)
def _kl_to_joint(q: Normal, p: Joint) -> Tensor:
    return kl_divergence(MultivariateNormal(q.mean, torch.diag_embed(q.stddev**2)), p)


def test_a_kl_of_one_s_own_to_a_joint_prior_is_of_all_latents_together() -> None:
    q, p = build().encode(images()), Joint(torch.zeros(D).double(), torch.eye(D).double())
    assert kl_form(q, p) == TOGETHER
    kl = divergence(q, p, q.rsample(torch.Size((1,))))
    assert kl.shape == (B, 1)
    torch.testing.assert_close(kl[:, 0], kl_divergence(q, Normal(p.loc, torch.ones(D).double())).sum(-1))


@pytest.mark.parametrize("name", ["diagonal", "full"])
def test_dreg_takes_the_density_without_its_gradients(name: str) -> None:
    vae, x = build(posterior=name), images()
    z = vae.encode(x).rsample(torch.Size((K,))).detach()
    assert not detach(vae.encode(x)).log_prob(z).requires_grad
    torch.testing.assert_close(detach(vae.encode(x)).log_prob(z), vae.encode(x).log_prob(z))
    IWAE(3, "dreg")(vae, x, 0).loss.backward()
    with pytest.raises(TypeError, match="plain"):
        IWAE(3, "dreg")(build(posterior="iaf"), x, 0)


# --- the posteriors ---------------------------------------------------------------------------------------------------


class Correlated:
    """z ~ N(0, I), x | z ~ N(W z + b, sigma^2 I) with slanting columns in W: the posterior is not diagonal."""

    sigma = 0.7

    def __init__(self, posterior: Any) -> None:
        halves = partial(MLPEncoder, hidden=()), partial(MLPDecoder, hidden=())
        head = GaussianHead(self.sigma, mean="linear")
        self.vae = VAE(*halves, head, D, SHAPE, posterior=posterior).double()
        out = self.vae.decoder.out
        assert isinstance(out, nn.Linear)
        self.w, self.b = torch.randn(PIXELS, D).double(), torch.randn(PIXELS).double()
        out.weight.data, out.bias.data = self.w, self.b
        covariance = self.w @ self.w.T + self.sigma**2 * torch.eye(PIXELS).double()
        self.marginal = MultivariateNormal(self.b, covariance)
        self.x = self.marginal.sample(torch.Size((40,))).view(40, *SHAPE)

    @property
    def precision(self) -> Tensor:
        return torch.eye(D).double() + self.w.T @ self.w / self.sigma**2

    def elbo(self) -> Tensor:
        """(N,), in closed form: E_q[log p(x|z)] is that of the mean less the spread's share."""
        q = self.vae.encode(self.x)
        scale = q.scale_tril if isinstance(q, FullNormal) else torch.diag_embed(q.stddev)
        spread = (self.w @ scale).square().sum((-2, -1)) / (2 * self.sigma**2)
        log_px = self.vae.decode(q.mean.unsqueeze(0)).log_prob(self.x)[0] - spread
        return log_px - divergence(q, self.vae.prior, q.mean.unsqueeze(0)).sum(-1)

    def fit(self) -> Tensor:
        """The gap log p(x) - ELBO of each image (N,) at the best encoder."""
        parameters = [*self.vae.encoder.parameters()]
        optimizer = torch.optim.LBFGS(parameters, max_iter=2000, tolerance_change=1e-14, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = -self.elbo().mean()
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]
        return self.marginal.log_prob(self.x.flatten(1)) - self.elbo().detach()


def test_the_full_posterior_reaches_log_p_where_the_diagonal_one_cannot() -> None:
    full = Correlated(Full)
    gap = full.fit()
    assert gap.abs().max() < 1e-4
    torch.testing.assert_close(
        full.vae.encode(full.x).covariance_matrix[0].inverse(), full.precision, rtol=1e-2, atol=1e-2
    )
    weights = log_weights(full.vae, full.x, 50)
    torch.testing.assert_close(weights, full.marginal.log_prob(full.x.flatten(1)).expand(50, -1), atol=0.05, rtol=0)


def test_the_diagonal_posterior_s_gap_is_its_closed_form() -> None:
    """The best diagonal q has the precisions of the diagonal: half of sum log L_dd less log det L, L the precision."""
    diagonal = Correlated(Diagonal)
    expected = 0.5 * (diagonal.precision.diagonal().log().sum() - diagonal.precision.logdet())
    assert expected > 0.1
    torch.testing.assert_close(diagonal.fit(), expected.expand(40), atol=1e-4, rtol=0)


def test_the_full_posterior_is_torch_s_gaussian() -> None:
    q = Full(D)(torch.randn(B, 9).double())
    z = torch.randn(K, B, D).double()
    other = MultivariateNormal(q.mean, q.covariance_matrix)
    torch.testing.assert_close(q.log_prob(z), other.log_prob(z))
    p = Normal(torch.randn(D).double(), torch.rand(D).double() + 0.5)
    expected = kl_divergence(other, MultivariateNormal(p.mean, torch.diag(p.variance)))
    torch.testing.assert_close(divergence(q, p, z).squeeze(-1), expected)
    draws = q.rsample(torch.Size((40_000,)))
    for b in range(B):
        torch.testing.assert_close(draws[:, b].T.cov(), q.covariance_matrix[b], rtol=0.06, atol=0.06)


def test_a_full_posterior_without_correlations_is_the_diagonal_one() -> None:
    params = torch.randn(B, 2 * D).double()
    full, diagonal = Full(D)(torch.cat([params, torch.zeros(B, 3).double()], 1)), Diagonal(D)(params)
    z = torch.randn(K, B, D).double()
    torch.testing.assert_close(full.log_prob(z), diagonal.log_prob(z).sum(-1))
    p = build().prior
    torch.testing.assert_close(divergence(full, p, z).sum(-1), divergence(diagonal, p, z).sum(-1))


# --- flows ------------------------------------------------------------------------------------------------------------


def coupling(dim: int, layers: int = 4) -> Flowed:
    flow = stirred(Chain(Coupling(dim, 16) for _ in range(layers)), 0.2)
    return Flowed(Normal(torch.zeros(dim), torch.ones(dim)), flow.forward, flow.inverse, paired_noise(dim))


def autoregressive(dim: int, layers: int = 2) -> Flowed:
    return stirred(IAF(dim, layers, 16))(torch.randn(1, 2 * dim + 16))


FLOWS: dict[str, Callable[[int], Flowed]] = {"coupling": coupling, "autoregressive": autoregressive}


@pytest.mark.parametrize("dim", [2, 5])
@pytest.mark.parametrize("name", FLOWS)
def test_flows_invert(name: str, dim: int) -> None:
    q = FLOWS[name](dim)
    u = q.base.sample(torch.Size((200,)))
    z, log_det = q.forward(u)
    back, log_det_back = q.inverse(z)
    assert (z - u).abs().max() > 0.1
    torch.testing.assert_close(back, u, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(log_det_back, -log_det, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FLOWS)
def test_the_determinant_is_the_jacobian_s(name: str) -> None:
    q = FLOWS[name](4)
    u = q.base.sample(torch.Size((1,))).reshape(4)
    jacobian = torch.autograd.functional.jacobian(lambda v: q.forward(v.view(1, 4))[0].view(4), u)
    assert isinstance(jacobian, Tensor)
    torch.testing.assert_close(q.forward(u.view(1, 4))[1].squeeze(), jacobian.det().abs().log(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FLOWS)
def test_flows_integrate_to_one(name: str) -> None:
    """By quadrature over a square that holds nearly all of the mass."""
    q = FLOWS[name](2)
    draws = q.sample(torch.Size((5000,))).view(-1, 2)
    side = [
        torch.linspace(float(low) - 3, float(high) + 3, 700) for low, high in zip(*draws.aminmax(dim=0), strict=True)
    ]
    cell = (side[0][1] - side[0][0]) * (side[1][1] - side[1][0])
    with torch.no_grad():
        mass = q.log_prob(torch.cartesian_prod(*side).unsqueeze(1)).exp().sum() * cell
    assert mass.item() == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_s_own_draws_have_the_density_that_the_inverse_finds(name: str) -> None:
    q = FLOWS[name](3)
    z = q.rsample(torch.Size((50,)))
    torch.testing.assert_close(q.log_prob(z), q.log_prob(z.clone()), atol=1e-4, rtol=1e-4)


def test_the_autoregressive_net_looks_at_earlier_latents_only() -> None:
    step = stirred(Autoregressive(5, 7))
    context = torch.randn(1, 7)
    jacobian = torch.autograd.functional.jacobian(
        lambda u: torch.cat(step._gate_and_mean(u.view(1, 5), context)), torch.randn(5)
    )
    for part in jacobian:  # the gates, then the means: (5, 5)
        assert (part.triu() == 0).all()
        assert (part.tril(-1) != 0).any()


def test_the_mean_of_a_flow_is_that_of_its_draws() -> None:
    q = stirred(IAF(3, 2, 16))(torch.randn(2, 22))
    draws = q.sample(torch.Size((20_000,)))
    torch.testing.assert_close(q.mean, draws.mean(0), atol=0.15, rtol=0)
    torch.testing.assert_close(q.stddev, draws.std(0), rtol=0.3, atol=0.05)


def test_a_flow_starts_as_the_standard_prior() -> None:
    z = torch.randn(50, D)
    flow, standard = Flow(D, SHAPE)(lambda x: x), Standard(D, SHAPE)(lambda x: x)  # type: ignore[arg-type, return-value]
    torch.testing.assert_close(flow.log_prob(z), standard.log_prob(z).sum(-1))


# --- mixtures ---------------------------------------------------------------------------------------------------------


def test_a_mixture_of_equal_components_is_the_standard_prior() -> None:
    prior = GaussianMixture(D, SHAPE, components=6)
    prior.loc.data.zero_()
    prior.logits.data = torch.randn(6)
    z = 3 * torch.randn(50, K, D)
    p = prior(lambda x: x)  # type: ignore[arg-type, return-value]
    torch.testing.assert_close(p.log_prob(z), Normal(torch.zeros(D), torch.ones(D)).log_prob(z).sum(-1))
    noise = torch.randn(50, D + 1)
    with fixed_noise(lambda shape: noise):
        assert torch.equal(p.sample(torch.Size((50,))), noise[:, :D])


def test_a_mixture_is_torch_s_and_sharp_components_cost_no_precision() -> None:
    logits, loc, scale = torch.randn(6), 5 * torch.randn(6, D), torch.full((6, D), 0.01)
    z = loc[[0, 3, 3, 5]] + 0.01 * torch.randn(4, D)
    mine = Mixture(logits, Normal(loc, scale)).log_prob(z)
    each = Normal(loc.double(), scale.double()).log_prob(z.double().unsqueeze(-2)).sum(-1)
    torch.testing.assert_close(
        mine.double(), (logits.double().log_softmax(0) + each).logsumexp(-1), atol=1e-4, rtol=1e-5
    )
    full = Mixture(logits, FullNormal(loc, torch.diag_embed(scale)))
    torch.testing.assert_close(full.log_prob(z), mine, atol=0.05, rtol=0)


@pytest.mark.parametrize("full", [False, True])
def test_draws_of_a_mixture_have_its_moments(full: bool) -> None:
    logits, loc = torch.tensor([0.0, 1.0, -9.0]), torch.tensor([[2.0, 0.0], [-1.0, 3.0], [50.0, 50.0]])
    scale = torch.tensor([0.5, 2.0]).expand(3, 2)
    p = Mixture(logits, FullNormal(loc, torch.diag_embed(scale)) if full else Normal(loc, scale))
    draws = p.sample(torch.Size((40_000,)))
    error = draws.std(0) / 200
    assert ((draws.mean(0) - p.mean).abs() < 4 * error).all()
    torch.testing.assert_close(draws.std(0), p.stddev, rtol=0.1, atol=0)


def test_vampprior_of_one_input_is_its_posterior() -> None:
    for name in ("diagonal", "full"):
        vae = VAE(
            partial(MLPEncoder, hidden=(9,)), partial(MLPDecoder, hidden=(9,)), GaussianHead(), D, SHAPE,
            partial(Vamp, inputs=1), POSTERIORS[name],
        ).double()  # fmt: skip
        image = vae.prior_head.pixels.sigmoid()  # type: ignore[union-attr, operator]
        z = torch.randn(50, 1, D).double()
        torch.testing.assert_close(vae.prior.log_prob(z), log_density(vae.encode(image), z))


def test_pseudo_inputs_start_as_training_images_and_learn() -> None:
    vae, data = build("vamp"), torch.randint(256, (9, *SHAPE), dtype=torch.uint8)
    vae.prior_head.start_at(data, seed=3)
    seen = vae.prior_head.pixels.sigmoid().detach()  # type: ignore[union-attr, operator]
    nearest = (seen[:, None] - data.double() / 255).abs().amax((2, 3, 4)).min(1).values
    assert (nearest <= 0.05 + 1e-9).all()
    assert len(seen.unique(dim=0)) == len(seen)
    with pytest.raises(InputError, match=r"prior.inputs=7: more pseudo-inputs than the 6 training images"):
        vae.prior_head.start_at(data[:6], seed=3)


def test_more_pseudo_inputs_than_images_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    given = ("data=digits", "likelihood=bernoulli", "data.binarize=dynamic", "prior=vamp", "prior.inputs=1198")
    ended = process(*given, "trainer.max_epochs=1", f"run_dir={tmp_path / 'run'}", cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stdout.strip().startswith("prior.inputs=1198: more pseudo-inputs than the 1197 training images")
    assert list(tmp_path.iterdir()) == []
    few = np.random.default_rng(0).integers(256, size=(30, 3, 4), dtype=np.uint8)
    with pytest.raises(InputError, match=r"^prior\.inputs=28: "):
        fit(few, "likelihood=gaussian", "prior=vamp", "prior.inputs=28", run_dir=tmp_path / "mine")
    assert list(tmp_path.iterdir()) == []


# --- objectives -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", PRIORS)
def test_total_correlation_of_weight_one_is_the_elbo(prior: str) -> None:
    """The three parts add up to one draw's KL, log q(z|x) - log p(z)."""
    vae, x = build(prior), images(30)
    noise = torch.randn(1, 30, D)
    with fixed_noise(lambda shape: noise):
        loss = TotalCorrelation(beta=1.0)(vae, x, 0).loss
        assert loss.item() == pytest.approx(-log_weights(vae, x, 1).mean().item())
        by_beta = [TotalCorrelation(beta=b)(vae, x, 0).loss.item() for b in (0.0, 1.0, 3.0)]
    assert by_beta[2] - by_beta[1] == pytest.approx(2 * (by_beta[1] - by_beta[0]))


class Known:
    """A model whose posterior of image i is `q` at row i, and whose decoder says nothing."""

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        self.q, self.prior = Normal(loc, scale), Normal(torch.zeros(loc.shape[1]), torch.ones(loc.shape[1]))

    def encode(self, x: Tensor, y: Tensor | None) -> Normal:
        return self.q

    def decode(self, z: Tensor, y: Tensor | None) -> Any:
        return type("Silent", (), {"log_prob": staticmethod(lambda x: torch.zeros(z.shape[:2]))})()


def test_total_correlation_finds_that_of_a_gaussian() -> None:
    """Narrow posteriors around draws of N(0, C) have the aggregate N(0, C): half of -log det C is its correlation."""
    rho = 0.8
    means = MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, rho], [rho, 1.0]])).sample(torch.Size((3000,)))
    known: Any = Known(means, torch.full_like(means, 0.15))
    losses = [TotalCorrelation(beta=b)(known, torch.zeros(3000, 1, 1, 1), 0).loss.item() for b in (0.0, 1.0)]
    wide = rho / (1 + 0.15**2)
    assert losses[1] - losses[0] == pytest.approx(-0.5 * math.log(1 - wide**2), abs=0.06)


def test_mmd_is_zero_for_equal_distributions_and_grows_with_their_distance() -> None:
    a, b = torch.randn(400, D), torch.randn(400, D)
    spread = torch.stack([squared_mmd(torch.randn(100, D), torch.randn(100, D)) for _ in range(60)])
    assert abs(spread.mean()) < 4 * spread.std() / math.sqrt(60)
    distances = [squared_mmd(a, b + shift).item() for shift in (0.0, 0.5, 1.0, 2.0)]
    assert distances == sorted(distances)
    assert distances[-1] > 0.3


def test_mmd_by_hand() -> None:
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0]])
    k = [math.exp(-(d**2) / 2) for d in range(3)]
    expected = k[1] + k[2] - 2 * (1 + k[2] + k[1] + k[1]) / 4
    assert squared_mmd(a, b).item() == pytest.approx(expected)


def test_mmd_does_not_depend_on_where_both_lie() -> None:
    """Its squares come from matrix products, which cancel badly in float32."""
    a, b = torch.randn(40, D), torch.randn(40, D) + 0.5
    shift = 1024.0  # of which float32 keeps four digits after the point
    a, b = (a + shift) - shift, (b + shift) - shift
    assert squared_mmd(a + shift, b + shift).item() == pytest.approx(squared_mmd(a, b).item(), rel=1e-5)


def test_infovae_weighs_the_kl_and_the_discrepancy() -> None:
    vae, x, step = build(), images(6), 0
    noise = {(1, 6, D): torch.randn(1, 6, D)}
    with fixed_noise(lambda shape: noise[tuple(shape)]):
        terms: list[Terms] = [MMD(alpha, mmd)(vae, x, step) for alpha, mmd in ((0.0, 0.0), (1.0, 0.0), (0.0, 10.0))]
        elbo = ELBO()(vae, x, step)
        z = vae.encode(x).rsample(torch.Size((1,)))[0]
    torch.testing.assert_close(terms[0].loss, elbo.loss)
    torch.testing.assert_close(terms[1].loss, -elbo.log_px.mean())
    assert [t.beta for t in terms] == [1, 0, 1]
    assert all(t.per_image is None for t in terms)
    torch.testing.assert_close((terms[2].loss - terms[0].loss) / 10, squared_mmd(z, noise[1, 6, D][0].double()))


@pytest.mark.parametrize(("objective", "images"), [("elbo", 300), ("tc", 50), ("mmd", 50)])
def test_terms_of_the_whole_batch_are_evaluated_in_the_batches_of_training(objective: str, images: int) -> None:
    given = ("data=digits", "likelihood=gaussian", f"objective={objective}", "data.batch_size=50")
    x, _ = next(iter(build_data(settings_of(*given, "data.eval_batch_size=300")).val_dataloader()[0]))
    assert len(x) == images


@pytest.mark.parametrize("objective", [TotalCorrelation(), MMD()])
def test_a_batch_of_one_image_has_a_finite_loss(objective: Callable[..., Terms]) -> None:
    terms = objective(build(), images(1), 0)
    terms.loss.backward()
    assert terms.loss.isfinite()


@pytest.mark.parametrize("objective", [TotalCorrelation(), MMD(), IWAE(samples=3), IWAE(samples=3, gradient="dreg")])
def test_objectives_in_bf16_agree_with_float32(objective: Callable[..., Terms]) -> None:
    vae, x = build().float(), images(30).float()
    noise: dict[tuple[int, ...], torch.Tensor] = {}
    with torch.no_grad(), fixed_noise(lambda shape: noise.setdefault(tuple(shape), torch.randn(shape))):
        exact = objective(vae, x, 0).loss
        with torch.autocast("cpu", torch.bfloat16):
            half = objective(vae, x, 0).loss
    assert half.item() == pytest.approx(exact.item(), rel=0.02)


@pytest.mark.parametrize("net", [Coupling, Autoregressive])
def test_flows_are_float32_under_bf16(net: type[nn.Module]) -> None:
    """A density from nets in 8 bits would be off by tenths of a nat, or by nats."""
    chain = stirred(Chain(net(6, 8) for _ in range(8)))
    u, context = torch.randn(200, 6), (torch.randn(200, 8),) if net is Autoregressive else ()
    with torch.no_grad():
        z, log_det = chain(u, *context)
        exact = [z, log_det, *chain.inverse(z, *context)]
        with torch.autocast("cpu", torch.bfloat16):
            half = [*chain(u, *context), *chain.inverse(z, *context)]
    for ours, theirs in zip(half, exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_narrow_autoregressive_net_sees_latents_of_all_places() -> None:
    """With fewer units than latents, the last latent still depends on early and late ones."""
    flow, u = stirred(Autoregressive(40, 7)), torch.zeros(1, 40, requires_grad=True)
    flow(u, torch.zeros(1, 7))[0][0, -1].backward()
    seen = u.grad[0].nonzero().flatten().tolist()  # type: ignore[index]
    assert {0, 20, 38, 39} <= set(seen)


@pytest.mark.parametrize(("prior", "posterior"), PAIRS)
def test_bf16_agrees_with_float32(prior: str, posterior: str) -> None:
    vae, x = build(prior, posterior).float(), images(30).float()
    noise = torch.randn(1, 30, D)
    with torch.no_grad(), fixed_noise(lambda shape: noise):
        exact = ELBO()(vae, x, 0).loss
        with torch.autocast("cpu", torch.bfloat16):
            half = ELBO()(vae, x, 0).loss
    assert half.item() == pytest.approx(exact.item(), rel=0.02)
