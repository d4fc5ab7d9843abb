"""What the distributions claim, against the report's listings, closed forms, enumeration and scipy."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from vae.distributions import (
    LEVELS,
    Bernoulli,
    CalibratedNormal,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Flowed,
    FullNormal,
    Gaussian,
    Mixture,
    Normal,
    SquaredError,
    paired_noise,
)
from vae.flows import Chain, Coupling
from vae.noise import NoiseStreams, RepeatedNoise, fixed_noise

SCALES = (1e-3, 1e-2, 0.1, 1.0)
LOCS = (-0.3, 0.0, 0.25, 0.5017, 1.0, 1.4)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def assert_mean(draws: Tensor, expected: Tensor | float, sigmas: float = 4.0) -> None:
    """The mean over the first axis lies within `sigmas` standard errors of `expected`, everywhere."""
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - expected).abs() <= sigmas * error + 1e-9).all()


# Every distribution: its draws, over the parameters that models reach


LOGITS = torch.tensor([-500.0, -60, -16, -3, -1, -0.04, -1e-3, -1e-7, 0, 1e-4, 0.9, 1.1, 5, 20, 90, 300]).unsqueeze(1)
SIGMAS = torch.logspace(-4, 2, 7).unsqueeze(1)
LOC, SCALE = (grid.reshape(-1, 1) for grid in torch.meshgrid(torch.tensor(LOCS), torch.tensor(SCALES), indexing="ij"))


def flowed() -> Flowed:
    torch.manual_seed(1)
    chain = Chain(Coupling(2, 5) for _ in range(3)).requires_grad_(False)
    for layer in chain:
        torch.nn.init.normal_(layer.net[-1].weight, std=0.5)
    return Flowed(Normal(torch.zeros(2), torch.ones(2)), chain.forward, chain.inverse, paired_noise(2))


def full() -> FullNormal:
    lower = torch.tensor([[[0.5, 0.0], [2.0, 0.1]], [[1e-3, 0.0], [5.0, 30.0]]])
    return FullNormal(torch.tensor([[1.0, -40.0], [0.0, 3.0]]), lower)


@dataclass
class Draws:
    """A distribution; whether it lives on [0, 1]; how many draws its own mean and variance are taken from."""

    make: Callable[[], Distribution]
    bounded: bool = False
    claimed_from: float = math.inf


EVERY = {
    "squared_error": Draws(lambda: SquaredError(torch.zeros(7, 1), SIGMAS, 1)),
    "squared_error_mean": Draws(lambda: SquaredError(torch.linspace(0, 1, 7).unsqueeze(1), None, 1), True),
    "gaussian": Draws(lambda: Gaussian(torch.linspace(-3, 3, 5).unsqueeze(1), torch.tensor(0.01), 1)),
    "gaussian_pixel": Draws(lambda: Gaussian(torch.ones(7, 1), SIGMAS, 1)),
    "calibrated_normal": Draws(lambda: CalibratedNormal(torch.rand(4, 1), torch.tensor(0.2), 1)),
    "bernoulli": Draws(lambda: Bernoulli(LOGITS, 1), True),
    "continuous_bernoulli": Draws(lambda: ContinuousBernoulli(LOGITS, 1), True),
    "discretized_logistic": Draws(lambda: DiscretizedLogistic(LOC, SCALE, 1), True),
    "normal": Draws(lambda: Normal(torch.full((7, 1), 3.0), SIGMAS)),
    "full_normal": Draws(full),
    "mixture": Draws(lambda: Mixture(torch.tensor([0.0, 2.0]), Normal(torch.tensor([[0.0], [9.0]]), torch.ones(2, 1)))),
    "full_mixture": Draws(lambda: Mixture(torch.tensor([0.5, 1.0]), full())),
    "flowed": Draws(flowed, claimed_from=64),
}


@pytest.mark.parametrize("name", EVERY)
def test_draws_have_the_mean_and_variance_that_are_claimed_and_a_density(name: str) -> None:
    case = EVERY[name]
    p = case.make()
    draws = p.sample(torch.Size((20_000,)))
    assert p.log_prob(draws).isfinite().all()
    mean, variance = p.mean.double(), p.variance.double()
    assert variance.isfinite().all()
    assert not case.bounded or (draws.min() >= 0 and draws.max() <= 1)
    count = min(len(draws), case.claimed_from)
    fourth = variance if case.bounded else 10 * variance**2  # of draws on [0, 1] (x - mean)^4 is at most (x - mean)^2
    rounding = 1e-6 * (1 + mean.abs())
    assert ((draws.double().mean(0) - mean).abs() <= 5 * (variance / count).sqrt() + rounding).all()
    squares = (draws.double() - mean).square().mean(0)
    assert ((squares - variance).abs() <= 5 * (fourth / count).sqrt() + rounding**2 + 1e-6 * variance).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 3e-5)])
def test_continuous_bernoulli_is_scipys_truncated_exponential(dtype: torch.dtype, tolerance: float) -> None:
    rates = np.array([0.3, 0.9, 1.0, 1.1, 4.0, 16.0, 60.0, 500.0])
    known = stats.truncexpon(b=rates, scale=1 / rates)  # on [0, 1]; a positive logit mirrors it
    for sign in (-1, 1):
        p = ContinuousBernoulli(torch.tensor(sign * rates, dtype=dtype).unsqueeze(1), 1)
        mean = known.mean() if sign < 0 else 1 - known.mean()
        np.testing.assert_allclose(p.mean.squeeze(1), mean, rtol=tolerance)
        np.testing.assert_allclose(p.variance.squeeze(1), known.var(), rtol=tolerance)
        draws = p.sample(torch.Size((4000,))).squeeze(-1).numpy()
        dark = draws if sign < 0 else 1 - draws
        for rate, column in zip(rates, dark.T, strict=True):
            assert stats.ks_1samp(column, stats.truncexpon(b=rate, scale=1 / rate).cdf).pvalue > 1e-4


def test_continuous_bernoulli_is_uniform_at_0_and_smooth_around_it() -> None:
    logits = torch.tensor([-1.001, -0.999, -1e-3, 0.0, 1e-9, 0.999, 1.001]).double().unsqueeze(1)
    variance = ContinuousBernoulli(logits, 1).variance.squeeze(1)
    assert variance[3].item() == pytest.approx(1 / 12)
    assert variance[2].item() == pytest.approx(1 / 12, rel=1e-6)
    torch.testing.assert_close(variance[:2], variance.flip(0)[:2])
    assert (variance[1] - variance[0]).item() == pytest.approx(0.002 / 120, rel=0.1)  # the slope -l / 120 + ...


# The report's squared error


@pytest.mark.parametrize("shape", [(784,), (1, 28, 28), (3, 5, 7)])
@pytest.mark.parametrize("sampled", [True, False])
def test_first_listing_of_the_report_to_the_bit(shape: tuple[int, ...], sampled: bool) -> None:
    x, loc = torch.rand(shape), torch.rand(shape)
    p = SquaredError(loc, torch.rand(shape) if sampled else None, event_dim=len(shape))
    torch.manual_seed(1)
    x_hat = p.rsample()
    listing = -((x - x_hat) ** 2).sum()
    torch.manual_seed(1)
    assert torch.equal(p.log_prob(x), listing)


@pytest.mark.parametrize("sampled", [True, False])
def test_second_listing_of_the_report_to_the_bit_on_flat_and_on_square_images(sampled: bool) -> None:
    x, loc, scale = torch.rand(7, 784), torch.rand(7, 784), torch.rand(7, 784)
    torch.manual_seed(1)
    x_hat = SquaredError(loc, scale if sampled else None, event_dim=1).rsample()
    listing = -((x - x_hat) ** 2).sum(dim=1).mean()
    for shape in [(784,), (1, 28, 28)]:
        loc_, scale_ = loc.view(1, 7, *shape), scale.view(1, 7, *shape)
        p = SquaredError(loc_, scale_ if sampled else None, event_dim=len(shape))
        torch.manual_seed(1)
        log_prob = p.log_prob(x.view(7, *shape))
        assert log_prob.shape == (1, 7)
        assert torch.equal(log_prob.mean(), listing)


def test_sampled_squared_error_is_the_reports_trick_written_out() -> None:
    x, loc, log_var = torch.rand(7, 1, 4, 5), torch.rand(7, 1, 4, 5), torch.randn(7, 1, 4, 5)
    torch.manual_seed(1)
    x_hat = torch.randn(7, 1, 4, 5) * (0.5 * log_var).exp() + loc
    torch.manual_seed(1)
    log_prob = SquaredError(loc, (0.5 * log_var).exp()).log_prob(x)
    torch.testing.assert_close(log_prob, -((x - x_hat) ** 2).sum((1, 2, 3)))


def test_sampling_adds_the_variance_to_the_squared_error() -> None:
    x, loc, scale = torch.rand(2, 3, 2), torch.rand(2, 3, 2), torch.rand(2, 3, 2)
    draws = SquaredError(loc.expand(50_000, 1, -1, -1, -1), scale).log_prob(x)
    assert_mean(draws, -((x - loc) ** 2).sum() - (scale**2).sum())


def test_sampled_squared_error_only_ever_shrinks_sigma() -> None:
    """The expected gradient is -2 sigma for every sigma, small ones and large ones: its maximum is at sigma = 0."""
    x, loc = torch.rand(1, 2, 3), torch.rand(1, 2, 3)
    sigma = torch.tensor([1e-2, 0.1, 0.3, 0.7, 1.0, 3.0]).view(1, 2, 3)
    scale = sigma.expand(50_000, 1, 1, 2, 3).clone().requires_grad_()
    SquaredError(loc.expand_as(scale), scale).log_prob(x).sum().backward()
    assert scale.grad is not None
    # sigma = 0.01 needs more draws than that to be told from 0: its noise is 2 |x - mu|
    assert_mean(scale.grad, -2 * sigma)
    assert (scale.grad.mean(0)[..., sigma > 0.05] < 0).all()


def test_squared_error_of_the_mean_is_a_gaussian_of_variance_one_half_but_for_a_constant() -> None:
    x, loc = torch.rand(3, 1, 28, 28).double(), torch.rand(3, 1, 28, 28).double()
    gaussian = stats.norm(loc.numpy(), math.sqrt(0.5)).logpdf(x.numpy()).sum((1, 2, 3))
    loss = -SquaredError(loc).log_prob(x)
    np.testing.assert_allclose(loss + 392 * math.log(math.pi), -gaussian, rtol=1e-12)
    assert 392 * math.log(math.pi) == pytest.approx(448.73, abs=5e-3)


def test_squared_error_says_that_it_is_no_likelihood_and_the_others_that_they_are() -> None:
    loc = torch.rand(1, 2, 3)
    assert not SquaredError(loc).normalised
    assert not SquaredError(loc, loc).normalised
    assert DiscretizedLogistic(loc, loc).normalised
    assert CalibratedNormal(loc, torch.ones(())).normalised


def test_squared_error_offers_mean_spread_and_samples() -> None:
    loc, scale = torch.rand(1, 2, 3), torch.rand(1, 2, 3)
    assert torch.equal(SquaredError(loc).sample(torch.Size((4,))), loc.expand(4, 1, 2, 3))
    assert torch.equal(SquaredError(loc).stddev, torch.zeros(1, 2, 3))
    p = SquaredError(loc, scale)
    assert torch.equal(p.mean, loc)
    draws = p.sample(torch.Size((40_000,)))
    assert_mean(draws, loc)
    assert_mean((draws - loc) ** 2, scale**2)


# Normal: KL, reparametrisation


def test_kl_is_equation_6_of_the_report() -> None:
    mu, log_var = torch.randn(5, 3).double(), 2 * torch.randn(5, 3).double()
    zeros = torch.zeros(3).double()
    kl = kl_divergence(Normal(mu, (0.5 * log_var).exp()), Normal(zeros, zeros + 1))
    assert kl.shape == (5, 3)
    report = -0.5 * (1 + log_var - mu.pow(2) - log_var.exp()).sum(1)
    torch.testing.assert_close(kl.sum(1), report)


def test_kl_agrees_with_monte_carlo() -> None:
    q = Normal(torch.tensor([-1.0, 0.0, 2.0]), torch.tensor([0.3, 1.0, 1.5]))
    prior = Normal(torch.zeros(3), torch.ones(3))
    z = q.sample(torch.Size((50_000,)))
    assert_mean(q.log_prob(z) - prior.log_prob(z), kl_divergence(q, prior))


def test_reparametrisation_gradients_are_one_and_half_sigma_e() -> None:
    mu = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    log_var = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    noise = torch.randn(2, 4, 3, dtype=torch.float64)
    torch.manual_seed(1)
    sigma = (0.5 * log_var).exp()
    z = Normal(mu, sigma).rsample(torch.Size((2,)))
    torch.testing.assert_close(z, mu + sigma * noise)
    for k in range(2):
        d_mu, d_log_var = torch.autograd.grad(z[k].sum(), (mu, log_var), retain_graph=True)
        torch.testing.assert_close(d_mu, torch.ones_like(mu))
        torch.testing.assert_close(d_log_var, sigma * noise[k] / 2)


def test_sample_carries_no_gradient_and_draws_what_rsample_draws() -> None:
    q = Normal(torch.zeros(3, requires_grad=True), torch.ones(3, requires_grad=True))
    torch.manual_seed(1)
    z = q.rsample(torch.Size((2,)))
    torch.manual_seed(1)
    assert torch.equal(q.sample(torch.Size((2,))), z)
    assert z.requires_grad
    assert not q.sample().requires_grad


# Noise that can be fixed


def draw_pass(sizes: tuple[int, ...], samples: int = 2) -> tuple[Tensor, Tensor]:
    """One pass over sum(sizes) images: latent (K, B, 3) and image noise (K, B, 1, 2, 2), in turn, batch by batch."""
    latent, image = [], []
    for size in sizes:
        latent.append(Normal(torch.zeros(size, 3), torch.ones(size, 3)).rsample(torch.Size((samples,))))
        zeros = torch.zeros(samples, size, 1, 2, 2)
        image.append(Normal(zeros, zeros + 1).sample())
    return torch.cat(latent, 1), torch.cat(image, 1)


@pytest.mark.parametrize("sizes", [(3, 4), (1,) * 7, (5, 1, 1)])
@pytest.mark.parametrize("samples", [1, 2])
def test_fixed_noise_is_the_same_for_every_batch_split(sizes: tuple[int, ...], samples: int) -> None:
    with fixed_noise(11):
        whole = draw_pass((7,), samples)
    with fixed_noise(11):
        parts = draw_pass(sizes, samples)
    for a, b in zip(whole, parts, strict=True):
        assert torch.equal(a, b)


def test_fixed_noise_ignores_torchs_generator_and_leaves_it_alone() -> None:
    before = torch.get_rng_state()
    with fixed_noise(11):
        first = draw_pass((7,))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    with fixed_noise(11):
        again = draw_pass((7,))
    assert torch.equal(first[0], again[0])
    outside = draw_pass((7,))
    torch.manual_seed(99)
    assert torch.equal(outside[0], draw_pass((7,))[0])
    assert not torch.equal(outside[0], first[0])


def test_fixed_noise_differs_between_seeds_images_samples_and_shapes() -> None:
    draws = {}
    for seed in (11, 12):
        with fixed_noise(seed):
            draws[seed] = draw_pass((7,))
    assert not torch.isclose(draws[11][0], draws[12][0]).any()
    latent, image = draws[11]
    assert latent.unique().numel() == latent.numel()
    assert not np.intersect1d(latent, image).size
    with fixed_noise(11):
        second_pass = [draw_pass((7,))[0] for _ in range(2)][1]
    assert not torch.isclose(latent, second_pass).any()


@pytest.mark.parametrize("limit", [0, 200, 10**6])  # bytes; a pass over seven images draws 7 x 2 x 7 x 4 = 392
def test_repeated_noise_is_that_of_one_pass_in_every_pass(limit: int) -> None:
    with fixed_noise(11):
        whole = draw_pass((7,))
    noise = RepeatedNoise(11, torch.device("cpu"), limit)
    for sizes in [(3, 4), (3, 4), (3,), (3, 4), (2, 5), (7,), (3, 4)]:  # one of them was not finished
        noise.start()
        with fixed_noise(noise):
            parts = draw_pass(sizes)
        for a, b in zip(whole, parts, strict=True):
            assert torch.equal(a[:, : sum(sizes)], b)
        assert sum(kept.nbytes for kept in noise.kept) <= limit


def test_repeated_noise_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    noise, drawn = RepeatedNoise(11, torch.device("cpu")), []
    monkeypatch.setattr(NoiseStreams, "__call__", lambda self, shape: drawn.append(shape) or torch.zeros(shape))
    for _ in range(3):
        noise.start()
        with fixed_noise(noise):
            draw_pass((3, 4))
    assert len(drawn) == 4


def test_fixed_noise_nests_and_ends_with_an_exception() -> None:
    with fixed_noise(11):
        whole = draw_pass((7,))
    with fixed_noise(11):
        head = draw_pass((3,))
        with fixed_noise(11):
            inner = draw_pass((7,))
        with contextlib.suppress(ZeroDivisionError), fixed_noise(5):
            draw_pass((2,))
            draw_pass((1 // 0,))
        tail = draw_pass((4,))
    for a, b, c, d in zip(whole, inner, head, tail, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, torch.cat([c, d], 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fixed_noise_has_the_moments_of_the_normal_and_its_dtype(dtype: torch.dtype) -> None:
    mu, sigma = torch.tensor([-1.0, 2.0], dtype=dtype), torch.tensor([0.5, 3.0], dtype=dtype)
    with fixed_noise(7):
        z = Normal(mu.expand(200, 2), sigma.expand(200, 2)).rsample(torch.Size((100,)))
    assert z.dtype == dtype
    e = ((z - mu) / sigma).flatten(0, 1)
    assert_mean(e, 0.0)
    assert_mean(e**2, 1.0)
    assert_mean(e**4, 3.0)
    assert_mean(e[:, :1] * e[:, 1:], 0.0)
    assert_mean(e[1:] * e[:-1], 0.0)


def test_fixed_noise_passes_gradients_on() -> None:
    mu, sigma = torch.zeros(4, 3, requires_grad=True), torch.ones(4, 3, requires_grad=True)
    with fixed_noise(7):
        z = Normal(mu, sigma).rsample(torch.Size((1,)))
    d_mu, d_sigma = torch.autograd.grad(z.sum(), (mu, sigma))
    assert torch.equal(d_mu, torch.ones(4, 3))
    assert torch.equal(d_sigma, z.squeeze(0))


def test_a_pass_in_pieces_goes_on_where_its_streams_stopped() -> None:
    with fixed_noise(11):
        whole = draw_pass((7,))
    streams, pieces = NoiseStreams(11), []
    for size in (3, 4):
        with fixed_noise(streams):
            pieces.append(draw_pass((size,)))
        draw_pass((2,))  # what others draw in between does not count
    for a, b, c in zip(whole, *pieces, strict=True):
        assert torch.equal(a, torch.cat([b, c], 1))


# Calibrated normal


def test_calibrated_normal_takes_the_sigma_of_maximum_likelihood() -> None:
    x, loc = torch.rand(3, 1, 2, 5).double(), torch.rand(2, 3, 1, 2, 5).double()
    p = CalibratedNormal(loc, torch.ones(()).double())
    log_prob = p.log_prob(x)
    rmse = math.sqrt(((x - loc) ** 2).mean())
    assert p.mse is not None
    assert p.mse.item() == pytest.approx(rmse**2)
    np.testing.assert_allclose(log_prob, stats.norm(loc, rmse).logpdf(x).sum((2, 3, 4)))
    for other in (0.9 * rmse, 1.1 * rmse):
        assert log_prob.sum() > stats.norm(loc, other).logpdf(x).sum()


# Discretised logistic


def logistic_grid(dtype: torch.dtype) -> tuple[DiscretizedLogistic, Tensor]:
    """Batch (scales, locs), event (1, 1, 1); and the levels (256, 1, 1, 1, 1, 1)."""
    scale, loc = torch.meshgrid(torch.tensor(SCALES), torch.tensor(LOCS), indexing="ij")
    shape = (len(SCALES), len(LOCS), 1, 1, 1)
    levels = (torch.arange(256).to(dtype) / LEVELS).view(256, 1, 1, 1, 1, 1)
    return DiscretizedLogistic(loc.reshape(shape).to(dtype), scale.reshape(shape).to(dtype)), levels


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_256_probabilities_sum_to_one(dtype: torch.dtype, tolerance: float) -> None:
    p, levels = logistic_grid(dtype)
    log_prob = p.log_prob(levels)
    assert log_prob.shape == (256, len(SCALES), len(LOCS))
    assert log_prob.isfinite().all()
    torch.testing.assert_close(
        log_prob.exp().sum(0), torch.ones(len(SCALES), len(LOCS), dtype=dtype), rtol=0, atol=tolerance
    )


def test_discretised_logistic_is_scipys_difference_of_cdfs() -> None:
    p, levels = logistic_grid(torch.float64)
    logistic = stats.logistic(p.loc.numpy(), p.scale.numpy())
    upper = np.where(levels == 1, 1.0, logistic.cdf(levels.numpy() + 0.5 / 255))
    lower = np.where(levels == 0, 0.0, logistic.cdf(levels.numpy() - 0.5 / 255))
    expected = (upper - lower).squeeze((3, 4, 5))
    probability = p.log_prob(levels).exp().numpy()
    np.testing.assert_allclose(probability, expected, rtol=0, atol=1e-13)
    clear = expected > 1e-4  # below, scipy's difference has lost its digits
    np.testing.assert_allclose(probability[clear], expected[clear], rtol=1e-9)


def test_discretised_logistic_sums_over_the_image() -> None:
    loc, scale = torch.rand(2, 4, 3, 2, 5), torch.rand(2, 4, 3, 2, 5) + 0.01
    x = torch.randint(256, (4, 3, 2, 5)) / LEVELS
    total = torch.zeros(2, 4)
    for c in range(3):
        for h in range(2):
            pixel = (..., slice(c, c + 1), slice(h, h + 1), slice(None))
            total += DiscretizedLogistic(loc[pixel], scale[pixel]).log_prob(x[pixel])
    torch.testing.assert_close(DiscretizedLogistic(loc, scale).log_prob(x), total)


def test_discretised_mean_and_spread_are_those_of_the_enumeration() -> None:
    p, levels = logistic_grid(torch.float64)
    probability = p.log_prob(levels).exp().view(256, *p.loc.shape)
    mean = (probability * levels).sum(0)
    variance = (probability * (levels - mean) ** 2).sum(0)
    torch.testing.assert_close(p.mean, mean, rtol=0, atol=1e-7)
    torch.testing.assert_close(p.stddev**2, variance, rtol=0, atol=1e-7)


def test_discretised_samples_have_the_moments_and_lie_on_the_levels() -> None:
    p, _ = logistic_grid(torch.float32)
    draws = p.sample(torch.Size((20_000,)))
    assert draws.shape == (20_000, *p.loc.shape)
    assert torch.isin(draws, torch.arange(256) / LEVELS).all()
    exact, _ = logistic_grid(torch.float64)
    # at a scale of 1e-3 a level away from the mean can be too rare to be met at all: hence the least step allowed
    error = exact.stddev / math.sqrt(len(draws))
    assert ((draws.double().mean(0) - exact.mean).abs() <= 4 * error + 1e-6).all()
    wide = exact.stddev > 0.05
    assert_mean((draws.double() - exact.mean)[:, wide] ** 2, (exact.stddev**2)[wide])


def test_discretised_samples_follow_the_mass_function() -> None:
    p = DiscretizedLogistic(torch.full((1, 1, 1), 0.97), torch.full((1, 1, 1), 0.02))
    levels = (torch.arange(256) / LEVELS).view(256, 1, 1, 1)
    expected = p.log_prob(levels).exp().double().numpy()
    draws = p.sample(torch.Size((20_000,))).flatten()
    counts = np.bincount((draws * LEVELS).round().long().numpy(), minlength=256)
    common = expected * len(draws) > 5
    rest = [counts[~common].sum(), (expected[~common].sum()) * len(draws)]
    observed = np.append(counts[common], rest[0])
    wanted = np.append(expected[common] * len(draws), rest[1])
    assert stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-3


def test_discretised_samples_carry_no_gradient() -> None:
    loc, scale = torch.rand(1, 2, 3, requires_grad=True), torch.rand(1, 2, 3, requires_grad=True)
    assert not DiscretizedLogistic(loc, scale).sample().requires_grad


def test_discretised_gradients_are_finite_everywhere_and_right() -> None:
    p, levels = logistic_grid(torch.float32)
    loc, scale = p.loc.clone().requires_grad_(), p.scale.clone().requires_grad_()
    d_loc, d_scale = torch.autograd.grad(DiscretizedLogistic(loc, scale).log_prob(levels).sum(), (loc, scale))
    assert d_loc.isfinite().all()
    assert d_scale.isfinite().all()
    x = torch.tensor([0.0, 1 / 255, 0.4, 254 / 255, 1.0]).double().view(5, 1, 1, 1)
    loc64 = torch.full((5, 1, 1, 1), 0.45, dtype=torch.float64, requires_grad=True)
    scale64 = torch.full((5, 1, 1, 1), 0.08, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m, s: DiscretizedLogistic(m, s).log_prob(x), (loc64, scale64))


def test_a_level_far_from_the_location_still_pulls_it_there() -> None:
    loc = torch.full((1, 1, 1), -0.3, requires_grad=True)
    for level in (0.5, 1.0):
        p = DiscretizedLogistic(loc, torch.full((1, 1, 1), 1e-3))
        (pull,) = torch.autograd.grad(p.log_prob(torch.full((1, 1, 1), level)), loc)
        assert pull.item() == pytest.approx(1e3, rel=1e-3)
