"""Pictures of a comparison: the effect of each key, pairs of keys, learning curves, two metrics against each other."""

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas import DataFrame

from vae.evaluation.colours import CLASSES
from vae.evaluation.figures.page import DEV, INK, add_colour_bar, chart, describe, drawn, dress, write_figure
from vae.evaluation.statistics import interval
from vae.files import natural
from vae.run.compare import Comparison, Table, lower_is_better
from vae.run.compare_text import title
from vae.run.records import RunRecord
from vae.training import checkpoints

MOST_KEYS, MOST_LINES = 6, 10  # panels in a row, lines that a legend tells apart
FEW_SEEDS = 2  # t intervals of so few are wider than the panel: their points say more


def draw(comparison: Comparison, folder: Path) -> list[Path]:
    """PNG files in the folder; a table of one configuration has no effects, one of one metric no front."""
    files = []
    for number, table in enumerate(comparison.tables, 1):
        end = "" if len(comparison.tables) == 1 else f"_{number}"
        for name, figure in pictures(table):
            files.append(folder / f"{name}{end}.png")
            describe(figure, name.replace("_", " "))
            write_figure(figure, files[-1])
    return files


def pictures(table: Table) -> Iterator[tuple[str, Figure]]:
    keys, metric = table.keys_that_vary, table.metrics[0]
    if keys:
        yield "main_effects", main_effects(table, keys[:MOST_KEYS], metric)
    pairs = [pair for pair in itertools.combinations(keys, 2) if is_grid(table.rows, list(pair))]
    if pairs:
        yield "pairs", pairwise(table, pairs[:3], metric)
    curves = {name: curves_of(table, name, metric) for name in table.rows.index[:MOST_LINES]}
    if any(len(curve) for curve in curves.values()):
        yield "learning_curves", learning_curves(table, curves, metric)
    if len(table.metrics) > 1 and len(table.rows) > 1:
        yield "front", front(table, *table.metrics[:2])


def is_grid(rows: DataFrame, keys: list[str]) -> bool:
    """Whether every value of each key was tried with every value of the others."""
    return len(rows[keys].drop_duplicates()) == math.prod(rows[key].nunique() for key in keys)


def runs_by_value(table: Table, key: str, metric: str) -> dict[str, list[float]]:
    """The metric of every run, by its value of a key: over a grid, or else beside the baseline alone."""
    rows, others = table.rows, [name for name in table.keys_that_vary if name != key]
    if table.baseline and not is_grid(rows, table.keys_that_vary):
        rows = rows[(rows[others] == rows.loc[table.baseline, others]).all(axis=1)]
    values = table.values(metric)
    return {
        value: values.loc[rows.index[rows[key] == value]].stack().dropna().tolist()
        for value in sorted(rows[key].unique(), key=natural)
    }


@drawn
def main_effects(table: Table, keys: Sequence[str], metric: str) -> Figure:
    caption = f"{title(table)}. Dots are runs, the line joins their means at each value of the key."
    figure, axes = chart(280 * len(keys) + 60, 340, caption, columns=len(keys))
    for axis, key in zip(axes, keys, strict=True):
        runs = runs_by_value(table, key, metric)
        for place, numbers in enumerate(runs.values()):
            axis.plot([place] * len(numbers), numbers, "o", color=DEV, alpha=0.5, markersize=4, markeredgewidth=0)
        axis.plot([np.mean(numbers) for numbers in runs.values()], "_-", color=DEV, markersize=14, lw=1)
        axis.set_xlim(-0.5, len(runs) - 0.5)
        _name_ticks(axis, [value or "–" for value in runs])
        dress(axis, key, "", metric if axis is axes[0] else "")
    return figure


def _name_ticks(axis: Axes, names: Sequence[str]) -> None:
    crowded = sum(map(len, names)) > 24
    axis.set_xticks(range(len(names)), names, rotation=30 if crowded else 0, ha="right" if crowded else "center")


