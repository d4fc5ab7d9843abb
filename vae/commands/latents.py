"""`vae interpolate`, `vae traverse` and `vae manifold`: what lies where in the space of the latents."""

from typing import Any

import torch
from torch import Tensor

from vae.commands.opening import default_out, describe, labelled, one_image, open_run
from vae.commands.output import check_out, write
from vae.errors import InputError
from vae.evaluation import draws, figures
from vae.evaluation.draws import prior_quantiles
from vae.evaluation.panels import latent_names, values_of
from vae.run.load import TrainedRun

LOW, HIGH = 0.02, 0.98  # quantiles of the prior between which a latent moves
ROWS = 16  # latents that a traversal shows
ACTIVE = 0.01  # variance of a latent's posterior mean above which it is in use (Burda et al. 2015)


def interpolate(
    path: str, between: tuple[str, str] | None, steps: int, x: str, seed: int, out: str | None, **how: Any
) -> None:
    place = check_out(out, how.pop("force"))
    run = open_run(path, **how)
    (a, b), names = ends(run, between, seed)
    z = torch.stack([way(a, b, steps) for way in draws.WAYS.values()])  # (2, steps, D)
    images = draws.decode(run.vae, z.flatten(0, 1), x, seed, run.label).unflatten(0, z.shape[:2])
    rows = dict(zip(draws.WAYS, images, strict=True))
    text = f"{describe(run)}; from {names[0]} to {names[1]} in the latent space; x: {x} of p(x|z)"
    write(
        place or default_out(run, "interpolate.png"),
        lambda: figures.samples(rows, text),
        {"z": z, "x": images},
        "Two rows of images that go from one to another through the latent space",
    )


def ends(run: TrainedRun, between: tuple[str, str] | None, seed: int) -> tuple[Tensor, tuple[str, str]]:
    """Two points (2, D): the posterior means of two images, or two draws from the prior."""
    if between is None:
        return draws.prior_latents(run.vae, 2, seed), (f"a draw from the prior (seed {seed})", "the next one")
    images, names = zip(*(one_image(run, text) for text in between), strict=True)
    means = torch.from_numpy(draws.encode(run.vae, labelled(run, torch.cat(images)))["mean"])
    return means, (f"{names[0]}", f"{names[1]} (posterior means)")


def traverse(path: str, image: str | None, steps: int, x: str, seed: int, out: str | None, **how: Any) -> None:
    place = check_out(out, how.pop("force"))
    run = open_run(path, **how)
    at = torch.linspace(LOW, HIGH, steps)
    quantiles = prior_quantiles(run.vae, at)  # (steps, D)
    start, name = start_of(run, image)
    order, left_out = moving(run)
    z = start.expand(len(order), steps, -1).clone()
    for row, latent in enumerate(order):
        z[row, :, latent] = quantiles[:, latent]
    images = draws.decode(run.vae, z.flatten(0, 1), x, seed, run.label)
    text = (
        f"{describe(run)}; each row moves one latent through the prior's quantiles {LOW:.0%} to {HIGH:.0%}, the most "
        f"used first{left_out}, from {name}; x: {x} of p(x|z)"
    )
    levels = [f"{100 * level:.0f} %" for level in at.tolist()]
    values = {"latent": order, "z": z, "x": images.unflatten(0, z.shape[:2])}
    write(
        place or default_out(run, "traverse.png"),
        lambda: figures.grid(images, steps, text, latent_names(order), levels),
        values,
        "Rows of images, in each of which one latent moves",
    )


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


def manifold(
    path: str, latents: tuple[int, int] | None, steps: int, x: str, seed: int, out: str | None, **how: Any
) -> None:
    place = check_out(out, how.pop("force"))
    run = open_run(path, **how)
    first, second = pair(run, latents)
    at = torch.linspace(LOW, HIGH, steps)
    quantiles = prior_quantiles(run.vae, at)  # (steps, D)
    z = start_of(run, None)[0].expand(steps, steps, -1).clone()
    z[:, :, first] = quantiles[:, first]
    z[:, :, second] = quantiles[:, second].flip(0).unsqueeze(1)  # upwards
    images = draws.decode(run.vae, z.flatten(0, 1), x, seed, run.label)
    others = "" if run.vae.latent_dim == 2 else ", the others at the prior's median"
    text = (
        f"{describe(run)}; latent {first} to the right and latent {second} upwards, through the prior's quantiles "
        f"{LOW:.0%} to {HIGH:.0%}{others}; x: {x} of p(x|z)"
    )
    values = {"z": z, "x": images.unflatten(0, z.shape[:2])}
    across, up = values_of(quantiles[:, first]), values_of(quantiles[:, second].flip(0))
    write(
        place or default_out(run, "plane.png"),
        lambda: figures.grid(images, steps, text, up, across, *latent_names([first, second])),
        values,
        "Images on the plane of two latents",
    )


def pair(run: TrainedRun, latents: tuple[int, int] | None) -> tuple[int, int]:
    """The two latents of the plane; raises InputError for a model of another number that names none."""
    size = run.vae.latent_dim
    if latents is None and size != 2:
        raise InputError(
            f"{run.directory}: has {size} latents, and a plane shows two; name them, for example --latents 0 1, or "
            "take vae traverse"
        )
    first, second = latents or (0, 1)
    if first == second or not all(0 <= one < size for one in (first, second)):
        raise InputError(f"--latents {first} {second}: must be two different latents from 0 to {size - 1}")
    return first, second
