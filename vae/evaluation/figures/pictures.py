"""Figures made of images: float tensors (N, C, H, W) in [0, 1] go in, rows of them come out."""

from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from vae.evaluation.figures.page import Array, Names, as_finite, as_images, as_vector, mosaic


def reconstructions(x: Array, x_hat: Array, caption: str) -> Figure:
    """Images (n, C, H, W) over what the model makes of them (figure 4 of the report)."""
    originals = as_images("x", x)
    return mosaic(
        [originals, as_images("x_hat", x_hat, like=originals)],
        caption,
        above=["Original images", "Reconstructed images"],
    )


def errors(x: Array, x_hat: Array, caption: str) -> Figure:
    """Images (n, C, H, W), their reconstructions, and where the two differ: red too bright, blue too dark."""
    originals = as_images("x", x)
    made = as_images("x_hat", x_hat, like=originals)
    signed = (as_finite("x_hat", x_hat) - originals).mean(axis=1)  # (n, H, W); beyond [0, 1] it is wrong too
    colours = matplotlib.colormaps["RdBu_r"]((signed + 1) / 2)[..., :3].transpose(0, 3, 1, 2)
    sums = [f"{value:.1f}" for value in np.square(as_finite("x_hat", x_hat) - originals).sum(axis=(1, 2, 3))]
    heads = ["Original images", "Reconstructed images", "Error: red too bright, blue too dark; its square's sum below"]
    return mosaic([originals, made, colours], caption, above=heads, below=sums)


def samples(rows: Mapping[str, Array], caption: str) -> Figure:
    """A labelled row of images (n, C, H, W) per entry, the same z in each column."""
    if not rows:
        raise ValueError("rows: empty, nothing to draw")
    drawn: list[np.ndarray] = []
    for label, row in rows.items():
        drawn.append(as_images(f"rows[{label!r}]", row, like=drawn[0] if drawn else None))
    return mosaic(drawn, caption, above=list(rows))


def grid(
    images: Array,
    columns: int,
    caption: str,
    row_labels: Names | None = None,
    column_labels: Names = (),
    x_name: str = "",
    y_name: str = "",
) -> Figure:
    """Images (N, C, H, W) in reading order, with what rows and columns stand for; the last row may be shorter."""
    array = as_images("images", images)
    if columns < 1:
        raise ValueError(f"columns: {columns}, expected at least 1")
    rows = [array[start : start + columns] for start in range(0, len(array), columns)]
    if row_labels is not None and len(row_labels) != len(rows):
        raise ValueError(f"row_labels: {len(row_labels)} labels for {len(rows)} rows")
    return mosaic(rows, caption, left=row_labels or (), below=column_labels, x_name=x_name, y_name=y_name)


def neighbours(samples: Array, nearest: Array, distances: Array, caption: str) -> Figure:
    """Samples (N, C, H, W) over their nearest training images, with the distance (N,) below each pair."""
    drawn = as_images("samples", samples)
    found = as_images("nearest", nearest, like=drawn)
    below = [f"{distance:#.3g}".rstrip(".") for distance in as_vector("distances", distances, len(drawn))]
    return mosaic([drawn, found], caption, above=["Samples", "Nearest training images, distance below"], below=below)
