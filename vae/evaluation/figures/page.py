"""The paper of every picture: checked arrays, one style, a caption, and the file it is written to.

Pyplot is never touched: it keeps every figure alive and is not safe in threads. Each picture carries its
caption, because a PNG travels without the page it was made for.
"""

import os
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke

from vae.files import whole_file

Array = torch.Tensor | np.ndarray | Sequence[float] | float

Names = Sequence[str]

Series = Sequence[tuple[int, float]]

Grid = Literal["both", "x", "y", ""]

DPI = 128  # a power of two: pixels / DPI * DPI is exact, so images land on whole pixels of the PNG

INK, MUTED, FAINT = "#222222", "#666666", "#dddddd"

RED, BLUE, IDLE = "#c8372d", "#2a6fbb", "#b4b4b4"

# No grey, and no two closer than 29 in CIELAB, also to eyes that lack one of the three cones (Machado et al. 2009);
# matplotlib's tab10 comes down to 5. In this order digits that are often confused, 4, 7, 9 and 3, 5, 8, differ most.
PALETTE = [
    "#882277",
    "#99cc77",
    "#ff5599",
    "#33ddee",
    "#2200ff",
    "#ee0000",
    "#bb88ff",
    "#aa0033",
    "#7722bb",
    "#ffbb00",
]

HALO = [withStroke(linewidth=3, foreground="white")]  # keeps text readable on dots and lines

MARGIN = 16  # pixels of white around a picture

CELL, PAGE = 96, 1216  # pixels: the largest side of a drawn image, the widest run of images in a row

CAPTION, LABEL = FontProperties(size=8.5), FontProperties(size=10)


def as_finite(name: str, value: Any) -> np.ndarray:
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


def as_vector(name: str, value: Any, length: int | None = None) -> np.ndarray:
    array = as_finite(name, value)
    if array.ndim != 1 or length not in (None, len(array)):
        raise ValueError(f"{name}: shape {array.shape}, expected ({'n' if length is None else length},)")
    return array


def as_images(name: str, value: Any, like: np.ndarray | None = None) -> np.ndarray:
    """Float images (N, C, H, W) clipped to [0, 1]; with `like`, of that very shape."""
    if not str(getattr(value, "dtype", "float")).removeprefix("torch.").startswith(("float", "bfloat")):
        raise ValueError(f"{name}: {value.dtype} images, expected floats in [0, 1]")
    array = as_finite(name, value)
    if array.ndim != 4 or array.shape[1] not in (1, 3):
        raise ValueError(f"{name}: shape {array.shape}, expected (N, C, H, W) with C 1 or 3")
    if like is not None and array.shape != like.shape:
        raise ValueError(f"{name}: shape {array.shape}, expected {like.shape}")
    return array.clip(0, 1)


def as_series(name: str, value: Series) -> tuple[np.ndarray, np.ndarray]:
    """(epoch, value) pairs as two vectors."""
    array = as_finite(name, value)
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"{name}: shape {array.shape}, expected a list of (epoch, value)")
    return array[:, 0], array[:, 1]


def as_classes(labels: Any, length: int, names: Names | None) -> tuple[np.ndarray, list[str]]:
    """Integer labels (length,) and a name for each class up to the largest."""
    array = as_vector("labels", labels, length)
    if (array < 0).any() or (array % 1).any():
        raise ValueError(f"labels: expected integers from 0, found {array[(array < 0) | (array % 1 > 0)][0]:g}")
    count = int(array.max()) + 1
    if names is not None and len(names) < count:
        raise ValueError(f"class_names: {len(names)} names, but a label is {count - 1}")
    return array.astype(int), [str(name) for name in names] if names else [str(k) for k in range(count)]


def class_colours(count: int) -> np.ndarray:
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


def chart(
    width: int, height: int, caption: str, *, columns: int = 1, rows: int = 1, compress: bool = False
) -> tuple[Figure, list[Axes]]:
    """A page with `rows` by `columns` bare axes in reading order, to be laid out above the caption."""
    figure, foot = _page(width, height, caption)
    low = foot / (height + foot)
    pad = MARGIN / DPI
    engine = ConstrainedLayoutEngine(rect=(0, low, 1, 1 - low), h_pad=pad, w_pad=pad, compress=compress)
    figure.set_layout_engine(engine)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def lay_out(figure: Figure) -> None:
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)


def settled(figure: Figure) -> Figure:
    """The figure with its layout computed once and frozen: savefig would compute it twice more."""
    lay_out(figure)
    figure.set_layout_engine("none")
    return figure


def dress(axis: Axes, title: str, x: str, y: str, note: str = "", grid: Grid = "both") -> None:
    """Title, a small note of one or two lines under it, quiet axes, a light grid behind the data."""
    pad = 9 + 12 * (note.count("\n") + 1) if note else 7
    axis.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=pad, parse_math=False)
    where: dict[str, Any] = {"xy": (0, 1), "xycoords": "axes fraction", "textcoords": "offset points"}
    text = axis.annotate(note, xytext=(0, 6), fontsize=8.5, color=MUTED, parse_math=False, gid="note", **where)
    text.set_in_layout(False)  # a long one would squeeze the panel
    axis.set_xlabel(x, fontsize=9.5, color=INK, parse_math=False)
    axis.set_ylabel(y, fontsize=9.5, color=INK, parse_math=False)
    axis.tick_params(which="both", labelsize=8.5, color=MUTED, labelcolor=INK)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(MUTED)
    axis.set_axisbelow(True)
    if grid:
        axis.grid(visible=True, axis=grid, color=FAINT, linewidth=0.6)


