"""Overrides -> settings, with Hydra as a library. Whoever needs a configuration asks `compose`.

Imports no torch: that is left to the check of a part's keys.
"""

import argparse
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hydra
from hydra import initialize_config_dir
from hydra._internal.utils import get_args_parser  # Hydra's own list of flags; it has no public one
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vae.errors import InputError
from vae.files import read_yaml
from vae.run import settings
from vae.run.keys import CONF, PLACES, Settings, as_plain, expand_place, nearest, show
from vae.run.parts import GROUPS, NAMED, known_keys

OF_HYDRA = ("hydra.searchpath", "hydra/launcher", "hydra.launcher.")  # its own settings that mean something here


def compose(arguments: Sequence[str] = ()) -> Settings:
    """The settings of one run, checked, from `key=value` overrides and, if need be, `--config-dir FOLDER`.

    Raises InputError, one line, for what cannot be read or used. Reads and changes nothing of a Hydra under way.
    """
    parsed = parse(arguments)
    if parsed.multirun:
        raise InputError("-m: several runs at once are for train.py; give one configuration")
    return settings.check(compose_config(parsed.overrides, config_folders(parsed), parsed.config_name))


def compose_config(
    overrides: Iterable[str], folders: Sequence[str] = (), name: str | None = None, with_hydra: bool = False
) -> DictConfig:
    """The configuration, not yet resolved or checked; raises InputError for what Hydra cannot read or does not find."""
    overrides = normalise(overrides)
    for override in overrides:
        check_override(override, folders)
    ours = [override for override in overrides if not key_of(override).startswith(("hydra.", "hydra/"))]
    with hydra_over(folders) as search_path:
        try:
            cfg = hydra.compose(name or "config", [*ours, *search_path], return_hydra_config=with_hydra)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise InputError(explain(error, overrides, name, folders)) from error
    if isinstance(cfg.get("experiment"), DictConfig):
        recipe = next((override for override in ours if key_of(override) == "experiment"), "experiment")
        raise InputError(f"{recipe}: its file sets the keys of a group; begin it with the line # @package _global_")
    return cfg


@contextmanager
def hydra_over(folders: Sequence[str] = ()) -> Iterator[list[str]]:
    """Hydra over `conf/`, and the override that adds own folders; a Hydra under way is restored afterwards."""
    with hydra_set_aside(), initialize_config_dir(CONF, version_base="1.3"):
        places = [folder if "://" in folder else f"file://{Path(folder).resolve()}" for folder in folders]
        yield [f"hydra.searchpath=[{','.join(map(quote, places))}]"] if places else []


@contextmanager
def hydra_set_aside() -> Iterator[None]:
    """No Hydra is under way inside the block, whatever `@hydra.main` calls it; afterwards it is as it was."""
    saved = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().hydra = HydraConfig.instance().cfg = None
    try:
        yield
    finally:  # by then Hydra may have put another instance into the place of its singleton
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = saved


# --- overrides --------------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Flags and overrides, which may stand on both sides of a flag."""
    return get_args_parser().parse_intermixed_args(list(arguments))


def config_folders(parsed: argparse.Namespace) -> list[str]:
    """The person's own folders of YAML files: `--config-dir` and `hydra.searchpath`; raises InputError without them."""
    if parsed.config_path:
        raise InputError(f"--config-path={parsed.config_path}: conf/ stays; add your own folder with --config-dir")
    folders = [parsed.config_dir] if parsed.config_dir is not None else []
    for override in parsed.overrides:
        if key_of(override) == "hydra.searchpath":
            value = OverridesParser.create().parse_override(override).value()
            folders += list(map(str, value)) if isinstance(value, list) else [str(value)]
    return [_config_folder(folder, parsed.config_name) for folder in folders]


def _config_folder(folder: str, config_name: str | None) -> str:
    """Raises InputError for a folder that is not there, which Hydra would pass over."""
    path = Path(folder.removeprefix("file://")).expanduser()
    if folder.startswith("pkg://"):
        found, place = _is_module(folder.removeprefix("pkg://").replace("/", ".")), folder
    else:
        found, place = bool(folder) and path.is_dir(), str(path)
    if not found:
        raise InputError(f"--config-dir={folder}: is not a folder; give one that holds YAML files by group")
    if place == str(path):
        chosen = [path / f"{config_name or 'config'}.yaml"]
        below = itertools.chain.from_iterable(path.joinpath(group).rglob("*.yaml") for group in top_groups())
        for file in sorted([*filter(Path.exists, chosen), *below]):
            read_yaml(file)  # which refuses a file that Hydra would never come to the end of
    return place


def groups() -> list[str]:
    """The groups of conf/, as folders in it; "" is conf/ itself."""
    return sorted({str(file.parent.relative_to(CONF)) for file in Path(CONF).rglob("*.yaml")})


def top_groups() -> set[str]:
    return {Path(group).parts[0] for group in groups() if group != "."}


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ImportError:
        return False


