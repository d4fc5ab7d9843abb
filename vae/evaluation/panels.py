"""The images that training's pictures and the final figures share: examples, prior draws, walks through the latents."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vae.data.batches import Images
from vae.data.module import ImageDataModule
from vae.evaluation.draws import decode, plane, prior_latents, quantile_levels, reconstruct, traversal
from vae.model import VAE
from vae.pixels import as_floats

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


def device_of(vae: VAE) -> torch.device:
    return next(vae.parameters()).device


@torch.no_grad()
def reconstruction_figure(vae: VAE, x: Tensor, labels: Tensor, caption: str) -> "Figure":
    """z is the posterior mean and x the likelihood's mean, which the caption says."""
    from vae.evaluation import figures

    x_hat = reconstruct(vae, Images(x, labels))
    return figures.reconstructions(x, x_hat, f"{caption}; z: posterior mean; x: mean of p(x|z)")


def prior_figure(vae: VAE, seed: int, caption: str, x: str = "mean", class_names: Sequence[str] = ()) -> "Figure":
    """Ten rows of ten; `x` is `mean` or `sample`. Of a conditional model a row for each of the first ten classes."""
    from vae.evaluation import figures

    what = "mean of p(x|z)" if x == "mean" else "drawn from p(x|z), pixel by pixel"
    if vae.classes:
        classes = torch.arange(min(vae.classes, EXAMPLES)).repeat_interleave(EXAMPLES)
        z = prior_latents(vae, EXAMPLES, seed).repeat(len(classes) // EXAMPLES, 1)
        images = decode(vae, z, x, seed, classes)
        text = f"{caption}; a row for each class, in each column the same draw of z from the prior; x: {what}"
        names = list(class_names or map(str, range(vae.classes)))[:EXAMPLES]
        return figures.grid(images, EXAMPLES, text, names)
    images = decode(vae, prior_latents(vae, EXAMPLES**2, seed), x, seed)
    return figures.grid(images, EXAMPLES, f"{caption}; 100 draws of z from the prior; x: {what}")


def latent_names(latents: list[int]) -> list[str]:
    return [f"z{latent}" for latent in latents]


def values_of(z: Tensor) -> list[str]:
    return [f"{value:.2f}".replace("-0.00", "0.00").replace("-", "\u2212") for value in z.tolist()]


def traversal_figure(vae: VAE, order: Tensor, caption: str) -> "Figure":
    """A row for each of the first eight latents in `order` (D,): it moves, the others stay at the prior's medians."""
    from vae.evaluation import figures

    rows, steps = order[:LATENTS_SHOWN].tolist(), 11
    z, quantiles = traversal(vae, rows, steps)
    same = bool(np.ptp(quantiles[:, rows].numpy(), axis=1).max() < 0.005)  # one scale for all rows
    percent = [f"{100 * level:.0f} %" for level in quantile_levels(steps).tolist()]
    labels = values_of(quantiles[:, rows[0]]) if same else percent
    name = "the latent's value, from the prior's quantile of 2 % to 98 %" if same else "the prior's quantile"
    text = f"{caption}; means of p(x|z); each row moves one latent, the others stay at the prior's medians"
    return figures.grid(decode(vae, z.flatten(0, 1)), steps, text, latent_names(rows), labels, name)


def manifold_figure(vae: VAE, caption: str) -> "Figure":
    """Two latents: the plane at the prior's quantiles, z0 to the right and z1 upwards."""
    from vae.evaluation import figures

    z, quantiles = plane(vae, 0, 1, 15)
    text = f"{caption}; means of p(x|z) on the plane of z, at the prior's quantiles from 2 % to 98 %"
    across, up = values_of(quantiles[:, 0]), values_of(quantiles[:, 1].flip(0))
    return figures.grid(decode(vae, z.flatten(0, 1)), len(z), text, up, across, "z0", "z1")


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
