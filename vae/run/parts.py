"""Parts: the class or function that a group's `_target_` names, and the keys that its constructor takes.

A signature is the schema of its part (vae/types.py says how a key is written): the project's parts and a person's own
are read and checked by the same code. pydantic checks the values; hydra-zen's wrapper of it would check the `_partial_`
parts only when they are built, after the run's directory was made. Reading a part imports it, and so torch.
"""

import difflib
import functools
import importlib
import inspect
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Union, get_type_hints

from omegaconf import DictConfig, OmegaConf, open_dict

from vae.errors import InputError
from vae.run.keys import CONF, SECTIONS, Key, Settings, check_keys, key_of, keys_of_section, targets
from vae.run.own_modules import find_own_modules
from vae.run.torch_keys import KEYS as TORCH_KEYS
from vae.run.torch_keys import RULES as TORCH_RULES
from vae.types import Choices, Plain

EXTRAS = ("mlflow", "wandb")  # loggers that need a package of the same name


class Group(NamedTuple):
    base: str | None = None  # the class that its parts derive from
    handed_in: frozenset[str] = frozenset()  # parameters that the builder fills in, beside the configuration's keys


GROUPS = {
    "model.encoder": Group("torch.nn.Module", frozenset({"image_shape", "out_features"})),
    "model.decoder": Group("torch.nn.Module", frozenset({"in_features", "image_shape"})),
    "prior": Group("vae.priors.Prior", frozenset({"latent_dim", "image_shape"})),
    "posterior": Group("vae.posteriors.Posterior", frozenset({"latent_dim"})),
    "likelihood": Group("vae.likelihoods.Likelihood"),
    "objective": Group(),
    "objective.beta": Group(None, frozenset({"step"})),
    "data": Group("lightning.LightningDataModule"),
    "optimizer": Group("torch.optim.Optimizer", frozenset({"params"})),
    "scheduler": Group(None, frozenset({"optimizer", "steps_per_epoch"})),
}
NAMED = {  # any number of parts, each under a name of its own
    "callbacks.extra": Group("lightning.Callback"),
    "logger": Group("lightning.pytorch.loggers.Logger", frozenset({"save_dir", "purge_step", "id"})),
}


# --- a part of a configuration ----------------------------------------------------------------------------------------


def check_parts(plain: Plain) -> Choices:
    """The classes of a configuration; raises InputError, one line, for a part, a key or a pair that cannot be used."""
    parts = {}
    for place, node in parts_in(plain):
        part = parts[place] = import_target(place, node["_target_"])
        if node["_target_"] not in options(place).values():
            _check_kind(place, node["_target_"], part)
        _check_values(place, node, part)
    chosen = Choices(plain, parts)
    for part in parts.values():
        requires = getattr(part, "requires", None) or TORCH_RULES.get(_name_of(part))
        if requires:
            requires(chosen)
    return chosen


def parts_in(plain: Plain) -> Iterator[tuple[str, Plain]]:
    """The parts of a configuration by their place in it; raises InputError for a place that names none."""
    values = Choices(plain, {})
    named = [f"{group}.{name}" for group in NAMED for name in values[group] or {}]
    for place in (*GROUPS, *named):
        node = values[place]
        if isinstance(node, dict) and isinstance(node.get("_target_"), str):
            yield place, node
        elif place == "scheduler" and isinstance(node, dict):  # none: the learning rate stays
            check_keys("scheduler.", {"_target_": Key(None)}, node, lambda name: _explain("scheduler", None, name))
        elif isinstance(node, dict):
            raise InputError(f"{place}: names no part; give {place}._target_=package.module.Name")


def _check_values(place: str, node: Plain, part: Any) -> None:
    keys, takes_others = keys_of(place, part)
    parts = {name for name in node.keys() & keys.keys() if f"{place}.{name}" in GROUPS and isinstance(node[name], dict)}
    plain = {name: value for name, value in node.items() if name not in ("_target_", "_partial_", *parts)}
    for name, value in plain.items():
        if (name in keys or takes_others) and _holds_part(value):
            raise InputError(f"{place}.{name}: holds a part (_target_), and this key takes a value; give a plain value")
    absent = group_of(place).handed_in - plain.keys()
    known = {name: key for name, key in keys.items() if name not in absent | parts}
    check_keys(f"{place}.", known, plain, lambda name: _explain(place, part, name), takes_others)


def _holds_part(value: Any) -> bool:
    if isinstance(value, dict):
        return "_target_" in value or any(map(_holds_part, value.values()))
    return isinstance(value, list) and any(map(_holds_part, value))


def _explain(place: str, part: Any, name: str) -> str:
    """What may have been meant by a key that a part does not take."""
    group, named = place.replace(".", "/"), [*own_keys(place, part)] if part else []
    taker = _taker(place, part)
    others = [
        option for option, target in options(place).items() if name in own_keys(place, import_target(place, target))
    ]
    if close := difflib.get_close_matches(name, named, n=1):
        hint = f"did you mean {place}.{close[0]}?"
    elif others:
        hint = f"it belongs to {group}={' or '.join(others)}; if a recipe sets it, choose the option without the recipe"
    else:
        hint = f"it takes {', '.join(named)}" if named else "it takes none"
    return f"{taker} has no such key; {hint}"


def import_target(place: str, target: Any) -> Any:
    """The class or function of a dotted name; raises InputError where it cannot be imported or called."""
    if place.startswith("logger.") and (name := place.partition(".")[2]) in EXTRAS and find_spec(name) is None:
        raise InputError(f"logger={name}: {name} is not installed; pip install '.[{name}]'")
    module, _, name = str(target).rpartition(".")
    try:
        if target not in targets():
            find_own_modules([str(target)])
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # an own module may fail in any way while it is imported
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{place}._target_={target}: cannot be imported ({reason}); give package.module.Name of something that "
            "`python -c 'import package.module'` finds from here"
        ) from error


