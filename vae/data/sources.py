"""Where images come from, by name: idx files, scikit-learn's digits, people's own, sprites."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from vae.data.batches import Batch
from vae.data.downloads import FILES, SOURCES, raw_folder, read_idx
from vae.data.own import TORCHVISION, RawSet
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
    """scikit-learn's 1,797 digits, 8x8 levels 0..16, enlarged to 1x28x28, with the md5 of what it bundles.

    The set is ordered by writer, so it is shuffled, always in the same way; the test set is the end of it.
    """
    from sklearn.datasets import load_digits  # here, since it is slow to import and seldom needed

    digits = load_digits()
    levels = digits.images.astype(np.uint8)  # (N, 8, 8)
    labels = digits.target.astype(np.int64)
    md5 = hashlib.md5(levels.tobytes() + labels.tobytes(), usedforsecurity=False).hexdigest()
    small = torch.from_numpy(levels).float().unsqueeze(1) * (255 / 16)
    small = F.pad(small, (1, 1, 1, 1))  # a margin, as MNIST has: the digits touch the upper and lower edge
    images = F.interpolate(small, (28, 28), mode="bicubic").round().clamp(0, 255).to(torch.uint8)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return RawSet((images[order], torch.from_numpy(labels)[order]), None, md5, TEN)
