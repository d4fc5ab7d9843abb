"""A person's own pictures as images for a model: found, upright, cropped to what is drawn, light on dark."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vae.data.images import SUFFIXES, read_image, walk_images
from vae.errors import InputError
from vae.files import expand

LONGEST = 512  # pixels of a side, after which nothing of what is drawn is gained
DRAWN = 20 / 28  # the share of MNIST's side that its digits fill
BLACK = 16  # a border below this grey level has no paper to take away
PAPER = 0.2  # what is darker than this share of the ink is paper and noise
INK = 127  # what is lighter is drawn
SPECK = 0.02  # a spot smaller than this share of the largest one is dirt


def find_images(paths: Sequence[str]) -> list[Path]:
    """Image files, and those below folders in natural order; raises InputError for a path without any."""
    images: list[Path] = []
    for path in map(expand, paths):
        inside = walk_images(path)[0] if path.is_dir() else [path]
        if not inside:
            raise InputError(f"{path}: holds no image; name a folder with {', '.join(SUFFIXES)} files, or such files")
        images += inside
    return images


def fit_image(path: Path, shape: tuple[int, ...], dark: bool) -> tuple[np.ndarray, str]:
    """uint8 (C, H, W) as a model of images of this shape takes it, and what was done to it, in words.

    Grey: an image of another size is cropped to what is drawn, so that it fills as much as MNIST's digits do, with its
    centre of mass in the middle; the shades of its paper are taken away, where its border is not black. It is inverted
    where it is dark on light and the model's images are light on dark (`dark`). RGB: the largest centred part. Masks
    of 0 and 1 become black and white. Raises InputError for a file that is no image, or in which nothing is drawn.
    """
    channels, *size = shape
    if channels == 3:
        return read_image(path, (size[0], size[1]), "RGB"), "resized"
    pixels = read_image(path, None, "L")[0]  # (H, W)
    done = []
    if pixels.max() == 1:
        pixels, done = pixels * 255, ["0 and 1 taken as black and white"]
    if np.median(_border(pixels)) > 127 and dark:
        pixels, done = 255 - pixels, [*done, "inverted"]
    if pixels.shape != tuple(size):
        if dark:
            smaller = _smaller(pixels)
            drawn = smaller if np.median(_border(smaller)) < BLACK else _without_paper(smaller)
            if drawn.max() <= INK:
                raise InputError(f"{path}: nothing is drawn in it, or nothing that stands out from its surroundings")
            pixels, done = _crop(drawn, size), [*done, "cropped to what is drawn"]
        pixels, done = _resize(pixels, (size[0], size[1]), stretch=dark), [*done, "resized"]
    return np.repeat(pixels[None], channels, 0), ", ".join(done) or "as it is"


def _border(pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def _smaller(pixels: np.ndarray) -> np.ndarray:
    scale = LONGEST / max(pixels.shape)
    return pixels if scale >= 1 else _resize(pixels, tuple(max(1, round(n * scale)) for n in pixels.shape))


def _resize(pixels: np.ndarray, size: tuple[int, ...], stretch: bool = False) -> np.ndarray:
    """uint8 (H, W), each pixel a mean over the area that it covers; `stretch`: the lightest becomes white."""
    from PIL import Image

    small = np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BICUBIC))
    return (small * (255 / max(small.max(), 1))).astype(np.uint8) if stretch else small


def _without_paper(pixels: np.ndarray) -> np.ndarray:
    """uint8 (H, W): what is narrower than a third of the picture and lighter than its surroundings; shadows go."""
    from scipy import ndimage

    ink = ndimage.white_tophat(pixels.astype(np.float32), max(3, min(pixels.shape) // 3))
    most = np.quantile(ink, 0.995)
    if most < 16:  # nothing is drawn, or something wider: a garment, a face
        ink, most = pixels.astype(np.float32) - np.median(_border(pixels)), max(float(pixels.max()), 1.0)
    return (255 * ((ink / most - PAPER) / (1 - PAPER)).clip(0, 1)).astype(np.uint8)


def _crop(pixels: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """The part around what is drawn, of the shape `size` at another scale, with black where the picture ends."""
    from scipy import ndimage

    spots, _ = ndimage.label(pixels > INK)
    areas = np.bincount(spots.ravel())
    areas[0] = 0
    kept = np.isin(spots, np.flatnonzero(areas >= SPECK * areas.max()))
    rows, columns = (np.flatnonzero(kept.any(axis)) for axis in (1, 0))
    middle = ndimage.center_of_mass(pixels * ndimage.binary_dilation(kept, iterations=2))
    scale = max(len_ / (DRAWN * n) for len_, n in zip((np.ptp(rows) + 1, np.ptp(columns) + 1), size, strict=True))
    high, wide = (max(1, round(scale * n)) for n in size)
    padded = np.pad(pixels, ((high, high), (wide, wide)))
    top, left = round(middle[0] + 0.5 + high / 2), round(middle[1] + 0.5 + wide / 2)
    return padded[top : top + high, left : left + wide]
