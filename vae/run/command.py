"""Arguments before and exit codes after the run of train.py; what is refused before anything is written.

Imports neither torch nor lightning.
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
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException, HydraException
from omegaconf import DictConfig

from vae.errors import InputError, ending, is_known
from vae.run import settings
from vae.run.compose import compose_config, config_folders, explain, hydra_over, key_of, normalise, parse
from vae.run.directory import FAILED_EVENTS, Run
from vae.run.jobs import name_jobs, names_its_jobs, write_failure
from vae.run.keys import CONF, Settings
from vae.run.plan import Failed, Job, list_jobs, plan_jobs
from vae.run.process import in_a_sweep, log_file, log_to, slurm_job, stop_with_the_sweep

HYDRA_ANSWERS = ("hydra_help", "shell_completion", "experimental_rerun")
DRY_RUN = "--dry-run"
PRESET = "hydra.sweeper.preset="


class JobFailed(CompactHydraException):
    """A run of a sweep failed: another sweeper than ours trains the others, prints this line and exits with 1."""


# --- before -----------------------------------------------------------------------------------------------------------


def prepare(arguments: list[str]) -> list[str]:
    """The arguments as Hydra is to meet them: flags first, values quoted, own parts opened, a folder for a sweep."""
    if DRY_RUN in arguments:  # a flag that Hydra does not know
        return [DRY_RUN, *prepare([argument for argument in arguments if argument != DRY_RUN])]
    parsed = parse(arguments)
    flags = list(arguments)
    for override in parsed.overrides:
        flags.remove(override)
    return with_run_dir([*flags, *choose_preset(normalise(parsed.overrides, sweep=parsed.multirun))])


def choose_preset(overrides: list[str]) -> list[str]:
    """`sweep=NAME`, a file of conf/sweep/, as Hydra takes it: a sweeper and its argument; it has its own place."""
    names = [override.removeprefix("sweep=") for override in overrides if override.startswith("sweep=")]
    rest = [override for override in overrides if not override.startswith("sweep=")]
    if not names:
        return rest
    place = [] if any(key_of(override) == "run_dir" for override in rest) else [f"run_dir=outputs/multirun/{names[-1]}"]
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
    composed.cache_clear()
    if parsed.multirun:
        return plan_sweep(parsed.overrides, arguments)
    for override in parsed.overrides:
        if override.startswith(PRESET):
            raise InputError(f"sweep={override.removeprefix(PRESET)}: is several runs; give it with -m")
    check_place(Path(composed(tuple(parsed.overrides), parsed.config_name, _folders(parsed)).run_dir))
    return []


def _parse(arguments: list[str]) -> argparse.Namespace:
    return parse([argument for argument in arguments if argument != DRY_RUN])


def _folders(parsed: argparse.Namespace) -> tuple[str, ...]:
    return tuple(config_folders(parsed))


def check_place(directory: Path) -> None:
    """Raises InputError for a run_dir that is a file, lies below one, or cannot be written."""
    nearest = next(path for path in (directory, *directory.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise InputError(f"run_dir={directory}: {nearest} is not a folder; name a folder that can be written")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"run_dir={directory}: {nearest} cannot be written; name a folder that can be")


def plan_sweep(overrides: list[str], arguments: list[str] | None = None) -> list[Job]:
    """The jobs of a sweep, checked one by one, under the flags of the command line; raises InputError."""
    parsed = _parse(sys.argv[1:] if arguments is None else arguments)
    folders = _folders(parsed)
    with hydra_over(folders):
        try:
            _check_sweep(overrides)
            each = jobs(overrides)
        except (HydraException, ValueError) as error:
            raise InputError(explain(error, overrides, parsed.config_name, folders)) from error
    checked = [composed(tuple(job), parsed.config_name, folders) for job in each]
    if any(s.trainer.strategy == "ddp" for s in checked):
        raise InputError(
            "trainer.strategy=ddp: with -m each of its processes would start the whole sweep again; "
            "take trainer.strategy=ddp_fork (CPU) or ddp_spawn, or run the jobs one by one"
        )
    root = Path(checked[0].run_dir)
    check_place(root)
    return plan_jobs(root, name_jobs(each), each, checked)


@functools.cache
def composed(overrides: tuple[str, ...], name: str | None, folders: tuple[str, ...]) -> Settings:
    """The settings that overrides give, checked."""
    return settings.check(compose_config(overrides, folders, name))


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
    return list({key_of(one): one for one in overrides}.values())


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
