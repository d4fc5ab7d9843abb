"""`vae report SWEEP -o page.html`: the runs below a folder on one page; imports torch for the curves alone."""

import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vae.commands.page import check_output, write_page
from vae.commands.report import curve, default_settings, packed_plotly, picture
from vae.errors import InputError
from vae.run.directory import NOT_IDENTITY
from vae.run.keys import Plain, leaves, show
from vae.run.settings import caption, monitored, read
from vae.run.sweep import RunRecord, list_runs, natural

CURVES = 10  # lines that a legend still tells apart
BEST = 3  # runs side by side
SHOWN = ("reconstructions", "samples", "losses")
ABSENT = "absent"
COLUMNS = ("test/nll", "test/loss", "test/reconstruction", "test/kl", "test/active_units", "seconds")


def report_sweep(path: str, output: Path) -> None:
    """Writes the page of a sweep; raises InputError where no run below the folder is finished."""
    check_output(output, "plotly")
    records = list_runs(path)
    finished = [record for record in records if record.metrics and record.settings]
    if not finished:
        raise InputError(f"{path}: none of its {len(records)} runs is finished; their commands continue them")
    values = sweep_values(finished)
    rest = [record for record in records if record.status != "finished"]
    name = Path(path).resolve().name
    write_page(output, "sweep.html.j2", name=name, rest=rest, count=len(records), plotly=packed_plotly(), **values)


def sweep_values(finished: list[RunRecord]) -> dict[str, Any]:
    """What the template shows: the runs in groups whose metrics compare, and what all of them share."""
    varying = varying_keys(finished)
    groups = defaultdict(list)
    for record in finished:
        groups[comparable(record)].append(record)
    default = dict(leaves(default_settings()))
    shared = [
        (name, show(value))
        for name, value in leaves(finished[0].settings or {})
        if name not in varying and name not in NOT_IDENTITY and value != default.get(name, value is None)
    ]
    return {"varying": varying, "shared": shared, "groups": [group_values(*group, varying) for group in groups.items()]}


def comparable(record: RunRecord) -> str:
    """Runs compare where this is the same: the images, and the likelihood that scores them."""
    plain = settings_of(record)
    likelihood = plain["likelihood"]
    keys = ", ".join(f"{name}={show(value)}" for name, value in leaves(likelihood) if name != "_target_")
    return f"{caption(plain)}; {str(likelihood['_target_']).rpartition('.')[2]} ({keys})"


def settings_of(record: RunRecord) -> Plain:
    assert record.settings is not None  # of a finished run
    return record.settings


def metrics_of(record: RunRecord) -> dict[str, Any]:
    assert record.metrics is not None  # of a finished run
    return record.metrics


def varying_keys(records: Iterable[RunRecord]) -> list[str]:
    """The keys that differ between these runs, those of the upper levels first.

    Of keys that tell the same runs apart, as those of a network's kind do, one stands for all.
    """
    flat = [dict(leaves(settings_of(record))) for record in records]
    names = {name for one in flat for name in one} - set(NOT_IDENTITY)
    kept: dict[tuple[int, ...], str] = {}
    for name in sorted(names, key=lambda name: (name.count("."), not name.endswith("_target_"), name)):
        values = [show(one[name]) if name in one else ABSENT for one in flat]
        apart = tuple(values.index(value) for value in values)  # for each run, the first one of its value
        if len(set(apart)) > 1:
            kept.setdefault(apart, name)
    return list(kept.values())


def group_values(title: str, records: list[RunRecord], varying: list[str]) -> dict[str, Any]:
    """The table, the main effects, the curves and the best runs of runs that compare."""
    metric, mode = monitored(read(settings_of(records[0])), "dev/elbo" in metrics_of(records[0]))
    records = [record for record in records if metric in metrics_of(record)]
    records.sort(key=lambda record: metrics_of(record)[metric], reverse=mode == "max")
    keys = [name for name in varying if name in varying_keys(records)]
    columns = [metric, *(name for name in COLUMNS if all(name in metrics_of(record) for record in records))]
    return {
        "title": title,
        "metric": metric,
        "better": "higher" if mode == "max" else "lower",
        "keys": [name for name in keys if name != "seed"],
        "columns": columns,
        "rows": table(records, [name for name in keys if name != "seed"], columns),
        "charts": [*effects(records, keys, metric), *curves(records[:CURVES], metric)],
        "best": [best_run(record, metric) for record in records[:BEST]],
    }


def value_of(record: RunRecord, name: str) -> str:
    """The value as the command line writes it; of a part, the name of its class."""
    flat = dict(leaves(settings_of(record)))
    value = show(flat[name]) if name in flat else ABSENT
    return value.rpartition(".")[2] if name.endswith("_target_") else value


def table(records: list[RunRecord], keys: list[str], columns: list[str]) -> list[dict[str, Any]]:
    """A row a configuration, in the order of its best run; the mean over seeds, with its standard error."""
    same = defaultdict(list)
    for record in records:
        same[tuple(value_of(record, name) for name in keys)].append(record)
    return [
        {
            "values": values,
            "runs": len(runs),
            "cells": [mean_and_error([metrics_of(r)[c] for r in runs]) for c in columns],
        }
        for values, runs in same.items()
    ]


def mean_and_error(values: list[float]) -> str:
    mean = f"{statistics.fmean(values):.5g}"
    return f"{mean} ± {statistics.stdev(values) / len(values) ** 0.5:.2g}" if len(values) > 1 else mean


def effects(records: list[RunRecord], keys: list[str], metric: str) -> list[dict[str, Any]]:
    """For each key that varies: every run at its value, and the mean of each value."""
    drawn = []
    for name in keys:
        groups = defaultdict(list)
        for record in records:
            groups[value_of(record, name)].append(record)
        values = sorted(groups, key=natural)
        runs = [(value, record) for value in values for record in groups[value]]
        points = {
            "name": "runs",
            "mode": "markers",
            "x": [value for value, _ in runs],
            "y": [metrics_of(record)[metric] for _, record in runs],
            "text": [record.name for _, record in runs],
        }
        means = [statistics.fmean(metrics_of(record)[metric] for record in groups[value]) for value in values]
        line = {"name": "mean", "mode": "lines+markers", "x": values, "y": means}
        short = name.removesuffix("._target_")
        chart = {"title": f"{metric} by {short}", "x": short, "y": "", "kind": "points", "series": [points, line]}
        drawn.append(chart)
    return drawn


def curves(records: list[RunRecord], metric: str) -> list[dict[str, Any]]:
    """The metric over the epochs, of the best runs that still have a checkpoint."""
    from vae.training import checkpoints

    series = []
    for record in records:
        last = record.directory / "checkpoints" / "last.ckpt"
        if last.exists():
            rows = checkpoints.load(last)["callbacks"]["History"]["rows"]
            series.append(curve(rows, metric) | {"name": record.name})
    title = f"{metric} of the best {len(series)} runs" if len(series) > 1 else metric
    return [{"title": title, "x": "epoch", "y": "", "series": series}] if series else []


def best_run(record: RunRecord, metric: str) -> dict[str, Any]:
    paths = [record.directory / "figures" / f"{name}.png" for name in SHOWN]
    figures = [picture(path) for path in paths if path.exists()]
    return {"name": record.name, "metric": f"{metrics_of(record)[metric]:.5g}", "figures": figures}
