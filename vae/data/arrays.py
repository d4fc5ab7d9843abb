"""People's own images: a folder of files, or an array in a file."""

import hashlib
import itertools
import logging
import os
import sys
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Len
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from vae.data.images import SUFFIXES, list_counts, read_image, walk_images
from vae.data.module import BatchSize, ImageDataModule, Loaded, RawSet, Split
from vae.errors import InputError, first_line
from vae.files import expand, natural, require_plain, whole_file
from vae.types import Choices, Count, Text

log = logging.getLogger(__name__)

MOST_CLASSES = 10_000
MOST_CHANNELS = 4
CACHED_FROM = 1000  # images; fewer are decoded in a second or two
DIM = 64  # images whose lightest pixel is darker would train as black
Size = Annotated[
    Count | Annotated[list[Count], Len(2, 2)] | None,
    "side of the images, or [height, width]: their largest centred part, resized; null: as they are",
]
Mode = Annotated[Literal["L", "RGB"] | None, "grey (L) or colour; null: as the files are"]


def require_path(path: str | None, what: str) -> Path:
    """The path that `data.path` names; raises InputError where nothing is there."""
    if path is None:
        raise InputError(f"data.path: is missing; give {what}")
    place = expand(path)
    try:
        exists = place.exists()
    except OSError as error:  # a name that is too long
        raise InputError(f"data.path={path}: cannot be read ({error.strerror}); give {what}") from error
    if not exists:
        raise InputError(f"data.path={path}: there is nothing; give {what}")
    return place


def use_full_range(what: str, parts: Sequence[Tensor], from_floats: bool = False) -> list[Tensor]:
    """uint8 images of all splits, with masks of 0 and 1 as black and white.

    Raises InputError where no pixel is above a quarter of white: such images would train as black.
    """
    lightest = max(int(images.max()) for images in parts)
    if lightest < DIM and from_floats:
        raise InputError(f"{what} has values up to {lightest / 255:.2g}, and 1 is white; scale them")
    if lightest == 1:
        log.info("%s: the pixels are 0 and 1, which is taken as black and white", what)
        return [images * 255 for images in parts]
    if lightest < DIM:
        cure = f"multiply them by {255 // lightest}" if lightest else "give others"
        raise InputError(f"{what}: the pixels lie in 0 to {lightest}, and 255 is white; {cure}")
    return list(parts)


def describe(splits: Mapping[str, Loaded], class_names: Sequence[str]) -> str:
    """`90 train and 30 test images of 3x64x64 in 2 classes`."""
    counts = " and ".join(f"{len(images):,} {split}" for split, (images, _) in splits.items())
    if len(splits) == 1:
        counts = f"{len(splits['train'][0]):,}"
    shape = "x".join(map(str, splits["train"][0].shape[1:]))
    classes = f" in {len(class_names)} classes" if class_names else " without labels"
    return f"{counts} images of {shape} (channels x height x width){classes}"


class OwnImages(ImageDataModule):
    """A person's own images, at `path`."""

    expected: ClassVar[str]  # what `path` is to name

    def __init__(
        self,
        path: Annotated[Text | None, "your images: a folder of image files, or an .npz or .npy file"] = None,
        split: Split = "random",
        batch_size: BatchSize = None,
        **module: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, split=split, **module)
        self.path = path

    @classmethod
    def requires(cls, chosen: Choices) -> None:
        """Raises InputError for a configuration without a path."""
        if not chosen["data.path"]:
            raise InputError(f"data.path: is missing; give {cls.expected}, for example data.path=mine")

    @property
    def place(self) -> str:
        return str(self.path)

    @property
    def what(self) -> str:
        """How a message begins."""
        return f"data.path={self.path}"


# --- folder -----------------------------------------------------------------------------------------------------------

SPLITS = {
    "train": "train", "training": "train",
    "dev": "dev", "val": "dev", "valid": "dev", "validation": "dev",
    "test": "test", "testing": "test",
}  # fmt: skip

Labeled = tuple[Path, str | None]  # an image file and its class


class Folder(OwnImages):
    """Image files in the natural order of their names; subfolders are classes, `train`, `val` and `test` are splits.

    All images must have one shape: `size` and `mode` give it to them.
    """

    expected = "a folder of PNG or JPEG images"

    def __init__(
        self,
        size: Size = None,
        mode: Mode = None,
        cache_dir: Annotated[Text, "folder in which many images are kept decoded"] = "outputs/.cache",
        **own: Any,
    ) -> None:
        super().__init__(**own)
        self.size, self.mode, self.cache_dir = size, mode, cache_dir

    def load(self) -> RawSet:
        root = require_path(self.path, self.expected)
        if not root.is_dir():
            raise InputError(f"{self.what}: is not a folder; for an array in a file take data=npz")
        files, left_out = split_files(root)
        names = sorted({name for part in files.values() for _, name in part if name is not None}, key=natural)
        codes = {name: code for code, name in enumerate(names)}
        every = [file for file, _ in itertools.chain(*files.values())]
        pixels = torch.from_numpy(read_images(every, self.size, self.mode, expand(self.cache_dir)))
        (images,) = use_full_range(self.what, [pixels])
        parts = zip(files.items(), images.split([len(part) for part in files.values()]), strict=True)
        loaded: dict[str, Loaded] = {}
        for (split, part), of_split in parts:
            labels = torch.tensor([codes[name] for _, name in part if name is not None]) if names else None
            loaded[split] = of_split, labels
        rest = f"; left out: {list_counts(left_out)}" if left_out else ""
        log.info("%s: %s%s", self.what, describe(loaded, names), rest)
        return RawSet(loaded["train"], loaded.get("test"), loaded.get("dev"), names or None)


