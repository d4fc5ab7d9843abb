"""Known sets of images: the MNIST family and others that torchvision fetches, scikit-learn's digits."""

import functools
import sys
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets
from tqdm import tqdm

from vae.data.arrays import Mode, Size
from vae.data.downloads import FILES, IdxSet, ensure, fetched, raw_folder, read_idx
from vae.data.images import to_array
from vae.data.module import ImageDataModule, Loaded, RawSet
from vae.errors import InputError
from vae.types import Positive, Text

TEN = tuple(str(digit) for digit in range(10))


class Fetched(ImageDataModule):
    """A set that torchvision fetches into `root`."""

    source: ClassVar[Any]  # torchvision's class

    def __init__(
        self,
        root: Annotated[Text, "folder of the files, as torchvision lays them out; downloaded when absent"] = "data",
        timeout: Annotated[Positive, "seconds that a download may stall"] = 30,
        **module: Any,
    ) -> None:
        super().__init__(**module)
        self.root, self.timeout = root, timeout

    @property
    def place(self) -> str:
        return self.root


# --- the MNIST family -------------------------------------------------------------------------------------------------


class MNIST(Fetched):
    """Handwritten digits, 60,000 and 10,000 of 1x28x28 (LeCun et al. 1998)."""

    usual_dev_size = 10_000
    source: ClassVar[IdxSet] = datasets.MNIST
    words: ClassVar[tuple[str, ...]] = TEN

    def __init__(
        self, mirrors: Annotated[list[Text] | None, "other addresses to download from"] = None, **fetched: Any
    ) -> None:
        super().__init__(**fetched)
        self.mirrors = mirrors

    def prepare_data(self) -> None:
        """Fetches and checks the files; touches nothing when all are right."""
        if not self.is_set_up:
            ensure(self.source, self.root, self.mirrors, self.timeout)

    def load(self) -> RawSet:
        return RawSet(self._read(*FILES[:2]), self._read(*FILES[2:]), class_names=list(self.words))

    def _read(self, images: str, labels: str) -> Loaded:
        """Images (N, 1, H, W) and labels (N,) from two idx files, checked against each other."""
        folder = raw_folder(self.source, self.root)
        x, y = read_idx(folder / images), read_idx(folder / labels)
        if len(x) != len(y):
            raise InputError(
                f"{folder / labels}: {len(y)} labels for the {len(x)} images of {images}; remove the wrong one of the "
                "two and it is fetched again"
            )
        if len(y) and y.max() >= len(self.words):
            raise InputError(f"{folder / labels}: label {y.max()}, expected 0 to 9; remove it and it is fetched again")
        return torch.from_numpy(x.copy()).unsqueeze(1), torch.from_numpy(y.astype(np.int64))


class FashionMNIST(MNIST):
    """Articles of clothing in MNIST's format (Xiao et al. 2017)."""

    source = datasets.FashionMNIST
    words = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


class KMNIST(MNIST):
    """Cursive Japanese characters in MNIST's format (Clanuwat et al. 2018)."""

    source = datasets.KMNIST
    words = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")


# --- sets of PIL images -----------------------------------------------------------------------------------------------


class TorchvisionSet(Fetched):
    """A set that torchvision gives image by image."""

    requests: ClassVar[tuple[dict[str, Any], dict[str, Any]]] = {"train": True}, {"train": False}  # train and test

    def __init__(self, size: Size = None, mode: Mode = None, **fetched: Any) -> None:
        super().__init__(**fetched)
        self.size, self.mode = size, mode

    def load(self) -> RawSet:
        train, test = fetched(self.source, self.root, self.requests, self.timeout)
        names = [str(name) for name in getattr(train, "classes", TEN)]
        return RawSet(self._arrays(train), self._arrays(test), class_names=names)

    def _arrays(self, dataset: Any) -> tuple[Tensor, Tensor]:
        bar = tqdm(range(len(dataset)), type(self).__name__, leave=False, disable=not sys.stderr.isatty())
        images, labels = zip(*(dataset[row] for row in bar), strict=True)
        arrays = np.stack([to_array(image, self.size, self.mode) for image in images])
        return torch.from_numpy(arrays), torch.tensor([int(label) for label in labels])


class CIFAR10(TorchvisionSet):
    """Photographs of ten kinds of things, 3x32x32 (Krizhevsky 2009)."""

    source = datasets.CIFAR10


class SVHN(TorchvisionSet):
    """House numbers, 3x32x32 (Netzer et al. 2011)."""

    source = datasets.SVHN
    requests = {"split": "train"}, {"split": "test"}


class EMNIST(TorchvisionSet):
    """Letters and digits in MNIST's format, the balanced split (Cohen et al. 2017)."""

    source = datasets.EMNIST
    requests = {"split": "balanced", "train": True}, {"split": "balanced", "train": False}

    def _arrays(self, dataset: Any) -> tuple[Tensor, Tensor]:
        images, labels = super()._arrays(dataset)
        return images.mT.contiguous(), labels  # its files hold columns where others hold rows


class Omniglot(TorchvisionSet):
    """Characters of 50 alphabets, 1x105x105 (Lake et al. 2015).

    The two halves have other characters, so the labels of one would say nothing of the other: it gets none.
    """

    source = datasets.Omniglot
    requests = {"background": True}, {"background": False}

    def load(self) -> RawSet:
        parts = fetched(self.source, self.root, self.requests, self.timeout)
        train, test = (self._arrays(part)[0] for part in parts)
        return RawSet((train, None), (test, None))


# --- digits -----------------------------------------------------------------------------------------------------------


class Digits(ImageDataModule):
    """scikit-learn's 1,797 digits, 8x8 levels 0..16, enlarged to 1x28x28; the same bytes on every processor.

    The set is ordered by writer, so it is shuffled, always in the same way; the test set is the end of it.
    """

    usual_dev_size = usual_test_size = 300
    is_shuffled = True

    def load(self) -> RawSet:
        images, labels = enlarged_digits()
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        return RawSet((images[order], labels[order]), class_names=list(TEN))


@functools.cache
def enlarged_digits() -> tuple[Tensor, Tensor]:
    """Images (1797, 1, 28, 28) and labels (1797,) in the order of the file."""
    from sklearn.datasets import load_digits  # here, since it is slow to import and seldom needed

    digits = load_digits()
    levels = digits.images.astype(np.int64)  # (N, 8, 8)
    levels = np.pad(levels, ((0, 0), (1, 1), (1, 1)))  # a margin, as MNIST has: the digits touch the edges
    weights, one = bicubic(10, 28)
    white = 16 * one * one
    grey = (2 * 255 * (weights @ levels @ weights.T) + white) // (2 * white)  # rounded
    images = torch.from_numpy(grey.clip(0, 255).astype(np.uint8)).unsqueeze(1)
    return images, torch.from_numpy(digits.target.astype(np.int64))


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
