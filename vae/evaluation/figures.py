"""Pictures of a model: arrays or CPU tensors go in, a `matplotlib.figure.Figure` comes out.

Pyplot is never touched: it keeps every figure alive and is not safe in threads. Each picture carries its
caption, because a PNG travels without the page it was made for. Whatever is empty, not finite or of the wrong
shape raises a ValueError that names the argument.
"""

import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from vae.files import whole_file

Array = torch.Tensor | np.ndarray | Sequence[float] | float

Names = Sequence[str]

Series = Sequence[tuple[int, float]]

Grid = Literal["both", "x", "y", ""]

DPI = 128  # a power of two: pixels / DPI * DPI is exact, so images land on whole pixels of the PNG

INK, MUTED, FAINT = "#222222", "#666666", "#dddddd"

RED, BLUE, IDLE = "#c8372d", "#2a6fbb", "#b4b4b4"

# Petroff (2021): at least 17 apart in CIELAB under every colour blindness, where tab10 comes down to 5.
PALETTE = [
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#94a4a2",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
]

HALO = [withStroke(linewidth=3, foreground="white")]  # keeps text readable on dots and lines

MARGIN = 16  # pixels of white around a picture

CELL, PAGE = 96, 1216  # pixels: the largest side of a drawn image, the widest run of images in a row

CAPTION, LABEL = FontProperties(size=8.5), FontProperties(size=10)


def _finite(name: str, value: Any) -> np.ndarray:
    """The value as float64, refused when it is empty or holds a nan or an infinity."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().double().numpy()
    array = np.asarray(value, dtype=np.float64)
    if array.size == 0:
        raise ValueError(f"{name}: empty, nothing to draw")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        first = tuple(int(i) for i in bad[0])
        found = f"{len(bad)} of {array.size} values are not finite"
        raise ValueError(f"{name}: {found}, the first is {array[first]} at index {first}")
    return array


def _vector(name: str, value: Any, length: int | None = None) -> np.ndarray:
    array = _finite(name, value)
    if array.ndim != 1 or length not in (None, len(array)):
        raise ValueError(f"{name}: shape {array.shape}, expected ({'n' if length is None else length},)")
    return array


def _images(name: str, value: Any, like: np.ndarray | None = None) -> np.ndarray:
    """Float images (N, C, H, W) clipped to [0, 1]; with `like`, of that very shape."""
    if not str(getattr(value, "dtype", "float")).removeprefix("torch.").startswith(("float", "bfloat")):
        raise ValueError(f"{name}: {value.dtype} images, expected floats in [0, 1]")
    array = _finite(name, value)
    if array.ndim != 4 or array.shape[1] not in (1, 3):
        raise ValueError(f"{name}: shape {array.shape}, expected (N, C, H, W) with C 1 or 3")
    if like is not None and array.shape != like.shape:
        raise ValueError(f"{name}: shape {array.shape}, expected {like.shape}")
    return array.clip(0, 1)


def _series(name: str, value: Series) -> tuple[np.ndarray, np.ndarray]:
    """(epoch, value) pairs as two vectors."""
    array = _finite(name, value)
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"{name}: shape {array.shape}, expected a list of (epoch, value)")
    return array[:, 0], array[:, 1]


def _classes(labels: Any, length: int, names: Names | None) -> tuple[np.ndarray, list[str]]:
    """Integer labels (length,) and a name for each class up to the largest."""
    array = _vector("labels", labels, length)
    if (array < 0).any() or (array % 1).any():
        raise ValueError(f"labels: expected integers from 0, found {array[(array < 0) | (array % 1 > 0)][0]:g}")
    count = int(array.max()) + 1
    if names is not None and len(names) < count:
        raise ValueError(f"class_names: {len(names)} names, but a label is {count - 1}")
    return array.astype(int), [str(name) for name in names] if names else [str(k) for k in range(count)]


def _colours(count: int) -> np.ndarray:
    """RGB (count, 3): the palette, or evenly spaced hues where its ten colours do not suffice."""
    if count <= len(PALETTE):
        return np.array([to_rgb(colour) for colour in PALETTE[:count]])
    return matplotlib.colormaps["turbo"](np.linspace(0.02, 0.98, count))[:, :3]


def _text_width(figure: Figure, text: str, font: FontProperties) -> float:
    """Width in pixels."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    return canvas.get_renderer().get_text_width_height_descent(text, font, False)[0]


