"""The true posterior of one or two latents by quadrature, and where an encoder's bound falls short of log p(x).

log p(x) - ELBO is KL(q(z|x) || p(z|x)). Cremer et al. (2018) split it at q*, the best member of q's family for that
image alone: log p(x) - ELBO(q*) is what the family cannot do, ELBO(q*) - ELBO(q) what the shared encoder loses.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from vae.distributions import Normal
from vae.model import VAE

TOLERANCE = 0.01  # nats between all points and every second one
POINTS = {1: (1001, 16001), 2: (101, 401)}  # a grid's points along each latent, at first and at most
REACH = 30.0  # nats below the largest log p(x, z) at which a point no longer counts
FAR = -1e4  # nats, in the place of log p(x, z) off the grid
ROUNDS = 12  # of moving and refining the grids
ROWS = 4000  # points times images that are decoded at once


@dataclass
class TruePosterior:
    """log p(x, z) of N images on a grid of their own, float64: `log_joint` (N, n) or (N, n, n), `axes` (N, D, n)."""

    axes: Tensor
    log_joint: Tensor
    log_px: Tensor  # (N,), the log of the integral
    error: Tensor  # (N,), nats by which the integral over every second point differs

    @property
    def points(self) -> Tensor:
        """z (G, N, D), all points of each image's grid."""
        n, d, g = self.axes.shape
        if d == 1:
            return self.axes.permute(2, 0, 1)
        first, second = self.axes[:, 0, :, None].expand(n, g, g), self.axes[:, 1, None, :].expand(n, g, g)
        return torch.stack([first, second], -1).flatten(1, 2).transpose(0, 1)

    @property
    def cell(self) -> Tensor:
        """(N,): the length or area that a point stands for."""
        return (self.axes[..., 1] - self.axes[..., 0]).prod(-1)

    @property
    def log_density(self) -> Tensor:
        """log p(z|x) on the grid."""
        return self.log_joint - self.log_px.view(-1, *[1] * (self.log_joint.dim() - 1))

    def elbo(self, log_q: Tensor) -> Tensor:
        """(N,): E_q[log p(x, z) - log q(z|x)] for log q (N, n[, n]) on the grid."""
        mass = log_q.exp() * self.cell.view(-1, *[1] * (log_q.dim() - 1))
        return (mass * (self.log_joint - log_q.clamp(min=-1e4))).flatten(1).sum(1)

    def on_grid(self, q: Distribution) -> Tensor:
        """log q (N, n[, n]) of a batch of N posteriors."""
        log_q = per_image(q.log_prob(self.points.to(q.mean)))  # (G, N)
        return log_q.cpu().double().t().reshape(self.log_joint.shape)


def per_image(log_prob: Tensor) -> Tensor:
    """(K, N): a distribution over z as a batch of scalars (K, N, D) is summed over its latents."""
    return log_prob.sum(-1) if log_prob.dim() == 3 else log_prob


@torch.no_grad()
def true_posterior(vae: VAE, x: Tensor) -> TruePosterior:
    """p(z|x) for x (N, C, H, W) on the model's device.

    The grids are moved and refined until log p(x) is accurate to 0.01 nats; `error` is larger where that fails.
    Raises ValueError for more than two latents: a grid over three has millions of points.
    """
    if vae.latent_dim not in POINTS:
        raise ValueError(f"latent_dim={vae.latent_dim}: quadrature takes one or two latents")
    q = vae.encode(x)
    spread = 6 * q.stddev
    prior = vae.prior.sample(torch.Size((1000,)))
    low = torch.minimum(prior.amin(0), (q.mean - spread).amin(0)).expand_as(q.mean)  # (N, D)
    high = torch.maximum(prior.amax(0), (q.mean + spread).amax(0)).expand_as(q.mean)
    points, most = POINTS[vae.latent_dim]
    true = _quadrature(vae, x, low[:1], high[:1], points)  # one grid for all: the decoder sees each point once
    for _ in range(ROUNDS):
        low, high = _where_it_counts(true, q.mean - spread, q.mean + spread)
        true = _quadrature(vae, x, low, high, points)
        if true.error.max() > TOLERANCE and points < most:
            points = 2 * points - 1
        elif not _reaches_border(true):
            break
    return true


