"""Arguments before and exit codes after the run of train.py; what is refused before anything is written.

Imports neither torch nor lightning, so that a mistyped key is answered at once.
"""

import argparse
import atexit
import contextlib
import functools
import gc
import hashlib
import importlib
import itertools
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException, HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vae.errors import InputError, ending, is_known
from vae.run import settings
from vae.run.directory import FAILED_EVENTS, Run
from vae.run.jobs import name_jobs, names_its_jobs, write_failure
from vae.run.keys import CONF, Settings, known_keys, nearest
from vae.run.own_parts import GROUPS_OF_PARTS
from vae.run.plan import Failed, Job, list_jobs, plan_jobs
from vae.run.process import find_own_modules, in_a_child, in_a_sweep, log_file, log_to, slurm_job, stop_with_the_sweep

HYDRA_ANSWERS = ("hydra_help", "shell_completion", "experimental_rerun")
DRY_RUN = "--dry-run"
PRESET = "hydra.sweeper.preset="
LAUNCHERS = ("hydra_joblib_launcher", "hydra_submitit_launcher")  # of the extra `sweep`
HYDRA_PLACES = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.output_subdir", "hydra.job.chdir")


class JobFailed(CompactHydraException):
    """A run of a sweep failed: another sweeper than ours trains the others, prints this line and exits with 1."""


# --- before -----------------------------------------------------------------------------------------------------------


def prepare(arguments: list[str]) -> list[str]:
    """The arguments as Hydra is to meet them: flags first, own parts opened, a place for a sweep.

    Modules of the working directory can be named as own parts.
    """
    if DRY_RUN in arguments:  # a flag that Hydra does not know
        return [DRY_RUN, *prepare([one for one in arguments if one != DRY_RUN])]
    find_own_modules()
    overrides = list(_parse(arguments).overrides)
    flags = list(arguments)
    for override in overrides:
        flags.remove(override)
    return with_run_dir([*flags, *choose_preset(open_own_parts([quote(override) for override in overrides]))])


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Hydra's own parser takes overrides on one side of `-m` only."""
    return get_args_parser().parse_intermixed_args([one for one in arguments if one != DRY_RUN])


def quote(override: str) -> str:
    """A value with `=`, as in the name of a sweep's folder, in the quotes that Hydra wants around it."""
    key, _, value = override.partition("=")
    if "=" not in value:
        return override
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return f"{key}='" + value.replace("'", "\\'") + "'"
    return override


def open_own_parts(overrides: list[str]) -> list[str]:
    """`likelihood._target_=mypkg.Head likelihood.width=3` as Hydra takes it: no key of the default option is left."""
    opened, result = [], []
    chosen = {override.partition("=")[0].lstrip("+") for override in overrides}
    for group in GROUPS_OF_PARTS:
        path = group.replace(".", "/")
        if f"{group}._target_" in chosen and path not in chosen:
            opened.append(f"{group}.")
            result.append(f"{path}=own")
    free = (*opened, "callbacks.extra.", "logger.")
    return [*result, *(f"++{one}" if one.startswith(free) else one for one in overrides)]


def choose_preset(overrides: list[str]) -> list[str]:
    """`sweep=NAME`, a file of conf/sweep/, as Hydra takes it: a sweeper and its argument; it has its own place."""
    names = [one.removeprefix("sweep=") for one in overrides if one.startswith("sweep=")]
    rest = [one for one in overrides if not one.startswith("sweep=")]
    if not names:
        return rest
    place = [] if any(_key(one) == "run_dir" for one in rest) else [f"run_dir=outputs/multirun/{names[-1]}"]
    return [f"{PRESET}{names[-1]}", *place, *rest]


def answer_help_or_refuse(arguments: list[str]) -> bool:
    """Whether the command is answered with a text; a command that cannot be run exits with 2 and one line."""
    if "--help" in arguments or "-h" in arguments:
        from vae.run.helptext import write_help

        print(write_help())
        return True
    dry = DRY_RUN in arguments
    try:
        planned = check(arguments)
        if dry and not planned:
            raise InputError(f"{DRY_RUN}: lists the runs of a sweep; give it with -m")
    except (InputError, KeyboardInterrupt) as error:  # an own part may take torch's seconds to import
        code, line = ending(error)
        print(line, file=sys.stderr)
        sys.exit(code)
    if dry:
        print("\n".join(_list_with_costs(planned)))
    return dry


def _list_with_costs(planned: list[Job]) -> list[str]:
    """The jobs of a dry run; where one cannot be built, its line is the last."""
    import_torch_and_lightning()
    from vae.run.probe import probe

    try:
        return list_jobs(planned, probe(planned))
    except InputError as error:
        return [*list_jobs(planned, None), f"no estimate, and the sweep would fail: {error}"]