def split_files(root: Path) -> tuple[dict[str, list[Labeled]], Counter[str]]:
    """The files of each split with their classes, and what else is there, counted; raises InputError for a mixture."""
    files, left_out = walk_images(root)
    if not files:
        raise InputError(f"data.path={root}: holds no image; give a folder of {', '.join(SUFFIXES)} files")
    folders = [folder for folder in root.iterdir() if folder.name.lower() in SPLITS and folder.is_dir()]
    if not folders:
        return {"train": with_classes(root, files)}, left_out
    by_split: dict[str, Path] = {SPLITS[folder.name.lower()]: folder for folder in folders}
    order = ["train", "dev", "test"]
    parts = {split: by_split[split] for split in order if split in by_split}
    inside = {split: [file for file in files if file.is_relative_to(folder)] for split, folder in parts.items()}
    outside = len(files) - sum(map(len, inside.values()))
    if len(parts) < len(folders) or "train" not in parts or outside or not all(inside.values()):
        names = ", ".join(sorted(folder.name for folder in folders))
        raise InputError(
            f"data.path={root}: holds the folders {names} and {outside} images elsewhere; a folder that is split has "
            "train, may have val and test, and holds images in each of them and nowhere else"
        )
    labeled = {split: with_classes(parts[split], part) for split, part in inside.items()}
    if len({part[0][1] is None for part in labeled.values()}) > 1:
        names = ", ".join(parts)
        raise InputError(f"data.path={root}: of {names}, some have folders of classes; give them to all or to none")
    return labeled, left_out


def with_classes(folder: Path, files: list[Path]) -> list[Labeled]:
    """Every image below a folder and its class, the subfolder's name, or None; raises InputError for a mixture."""
    parts = [file.relative_to(folder).parts for file in files]
    flat = [file for file, names in zip(files, parts, strict=True) if len(names) == 1]
    if flat and len(flat) < len(files):
        raise InputError(
            f"data.path={folder}: {len(flat)} images lie beside subfolders, such as {flat[0].name}; put every image "
            "into the subfolder of its class, or all of them into one folder"
        )
    return [(file, None if flat else names[0]) for file, names in zip(files, parts, strict=True)]


def read_images(files: list[Path], size: Size, mode: str | None, cache: Path) -> np.ndarray:
    """uint8 images (N, C, H, W) of files; many are decoded once and from then on mapped from a file in `cache`.

    It is replaced when a name, a size or a time of change differs. Raises InputError for images of several shapes.
    """
    if len(files) < CACHED_FROM:
        return decode(files, size, mode)
    family = _digest(os.path.abspath(os.path.commonpath(files)), size, mode)
    stamps = [(str(file), (status := file.stat()).st_size, status.st_mtime_ns) for file in files]
    path = cache / f"images-{family}-{_digest(stamps)}.npy"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"images-{family}.lock"):  # the jobs of a sweep decode once
            if not path.exists():
                images = decode(files, size, mode)
                for stale in cache.glob(f"images-{family}-*.npy"):
                    stale.unlink()
                with whole_file(path) as file:
                    np.save(file, images)
            return np.load(path, mmap_mode="c")
    except OSError as error:
        log.warning(
            "%s: decoded images cannot be saved here (%s); they are decoded at every start", cache, error.strerror
        )
        return decode(files, size, mode)


def _digest(*values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:12]


def decode(files: list[Path], size: Size, mode: str | None) -> np.ndarray:
    images = np.empty(0, np.uint8)
    for row, file in enumerate(tqdm(files, "images", leave=False, disable=not sys.stderr.isatty())):
        pixels = read_image(file, size, mode)
        if not row:
            images = np.empty((len(files), *pixels.shape), np.uint8)
        if pixels.shape != images.shape[1:]:
            first, other = ("x".join(map(str, shape)) for shape in (images.shape[1:], pixels.shape))
            raise InputError(
                f"data.path={file.parent}: the images have several shapes, {first} (channels x height x width, "
                f"{files[0].name}) and {other} ({file.name}); data.size=28 resizes them, data.mode=L or RGB gives "
                "them the same channels"
            )
        images[row] = pixels
    return images


# --- arrays -----------------------------------------------------------------------------------------------------------

LABELS = {"images": "labels", "test_images": "test_labels"}
ORDER = ("train", "test")


