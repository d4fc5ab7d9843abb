"""`vae report SWEEP -o page.html`: the runs below a folder on one page."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vae.commands.page import check_output, write_page
from vae.commands.report import default_settings, packed_plotly, picture
from vae.errors import InputError, RunFailed
from vae.evaluation.figures.page import write_figure
from vae.evaluation.gallery import Subject, draw_figure
from vae.run.compare import Comparison, Table, compare, flatten, lower_is_better
from vae.run.compare_figures import curve_of, runs_by_value
from vae.run.compare_text import cells_of, effect_cells, findings, title
from vae.run.keys import show
from vae.run.load import load_run
from vae.run.records import RunRecord
from vae.words import number

CURVES = 10  # lines that a legend still tells apart
BEST = 3  # runs side by side
SHOWN = ("reconstructions", "samples")


def report_sweep(
    path: str, output: Path, draws: bool, trust: tuple[str, ...] = (), force: bool = False, metrics: Sequence[str] = ()
) -> None:
    """Writes the page of a sweep; with `draws`, the pictures of its best runs are drawn where they are missing.

    Raises InputError where no run below the folder is finished.
    """
    check_output(output, force, "plotly")
    comparison = compare([path], metrics)
    if not comparison.tables:
        unfinished = len(comparison.left_out)
        raise InputError(f"{path}: none of its {unfinished} runs is finished; their commands continue them")
    write_page(
        output,
        "sweep.html.j2",
        name=Path(path).resolve().name,
        tables=[table_values(table, draws, trust) for table in comparison.tables],
        keys=comparison.keys,
        reasons=comparison.reasons,
        left_out=comparison.left_out,
        shared=shared_keys(comparison),
        plotly=packed_plotly(),
    )


def shared_keys(comparison: Comparison) -> list[str]:
    """What all runs have in common that differs from the default."""
    default = flatten(default_settings())
    records = [record for table in comparison.tables for record in table.runs["record"]]
    flats = [flatten(record.settings or {}) for record in records]
    same = [name for name in flats[0] if all(flat.get(name) == flats[0][name] for flat in flats)]
    return [f"{name}={show(flats[0][name])}" for name in same if flats[0][name] != default.get(name)]


def table_values(table: Table, draws: bool, trust: tuple[str, ...]) -> dict[str, Any]:
    """The table in words, the effect of each key on its first metric, the curves, and the best runs."""
    metric = table.metrics[0]
    best = best_first(table, metric)
    return {
        "title": title(table),
        "metric": metric,
        "cells": rows_of(cells_of(table)),
        "effects": rows_of(effect_cells(table)) if len(table.keys_that_vary) > 1 else [],
        "findings": findings(table),
        "charts": [*effect_charts(table, metric), *curves(best[:CURVES], metric)],
        "best": [best_run(name, record, metric, draws, trust) for name, record in best[:BEST]],
    }


def rows_of(cells: dict[str, list[str]]) -> list[tuple[str, ...]]:
    """A table's head and rows."""
    return [tuple(cells), *zip(*cells.values(), strict=True)] if cells else []


def best_first(table: Table, metric: str) -> list[tuple[str, RunRecord]]:
    """Every run with its name: what sets it apart, and its seed."""
    sign = 1 if lower_is_better(metric) else -1
    costs = [sign * record.metrics[metric] for record in table.runs["record"]]
    names = table.runs["name"].map(table.short_name) + ", seed " + table.runs["seed"].astype(str)
    return [(names.iloc[i], table.runs["record"].iloc[i]) for i in np.argsort(costs, kind="stable")]


def effect_charts(table: Table, metric: str) -> list[dict[str, Any]]:
    """For each key that varies: every run at its value, and the mean at each value."""
    charts = []
    for key in table.keys_that_vary:
        runs = runs_by_value(table, key, metric)
        names = [value or "–" for value in runs]
        x = np.repeat(names, [len(numbers) for numbers in runs.values()]).tolist()
        y = [number for numbers in runs.values() for number in numbers]
        dots = {"name": "runs", "mode": "markers", "x": x, "y": y}
        means = [float(np.mean(numbers)) for numbers in runs.values()]
        line = {"name": "mean", "mode": "lines+markers", "x": names, "y": means}
        charts.append({"title": f"{metric} by {key}", "x": key, "y": "", "kind": "points", "series": [dots, line]})
    return charts


def curves(runs: Sequence[tuple[str, RunRecord]], metric: str) -> list[dict[str, Any]]:
    """The metric over the epochs, where it was logged and the run still has its checkpoint."""
    histories = {name: curve_of(record, metric) for name, record in runs}
    series = [
        {"name": name, "x": list(curve), "y": [float(f"{value:.6g}") for value in curve.values()]}
        for name, curve in histories.items()
        if curve
    ]
    heading = f"{metric} of the best {len(series)} runs" if len(series) > 1 else metric
    return [{"title": heading, "x": "epoch", "y": "", "series": series}] if series else []


def best_run(name: str, record: RunRecord, metric: str, draws: bool, trust: tuple[str, ...]) -> dict[str, Any]:
    figures, reason = pictures_of(record, draws, trust)
    value = number((record.metrics or {})[metric])
    return {"name": name, "run": record.name, "value": value, "figures": figures, "reason": reason}


def pictures_of(record: RunRecord, draws: bool, trust: tuple[str, ...]) -> tuple[list[dict[str, str]], str]:
    """The pictures of a run's evaluation, or drawn now from its best checkpoint; or none, and why."""
    files = [record.directory / "figures" / f"{name}.png" for name in SHOWN]
    if all(file.exists() for file in files):
        return [picture(file) for file in files], ""
    if not draws:
        return [], f"vae evaluate {record.directory} draws them"
    try:
        run = load_run(record.directory, trust=trust)
        subject = Subject(run.vae, run.data, lambda _: [], run.caption, run.settings.seed)
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder, f"{name}.png") for name in SHOWN]
            for file in files:
                write_figure(draw_figure(file.stem, subject), file)
            return [picture(file) for file in files], ""
    except (InputError, RunFailed) as error:
        return [], f"they cannot be drawn ({error})"
