"""`vae sample RUN`: images from the prior, or from the aggregate posterior."""

from contextlib import nullcontext
from typing import Any

from torch import Tensor

from vae.commands.opening import default_out, describe, open_run
from vae.commands.output import check_out, write
from vae.errors import InputError
from vae.evaluation import draws, figures
from vae.run.load import TrainedRun

SHOWS = "A grid of generated images"
ORIGINS = {"prior": "z from the prior", "posterior": "z from a Gaussian mixture fitted to the aggregate posterior"}


def sample(
    path: str,
    count: int,
    x: str,
    seed: int,
    temperature: float,
    origin: str,
    out: str | None,
    label: int | None,
    **how: Any,
) -> None:
    place = check_out(out, how.pop("force"))
    run = open_run(path, **how)
    if label is not None and not 0 <= label < run.vae.classes:
        allowed = f"0 to {run.vae.classes - 1}" if run.vae.classes else "none, as the model is not conditional"
        raise InputError(f"--label={label}: this model's classes are {allowed}")
    z = latents(run, count, seed, temperature, origin)
    with nullcontext() if label is None else run.vae.given(label):
        images = draws.decode(run.vae, z, x, seed, bar=True)
    warmth = "" if temperature == 1 else f" at temperature {temperature:g}"
    of_class = "" if label is None else f" of class {label}"
    text = f"{describe(run)}; {count} samples{of_class}; {ORIGINS[origin]}{warmth}; x: {x} of p(x|z); seed {seed}"
    values = {"z": z.numpy(), "x": images.numpy()}
    write(
        place or default_out(run, "sample.png"), lambda: figures.grid(images, draws.square(count), text), values, SHOWS
    )


def latents(run: TrainedRun, count: int, seed: int, temperature: float, origin: str) -> Tensor:
    if origin == "prior":
        return draws.prior_latents(run.vae, count, seed, temperature)
    return draws.posterior_latents(run.vae, run.data.train.images, count, seed, temperature)
