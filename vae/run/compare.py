"""The runs of sweeps beside one another: one row a configuration, over its seeds. Imports no torch.

Metrics on different scales never share a column: another likelihood, other images, another sample size make another
table.
"""

import functools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vae.errors import InputError
from vae.evaluation.statistics import Difference, Mean, holm, interval, paired
from vae.run.directory import NOT_IDENTITY
from vae.run.keys import CONF, Plain, leaves, nearest, show
from vae.run.sweep import RunRecord, list_runs, natural

Keys = dict[str, str]  # of a configuration: the keys that vary, as they are written on the command line

IN_NATS = ("loss", "reconstruction", "neg_elbo", "unweighted_loss", "elbo", "nll", "distortion", "bits_per_dimension")
OF_ALL_IMAGES = ("batch_size", "repeat", "seed", "_partial_")  # keys of data that move no scale
NO_KEYS = (*NOT_IDENTITY, "evaluation.features", "evaluation.probes", "evaluation.figures")  # of a configuration
ALPHA = 0.05


@dataclass
class Row:
    """A configuration: its finished runs by seed, and of each metric of its table what they say."""

    keys: Keys
    runs: dict[int, RunRecord]
    means: dict[str, Mean] = field(default_factory=dict)
    differences: dict[str, Difference | None] = field(default_factory=dict)  # to the baseline, which has none
    corrected: dict[str, float] = field(default_factory=dict)  # the p values after Holm's correction

    def values(self, metric: str) -> dict[int, float]:
        return {seed: float((run.metrics or {})[metric]) for seed, run in self.runs.items()}


@dataclass
class Table:
    """Configurations that compare in these metrics."""

    metrics: list[str]
    scale: dict[str, str]  # what sets it apart from the other tables
    rows: list[Row]
    baseline: Row


@dataclass
class Comparison:
    tables: list[Table]
    keys: list[str]
    reasons: list[str]  # why there are several tables
    left_out: list[str]  # runs that are in no table, a line each


def compare(
    roots: Sequence[str | os.PathLike[str]], metrics: Sequence[str] = (), baseline: str | None = None
) -> Comparison:
    """The runs below these folders, by configuration.

    Without `metrics`, those that the best epoch was chosen by, the NLL and the Frechet distance. `baseline` is
    `key=value,...`; without it, the configuration with the fewest differences to the defaults. Raises InputError for
    a folder without runs, a metric that no run has and a baseline that is not there.
    """
    records = list_runs(*roots)
    if not records:
        raise InputError(f"{', '.join(map(str, roots))}: holds no runs; name a folder that train.py wrote")
    finished = [one for one in records if one.metrics is not None]
    left_out = [describe_left_out(one) for one in records if one.metrics is None or one.status != "finished"]
    if not finished:
        return Comparison([], [], [], left_out)
    chosen = list(metrics) or usual_metrics(finished)
    check_metrics(chosen, finished)
    flats = flatten_all(one.settings or {} for one in finished)
    keys = varying_keys(flats)
    rows, repeated = group_runs(finished, [{k: show(flat[k]) for k in keys if k in flat} for flat in flats])
    tables = list(split_by_scale(rows, chosen))
    usual = default_values([one.settings or {} for one in finished]) if len(rows) > 1 else {}
    wanted = parse_baseline(baseline, keys, rows)
    for table in tables:
        table.baseline = nearest_row(table.rows, wanted, usual)
        add_differences(table)
    return Comparison(tables, keys, reasons(tables), [*left_out, *repeated])


def describe_left_out(record: RunRecord) -> str:
    words = record.status if record.metrics is None else f"trains on ({record.status}), shown as it was"
    return f"{record.directory}: {words}{f': {record.message}' if record.message else ''}"


# --- which metrics ----------------------------------------------------------------------------------------------------


def usual_metrics(records: Iterable[RunRecord]) -> list[str]:
    """What the best epoch was chosen by, the NLL, the Frechet distance; in the order of the first run that has them."""
    found: dict[str, None] = {}
    for record in records:
        names = list(record.metrics or {})
        wanted = [monitor_of(record), "test/nll", *(n for n in names if n.startswith("samples/frechet_"))]
        found |= dict.fromkeys(name for name in wanted if name in names)
    return list(found)