def _check_kind(place: str, target: str, part: Any) -> None:
    base = group_of(place).base
    if base is not None and not (inspect.isclass(part) and issubclass(part, import_target(place, base))):
        raise InputError(f"{place}._target_={target}: is not a {base}; derive the class from it")
    if not callable(part):
        raise InputError(f"{place}._target_={target}: cannot be called; name a class or a function")
    # every class is callable, so that hasattr would always be true of it
    if place == "objective" and inspect.isclass(part) and not any("__call__" in vars(base) for base in part.__mro__):
        raise InputError(f"objective._target_={target}: is not an objective; give it __call__(vae, x, step) -> Terms")


def _taker(place: str, part: Any) -> str:
    """`prior=flow`, or the name of a class that no option builds."""
    if part is None:
        return f"{place}=none"
    names = (name for name, target in options(place).items() if import_target(place, target) is part)
    return next((f"{place.replace('.', '/')}={name}" for name in names), _name_of(part))


def group_of(place: str) -> Group:
    """Of `logger.csv`, the group of loggers."""
    return GROUPS.get(place) or NAMED[place.rpartition(".")[0]]


def _name_of(part: Any) -> str:
    return f"{part.__module__}.{part.__qualname__}"


# --- a signature ------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1000)
def keys_of(place: str, part: Any) -> tuple[dict[str, Key], bool]:
    """A part's parameters by name, and whether it takes any others.

    `**kwargs` of a constructor stand for the parameters of the base's, as in `super().__init__(**kwargs)`.
    """
    keys: dict[str, Key] = {}
    for function in _constructors(part):
        kinds = _hints(function) | (TORCH_KEYS.get(place, {}) if _is_torch(part) else {})
        parameters = list(inspect.signature(function).parameters.values())
        for parameter in parameters[1:] if inspect.isclass(part) else parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                keys.setdefault(parameter.name, key_of(kinds.get(parameter.name, Any), parameter.default))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return keys, False
    return keys, not inspect.isclass(part)


def _constructors(part: Any) -> list[Any]:
    """The `__init__` of a class and of its bases but for torch's Module and object, whose arguments say nothing."""
    if not inspect.isclass(part):
        return [part]
    last = ("torch.nn.modules.module.Module", "builtins.object")
    return [vars(base)["__init__"] for base in part.__mro__ if "__init__" in vars(base) and _name_of(base) not in last]


def _hints(function: Any) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except Exception:  # annotations of an own class may name anything; then the constructor itself decides
        return {}


def _is_torch(part: Any) -> bool:
    return str(part.__module__).startswith("torch.")


def own_keys(place: str, part: Any) -> dict[str, Key]:
    """The keys of a part that a person sets: without those that the builder fills in, and torch's that say nothing."""
    handed_in = group_of(place).handed_in
    keys = {name: key for name, key in keys_of(place, part)[0].items() if name not in handed_in}
    return {name: key for name, key in keys.items() if key.meaning} if _is_torch(part) else keys


def fill_defaults(cfg: DictConfig) -> None:
    """Gives a configuration the keys that neither a file nor an override set, at their constructor's defaults.

    torch's own parameters are left to torch.
    """
    for place in GROUPS:
        node = OmegaConf.select(cfg, place)
        if isinstance(node, DictConfig) and not OmegaConf.is_missing(node, "_target_") and node.get("_target_"):
            part = import_target(place, str(node["_target_"]))
            defaults = {} if _is_torch(part) else own_keys(place, part)
            with open_dict(node):
                for name, key in defaults.items():
                    if name not in node and _is_plain(key.default):
                        node[name] = list(key.default) if isinstance(key.default, tuple) else key.default


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


# --- the files of conf/ -----------------------------------------------------------------------------------------------


@functools.cache
def options(place: str) -> dict[str, str]:
    """The options of a group by name, with what they build; a group of named parts has none."""
    if place not in GROUPS:
        return {}
    names = {file.stem: _target_in(file) for file in sorted(Path(CONF, *place.split(".")).glob("*.yaml"))}
    targets = {option: target or names.get("base", "") for option, target in names.items()}
    return {
        option: target for option, target in targets.items() if option != "base" and target not in ("", "null", "???")
    }


def _target_in(file: Path) -> str:
    match = re.search(r"^ *_target_: (\S+)", file.read_text(), re.MULTILINE)
    return match[1] if match else ""


@functools.cache
def known_keys() -> dict[str, Key]:
    """Every key that the project knows by its dotted name: those of a run, and those of each part's options."""
    return dict(_known_keys(Settings, ""))


def _known_keys(section: type, prefix: str) -> Iterator[tuple[str, Key]]:
    for name, key in keys_of_section(section).items():
        place = f"{prefix}{name}"
        if place in GROUPS:
            yield from _keys_of_group(place)
        elif place in SECTIONS:
            yield from _known_keys(SECTIONS[place], f"{place}.")
        else:
            yield place, key


def _keys_of_group(place: str) -> Iterator[tuple[str, Key]]:
    """Of all its options; a key of several has the types of each."""
    keys: dict[str, list[Key]] = {}
    for target in options(place).values():
        for name, key in own_keys(place, import_target(place, target)).items():
            keys.setdefault(name, []).append(key)
    for name, found in keys.items():
        if f"{place}.{name}" in GROUPS:
            yield from _keys_of_group(f"{place}.{name}")
        kind: Any = Union.__getitem__(tuple(dict.fromkeys(key.kind for key in found)))
        yield f"{place}.{name}", Key(kind, next((key.meaning for key in found if key.meaning), ""), found[0].default)