@drawn
def pairwise(table: Table, pairs: Sequence[tuple[str, str]], metric: str) -> Figure:
    """A panel per pair of keys: the metric's mean over the configurations with both values."""
    figure, axes = chart(
        420 * len(pairs), 380, f"{title(table)}. Means over the configurations of a cell.", columns=len(pairs)
    )
    for axis, (x, y) in zip(axes, pairs, strict=True):
        cells = table.rows.pivot_table(metric, index=y, columns=x, aggfunc="mean")
        cells = cells.loc[sorted(cells.index, key=natural), sorted(cells.columns, key=natural)]
        image = axis.imshow(cells, cmap="viridis", aspect="auto")
        lightness = np.asarray(image.norm(cells.to_numpy()))
        for (i, j), mean in np.ndenumerate(cells.to_numpy()):
            colour = INK if lightness[i, j] > 0.6 else "white"  # the upper end of viridis is yellow
            axis.text(j, i, f"{mean:.4g}", ha="center", va="center", color=colour, size=8)
        _name_ticks(axis, list(cells.columns))
        axis.set_yticks(range(len(cells)), list(cells.index))
        dress(axis, "", x, y, grid="")
        add_colour_bar(figure, image, [axis], metric)
    return figure


def curve_of(record: RunRecord, metric: str) -> dict[int, float]:
    """The metric by epoch, as the run's last checkpoint keeps it; nothing where that is gone."""
    path = record.directory / "checkpoints" / "last.ckpt"
    rows = checkpoints.read_history(path)["rows"] if path.exists() else []
    return {int(row["epoch"]): float(row[metric]) for row in rows if metric in row}


def curves_of(table: Table, name: str, metric: str) -> DataFrame:
    """A configuration's metric: a row per epoch, a column per seed."""
    runs = table.runs[table.runs["name"] == name]
    curves = map(curve_of, runs["record"], [metric] * len(runs))
    by_seed = dict(zip(runs["seed"], curves, strict=True))
    return DataFrame({seed: curve for seed, curve in by_seed.items() if curve}).sort_index()


@drawn
def learning_curves(table: Table, curves: dict[str, DataFrame], metric: str) -> Figure:
    caption = f"{title(table)}. Lines are means over seeds; bands are 95 % t intervals, thin lines single seeds."
    if len(curves) < len(table.rows):
        caption += f" The first {len(curves)} of {len(table.rows)} configurations."
    figure, (axis,) = chart(900, 520, caption)
    for (name, curve), colour in zip(curves.items(), itertools.cycle(CLASSES), strict=False):
        if curve.empty:
            continue
        axis.plot(curve.index, curve.mean(axis=1), color=colour, lw=1.8, label=table.short_name(name))
        if curve.shape[1] <= FEW_SEEDS:
            axis.plot(curve.index, curve, color=colour, lw=0.7, alpha=0.6)
        else:
            bands = [interval(row.dropna().tolist()) for _, row in curve.iterrows()]
            axis.fill_between(
                curve.index, *zip(*(band[1:3] for band in bands), strict=True), color=colour, alpha=0.2, lw=0
            )
    values = np.concatenate([curve.to_numpy().ravel() for curve in curves.values()])
    low, high = np.nanmin(values), np.nanquantile(values, 0.9)  # the first epochs may lie far above
    axis.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    dress(axis, "", "epoch", metric)
    axis.legend()
    return figure


@drawn
def front(table: Table, x: str, y: str) -> Figure:
    """The configurations by two metrics; those that no other beats in both are joined."""
    caption = f"{title(table)}. Large dots are means, small ones runs; the line joins those that none beats in both."
    figure, (axis,) = chart(760, 560, caption)
    named = len(table.rows) <= MOST_LINES
    for name, colour in zip(table.rows.index, itertools.cycle(CLASSES if named else [DEV]), strict=False):
        axis.plot(table.values(x).loc[name], table.values(y).loc[name], "o", color=colour, alpha=0.5, markersize=3)
        axis.plot(*table.rows.loc[name, [x, y]], "o", color=colour, label=table.short_name(name))
    signs = np.array([1 if lower_is_better(metric) else -1 for metric in (x, y)])
    costs = sorted(map(tuple, table.rows[[x, y]].to_numpy() * signs))
    best = np.array([(a, b) for i, (a, b) in enumerate(costs) if all(b < other for _, other in costs[:i])]) * signs
    axis.plot(*best.T, color=INK, lw=1, zorder=0)
    dress(axis, "", x, y)
    if named:
        axis.legend()
    return figure