def monitor_of(record: RunRecord) -> str:
    plain, metrics = record.settings or {}, record.metrics or {}
    name: str = plain["callbacks"]["monitor"]
    beta = plain["objective"].get("beta", 1.0)
    if name == "dev/loss" and isinstance(beta, dict) and beta.get("_target_") != "vae.schedules.constant":
        return "dev/neg_elbo" if "dev/elbo" in metrics else "dev/unweighted_loss"
    return name


def check_metrics(wanted: Iterable[str], records: Iterable[RunRecord]) -> None:
    known = {name for one in records for name, value in (one.metrics or {}).items() if isinstance(value, int | float)}
    for name in wanted:
        if name not in known:
            raise InputError(f"--metric {name}: no run has it; {nearest(name, sorted(known))}")


# --- which configuration ----------------------------------------------------------------------------------------------


def flatten(plain: Plain) -> dict[str, Any]:
    """The keys that a result depends on; a part stands under its group, by its option: `optimizer` is `adam`."""
    flat = {}
    for name, value in leaves(plain):
        group, _, last = name.rpartition(".")
        if last == "_target_":
            flat[group] = option_of(group, value)
        elif last != "_partial_" and name not in NO_KEYS and not name.startswith("logger."):
            flat[name] = value
    return flat


def flatten_all(settings: Iterable[Plain]) -> list[dict[str, Any]]:
    """Where both halves are of a kind in every run, `model` says so."""
    flats = [flatten(plain) for plain in settings]
    if all(flat.get("model.encoder") == flat.get("model.decoder") for flat in flats):
        flats = [{"model": flat.get("model.encoder"), **flat} for flat in flats]
    return flats


def option_of(group: str, target: str | None) -> str:
    """`adam` for torch.optim.Adam: the option of conf/ that names it, or else the name of the class."""
    return options().get((group, target), str(target).rpartition(".")[2])


@functools.cache
def options() -> dict[tuple[str, str | None], str]:
    """(group, target) -> the first option of conf/ that has it."""
    found: dict[tuple[str, str | None], str] = {}
    for file in sorted(Path(CONF).rglob("*/*.yaml")):
        target = re.search(r"^_target_: (\S+)", file.read_text(), re.MULTILINE)
        if target:
            group = ".".join(file.parent.relative_to(CONF).parts)
            found.setdefault((group, None if target[1] == "null" else target[1]), file.stem)
    return found


