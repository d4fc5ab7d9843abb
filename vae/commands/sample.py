"""`vae sample RUN`: images from the prior, or from the aggregate posterior."""

from typing import Any

from torch import Tensor

from vae.commands.opening import default_out, describe, open_run
from vae.commands.output import check_out, write
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
    **how: Any,
) -> None:
    place = check_out(out, how.pop("force"))
    run = open_run(path, **how)
    z = latents(run, count, seed, temperature, origin)
    labels = draws.classes_in_turn(run.vae, run.label)
    images = draws.decode(run.vae, z, x, seed, labels, bar=True)
    warmth = "" if temperature == 1 else f" at temperature {temperature:g}"
    in_turn = labels is not None and run.label is None
    turns = ", the classes in turn" if in_turn else ""
    text = f"{describe(run)}; {count} samples{turns}; {ORIGINS[origin]}{warmth}; x: {x} of p(x|z); seed {seed}"
    values = {"z": z.numpy(), "x": images.numpy()}
    columns = run.vae.classes if in_turn else draws.square(count)
    write(place or default_out(run, "sample.png"), lambda: figures.grid(images, columns, text), values, SHOWS)


def latents(run: TrainedRun, count: int, seed: int, temperature: float, origin: str) -> Tensor:
    if origin == "prior":
        return draws.prior_latents(run.vae, count, seed, temperature)
    return draws.posterior_latents(run.vae, run.data.train_fixed, count, seed, temperature)
