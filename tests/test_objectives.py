"""The objectives on a linear-Gaussian model, where log p(x), the posterior and so every bound are known exactly.

z ~ N(0, I), x | z ~ N(W z + b, sigma^2 I) with orthogonal columns in W, so p(z|x) is a diagonal Gaussian and
log p(x) = log N(x; b, W W^T + sigma^2 I).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, kl_divergence

from vae.distributions import Normal
from vae.evaluation.estimates import bounds
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
from vae.networks import MLPDecoder, MLPEncoder
from vae.noise import fixed_noise
from vae.objectives import ELBO, IWAE, Terms, log_mean_exp, log_weights
from vae.pixels import as_floats
from vae.schedules import cyclic, linear

SHAPE, D, B, SIGMA = (2, 3, 2), 3, 4, 0.7
PIXELS = math.prod(SHAPE)

Objective = Callable[[VAE, Tensor, int], Terms]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


class Linear:
    """The model's VAE, its exact answers, and `B` images drawn from it."""

    def __init__(self, mean_factor: float = 1.0, mean_shift: float = 0.0, log_var_shift: float = 0.0) -> None:
        """The encoder is the exact posterior, unless its mean and its log variance are moved."""
        norms = torch.tensor([1.5, 0.8, 0.3]).double()
        self.w = torch.linalg.qr(torch.randn(PIXELS, D).double())[0] * norms  # (PIXELS, D)
        self.b = torch.randn(PIXELS).double()
        self.posterior_variance = 1 / (1 + norms**2 / SIGMA**2)  # (D,)
        covariance = self.w @ self.w.T + SIGMA**2 * torch.eye(PIXELS).double()
        self.marginal = MultivariateNormal(self.b, covariance)
        self.x = self.marginal.sample((B,)).view(B, *SHAPE)
        self.vae = VAE(
            partial(MLPEncoder, hidden=()), partial(MLPDecoder, hidden=()), GaussianHead(SIGMA, mean="linear"), D, SHAPE
        ).double()
        gain = self.posterior_variance[:, None] * self.w.T / SIGMA**2  # (D, PIXELS)
        log_var = self.posterior_variance.log() + log_var_shift
        self._set(self.vae.decoder.out, self.w, self.b)
        weight = torch.cat([mean_factor * gain, torch.zeros_like(gain)])
        self._set(self.vae.encoder.out, weight, torch.cat([mean_shift - mean_factor * gain @ self.b, log_var]))

    @staticmethod
    def _set(layer: object, weight: Tensor, bias: Tensor) -> None:
        assert isinstance(layer, nn.Linear)
        layer.weight.data, layer.bias.data = weight.clone(), bias.clone()

    def log_p(self, x: Tensor) -> Tensor:
        return self.marginal.log_prob(x.flatten(1))

    def posterior(self, x: Tensor) -> Normal:
        mean = self.posterior_variance * ((x.flatten(1) - self.b) @ self.w) / SIGMA**2
        return Normal(mean, self.posterior_variance.sqrt().expand_as(mean))

    def gap(self, x: Tensor) -> Tensor:
        """KL(q(z|x) || p(z|x)), (B,)."""
        return kl_divergence(self.vae.encode(x), self.posterior(x)).sum(-1).detach()


def wrong() -> Linear:
    return Linear(mean_factor=0.8, mean_shift=0.2, log_var_shift=0.4)


def standard_error(draws: Tensor) -> Tensor:
    return draws.std(0) / math.sqrt(len(draws))


def assert_mean(draws: Tensor, expected: Tensor | float) -> None:
    assert ((draws.mean(0) - expected).abs() <= 4 * standard_error(draws) + 1e-12).all()


# Eq. (1): the marginal likelihood


def test_the_encoder_of_the_exact_model_is_its_posterior() -> None:
    model = Linear()
    q, posterior = model.vae.encode(model.x), model.posterior(model.x)
    torch.testing.assert_close(q.mean, posterior.mean)
    torch.testing.assert_close(q.stddev, posterior.stddev)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
def test_at_the_exact_posterior_every_weight_is_the_marginal_likelihood(dtype: torch.dtype, tolerance: float) -> None:
    model = Linear()
    expected = model.log_p(model.x)
    log_w = log_weights(model.vae.to(dtype), model.x.to(dtype), samples=200)
    assert log_w.shape == (200, B)
    assert log_w.dtype == dtype
    torch.testing.assert_close(log_w.double(), expected.expand(200, B), rtol=0, atol=tolerance)