def _wrap(figure: Figure, text: str, font: FontProperties, width: float) -> list[str]:
    """Lines no wider than `width` pixels, broken between words, and inside a word only if it is wider."""
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            joined = f"{line} {word}".strip()
            if _text_width(figure, joined, font) <= width:
                line = joined
                continue
            *pieces, last = _pieces(figure, word, font, width)
            lines += [line, *pieces] if line else pieces
            line = last
        lines.append(line)
    return lines


def _pieces(figure: Figure, word: str, font: FontProperties, width: float) -> list[str]:
    """The word cut into runs of letters that fit."""
    pieces = []
    while _text_width(figure, word, font) > width and len(word) > 1:
        lengths = range(2, len(word))
        fits = 1 + bisect_right(lengths, width, key=lambda n: _text_width(figure, word[:n], font))
        pieces.append(word[:fits])
        word = word[fits:]
    return [*pieces, word]


def _line_height(font: FontProperties) -> float:
    """Pixels from one line to the next."""
    return 1.35 * font.get_size_in_points() * DPI / 72


def _page(width: int, height: int, caption: str) -> tuple[Figure, int]:
    """A figure of `width` by `height` pixels and, added below them, the caption's pixels (also returned)."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    lines = _wrap(figure, caption, CAPTION, width - 2 * MARGIN)
    foot = round(len(lines) * _line_height(CAPTION)) + MARGIN
    figure.set_size_inches(width / DPI, (height + foot) / DPI)
    style: dict[str, Any] = {
        "fontproperties": CAPTION,
        "color": MUTED,
        "parse_math": False,
        "linespacing": 1.35,
    }
    y = (foot - MARGIN / 4) / (height + foot)
    text = figure.text(MARGIN / width, y, "\n".join(lines), va="top", gid="caption", **style)
    text.set_in_layout(False)
    return figure, foot


def _chart(
    width: int, height: int, caption: str, *, columns: int = 1, compress: bool = False
) -> tuple[Figure, list[Axes]]:
    """A page with `columns` bare axes in a row, to be laid out above the caption."""
    figure, foot = _page(width, height, caption)
    low = foot / (height + foot)
    pad = MARGIN / DPI
    engine = ConstrainedLayoutEngine(rect=(0, low, 1, 1 - low), h_pad=pad, w_pad=pad, compress=compress)
    figure.set_layout_engine(engine)
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _lay_out(figure: Figure) -> None:
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)


def _settled(figure: Figure) -> Figure:
    """The figure with its layout computed once and frozen: savefig would compute it twice more."""
    _lay_out(figure)
    figure.set_layout_engine("none")
    return figure


def _dress(axis: Axes, title: str, x: str, y: str, note: str = "", grid: Grid = "both") -> None:
    """Title, a small note under it, quiet axes, a light grid behind the data."""
    pad = 20 if note else 7
    axis.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=pad, parse_math=False)
    where: dict[str, Any] = {"xy": (0, 1), "xycoords": "axes fraction", "textcoords": "offset points"}
    axis.annotate(note, xytext=(0, 6), fontsize=8.5, color=MUTED, parse_math=False, **where)
    axis.set_xlabel(x, fontsize=9.5, color=INK, parse_math=False)
    axis.set_ylabel(y, fontsize=9.5, color=INK, parse_math=False)
    axis.tick_params(which="both", labelsize=8.5, color=MUTED, labelcolor=INK)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(MUTED)
    axis.set_axisbelow(True)
    if grid:
        axis.grid(visible=True, axis=grid, color=FAINT, linewidth=0.6)


def _colour_bar(figure: Figure, mappable: ScalarMappable, axes: Sequence[Axes], label: str, **settings: Any) -> None:
    bar = figure.colorbar(mappable, ax=axes, fraction=0.05, pad=0.03, **settings)
    bar.set_label(label, fontsize=9.5, color=INK)
    bar.ax.tick_params(labelsize=8.5, color=MUTED, labelcolor=INK)
    bar.outline.set_visible(False)


def _legend(axis: Axes, **settings: Any) -> None:
    legend = axis.legend(fontsize=8.5, labelcolor=INK, facecolor="white", edgecolor="none", framealpha=0.9, **settings)
    legend.set_zorder(6)


def _cell(height: int, width: int, columns: int) -> tuple[int, int]:
    """An image's size on the page: whole pixels per pixel where they fit, so that each stays a square."""
    scale = min(CELL / max(height, width), PAGE / (columns * width))
    scale = int(scale) if scale >= 1 else scale
    return max(1, round(height * scale)), max(1, round(width * scale))


