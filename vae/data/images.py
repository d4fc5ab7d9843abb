"""One image file as an array. Imports no torch."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vae.errors import InputError, first_line

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg")
GREY = ("1", "L", "LA", "I", "F")  # PIL's modes without colour
MOST_PIXELS = 50_000_000  # of a file: decoded, some 150 MB


def read_image(path: Path, size: int | tuple[int, int] | None = None, mode: str | None = None) -> np.ndarray:
    """A PNG or JPEG file as uint8 (C, H, W), upright as its EXIF says, on white where it is transparent.

    `size` (H, W), or one number for both, resizes the largest centred part of that shape; None leaves it as it is.
    `mode` is `L` (grey) or `RGB`; None: grey where the file holds no colour channels. Raises InputError for a file that
    cannot be read, one of 16 bits a channel, and one of more than 50 million pixels, which is not decoded.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings(), Image.open(path, formats=("PNG", "JPEG")) as opened:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            _require_readable(path, opened)
            image = _on_white(ImageOps.exif_transpose(opened))
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; name a PNG or JPEG image") from None
    except Exception as error:  # broken bytes can fail in any part of a decoder
        reason = "it is neither PNG nor JPEG" if isinstance(error, UnidentifiedImageError) else first_line(error)
        raise InputError(
            f"{path}: cannot be read as an image ({reason}); give a PNG or JPEG of 8 bits a channel"
        ) from error
    return to_array(image, size, mode)


def to_array(image: "Image", size: int | tuple[int, int] | None = None, mode: str | None = None) -> np.ndarray:
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
    if image.format == "PNG":
        with open(path, "rb") as file:
            depth = file.read(25)[24]  # PIL would drop the lower half of a colour channel without a word
        if depth == 16:
            raise InputError(f"{path}: has 16 bits a channel; save it with 8, for example with PIL or ImageMagick")


def _on_white(image: "Image") -> "Image":
    from PIL import Image

    if not image.has_transparency_data:
        return image.convert("RGB") if image.mode == "P" else image
    grey = image.mode == "LA"
    image = image.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return flat.convert("L" if grey else "RGB")
