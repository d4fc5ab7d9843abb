"""Where images come from, by name: idx files, scikit-learn's digits, people's own, sprites."""

import hashlib
from pathlib import Path

import numpy as np
import torch

from vae.data.batches import Batch
from vae.data.downloads import FILES, SOURCES, raw_folder, read_idx
from vae.data.own import TORCHVISION, RawSet, fingerprint
from vae.errors import InputError

NAMES = (*SOURCES, "digits", "folder", "npz", "sprites", *TORCHVISION)

USUAL_SIZES = {  # of what is held out; of the other sets a tenth
    "dev_size": {"digits": 300} | dict.fromkeys(SOURCES, 10_000),
    "test_size": {"digits": 300},
}

TEN = [str(digit) for digit in range(10)]

CLASS_NAMES = {
    "fashion_mnist": ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"],
    "kmnist": ["o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"],
}


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise InputError(f"data.{key}={value}: unknown; choose one of {', '.join(allowed)}")
    return value


def _at_least(key: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"data.{key}={value}: must be a whole number, {least} or more")
    return value


def _read_pair(images: Path, labels: Path) -> Batch:
    """Images (N, 1, H, W) uint8 and labels (N,) int64 from two idx files, checked against each other."""
    x, y = read_idx(images), read_idx(labels)
    if len(x) != len(y):
        raise InputError(
            f"{labels}: {len(y)} labels for the {len(x)} images of {images.name}; remove the wrong one of "
            "the two and it is fetched again"
        )
    if len(y) and y.max() > 9:
        raise InputError(f"{labels}: label {y.max()}, expected 0 to 9; remove it and it is fetched again")
    return torch.from_numpy(x.copy()).unsqueeze(1), torch.from_numpy(y.astype(np.int64))


def _load_idx(name: str, root: str | Path) -> RawSet:
    """The official training and test set, and the md5 of the four files one after the other."""
    paths = [raw_folder(name, root) / file for file in FILES]
    train, test = _read_pair(*paths[:2]), _read_pair(*paths[2:])
    digest = hashlib.md5(usedforsecurity=False)
    for path in paths:
        digest.update(path.read_bytes())
    return RawSet(train, test, digest.hexdigest(), CLASS_NAMES.get(name, TEN))


def _load_digits() -> RawSet:
    """scikit-learn's 1,797 digits, 8x8 levels 0..16, enlarged to 1x28x28; the same bytes on every processor.

    The set is ordered by writer, so it is shuffled, always in the same way; the test set is the end of it.
    """
    from sklearn.datasets import load_digits  # here, since it is slow to import and seldom needed

    digits = load_digits()
    levels = digits.images.astype(np.int64)  # (N, 8, 8)
    levels = np.pad(levels, ((0, 0), (1, 1), (1, 1)))  # a margin, as MNIST has: the digits touch the edges
    weights, one = bicubic(10, 28)
    white = 16 * one * one
    grey = (2 * 255 * (weights @ levels @ weights.T) + white) // (2 * white)  # rounded
    images = torch.from_numpy(grey.clip(0, 255).astype(np.uint8)).unsqueeze(1)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], torch.from_numpy(digits.target.astype(np.int64))[order]
    return RawSet((images, labels), None, fingerprint(images, labels), TEN)


def bicubic(old: int, new: int) -> tuple[np.ndarray, int]:
    """Integer weights (new, old) of a bicubic resize of a row of pixels (Keys 1981, a = -3/4), and the sum of a row.

    Floats would round in other ways on other processors. Distances are in units of 1 / (2 new) pixels of the old row.
    """
    unit = 2 * new
    weights = np.zeros((new, old), np.int64)
    for row in range(new):
        centre = old * (2 * row + 1) - new
        for pixel in range(centre // unit - 1, centre // unit + 3):
            weights[row, min(max(pixel, 0), old - 1)] += _keys_kernel(abs(centre - pixel * unit), unit)
    return weights, 4 * unit**3


def _keys_kernel(x: int, unit: int) -> int:
    """Keys' kernel at distance x / unit, times 4 unit^3."""
    if x <= unit:
        return 5 * x**3 - 9 * x**2 * unit + 4 * unit**3
    return -3 * x**3 + 15 * x**2 * unit - 24 * x * unit**2 + 12 * unit**3