def _mosaic(rows: Sequence[np.ndarray], caption: str, above: Names = (), left: Names = (), below: Names = ()) -> Figure:
    """Rows of images (n, C, H, W), with labels above or at the left of each row and a line below each column.

    One axes counts in the PNG's own pixels: images are placed exactly, and hundreds stay cheap.
    """
    columns, gap = max(len(row) for row in rows), 4 if above else 2
    high, wide = _cell(rows[0].shape[2], rows[0].shape[3], columns)
    ruler, _ = _page(MARGIN, MARGIN, "")
    start = MARGIN + (max(int(_text_width(ruler, text, LABEL)) for text in left) + 10 if left else 0)
    width = max(start + columns * (wide + gap) - gap + MARGIN, 560)
    heads = ["\n".join(_wrap(ruler, text, LABEL, width - 2 * MARGIN)) for text in above]
    tops, end = _tops(heads, len(rows), high, gap)
    figure, axis = _canvas(width, end + (round(_line_height(LABEL)) if below else 0), caption)
    for row, top in zip(rows, tops, strict=True):
        _place(axis, row, (start, top), (high, wide), gap)
    for text, top in zip(heads, tops, strict=False):
        _label(axis, MARGIN, top - 5, text, ha="left", va="bottom")
    for text, top in zip(left, tops, strict=False):
        _label(axis, start - 10, top + high / 2, text, ha="right", va="center")
    for index, text in enumerate(below):
        _label(axis, start + index * (wide + gap) + wide / 2, end - 6, text, ha="center", va="top")
    return figure


def _tops(heads: Names, count: int, high: int, gap: int) -> tuple[list[int], int]:
    """The first pixel of each of `count` rows, under its head if there are heads, and the end of the page."""
    tops, y = [], MARGIN
    for index in range(count):
        y += round((heads[index].count("\n") + 1) * _line_height(LABEL)) + 4 if heads else 0
        tops.append(y)
        y += high + (12 if heads else gap)
    return tops, y + (0 if heads else 12 - gap)


def _label(axis: Axes, x: float, y: float, text: str, **settings: Any) -> None:
    axis.text(x, y, text, fontproperties=LABEL, color=INK, linespacing=1.35, parse_math=False, **settings)


def _canvas(width: int, height: int, caption: str) -> tuple[Figure, Axes]:
    """A page under one axes whose unit is a pixel and whose y grows downwards."""
    figure, foot = _page(width, height, caption)
    axis = figure.add_axes((0, foot / (height + foot), 1, height / (height + foot)))
    axis.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axis.set_axis_off()
    return figure, axis


def _place(axis: Axes, row: np.ndarray, corner: tuple[int, int], size: tuple[int, int], gap: int) -> None:
    """Draws the images (n, C, H, W) side by side, the first with its upper left corner at (x, y)."""
    (left, top), (high, wide) = corner, size
    style: dict[str, Any] = {
        "cmap": "gray",
        "vmin": 0,
        "vmax": 1,
        "interpolation": "nearest",
        "aspect": "auto",
    }
    for index, image in enumerate(row):
        x = left + index * (wide + gap)
        pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)  # (H, W) or (H, W, 3)
        axis.imshow(pixels, extent=(x, x + wide, top + high, top), **style)