def varying_keys(flats: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that differ between configurations, and not only because a part of another kind has others."""
    names = sorted({name for flat in flats for name in flat} - {"seed"}, key=lambda name: (name.count("."), name))
    found: list[str] = []
    for name in names:
        values: dict[str, set[str]] = {}
        for flat in flats:
            if name in flat:
                values.setdefault(_kind_of_part(name, flat), set()).add(show(flat[name]))
        if any(len(each) > 1 for each in values.values()) and not _follows(name, [*found, "seed"], flats):
            found.append(name)
    return found


def _kind_of_part(name: str, flat: Mapping[str, Any]) -> str:
    """The option of the innermost part that a key belongs to."""
    parts = name.split(".")
    groups = [".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1)]
    return next((str(flat[group]) for group in groups if group in flat), "")


def _follows(name: str, found: Iterable[str], flats: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a key above says the same: `model.encoder.dropout` where it is `dropout`, a half where both are alike."""
    above = [one for one in found if one.rpartition(".")[2] == name.rpartition(".")[2]]
    if name in ("model.encoder", "model.decoder"):
        above = ["model"]
    return any(all(flat.get(one, flat[name]) == flat[name] for flat in flats if name in flat)
               and any(one in flat for flat in flats) for one in above if one != name)  # fmt: skip


def group_runs(records: Sequence[RunRecord], keys: Sequence[Keys]) -> tuple[list[Row], list[str]]:
    """One row a configuration, in the order of their values; and a line for a run that repeats another."""
    rows: dict[str, Row] = {}
    repeated = []
    for record, values in zip(records, keys, strict=True):
        row = rows.setdefault(json.dumps(values, sort_keys=True), Row(values, {}))
        seed = int((record.settings or {})["seed"])
        if seed in row.runs:
            repeated.append(f"{record.directory}: repeats {row.runs[seed].directory}, which counts")
        row.runs.setdefault(seed, record)
    return sorted(rows.values(), key=lambda row: [natural(f"{k}={v}") for k, v in row.keys.items()]), repeated


# --- what compares ----------------------------------------------------------------------------------------------------


def scale_of(metric: str, record: RunRecord) -> dict[str, str]:
    """What must be the same for two runs' values of a metric to compare, in words."""
    plain, metrics = record.settings or {}, record.metrics or {}
    split, _, name = metric.partition("/")
    name = name.removesuffix("_error")
    if split not in ("train", "train_eval", "dev", "test", "samples"):
        return {}  # seconds, epochs, parameters
    data = plain["data"]
    scale = {"data": data.get("name", str(data["_target_"]).rpartition(".")[2])}
    same = {f"data.{key}" for key in OF_ALL_IMAGES} | {"data.name", "data._target_", *NOT_IDENTITY}
    scale |= {key: show(value) for key, value in leaves(data, "data.") if key not in same}
    scale["fingerprint of the images"] = str(metrics.get("provenance", {}).get("data_md5"))[:8]
    if split == "samples":
        return scale | {"evaluation.generated": show(plain["evaluation"].get("generated"))}
    if name in IN_NATS:
        scale |= _likelihood_scale(plain["likelihood"])
        scale |= {"model.conditional": "true"} if plain["model"].get("conditional") else {}  # nats of x given its label
    if name == "loss":
        scale |= {"objective": option_of("objective", plain["objective"].get("_target_"))}
        scale |= {key: show(value) for key, value in leaves(plain["objective"], "objective.") if key[-1] != "_"}
    if name in ("nll", "bits_per_dimension"):
        scale["evaluation.samples"] = show(metrics.get(f"{split}/nll_samples"))
    return scale


def _likelihood_scale(likelihood: Plain) -> dict[str, str]:
    """A Gaussian's sigma may differ, as both are densities of the same pixels; what bounds a learned one may not."""
    option = option_of("likelihood", likelihood["_target_"])
    known = {"squared_error": ("reconstruct",), "gaussian": ("min_sigma",) * (likelihood.get("sigma") == "pixel")}
    kept = known.get(option, tuple(key for key in likelihood if key[-1] != "_") if option not in _ours() else ())
    return {"likelihood": option} | {f"likelihood.{key}": show(likelihood.get(key)) for key in kept}


def _ours() -> set[str]:
    return {option for (group, _), option in options().items() if group == "likelihood"}


def split_by_scale(rows: Iterable[Row], metrics: Sequence[str]) -> Iterator[Table]:
    """Tables of the runs that compare; metrics of the same runs share one."""
    found: dict[str, Table] = {}
    for metric in metrics:
        scales: dict[str, tuple[dict[str, str], list[Row]]] = {}
        for row in rows:
            for seed, record in row.runs.items():
                if not isinstance((record.metrics or {}).get(metric), int | float):
                    continue
                scale = scale_of(metric, record)
                _, there = scales.setdefault(json.dumps(scale), (scale, []))
                if not there or there[-1].keys is not row.keys:
                    there.append(Row(row.keys, {}))
                there[-1].runs[seed] = record
        for scale, there in scales.values():
            apart = {key: value for key, value in scale.items() if len({s.get(key) for s, _ in scales.values()}) > 1}
            runs = json.dumps([str(run.directory) for row in there for run in row.runs.values()])
            table = found.setdefault(runs, Table([], {}, there, there[0]))
            table.metrics.append(metric)
            table.scale |= apart
    yield from found.values()


def reasons(tables: Sequence[Table]) -> list[str]:
    """Why a metric has several tables."""
    lines = []
    for metric in dict.fromkeys(name for table in tables for name in table.metrics):
        apart = [table.scale for table in tables if metric in table.metrics]
        keys = dict.fromkeys(key for scale in apart for key in scale if len({s.get(key) for s in apart}) > 1)
        if len(apart) > 1:
            lines.append(f"{metric} has {len(apart)} tables: its values do not compare across {', '.join(keys)}")
    return lines


# --- differences ------------------------------------------------------------------------------------------------------


def default_values(settings: Sequence[Plain]) -> Keys:
    """What the varying keys are without being set, on the data set and with the parts that all these runs share."""
    from vae.run.compose import compose_config
    from vae.run.settings import resolve

    names = {plain["data"].get("name") for plain in settings}
    data = [f"data={name}" for name in names if len(names) == 1 and Path(CONF, "data", f"{name}.yaml").is_file()]
    plain = resolve(compose_config([*data, *_shared_parts(settings)]))
    return {key: show(value) for key, value in flatten(plain).items()}


def _shared_parts(settings: Sequence[Plain]) -> list[str]:
    """`model/encoder=conv` where every run has it: the keys of other options have defaults of their own."""
    flats = [flatten(plain) for plain in settings]
    groups = sorted({group for group, _ in options()} - {"data"})
    shared = {group: flats[0].get(group) for group in groups if len({str(flat.get(group)) for flat in flats}) == 1}
    places = {group.replace(".", "/"): option for group, option in shared.items()}
    return [f"{place}={option}" for place, option in places.items() if Path(CONF, place, f"{option}.yaml").is_file()]


def parse_baseline(text: str | None, keys: Sequence[str], rows: Iterable[Row]) -> Keys:
    """`latent_dim=4,model=mlp` as keys; raises InputError where no configuration has these values."""
    pairs = re.split(r",(?![^\[]*\])", text) if text else []  # at the commas outside brackets
    wanted = {key: value for key, _, value in (pair.partition("=") for pair in pairs)}
    for key, value in wanted.items():
        if key not in keys:
            raise InputError(f"--baseline {key}={value}: {key} does not vary here; these do: {', '.join(keys)}")
    if not any(_has(row, wanted) for row in rows):
        there = "; ".join(f"{k}={', '.join(dict.fromkeys(row.keys.get(k, '-') for row in rows))}" for k in wanted)
        raise InputError(f"--baseline {text}: no configuration is that; there are {there}")
    return wanted


def _has(row: Row, keys: Keys) -> bool:
    return all(row.keys.get(key) == value for key, value in keys.items())


def nearest_row(rows: Sequence[Row], wanted: Keys, usual: Keys) -> Row:
    """Of the rows that are what is wanted, or of all where none is, the one with the fewest differences to `usual`."""
    candidates = [row for row in rows if _has(row, wanted)] or list(rows)
    return min(candidates, key=lambda row: sum(value != usual.get(key) for key, value in row.keys.items()))


def add_differences(table: Table) -> None:
    """Means, differences to the table's baseline, and Holm's correction over all of a metric's tests."""
    for metric in table.metrics:
        theirs = table.baseline.values(metric)
        for row in table.rows:
            row.means[metric] = interval(list(row.values(metric).values()))
            row.differences[metric] = None if row is table.baseline else paired(row.values(metric), theirs)
        tested = [(row, difference.p) for row in table.rows if (difference := row.differences[metric])]
        for (row, _), p in zip(tested, holm([p for _, p in tested]), strict=True):
            row.corrected[metric] = p


def verdict(row: Row, metric: str) -> str:
    """Whether the difference to the baseline is larger than the noise between seeds, in a word or two."""
    difference = row.differences[metric]
    if difference is None:
        return ""
    if math.isnan(difference.p):
        return "one seed"
    if row.corrected[metric] >= ALPHA:
        return "within noise"
    return "lower" if difference.value < 0 else "higher"


def name_of(row: Row, baseline: Row) -> str:
    """A configuration by what sets it apart from the baseline, and the baseline by its own keys."""
    keys = row.keys if row is baseline else _apart(row.keys, baseline.keys)
    return ",".join(f"{key}={value}" for key, value in keys.items()) or "the one configuration"


def _apart(keys: Keys, baseline: Keys) -> Keys:
    return {key: value for key, value in keys.items() if baseline.get(key) != value}


def sentence(row: Row, table: Table, metric: str) -> str:
    """What the difference to the baseline is, and whether it is more than noise."""
    difference = row.differences[metric]
    name = name_of(row, table.baseline)
    if difference is None:
        return f"{name}: no seed of the baseline's"
    way = "lower" if difference.value < 0 else "higher"
    size = f"{name}: {metric} is {abs(difference.value):.3g} {way} than the baseline's"
    if math.isnan(difference.p):
        return f"{size} at the one seed that both have; more seeds tell whether that is noise: seed=0,1,2"
    low, high = sorted((abs(difference.low), abs(difference.high)))
    if row.corrected[metric] < ALPHA:
        return f"{size} (95 % interval {low:.3g} to {high:.3g}), more than the noise between {difference.seeds} seeds"
    return f"{size} (p = {row.corrected[metric]:.2g}), which the noise between {difference.seeds} seeds explains"
