"""Figures made of images: float tensors (N, C, H, W) in [0, 1] go in, rows of them come out."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from vae.evaluation.draws import quantile_levels
from vae.evaluation.figures.page import MARGIN, Array, Names, as_array, drawn, page, signed, text_width

CELL, PAGE = 96, 1216  # pixels: the largest side of a drawn image, the widest run of images in a row
LINE = 24  # pixels of a line of labels
LABEL = FontProperties(size=10)


@drawn
def reconstructions(x: Array, x_hat: Array, caption: str) -> Figure:
    """Images (n, C, H, W) over what the model makes of them (figure 4 of the report)."""
    originals, made = as_images("x", x), as_images("x_hat", x_hat)
    return mosaic({"Original images": originals, "Reconstructed images": made}, len(originals), caption)


@drawn
def errors(x: Array, x_hat: Array, caption: str) -> Figure:
    """Images (n, C, H, W), their reconstructions, and where the two differ: red too bright, blue too dark."""
    originals, made = as_images("x", x), as_images("x_hat", x_hat)
    difference = as_array("x_hat", x_hat) - originals  # beyond [0, 1] it is wrong too
    colours = matplotlib.colormaps["RdBu_r"]((difference.mean(axis=1) + 1) / 2)[..., :3].transpose(0, 3, 1, 2)
    head = "Error (red: too bright, blue: too dark); squared error below"
    rows = {"Original images": originals, "Reconstructed images": made, head: colours}
    below = [f"{value:.1f}" for value in np.square(difference).sum(axis=(1, 2, 3))]
    return mosaic(rows, len(originals), caption, below=below)


@drawn
def samples(rows: Mapping[str, Array], caption: str) -> Figure:
    """A labelled row of images (n, C, H, W) per entry, the same z in each column."""
    images = {label: as_images(f"rows[{label!r}]", row) for label, row in rows.items()}
    return mosaic(images, max(map(len, images.values())), caption)


@drawn
def grid(
    images: Array,
    columns: int,
    caption: str,
    row_labels: Names = (),
    column_labels: Names = (),
    x_name: str = "",
    y_name: str = "",
) -> Figure:
    """Images (N, C, H, W) in reading order, with what rows and columns stand for; the last row may be shorter."""
    return mosaic({"": as_images("images", images)}, columns, caption, row_labels, column_labels, x_name, y_name)


@drawn
def traversals(images: Array, quantiles: Array, latents: Sequence[int], caption: str) -> Figure:
    """A row per latent, which moves through its `quantiles` (steps, D); values below if they suit all rows."""
    at = as_array("quantiles", quantiles, 2)[:, list(latents)]
    same = np.ptp(at, axis=1).max() < 0.005
    percent = [f"{100 * level:.0f} %" for level in quantile_levels(len(at)).tolist()]
    labels = [signed(value, 2) for value in at[:, 0]] if same else percent
    name = "value of the latent, from the 2 % to the 98 % quantile of the prior" if same else "quantile of the prior"
    rows = [f"z{latent}" for latent in latents]
    return mosaic({"": as_images("images", images)}, len(at), caption, rows, labels, name)


@drawn
def manifold(images: Array, quantiles: Array, latents: tuple[int, int], caption: str) -> Figure:
    """The plane of two latents at their `quantiles` (steps, D): the first grows to the right, the second upwards."""
    at = as_array("quantiles", quantiles, 2)
    across, up = ([signed(value, 2) for value in at[:, latent]] for latent in latents)
    x_name, y_name = (f"z{latent}" for latent in latents)
    return mosaic({"": as_images("images", images)}, len(at), caption, up[::-1], across, x_name, y_name)


@drawn
def neighbours(samples: Array, nearest: Array, distances: Array, caption: str) -> Figure:
    """Samples (N, C, H, W) over their nearest training images, with the distance (N,) below each pair."""
    generated, train = as_images("samples", samples), as_images("nearest", nearest)
    below = [f"{distance:#.3g}".rstrip(".") for distance in as_array("distances", distances, 1)]
    rows = {"Samples": generated, "Nearest training images, distance below": train}
    return mosaic(rows, len(generated), caption, below=below)


def as_images(name: str, value: Any) -> np.ndarray:
    """Float images (N, C, H, W) clipped to [0, 1], not rescaled."""
    return as_array(name, value, 4).clip(0, 1)


def mosaic(
    bands: Mapping[str, np.ndarray],
    columns: int,
    caption: str,
    left: Names = (),
    below: Names = (),
    x_name: str = "",
    y_name: str = "",
) -> Figure:
    """Bands of images (n, C, H, W) under their heads, with labels at the left of the rows and below the last band.

    Every axes is as many pixels wide and high as its images take, so that each of their pixels is a square.
    """
    *_, high, wide = next(iter(bands.values())).shape
    scale = min(CELL / max(high, wide), PAGE / (columns * wide))
    scale = int(scale) if scale >= 1 else scale
    gap = max(1, round(3 / scale))  # in the images' own pixels
    sheets = {head: _tiled(images, columns, gap) for head, images in bands.items()}
    ruler, _ = page(PAGE, PAGE, "")
    labels = max((text_width(ruler, text, LABEL) + 10 for text in left), default=0)
    start = round(MARGIN + LINE * bool(y_name) + labels)
    contents = [start + round(scale * sheet.shape[1]) for sheet in sheets.values()]
    width = max(*contents, *(round(text_width(ruler, head, LABEL)) + MARGIN for head in bands), 544) + MARGIN
    heights = [round(scale * sheet.shape[0]) for sheet in sheets.values()]
    height = sum(heights) + (LINE + 6) * sum(map(bool, sheets)) + LINE * (bool(below) + bool(x_name)) + MARGIN + 8
    figure, foot = page(width, height, caption)
    top = height + foot - MARGIN
    for (head, sheet), tall in zip(sheets.items(), heights, strict=True):
        top -= (LINE + 6) * bool(head) + tall
        box = (start, top, round(scale * sheet.shape[1]), tall)
        place = np.divide(box, (width, height + foot, width, height + foot)).tolist()
        axis = figure.add_axes(place, frame_on=False, xticks=[], yticks=[])
        axis.set_title(head, font=LABEL, pad=4)
        axis.imshow(sheet, vmin=0, vmax=1, aspect="auto", interpolation="none" if scale >= 1 else "auto")
    axis.set(xlabel=x_name, ylabel=y_name)
    axis.tick_params(length=0)
    axis.set_xticks(_middles(below, wide, gap), below)
    axis.set_yticks(_middles(left, high, gap), left)
    return figure


def _middles(labels: Names, size: int, gap: int) -> np.ndarray:
    return np.arange(len(labels)) * (size + gap) + (size - 1) / 2


def _tiled(images: np.ndarray, columns: int, gap: int) -> np.ndarray:
    """(n, C, H, W) in reading order as one picture (h, w, C), or (h, w) where C is 1, `gap` white pixels between."""
    count, channels, high, wide = images.shape
    rows = -(-count // columns)
    cells = np.ones((rows * columns, channels, high + gap, wide + gap))
    cells[:count, :, :high, :wide] = images
    sheet = cells.reshape(rows, columns, *cells.shape[1:]).transpose(0, 3, 1, 4, 2)
    sheet = sheet.reshape(rows * (high + gap), columns * (wide + gap), channels)[:-gap, :-gap]
    return sheet[..., 0] if channels == 1 else sheet
