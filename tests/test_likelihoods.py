"""Every head of one table, against scipy, enumeration and quadrature; then what is special to each."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import integrate, stats
from scipy.special import expit
from torch import Tensor

from vae.distributions import CalibratedNormal, SquaredError
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


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


class ContinuousBernoulli:
    """C lambda^x (1 - lambda)^(1 - x) on [0, 1], by hand (Loaiza-Ganem and Cunningham 2019, eqs. 7, 8)."""

    def __init__(self, lam: np.ndarray) -> None:
        self.lam = lam
        self.constant = 2 * np.arctanh(1 - 2 * lam) / (1 - 2 * lam)

    def logpdf(self, x: np.ndarray) -> np.ndarray:
        return np.log(self.constant) + x * np.log(self.lam) + (1 - x) * np.log1p(-self.lam)

    def mean(self) -> np.ndarray:
        return self.lam / (2 * self.lam - 1) + 1 / (2 * np.arctanh(1 - 2 * self.lam))

    def std(self) -> np.ndarray:
        x = np.linspace(0, 1, 2001).reshape(-1, *[1] * self.lam.ndim)
        return np.sqrt(integrate.simpson((x - self.mean()) ** 2 * np.exp(self.logpdf(x)), x=x, axis=0))


class CutLogistic:
    """scipy's logistic between the borders of the 256 levels, its tails given to the first and the last."""

    levels = np.arange(256) / 255

    def __init__(self, loc: np.ndarray, scale: np.ndarray) -> None:
        self.loc, self.logistic = loc, stats.logistic(loc, scale)

    def logpdf(self, x: np.ndarray) -> np.ndarray:
        upper = np.where(x > 1 - 1e-3, np.inf, x + 0.5 / 255)
        lower = np.where(x < 1e-3, -np.inf, x - 0.5 / 255)
        below = self.logistic.cdf(upper) - self.logistic.cdf(lower)
        above = self.logistic.sf(lower) - self.logistic.sf(upper)
        return np.log(np.where(x < self.loc, below, above))  # of two equal differences, the one that keeps its digits

    def moment(self, power: int) -> np.ndarray:
        x = self.levels.reshape(-1, *[1] * self.loc.ndim)
        return (x**power * np.exp(self.logpdf(x))).sum(0)

    def mean(self) -> np.ndarray:
        return self.moment(1)

    def std(self) -> np.ndarray:
        return np.sqrt(self.moment(2) - self.moment(1) ** 2)


@dataclass
class Case:
    """A head; the reference for parameters (P, ...) in numpy, with logpdf, mean and std; and where it lives."""

    head: Callable[[], Likelihood]
    reference: Callable[[np.ndarray], Any]
    params_per_pixel: int
    values: str  # "real", "unit", "binary" or "levels"

    @property
    def discrete(self) -> bool:
        return self.values in ("binary", "levels")


def softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, x)


def shared_gaussian() -> Likelihood:
    head = GaussianHead("shared")
    torch.nn.init.constant_(head.log_sigma, math.log(0.4))
    return head


def optimal_gaussian() -> Likelihood:
    head = GaussianHead("optimal")
    head.mse.fill_(0.09)
    return head


def logistic(p: np.ndarray, mean: Callable[[np.ndarray], np.ndarray], least: float) -> CutLogistic:
    return CutLogistic(mean(p[0]), least + softplus(p[1] - math.log(9.5)))


