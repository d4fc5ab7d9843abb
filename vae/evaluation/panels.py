"""The rows of images that training's pictures and the final figures share."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vae.data.batches import as_floats
from vae.data.module import ImageDataModule
from vae.model import VAE
from vae.noise import derive, fixed_noise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXAMPLES = 10  # images in a row: one of each class of MNIST


def example_images(data: ImageDataModule) -> tuple[Tensor, Tensor]:
    """The first dev image of each class, in order: x (n, C, H, W) in [0, 1] and labels (n,)."""
    labels = data.dev.labels
    rows = [int((labels == c).nonzero()[0]) for c in range(data.classes) if (labels == c).any()]
    rows = (rows + [i for i in range(len(labels)) if i not in rows])[: min(EXAMPLES, len(labels))]
    return as_floats(data.dev.images[rows]), labels[rows]


def prior_draws(vae: VAE, seed: int) -> Tensor:
    """The same ten prior draws (n, D) in every figure of a run."""
    generator = torch.Generator().manual_seed(derive(seed, "prior draws"))
    return vae.draw_prior(torch.randn(EXAMPLES, vae.noise_per_draw, generator=generator))


@torch.no_grad()
def reconstruction_figure(vae: VAE, x: Tensor, caption: str) -> "Figure":
    """z is the posterior mean and x the likelihood's mean, which the caption says."""
    from vae.evaluation import figures

    x_hat = vae.reconstruct(x.to(vae.prior_loc.device), z="mean", x_hat="mean").cpu()
    return figures.reconstructions(x, x_hat, f"{caption}; z: posterior mean; x: mean of p(x|z)")


@torch.no_grad()
def prior_figure(vae: VAE, seed: int, caption: str) -> "Figure":
    from vae.evaluation import figures

    z = prior_draws(vae, seed)
    with fixed_noise(derive(seed, "figure 7")), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "figure 7"))
        rows = {"x sampled": vae.sample(z, x="sample").cpu(), "mean of p(x|z)": vae.sample(z, x="mean").cpu()}
    return figures.samples(rows, f"{caption}; z: the same ten draws from the prior in both rows")


@torch.no_grad()
def mean_sigma(vae: VAE, data: ImageDataModule) -> float | None:
    """The decoder's standard deviation at the posterior means of the shown images, averaged over pixels."""
    if not vae.likelihood.has_sigma:
        return None
    x, _ = example_images(data)
    training = vae.training
    vae.eval()
    p = vae.decode(vae.encode(x.to(vae.prior_loc.device)).mean.unsqueeze(0))
    vae.train(training)
    return p.stddev.mean().item()