def reconstructions(x: Array, x_hat: Array, caption: str) -> Figure:
    """Images (n, C, H, W) over what the model makes of them (figure 4 of the report)."""
    images = _images("x", x)
    return _mosaic(
        [images, _images("x_hat", x_hat, like=images)],
        caption,
        above=["Original images", "Reconstructed images"],
    )


def samples(rows: Mapping[str, Array], caption: str) -> Figure:
    """A labelled row of images (n, C, H, W) per entry, the same z in each column (figures 7 and 8)."""
    if not rows:
        raise ValueError("rows: empty, nothing to draw")
    images: list[np.ndarray] = []
    for label, row in rows.items():
        images.append(_images(f"rows[{label!r}]", row, like=images[0] if images else None))
    return _mosaic(images, caption, above=list(rows))


def grid(images: Array, columns: int, caption: str, row_labels: Names | None = None) -> Figure:
    """Images (N, C, H, W) in reading order; the last row may be shorter."""
    array = _images("images", images)
    if columns < 1:
        raise ValueError(f"columns: {columns}, expected at least 1")
    rows = [array[start : start + columns] for start in range(0, len(array), columns)]
    if row_labels is not None and len(row_labels) != len(rows):
        raise ValueError(f"row_labels: {len(row_labels)} labels for {len(rows)} rows")
    return _mosaic(rows, caption, left=row_labels or ())


def neighbours(samples: Array, nearest: Array, distances: Array, caption: str) -> Figure:
    """Samples (N, C, H, W) over their nearest training images, with the distance (N,) below each pair."""
    drawn = _images("samples", samples)
    found = _images("nearest", nearest, like=drawn)
    below = [f"{distance:#.3g}".rstrip(".") for distance in _vector("distances", distances, len(drawn))]
    return _mosaic([drawn, found], caption, above=["Samples", "Nearest training images, distance below"], below=below)


def _curve(axis: Axes, epochs: np.ndarray, values: np.ndarray, colour: str, **settings: Any) -> None:
    """A line over epochs; few points are shown as such, and one alone gets room on both sides."""
    mark = {"marker": "o", "markersize": 4} if len(epochs) <= 20 else {}
    axis.plot(epochs, values, **{"color": colour, "linewidth": 1.8, **mark, **settings})
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if len(epochs) == 1:
        axis.set_xlim(epochs[0] - 1, epochs[0] + 1)
        axis.set_xticks(epochs)


def _endings(epochs: np.ndarray, values: np.ndarray) -> str:
    best = values.argmin()
    last = f"{values[-1]:.4g} at epoch {epochs[-1]:g}"
    if values[best] == values[-1]:
        return f"{last}, the lowest"
    return f"{last}, lowest {values[best]:.4g} at {epochs[best]:g}"


def losses(history: Mapping[str, Series], caption: str, baselines: Mapping[str, float] | None = None) -> Figure:
    """Loss per image over epochs: (a) train, red, and (b) dev, blue (figure 5 of the report).

    `history["train_eval"]`, when there, is the same model with dropout off on training images: dashed beside
    dev, with which it compares. `baselines` are horizontal lines in (b); those that would leave the curve less
    than a third of the panel are only named, with an arrow to their side.
    """
    train, dev = (_series(f"history[{key!r}]", history.get(key, [])) for key in ("train", "dev"))
    figure, (first, second) = _chart(1216, 480, caption, columns=2)
    _dress(first, "(a) Train loss", "epoch", "loss per image", _endings(*train))
    _dress(second, "(b) Dev loss", "epoch", "loss per image", _endings(*dev))
    _curve(first, *train, RED)
    _curve(second, *dev, BLUE, label="dev", zorder=4)
    seen = dev[1]
    if len(history.get("train_eval", ())):
        same = _series("history['train_eval']", history["train_eval"])
        _curve(second, *same, RED, label="train images, dropout off", linestyle="--", linewidth=1.3, zorder=3)
        _legend(second)
        seen = np.concatenate([seen, same[1]])
    if baselines:
        heights = _vector("baselines", list(baselines.values()))
        second.set_ylim(_view(seen, heights, squeezable=len(dev[1]) == 1))
        _draw_baselines(figure, second, list(baselines), heights)
    return _settled(figure)