def check(arguments: list[str]) -> list[Job]:
    """The jobs of a sweep; raises InputError for what can be refused before anything is written, in each of them."""
    parsed = _parse(arguments)
    if any(getattr(parsed, question, None) for question in HYDRA_ANSWERS):
        return []
    folders = config_folders(parsed)
    composed.cache_clear()
    with initialize_config_dir(CONF, version_base="1.3"):
        try:
            for override in parsed.overrides:
                _check_override(override, folders)
                if override.startswith(PRESET) and not parsed.multirun:
                    raise InputError(f"sweep={override.removeprefix(PRESET)}: is several runs; give it with -m")
            if parsed.multirun:
                return plan_sweep(parsed.overrides, arguments)
            composed(tuple(parsed.overrides), parsed.config_name, tuple(folders))
            return []
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise InputError(explain(error, parsed.overrides, parsed.config_name, folders)) from error


def plan_sweep(overrides: list[str], arguments: list[str] | None = None) -> list[Job]:
    """The jobs of a sweep, checked one by one, under the flags of the command line; raises InputError."""
    parsed = _parse(sys.argv[1:] if arguments is None else arguments)
    folders = tuple(config_folders(parsed))
    _check_sweep(overrides)
    each = jobs(overrides)
    checked = [composed(tuple(job), parsed.config_name, folders) for job in each]
    if any(s.trainer.strategy == "ddp" for s in checked):
        raise InputError(
            "trainer.strategy=ddp: with -m each of its processes would start the whole sweep again; "
            "take trainer.strategy=ddp_fork (CPU) or ddp_spawn, or run the jobs one by one"
        )
    return plan_jobs(Path(checked[0].run_dir), name_jobs(each), each, checked)


@functools.cache
def composed(overrides: tuple[str, ...], name: str | None, folders: tuple[str, ...]) -> Settings:
    """The settings that overrides give, checked."""
    return settings.check(compose_settings(list(overrides), name, folders))


def _check_sweep(overrides: list[str]) -> None:
    """Raises InputError for two sweeps in one command, of one key or of two folders: Hydra takes the last alone."""
    given: dict[str, str] = {}
    for override in OverridesParser.create().parse_overrides(overrides):
        key, line = override.get_key_element().lstrip("+"), override.input_line or ""
        if key in given and (override.is_sweep_override() or "," in given[key]):
            raise InputError(f"{line}: {given[key]} is given too, and only one can hold; give all its values at once")
        if key == "run_dir" and override.is_sweep_override():
            raise InputError(f"{line}: a sweep has one folder; give one, or one command for each")
        given[key] = line


def config_folders(parsed: argparse.Namespace) -> list[str]:
    """The person's own folders of YAML files: `--config-dir` and `hydra.searchpath`; raises InputError without them."""
    if parsed.config_path:
        raise InputError(f"--config-path={parsed.config_path}: conf/ stays; add your own folder with --config-dir")
    folders = [parsed.config_dir] if parsed.config_dir else []
    for override in parsed.overrides:
        if override.lstrip("+").startswith("hydra.searchpath="):
            value = OverridesParser.create().parse_override(override).value()
            folders += [str(one).removeprefix("file://") for one in value] if isinstance(value, list) else [str(value)]
    for folder in folders:
        if "://" not in folder and not Path(folder).is_dir():
            raise InputError(f"--config-dir={folder}: is no folder; give one that holds YAML files by group")
    return folders


def compose_settings(overrides: list[str], name: str | None = None, folders: Iterable[str] = ()) -> DictConfig:
    """The configuration without Hydra's own part, from `conf/` and a person's own folders."""
    ours = [one for one in overrides if not one.lstrip("+~").startswith(("hydra.", "hydra/"))]
    paths = [one if "://" in one else f"file://{Path(one).resolve()}" for one in folders]
    return compose(name or "config", overrides=[*ours, *([f"hydra.searchpath=[{','.join(paths)}]"] if paths else [])])


def jobs(overrides: list[str]) -> list[list[str]]:
    """The overrides of each run of a sweep, a preset's or the product of the values given with commas."""
    preset = next((one.removeprefix(PRESET) for one in overrides if one.startswith(PRESET)), None)
    return product(overrides) if preset is None else preset_jobs(preset, overrides)


def preset_jobs(name: str, overrides: list[str]) -> list[list[str]]:
    """The runs of a preset: what its lines have in common and the rest of the command, then each line's own keys.

    The command wins over what is common, a line over both. A cut-off sweep has all lines of the first seeds.
    """
    path = Path(CONF, "sweep", f"{name}.yaml")
    if not path.is_file():
        options = sorted(path.stem for path in path.parent.glob("*.yaml"))
        raise InputError(f"sweep={name}: there is no such option; it is one of {', '.join(options)}")
    preset = yaml.safe_load(path.read_text())
    lines = [one for line in preset["lines"] for one in product(line.split())]
    return [_merged([*base, *line]) for base in product(_merged([*preset["common"], *overrides])) for line in lines]


