"""The images that a verb is given: of the test split, or a person's own."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae.data.batches import Images
from vae.data.photographs import find_images, fit_image
from vae.errors import InputError
from vae.evaluation import figures
from vae.evaluation.draws import classes_in_turn, decode, prior_latents
from vae.files import expand
from vae.pixels import at_threshold, draw_binary
from vae.run.load import TrainedRun, in_short
from vae.words import HALF_INTERVAL, plus_minus, printable

WIDE = 12  # pairs of images in a row


@dataclass
class Batch:
    """Images (N, C, H, W), uint8, with a name each, and their labels (N,) if there are any.

    `origin` tells a caption where they come from and what was done to them.
    """

    images: Tensor
    names: list[str]
    labels: Tensor | None
    origin: str

    def source(self, run: TrainedRun) -> Tensor | Images:
        return labelled(run, self.images, self.labels)

    def class_of(self, run: TrainedRun, row: int) -> str:
        return "" if self.labels is None else f", class {run.data.class_names[int(self.labels[row])]}"


def labelled(run: TrainedRun, images: Tensor, labels: Tensor | None = None) -> Tensor | Images:
    """Images with the classes that a conditional model takes them for: that of `--label`, else their own labels."""
    if run.label is not None:
        labels = torch.full((len(images),), run.label)
    return images if labels is None else Images(images, labels)


def images_of(run: TrainedRun, paths: list[str] | None, count: int | None = None) -> Batch:
    """A person's own images, or the test split (its first `count`); raises InputError for what is no image."""
    if not paths:
        images, labels = run.data.test.images[:count], run.data.test.labels[:count]
        return Batch(images, [f"test {i}" for i in range(len(images))], labels if run.data.classes else None, "test")
    files = find_images(paths)
    dark = is_dark(run)
    fitted = [fit_image(file, run.vae.image_shape, dark) for file in files]
    images = torch.from_numpy(np.stack([image for image, _ in fitted]))
    counts = Counter(treatment for _, treatment in fitted)
    origin = ", ".join(counts) if len(counts) == 1 else "; ".join(f"{n} {done}" for done, n in counts.items())
    if run.vae.likelihood.support == "binary":
        images, done = binarised(images, run.settings.plain["data"].get("binarize", "threshold"), run.settings.seed)
        origin = f"{origin}; all {done}"
    return Batch(images, [str(file) for file in files], None, f"own images: {origin}")


def is_dark(run: TrainedRun) -> bool:
    """Whether the model's images are light on dark, by the border of the mean of its samples."""
    labels = classes_in_turn(run.vae, run.label)
    mean = decode(run.vae, prior_latents(run.vae, 64, 0), labels=labels).mean((0, 1))  # (H, W)
    return bool(torch.cat([mean[0], mean[-1], mean[:, 0], mean[:, -1]]).median() < 0.5)


def binarised(images: Tensor, how: str, seed: int) -> tuple[Tensor, str]:
    """As a model of binary images was trained: by a threshold or by one Bernoulli draw per pixel."""
    if how == "threshold":
        return at_threshold(images), "binarised at one half"
    return draw_binary(images, seed), "binarised by one draw"


def one_image(run: TrainedRun, text: str) -> tuple[Tensor, str]:
    """An image (1, C, H, W) by a class (the first of it in the test split), `test:17`, or a file; and its name."""
    split, _, index = text.partition(":")
    names = run.class_names
    if split == "test" and index.isdecimal():
        count = len(run.data.test.images)
        if int(index) >= count:
            raise InputError(f"{text}: there are {count} test images; give test:0 to test:{count - 1}")
        return run.data.test.images[int(index) : int(index) + 1], text
    if text not in names and not expand(text).exists():
        known = f"a class ({in_short(names)}), " if names else ""
        raise InputError(f"{text} is neither a class nor a file; give {known}test:17 for a test image, or a file")
    if text not in names:
        batch = images_of(run, [text])
        return batch.images[:1], batch.names[0]
    rows = (run.data.test.labels == list(names).index(text)).nonzero().flatten()
    if not len(rows):
        raise InputError(f"{text}: no test image is of this class; give another one, or test:17 for a test image")
    return run.data.test.images[rows[:1]], f"class {text}"


def print_scores(run: TrainedRun, batch: Batch, scores: Tensor, errors: Tensor, rows: list[int]) -> None:
    for rank, row in enumerate(rows, 1):
        value = plus_minus(float(scores[row]), HALF_INTERVAL * float(errors[row]))
        print(f"{rank:>4}  {value:>20}  {printable(batch.names[row])}{batch.class_of(run, row)}")


def contrast(run: TrainedRun, name: str, like: Batch, seed: int) -> Tensor | Images:
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


def pairs(x: Tensor, x_hat: Tensor, text: str) -> Any:
    """Each image over its reconstruction, in as many double rows as it takes."""
    if len(x) <= WIDE:
        return figures.reconstructions(x, x_hat, text)
    rows = []
    for a, b in zip(x.split(WIDE), x_hat.split(WIDE), strict=True):
        blank = torch.ones(WIDE - len(a), *a.shape[1:])
        rows += [torch.cat([a, blank]), torch.cat([b, blank])]
    return figures.grid(torch.cat(rows), WIDE, text, ["image", "made of it"] * (len(rows) // 2))
