"""Pictures of a comparison: what each key does, pairs of keys, learning curves, and two metrics against each other."""

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vae.evaluation.figures.page import (
    BLUE,
    PALETTE,
    add_colour_bar,
    add_legend,
    chart,
    describe,
    dress,
    settled,
    write_figure,
)
from vae.evaluation.statistics import Mean, interval
from vae.run.compare import Comparison, Row, Table, name_of
from vae.run.compare_text import title
from vae.run.sweep import RunRecord, natural
from vae.training import checkpoints

MOST_KEYS, MOST_CURVES, MOST_NAMES = 6, 10, 12


def draw(comparison: Comparison, folder: Path) -> list[Path]:
    """PNG files in the folder; a table of one row has no effects, one of one metric no front."""
    files = []
    for number, table in enumerate(comparison.tables, 1):
        end = "" if len(comparison.tables) == 1 else f"_{number}"
        for name, figure in pictures(table):
            files.append(folder / f"{name}{end}.png")
            describe(figure, name.replace("_", " "))
            write_figure(figure, files[-1])
    return files


def pictures(table: Table) -> Iterator[tuple[str, Figure]]:
    keys = [key for key in table.rows[0].keys if len({row.keys.get(key) for row in table.rows}) > 1][:MOST_KEYS]
    metric = table.metrics[0]
    if keys:
        yield "main_effects", main_effects(table, keys, metric)
    pairs = [pair for pair in itertools.combinations(keys, 2) if is_grid(table.rows, pair)]
    if pairs:
        yield "pairs", pairwise(table, pairs[:3], metric)
    curves = {name_of(row, table.baseline): mean_curve(row, metric) for row in table.rows[:MOST_CURVES]}
    if any(curves.values()):
        yield (
            "learning_curves",
            learning_curves(table, {name: curve for name, curve in curves.items() if curve}, metric),
        )
    if len(table.metrics) > 1 and len(table.rows) > 1:
        yield "front", front(table, *table.metrics[:2])


def is_grid(rows: Sequence[Row], keys: Sequence[str]) -> bool:
    """Whether every value of each key was tried with every value of the others."""
    values = [{row.keys.get(key) for row in rows} for key in keys]
    return {tuple(row.keys.get(key) for key in keys) for row in rows} == set(itertools.product(*values))


def effect(table: Table, key: str, metric: str) -> dict[str, Mean]:
    """The metric's mean at each value of a key, over the runs of a grid, or else beside the baseline alone."""
    rows = table.rows
    others = [name for name in table.baseline.keys if name != key]
    if not is_grid(rows, list(table.baseline.keys)):
        rows = [row for row in rows if all(row.keys.get(name) == table.baseline.keys.get(name) for name in others)]
    values = sorted({row.keys.get(key, "-") for row in rows}, key=natural)
    runs = {value: [v for row in rows if row.keys.get(key, "-") == value for v in row.values(metric).values()]
            for value in values}  # fmt: skip
    return {value: interval(numbers) for value, numbers in runs.items()}


def main_effects(table: Table, keys: Sequence[str], metric: str) -> Figure:
    caption = f"{title(table)}. Points are means over the runs with that value, bars their 95 % t intervals."
    figure, axes = chart(280 * len(keys) + 60, 340, caption, columns=len(keys))
    for axis, key in zip(axes, keys, strict=True):
        means = effect(table, key, metric)
        _bars(axis, list(means.values()))
        axis.set_xticks(range(len(means)), list(means), rotation=30 if max(map(len, means)) > 6 else 0, ha="right")
        dress(axis, key, "", metric if axis is axes[0] else "")
    return settled(figure)


def _bars(axis: Axes, means: Sequence[Mean]) -> None:
    halves = [0.0 if math.isnan(mean.high) else mean.high - mean.value for mean in means]
    axis.errorbar(range(len(means)), [mean.value for mean in means], halves, fmt="o-", color=BLUE, capsize=3, lw=1)
    axis.set_xlim(-0.5, len(means) - 0.5)