def _merged(overrides: list[str]) -> list[str]:
    """The last of each key."""
    return list({_key(one): one for one in overrides}.values())


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+")


def product(overrides: list[str]) -> list[list[str]]:
    """The overrides of each run of an ordinary sweep, taken apart as Hydra's own sweeper does."""
    choices = []
    loader = GlobalHydra.instance().config_loader()  # for glob(*), which looks at the options there are
    for override in OverridesParser.create(config_loader=loader).parse_overrides(overrides):
        if override.is_sweep_override():
            key = override.get_key_element()
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([override.input_line or ""])
    return [list(one) for one in itertools.product(*choices)]


def _check_override(override: str, folders: list[str]) -> None:
    """Raises InputError for what is no override at all, one that takes a key away, and one that is passed over."""
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException as error:
        raise InputError(f"{override}: cannot be read ({' '.join(str(error).split())}); give key=value") from error
    key = parsed.get_key_element().lstrip("+~")
    if not key:
        raise InputError(f"{override}: names no key; give key=value")
    if parsed.is_delete() and (key in known_keys() or _group_folders(key, folders)):
        raise InputError(f"{override}: nothing can be removed, as a run needs all its keys; give {key} another value")
    if key in HYDRA_PLACES and not in_a_child():  # Lightning names one for its other processes
        raise InputError(f"{override}: Hydra's folders are not used; a run or sweep goes to run_dir=...")
    if key == "hydra/launcher":
        package = f"hydra_{str(parsed.value()).partition('_')[0]}_launcher"
        if package in LAUNCHERS and find_spec(f"hydra_plugins.{package}") is None:
            raise InputError(f"{override}: {package} is not installed; pip install 'vae-lightning[sweep]'")


def _group_folders(group: str, folders: Iterable[str]) -> list[Path]:
    return [path for path in (Path(root, group) for root in (CONF, *folders)) if path.is_dir()]


def with_run_dir(arguments: list[str]) -> list[str]:
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


# --- around and after -------------------------------------------------------------------------------------------------


def import_torch_and_lightning() -> None:
    """With the garbage collector off: the imports make a million objects and no garbage, which takes a second to see.

    What they made is never looked through again.
    """
    if "vae.run.trainer" in sys.modules:
        return
    gc.disable()
    try:
        importlib.import_module("vae.run.trainer")
        gc.freeze()
        atexit.register(gc.unfreeze)  # at the end, modules in C count what was not freed
    finally:
        gc.enable()


def pass_over_writers(error: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread meets a full disk first; the run meets the same error where it writes next, and says so."""
    if not issubclass(error.exc_type, OSError):
        threading.__excepthook__(error)


def _keep_failure(directory: Path, cfg: DictConfig, line: str) -> None:
    """Beside the run, and as its status in HPARAMS."""
    if write_failure(directory, line) and "tensorboard" in cfg.logger:
        import_torch_and_lightning()
        from vae.run.trainer import sheet_of
        from vae.training.hparams import write_failed_row

        write_failed_row(directory, sheet_of(Run(directory, settings.check(cfg))), FAILED_EVENTS)


def with_exit_codes(train: Callable[[DictConfig], float], cfg: DictConfig) -> float:
    """The run's result, or its exit code and one line: 1 failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM."""
    log_to(None)
    threading.excepthook = pass_over_writers
    stop_with_the_sweep()
    try:
        return train(cfg)
    except BaseException as error:
        code, line = ending(error)
        file = log_file()
        # a run that is refused is left as it was; a sweep lists its job all the same
        failed = (code == 1 and file is not None) or (code in (1, 2) and in_a_sweep())
        if failed and "VAE_RUN_DIR" in os.environ:
            with contextlib.suppress(OSError):  # the disk may be what failed
                _keep_failure(Path(os.environ["VAE_RUN_DIR"]), cfg, line)
        if code == 1 and file is not None:
            line += f"; its log: {file}"
        if not (in_a_sweep() and code in (1, 2)):
            logging.getLogger(__name__).error(line)
        if file is not None and not is_known(error):
            with contextlib.suppress(OSError), open(file, "a") as written:  # the disk may be what failed
                traceback.print_exception(error, file=written)
        if not in_a_sweep() or code not in (1, 2):
            raise SystemExit(code) from None
        if names_its_jobs():
            return Failed(f"{HydraConfig.get().job.name}: {line}")
        raise JobFailed(f"{HydraConfig.get().job.name}: {line}") from None
