"""`vae report SWEEP -o page.html`: the runs below a folder on one page; only their curves need torch."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vae.commands.page import check_output, write_page
from vae.commands.report import curve, default_settings, packed_plotly, picture
from vae.errors import InputError
from vae.run.compare import Comparison, Row, Table, compare, flatten, name_of
from vae.run.compare_text import cells, findings, title
from vae.run.keys import show
from vae.run.sweep import RunRecord, natural

CURVES = 10  # lines that a legend still tells apart
BEST = 3  # runs side by side
SHOWN = ("reconstructions", "samples", "losses")
HIGHER = ("elbo", "accuracy", "precision", "recall", "entropy", "active_units", "images_per_second")


def report_sweep(path: str, output: Path, force: bool) -> None:
    """Writes the page of a sweep; raises InputError where no run below the folder is finished."""
    check_output(output, force, "plotly")
    found = compare([path])
    if not found.tables:
        raise InputError(f"{path}: none of its {len(found.left_out)} runs is finished; their commands continue them")
    values = {"keys": found.keys, "reasons": found.reasons, "left_out": found.left_out, "shared": shared_keys(found)}
    tables = [table_values(table, found.keys) for table in found.tables]
    name = Path(path).resolve().name
    write_page(output, "sweep.html.j2", name=name, tables=tables, plotly=packed_plotly(), **values)


def shared_keys(found: Comparison) -> list[str]:
    """What all runs were given: the keys that do not vary and differ from the default."""
    default = flatten(default_settings())
    flats = [flatten(run.settings or {}) for table in found.tables for row in table.rows for run in row.runs.values()]
    same = [name for name in flats[0] if all(flat.get(name) == flats[0][name] for flat in flats)]
    return [f"{name}={show(flats[0][name])}" for name in same if flats[0][name] != default.get(name)]


def table_values(table: Table, keys: Sequence[str]) -> dict[str, Any]:
    """The table in words, the effect of each key on its first metric, the curves, and the best runs."""
    metric = table.metrics[0]
    runs = best_first(table, metric)
    return {
        "title": title(table),
        "metric": metric,
        "cells": cells(table, keys),
        "findings": findings(table),
        "charts": [*effects(table.rows, keys, metric), *curves(runs[:CURVES], metric)],
        "best": [best_run(name, run, metric) for name, run in runs[:BEST]],
    }


def best_first(table: Table, metric: str) -> list[tuple[str, RunRecord]]:
    """Every run with its name: what sets it apart, and its seed."""
    sign = -1 if metric.endswith(HIGHER) and not metric.endswith("neg_elbo") else 1
    runs = [
        (sign * row.values(metric)[seed], f"{name_of(row, table.baseline)}, seed {seed}", run)
        for row in table.rows
        for seed, run in row.runs.items()
    ]
    return [(name, run) for _, name, run in sorted(runs, key=lambda run: run[0])]


def effects(rows: Sequence[Row], keys: Sequence[str], metric: str) -> list[dict[str, Any]]:
    """For each key that varies: every run at its value, and the mean of each value."""
    drawn = []
    for key in keys:
        values = sorted({row.keys.get(key, "-") for row in rows}, key=natural)
        points = [(row.keys.get(key, "-"), value, seed) for row in rows for seed, value in row.values(metric).items()]
        points = [point for point in points if math.isfinite(point[1])]
        if len(values) < 2:
            continue
        runs = {"name": "runs", "mode": "markers", "x": [x for x, _, _ in points], "y": [y for _, y, _ in points]}
        runs["text"] = [f"seed {seed}" for _, _, seed in points]
        means = [statistics.fmean(y for x, y, _ in points if x == value) for value in values]
        line = {"name": "mean", "mode": "lines+markers", "x": values, "y": means}
        drawn.append({"title": f"{metric} by {key}", "x": key, "y": "", "kind": "points", "series": [runs, line]})
    return drawn


def curves(runs: Sequence[tuple[str, RunRecord]], metric: str) -> list[dict[str, Any]]:
    """The metric over the epochs, where it was logged and the run still has its checkpoint."""
    from vae.training import checkpoints

    series = []
    for name, run in runs:
        last = run.directory / "checkpoints" / "last.ckpt"
        rows = checkpoints.read_history(last) if last.exists() else []
        if any(metric in row for row in rows):
            series.append(curve(rows, metric) | {"name": name})
    title = f"{metric} of the best {len(series)} runs" if len(series) > 1 else metric
    return [{"title": title, "x": "epoch", "y": "", "series": series}] if series else []


def best_run(name: str, run: RunRecord, metric: str) -> dict[str, Any]:
    paths = [run.directory / "figures" / f"{figure}.png" for figure in SHOWN]
    shown = [picture(path) for path in paths if path.exists()]
    return {
        "name": name,
        "run": run.name,
        "value": f"{(run.metrics or {})[metric]:.5g}",
        "figures": shown,
        "path": str(run.directory),
    }
