"""Runs beside one another: one row per configuration, averaged over its seeds. Imports no torch.

Metrics on different scales never share a column: another likelihood, other images or another number of
importance samples make another table.
"""

import functools
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pandas import DataFrame, concat

from vae.errors import InputError
from vae.evaluation.statistics import holm, interval, p_value
from vae.files import natural
from vae.run.directory import NOT_IDENTITY
from vae.run.keys import CONF, Plain, leaves, nearest, show
from vae.run.records import RunRecord, list_runs
from vae.run.settings import monitored

Keys = dict[str, str]  # of a configuration: the keys that vary, as they are written on the command line

IN_NATS = (
    "loss", "reconstruction", "neg_elbo", "unweighted_loss", "elbo", "nll", "distortion", "bits_per_dimension",
)  # fmt: skip
# metrics of which more is better end so
HIGHER = ("/elbo", "accuracy", "precision", "recall", "entropy", "active_units", "images_per_second")
OF_ALL_IMAGES = ("batch_size", "repeat", "seed", "_partial_")  # keys of data that change no dev or test image
# keys that make no other configuration
NO_KEYS = (*NOT_IDENTITY, "evaluation.features", "evaluation.probes", "evaluation.figures")
ALPHA = 0.05
DIFFERENCE = ["_difference", "_difference_low", "_difference_high", "_p"]
OF_METRIC = ["", "_low", "_high", *DIFFERENCE, "_p_holm", "_verdict"]


@dataclass
class Table:
    """Configurations that can be compared in these metrics."""

    metrics: list[str]
    scale: dict[str, str]  # what sets it apart from the other tables
    runs: DataFrame  # one row per run: its configuration's name, seed, record and keys
    baseline: str = ""  # the name of a configuration, or nothing where the one asked for is not in this table
    # one per configuration: its keys, the number of seeds, and OF_METRIC of each metric
    rows: DataFrame = field(default_factory=DataFrame)

    def values(self, metric: str) -> DataFrame:
        """A row per configuration and a column per seed; nan where a seed was not run."""
        numbers = self.runs.assign(number=[float(record.metrics[metric]) for record in self.runs["record"]])
        values = numbers.pivot(index="name", columns="seed", values="number")
        return values.reindex(self.runs["name"].unique())

    def keys(self, name: str) -> Keys:
        first = self.runs[self.runs["name"] == name].iloc[0]
        return dict(first["keys"])

    @property
    def keys_that_vary(self) -> list[str]:
        keys = self.rows.loc[:, :"seeds"].columns[:-1]
        return [key for key in keys if self.rows[key].nunique() > 1]

    def short_name(self, name: str) -> str:
        """A configuration by what sets it apart from the baseline, and the baseline by its own keys."""
        if not self.baseline or name == self.baseline:
            return name
        apart = self.keys(name).items() - self.keys(self.baseline).items()
        return ",".join(f"{key}={value}" for key, value in sorted(apart))


@dataclass
class Comparison:
    tables: list[Table]
    keys: list[str]
    reasons: list[str]  # why there are several tables, and what is compared instead of the monitored metric
    left_out: list[str]  # runs that are in no table, a line each

    @property
    def frame(self) -> DataFrame:
        """The rows of all tables, unrounded."""
        metrics = dict.fromkeys(metric for table in self.tables for metric in table.metrics)
        columns = ["table", *self.keys, "seeds", *(metric + end for metric in metrics for end in OF_METRIC)]
        numbered = [table.rows.assign(table=number) for number, table in enumerate(self.tables, 1)]
        return concat(numbered).reindex(columns=columns).reset_index(drop=True)