class Arrays(OwnImages):
    """A `.npy` of images, or a `.npz` of `images` and, if there are any, `labels`, `test_images`, `test_labels`.

    Images are (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 to 4 channels; uint8, or floats in [0, 1], which are
    rounded to 256 levels. A file with pickled objects is refused and nothing of it is executed.
    """

    expected = "an .npz or .npy file"

    def load(self) -> RawSet:
        what, arrays = self.what, _load_arrays(require_path(self.path, self.expected))
        if "images" not in arrays:
            raise InputError(f"{what}: holds {', '.join(arrays) or 'nothing'}; the images must be called images")
        raw = {name: arrays[name] for name in LABELS if name in arrays}
        from_floats = any(np.issubdtype(array.dtype, np.floating) for array in raw.values())
        scaled = [_as_images(f"{what}: {name}", array) for name, array in raw.items()]
        images = dict(zip(raw, use_full_range(f"{what}: images", scaled, from_floats), strict=True))
        if len({part.shape[1:] for part in images.values()}) > 1:
            raise InputError(f"{what}: images and test_images differ in shape; make them the same")
        labels, names = _as_labels(what, images, arrays)
        splits = {split: (part, labels.get(name)) for split, (name, part) in zip(ORDER, images.items(), strict=False)}
        others = sorted(set(arrays) - {*LABELS, *LABELS.values()})
        log.info("%s: %s%s", what, describe(splits, names), f"; left out: {', '.join(others)}" if others else "")
        return RawSet(splits["train"], splits.get("test"), class_names=names or None)


def _load_arrays(file: Path) -> dict[str, np.ndarray]:
    require_plain(file)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        archived = zipfile.is_zipfile(file)
        size = file.stat().st_size
        if archived:
            with zipfile.ZipFile(file) as archive:
                size = sum(member.file_size for member in archive.infolist())
        if size > memory:
            raise ValueError(f"unpacked it has {size / 1e9:,.0f} GB, this machine {memory / 1e9:,.0f}")
        if not archived:
            return {"images": np.array(np.lib.format.open_memmap(file, mode="r"))}  # a header may claim any size
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


def _as_labels(
    what: str, images: Mapping[str, Tensor], arrays: Mapping[str, np.ndarray]
) -> tuple[dict[str, Tensor], list[str]]:
    """int64 labels (N,) of each array of images, counted from 0, and the classes' names: the values in the file."""
    labels = {name: arrays[of] for name, of in LABELS.items() if of in arrays}
    if labels and labels.keys() != images.keys():
        raise InputError(f"{what}: one of labels and test_labels is missing, or their images; give both or neither")
    for name, values in labels.items():
        count = len(images[name])
        if values.shape != (count,) or values.dtype.kind not in "iub" or values.min() < 0:
            raise InputError(
                f"{what}: {LABELS[name]} has the shape {values.shape} and the type {values.dtype}; give {count} whole "
                "numbers from 0, one for each image"
            )
    if not labels:
        return {}, []
    numbers = {name: values.astype(np.uint64) for name, values in labels.items()}
    classes = np.unique(np.concatenate(list(numbers.values())))
    if len(classes) > MOST_CLASSES:
        raise InputError(f"{what}: labels has {len(classes)} classes; give at most {MOST_CLASSES}")
    codes = {name: torch.from_numpy(np.searchsorted(classes, values)) for name, values in numbers.items()}
    return codes, [str(int(value)) for value in classes]


def _as_images(what: str, array: np.ndarray) -> Tensor:
    """uint8 (N, C, H, W)."""
    if array.ndim == 3:
        array = array[:, None]
    if array.ndim != 4 or not array.size:
        raise InputError(f"{what} has the shape {array.shape}; give (N, H, W), (N, H, W, C) or (N, C, H, W)")
    if _has_channels_last(what, array.shape):
        array = array.transpose(0, 3, 1, 2)
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif np.issubdtype(array.dtype, np.floating):
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= 1):  # NaN fails too
            raise InputError(f"{what} has values from {low:g} to {high:g}; floats must lie in [0, 1]")
        array = (array * array.dtype.type(255)).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise InputError(f"{what} has the type {array.dtype}; give uint8, or floats in [0, 1]")
    return torch.from_numpy(np.ascontiguousarray(array))


def _has_channels_last(what: str, shape: tuple[int, ...]) -> bool:
    """Whether images (N, a, b, c) are (N, H, W, C); raises InputError where neither a nor c can be channels."""
    first, last = shape[1], shape[3]
    if min(first, last) > MOST_CHANNELS:
        raise InputError(f"{what} has the shape {shape}; give 1 to {MOST_CHANNELS} channels, second or last axis")
    if max(first, last) > MOST_CHANNELS:
        return last < first
    channels_last = last in (1, 3) and first not in (1, 3)
    log.info("%s has the shape %s, taken as %s", what, shape, "(N, H, W, C)" if channels_last else "(N, C, H, W)")
    return channels_last
