"""Quadrature of the true posterior, on linear-Gaussian models, where all of it is known."""

import pytest
import torch
from torch import Tensor, nn

from vae.distributions import Normal
from vae.evaluation.exact import best_gaussian, inference_gaps, true_posterior
from vae.likelihoods import GaussianHead
from vae.model import VAE

SIGMA, SIDES = 0.3, (2, 3)


def linear_gaussian(latents: int, seed: int = 0) -> VAE:
    """x = W z + b + noise: the posterior is a Gaussian, with a full covariance."""
    torch.manual_seed(seed)
    pixels = SIDES[0] * SIDES[1]
    return VAE(
        encoder=lambda image_shape, out_features: nn.Sequential(nn.Flatten(), nn.Linear(pixels, out_features)),
        decoder=lambda in_features, image_shape: nn.Sequential(
            nn.Linear(in_features, pixels), nn.Unflatten(1, image_shape)
        ),
        likelihood=GaussianHead(sigma=SIGMA, mean="linear"),
        latent_dim=latents,
        image_shape=(1, *SIDES),
    ).eval()


def weights(vae: VAE) -> tuple[Tensor, Tensor]:
    layer = vae.decoder[0]  # type: ignore[index]  # a Sequential
    return layer.weight.detach().double(), layer.bias.detach().double()


@pytest.mark.parametrize("latents", [1, 2])
@torch.no_grad()
def test_evidence_and_gaps_are_those_in_closed_form(latents: int) -> None:
    vae, x = linear_gaussian(latents), torch.rand(5, 1, *SIDES)
    found, gaps = inference_gaps(vae, x)
    q = vae.encode(x)
    w, b = weights(vae)
    flat = x.flatten(1).double()
    covariance = w @ w.T + SIGMA**2 * torch.eye(len(w), dtype=torch.float64)
    log_px = torch.distributions.MultivariateNormal(b, covariance).log_prob(flat)
    torch.testing.assert_close(gaps.log_px, log_px, atol=1e-4, rtol=0)
    assert all(each.true.error < 0.01 for each in found)

    precision = torch.eye(latents, dtype=torch.float64) + w.T @ w / SIGMA**2
    mean = (flat - b) @ w / SIGMA**2 @ precision.inverse()
    posterior = torch.distributions.MultivariateNormal(mean, precision.inverse().expand(5, latents, latents))
    encoder = torch.distributions.MultivariateNormal(q.mean.double(), torch.diag_embed(q.variance.double()))
    lost = torch.distributions.kl_divergence(encoder, posterior)
    torch.testing.assert_close(gaps.log_px - gaps.elbo, lost, atol=1e-3, rtol=0)

    # the best diagonal Gaussian has the posterior's mean and the conditional, not the marginal, variances
    best_mean, best_sd = (torch.cat([getattr(each.best, name) for each in found]) for name in ("mean", "stddev"))
    torch.testing.assert_close(best_mean, mean, atol=1e-4, rtol=0)
    torch.testing.assert_close(best_sd, precision.diagonal().rsqrt().expand(5, latents), atol=1e-4, rtol=0)
    family = (precision.diagonal().log().sum() - precision.logdet()) / 2
    torch.testing.assert_close(gaps.approximation, family.expand(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(gaps.amortisation, lost - family, atol=1e-3, rtol=0)
    assert (family > 0.01) == (latents == 2)  # one latent has no off-diagonal to miss


@torch.no_grad()
def test_the_density_on_the_grid_is_the_posterior_s() -> None:
    vae, x = linear_gaussian(2), torch.rand(3, 1, *SIDES)
    true = true_posterior(vae, x)
    n, size = 3, true.axes.shape[-1]
    assert true.points.shape == (size**2, n, 2)
    mass = true.log_density.exp().flatten(1).sum(1) * true.cell
    torch.testing.assert_close(mass, torch.ones(n, dtype=torch.float64))
    place = true.points[size * 7 + 4]  # (N, 2): the eighth value of the first latent, the fifth of the second
    torch.testing.assert_close(place[:, 0], true.axes[:, 0, 7])
    torch.testing.assert_close(place[:, 1], true.axes[:, 1, 4])
    z = place.to(x).unsqueeze(0)
    joint = vae.decode(z).log_prob(x)[0] + vae.prior.log_prob(z).sum(-1)[0]
    torch.testing.assert_close(true.log_joint[:, 7, 4].float(), joint, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_two_modes_are_both_found() -> None:
    """x = z^2 + noise: a posterior with modes at the two roots."""

    class Square(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return z.square().view(-1, 1, 1, 1)

    vae = linear_gaussian(1)
    vae.image_shape, vae.decoder = (1, 1, 1), Square()
    vae.encoder = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    x = torch.tensor([4.0, 9.0]).view(2, 1, 1, 1)
    true = true_posterior(vae, x)
    for log_density, axis, root in zip(true.log_density, true.axes[:, 0], (2.0, 3.0), strict=True):
        mass = log_density.exp() * (axis[1] - axis[0])
        assert mass.sum() == pytest.approx(1)
        assert mass[axis > 0].sum() == pytest.approx(0.5, abs=0.01)
        assert (mass * axis.abs()).sum() == pytest.approx(root, abs=0.1)
    # a Gaussian covers one of the two: log 2 is lost at least
    start = Normal(torch.tensor([[1.9], [2.9]]), torch.full((2, 1), 0.05))
    best = best_gaussian(true, start)
    lost = true.log_px - true.elbo(true.on_grid(best))
    assert (lost - torch.tensor(2.0).log()).abs().max() < 0.02


def test_three_latents_are_refused() -> None:
    with pytest.raises(ValueError, match="latent_dim=3: quadrature takes one or two latents"):
        true_posterior(linear_gaussian(3), torch.rand(2, 1, *SIDES))
