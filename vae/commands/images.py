"""`vae reconstruct`, `vae encode` and `vae score`: of the test split, or of a person's own images."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae.commands.opening import Given, binarised, default_out, describe, images_of, open_run
from vae.commands.output import check_out, write
from vae.data.batches import Images, as_floats
from vae.errors import InputError
from vae.evaluation import draws, figures
from vae.evaluation.estimates import image_scores
from vae.run.load import TrainedRun
from vae.words import HALF_INTERVAL, plus_minus, printable

WIDE = 12  # pairs of images in a row
SHOWN = 40  # of the most unusual images
LISTED = 10  # of them in the terminal


def reconstruct(
    path: str, images: list[str] | None, count: int, z: str, x: str, seed: int, out: str | None, **how: Any
) -> None:
    place = check_out(out, how.pop("force"))
    run = open_run(path, **how)
    given = images_of(run, images, count)
    made = draws.reconstruct(run.vae, given.source(run), z, x, seed)
    error = (as_floats(given.images) - made).square().sum((1, 2, 3))
    draw_z = "posterior mean" if z == "mean" else f"one draw from the posterior, seed {seed}"
    text = (
        f"{describe(run)}; {given.said}; z: {draw_z}; x: {x} of p(x|z); squared error {error.mean():.4g} an image on "
        "average"
    )
    values = {"name": given.names, "squared_error": error, "x": as_floats(given.images), "x_hat": made}
    write(
        place or default_out(run, "reconstruct.png"),
        lambda: pairs(as_floats(given.images), made, text),
        values,
        "Images over their reconstructions",
    )


def pairs(x: Tensor, x_hat: Tensor, text: str) -> Any:
    """Each image over its reconstruction, in as many double rows as it takes."""
    if len(x) <= WIDE:
        return figures.reconstructions(x, x_hat, text)
    rows = []
    for a, b in zip(x.split(WIDE), x_hat.split(WIDE), strict=True):
        blank = torch.ones(WIDE - len(a), *a.shape[1:])
        rows += [torch.cat([a, blank]), torch.cat([b, blank])]
    return figures.grid(torch.cat(rows), WIDE, text, ["image", "made of it"] * (len(rows) // 2))


def encode(path: str, images: list[str] | None, out: str | None, **how: Any) -> None:
    place = check_out(out, how.pop("force"))
    run = open_run(path, **how)
    given = images_of(run, images)
    found = draws.encode(run.vae, given.source(run))
    labels = {} if given.labels is None else {"label": given.labels.numpy()}
    text = f"{describe(run)}; {given.said}; posterior means of {len(given.images)} images"
    classes = labels.get("label", np.zeros(len(given.images), int))
    names = run.data.class_names if labels else ["images"]
    write(
        place or default_out(run, "encode.png"),
        lambda: figures.latents(found["mean"], classes, text, names),
        {"name": given.names, **labels, **found},
        "Scatter plot of posterior means",
    )


def score(
    path: str, images: list[str] | None, count: int | None, samples: int, seed: int, against: list[str] | None,
    out: str | None, **how: Any,
) -> None:  # fmt: skip
    place = check_out(out, how.pop("force"))
    run = open_run(path, **how)
    given = images_of(run, images, count)
    found, error = image_scores(run.vae, given.source(run), samples, seed, bar=True)
    order = found.argsort()
    what = "log p(x)" if run.vae.likelihood.normalised else "minus (reconstruction + KL), which are no nats"
    print(f"{what}, the most unusual of {len(found)} images first; ± over {samples} importance samples")
    for rank, row in enumerate(order[:LISTED].tolist(), 1):
        value = plus_minus(float(found[row]), HALF_INTERVAL * float(error[row]))
        print(f"{rank:>4}  {value:>20}  {printable(given.names[row])}{_label(given, row)}")
    for name in against or ():
        others, _ = image_scores(run.vae, contrast(run, name, given, seed), samples, seed, bar=True)
        print(f"against {name}: area under the ROC curve {area(found, others):.4f} ({len(others)} images)")
    shown = order[:SHOWN]
    text = (
        f"{describe(run)}; {given.said}; the {len(shown)} most unusual of {len(found)} images by {what}, from "
        f"{found[shown[0]]:.1f} to {found[shown[-1]]:.1f}, in reading order; {samples} importance samples"
    )
    labels = {} if given.labels is None else {"label": given.labels[order].numpy()}
    values = {"name": [given.names[row] for row in order.tolist()], **labels, "score": found[order]}
    values |= {"error": error[order], "x": as_floats(given.images[order])}
    drawn = as_floats(given.images[shown])
    write(
        place or default_out(run, "score.png"),
        lambda: figures.grid(drawn, min(10, len(shown)), text),
        values,
        "The most unusual images in order",
    )


def _label(given: Given, row: int) -> str:
    return "" if given.labels is None else f", class {given.labels[row]}"


def contrast(run: TrainedRun, name: str, like: Given, seed: int) -> Tensor | Images:
    """Images that are none of the model's kind: `noise` (uniform), `upside-down`, or those of a folder."""
    if name == "noise":
        made = torch.randint(256, like.images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
        made = binarised(made, "static", seed)[0] if run.vae.likelihood.support == "binary" else made
        return replace(like, images=made).source(run)
    if name == "upside-down":
        return replace(like, images=like.images.flip(-1, -2)).source(run)
    return images_of(run, [name]).source(run)


def area(usual: Tensor, unusual: Tensor) -> float:
    """The probability that a usual image scores above an unusual one."""
    from sklearn.metrics import roc_auc_score

    if not len(usual) or not len(unusual):
        raise InputError("--against: there are no images to compare")
    truth = np.r_[np.ones(len(usual)), np.zeros(len(unusual))]
    return float(roc_auc_score(truth, torch.cat([usual, unusual]).numpy()))