def _view(curve: np.ndarray, baselines: np.ndarray, squeezable: bool) -> tuple[float, float]:
    """Limits that hold the curve and, nearest first, the baselines that leave it a third of the height."""
    low, high = curve.min(), curve.max()
    distance = np.maximum(low - baselines, baselines - high)
    for value in baselines[np.argsort(distance, kind="stable")]:
        wider = min(low, value), max(high, value)
        if not squeezable and 0 < np.ptp(curve) < (wider[1] - wider[0]) / 3:
            break
        low, high = wider
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - pad, high + pad


def _draw_baselines(figure: Figure, axis: Axes, names: Names, values: np.ndarray) -> None:
    """Dotted lines at the values, named at the right; the names are moved apart and led to their lines."""
    _lay_out(figure)  # the axes' height is known only once it is laid out
    points = axis.bbox.height * 72 / DPI
    size = min(8.5, points / (1.4 * len(names)))
    low, high = axis.get_ylim()
    order = np.argsort(values, kind="stable")
    true = (values[order] - low) / (high - low)  # fractions of the axes' height
    apart = _spread(true.clip(0, 1), 1.4 * size / points)
    for index, at, shown in zip(order, true, apart, strict=True):
        inside = 0 <= at <= 1
        arrow = "" if inside else "\u2191 " if at > 1 else "\u2193 "
        name = f"{arrow}{names[index]}: {values[index]:.4g}"
        where: dict[str, Any] = {"transform": axis.transAxes, "clip_on": False}
        axis.text(1.045, shown, name, fontsize=size, color=MUTED, va="center", parse_math=False, **where)
        if inside:
            axis.axhline(values[index], color=MUTED, linewidth=1, linestyle=":", zorder=2)
            axis.plot([1, 1.035], [at, shown], color=MUTED, linewidth=0.7, scalex=False, scaley=False, **where)


def _spread(wanted: np.ndarray, gap: float) -> np.ndarray:
    """Sorted fractions moved at least `gap` apart, upwards first and down again from the top."""
    out = wanted.astype(float)
    for index in range(1, len(out)):
        out[index] = max(out[index], out[index - 1] + gap)
    ceiling = 1.0
    for index in reversed(range(len(out))):
        out[index] = min(out[index], ceiling)
        ceiling = out[index] - gap
    return out


def sigma_history(history: Series, caption: str, label: str = "decoder's mean sigma'") -> Figure:
    """A positive quantity over epochs; the y axis is logarithmic when it spans more than a decade."""
    epochs, values = _series("history", history)
    figure, (axis,) = _chart(820, 440, caption)
    title = f"{label[:1].upper()}{label[1:]} over training"
    _dress(axis, title, "epoch", label, _endings(epochs, values))
    _curve(axis, epochs, values, BLUE)
    if values.min() > 0 and values.max() > 10 * values.min():
        _log_y(axis, few=values.max() < 1000 * values.min())
    return _settled(figure)


