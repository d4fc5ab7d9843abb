"""The command line of train.py: what is refused before anything is written, and its exit codes.

Imports neither torch nor lightning.
"""

import argparse
import hashlib
import logging
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from vae.errors import InputError, ending
from vae.run import runner, settings
from vae.run.compose import compose_config, config_folders, key_of, normalise, override_of, parse
from vae.run.directory import Run
from vae.run.jobs import PRESET, Job, check_place, list_jobs, plan_sweep
from vae.run.keys import CONF
from vae.run.parts import fill_defaults
from vae.run.process import (
    collector_off,
    import_torch_and_lightning,
    in_a_child,
    log_file,
    log_to,
    quiet_writers,
    shares_its_batches,
    slurm_job,
)

DRY_RUN = "--dry-run"


def prepare(arguments: list[str]) -> list[str]:
    """The arguments as Hydra is to meet them: flags first, values quoted, own parts opened, a folder for a sweep."""
    if DRY_RUN in arguments:  # a flag that Hydra does not know
        return [DRY_RUN, *prepare([argument for argument in arguments if argument != DRY_RUN])]
    parsed = parse(arguments)
    flags = list(arguments)
    for override in parsed.overrides:
        flags.remove(override)
    return with_run_dir([*flags, *with_preset_place(normalise(parsed.overrides, sweep=parsed.multirun))])


def with_preset_place(overrides: list[str]) -> list[str]:
    """A preset, `sweep=NAME`, has a folder of its own, unless another is given."""
    names = [override.removeprefix(PRESET) for override in overrides if override.startswith(PRESET)]
    if not names or any(key_of(override) == "run_dir" for override in overrides):
        return overrides
    return [*overrides, f"run_dir=outputs/multirun/{names[-1]}"]


def answer(arguments: list[str]) -> DictConfig | None:
    """The configuration of the run that is to be trained, or None where the command is done.

    That is a help text, one of Hydra's own answers, a sweep or a list of its runs. Ends the process with exit code 2
    and one line for a command that cannot be run.
    """
    parsed = _parse(arguments)
    try:
        if parsed.help:
            from vae.run.helptext import write_help

            print(write_help(next((key_of(text) for text in parsed.overrides if "=" not in text), None)))
            return None
        if asks_hydra(parsed):
            hydra.main(version_base="1.3", config_path=CONF, config_name="config")(lambda cfg: None)()
            return None
        with collector_off():  # a check imports the parts
            jobs = check(arguments)
        if parsed.cfg:  # Hydra's own answer would lack the defaults of constructors
            print(_filled(parsed))
        elif DRY_RUN in arguments:
            if not parsed.multirun:
                raise InputError(f"{DRY_RUN}: lists the runs of a sweep; give it with -m")
            print("\n".join(_list_with_costs(jobs)))
        elif parsed.multirun:
            with quiet_writers():
                runner.run_sweep(parsed.overrides, jobs)
        else:
            return jobs[0].cfg
    except BaseException as error:
        code, line = ending(error)
        if line:
            print(line, file=sys.stderr)
        sys.exit(code)
    return None


def asks_hydra(parsed: argparse.Namespace) -> bool:
    """Whether Hydra answers by itself: its help, its search path, its own settings."""
    flags = (parsed.hydra_help, parsed.shell_completion, parsed.info, parsed.package and parsed.cfg)
    return any(flags) or parsed.cfg in ("hydra", "all")


def _filled(parsed: argparse.Namespace) -> str:
    """The configuration of a run as YAML, for `--cfg job`."""
    cfg = compose_config(parsed.overrides, config_folders(parsed), parsed.config_name)
    fill_defaults(cfg)
    return OmegaConf.to_yaml(cfg, resolve=parsed.resolve).rstrip()


def _list_with_costs(jobs: list[Job]) -> list[str]:
    """The jobs of a dry run; where one cannot be built, its line is the last."""
    import_torch_and_lightning()
    from vae.run.probe import probe

    try:
        return list_jobs(jobs, probe(jobs))
    except InputError as error:
        return [*list_jobs(jobs, None), f"no estimate, and the sweep would fail: {error}"]


def check(arguments: list[str]) -> list[Job]:
    """The runs of a command; raises InputError for what can be refused before anything is written, in each of them."""
    parsed = _parse(arguments)
    if asks_hydra(parsed):
        return []
    if parsed.experimental_rerun or (parsed.package and not parsed.cfg):
        flag = "--experimental-rerun" if parsed.experimental_rerun else "--package"
        raise InputError(f"{flag}: is not taken; give the run's command again, or --cfg job to see its keys")
    if parsed.multirun and parsed.cfg:
        raise InputError(f"--cfg {parsed.cfg}: shows one run; leave out -m")
    folders = config_folders(parsed)
    if parsed.multirun:
        jobs = plan_sweep(parsed.overrides, folders, parsed.config_name)
        runner.choose_engine(parsed.overrides, jobs[0].directory.parent)
        return jobs
    for override in parsed.overrides:
        if override.lstrip("+").startswith((PRESET, "hydra/launcher", "hydra.launcher.")):
            raise InputError(f"{override}: is for several runs; give it with -m")
    cfg = compose_config(parsed.overrides, folders, parsed.config_name, with_hydra=True)
    s = settings.check(cfg)
    check_place(Path(s.run_dir))
    return [Job("", s, Path(s.run_dir), cfg=cfg)]


def _parse(arguments: list[str]) -> argparse.Namespace:
    return parse([argument for argument in arguments if argument != DRY_RUN])


def with_run_dir(arguments: list[str]) -> list[str]:
    """A sweep that names no `run_dir` goes to outputs/multirun/<time>; a single run's time is in the configuration.

    A Slurm job's place is its number and its command: the job that is requeued finds what it has begun.
    """
    sweep = _parse(arguments).multirun
    if any(argument.lstrip("+").startswith("run_dir=") for argument in arguments):
        return arguments
    job = slurm_job()
    if job is not None:
        digest = hashlib.sha256(" ".join(arguments).encode()).hexdigest()[:8]
        return [*arguments, f"run_dir=outputs/{'multirun' if sweep else 'slurm'}/{job}-{digest}"]
    return [*arguments, f"run_dir=outputs/multirun/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"] if sweep else arguments


def hand_on(run: Run) -> None:
    """Tells the processes that Lightning starts by this command where the run is: the time may be in its name."""
    if shares_its_batches(run.settings.trainer) and not in_a_child():
        others = [argument for argument in sys.argv if key_of(argument) != "run_dir"]
        sys.argv = [*others, override_of("run_dir", str(run.directory.resolve()))]


def with_exit_codes(train: Callable[[DictConfig], float], cfg: DictConfig) -> float:
    """The run's result, or its exit code and one line: 1 failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM."""
    log_to(None)
    try:
        with quiet_writers():
            return train(cfg)
    except BaseException as error:
        code, line = ending(error)
        if code == 1 and (file := log_file()) is not None:
            runner.keep_failure(Run(Path(file).parent, settings.check(cfg)), line, error)
            line += f"; its log: {file}"
        logging.getLogger(__name__).error(line)
        raise SystemExit(code) from None
