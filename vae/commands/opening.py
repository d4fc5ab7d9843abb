"""What the verbs that use a model share: the run, its caption, the images that they are given."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vae.data.batches import Images
from vae.data.photographs import find_images, fit_image
from vae.errors import InputError
from vae.evaluation.draws import classes_in_turn, decode, prior_latents
from vae.run.load import TrainedRun, load_run
from vae.run.process import log_to
from vae.run.settings import caption


def open_run(path: str, checkpoint: str, trust: list[str] | None, label: int | None = None) -> TrainedRun:
    """The run, and in `run.label` the class that a conditional model takes every image for, where one is named.

    Raises InputError for a class that the model has not.
    """
    log_to(None)
    run = load_run(path, checkpoint, trust=tuple(trust or ()))
    if label is not None:
        if not 0 <= label < run.vae.classes:
            allowed = (
                f"has the classes 0 to {run.vae.classes - 1}" if run.vae.classes else "is not conditional; leave it out"
            )
            raise InputError(f"--label={label}: this model {allowed}")
        run.label = label
    if run.settings.threads:
        torch.set_num_threads(run.settings.threads)
    return run


def describe(run: TrainedRun) -> str:
    """How a caption begins: the run, its data, its latents, the class that was asked for."""
    of_class = "" if run.label is None else f"; given class {run.label}"
    return f"{run.directory.absolute().name}: {caption(run.settings.plain)}; {run.vae.latent_dim} latents{of_class}"


def default_out(run: TrainedRun, name: str) -> Path:
    return run.directory / "figures" / name


@dataclass
class Given:
    """Images (N, C, H, W), uint8, with a name each, their labels (N,) if there are any, and what was done to them."""

    images: Tensor
    names: list[str]
    labels: Tensor | None
    said: str

    def source(self, run: TrainedRun) -> Tensor | Images:
        return labelled(run, self.images, self.labels)


def labelled(run: TrainedRun, images: Tensor, labels: Tensor | None = None) -> Tensor | Images:
    """Images with the classes that a conditional model takes them for: that of `--label`, else their own labels."""
    if run.label is not None:
        labels = torch.full((len(images),), run.label)
    return images if labels is None else Images(images, labels)


def images_of(run: TrainedRun, paths: list[str] | None, count: int | None = None) -> Given:
    """A person's own images, or the test split (its first `count`); raises InputError for what is no image."""
    if not paths:
        images, labels = run.data.test.images[:count], run.data.test.labels[:count]
        return Given(images, [f"test {i}" for i in range(len(images))], labels if run.data.classes else None, "test")
    files = find_images(paths)
    dark = is_dark(run)
    fitted = [fit_image(file, run.vae.image_shape, dark) for file in files]
    images = torch.from_numpy(np.stack([image for image, _ in fitted]))
    counts = Counter(said for _, said in fitted)
    said = ", ".join(counts) if len(counts) == 1 else "; ".join(f"{n} {how}" for how, n in counts.items())
    if run.vae.likelihood.support == "binary":
        images, how = binarised(images, run.settings.plain["data"].get("binarize", "threshold"), run.settings.seed)
        said = f"{said}; all {how}"
    return Given(images, [file.name for file in files], None, f"own images: {said}")


def is_dark(run: TrainedRun) -> bool:
    """Whether the model's images are light on dark, by the border of the mean of its samples."""
    labels = classes_in_turn(run.vae, run.label)
    mean = decode(run.vae, prior_latents(run.vae, 64, 0), labels=labels).mean((0, 1))  # (H, W)
    return bool(torch.cat([mean[0], mean[-1], mean[:, 0], mean[:, -1]]).median() < 0.5)


def binarised(images: Tensor, how: str, seed: int) -> tuple[Tensor, str]:
    """As a model of binary images was trained: by a threshold or by one Bernoulli draw a pixel."""
    if how == "threshold":
        return (images >= 128).to(torch.uint8) * 255, "binarised at one half"
    uniform = torch.randint(255, images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return (uniform < images).to(torch.uint8) * 255, "binarised by one draw"


def whole_number(text: str) -> int | None:
    return int(text) if text.removeprefix("-").isdigit() else None


def one_image(run: TrainedRun, text: str) -> tuple[Tensor, str]:
    """An image (1, C, H, W) by a class (the first of it in the test split), `test:17`, or a file; and its name."""
    split, _, place = text.partition(":")
    if split == "test" and place.isdigit():
        return _of_test(run, int(place), text)
    number = whole_number(text)
    if number is None:
        given = images_of(run, [text])
        return given.images[:1], given.names[0]
    rows = (run.data.test.labels == number).nonzero().flatten()
    if not run.data.classes or not len(rows):
        known = f"a class from 0 to {run.data.classes - 1}, " if run.data.classes else ""
        raise InputError(f"{text}: no test image has this label; give {known}test:17 for a test image, or a file")
    return run.data.test.images[rows[:1]], f"class {number}"


def _of_test(run: TrainedRun, index: int, text: str) -> tuple[Tensor, str]:
    images = run.data.test.images
    if index >= len(images):
        raise InputError(f"{text}: there are {len(images)} test images; give test:0 to test:{len(images) - 1}")
    return images[index : index + 1], text