def compare(
    roots: Sequence[str | os.PathLike[str]], metrics: Sequence[str] = (), baseline: str | None = None
) -> Comparison:
    """The runs below these folders, by configuration.

    Without `metrics`: the one that the best epoch was chosen by, or one that can be compared across all of these
    runs; the NLL and the Frechet distance. `baseline` is `key=value,...`; without it, the configuration with the
    fewest differences to the defaults. Raises InputError for a folder without runs, a metric that no run has and a
    baseline that no configuration matches.
    """
    records = list_runs(*roots)
    if not records:
        raise InputError(f"{', '.join(map(str, roots))}: holds no runs; give a folder written by train.py")
    finished = [record for record in records if record.metrics is not None]
    left_out = [describe_left_out(record) for record in records if record.status != "finished"]
    if not finished:
        return Comparison([], [], [], left_out)
    check_metrics(metrics, finished)
    chosen, notes = (list(dict.fromkeys(metrics)), []) if metrics else usual_metrics(finished)
    flats = flatten_all(record.settings or {} for record in finished)
    keys = varying_keys(flats)
    required = parse_baseline(baseline, keys, flats)
    runs = frame_of(finished, [{key: show(flat[key]) for key in keys if key in flat} for flat in flats])
    repeated = runs[runs.duplicated(["name", "seed"])]["record"]
    left_out += [f"{record.directory}: repeats a configuration and seed, of which one counts" for record in repeated]
    tables, reasons = split_by_scale(runs.drop_duplicates(["name", "seed"]), chosen)
    usual = default_values([record.settings or {} for record in finished]) if keys else {}
    for table in tables:
        table.baseline = nearest_name(table, required, usual)
        table.rows = summarise(table, keys)
    return Comparison(tables, keys, [*notes, *reasons], left_out)


def frame_of(records: Sequence[RunRecord], keys: Sequence[Keys]) -> DataFrame:
    """One row per run, in the order of the configurations' names."""
    pairs = [[f"{key}={value}" for key, value in configuration.items()] for configuration in keys]
    names = [",".join(pair) or "the only configuration" for pair in pairs]
    seeds = [int((record.settings or {})["seed"]) for record in records]
    frame = DataFrame({"name": names, "seed": seeds, "record": records, "keys": keys})
    return frame.iloc[sorted(range(len(names)), key=lambda i: natural(names[i]))].reset_index(drop=True)


def describe_left_out(record: RunRecord) -> str:
    words = record.status if record.metrics is None else f"trains on ({record.status}), shown as it was"
    return f"{record.directory}: {words}{f': {record.message}' if record.message else ''}"


# --- which metrics


def usual_metrics(records: Sequence[RunRecord]) -> tuple[list[str], list[str]]:
    """What the best epochs were chosen by, or what can be compared instead; the NLL, the Frechet distance.

    And a note on what is compared instead. A loss under two weights of the KL gives way to the loss with beta 1.
    """
    watched = list(dict.fromkeys(map(monitor_of, records)))
    candidates = [*watched, "dev/neg_elbo", "dev/unweighted_loss", "test/nll"]
    of_all = [metric for metric in candidates if all(has(record, metric) for record in records)]
    first = min(of_all or watched, key=lambda metric: len(scales_of(metric, records)))
    names = dict.fromkeys(name for record in records for name in record.metrics or {})
    further = ["test/nll", *(name for name in names if name.startswith("samples/frechet_"))]
    metrics = list(dict.fromkeys([first, *(name for name in further if name in names)]))
    if first == watched[0] and len(watched) == 1:
        return metrics, []
    apart = ", ".join(differing(scales_of(watched[0], records).values())) or "these runs"
    monitors = " and ".join(watched)
    return metrics, [f"{monitors} cannot be compared across {apart}: {first} is compared instead"]


def monitor_of(record: RunRecord) -> str:
    return monitored(record.settings or {}, "dev/elbo" in (record.metrics or {}))[0]


def has(record: RunRecord, metric: str) -> bool:
    value = (record.metrics or {}).get(metric)
    return isinstance(value, int | float) and math.isfinite(value)


def check_metrics(metrics: Iterable[str], records: Iterable[RunRecord]) -> None:
    known = {name for record in records for name in record.metrics or {} if name != "provenance"}
    for name in metrics:
        if name not in known:
            raise InputError(f"--metric {name}: no run has it; {nearest(name, sorted(known))}")