def test_the_marginal_likelihood_is_the_likelihood_averaged_over_the_prior() -> None:
    model = Linear()
    with torch.no_grad():
        z = model.vae.prior.sample(torch.Size((200_000, 1)))  # (K, 1, D)
        p = model.vae.decode(z).log_prob(model.x).exp()  # (K, B)
    expected = model.log_p(model.x).exp()
    assert_mean(p, expected)
    assert (standard_error(p) < 0.05 * expected).all()  # or the test would say nothing


# Eqs. (2)-(5), (9): the ELBO identity


def test_marginal_less_gap_is_the_elbo() -> None:
    model = wrong()
    with torch.no_grad():
        log_w = log_weights(model.vae, model.x, samples=40_000)
        terms = ELBO()(model.vae, model.x.repeat(40_000, 1, 1, 1), 0)
    elbo = model.log_p(model.x) - model.gap(model.x)
    assert (model.gap(model.x) > 0.05).all()
    assert_mean(log_w, elbo)
    assert_mean(terms.elbo.view(-1, B), elbo)
    error = standard_error(terms.elbo.view(-1, B).mean(1)).item()
    assert error < 0.01
    assert terms.loss.item() == pytest.approx(-elbo.mean().item(), abs=4 * error)


def test_marginal_less_gap_is_the_elbo_in_closed_form() -> None:
    """E_q ||x - W z - b||^2 = ||x - W mu - b||^2 + sum_d ||W_d||^2 sigma_d^2, with the model's own KL."""
    model = wrong()
    with torch.no_grad():
        q = model.vae.encode(model.x)
        centred = model.vae.decode(q.mean.unsqueeze(0)).log_prob(model.x).squeeze(0)
        log_px = centred - 0.5 * (q.variance * (model.w**2).sum(0)).sum(-1) / SIGMA**2
        kl = ELBO()(model.vae, model.x, 0).kl.sum(-1)
    torch.testing.assert_close(log_px - kl, model.log_p(model.x) - model.gap(model.x))


def test_sampled_reconstruction_terms_have_the_closed_form_expectation() -> None:
    model = wrong()
    x = model.x[:1].expand(20_000, *SHAPE)
    with torch.no_grad():
        q = model.vae.encode(model.x[:1])
        expected = model.vae.decode(q.mean.unsqueeze(0)).log_prob(model.x[:1]).item()
        expected -= 0.5 * (q.variance * (model.w**2).sum(0)).sum().item() / SIGMA**2
        for objective in (ELBO(samples=1), ELBO(samples=3), IWAE(samples=2)):
            assert_mean(objective(model.vae, x, 0).log_px, expected)


# Importance weighting


def test_the_bounds_are_in_order_and_reach_the_marginal_likelihood() -> None:
    model = wrong()
    with torch.no_grad():
        log_w = log_weights(model.vae, model.x, samples=100_000)
    bounds = {1: log_w, 5: log_w.view(-1, 5, B).transpose(0, 1), 50: log_w.view(-1, 50, B).transpose(0, 1)}
    estimates = {1: log_w} | {k: log_mean_exp(v.flatten(1)).view(-1, B) for k, v in bounds.items() if k > 1}
    log_p = model.log_p(model.x)
    for low, high in ((1, 5), (5, 50)):
        error = standard_error(estimates[low]) + standard_error(estimates[high])
        assert (estimates[high].mean(0) - estimates[low].mean(0) > 4 * error).all()
    assert (log_p - estimates[50].mean(0) > -4 * standard_error(estimates[50])).all()
    # the bias of the bound is Var[w] / (2 K p^2), to first order (Nowozin 2018)
    relative = (log_w - log_p).exp().var(0)
    torch.testing.assert_close(log_p - estimates[50].mean(0), relative / 100, rtol=0.3, atol=0.002)


def test_five_thousand_samples_come_within_two_hundredths_of_a_nat() -> None:
    model = wrong()
    x = model.marginal.sample((20,)).view(20, *SHAPE)
    with torch.no_grad():
        estimate = log_mean_exp(log_weights(model.vae, x, samples=5000))
    assert (estimate - model.log_p(x)).mean().abs().item() < 0.02


@pytest.mark.parametrize("gradient", ["plain", "dreg"])
@pytest.mark.parametrize("samples", [1, 5])
def test_iwae_is_the_log_mean_of_the_weights(samples: int, gradient: str) -> None:
    model = wrong()
    torch.manual_seed(1)
    log_w = log_weights(model.vae, model.x, samples)
    torch.manual_seed(1)
    loss = IWAE(samples, gradient)(model.vae, model.x, 0).loss
    torch.testing.assert_close(loss, -log_w.exp().mean(0).log().mean())