def normalise(overrides: Iterable[str], sweep: bool = False) -> list[str]:
    """Overrides as Hydra takes them: values quoted where its grammar needs it, keys of one's own parts added."""
    return open_parts([quote_value(override, sweep) for override in overrides])


def override_of(key: str, value: Any) -> str:
    """The override that gives a key a value of Python's."""
    value = as_plain(value)
    return f"{key}={quote(value) if isinstance(value, str) else show(value)}"


def quote(text: str) -> str:
    """A text in the quotes that Hydra's grammar reads back as the same text."""
    return QuotedString(text, Quote.single).with_quotes()


def quote_value(override: str, sweep: bool = False) -> str:
    """`run_dir=/home/José/a=b#[1]` with its value in quotes: a path, and what Hydra's grammar cannot read.

    In a sweep each of the values between commas is quoted by itself.
    """
    key, equals, value = override.partition("=")
    if not equals or not re.fullmatch(r"[+~]*[\w./@:$-]+", key):
        return override
    parsed = _parsed(override)
    values = value.split(",") if parsed is None and sweep else [value]
    if key.lstrip("+") in PLACES and (parsed is None or _is_bare(parsed, value)):
        try:
            values = list(map(expand_place, values))
        except InputError as error:
            raise InputError(f"{key.lstrip('+')}={error}") from error
        parsed = parsed if parsed is not None and parsed.value() == values[0] else None
    return override if parsed is not None else f"{key}={','.join(map(quote, values))}"


def _is_bare(parsed: Override, value: str) -> bool:
    """Whether a path stands without quotes and means itself, not null, an interpolation or several values."""
    return not (value[:1] in ("'", '"') or value == "null" or "${" in value or parsed.is_sweep_override())


def _parsed(override: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


def open_parts(overrides: list[str]) -> list[str]:
    """A part's keys may be new to Hydra: the files of conf/ hold only those that differ from a constructor's defaults.

    With `likelihood._target_=mypkg.Head` no key of the default option is left.
    """
    chosen = {key_of(override) for override in overrides}
    own = [group for group in GROUPS if f"{group}._target_" in chosen and group.replace(".", "/") not in chosen]
    of_parts = tuple(f"{group}." for group in (*GROUPS, *NAMED))
    added = (f"++{override}" if override.startswith(of_parts) else override for override in overrides)
    return [*(f"{group.replace('.', '/')}=own" for group in own), *added]


def key_of(override: str) -> str:
    """The key that an override sets, without the signs before it."""
    return override.partition("=")[0].lstrip("+~")


def check_override(override: str, folders: Iterable[str] = ()) -> None:
    """Raises InputError for what is not an override, and for one that removes a key."""
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException as error:
        raise InputError(f"{override}: cannot be read ({' '.join(str(error).split())}); give key=value") from error
    key = key_of(parsed.get_key_element())
    if not key:
        raise InputError(f"{override}: names no key; give key=value")
    if key.startswith(("hydra.", "hydra/")) and not key.startswith(OF_HYDRA):
        raise InputError(f"{override}: of Hydra's own settings only its launchers are used; a run goes to run_dir=...")
    if parsed.is_delete() and (key in known_keys() or _group_folders(key, folders)):
        raise InputError(f"{override}: nothing can be removed, as a run needs all its keys; give {key} another value")


def _group_folders(group: str, folders: Iterable[str]) -> list[Path]:
    return [path for path in (Path(root, group) for root in (CONF, *folders)) if path.is_dir()]


def explain(error: Exception, overrides: list[str], name: str | None = None, folders: Iterable[str] = ()) -> str:
    """Hydra's several lines as one, with the nearest known key or the options there are."""
    message = str(error)
    if isinstance(error, MissingConfigException) and name is not None and "primary config" in message:
        return f"--config-name={name}: there is no such file; leave it out, or name a YAML file of your --config-dir"
    missing = re.search(r"Could not find '([\w/]+)/([^/']+)'", message)
    if missing:
        group, option = missing.groups()
        options = {p.stem for folder in _group_folders(group, folders) for p in folder.glob("*.yaml")} - {"base"}
        return f"{group}={option}: there is no such option; it is one of {', '.join(sorted(options))}"
    unknown = re.search(r"Could not (?:override|delete|append)[^']*'([\w./@-]+)'", message)
    if unknown:
        key, known = unknown.group(1), known_keys()
        given = next((o for o in overrides if o.lstrip("+~").startswith((f"{key}=", f"{key}@"))), key)
        if key in known:
            return f"{given}: is a key of another option of {key.rpartition('.')[0]}; see `python train.py --cfg job`"
        groups = [str(p.relative_to(CONF)) for p in Path(CONF).glob("**/*") if p.is_dir()]
        return f"{given}: there is no such key; {nearest(key, [*known, *groups])}"
    return " ".join(message.split()) + "; see `python train.py --help`"