def lower_is_better(metric: str) -> bool:
    return not re.sub(r"_convnet.*", "", metric).endswith(HIGHER)


# --- which configuration


def flatten(plain: Plain) -> dict[str, Any]:
    """The keys that a result depends on; a part stands under its group, by its option: optimizer=adam."""
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


def option_of(group: str, target: Any) -> str:
    """`adam` for torch.optim.Adam: the option of conf/ that names it, or else the name of the class."""
    name = None if target is None else str(target)
    return options().get((group, name), str(name).rpartition(".")[2])


@functools.cache
def options() -> dict[tuple[str, str | None], str]:
    """(group, target) -> the first option of conf/ that has it."""
    named: dict[tuple[str, str | None], str] = {}
    for file in sorted(Path(CONF).rglob("*/*.yaml")):
        target = re.search(r"^ *_target_: (\S+)", file.read_text(), re.MULTILINE)
        if target:
            group = ".".join(file.parent.relative_to(CONF).parts)
            named.setdefault((group, None if target[1] == "null" else target[1]), file.stem)
    return named


def varying_keys(flats: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that differ between configurations, but for those that come with another kind of part."""
    names = set().union(*flats) - {"seed"}
    varying: list[str] = []
    for name in sorted(names, key=lambda name: (name.count("."), name)):
        values: dict[str, set[str]] = {}
        for flat in flats:
            if name in flat:
                values.setdefault(_kind_of_part(name, flat), set()).add(repr(flat[name]))
        differs = any(len(several) > 1 for several in values.values())
        if differs and not _follows(name, [*varying, "seed"], flats):
            varying.append(name)
    return varying


def _kind_of_part(name: str, flat: Mapping[str, Any]) -> str:
    """The option of the innermost part that a key belongs to."""
    parts = name.split(".")
    groups = [".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1)]
    return next((str(flat[group]) for group in groups if group in flat), "")


def _follows(name: str, varying: Iterable[str], flats: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a key above sets this one, as `dropout` sets `model.encoder.dropout`, and `model` both halves."""
    having = [flat for flat in flats if name in flat]
    above = [key for key in varying if key != name and key.rpartition(".")[2] == name.rpartition(".")[2]]
    if name in ("model.encoder", "model.decoder"):
        above = ["model"]
    return any(
        any(key in flat for flat in flats) and all(flat.get(key, flat[name]) == flat[name] for flat in having)
        for key in above
    )


# --- what can be compared


def scale_of(metric: str, record: RunRecord) -> dict[str, str]:
    """What must be equal before two runs' values of a metric can be compared, in words."""
    plain, metrics = record.settings or {}, record.metrics or {}
    split, _, name = metric.partition("/")
    name = name.removesuffix("_error")
    if split not in ("train", "train_eval", "dev", "test", "samples"):
        return {}  # seconds, epochs, parameters
    data = plain["data"]
    scale = {"data": option_of("data", data.get("_target_"))}
    same = {f"data.{key}" for key in OF_ALL_IMAGES} | {"data._target_", *NOT_IDENTITY}
    scale |= {key: show(value) for key, value in leaves(data, "data.") if key not in same}
    scale["fingerprint of the images"] = str(metrics.get("provenance", {}).get("data_md5"))[:8]
    if split == "samples":
        return scale | {"evaluation.generated": show(plain["evaluation"].get("generated"))}
    if name in IN_NATS:
        scale |= _likelihood_scale(plain["likelihood"])
        if plain["model"].get("conditional"):
            scale["model.conditional"] = "true"  # nats of x given its label
    if name == "loss":
        scale |= {"objective": option_of("objective", plain["objective"].get("_target_"))}
        weights = leaves(plain["objective"], "objective.")
        scale |= {key: show(value) for key, value in weights if key[-1] != "_"}
    if name in ("nll", "bits_per_dimension"):
        scale["evaluation.samples"] = show(metrics.get(f"{split}/nll_samples"))
    return scale


def _likelihood_scale(likelihood: Plain) -> dict[str, str]:
    """Gaussians of two sigmas are densities of the same pixels; what bounds a learned sigma sets them apart."""
    option = option_of("likelihood", likelihood.get("_target_"))
    keys = {"squared_error": ["reconstruct"], "gaussian": ["min_sigma"] if likelihood.get("sigma") == "pixel" else []}
    if ("likelihood", likelihood.get("_target_")) not in options():  # an own one may mean anything by its keys
        keys[option] = [key for key in likelihood if key[-1] != "_"]
    return {"likelihood": option} | {f"likelihood.{key}": show(likelihood.get(key)) for key in keys.get(option, [])}


def scales_of(metric: str, records: Iterable[RunRecord]) -> dict[str, dict[str, str]]:
    """The scales on which runs have a metric, by their text."""
    return {json.dumps(scale): scale for scale in (scale_of(metric, record) for record in records)}


def differing(scales: Iterable[Mapping[str, str]]) -> list[str]:
    """The keys in which scales differ."""
    several = list(scales)
    keys = dict.fromkeys(key for scale in several for key in scale)
    return [key for key in keys if len({scale.get(key) for scale in several}) > 1]


def split_by_scale(runs: DataFrame, metrics: Sequence[str]) -> tuple[list[Table], list[str]]:
    """Tables of runs that can be compared, and why a metric has several. Metrics of the same runs share one."""
    tables: dict[tuple[int, ...], Table] = {}
    reasons = []
    for metric in metrics:
        scored = runs[[has(record, metric) for record in runs["record"]]]
        each = [scale_of(metric, record) for record in scored["record"]]
        texts = list(map(json.dumps, each))
        scales = dict(zip(texts, each, strict=True))
        apart = differing(scales.values())
        for text, scale in scales.items():
            part = scored[[other == text for other in texts]]
            table = tables.setdefault(tuple(part.index), Table([], {}, part))
            table.metrics.append(metric)
            table.scale |= {key: value for key, value in scale.items() if key in apart}
        if len(scales) > 1:
            keys = ", ".join(apart)
            reasons.append(f"{metric} has {len(scales)} tables: its values cannot be compared across {keys}")
    return list(tables.values()), reasons


def grouped(records: Sequence[RunRecord], metric: str) -> dict[str, list[RunRecord]]:
    """The runs whose values of a metric can be compared, under what sets each group apart from the others."""
    scales = [scale_of(metric, record) for record in records]
    shown = {"data", "data.binarize", "likelihood", "evaluation.samples", *differing(scales)}
    groups: dict[str, list[RunRecord]] = {}
    for record, scale in zip(records, scales, strict=True):
        words = [f"{key}={value}" for key, value in scale.items() if key in shown]
        title = ", ".join(word.removeprefix("data=").removeprefix("likelihood=") for word in words)
        groups.setdefault(title, []).append(record)
    return groups


# --- differences


def default_values(settings: Sequence[Plain]) -> Keys:
    """What the varying keys are without being set, with the data set and the parts that all these runs share."""
    from vae.run.compose import compose_config
    from vae.run.settings import resolve

    flats = [flatten(plain) for plain in settings]
    shared = []
    for group in sorted({group for group, _ in options()}):
        first, *others = {str(flat.get(group)) for flat in flats}
        place = group.replace(".", "/")
        if not others and Path(CONF, place, f"{first}.yaml").is_file():
            shared.append(f"{place}={first}")  # keys of other options have defaults of their own
    return {key: show(value) for key, value in flatten(resolve(compose_config(shared))).items()}


def parse_baseline(text: str | None, keys: Sequence[str], flats: Sequence[Mapping[str, Any]]) -> Keys:
    """`latent_dim=4,model=mlp` as keys; raises InputError where no configuration has these values."""
    pairs = re.split(r",(?![^\[]*\])", text) if text else []  # at the commas outside brackets
    required = {key: value for key, _, value in (pair.partition("=") for pair in pairs)}
    for key, value in required.items():
        if key not in keys:
            raise InputError(f"--baseline {key}={value}: {key} does not vary; these keys do: {', '.join(keys)}")
    configurations = [{key: show(flat[key]) for key in required if key in flat} for flat in flats]
    if required not in configurations:
        values = {key: dict.fromkeys(each.get(key, "–") for each in configurations) for key in required}
        known = "; ".join(f"{key}={', '.join(several)}" for key, several in values.items())
        raise InputError(f"--baseline {text}: no configuration matches; there are {known}")
    return required


def nearest_name(table: Table, required: Keys, usual: Keys) -> str:
    """Of the configurations that match `required` the one nearest to the defaults; nothing where none does."""
    keys = {name: table.keys(name) for name in table.runs["name"].unique()}
    matching = [name for name in keys if required.items() <= keys[name].items()]
    return min(matching, key=lambda name: len(keys[name].items() - usual.items()), default="")


def summarise(table: Table, keys: Sequence[str]) -> DataFrame:
    """A row per configuration, in the order of their names: its keys, seeds, and OF_METRIC of each metric."""
    names = list(table.runs["name"].unique())
    rows = DataFrame([table.keys(name) for name in names], index=names, columns=list(keys)).fillna("")
    rows["seeds"] = table.runs["name"].value_counts()
    for metric in table.metrics:
        values = table.values(metric)
        means = [interval(row.dropna().tolist())[:3] for _, row in values.iterrows()]
        rows[[metric, f"{metric}_low", f"{metric}_high"]] = np.array(means)
        if table.baseline and len(names) > 1:
            compared = differences(values - values.loc[table.baseline])
            compared.loc[table.baseline] = math.nan
            rows = rows.join(compared.add_prefix(metric))
    return rows


def differences(gaps: DataFrame) -> DataFrame:
    """Of gaps to a baseline (a row per configuration, a column per seed): each row's mean, interval, test, verdict.

    Gaps are paired by seed, so that what a seed does to both sides cancels; p is that of the paired t test,
    corrected after Holm over all rows.
    """
    paired = [row.dropna().tolist() for _, row in gaps.iterrows()]
    frame = DataFrame([(*interval(row)[:3], p_value(row)) for row in paired], gaps.index, DIFFERENCE)
    frame["_p_holm"] = holm(frame["_p"])
    tests = zip(frame["_difference"], frame["_p_holm"], map(len, paired), strict=True)
    frame["_verdict"] = [verdict(*test) for test in tests]
    return frame


def verdict(difference: float, p: float, seeds: int) -> str:
    """Whether a difference is larger than the noise between seeds, in a word or two."""
    if seeds < 2:
        return "one seed" if seeds else "no shared seed"
    if math.isnan(p):
        return "no spread"
    if p >= ALPHA:
        return "within noise"
    return "lower" if difference < 0 else "higher"


def effects(table: Table, metric: str) -> DataFrame:
    """What each value of each key does, all else equal: key, value, against, pairs, and `differences`.

    A pair is two configurations that differ in this key alone; a seed's gap is the mean over its pairs.
    """
    values, keys = table.values(metric), table.rows[table.keys_that_vary]
    base = keys.loc[table.baseline or keys.index[0]]
    rows, gaps = [], []
    for key in keys:
        for value in sorted({*keys[key]} - {base[key]}, key=natural):
            twins: dict[str, str] = {}
            for name, ours in keys[keys[key] == value].iterrows():
                theirs = ours.where(ours.index != key, base)
                twins.update((name, twin) for twin in keys.index[(keys == theirs).all(axis=1)])
            if twins:
                rows.append((key, value, base[key], len(twins)))
                pairs = values.loc[list(twins)].to_numpy() - values.loc[list(twins.values())].to_numpy()
                gaps.append(DataFrame(pairs).mean())
    frame = DataFrame(rows, columns=["key", "value", "against", "pairs"])
    return frame.join(differences(DataFrame(gaps).reset_index(drop=True))) if gaps else frame