CASES = {
    "gaussian": Case(lambda: GaussianHead(0.3), lambda p: stats.norm(expit(p[0]), 0.3), 1, "real"),
    "gaussian_int": Case(lambda: GaussianHead(2), lambda p: stats.norm(expit(p[0]), 2), 1, "real"),
    "gaussian_linear": Case(lambda: GaussianHead(0.3, mean="linear"), lambda p: stats.norm(p[0], 0.3), 1, "real"),
    "gaussian_shared": Case(shared_gaussian, lambda p: stats.norm(expit(p[0]), 0.4), 1, "real"),
    "gaussian_pixel": Case(
        lambda: GaussianHead("pixel", min_sigma=0.05),
        lambda p: stats.norm(expit(p[0]), 0.05 + softplus(p[1])),
        2,
        "real",
    ),
    "gaussian_optimal": Case(optimal_gaussian, lambda p: stats.norm(expit(p[0]), 0.3), 1, "real"),
    "bernoulli": Case(BernoulliHead, lambda p: stats.bernoulli(expit(p[0])), 1, "binary"),
    "continuous_bernoulli": Case(ContinuousBernoulliHead, lambda p: ContinuousBernoulli(expit(p[0])), 1, "unit"),
    "discretized_logistic": Case(DiscretizedLogisticHead, lambda p: logistic(p, expit, 1e-3), 2, "levels"),
    "discretized_logistic_linear": Case(
        lambda: DiscretizedLogisticHead(0.02, mean="linear"),
        lambda p: logistic(p, lambda mean: mean, 0.02),
        2,
        "levels",
    ),
}
K, B, C, H, W = 2, 3, 4, 5, 1  # all different, so that no axis can be taken for another

every_head = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def images(values: str, shape: tuple[int, ...]) -> Tensor:
    if values == "binary":
        return torch.randint(2, shape).double()
    if values == "levels":
        return torch.randint(256, shape).double() / 255
    return torch.rand(shape).double() if values == "unit" else torch.randn(shape).double()


def make(case: Case, *batch: int, shape: tuple[int, ...] = (C, H, W)) -> tuple[Likelihood, Tensor, Any]:
    """The head in evaluation mode, parameters (*batch, P, *shape), and the reference over (*batch, *shape)."""
    head = case.head().double().eval()
    params = torch.randn(*batch, case.params_per_pixel, *shape).double()
    return head, params, case.reference(np.moveaxis(params.numpy(), len(batch), 0))


@every_head
def test_log_prob_is_the_references_summed_over_the_image(case: Case) -> None:
    head, params, reference = make(case, K, B)
    x = images(case.values, (B, C, H, W))
    log_density = reference.logpmf if case.values == "binary" else reference.logpdf
    log_prob = head(params).log_prob(x)
    assert log_prob.shape == (K, B)
    np.testing.assert_allclose(log_prob.detach(), log_density(x.numpy()).sum((2, 3, 4)), rtol=1e-6)


@every_head
def test_the_head_says_what_it_is(case: Case) -> None:
    head = case.head()
    assert head.params_per_pixel == case.params_per_pixel
    assert head.discrete == case.discrete
    assert head.normalised


@every_head
def test_total_probability_is_one(case: Case) -> None:
    head, params, reference = make(case, 1, 1, shape=(1, 1, 1))
    p = head(params)

    def density(x: np.ndarray) -> np.ndarray:
        values = torch.as_tensor(np.asarray(x)).double().view(-1, 1, 1, 1)
        return p.log_prob(values).exp().detach().view(-1).numpy()

    if case.discrete:
        total = density(np.arange(2) if case.values == "binary" else np.arange(256) / 255).sum()
    else:
        mean, std = reference.mean().item(), float(np.squeeze(reference.std()))
        low, high = (0.0, 1.0) if case.values == "unit" else (mean - 12 * std, mean + 12 * std)
        total, _ = integrate.fixed_quad(density, low, high, n=200)
    assert total == pytest.approx(1, abs=1e-7)


@every_head
def test_mean_and_spread_are_the_references(case: Case) -> None:
    head, params, reference = make(case, K, B)
    p = head(params)
    assert p.mean.shape == (K, B, C, H, W)
    np.testing.assert_allclose(p.mean.detach(), reference.mean(), rtol=1e-6)
    spread = np.broadcast_to(reference.std(), (K, B, C, H, W))
    np.testing.assert_allclose(p.stddev.detach() ** 2, spread**2, rtol=1e-4, atol=1e-7)