def test_log_mean_exp_survives_weights_that_exp_does_not() -> None:
    log_w = torch.tensor([[-1e4, 2e4], [-1e4 + math.log(3), 2e4]]).double()
    torch.testing.assert_close(log_mean_exp(log_w), torch.tensor([-1e4 + math.log(2), 2e4]).double())


def test_iwae_of_one_sample_is_the_elbo_with_a_monte_carlo_kl() -> None:
    model = wrong()
    torch.manual_seed(1)
    q = model.vae.encode(model.x)
    z = q.rsample(torch.Size((1,)))
    kl = Independent(q, 1).log_prob(z) - Independent(model.vae.prior, 1).log_prob(z)
    by_hand = (model.vae.decode(z).log_prob(model.x) - kl).mean()
    torch.manual_seed(1)
    torch.testing.assert_close(-IWAE(1)(model.vae, model.x, 0).loss, by_hand)
    with torch.no_grad():
        draws = torch.stack([IWAE(1)(model.vae, model.x, 0).loss for _ in range(400)])
    assert_mean(draws, -(model.log_p(model.x) - model.gap(model.x)).mean())


# Gradients of IWAE, plain and doubly reparametrised


class Rows(nn.Module):
    """An encoder with a posterior of its own for each image, so that one backward gives independent gradients."""

    def __init__(self, mu: Tensor, log_var: Tensor, images: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.cat([mu, log_var]).repeat(images, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.rows


def encoder_gradients(model: Linear, q: Normal, objective: Objective, images: int) -> Tensor:
    """(images, 2 D): the gradient's draws for the first image."""
    encoder = Rows(q.mean[0].detach(), q.variance[0].log().detach(), images)
    model.vae.encoder = encoder
    loss = objective(model.vae, model.x[:1].expand(images, *SHAPE), 0).loss
    (gradient,) = torch.autograd.grad(images * loss, encoder.rows)
    return gradient


@pytest.mark.parametrize("samples", [1, 2, 8])
def test_dreg_has_plains_expectation_and_less_variance(samples: int) -> None:
    model = wrong()
    q = model.vae.encode(model.x)
    plain = encoder_gradients(model, q, IWAE(samples), 10_000)
    dreg = encoder_gradients(model, q, IWAE(samples, "dreg"), 10_000)
    error = (standard_error(plain) ** 2 + standard_error(dreg) ** 2).sqrt()
    assert ((plain.mean(0) - dreg.mean(0)).abs() <= 4 * error).all()
    assert (plain.mean(0).abs() > 4 * standard_error(plain)).any()  # there is a gradient to agree on
    assert dreg.var(0).sum() < 0.7 * plain.var(0).sum()


def test_at_the_exact_posterior_dregs_encoder_gradient_has_no_noise_left() -> None:
    model = Linear()
    q = model.vae.encode(model.x)
    dreg = encoder_gradients(model, q, IWAE(8, "dreg"), 50)
    plain = encoder_gradients(model, q, IWAE(8), 50)
    torch.testing.assert_close(dreg, torch.zeros_like(dreg), rtol=0, atol=1e-10)
    assert plain.std() > 1e-2


@pytest.mark.parametrize("samples", [1, 8])
def test_dregs_decoder_gradients_and_loss_are_plains(samples: int) -> None:
    model = wrong()
    results = []
    for gradient in ("plain", "dreg"):
        torch.manual_seed(1)
        terms = IWAE(samples, gradient)(model.vae, model.x, 0)
        results.append((terms.loss, *torch.autograd.grad(terms.loss, list(model.vae.decoder.parameters()))))
    assert torch.equal(results[0][0], results[1][0])
    for plain, dreg in zip(*results, strict=True):
        torch.testing.assert_close(dreg, plain, rtol=1e-12, atol=1e-12)


def test_dreg_by_hand() -> None:
    """sum_k w_k^2 (d log w_k / d z_k) (d z_k / d phi), eq. 8 of Tucker et al. 2018, one sample after another."""
    model, samples = wrong(), 5
    q = model.vae.encode(model.x)
    rows = torch.cat([q.mean, q.variance.log()], 1).detach()
    encoder = Rows(torch.zeros(D), torch.zeros(D), B).double()
    encoder.rows.data = rows
    model.vae.encoder = encoder
    torch.manual_seed(1)
    loss = IWAE(samples, "dreg")(model.vae, model.x, 0).loss
    (gradient,) = torch.autograd.grad(loss, encoder.rows)
    torch.manual_seed(1)
    noise = torch.randn(samples, B, D, dtype=torch.float64)
    mu, sigma = rows[:, :D], (0.5 * rows[:, D:]).exp()
    z = (mu + sigma * noise).requires_grad_()
    fixed = Normal(mu, sigma)
    log_w = model.vae.decode(z).log_prob(model.x) + (model.vae.prior.log_prob(z) - fixed.log_prob(z)).sum(-1)
    (d_z,) = torch.autograd.grad(log_w.sum(), z)
    w = log_w.softmax(0).detach().unsqueeze(-1)
    d_mu, d_log_var = (w**2 * d_z).sum(0), (w**2 * d_z * sigma * noise / 2).sum(0)
    torch.testing.assert_close(gradient, -torch.cat([d_mu, d_log_var], 1) / B)


@pytest.mark.parametrize("gradient", ["plain", "dreg"])
def test_evaluation_without_gradients_works(gradient: str) -> None:
    model = wrong()
    with torch.no_grad(), fixed_noise(1):
        free = IWAE(3, gradient)(model.vae, model.x, 0).loss
    with fixed_noise(1):
        tracked = IWAE(3, gradient)(model.vae, model.x, 0).loss
    assert not free.requires_grad
    assert torch.equal(free, tracked.detach())


# Beta, free bits, Terms


def test_beta_weighs_the_kl_in_the_loss_and_nowhere_else() -> None:
    model = wrong()
    terms = {}
    for beta in (0.0, 1.0, 4.0):
        torch.manual_seed(1)
        terms[beta] = ELBO(beta=beta)(model.vae, model.x, 0)
        t = terms[beta]
        assert t.beta == beta
        torch.testing.assert_close(t.loss, beta * t.kl.sum(1).mean() - t.log_px.mean())
        torch.testing.assert_close(t.elbo, t.log_px - t.kl.sum(1))
        assert t.loss.shape == ()
        assert t.log_px.shape == t.elbo.shape == (B,)
        assert t.kl.shape == (B, D)
    assert torch.equal(terms[0.0].elbo, terms[4.0].elbo)
    torch.testing.assert_close(terms[1.0].loss, -terms[1.0].elbo.mean())
    torch.testing.assert_close(terms[1.0].kl, kl_divergence(model.vae.encode(model.x), model.vae.prior))


@pytest.mark.parametrize("schedule", [partial(linear, steps=20), partial(cyclic, period=10, ramp=0.5, end=3.0)])
def test_beta_may_be_a_schedule_of_the_step(schedule: Callable[[int], float]) -> None:
    model, objective = wrong(), ELBO(beta=schedule)
    for step in (0, 3, 7, 13, 100):
        terms = objective(model.vae, model.x, step)
        assert terms.beta == schedule(step)
        torch.testing.assert_close(terms.loss, schedule(step) * terms.kl.sum(1).mean() - terms.log_px.mean())


def test_free_bits_charge_the_batch_mean_of_each_latent_at_least_the_floor() -> None:
    model = wrong()
    kl = ELBO()(model.vae, model.x, 0).kl.detach()
    rates = kl.mean(0)
    floor = rates.sort().values[:2].mean().item()  # between the least and the next
    assert (kl[:, rates > floor] < floor).any()  # so that clamping image by image would be something else
    terms = ELBO(beta=2.0, free_bits=floor)(model.vae, model.x, 0)
    rate = terms.kl.mean(0).clamp(min=floor).sum()
    assert rate > rates.sum()
    torch.testing.assert_close(terms.loss, 2 * rate - terms.log_px.mean())
    torch.testing.assert_close(terms.kl, kl)
    torch.testing.assert_close(terms.elbo, terms.log_px - kl.sum(1))


def test_a_latent_under_the_floor_is_not_pushed_and_the_others_are() -> None:
    model = wrong()
    kl = ELBO()(model.vae, model.x, 0).kl.detach().mean(0)
    order = kl.argsort()
    floor = kl[order[:2]].mean().item()

    def gradient(free_bits: float) -> Tensor:
        torch.manual_seed(1)
        reconstruction = -ELBO()(model.vae, model.x, 0).log_px.mean()
        torch.manual_seed(1)
        loss = ELBO(free_bits=free_bits)(model.vae, model.x, 0).loss
        bias = dict(model.vae.encoder.named_parameters())["out.bias"]
        (of_kl,) = torch.autograd.grad(loss - reconstruction, bias)
        return of_kl.view(2, D)

    with_floor, without = gradient(floor), gradient(0.0)
    torch.testing.assert_close(with_floor[:, order[0]], torch.zeros(2).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(with_floor[:, order[1:]], without[:, order[1:]])
    assert (without[:, order].abs() > 1e-6).all()


def test_iwae_reports_the_elbos_terms_beside_its_own_loss() -> None:
    model = wrong()
    terms = IWAE(7)(model.vae, model.x, 0)
    assert terms.beta == 1.0
    assert terms.log_px.shape == (B,)
    torch.testing.assert_close(terms.kl, kl_divergence(model.vae.encode(model.x), model.vae.prior))
    torch.testing.assert_close(terms.elbo, terms.log_px - terms.kl.sum(1))


# Eqs. (7), (8): the report's loss, batches and shapes


def small_vae(likelihood: Likelihood, shape: tuple[int, int, int] = SHAPE) -> VAE:
    settings: dict[str, Any] = {"hidden": (5,), "activation": "tanh"}
    return VAE(partial(MLPEncoder, **settings), partial(MLPDecoder, **settings), likelihood, D, shape)


@pytest.mark.parametrize("reconstruct", ["sample", "mean"])
def test_the_reports_batch_loss(reconstruct: str) -> None:
    """The second listing, from the networks' own outputs and the same draws: reconstruction to the bit."""
    vae, x = small_vae(SquaredErrorHead(reconstruct)), torch.rand(7, *SHAPE)
    torch.manual_seed(1)
    q = vae.encode(x)
    p = vae.decode(q.rsample(torch.Size((1,))))
    x_hat = p.rsample().flatten(2).squeeze(0)
    mu, log_sigma_squared = vae.encoder(x).chunk(2, 1)
    reconstruction_loss = -((x.flatten(1) - x_hat) ** 2).sum(dim=1).mean()
    d_kl = -0.5 * (1 + log_sigma_squared - mu.pow(2) - log_sigma_squared.exp()).sum(dim=1).mean()
    torch.manual_seed(1)
    terms = ELBO()(vae, x, 0)
    assert torch.equal(terms.log_px.mean(), reconstruction_loss)
    torch.testing.assert_close(terms.loss, -(reconstruction_loss - d_kl))


@pytest.mark.parametrize("likelihood", [SquaredErrorHead(), GaussianHead(0.1)], ids=["squared_error", "gaussian"])
def test_flat_and_square_images_score_the_same_to_the_bit(likelihood: Likelihood) -> None:
    x = torch.rand(7, 1, 28, 28)
    square = small_vae(likelihood, (1, 28, 28))
    flat = small_vae(likelihood, (784, 1, 1))
    flat.load_state_dict(square.state_dict())
    losses = []
    for vae, images in ((square, x), (flat, x.view(7, 784, 1, 1))):
        torch.manual_seed(1)
        losses.append(ELBO(samples=2)(vae, images, 0).loss)
    assert torch.equal(*losses)


OBJECTIVES: dict[str, Objective] = {
    "elbo": ELBO(),
    "elbo of three": ELBO(samples=3, beta=0.5),
    "iwae": IWAE(samples=4),
    "dreg": IWAE(samples=4, gradient="dreg"),
}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("sizes", [(3, 4), (1,) * 7, (5, 2)])
def test_the_batch_split_does_not_matter(objective: Objective, sizes: tuple[int, ...]) -> None:
    vae, x = small_vae(SquaredErrorHead()).double().eval(), torch.rand(7, *SHAPE).double()
    with fixed_noise(3):
        whole = objective(vae, x, 0)
    with fixed_noise(3):
        parts = [objective(vae, part, 0) for part in x.split(list(sizes))]
    weighted = torch.stack([size * part.loss for size, part in zip(sizes, parts, strict=True)])
    torch.testing.assert_close(weighted.sum() / 7, whole.loss)
    torch.testing.assert_close(torch.cat([part.log_px for part in parts]), whole.log_px)
    torch.testing.assert_close(torch.cat([part.kl for part in parts]), whole.kl)


@pytest.mark.parametrize("objective", [ELBO(), IWAE(3)], ids=["elbo", "iwae"])
def test_the_optimal_sigma_is_learned_in_training_only(objective: Objective) -> None:
    head = GaussianHead("optimal")
    vae, x = small_vae(head), torch.rand(B, *SHAPE)
    objective(vae.eval(), x, 0)
    assert head.mse.item() == 1
    for _ in range(3):
        p = objective(vae.train(), x, 0).p
        assert p is not None
        head.after_step(p)
    assert 0 < head.mse.item() < 0.5
    assert head.batches.item() == 3
    seen = head.mse.clone()
    head.after_step(objective(vae.eval(), x, 0).p)
    assert torch.equal(head.mse, seen)


# Gradients against finite differences

HEADS = {
    "squared_error": SquaredErrorHead,
    "gaussian": partial(GaussianHead, 0.3),
    "gaussian_shared": partial(GaussianHead, "shared"),
    "gaussian_pixel": partial(GaussianHead, "pixel"),
    "gaussian_optimal": partial(GaussianHead, "optimal"),
    "bernoulli": BernoulliHead,
    "cross_entropy": CrossEntropyHead,
    "continuous_bernoulli": ContinuousBernoulliHead,
    "discretized_logistic": DiscretizedLogisticHead,
}


@pytest.mark.parametrize("objective", [ELBO(2, 0.7), IWAE(3)], ids=["elbo", "iwae"])
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_gradients_are_finite_differences(head: Callable[[], Likelihood], objective: Objective) -> None:
    vae, x = small_vae(head()).double(), torch.randint(2, (B, *SHAPE)).double()
    weights = list(vae.parameters())

    def loss() -> Tensor:
        torch.manual_seed(1)
        return objective(vae, x, 0).loss

    gradients = torch.autograd.grad(loss(), weights)
    for _ in range(5):
        direction, ends, step = [torch.randn_like(w) for w in weights], [], 1e-5
        for side in (step, -2 * step, step):  # there, to the other side, and back
            with torch.no_grad():
                for weight, d in zip(weights, direction, strict=True):
                    weight.add_(d, alpha=side)
                ends.append(loss().item())
        slope = sum((g * d).sum().item() for g, d in zip(gradients, direction, strict=True))
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_the_bounds_of_an_evaluation_are_those_of_the_exact_model() -> None:
    """`estimates.bounds`, from which the NLL is taken: exact at the posterior, in order away from it."""
    images = torch.randint(0, 256, (7, *SHAPE), dtype=torch.uint8)
    x = as_floats(images).double()
    exact = Linear()
    for bound in bounds(exact.vae, images, 3, seed=0)[:2]:
        torch.testing.assert_close(bound, exact.log_p(x), rtol=0, atol=1e-5)
    wrong = Linear(mean_factor=0.9, log_var_shift=0.7)
    log_p = wrong.log_p(x)
    elbo, many, *_ = bounds(wrong.vae, images, 5000, seed=0)
    few = bounds(wrong.vae, images, 5, seed=0).log_px
    assert elbo.mean() < few.mean() < many.mean()
    assert many.mean().item() == pytest.approx(log_p.mean().item(), abs=0.02)


@pytest.mark.parametrize("rows", [1, 8, 10, 21, 1000])
def test_the_bounds_do_not_depend_on_the_rows_decoded_at_once(rows: int) -> None:
    images = torch.randint(0, 256, (7, *SHAPE), dtype=torch.uint8)
    vae = Linear(mean_factor=0.9, log_var_shift=0.7).vae
    for ours, whole in zip(bounds(vae, images, 4, 3, rows), bounds(vae, images, 4, 3, 28), strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("objective", [ELBO(2, beta=0.3), IWAE(3), IWAE(3, "dreg")])
def test_the_losses_of_single_images_have_the_loss_as_their_mean(objective: Callable[..., Terms]) -> None:
    model = Linear(log_var_shift=0.4)
    with torch.no_grad():
        terms = objective(model.vae, model.x, 0)
    assert terms.per_image.shape == (B,)
    assert terms.per_image.mean().item() == pytest.approx(terms.loss.item(), abs=1e-10)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_sums_pixels_in_full(half: torch.dtype) -> None:
    vae = VAE(partial(MLPEncoder, hidden=(6,)), partial(MLPDecoder, hidden=(6,)), BernoulliHead(), D, SHAPE)
    x = (torch.rand(B, *SHAPE) > 0.5).float()
    with torch.autocast("cpu", half):
        terms = ELBO()(vae, x, 0)
    assert terms.log_px.dtype == terms.kl.dtype == terms.loss.dtype == torch.float32
