"""Points of the latent space that a verb begins with, ends with or moves through."""

import torch
from torch import Tensor

from vae.commands.images import labelled, one_image
from vae.errors import InputError
from vae.evaluation import draws
from vae.evaluation.draws import prior_quantiles
from vae.run.load import TrainedRun

ROWS = 16  # latents that a traversal shows
ACTIVE = 0.01  # variance of a latent's posterior mean above which it is in use (Burda et al. 2015)


def ends(run: TrainedRun, between: tuple[str, str] | None, seed: int) -> tuple[Tensor, tuple[str, str]]:
    """Two points (2, D): the posterior means of two images, or two draws from the prior."""
    if between is None:
        return draws.prior_latents(run.vae, 2, seed), (f"a draw from the prior (seed {seed})", "the next one")
    images, names = zip(*(one_image(run, text) for text in between), strict=True)
    means = torch.from_numpy(draws.encode(run.vae, labelled(run, torch.cat(images)))["mean"])
    return means, (f"{names[0]}", f"{names[1]} (posterior means)")


def moving(run: TrainedRun) -> tuple[list[int], str]:
    """The latents that the model uses, the most used first, and how many rows of equal images are not drawn."""
    use = draws.use_of_latents(run.vae, label=run.label)
    order = use.argsort(descending=True)
    active = order[use[order] > ACTIVE][:ROWS].tolist() or order[:1].tolist()
    left_out = len(use) - len(active)
    return active, f" ({left_out} less used ones are left out)" if left_out else ""


def start_of(run: TrainedRun, image: str | None) -> tuple[Tensor, str]:
    """A point (D,): an image's posterior mean, or the middle of the prior."""
    if image is None:
        return prior_quantiles(run.vae, torch.tensor([0.5]))[0], "the prior's median"
    pixels, name = one_image(run, image)
    return torch.from_numpy(draws.encode(run.vae, labelled(run, pixels))["mean"])[0], f"{name} (posterior mean)"


def pair(run: TrainedRun, latents: tuple[int, int] | None) -> tuple[int, int]:
    """The two latents of the plane; raises InputError for a model with more than two if none are named."""
    size = run.vae.latent_dim
    if latents is None and size != 2:
        raise InputError(
            f"{run.directory} has {size} latents, and a plane shows two; name them, for example --latents 0 1, or "
            "use vae traverse"
        )
    first, second = latents or (0, 1)
    if first == second or not all(0 <= latent < size for latent in (first, second)):
        raise InputError(f"--latents {first} {second}: must be two different latents from 0 to {size - 1}")
    return first, second
