"""What `vae tune` searches: a file of conf/tune/ or one's own, whose values are written in Hydra's grammar of sweeps.

A value is `choice(...)`, `range(...)`, `interval(low, high)`, `int(interval(low, high))`, one of these within
`tag(log, ...)`, or one value for all trials, such as `${model.encoder.hidden}`. A mapping lists the options of a key,
each with the space that it opens. Imports no torch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException

from vae.errors import InputError
from vae.files import expand, read_yaml
from vae.run.compose import compose
from vae.run.keys import CONF, show

if TYPE_CHECKING:
    from optuna import Trial

ENTRIES = ("minimize", "maximize", "prune", "space")
EXAMPLE = "for example optimizer.lr: tag(log, interval(0.0001, 0.01))"


@dataclass(frozen=True)
class Search:
    """A space and what is asked of it."""

    name: str
    objectives: dict[str, str]  # metric -> minimize or maximize
    prune: bool
    plain: dict[str, Any]  # the file, to tell a study's own space from another

    def suggest(self, trial: "Trial") -> list[str]:
        """A configuration's overrides."""
        return list(_suggest(self.plain["space"], trial))

    def keys(self) -> set[str]:
        """Every key that a trial may set."""
        return set(_keys(self.plain["space"]))


def _suggest(space: Mapping[str, Any], trial: Any) -> Iterator[str]:
    for key, entry in space.items():
        if isinstance(entry, Mapping):
            option = trial.suggest_categorical(key, list(entry))
            yield f"{key}={option}"
            yield from _suggest(entry[option] or {}, trial)
        else:
            yield f"{key}={_value(parse(key, entry), trial)}"


def _keys(space: Mapping[str, Any]) -> Iterator[str]:
    for key, entry in space.items():
        yield key
        for opened in entry.values() if isinstance(entry, Mapping) else ():
            yield from _keys(opened or {})


def parse(key: str, entry: Any) -> Override:
    """Raises InputError for what Hydra's grammar does not know."""
    text = entry if isinstance(entry, str) else show(entry)
    try:
        return OverridesParser.create().parse_override(f"{key}={text}")
    except HydraException as error:
        raise InputError(f"{key}: {text}: cannot be read ({' '.join(str(error).split())}); {EXAMPLE}") from error


def _value(override: Override, trial: Any) -> str:
    """One that the trial takes, as it is written on the command line."""
    key, sweep = override.key_or_group, override.value()
    if not override.is_sweep_override():
        return (override.input_line or "").partition("=")[2]
    if not isinstance(sweep, IntervalSweep):
        return str(trial.suggest_categorical(key, list(override.sweep_string_iterator())))
    low, high, log = sweep.start, sweep.end, "log" in sweep.tags
    if isinstance(low, int):
        return show(trial.suggest_int(key, low, high, log=log))
    return show(trial.suggest_float(key, low, high, log=log))


class Edge:
    """In the place of a trial: takes the first choice or the low end of each key, or a numbered value."""

    def __init__(self, numbers: Mapping[str, int]) -> None:
        self.numbers, self.sizes = numbers, dict[str, int]()

    def _at(self, key: str, values: list[Any]) -> Any:
        self.sizes[key] = len(values)
        return values[self.numbers.get(key, 0)]

    def suggest_int(self, key: str, low: Any, high: Any, log: bool) -> Any:
        if not low < high or (log and low <= 0):
            raise InputError(f"{key}: {low} to {high}: low must be below high{', and above 0 on a log scale' * log}")
        return self._at(key, [low, high])

    suggest_float = suggest_int

    def suggest_categorical(self, key: str, choices: list[Any]) -> Any:
        return self._at(key, choices)


def edges(search: Search) -> Iterator[list[str]]:
    """Configurations that have each choice and each end of an interval once, the other keys at their first value."""
    waiting: list[dict[str, int]] = [{}]
    known: set[str] = set()
    for numbers in waiting:
        edge = Edge(numbers)
        yield search.suggest(edge)  # type: ignore[arg-type]  # as much of a trial as it needs
        for key in [key for key in edge.sizes if key not in known]:  # an option may have opened a space
            waiting += [{**numbers, key: number} for number in range(1, edge.sizes[key])]
        known |= edge.sizes.keys()


def read_search(name: str) -> Search:
    """The space of conf/tune/NAME.yaml or of a file; raises InputError that names the fault."""
    is_file = name.endswith((".yaml", ".yml"))
    path = expand(name) if is_file else Path(CONF, "tune", f"{name}.yaml")
    if not path.is_file():
        options = ", ".join(sorted(file.stem for file in Path(CONF, "tune").glob("*.yaml")))
        raise InputError(f"{name}: there is no such search space; it is one of {options}, or your own file (.yaml)")
    plain = read_yaml(path)
    if not isinstance(plain, dict) or not isinstance(plain.get("space"), dict) or not plain["space"]:
        raise InputError(f"{path}: has no `space`, a mapping of keys; {EXAMPLE}")
    if extra := {*plain} - {*ENTRIES}:
        raise InputError(f"{path}: {min(map(str, extra))}: unknown entry; the entries are {', '.join(ENTRIES)}")
    objectives = dict(_objectives(plain)) or {"dev/loss": "minimize"}
    prune = plain.get("prune", len(objectives) == 1)
    if prune and (len(objectives) > 1 or not next(iter(objectives)).startswith("dev/")):
        raise InputError(f"{path}: prune=true: only one objective that each epoch knows can prune, such as dev/loss")
    search = Search(path.stem, objectives, bool(prune), plain)
    try:
        list(edges(search))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return search


def _objectives(plain: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for direction in ("minimize", "maximize"):
        names = plain.get(direction) or []
        for name in [names] if isinstance(names, str) else names:
            yield str(name), direction


def check_edges(search: Search, overrides: list[str]) -> None:
    """Raises InputError for a space whose keys or values no run takes, beside these overrides."""
    first, *others = edges(search)
    compose([*overrides, *first])
    known = set(first)
    for edge in others:
        try:
            compose([*overrides, *edge])
        except InputError as error:
            new = [override for override in edge if override not in known]
            if str(error).startswith(tuple(new)):  # what does not go together is a trial's own failure
                raise InputError(f"{search.name}: {error}") from error