def pairwise(table: Table, pairs: Sequence[tuple[str, str]], metric: str) -> Figure:
    """A panel a pair: the metric's mean over the runs with both values."""
    figure, axes = chart(420 * len(pairs), 380, f"{title(table)}. Means over the runs of a cell.", columns=len(pairs))
    for axis, (x, y) in zip(axes, pairs, strict=True):
        columns, lines = (sorted({row.keys.get(key, "-") for row in table.rows}, key=natural) for key in (x, y))
        cells = np.array([[_cell(table.rows, {x: column, y: line}, metric) for column in columns] for line in lines])
        image = axis.imshow(cells, cmap="viridis", aspect="auto")
        for i, j in np.ndindex(cells.shape):
            axis.text(j, i, f"{cells[i, j]:.4g}", ha="center", va="center", color="white", fontsize=8)
        axis.set_xticks(range(len(columns)), columns)
        axis.set_yticks(range(len(lines)), lines)
        dress(axis, "", x, y, grid="")
        add_colour_bar(figure, image, [axis], metric)
    return settled(figure)


def _cell(rows: Sequence[Row], keys: dict[str, str], metric: str) -> float:
    chosen = [row for row in rows if all(row.keys.get(key, "-") == value for key, value in keys.items())]
    return statistics.fmean(value for row in chosen for value in row.values(metric).values())


def curve_of(record: RunRecord, metric: str) -> dict[int, float]:
    """The metric by epoch, as the run's last checkpoint keeps it; nothing where that is gone."""
    path = record.directory / "checkpoints" / "last.ckpt"
    if not path.exists():
        return {}
    rows = checkpoints.read_history(path)
    return {int(row["epoch"]): float(row[metric]) for row in rows if metric in row}


def mean_curve(row: Row, metric: str) -> list[tuple[int, Mean]]:
    """(epoch, mean over the seeds that reached it)."""
    curves = [curve_of(run, metric) for run in row.runs.values()]
    epochs = sorted({epoch for curve in curves for epoch in curve})
    return [(epoch, interval([curve[epoch] for curve in curves if epoch in curve])) for epoch in epochs]


def learning_curves(table: Table, curves: dict[str, list[tuple[int, Mean]]], metric: str) -> Figure:
    few = f" The first {len(curves)} of {len(table.rows)} configurations." if len(curves) < len(table.rows) else ""
    figure, (axis,) = chart(900, 520, f"{title(table)}. Means over seeds with 95 % t intervals.{few}")
    for (name, curve), colour in zip(curves.items(), itertools.cycle(PALETTE), strict=False):
        epochs = [epoch for epoch, _ in curve]
        axis.plot(epochs, [mean.value for _, mean in curve], color=colour, lw=1.5, label=name, marker=".")
        low, high = ([getattr(mean, end) for _, mean in curve] for end in ("low", "high"))
        axis.fill_between(epochs, low, high, color=colour, alpha=0.2, lw=0)
    values = [mean.value for curve in curves.values() for _, mean in curve]
    axis.set_ylim(min(values) - 0.05 * np.ptp(values), np.quantile(values, 0.97) + 0.05 * np.ptp(values))
    dress(axis, "", "epoch", metric)
    add_legend(axis)
    return settled(figure)


def front(table: Table, x: str, y: str) -> Figure:
    """The configurations by two metrics; those that none beats in both, where lower is better, are joined."""
    figure, (axis,) = chart(760, 560, f"{title(table)}. Bars are 95 % t intervals; the line joins the lowest in both.")
    points = {name_of(row, table.baseline): (row.means[x], row.means[y]) for row in table.rows}
    for name, (a, b) in points.items():
        halves = [0.0 if math.isnan(mean.high) else mean.high - mean.value for mean in (a, b)]
        axis.errorbar(a.value, b.value, xerr=halves[0], yerr=halves[1], fmt="o", color=BLUE, capsize=2, lw=1)
        if len(points) <= MOST_NAMES:
            axis.annotate(name, (a.value, b.value), xytext=(4, 4), textcoords="offset points", fontsize=8)
    best = sorted((a.value, b.value) for a, b in points.values())
    best = [(a, b) for i, (a, b) in enumerate(best) if all(b < other for _, other in best[:i])]
    axis.plot(*zip(*best, strict=True), color=PALETTE[2], lw=1)
    dress(axis, "", x, y)
    return settled(figure)