def _reaches_border(true: TruePosterior) -> bool:
    """Whether a point that counts lies at the border of its grid, so that more may lie beyond."""
    counts = _counts(true)
    latents = range(1, counts.dim())
    return any(bool(counts.select(latent, at).any()) for latent in latents for at in (0, -1))


def _counts(true: TruePosterior) -> Tensor:
    """Whether points (N, n[, n]) may matter to the integral."""
    peak = true.log_joint.flatten(1).amax(1).view(-1, *[1] * (true.log_joint.dim() - 1))
    return true.log_joint > peak - REACH


def _where_it_counts(true: TruePosterior, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Corners (N, D) of the box of points that count, and of q; a quarter wider where it touches the border."""
    latents, counts = true.axes.shape[1], _counts(true)
    lows, highs = [], []
    for latent in range(latents):
        along = counts if latents == 1 else counts.any(2 - latent)  # (N, n)
        axis = true.axes[:, latent]
        step, quarter = axis[:, 1] - axis[:, 0], (axis[:, -1] - axis[:, 0]) / 4
        first, last = torch.where(along, axis, torch.inf).amin(1), torch.where(along, axis, -torch.inf).amax(1)
        lows.append(first - torch.where(along[:, 0], quarter, step))
        highs.append(last + torch.where(along[:, -1], quarter, step))
    inner, outer = torch.stack(lows, 1).to(low), torch.stack(highs, 1).to(high)
    return torch.minimum(inner, low), torch.maximum(outer, high)


def _quadrature(vae: VAE, x: Tensor, low: Tensor, high: Tensor, points: int) -> TruePosterior:
    """Trapezoid rule, which converges exponentially for smooth densities that vanish at the border of the box."""
    steps = torch.linspace(0, 1, points, dtype=torch.float64, device="cpu")
    low, high = low.cpu().double(), high.cpu().double()
    grid = TruePosterior(low[..., None] + (high - low)[..., None] * steps, *[torch.empty(0)] * 3)
    rows = []
    for z in grid.points.to(vae.prior.sample(torch.Size((1,)))).split(max(1, ROWS // len(x))):  # (g, N or 1, D)
        log_pz = per_image(vae.prior.log_prob(z))
        rows.append((vae.decode(z).log_prob(x) + log_pz).cpu().double().clamp(min=-1e6))  # (g, N)
    shape = (len(x), *[points] * low.shape[1])
    log_joint = torch.cat(rows).t().reshape(shape)
    cell = grid.cell.expand(len(x))
    every_second = log_joint[(slice(None), *[slice(None, None, 2)] * low.shape[1])]
    log_px = log_joint.flatten(1).logsumexp(1) + cell.log()
    coarse = every_second.flatten(1).logsumexp(1) + (cell * 2 ** low.shape[1]).log()
    return TruePosterior(grid.axes.expand(len(x), -1, -1), log_joint, log_px, (log_px - coarse).abs())


def best_gaussian(true: TruePosterior, start: Normal) -> Normal:
    """q* = N(mu, diag sigma^2), which maximises the ELBO of each image: batch (N, D).

    The best of three gradient searches, which start at the encoder's q, the true posterior's moments and its mode.
    """
    own = start.mean.cpu().double(), start.stddev.cpu().double()
    starts = [own, _moments(true), (_mode(true), own[1])]
    candidates = [Normal(*_search(true, mean, sigma)) for mean, sigma in starts]
    best = torch.stack([true.elbo(true.on_grid(q)) for q in candidates]).argmax(0)  # (N,)
    images = torch.arange(len(best))
    means, deviations = torch.stack([q.mean for q in candidates]), torch.stack([q.stddev for q in candidates])
    return Normal(means[best, images], deviations[best, images])


@torch.enable_grad()
def _search(true: TruePosterior, mean: Tensor, sigma: Tensor, steps: int = 300) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (N, D) of the Gaussian after that many steps."""
    finest = true.axes[..., 1] - true.axes[..., 0]  # a narrower Gaussian would hide between two points
    shift = torch.zeros_like(mean).requires_grad_()
    growth = torch.zeros_like(mean).requires_grad_()
    optimizer = torch.optim.Adam([shift, growth], lr=0.05)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        moved, width = mean + sigma * shift, torch.maximum(sigma * growth.exp(), finest)
        (-_gaussian_elbo(true, moved, width).sum()).backward()
        optimizer.step()
        fall.step()
    return (mean + sigma * shift).detach(), torch.maximum(sigma * growth.exp(), finest).detach()


def _mode(true: TruePosterior) -> Tensor:
    """(N, D): the grid point with the highest density."""
    at = true.log_joint.flatten(1).argmax(1)  # (N,)
    return true.points.transpose(0, 1)[torch.arange(len(at)), at]


def _moments(true: TruePosterior) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (N, D) of the true posterior, latent by latent."""
    latents = true.axes.shape[1]
    mass = true.log_joint.flatten(1).softmax(1).view(true.log_joint.shape)
    means, deviations = [], []
    for latent in range(latents):
        marginal = mass if latents == 1 else mass.sum(2 - latent)  # (N, n)
        mean = (marginal * true.axes[:, latent]).sum(1)
        means.append(mean)
        deviations.append((marginal * (true.axes[:, latent] - mean[:, None]).square()).sum(1).sqrt())
    return torch.stack(means, 1), torch.stack(deviations, 1)


def _gaussian_elbo(true: TruePosterior, mean: Tensor, sigma: Tensor) -> Tensor:
    """(N,): the ELBO of N(mean, diag sigma^2), (N, D) each; a product of densities makes the sums cheap."""
    q = Normal(mean.unsqueeze(-1), sigma.unsqueeze(-1))
    step = true.axes[..., 1:2] - true.axes[..., :1]
    mass = q.log_prob(true.axes).exp() * step  # (N, D, n)
    expected = true.log_joint
    for latent in reversed(range(true.axes.shape[1])):
        expected = (expected * mass[:, latent].view(len(mass), *[1] * (expected.dim() - 2), -1)).sum(-1)
    beyond = 1 - mass.sum(-1).prod(-1)  # of q's mass lies off the grid, where log p(x, z) is far below all that counts
    return expected + q.entropy().sum((1, 2)) + FAR * beyond


@dataclass
class Gaps:
    """Nats per image, (N,) each: log_px - elbo = approximation + amortisation."""

    log_px: Tensor
    elbo: Tensor
    best_elbo: Tensor

    @property
    def approximation(self) -> Tensor:
        return self.log_px - self.best_elbo

    @property
    def amortisation(self) -> Tensor:
        return self.best_elbo - self.elbo


class Inference(NamedTuple):
    """The posterior of one image, and two approximations of it: batches of one."""

    true: TruePosterior
    q: Distribution
    best: Normal


@torch.no_grad()
def inference_gaps(vae: VAE, x: Tensor) -> tuple[list[Inference], Gaps]:
    """Posteriors and gaps for images x (N, C, H, W).

    The amortisation gap may be negative for an encoder whose q is no diagonal Gaussian, since it may beat the best one.
    """
    inferences = []
    for image in x.split(1):  # alone, so that a difficult image refines no other's grid
        true, q = true_posterior(vae, image), vae.encode(image)
        inferences.append(Inference(true, q, best_gaussian(true, Normal(q.mean, q.stddev))))
    elbo = torch.cat([each.true.elbo(each.true.on_grid(each.q)) for each in inferences])
    best_elbo = torch.cat([each.true.elbo(each.true.on_grid(each.best)) for each in inferences])
    return inferences, Gaps(torch.cat([each.true.log_px for each in inferences]), elbo, best_elbo)