@every_head
def test_samples_have_the_moments_and_carry_no_gradient(case: Case) -> None:
    head, params, reference = make(case, 1, 3, shape=(1, 2, 2))
    draws = head(params.requires_grad_()).sample(torch.Size((20_000,)))
    assert draws.shape == (20_000, 1, 3, 1, 2, 2)
    assert not draws.requires_grad
    std = np.broadcast_to(reference.std(), params.shape[:2] + params.shape[3:])
    clear = std > 0.05  # what is rarer than that is not met often enough to have a standard error
    assert clear.sum() >= 4
    scores = ((draws.numpy() - reference.mean()) / std)[:, clear]
    for values, expected in ((scores, 0.0), (scores**2, 1.0)):
        error = values.std(0) / math.sqrt(len(draws))
        assert (np.abs(values.mean(0) - expected) <= 4 * error).all()


@every_head
def test_samples_are_images_that_the_head_accepts(case: Case) -> None:
    head, params, _ = make(case, 1, 3)
    x = head(params).sample().squeeze(0).float()
    head.check(x.clamp(0, 1) if head.support == "unit" else x)
    if case.values != "real":
        assert x.min() >= 0
        assert x.max() <= 1
    assert head(params.float()).log_prob(x).isfinite().all()


@every_head
def test_log_prob_and_its_gradient_stay_finite_for_an_extreme_decoder(case: Case) -> None:
    head = case.head().eval()
    extremes = torch.tensor([-40.0, -5.0, 0.0, 5.0, 40.0])
    pairs = torch.cartesian_prod(*[extremes] * case.params_per_pixel).view(-1, case.params_per_pixel)
    params = pairs.T.reshape(1, 1, case.params_per_pixel, 1, 1, -1).clone().requires_grad_()
    for value in (0.0, 1.0):
        log_prob = head(params).log_prob(torch.full((1, 1, 1, params.shape[-1]), value))
        (gradient,) = torch.autograd.grad(log_prob.sum(), params)
        assert log_prob.isfinite().all()
        assert gradient.isfinite().all()


@every_head
def test_log_prob_gradient_is_right(case: Case) -> None:
    head, params, _ = make(case, 1, 2, shape=(1, 2, 1))
    x = images(case.values, (2, 1, 2, 1))
    assert torch.autograd.gradcheck(lambda p: head(p).log_prob(x), params.requires_grad_())


# The mean's link


@pytest.mark.parametrize("link", ["sigmoid", "linear"])
@pytest.mark.parametrize("head", [GaussianHead, SquaredErrorHead, DiscretizedLogisticHead])
def test_inverse_mean_undoes_the_link(head: Callable[..., Likelihood], link: str) -> None:
    mean = torch.linspace(0.01, 0.99, 99).double()
    torch.testing.assert_close(head(mean=link).mean(head(mean=link).inverse_mean(mean)), mean)


@pytest.mark.parametrize(
    "head",
    [GaussianHead(0.1), GaussianHead(0.1, mean="linear"), SquaredErrorHead("mean"), BernoulliHead()],
    ids=["gaussian", "gaussian_linear", "squared_error", "bernoulli"],
)
def test_a_decoder_that_puts_out_inverse_mean_predicts_the_mean_image(head: Likelihood) -> None:
    mean = torch.linspace(0.01, 0.99, 12).view(2, 3, 2)
    p = head(head.inverse_mean(mean).view(1, 1, 1, 2, 3, 2))
    torch.testing.assert_close(p.mean.view(2, 3, 2), mean)


