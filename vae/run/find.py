"""Which run is meant: its directory, one of its checkpoints, or `latest`. Imports no torch."""

import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vae.errors import InputError
from vae.run.sweep import find_directories, read_record

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
    given = Path(path)
    if is_run(given):
        return Found(given)
    if os.fspath(path) == LATEST:
        return Found(latest())
    owner = next((parent for parent in given.absolute().parents if is_run(parent)), None)
    owner = Path(os.path.relpath(owner)) if owner is not None and not given.is_absolute() else owner
    if given.suffix == ".ckpt" and given.is_file():
        own = owner is not None and given.parent.name == "checkpoints" and given.stem in ("best", "last")
        return Found(owner, given.stem) if owner is not None and own else Found(given.parent, file=given)
    if owner is not None and given.exists():
        raise InputError(f"{path}: is a part of the run {owner}; name that")
    raise InputError(f"{path}: {_advice(given)}")


def is_run(path: Path) -> bool:
    """conf/ holds a config.yaml too, beside the folder of a group."""
    return (path / "config.yaml").is_file() and not (path / "trainer").is_dir()


def latest() -> Path:
    """The run whose checkpoint was written last; raises InputError where there is none."""
    written = {path: run for run in find_directories(Path(HOME)) for path in (run / "checkpoints").glob("*.ckpt")}
    if not written:
        raise InputError(f"{LATEST}: there is no run with a checkpoint in {HOME}/; name a run's directory, or {TRAIN}")
    return written[max(written, key=lambda path: path.stat().st_mtime)]


def _advice(given: Path) -> str:
    if given.is_dir() and (below := sorted(find_directories(given))):
        return f"is not a run (no config.yaml) but holds {len(below)}; name one of them, for example {below[-1]}"
    what = (
        "is not a run (no config.yaml)" if given.is_dir() else "is no checkpoint" if given.exists() else "is not there"
    )
    runs = [str(run) for run in find_directories(Path(HOME))]
    if close := _closest(str(given), runs):
        return f"{what}; did you mean {close}?"
    there = f"`vae runs` lists the {len(runs)} in {HOME}/" if runs else TRAIN
    return f"{what}; name a folder that train.py wrote, such as outputs/mine; {there}"


def _closest(given: str, runs: Iterable[str]) -> str:
    """The run of the most similar path, or of the most similar name."""
    names = {Path(run).name: run for run in runs} | {run: run for run in runs}
    close = difflib.get_close_matches(given, names, n=1)
    return names[close[0]] if close else ""


def require_checkpoint(found: Found, which: str) -> None:
    """Raises InputError, with what to do, where the run has not written this checkpoint."""
    path = found.directory / "checkpoints" / f"{which}.ckpt"
    if found.file is not None or path.is_file():
        return
    record = read_record(found.directory)
    other = "last" if which == "best" else "best"
    if path.with_name(f"{other}.ckpt").is_file():
        advice = f"{other}.ckpt is there: --checkpoint {other}"
    elif record.status == "running":
        advice = "its first epoch is under way; wait for its end"
    else:
        advice = f"its command begins it anew: vae train run_dir={found.directory} ..."
    said = f" ({record.status}: {record.message})" if record.message else f" ({record.status})"
    raise InputError(f"{found.directory}: has no {which}.ckpt{said}; {advice}")
