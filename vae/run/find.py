"""Which run is meant: its directory, one of its checkpoints, or `latest`. Imports no torch."""

import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vae.errors import InputError
from vae.files import expand
from vae.run.records import find_directories, read_record

HOME = "outputs"  # where runs go that name no run_dir, and where `latest` and advice look
LATEST = "latest"
TRAIN = "train one: vae train data=digits run_dir=outputs/mine"


@dataclass(frozen=True)
class Found:
    """A run's directory, and the checkpoint file that was named: one of its own, or a copy that lies elsewhere."""

    directory: Path
    which: str | None = None  # best or last
    file: Path | None = None  # a checkpoint outside any run's directory; it holds its configuration too


def find_run(path: str | os.PathLike[str]) -> Found:
    """Raises InputError, with what to name instead, for a path that leads to no run."""
    try:
        return _find(os.fspath(path), expand(path))
    except (OSError, ValueError) as error:  # a name that the system does not take, a folder that may not be read
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be looked up ({reason}); give a folder written by train.py") from error


def find_directory(path: str | os.PathLike[str]) -> Found:
    """The same for what a checkpoint alone is not enough for."""
    found = find_run(path)
    if found.file is not None:
        raise InputError(f"{path} is a checkpoint without its run; give the run's directory")
    return found


def _find(name: str, path: Path) -> Found:
    if is_run(path):
        return Found(path)
    if name == LATEST:
        return Found(latest())
    owner = next((parent for parent in path.absolute().parents if is_run(parent)), None)
    owner = Path(os.path.relpath(owner)) if owner is not None and not path.is_absolute() else owner
    if path.suffix == ".ckpt" and path.is_file():
        own = owner is not None and path.parent.name == "checkpoints" and path.stem in ("best", "last")
        return Found(owner, path.stem) if owner is not None and own else Found(path.parent, file=path)
    if owner is not None and path.exists():
        raise InputError(f"{name} is a part of the run {owner}; give that instead")
    raise InputError(f"{name} {_advice(path)}")


def is_run(path: Path) -> bool:
    """conf/ holds a config.yaml too, beside the folder of a group."""
    return (path / "config.yaml").is_file() and not (path / "trainer").is_dir()


def latest() -> Path:
    """The run whose checkpoint was written last; raises InputError where there is none."""
    written = {path: run for run in find_directories(Path(HOME)) for path in (run / "checkpoints").glob("*.ckpt")}
    written = {path: run for path, run in written.items() if path.is_file()}  # a link may lead nowhere
    if not written:
        raise InputError(f"{LATEST}: there is no run with a checkpoint in {HOME}/; give a run's directory, or {TRAIN}")
    return written[max(written, key=lambda path: path.stat().st_mtime)]


def _advice(path: Path) -> str:
    if path.is_dir() and (below := sorted(find_directories(path))):
        return f"is not a run (no config.yaml) but holds {len(below)}; give one of them, for example {below[-1]}"
    fault = "does not exist"
    if path.exists():
        fault = "is not a run (no config.yaml)" if path.is_dir() else "is not a checkpoint"
    runs = [str(run) for run in find_directories(Path(HOME))]
    if close := _closest(str(path), runs):
        return f"{fault}; did you mean {close}?"
    others = f"`vae runs` lists the {len(runs)} in {HOME}/" if runs else TRAIN
    return f"{fault}; give a folder written by train.py, such as outputs/mine; {others}"


def _closest(path: str, runs: Iterable[str]) -> str:
    """The run of the most similar path, or of the most similar name."""
    names = {Path(run).name: run for run in runs} | {run: run for run in runs}
    close = difflib.get_close_matches(path, names, n=1)
    return names[close[0]] if close else ""


def require_checkpoint(found: Found, which: str) -> None:
    """Raises InputError, with what to do, where the run has not written this checkpoint."""
    path = found.directory / "checkpoints" / f"{which}.ckpt"
    if found.file is not None or path.is_file():
        return
    record = read_record(found.directory)
    other = "last" if which == "best" else "best"
    if path.with_name(f"{other}.ckpt").is_file():
        advice = f"use its {other}.ckpt: --checkpoint {other}"
    elif record.status == "running":
        advice = "its first epoch is still running; wait for it to end"
    else:
        advice = f"train it again with its command: vae train run_dir={found.directory} ..."
    status = f"{record.status}: {record.message}" if record.message else record.status
    raise InputError(f"{found.directory} has no {which}.ckpt ({status}); {advice}")
