"""People's own images: a folder of files, an array in a file, a set that torchvision fetches."""

import hashlib
import os
import socket
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vae.data.batches import Factors
from vae.data.images import SUFFIXES, read_image, to_array
from vae.errors import InputError, first_line

Loaded = tuple[Tensor, Tensor | None]  # uint8 images (N, C, H, W) and, where there are any, int64 labels (N,)
MOST_CLASSES = 10_000
Size = int | list[int] | None  # of an image: a side, or height and width


class RawSet(NamedTuple):
    """A set as its source gives it: with a test set, or without, which is then cut off; `md5` is of all its pixels.

    `factors` belong to a `train` that all splits are cut from.
    """

    train: Loaded
    test: Loaded | None
    md5: str
    class_names: list[str] | None = None
    factors: Factors | None = None


def fingerprint(*arrays: Tensor | None) -> str:
    """Of shapes and contents: the same on every machine."""
    digest = hashlib.md5(usedforsecurity=False)
    for array in arrays:
        if array is not None:
            digest.update(repr(tuple(array.shape)).encode())
            digest.update(array.contiguous().numpy().data)
    return digest.hexdigest()


def _pair(size: Size) -> tuple[int, int] | None:
    return None if size is None else (size, size) if isinstance(size, int) else (size[0], size[1])


def require_path(path: str | None, what: str) -> Path:
    """The path that `data.path` names; raises InputError where nothing is there."""
    if path is None:
        raise InputError(f"data.path: is missing; give {what}")
    if not Path(path).exists():
        raise InputError(f"data.path={path}: there is nothing; give {what}")
    return Path(path)


# --- folder -----------------------------------------------------------------------------------------------------------


def read_folder(path: str | None, size: Size, mode: str | None) -> RawSet:
    """PNG and JPEG files in the order of their names; subfolders are classes, `train` and `test` are splits.

    All images must have one shape: `size` and `mode` give it to them. Raises InputError.
    """
    root = require_path(path, "a folder of PNG or JPEG images")
    if not root.is_dir():
        raise InputError(f"data.path={path}: is no folder; for an array in a file take data=npz")
    given = (root / "train").is_dir() and (root / "test").is_dir()
    files = {split: image_files(root / split if given else root) for split in (["train", "test"] if given else [""])}
    names = sorted({name for found in files.values() for _, name in found if name is not None})
    shape: tuple[Path, tuple[int, ...]] | None = None
    loaded: list[Loaded] = []
    for found in files.values():
        images, shape = _read_files(found, size, mode, shape)
        labels = torch.tensor([names.index(name) for _, name in found if name is not None])
        loaded.append((images, labels if names else None))
    md5 = fingerprint(*(array for pair in loaded for array in pair))
    return RawSet(loaded[0], loaded[1] if given else None, md5, names or None)


