"""The images that training's pictures and the final figures share: examples, prior draws, walks through the latents."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vae.data.batches import as_floats
from vae.data.module import ImageDataModule
from vae.model import VAE
from vae.noise import derive, fixed_noise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXAMPLES = 10  # images in a row: one of each class of MNIST
LATENTS_SHOWN = 8  # rows of traversals


def example_images(data: ImageDataModule) -> tuple[Tensor, Tensor]:
    """The first dev image of each class, in order: x (n, C, H, W) in [0, 1] and labels (n,)."""
    labels = data.dev.labels
    rows = [int((labels == c).nonzero()[0]) for c in range(data.classes) if (labels == c).any()]
    rows = (rows + [i for i in range(len(labels)) if i not in rows])[: min(EXAMPLES, len(labels))]
    return as_floats(data.dev.images[rows]), labels[rows]


def prior_draws(vae: VAE, seed: int, count: int = EXAMPLES**2) -> Tensor:
    """The same prior draws (count, D) in every figure of a run."""
    generator = torch.Generator().manual_seed(derive(seed, "prior draws"))
    return vae.draw_prior(torch.randn(count, vae.noise_per_draw, generator=generator))


def device_of(vae: VAE) -> torch.device:
    return next(vae.parameters()).device


@torch.no_grad()
def decoded(vae: VAE, z: Tensor, seed: int, x: str = "mean", y: Tensor | None = None) -> Tensor:
    """Images (N, C, H, W) on the CPU of z (N, D); what a sampled x draws is a function of the seed."""
    with fixed_noise(derive(seed, "figure 7")), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "figure 7"))
        return vae.sample(z.to(device_of(vae)), x, y).cpu()


@torch.no_grad()
def reconstruction_figure(vae: VAE, x: Tensor, labels: Tensor, caption: str) -> "Figure":
    """z is the posterior mean and x the likelihood's mean, which the caption says."""
    from vae.evaluation import figures

    x_hat = vae.reconstruct(x.to(device_of(vae)), z="mean", x_hat="mean", y=labels).cpu()
    return figures.reconstructions(x, x_hat, f"{caption}; z: posterior mean; x: mean of p(x|z)")


def prior_figure(vae: VAE, seed: int, caption: str, x: str = "mean", class_names: Sequence[str] = ()) -> "Figure":
    """Ten rows of ten; `x` is `mean` or `sample`. Of a conditional model a row for each of the first ten classes."""
    from vae.evaluation import figures

    what = "mean of p(x|z)" if x == "mean" else "drawn from p(x|z), pixel by pixel"
    if vae.classes:
        classes = torch.arange(min(vae.classes, EXAMPLES)).repeat_interleave(EXAMPLES)
        z = prior_draws(vae, seed, EXAMPLES).repeat(len(classes) // EXAMPLES, 1)
        images = decoded(vae, z, seed, x, classes)
        text = f"{caption}; a row for each class, in each column the same draw of z from the prior; x: {what}"
        names = list(class_names or map(str, range(vae.classes)))[:EXAMPLES]
        return figures.grid(images, EXAMPLES, text, names)
    images = decoded(vae, prior_draws(vae, seed), seed, x)
    return figures.grid(images, EXAMPLES, f"{caption}; 100 draws of z from the prior; x: {what}")


def prior_quantiles(vae: VAE, levels: Tensor) -> Tensor:
    """(n, D): each latent's quantiles under the prior, exact where it knows them, else of 10,000 draws."""
    try:
        return vae.prior.icdf(levels.unsqueeze(1).to(device_of(vae))).cpu()
    except (AttributeError, NotImplementedError):
        return prior_draws(vae, 0, 10_000).cpu().quantile(levels, dim=0)


def latent_names(latents: list[int]) -> list[str]:
    return [f"z{latent}" for latent in latents]


def values_of(z: Tensor) -> list[str]:
    return [f"{value:.2f}".replace("-0.00", "0.00").replace("-", "\u2212") for value in z.tolist()]


def traversal_figure(vae: VAE, order: Tensor, caption: str) -> "Figure":
    """A row for each of the first eight latents in `order` (D,): it moves, the others stay at the prior's medians."""
    from vae.evaluation import figures

    levels = torch.linspace(0.02, 0.98, 11)
    quantiles, rows = prior_quantiles(vae, levels), order[:LATENTS_SHOWN].tolist()
    z = prior_quantiles(vae, torch.tensor([0.5])).expand(len(rows), len(levels), -1).clone()
    for row, latent in enumerate(rows):
        z[row, :, latent] = quantiles[:, latent]
    same = bool(np.ptp(quantiles[:, rows].numpy(), axis=1).max() < 0.005)  # one scale for all rows
    labels = values_of(quantiles[:, rows[0]]) if same else [f"{100 * level:.0f} %" for level in levels.tolist()]
    name = "the latent's value, from the prior's quantile of 2 % to 98 %" if same else "the prior's quantile"
    text = f"{caption}; means of p(x|z); each row moves one latent, the others stay at the prior's medians"
    images = decoded(vae, z.flatten(0, 1), 0)
    return figures.grid(images, len(levels), text, latent_names(rows), labels, name)


def manifold_figure(vae: VAE, caption: str) -> "Figure":
    """Two latents: the plane at the prior's quantiles, z0 to the right and z1 upwards."""
    from vae.evaluation import figures

    levels = torch.linspace(0.02, 0.98, 15)
    quantiles = prior_quantiles(vae, levels)
    z = torch.cartesian_prod(quantiles[:, 1].flip(0), quantiles[:, 0]).flip(1)
    text = f"{caption}; means of p(x|z) on the plane of z, at the prior's quantiles from 2 % to 98 %"
    across, up = values_of(quantiles[:, 0]), values_of(quantiles[:, 1].flip(0))
    return figures.grid(decoded(vae, z, 0), len(levels), text, up, across, "z0", "z1")


@torch.no_grad()
def mean_sigma(vae: VAE, data: ImageDataModule) -> float | None:
    """The decoder's standard deviation at the posterior means of the shown images, averaged over pixels."""
    if not vae.likelihood.has_sigma:
        return None
    x, labels = example_images(data)
    training = vae.training
    vae.eval()
    p = vae.decode(vae.encode(x.to(device_of(vae)), labels).mean.unsqueeze(0), labels)
    vae.train(training)
    return p.stddev.mean().item()
