"""Annealed importance sampling agrees with the exact log p(x) of linear-Gaussian models, and brackets it."""

import pytest
import torch
from test_priors import PRIORS, Correlated, build, images

from vae.evaluation.annealing import Annealer, annealed_metrics
from vae.objectives import log_mean_exp, log_weights
from vae.posteriors import Diagonal


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_annealing_the_importance_weighted_bound_and_the_exact_value_agree() -> None:
    model = Correlated(Diagonal)
    model.fit()
    exact = model.marginal.log_prob(model.x.flatten(1))
    annealed = Annealer(model.vae, 150).forward_bound(model.x)
    weighted = log_mean_exp(log_weights(model.vae, model.x, 5000)).detach()
    for estimate in (annealed, weighted):
        error = (estimate - exact).std() / len(exact) ** 0.5
        assert error < 0.06
        assert (estimate - exact).mean().abs() < 4 * error


def test_forward_and_backward_chains_bracket_the_exact_value_and_close_in_on_it() -> None:
    model = Correlated(Diagonal)
    z = model.vae.prior.sample(torch.Size((60,)))
    x = model.vae.sample(z, x="sample").detach()
    exact = model.marginal.log_prob(x.flatten(1))
    gaps = []
    for steps in (4, 100):
        annealer = Annealer(model.vae, steps)
        lower, upper = annealer.forward_bound(x), annealer.backward_bound(x, z)
        slack = 4 * (lower - exact).std() / len(x) ** 0.5
        assert (lower - exact).mean() < slack
        assert (upper - exact).mean() > -slack
        gaps.append((upper - lower).mean().item())
    assert gaps[0] > 1
    assert abs(gaps[1]) < 0.4


@pytest.mark.parametrize("prior", PRIORS)
def test_annealing_starts_from_the_model_s_own_prior(prior: str) -> None:
    """It never asks q(z|x), and agrees with p(x) by brute force over the prior."""
    vae, x = build(prior).requires_grad_(False), images(6)
    likely = vae.decode(vae.prior.sample(torch.Size((50_000, 1)))).log_prob(x)
    annealed = Annealer(vae, 100).forward_bound(x)
    torch.testing.assert_close(annealed, log_mean_exp(likely), atol=0.3, rtol=0)


def test_metrics_repeat_and_leave_torch_s_generator_alone() -> None:
    vae, x = build().float(), (images(9) * 255).to(torch.uint8)
    state = torch.get_rng_state()
    first = annealed_metrics(vae, x, steps=20, count=5, seed=3, samples=100)
    assert torch.equal(torch.get_rng_state(), state)
    assert annealed_metrics(vae, x, 20, 5, 3, 100) == first
    assert annealed_metrics(vae, x, 20, 5, 4, 100) != first
    assert (first["annealing/images"], first["annealing/steps"]) == (5, 20)
    assert first["annealing/nll"] < first["annealing/nll_importance"] + 1  # of 100 samples, and so loose
    assert annealed_metrics(vae, x, 0, 5, 3, 100) == {}
