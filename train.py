"""Trains a VAE: `python train.py model=conv latent_dim=4`; `--help` explains the keys."""

import itertools
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra import main as hydra_main
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vae import settings
from vae.errors import InputError, RunFailed

CONF = str(Path(__file__).resolve().parent / "conf")
PASSED_ON = ("cfg", "info", "hydra_help", "shell_completion", "experimental_rerun")  # Hydra's own questions


def run(cfg: DictConfig) -> float:
    """One run, from its configuration to its result: the best epoch's monitored metric."""
    s = settings.check(cfg)
    from vae import results, runs  # torch and lightning: seconds, so typos are answered before

    runs.configure_threads(s)
    one = runs.Run(directory_of(cfg), s)
    if in_a_child():
        runs.fit(one, *runs.build(s))
        return 0.0
    one.check()
    if one.finished:
        return results.show(one)
    lit, data = runs.build(s)
    one.open()
    try:
        log_to(one.directory / "train.log")
        runs.save_config(one, cfg, list(HydraConfig.get().overrides.task), HydraConfig.get())
        history, trainer = runs.fit(one, lit, data)
        return results.finish(one, lit, data, history, trainer)
    finally:
        one.close()


def in_a_child() -> bool:
    """Whether Lightning's ddp started this process again for another device of a run that is already open."""
    return int(os.environ.get("LOCAL_RANK", 0)) > 0 or int(os.environ.get("SLURM_PROCID", 0)) > 0


def directory_of(cfg: DictConfig) -> Path:
    if in_a_child() and "VAE_RUN_DIR" in os.environ:
        return Path(os.environ["VAE_RUN_DIR"])
    sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    directory = Path(cfg.run_dir) / str(HydraConfig.get().job.num) if sweep else Path(cfg.run_dir)
    os.environ["VAE_RUN_DIR"] = str(directory.resolve())  # with a time in its name, another process finds another
    return directory


def log_to(path: Path | None) -> None:
    """Lines to the terminal and, once there is a run, with the time to its file."""
    root = logging.getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)
    root.setLevel(logging.INFO)
    screen = logging.StreamHandler(sys.stdout)
    screen.setFormatter(logging.Formatter("%(message)s"))
    root.addHandler(screen)
    if path is not None:
        file = logging.FileHandler(path)
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        root.addHandler(file)
    for noisy in ("lightning.pytorch", "lightning.fabric", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


@hydra_main(version_base="1.3", config_path=CONF, config_name="config")
def job(cfg: DictConfig) -> float:
    log_to(None)
    from vae.endings import ending

    try:
        return run(cfg)
    except BaseException as error:
        code, line = ending(error)
        logging.getLogger(__name__).error(line)
        if HydraConfig.get().mode == RunMode.MULTIRUN and code in (1, 2):
            raise JobFailed(f"run {HydraConfig.get().job.num}: {line}") from None  # the sweep's other runs go on
        raise SystemExit(code) from None


class JobFailed(CompactHydraException):
    """A run of a sweep failed; Hydra runs the others and then says so, with exit code 1."""


def check_command(arguments: list[str]) -> None:
    """Raises InputError for whatever of a command can be refused before anything is imported or written."""
    parsed = get_args_parser().parse_args(arguments)
    if any(getattr(parsed, question, None) for question in PASSED_ON):
        return
    with initialize_config_dir(CONF, version_base="1.3"):
        for overrides in jobs(parsed.overrides) if parsed.multirun else [parsed.overrides]:
            settings.check(composed(overrides))


def jobs(overrides: list[str]) -> list[list[str]]:
    """The overrides of each run of a sweep, as Hydra's own sweeper will take them apart."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    choices = []
    for override in parsed:
        key = override.get_key_element()
        if override.is_sweep_override():
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([override.input_line or ""])
    return [list(one) for one in itertools.product(*choices)]


def composed(overrides: list[str]) -> DictConfig:
    try:
        return compose("config", overrides=[o for o in overrides if not o.lstrip("+~").startswith("hydra")])
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(explained(str(error), overrides)) from error


def explained(message: str, overrides: list[str]) -> str:
    """Hydra's several lines as one, with the nearest known key or option."""
    missing = re.search(r"Could not find '([\w/]+)/([^/']+)'", message)
    if missing:
        group, option = missing.groups()
        known = sorted(p.stem for p in Path(CONF, group).glob("*.yaml") if p.stem != "base")
        return f"{group}={option}: there is no such option; it is one of {', '.join(known)}"
    unknown = re.search(r"Could not (?:override|delete|append|find) [^']*'([\w./@]+)'", message)
    if unknown:
        key = unknown.group(1)
        given = next((o for o in overrides if o.lstrip("+~").startswith(f"{key}=")), key)
        groups = [str(p.relative_to(CONF)) for p in Path(CONF).glob("**/*") if p.is_dir()]
        return f"{given}: there is no such key; {settings.nearest(key, [*settings.RULES, *groups])}"
    return " ".join(message.split()) + "; see `python train.py --help`"


def main() -> Any:
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:
        from vae.helptext import HELP

        print(HELP)
        return
    try:
        check_command(arguments)
    except InputError as error:
        sys.exit(refused(error))
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(refused(InputError(explained(str(error), arguments))))
    GlobalHydra.instance().clear()
    job()


def refused(error: InputError | RunFailed) -> int:
    print(error, file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    main()