def _log_y(axis: Axes, few: bool) -> None:
    """A logarithmic y axis in plain text: the usual 10^k goes through a parser that threads would share."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def rate_distortion(rate: Array, distortion: Array, epochs: Array, caption: str) -> Figure:
    """Training in the plane of Alemi et al. (2018), nats per image; rate + distortion = -ELBO."""
    r = _vector("rate", rate)
    d, when = _vector("distortion", distortion, len(r)), _vector("epochs", epochs, len(r))
    figure, (axis,) = _chart(900, 640, caption)
    x, y = "rate KL (nats per image)", "distortion -E[log p(x|z)] (nats per image)"
    _dress(axis, "Rate and distortion", x, y, "grey lines: equal -ELBO = rate + distortion, in nats", grid="")
    axis.set(xlim=_padded(r), ylim=_padded(d))
    _diagonals(axis)
    axis.plot(r, d, color=MUTED, linewidth=1, zorder=3)
    norm = Normalize(when.min(), max(when.max(), when.min() + 1))
    dots = axis.scatter(r, d, c=when, cmap="viridis", norm=norm, s=22, zorder=4)
    end = f"epoch {when[-1]:g}: rate {r[-1]:.4g} + distortion {d[-1]:.4g} = {r[-1] + d[-1]:.4g} nats"
    axis.plot(r[-1:], d[-1:], "*", markersize=15, color=RED, markeredgecolor="white", zorder=5, label=end)
    _colour_bar(figure, dots, [axis], "epoch", ticks=MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    _legend(axis, loc="best")
    return _settled(figure)


def _padded(values: np.ndarray) -> tuple[float, float]:
    pad = 0.1 * np.ptp(values) or 0.05 * abs(values[0]) or 1.0
    return values.min() - pad, values.max() + pad


def _diagonals(axis: Axes) -> None:
    """Lines x + y = constant at round constants, each named where it leaves the axes."""
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    levels = [c for c in MaxNLocator(9).tick_values(left + bottom, right + top) if left + bottom < c < right + top]
    lines = [[(left, level - left), (right, level - right)] for level in levels]
    axis.add_collection(LineCollection(lines, colors=FAINT, linewidths=0.9, zorder=1), autolim=False)
    for level in levels:
        x = min(right, level - bottom)
        if x - left < 0.1 * (right - left) or level - x > top - 0.05 * (top - bottom):
            continue  # a corner has no room for the number
        axis.annotate(
            f"{level:g}",
            (x, level - x),
            xytext=(-3, 3),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=7.5,
            color=MUTED,
        )


def latents(mu: Array, labels: Array, caption: str, class_names: Names | None = None) -> Figure:
    """Latent means (N, D), one colour a class (figure 6 of the report).

    D = 1 is shown as a histogram per class, D = 2 as it is, more as the plane of its first two principal
    components, with the share of the variance that each keeps.
    """
    points = _finite("mu", mu)
    if points.ndim != 2:
        raise ValueError(f"mu: shape {points.shape}, expected (N, D)")
    classes, names = _classes(labels, len(points), class_names)
    if points.shape[1] == 1:
        return _ridges(points[:, 0], classes, names, caption)
    plane, axes_names = (points, ["latent mean 1", "latent mean 2"]) if points.shape[1] == 2 else _pca(points)
    return _plane(plane, classes, names, axes_names, caption)


def _pca(points: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The first two principal components (N, 2) of (N, D) and their names, with % of variance."""
    from sklearn.decomposition import PCA

    if len(points) < 2:
        raise ValueError("mu: 1 image, a principal component needs at least 2")
    if not np.ptp(points, axis=0).any():  # collapsed to a point: no direction, and the ratio would be 0 / 0
        return points[:, :2] * 0, [f"principal component {k} (no variance)" for k in (1, 2)]
    pca = PCA(n_components=2, svd_solver="full").fit(points)
    shares = 100 * pca.explained_variance_ratio_
    names = [f"principal component {k} ({share:.1f} % of variance)" for k, share in enumerate(shares, start=1)]
    return pca.transform(points), names


