"""The jobs of a sweep: what each is called, which folder is its own, and the line that it failed with.

A folder is named by what varies. A job finds what it has begun by its configuration, whatever that folder is called.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from vae.errors import InputError
from vae.run.directory import (
    FAILURE,
    MAY_GROW,
    Run,
    differences,
    identity,
    is_complete,
    read_metrics,
    read_settings,
    write,
    write_yaml,
)
from vae.run.keys import Plain, Settings
from vae.run.process import in_a_child, in_a_sweep
from vae.run.sweep import find_directories, is_locked

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)

Identified = tuple[Path, str | None]  # a run's directory and its fingerprint

LONGEST_NAME = 120  # of a folder; file systems take 255 bytes, and people fewer


def name_jobs(jobs: list[list[str]]) -> list[str]:
    """`latent_dim=4,model=conv` for each job's overrides: what differs between the jobs, by key."""
    given = [dict(_key_and_value(override) for override in job) for job in jobs]
    keys = sorted({key for job in given for key in job if not key.startswith("hydra")} - {"run_dir"})
    varying = [key for key in keys if len({job.get(key) for job in given}) > 1]
    return [safe_name(",".join(f"{key}={job[key]}" for key in varying if key in job)) for job in given]


def _key_and_value(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+~").partition("=")
    return key, value


def safe_name(text: str) -> str:
    """A folder's name: lists as 200-200, nothing that a shell reads; a hash where something else was left out."""
    plain = re.sub(r"\[([^\[\]]*)\]", lambda found: re.sub(r",\s*", "-", found[1]), text)
    safe = re.sub(r"[^A-Za-z0-9_.,=+-]", "_", plain)
    if safe == plain and len(safe) <= LONGEST_NAME:
        return safe or "default"
    return f"{safe[: LONGEST_NAME - 9]}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def directory_of(cfg: "DictConfig", settings: Settings) -> Path:
    """Where a run goes: `run_dir`, and in a sweep the job's own folder in it, which is then taken."""
    given = os.environ.pop("VAE_RUN_DIR", None)
    if in_a_child() and given is not None:
        directory = Path(given)
    elif in_a_sweep():
        directory = take_directory(Path(cfg.run_dir), _job_name(), settings)
        log.info("run %s", directory)
    else:
        directory = Path(cfg.run_dir)
    # run_dir may hold the time, so another process of the same run would resolve it to another directory
    os.environ["VAE_RUN_DIR"] = str(directory.resolve())
    return directory


def names_its_jobs() -> bool:
    """Whether the sweep under way is one of our sweeper; another's jobs have numbers."""
    from hydra.core.hydra_config import HydraConfig

    return "vae_sweeps" in HydraConfig.get().sweeper._target_


def _job_name() -> str:
    from hydra.core.hydra_config import HydraConfig

    return str(HydraConfig.get().job.name if names_its_jobs() else HydraConfig.get().job.num)


def take_directory(root: Path, name: str, settings: Settings) -> Path:
    """The job's folder, described by a config.yaml from now on; jobs of other processes choose one after another.

    Raises InputError for a folder that cannot be written, or whose run has ended under another evaluation.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".lock"):
            directory = choose_directory(root, name, settings)
            Run(directory, settings).check()
            if not (directory / "config.yaml").exists():
                write_yaml(directory / "config.yaml", settings.plain)
    except OSError as error:
        raise InputError(f"run_dir={root}: cannot be written ({error.strerror}); name a folder that can be") from error
    return directory


def choose_directory(root: Path, name: str, settings: Settings, there: Iterable[Identified] | None = None) -> Path:
    """A folder of this configuration, or else of this name; the name of another's gets the configuration's hash.

    `there` are the runs of the sweep's folder, where they have just been looked at.
    """
    wanted = fingerprint(settings.plain)
    same = [directory for directory, found in (identify_runs(root) if there is None else there) if found == wanted]
    if same:
        return min(same, key=lambda directory: (not is_finished(directory, settings), directory != root / name))
    if _is_free(root / name, settings.plain):
        return root / name
    # hashed without what may change while a run goes on
    return root / f"{name[: LONGEST_NAME - 9]}-{_digest(fingerprint(settings.plain, without=_may_change))}"


def fingerprint(plain: Plain, without: Callable[[str], bool] = lambda key: False) -> str:
    """Equal for configurations whose results are the same; 0 is 0.0."""
    pairs = [(key, value) for key, value in identity(plain).items() if not without(key)]
    return json.dumps([(k, int(v) if isinstance(v, float) and v.is_integer() else v) for k, v in pairs])


def identify_runs(root: Path) -> list[Identified]:
    """The runs at or below a folder, with their fingerprints."""
    return [(directory, _fingerprint_in(directory)) for directory in find_directories(root)]


def _fingerprint_in(directory: Path) -> str | None:
    path = directory / "config.yaml"
    with contextlib.suppress(OSError):
        found = path.stat()
        return _fingerprint_of(path, found.st_mtime_ns, found.st_size)
    return None


@functools.lru_cache(maxsize=10_000)
def _fingerprint_of(path: Path, changed: int, size: int) -> str | None:
    """Of a config.yaml as it was at that time; None for one that cannot be read."""
    with contextlib.suppress(InputError):
        return fingerprint(read_settings(path))
    return None


def is_finished(directory: Path, settings: Settings) -> bool:
    with contextlib.suppress(InputError):
        return is_complete(read_metrics(directory / "metrics.json"), settings.trainer.max_epochs)
    return False


def _is_free(directory: Path, plain: Plain) -> bool:
    """Whether a job may have the folder of its name: nothing is there, or a run that goes on as this one."""
    if not (directory / "config.yaml").exists():
        return not directory.exists() or not any(directory.iterdir())
    return all(_may_change(key) for key in differences(read_settings(directory / "config.yaml"), plain))


def _may_change(key: str) -> bool:
    return key == MAY_GROW or key.startswith("evaluation.")


def write_failure(directory: Path, line: str) -> bool:
    """Keeps the line that a run failed with beside it, until it goes on; False where another process works in it."""
    free = (directory / "config.yaml").exists() and not is_locked(directory)
    if free:
        write(directory / FAILURE, line + "\n")
    return free