def test_inverse_mean_is_finite_for_pixels_that_are_always_black_or_white() -> None:
    output = BernoulliHead().inverse_mean(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(torch.sigmoid(output), torch.tensor([0.01, 0.99]))


# What may be scored


@pytest.mark.parametrize("bad", [0.5, 1 / 255, -1.0, math.nan])
def test_bernoulli_refuses_grey_and_names_the_ways_out(bad: float) -> None:
    x = torch.randint(2, (3, 1, 4, 5)).float()
    BernoulliHead().check(x)
    x[1, 0, 2, 3] = bad
    with pytest.raises(InputError, match=r"likelihood=bernoulli.*data\.binarize=.*continuous_bernoulli"):
        BernoulliHead().check(x)


@pytest.mark.parametrize("bad", [0.5, 0.3 / 255, 1e-3, math.nan])
def test_discretised_logistic_refuses_what_is_off_the_levels(bad: float) -> None:
    x = (torch.arange(256) / 255).view(4, 1, 8, 8).clone()
    DiscretizedLogisticHead().check(x)
    DiscretizedLogisticHead().check(torch.randint(2, (3, 1, 4, 5)).float())
    x[1, 0, 2, 3] = bad
    with pytest.raises(InputError, match=r"likelihood=discretized_logistic.*8-bit.*likelihood=gaussian"):
        DiscretizedLogisticHead().check(x)


@pytest.mark.parametrize("head", [SquaredErrorHead, GaussianHead, CrossEntropyHead, ContinuousBernoulliHead])
def test_the_other_heads_take_any_grey(head: Callable[[], Likelihood]) -> None:
    head().check(torch.rand(3, 1, 4, 5))


def test_the_base_is_no_likelihood() -> None:
    with pytest.raises(TypeError, match="choose one"):
        Likelihood()(torch.zeros(1, 1, 1, 1, 1, 1))


def test_cross_entropy_of_grey_pixels_is_torchs_and_no_density() -> None:
    params, x = torch.randn(K, B, 1, C, H, W), torch.rand(B, C, H, W)
    head = CrossEntropyHead()
    expected = F.binary_cross_entropy_with_logits(params.squeeze(2), x.expand(K, B, C, H, W), reduction="none")
    torch.testing.assert_close(head(params).log_prob(x), -expected.sum((-3, -2, -1)))
    levels = torch.linspace(0, 1, 10_001)
    density = head(torch.zeros(1, 1, 1, 1, 1, 1)).log_prob(levels.view(-1, 1, 1, 1)).exp()
    assert density.mean() == pytest.approx(0.5)  # at mu = 1/2 it is 1/2 for every x, where a density integrates to 1
    assert not head.normalised


# The report's loss


def test_squared_error_head_samples_or_takes_the_mean() -> None:
    params, x = torch.randn(K, B, 2, C, H, W), torch.rand(B, C, H, W)
    loc, scale = params[:, :, 0], (0.5 * params[:, :, 1]).exp()
    sampled, mean = SquaredErrorHead(), SquaredErrorHead("mean")
    assert (sampled.params_per_pixel, mean.params_per_pixel) == (2, 1)
    assert not sampled.normalised
    assert not mean.normalised
    torch.manual_seed(1)
    log_prob = sampled(params).log_prob(x)
    torch.manual_seed(1)
    assert torch.equal(log_prob, SquaredError(loc, scale).log_prob(x))
    expected = -((x - loc) ** 2).sum((2, 3, 4))
    torch.testing.assert_close(mean(params[:, :, :1]).log_prob(x), expected)
    squashed = SquaredErrorHead("mean", mean="sigmoid")(params[:, :, :1])
    assert torch.equal(squashed.mean, torch.sigmoid(params[:, :, 0]))


# Gaussian sigma


def test_a_shared_sigma_is_learned_to_the_root_mean_square_error() -> None:
    head = GaussianHead("shared")
    params, x = torch.randn(1, B, 1, C, H, W), torch.rand(B, C, H, W)
    rmse = ((x - torch.sigmoid(params[:, :, 0])) ** 2).mean().sqrt()
    (before,) = torch.autograd.grad(head(params).log_prob(x).sum(), head.log_sigma)
    torch.nn.init.constant_(head.log_sigma, rmse.log().item())
    (there,) = torch.autograd.grad(head(params).log_prob(x).sum(), head.log_sigma)
    assert before < -1  # sigma = 1 is too wide
    assert there.item() == pytest.approx(0, abs=1e-3)


def test_a_free_sigma_never_falls_below_its_floor() -> None:
    head = GaussianHead("pixel", min_sigma=0.02)
    params = torch.zeros(1, 1, 2, 1, 1, 3)
    params[..., 1, 0, 0, :] = torch.tensor([-100.0, -10.0, 0.0])
    sigma = head(params).stddev.flatten()
    torch.testing.assert_close(sigma, torch.tensor([0.02, 0.02 + math.log1p(math.exp(-10)), 0.02 + math.log(2)]))


def test_optimal_sigma_scores_a_training_batch_at_its_own_root_mean_square_error() -> None:
    head = GaussianHead("optimal").double()
    params, x = torch.randn(K, B, 1, C, H, W).double(), torch.rand(B, C, H, W).double()
    loc = torch.sigmoid(params[:, :, 0])
    rmse = math.sqrt(((x - loc) ** 2).mean())
    p = head(params)
    assert isinstance(p, CalibratedNormal)
    np.testing.assert_allclose(p.log_prob(x), stats.norm(loc, rmse).logpdf(x).sum((2, 3, 4)))


def test_optimal_sigmas_gradient_is_that_of_half_n_log_mse() -> None:
    head = GaussianHead("optimal").double()
    params = torch.randn(K, B, 1, C, H, W, dtype=torch.float64, requires_grad=True)
    x = torch.rand(B, C, H, W).double()
    (gradient,) = torch.autograd.grad(-head(params).log_prob(x).sum(), params)
    mse = ((x - torch.sigmoid(params[:, :, 0])) ** 2).mean()
    (expected,) = torch.autograd.grad(K * B * C * H * W / 2 * mse.log(), params)
    torch.testing.assert_close(gradient, expected)


def step(head: GaussianHead, error: float) -> None:
    """One training step on images whose mean squared error is error^2."""
    p = head(torch.zeros(1, B, 1, C, H, W))
    p.log_prob(torch.full((B, C, H, W), error))
    head.after_step(p)


def test_optimal_sigma_keeps_the_mean_of_the_batches_for_evaluation() -> None:
    head, errors = GaussianHead("optimal", mean="linear"), [3.0, 0.1, 0.7, 0.2]
    for count, error in enumerate(errors, 1):
        step(head, error)
        assert head.mse.item() == pytest.approx(sum(e**2 for e in errors[:count]) / count, rel=1e-5)
    head.eval()
    sigma = math.sqrt(np.square(errors).mean())
    params, x = torch.randn(K, B, 1, C, H, W), torch.rand(B, C, H, W)
    p = head(params)
    log_prob = stats.norm(params[:, :, 0], sigma).logpdf(x).sum((2, 3, 4))
    np.testing.assert_allclose(p.log_prob(x), log_prob, rtol=1e-5)
    head.after_step(p)
    assert head.mse.item() == pytest.approx(sigma**2, rel=1e-5)


def test_optimal_sigma_forgets_the_first_batches() -> None:
    head = GaussianHead("optimal", mean="linear")
    for _ in range(100):
        step(head, 2.0)
    for _ in range(50):
        step(head, 0.5)
    assert head.mse.item() == pytest.approx(0.25 + 3.75 * 0.99**50, rel=1e-4)


def test_optimal_sigma_is_kept_with_the_weights() -> None:
    head, other = GaussianHead("optimal"), GaussianHead("optimal")
    step(head, 0.3)
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.mse, head.mse)
    assert torch.equal(other.batches, head.batches)


def test_an_untrained_decoder_starts_near_a_scale_of_a_tenth() -> None:
    p = DiscretizedLogisticHead()(torch.zeros(1, 1, 2, 1, 1, 1))
    assert p.scale.item() == pytest.approx(0.1, rel=0.02)