def _plane(points: np.ndarray, classes: np.ndarray, names: Names, axes_names: Names, caption: str) -> Figure:
    figure, (axis,) = _chart(900, 800, caption)
    _dress(axis, "Latent means by class", axes_names[0], axes_names[1], f"{len(points):,} images")
    colours = _colours(len(names))
    # One call in the order given: a call per class would bury the first classes under the last.
    size, alpha = float(np.clip(24_000 / len(points), 5, 30)), 0.9 if len(points) < 500 else 0.6
    axis.scatter(points[:, 0], points[:, 1], c=colours[classes], s=size, alpha=alpha, linewidths=0)
    axis.set_aspect("equal", adjustable="datalim")
    present = np.unique(classes)
    if all(len(names[k]) <= 3 for k in present):
        _name_medians(axis, {names[k]: np.median(points[classes == k], axis=0) for k in present}, np.ptp(points))
    dots = [Line2D([], [], marker="o", linestyle="", markersize=6, color=colours[k]) for k in present]
    text = {"fontsize": 9, "title": "class", "title_fontsize": 9, "labelcolor": INK, "frameon": False}
    figure.legend(dots, [names[k] for k in present], loc="outside right upper", ncols=1 + len(dots) // 31, **text)
    return _settled(figure)


def _name_medians(axis: Axes, medians: Mapping[str, np.ndarray], span: float) -> None:
    """Short class names on the plane, for eyes that cannot tell the colours; none is put on another."""
    placed: list[np.ndarray] = []
    for name, median in medians.items():
        if any((np.abs(median - other) < 0.03 * span).all() for other in placed):
            continue
        placed.append(median)
        x, y = median
        text = axis.text(x, y, name, fontsize=11, fontweight="bold", color=INK, ha="center", va="center")
        text.set(path_effects=HALO, zorder=5, parse_math=False)


def _ridges(values: np.ndarray, classes: np.ndarray, names: Names, caption: str) -> Figure:
    """A histogram per class, one above the other, each scaled to its own peak."""
    present, colours = np.unique(classes), _colours(len(names))
    figure, (axis,) = _chart(900, 160 + 56 * len(present), caption)
    _dress(axis, "Latent mean by class", "latent mean", "class", note=f"{len(values):,} images", grid="x")
    low, high = _padded(values)
    edges = np.linspace(low, high, 81)
    for row, k in enumerate(reversed(present)):
        counts = np.histogram(values[classes == k], edges)[0]
        heights = row + 0.88 * counts / counts.max()
        axis.stairs(heights, edges, baseline=row, fill=True, color=(*colours[k], 0.55), zorder=2)
        axis.stairs(heights, edges, baseline=row, color=colours[k], linewidth=1.2, zorder=3, label=names[k])
    axis.set_yticks(range(len(present)), [names[k] for k in reversed(present)], parse_math=False)
    axis.tick_params(axis="y", length=0)
    axis.set(xlim=(low, high), ylim=(-0.05, len(present)))
    return _settled(figure)


def kl_per_latent(kl: Array, caption: str, active: Array | None = None) -> Figure:
    """KL of each latent (D,) in nats per image, largest first; `active` (D,) colours the units in use."""
    nats = _vector("kl", kl)
    on = np.ones(len(nats), bool) if active is None else _vector("active", active, len(nats)).astype(bool)
    order = np.argsort(-nats, kind="stable")
    named = len(nats) <= 40
    figure, (axis,) = _chart(900, 440, caption)
    x = "latent, by its number, largest KL first" if named else "latents, largest KL first"
    _dress(axis, f"KL per latent: {nats.sum():.4g} nats in total", x, "KL (nats per image)", grid="y")
    bars = axis.bar(range(len(nats)), nats[order], width=0.75 if named else 1, zorder=3, clip_on=False)
    for bar, k in zip(bars, order, strict=True):
        bar.set(color=BLUE if on[k] else IDLE, linewidth=1.5)  # the edge keeps a bar of no height in sight
    middle, half = (len(nats) - 1) / 2, max(len(nats), 4) / 2 + 0.2
    axis.set_xlim(middle - half, middle + half)
    if named:
        axis.set_xticks(range(len(nats)), [str(k) for k in order])
    if active is not None:
        groups = (BLUE, f"active: {on.sum()} of {len(nats)}"), (IDLE, f"inactive: {(~on).sum()}")
        _legend(axis, handles=[Patch(color=colour, label=label) for colour, label in groups], loc="upper right")
    return _settled(figure)


def sigma_image(sigma: Array, caption: str) -> Figure:
    """The decoder's standard deviation per pixel (C, H, W), or one for all, as a heat map per channel."""
    array = _finite("sigma", sigma)
    shared = array.size == 1
    array = array.reshape(1, 1, 1) if shared else array
    if array.ndim != 3:
        raise ValueError(f"sigma: shape {array.shape}, expected (C, H, W) or a scalar")
    if array.min() < 0:
        raise ValueError(f"sigma: {array.min():g}, a standard deviation is at least 0")
    side = 160 if shared else 400 if len(array) == 1 else 310
    figure, axes = _chart(150 + side * len(array), side + 70, caption, columns=len(array), compress=True)
    low, high = array.min(), array.max()
    norm = Normalize(low, high) if low < high else Normalize(0, 2 * high or 1)
    titles = ["red", "green", "blue"] if len(array) == 3 else [f"channel {k}" for k in range(len(array))]
    if len(array) == 1:
        titles = [f"sigma = {low:.4g}" if shared else f"sigma: {low:.3g} to {high:.3g}"]
    for axis, channel, title in zip(axes, array, titles, strict=True):
        heat = axis.imshow(channel, cmap="viridis", norm=norm, interpolation="nearest")
        axis.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    _colour_bar(figure, heat, axes, "sigma")
    return _settled(figure)


def residuals(r: Array, caption: str) -> Figure:
    """Density of standardised residuals (any shape) against N(0, 1), which they follow if sigma is right.

    The density is of all values, also of those outside the axes; its axis is logarithmic when its peak would
    flatten the curve.
    """
    values = _finite("r", r).ravel()
    size = np.abs(values)
    reach = max(5.0, float(np.quantile(size, 0.999)))
    edges = np.linspace(-reach, reach, 102)  # an odd number of bins: one is centred on 0
    density = np.histogram(values, edges)[0] / (len(values) * (edges[1] - edges[0]))
    figure, (axis,) = _chart(900, 520, caption)
    _dress(axis, "Standardised residuals", "residual / sigma", "density", f"{len(values):,} values")
    beyond = 100 * (size > 3).mean()
    text = f"mean {round(values.mean(), 3) + 0.0:.3f}, sd {values.std():.3f}, beyond \u00b13: {beyond:.2f} %"
    axis.stairs(density, edges, fill=True, color=BLUE, alpha=0.45, label=f"residuals: {text}")
    at = np.linspace(-reach, reach, 401)
    normal = np.exp(-(at**2) / 2) / np.sqrt(2 * np.pi)
    axis.plot(at, normal, color=RED, linewidth=1.8, label="N(0, 1): mean 0, sd 1, beyond \u00b13: 0.27 %")
    peak = max(density.max(), normal.max())
    axis.set(xlim=(-reach, reach), ylim=(0, 1.3 * peak))  # room above for the legend
    if peak > 2:
        _log_y(axis, few=False)
        axis.set_ylim(1e-5, 100 * peak)
    _legend(axis, loc="upper right")
    return _settled(figure)


def class_histogram(counts: Array, caption: str, class_names: Names | None = None) -> Figure:
    """How many samples a classifier puts in each class (n_classes,), against equal shares."""
    found = _vector("counts", counts)
    if found.min() < 0 or found.sum() == 0:
        raise ValueError(f"counts: least {found.min():g}, sum {found.sum():g}; expected counts of at least one sample")
    if class_names is not None and len(class_names) != len(found):
        raise ValueError(f"class_names: {len(class_names)} names for {len(found)} counts")
    names = [str(k) for k in range(len(found))] if class_names is None else list(class_names)
    total = found.sum()
    equal = total / len(found)
    figure, (axis,) = _chart(900, 460, caption)
    _dress(axis, f"Predicted classes of {total:,.0f} samples", "class", "samples", grid="y")
    bars = axis.bar(range(len(found)), found, color=_colours(len(found)), width=0.8, zorder=2)
    if len(found) <= 20:
        shares = [f"{100 * value / total:.1f} %" for value in found]
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axis.bar_label(bars, shares, fontsize=8.5, color=INK, padding=3, bbox=paper, zorder=4)
    axis.axhline(equal, color=INK, linestyle="--", linewidth=1.2, zorder=3, label="equal shares")
    band = 2 * np.sqrt(equal * (1 - 1 / len(found)))
    axis.axhspan(equal - band, equal + band, color=INK, alpha=0.08, linewidth=0, label="\u00b1 2 sd by chance")
    axis.set_xticks(range(len(found)), names, parse_math=False)
    axis.set_ylim(0, 1.22 * max(found.max(), equal))
    _legend(axis, loc="upper right", ncols=2)
    return _settled(figure)


def to_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes the picture whole or not at all; folders on the way are made."""
    with whole_file(Path(path)) as file:
        figure.savefig(file, format="png", dpi=figure.dpi)