def add_colour_bar(figure: Figure, mappable: ScalarMappable, axes: Sequence[Axes], label: str, **settings: Any) -> None:
    bar = figure.colorbar(mappable, ax=axes, fraction=0.05, pad=0.03, **settings)
    bar.set_label(label, fontsize=9.5, color=INK)
    bar.ax.tick_params(labelsize=8.5, color=MUTED, labelcolor=INK)
    bar.outline.set_visible(False)


def add_legend(axis: Axes, **settings: Any) -> None:
    legend = axis.legend(fontsize=8.5, labelcolor=INK, facecolor="white", edgecolor="none", framealpha=0.9, **settings)
    legend.set_zorder(6)


def _cell(height: int, width: int, columns: int) -> tuple[int, int]:
    """An image's size on the page: whole pixels per pixel where they fit, so that each stays a square."""
    scale = min(CELL / max(height, width), PAGE / (columns * width))
    scale = int(scale) if scale >= 1 else scale
    return max(1, round(height * scale)), max(1, round(width * scale))


def mosaic(
    rows: Sequence[np.ndarray],
    caption: str,
    above: Names = (),
    left: Names = (),
    below: Names = (),
    x_name: str = "",
    y_name: str = "",
) -> Figure:
    """Rows of images (n, C, H, W), with labels above or at the left of each row and a line below each column.

    `x_name` and `y_name` say what the columns and the rows are. One axes counts in the PNG's own pixels: images are
    placed exactly, and hundreds stay cheap.
    """
    columns, gap, line = max(len(row) for row in rows), 4 if above else 2, round(_line_height(LABEL))
    high, wide = _cell(rows[0].shape[2], rows[0].shape[3], columns)
    ruler, _ = _page(MARGIN, MARGIN, "")
    names = MARGIN + (line if y_name else 0)
    start = names + (max(int(_text_width(ruler, text, LABEL)) for text in left) + 10 if left else 0)
    width = max(start + columns * (wide + gap) - gap + MARGIN, 560)
    heads = ["\n".join(_wrap(ruler, text, LABEL, width - 2 * MARGIN)) for text in above]
    tops, end = _tops(heads, len(rows), high, gap)
    figure, axis = _canvas(width, end + line * (bool(below) + bool(x_name)), caption)
    for row, top in zip(rows, tops, strict=True):
        _place(axis, row, (start, top), (high, wide), gap)
    for text, top in zip(heads, tops, strict=False):
        _label(axis, MARGIN, top - 5, text, ha="left", va="bottom")
    for text, top in zip(left, tops, strict=False):
        _label(axis, start - 10, top + high / 2, text, ha="right", va="center")
    for index, text in enumerate(below):
        _label(axis, start + index * (wide + gap) + wide / 2, end - 6, text, ha="center", va="top")
    middle = start + (columns * (wide + gap) - gap) / 2
    _label(axis, middle, end - 4 + line * bool(below), x_name, ha="center", va="top")
    _label(axis, MARGIN, (tops[0] + tops[-1] + high) / 2, y_name, ha="left", va="center", rotation=90)
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
    if text:
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
        "interpolation": "none",  # a vector file then holds the image's own pixels
        "aspect": "auto",
    }
    for index, image in enumerate(row):
        x = left + index * (wide + gap)
        pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)  # (H, W) or (H, W, 3)
        axis.imshow(pixels, extent=(x, x + wide, top + high, top), **style)


def caption_of(figure: Figure) -> str:
    """The caption in one line."""
    return " ".join(text.get_text().replace("\n", " ") for text in figure.texts if text.get_gid() == "caption")


def describe(figure: Figure, kind: str) -> None:
    """Gives the figure its alternative text: what kind of picture it is, and what its titles and notes say."""
    said = [axis.get_title(loc="left") + (f" ({note})" if (note := _note(axis)) else "") for axis in figure.axes]
    facts = "; ".join(text for text in said if text)
    figure.set_label(f"{kind}. {facts + '. ' if facts else ''}{caption_of(figure)}")


def _note(axis: Axes) -> str:
    return next((text.get_text().replace("\n", "; ") for text in axis.texts if text.get_gid() == "note"), "")


def alternative_text(figure: Figure) -> str:
    return str(figure.get_label())


def write_figure(figure: Figure, path: str | os.PathLike[str], dpi: float | None = None) -> None:
    """Writes the picture whole or not at all, in the format of the path's suffix; folders on the way are made.

    The alternative text goes into the file. SVG keeps text as text and images in their own pixels.
    """
    place = Path(path)
    kind = place.suffix.removeprefix(".")
    words = {"png": "Description", "svg": "Description", "pdf": "Subject"}.get(kind)
    about: dict[str, Any] = {words: alternative_text(figure)} if words else {}
    about |= {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})  # the same figure, the same file
    with whole_file(place) as file, matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vae"}):
        figure.savefig(file, format=kind, dpi=dpi or figure.dpi, metadata=about)
