"""The command line around a run: what is refused before anything is written, where a run goes, how it ends.

Imports neither torch nor lightning, so that a mistyped key is answered at once.
"""

import contextlib
import hashlib
import itertools
import logging
import re
import sys
import traceback
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vae.errors import InputError, ending, expected
from vae.run import settings
from vae.run.process import log_file, log_to, slurm_job
from vae.run.settings import CONF

HYDRA_ANSWERS = ("hydra_help", "shell_completion", "experimental_rerun")


class JobFailed(CompactHydraException):
    """A run of a sweep failed: Hydra trains the others, then prints this line and exits with 1."""


def answered(arguments: list[str]) -> bool:
    """Whether the command is answered with a text; a command that cannot be run exits with 2 and one line."""
    if "--help" in arguments or "-h" in arguments:
        from vae.run.helptext import text

        print(text())
        return True
    try:
        check(arguments)
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    return False


def check(arguments: list[str]) -> None:
    """Raises InputError for what can be refused before anything is imported or written; each run of a sweep counts."""
    parsed = get_args_parser().parse_args(arguments)
    if any(getattr(parsed, question, None) for question in HYDRA_ANSWERS):
        return
    with initialize_config_dir(CONF, version_base="1.3"):
        try:
            for override in parsed.overrides:
                _parsed(override)
            for overrides in jobs(parsed.overrides) if parsed.multirun else [parsed.overrides]:
                s = settings.check(composed(overrides))
                if parsed.multirun and s["trainer"]["strategy"] == "ddp":
                    raise InputError(
                        "trainer.strategy=ddp: with -m each of its processes would start the whole sweep again; "
                        "take trainer.strategy=ddp_fork (CPU) or ddp_spawn, or run the jobs one by one"
                    )
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise InputError(explained(str(error), parsed.overrides)) from error


def jobs(overrides: list[str]) -> list[list[str]]:
    """The overrides of each run of a sweep, taken apart as Hydra's own sweeper does."""
    choices = []
    loader = GlobalHydra.instance().config_loader()  # for glob(*), which looks at the options there are
    for override in OverridesParser.create(config_loader=loader).parse_overrides(overrides):
        if override.is_sweep_override():
            key = override.get_key_element()
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([override.input_line or ""])
    return [list(one) for one in itertools.product(*choices)]


def _parsed(override: str) -> None:
    """Raises InputError for what is no override at all, and for one that takes a key away."""
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException as error:
        raise InputError(f"{override}: cannot be read ({' '.join(str(error).split())}); give key=value") from error
    key = parsed.get_key_element().lstrip("+~")
    if not key:
        raise InputError(f"{override}: names no key; give key=value")
    if parsed.is_delete() and (key in settings.RULES or Path(CONF, key).is_dir()):
        raise InputError(f"{override}: nothing can be removed, as a run needs all its keys; give {key} another value")


def placed(arguments: list[str]) -> list[str]:
    """A sweep that names no `run_dir` goes to outputs/multirun/<time>; a single run's time is in the configuration.

    A Slurm job's place is its number and its command: the job that is requeued finds what it has begun.
    """
    sweep = any(argument in ("-m", "--multirun") for argument in arguments)
    if any(argument.lstrip("+").startswith("run_dir=") for argument in arguments):
        return arguments
    job = slurm_job()
    if job is not None:
        digest = hashlib.sha256(" ".join(arguments).encode()).hexdigest()[:8]
        return [*arguments, f"run_dir=outputs/{'multirun' if sweep else 'slurm'}/{job}-{digest}"]
    return [*arguments, f"run_dir=outputs/multirun/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"] if sweep else arguments


def composed(overrides: list[str]) -> DictConfig:
    """The configuration without Hydra's own part."""
    ours = [o for o in overrides if not o.lstrip("+~").startswith(("hydra.", "hydra/"))]
    return compose("config", overrides=ours)


def explained(message: str, overrides: list[str]) -> str:
    """Hydra's several lines as one, with the nearest known key or the options there are."""
    missing = re.search(r"Could not find '([\w/]+)/([^/']+)'", message)
    if missing:
        group, option = missing.groups()
        known = sorted(p.stem for p in Path(CONF, group).glob("*.yaml") if p.stem != "base")
        return f"{group}={option}: there is no such option; it is one of {', '.join(known)}"
    unknown = re.search(r"Could not (?:override|delete|append)[^']*'([\w./@-]+)'", message)
    if unknown:
        key = unknown.group(1)
        given = next((o for o in overrides if o.lstrip("+~").startswith((f"{key}=", f"{key}@"))), key)
        if key in settings.RULES:
            return f"{given}: is a key of another option of {key.rpartition('.')[0]}; see `python train.py --cfg job`"
        groups = [str(p.relative_to(CONF)) for p in Path(CONF).glob("**/*") if p.is_dir()]
        return f"{given}: there is no such key; {settings.nearest(key, [*settings.RULES, *groups])}"
    return " ".join(message.split()) + "; see `python train.py --help`"


def ended(run: Callable[[DictConfig], float], cfg: DictConfig) -> float:
    """The run's result, or its exit code and one line: 1 failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM."""
    log_to(None)
    try:
        return run(cfg)
    except BaseException as error:
        code, line = ending(error)
        file = log_file()
        if code == 1 and file is not None:
            line += f"; its log: {file}"
        logging.getLogger(__name__).error(line)
        if file is not None and not expected(error):
            with contextlib.suppress(OSError), open(file, "a") as written:  # the disk may be what failed
                traceback.print_exception(error, file=written)
        if HydraConfig.get().mode == RunMode.MULTIRUN and code in (1, 2):
            raise JobFailed(f"run {HydraConfig.get().job.num}: {line}") from None
        raise SystemExit(code) from None
