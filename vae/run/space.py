"""What `vae tune` searches: a file of conf/tune/ or one's own, checked before anything is written. No torch here."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vae.errors import InputError
from vae.run.keys import CONF, nearest, show
from vae.run.parts import known_keys

if TYPE_CHECKING:
    from optuna import Trial

KINDS = ("float", "int", "choice")
EXAMPLE = "for example optimizer.lr: {float: [0.0001, 0.01], log: true}"


@dataclass(frozen=True)
class Dimension:
    """A key, the values that it may take, the keys that take the same one, and the values of others that it needs."""

    key: str
    kind: str
    values: list[Any]  # two ends, or the choices
    log: bool
    also: tuple[str, ...]
    when: Mapping[str, list[str]]

    def suggest(self, trial: "Trial") -> str:
        if self.kind == "choice":
            return str(trial.suggest_categorical(self.key, [show(value) for value in self.values]))
        low, high = self.values
        if self.kind == "int":
            return show(trial.suggest_int(self.key, low, high, log=self.log))
        return show(trial.suggest_float(self.key, low, high, log=self.log))


@dataclass(frozen=True)
class Search:
    """A space and what is asked of it."""

    name: str
    objectives: dict[str, str]  # metric -> minimize or maximize
    dimensions: list[Dimension]
    prune: bool
    plain: dict[str, Any]  # the file, to tell a study's own space from another

    def suggest(self, trial: "Trial") -> list[str]:
        """A configuration's overrides; what does not apply under the values chosen so far is left out."""
        chosen: dict[str, str] = {}
        for one in self.dimensions:
            if all(chosen.get(key) in allowed for key, allowed in one.when.items()):
                chosen[one.key] = one.suggest(trial)
        also = {other: chosen[one.key] for one in self.dimensions if one.key in chosen for other in one.also}
        return [f"{key}={value}" for key, value in (chosen | also).items()]


class Lowest:
    """A trial that takes the low end or the first choice: one configuration to check before anything is written."""

    def suggest_int(self, key: str, low: float, high: float, **_: Any) -> float:
        return low

    suggest_float = suggest_int

    def suggest_categorical(self, key: str, choices: list[str]) -> str:
        return choices[0]


def read_search(name: str) -> Search:
    """The space of conf/tune/NAME.yaml or of a file; raises InputError that names the fault."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else Path(CONF, "tune", f"{name}.yaml")
    if not path.is_file():
        options = ", ".join(sorted(one.stem for one in Path(CONF, "tune").glob("*.yaml")))
        raise InputError(f"{name}: there is no such search space; it is one of {options}, or your own file (.yaml)")
    try:
        plain = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({str(error).splitlines()[0]}); mend it") from error
    if not isinstance(plain, dict) or not isinstance(plain.get("space"), dict) or not plain["space"]:
        raise InputError(f"{path}: has no `space`, a mapping of keys; {EXAMPLE}")
    if extra := plain.keys() - {"minimize", "maximize", "prune", "space"}:
        raise InputError(f"{path}: {min(extra)}: there is no such entry; it is one of minimize, maximize, prune, space")
    objectives = dict(_objectives(plain)) or {"dev/loss": "minimize"}
    dimensions = [_dimension(path, key, given, plain["space"]) for key, given in plain["space"].items()]
    prune = plain.get("prune", len(objectives) == 1)
    if prune and (len(objectives) > 1 or not next(iter(objectives)).startswith("dev/")):
        raise InputError(f"{path}: prune=true: only one objective that each epoch knows can prune, such as dev/loss")
    return Search(path.stem, objectives, dimensions, bool(prune), plain)


def _objectives(plain: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for direction in ("minimize", "maximize"):
        names = plain.get(direction) or []
        for name in [names] if isinstance(names, str) else names:
            yield str(name), direction


def _dimension(path: Path, key: str, given: Any, space: Mapping[str, Any]) -> Dimension:
    """Raises InputError for a key or a value that no run would take."""
    kinds = [kind for kind in KINDS if isinstance(given, dict) and kind in given]
    if len(kinds) != 1 or (extra := given.keys() - {*KINDS, "log", "also", "when"}):
        fault = f"{min(extra)}: there is no such entry" if len(kinds) == 1 else f"needs one of {', '.join(KINDS)}"
        raise InputError(f"{path}: {key}: {fault}; {EXAMPLE}")
    (kind,), values, log = kinds, given[kinds[0]], given.get("log", False)
    also = tuple(given.get("also", ()))
    _check_values(f"{path}: {key}={show(values)}", kind, values, log)
    for name in (key, *also):
        _check_key(path, name, values)
    when = {name: _as_texts(one) for name, one in given.get("when", {}).items()}
    names = list(space)
    for name in when:
        if name not in names[: names.index(key)]:
            raise InputError(f"{path}: {key}: when {name}: is no key of the space above {key}; move it there")
    return Dimension(key, kind, values, log, also, when)


def _as_texts(value: Any) -> list[str]:
    return [show(one) for one in (value if isinstance(value, list) else [value])]


def _check_values(said: str, kind: str, values: Any, log: bool) -> None:
    if not isinstance(values, list) or not values:
        raise InputError(f"{said}: must be a list; {EXAMPLE}")
    if kind == "choice":
        return
    types = (int,) if kind == "int" else (int, float)
    if len(values) != 2 or not all(isinstance(one, types) and not isinstance(one, bool) for one in values):
        raise InputError(f"{said}: must be two {'whole numbers' if kind == 'int' else 'numbers'}, low and high")
    if not values[0] < values[1] or (log and values[0] <= 0):
        raise InputError(f"{said}: low must be below high{', and above 0 on a log scale' if log else ''}")


def _check_key(path: Path, name: str, values: list[Any]) -> None:
    if Path(CONF, *name.split(".")).is_dir() or Path(CONF, name).is_dir():  # a group, whose options are files
        return
    known = known_keys()
    if name not in known:
        raise InputError(f"{path}: {name}: there is no such key; {nearest(name, list(known))}")
    for value in values:
        if not known[name].accepts(value):
            raise InputError(f"{path}: {name}={show(value)}: must be {known[name].allowed}")