def image_files(folder: Path) -> list[tuple[Path, str | None]]:
    """Every image below a folder and its class, the subfolder's name, or None; raises InputError for a mixture."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not files:
        raise InputError(f"data.path={folder}: holds no image; give a folder of {', '.join(SUFFIXES)} files")
    found = [(file, file.relative_to(folder).parts) for file in files]
    flat = [file for file, parts in found if len(parts) == 1]
    if flat and len(flat) < len(found):
        raise InputError(
            f"data.path={folder}: {len(flat)} images lie beside subfolders, such as {flat[0].name}; put every image "
            "into the subfolder of its class, or all of them into one folder"
        )
    return [(file, None if flat else parts[0]) for file, parts in found]


def _read_files(
    files: list[tuple[Path, str | None]], size: Size, mode: str | None, first: tuple[Path, tuple[int, ...]] | None
) -> tuple[Tensor, tuple[Path, tuple[int, ...]]]:
    """uint8 images (N, C, H, W), and the image whose shape all others have."""
    images = np.empty(0, np.uint8)
    for row, (file, _) in enumerate(tqdm(files, "images", leave=False, disable=not sys.stderr.isatty())):
        pixels = read_image(file, _pair(size), mode)
        first = first or (file, pixels.shape)
        if pixels.shape != first[1]:
            one, other = ("x".join(map(str, shape)) for shape in (first[1], pixels.shape))
            raise InputError(
                f"data.path={file.parent}: the images have several shapes, {one} (channels x height x width, "
                f"{first[0].name}) and {other} ({file.name}); data.size=28 resizes them, data.mode=L or RGB gives them "
                "the same channels"
            )
        if not row:
            images = np.empty((len(files), *pixels.shape), np.uint8)
        images[row] = pixels
    assert first is not None  # image_files finds one at least
    return torch.from_numpy(images), first


# --- arrays -----------------------------------------------------------------------------------------------------------


def read_arrays(path: str | None) -> RawSet:
    """A `.npy` of images, or a `.npz` of `images` and, if there are any, `labels`, `test_images`, `test_labels`.

    Images are (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels; uint8, or floats in [0, 1], which are
    rounded to 256 levels. Raises InputError; a file with pickled objects is refused and nothing of it is executed.
    """
    file = require_path(path, "an .npz or .npy file")
    arrays = _load_arrays(file)
    if "images" not in arrays:
        raise InputError(f"data.path={path}: holds {', '.join(arrays) or 'nothing'}; the images must be called images")
    train = _checked_pair(file, arrays, "images", "labels")
    test = _checked_pair(file, arrays, "test_images", "test_labels") if "test_images" in arrays else None
    if test is not None and test[0].shape[1:] != train[0].shape[1:]:
        raise InputError(f"data.path={path}: images and test_images differ in shape; make them the same")
    if test is not None and (test[1] is None) != (train[1] is None):
        raise InputError(f"data.path={path}: one of labels and test_labels is missing; give both or neither")
    return RawSet(train, test, fingerprint(*train, *(test or ())))


def _load_arrays(file: Path) -> dict[str, np.ndarray]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        if not zipfile.is_zipfile(file):
            return {"images": np.array(np.lib.format.open_memmap(file, mode="r"))}  # a header may claim any size
        with zipfile.ZipFile(file) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > memory:
            raise ValueError(f"unpacked it has {size / 1e9:,.0f} GB, this machine {memory / 1e9:,.0f}")
        with np.load(file, allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    except Exception as error:  # broken bytes can fail anywhere in NumPy, zipfile and zlib
        reason = first_line(error)
        if "allow_pickle" in reason or "Python objects" in reason:
            reason = "it holds pickled objects, which could execute anything; nothing of it was executed"
        raise InputError(
            f"data.path={file}: cannot be read ({reason}); give an .npz or .npy of plain numbers, saved by NumPy"
        ) from error
    return {"images": next(iter(arrays.values()))} if len(arrays) == 1 else arrays


def _checked_pair(file: Path, arrays: Mapping[str, np.ndarray], name: str, of: str) -> Loaded:
    images, labels = _as_images(f"data.path={file}: {name}", arrays[name]), arrays.get(of)
    if labels is None:
        return images, None
    whole = np.issubdtype(labels.dtype, np.integer) and labels.shape == (len(images),)
    if not whole or labels.min(initial=0) < 0 or labels.max(initial=0) >= MOST_CLASSES:
        raise InputError(
            f"data.path={file}: {of} has the shape {labels.shape} and the type {labels.dtype}; give {len(images)} "
            f"whole numbers from 0 to {MOST_CLASSES - 1}, one an image"
        )
    return images, torch.from_numpy(labels.astype(np.int64))


def _as_images(what: str, array: np.ndarray) -> Tensor:
    """uint8 (N, C, H, W)."""
    if array.ndim == 3:
        array = array[:, None]
    if array.ndim != 4 or not array.size:
        raise InputError(f"{what} has the shape {array.shape}; give (N, H, W), (N, H, W, C) or (N, C, H, W)")
    if array.shape[3] in (1, 3) and array.shape[1] not in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):  # NaN fails too
            raise InputError(f"{what} has values from {array.min():g} to {array.max():g}; floats must lie in [0, 1]")
        array = (array * array.dtype.type(255)).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise InputError(f"{what} has the type {array.dtype}; give uint8, or floats in [0, 1]")
    return torch.from_numpy(np.ascontiguousarray(array))


# --- torchvision ------------------------------------------------------------------------------------------------------

TORCHVISION: dict[
    str, tuple[str, dict[str, Any], dict[str, Any]]
] = {  # class, how its train and its test are asked for
    "cifar10": ("CIFAR10", {"train": True}, {"train": False}),
    "svhn": ("SVHN", {"split": "train"}, {"split": "test"}),
    "omniglot": ("Omniglot", {"background": True}, {"background": False}),
    "emnist": ("EMNIST", {"split": "balanced", "train": True}, {"split": "balanced", "train": False}),
}


def read_torchvision(name: str, root: str, size: Size, mode: str | None, timeout: float) -> RawSet:
    """A set that torchvision fetches into `root` and checks; raises InputError where it cannot.

    Omniglot's two halves have other characters, so its labels would say nothing of one another: it gets none.
    """
    from filelock import FileLock
    from torchvision import datasets

    kind, *asked = TORCHVISION[name]
    before = socket.getdefaulttimeout()
    try:
        Path(root).mkdir(parents=True, exist_ok=True)
        socket.setdefaulttimeout(timeout)  # torchvision gives none, and a network that swallows packets hangs for ever
        with FileLock(Path(root) / f".{name}.lock"):
            train, test = (getattr(datasets, kind)(root, download=True, **one) for one in asked)
    except Exception as error:  # of the network, of the disk, of a damaged file: torchvision raises many kinds
        raise InputError(
            f"data.name={name}: is not in data.root={root} and cannot be fetched ({first_line(error)}); try again, or "
            f"put torchvision's files of {kind} there"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    loaded = [_from_pil(one, _pair(size), mode, turned=name == "emnist") for one in (train, test)]
    if name == "omniglot":
        loaded = [(images, None) for images, _ in loaded]
    names = [str(one) for one in getattr(train, "classes", range(10))] if name != "omniglot" else None
    return RawSet(loaded[0], loaded[1], fingerprint(*(array for pair in loaded for array in pair)), names)


def _from_pil(dataset: Any, size: tuple[int, int] | None, mode: str | None, turned: bool) -> Loaded:
    """`turned`: columns where others have rows, as EMNIST's files hold them."""
    pairs = (dataset[row] for row in range(len(dataset)))
    bar = tqdm(pairs, type(dataset).__name__, len(dataset), leave=False, disable=not sys.stderr.isatty())
    images, labels = zip(*((to_array(image, size, mode), int(label)) for image, label in bar), strict=True)
    whole = torch.from_numpy(np.stack(images))
    return whole.mT.contiguous() if turned else whole, torch.tensor(labels)
