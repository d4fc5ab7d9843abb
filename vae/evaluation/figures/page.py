"""The paper of every picture: one style, a caption, checked arrays, and the file it is written to.

Pyplot is never touched: it keeps every figure alive and is not safe in threads. Each picture carries its
caption, because a PNG travels without the page it was made for.
"""

import functools
import os
import textwrap
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
import matplotlib.style
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from vae.evaluation.colours import CLASSES, LIGHT
from vae.files import whole_file

P = ParamSpec("P")
Array = torch.Tensor | np.ndarray | Sequence[float] | float
Names = Sequence[str]

DPI = 128  # that of vae.mplstyle
MARGIN = 16  # pixels of white around a picture
SMALL = FontProperties(size=8.5)  # captions and notes
INK, MUTED, FAINT, TRAIN, DEV, IDLE = (LIGHT[name] for name in ("ink", "muted", "faint", "train", "dev", "idle"))

STYLE: list[Any] = [
    Path(__file__).with_name("vae.mplstyle"),
    dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor", "legend.labelcolor"), INK)
    | dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), MUTED)
    | {"grid.color": FAINT, "figure.facecolor": LIGHT["paper"], "axes.facecolor": LIGHT["paper"]},
]
_STYLED = threading.RLock()  # matplotlib's parameters belong to the whole process


def drawn(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draws in our style, whatever the caller's is, and lays the figure out once: savefig would do so twice more."""

    @functools.wraps(draw)
    def in_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with _STYLED, matplotlib.style.context(STYLE, after_reset=True):
            figure = draw(*args, **kwargs)
            lay_out(figure)
            figure.set_layout_engine("none")
        return figure

    return in_style


def lay_out(figure: Figure) -> None:
    """Places the axes now, for what is measured in pixels."""
    if engine := figure.get_layout_engine():
        engine.execute(figure)


def as_array(name: str, value: Any, dims: int | None = None) -> np.ndarray:
    """The value as float64; raises ValueError, naming it, if it is empty, not finite or of other dimensions."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().double().numpy()
    array = np.asarray(value, dtype=np.float64)
    if array.size == 0:
        raise ValueError(f"{name}: empty, nothing to draw")
    if dims is not None and array.ndim != dims:
        raise ValueError(f"{name}: shape {array.shape}, expected {dims} dimensions")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        first = tuple(bad[0].tolist())
        count = f"{len(bad)} of {array.size} values are not finite"
        raise ValueError(f"{name}: {count}, the first is {array[first]} at index {first}")
    return array


def signed(value: float, places: int) -> str:
    """A number with a minus that is one, and none before a zero."""
    return f"{round(float(value), places) + 0.0:.{places}f}".replace("-", "\u2212")


def class_colours(count: int) -> np.ndarray:
    """RGB (count, 3): those of the table, or evenly spaced hues where its ten do not suffice."""
    if count <= len(CLASSES):
        return np.array([to_rgb(colour) for colour in CLASSES[:count]])
    return matplotlib.colormaps["turbo"](np.linspace(0.02, 0.98, count))[:, :3]


def text_width(figure: Figure, text: str, font: FontProperties) -> float:
    """Width in pixels."""
    assert isinstance(figure.canvas, FigureCanvasAgg)
    return figure.canvas.get_renderer().get_text_width_height_descent(text, font, False)[0]


def page(width: int, height: int, caption: str) -> tuple[Figure, int]:
    """A figure of `width` by `height` pixels and, added below them, the caption's pixels (also returned)."""
    figure = Figure(figsize=(width / DPI, height / DPI))
    FigureCanvasAgg(figure)
    letter = text_width(figure, caption, SMALL) / max(1, len(caption))  # on average: a line may be an eighth wider
    lines = textwrap.wrap(caption, int(0.88 * (width - 2 * MARGIN) / max(letter, 1)))
    foot = MARGIN + 20 * len(lines)
    figure.set_size_inches(width / DPI, (height + foot) / DPI)
    style: dict[str, Any] = {"fontproperties": SMALL, "color": MUTED, "linespacing": 1.3, "gid": "caption"}
    text = figure.text(MARGIN / width, (foot - 4) / (height + foot), "\n".join(lines), va="top", **style)
    text.set_in_layout(False)
    return figure, foot


def chart(
    width: int, height: int, caption: str, *, columns: int = 1, rows: int = 1, compress: bool = False
) -> tuple[Figure, list[Axes]]:
    """A page with `rows` by `columns` bare axes in reading order, to be laid out above the caption."""
    figure, foot = page(width, height, caption)
    low, pad = foot / (height + foot), MARGIN / DPI
    engine: Any = "compressed" if compress else "constrained"
    figure.set_layout_engine(engine, rect=(0, low, 1, 1 - low), h_pad=pad, w_pad=pad)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def dress(axis: Axes, title: str, x: str, y: str, note: str = "", grid: str = "both") -> None:
    """Title, a small note of one or two lines under it, names of the axes, grid lines along `x`, `y`, both or ''."""
    axis.set_title(title, pad=9 + 12 * (note.count("\n") + 1) if note else None)
    place: dict[str, Any] = {"xy": (0, 1), "xycoords": "axes fraction", "textcoords": "offset points"}
    text = axis.annotate(note, xytext=(0, 6), font=SMALL, color=MUTED, gid="note", **place)
    text.set_in_layout(False)  # a long one would squeeze the panel
    axis.set(xlabel=x, ylabel=y)
    for name, lines in (("x", axis.xaxis), ("y", axis.yaxis)):
        lines.grid(visible=grid in (name, "both"))


def add_colour_bar(figure: Figure, mappable: ScalarMappable, axes: Sequence[Axes], label: str, **settings: Any) -> None:
    bar = figure.colorbar(mappable, ax=axes, fraction=0.05, pad=0.03, label=label, **settings)
    bar.outline.set_visible(False)


def caption_of(figure: Figure) -> str:
    """The caption in one line."""
    return " ".join(text.get_text().replace("\n", " ") for text in figure.texts if text.get_gid() == "caption")


def describe(figure: Figure, kind: str) -> None:
    """Gives the figure its alternative text: what kind of picture it is, and what its titles and notes say."""
    titles = [axis.get_title(loc="left") + (f" ({note})" if (note := _note(axis)) else "") for axis in figure.axes]
    facts = "; ".join(text for text in titles if text)
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
    field = {"png": "Description", "svg": "Description", "pdf": "Subject"}.get(kind)
    about: dict[str, Any] = {field: alternative_text(figure)} if field else {}
    about |= {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})  # the same figure, the same file
    with whole_file(place) as file, _STYLED, matplotlib.style.context(STYLE, after_reset=True):
        figure.savefig(file, format=kind, dpi=dpi or figure.dpi, metadata=about)
