"""Image files: which of a folder's files are images, and each of them as an array. Imports no torch."""

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vae.errors import InputError, first_line
from vae.files import natural, require_plain

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
GREY = ("1", "L", "LA")  # PIL's modes without colour
MOST_PIXELS = 50_000_000  # of a file: decoded, some 150 MB
MOST_BYTES = 500_000_000
FOREIGN = ("@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX", "lost+found")  # folders made by servers and archives


def walk_images(folder: Path) -> tuple[list[Path], Counter[str]]:
    """The image files below a folder, in natural order, and the number of other files and folders of each kind.

    Links are followed. Hidden folders (`.ipynb_checkpoints`) and those that file servers make are not entered. Raises
    InputError for a folder that cannot be read and a name that is not UTF-8.
    """
    images: list[Path] = []
    left_out: Counter[str] = Counter()

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}); change its permissions") from error

    for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        closed = [name for name in folders if name.startswith(".") or name in FOREIGN or _is_loop(Path(place, name))]
        left_out.update(f"{name}/" for name in closed)
        folders[:] = [name for name in folders if name not in closed]
        for name in names:
            suffix = "hidden" if name.startswith(".") else Path(name).suffix.lower()
            if suffix in SUFFIXES:
                images.append(Path(place, name))
            else:
                left_out[suffix or "without a suffix"] += 1
    for image in images:
        _require_utf8(image)
    return sorted(images, key=lambda image: [natural(part) for part in image.parts]), left_out


def _is_loop(folder: Path) -> bool:
    """Whether a link leads to a folder that holds it."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def _require_utf8(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise InputError(f"{shown}: the name is not UTF-8; rename it") from error


def list_counts(counts: Counter[str]) -> str:
    """`3 .gif, 1 .txt`."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


def read_image(path: Path, size: int | Sequence[int] | None = None, mode: str | None = None) -> np.ndarray:
    """An image file as uint8 (C, H, W), upright as its EXIF says, on white where it is transparent.

    `size` (H, W), or one number for both, resizes the largest centred part of that shape; None leaves it as it is.
    `mode` is `L` (grey) or `RGB`; None: grey where the file holds no colour channels. Raises InputError for a file that
    cannot be read, one of more than 8 bits per channel or several pictures, and one of more than 50 million pixels,
    which is not decoded.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    require_plain(path, MOST_BYTES)
    try:
        with warnings.catch_warnings(), Image.open(path, formats=FORMATS) as opened:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            _require_readable(path, opened)
            image = _on_white(ImageOps.exif_transpose(opened))
    except InputError:
        raise
    except Exception as error:  # broken bytes can fail in any part of a decoder
        unknown = isinstance(error, UnidentifiedImageError)
        reason = f"it is none of {', '.join(FORMATS)}" if unknown else first_line(error)
        raise InputError(
            f"{path}: cannot be read as an image ({reason}); give a PNG or JPEG of 8 bits per channel"
        ) from error
    return to_array(image, size, mode)


def to_array(image: "Image", size: int | Sequence[int] | None = None, mode: str | None = None) -> np.ndarray:
    """PIL's image as uint8 (C, H, W)."""
    from PIL import Image, ImageOps

    image = image.convert(mode or ("L" if image.mode in GREY else "RGB"))
    if size is not None:
        high, wide = (size, size) if isinstance(size, int) else size
        image = ImageOps.fit(image, (wide, high), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)  # (H, W) or (H, W, 3)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _require_readable(path: Path, image: Any) -> None:
    if image.width * image.height > MOST_PIXELS:
        raise InputError(
            f"{path}: has {image.width} x {image.height} pixels, more than {MOST_PIXELS:,}; nothing of it was decoded; "
            "make it smaller"
        )
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:  # MPO: a camera's JPEG with a preview
        raise InputError(f"{path}: holds {image.n_frames} pictures; save the one that you mean in a file of its own")
    if _depth(path, image) > 8:
        raise InputError(
            f"{path}: has more than 8 bits per channel; save it with 8, for example with PIL or ImageMagick"
        )


def _depth(path: Path, image: Any) -> int:
    """Bits per channel as the file says: PIL would drop the lower half of a colour channel without a word."""
    if image.format == "PNG":
        with open(path, "rb") as file:
            return file.read(25)[24]
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (1,)))
    return 8


def _on_white(image: "Image") -> "Image":
    from PIL import Image

    if not image.has_transparency_data:
        return image.convert("RGB") if image.mode == "P" else image
    grey = image.mode == "LA"
    image = image.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return flat.convert("L" if grey else "RGB")
