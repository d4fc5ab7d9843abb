"""The runs below a folder, without torch: what was set, what came out, and how it stands with each."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from vae.errors import InputError
from vae.files import expand, natural, require_plain
from vae.run.directory import FAILURE, is_complete, read_metrics, read_settings
from vae.run.keys import Plain, leaves

Status = Literal["finished", "running", "failed", "unfinished", "unreadable"]


@dataclass(frozen=True)
class RunRecord:
    """A run as its directory tells it, by today's names of keys and metrics."""

    directory: Path
    settings: Plain | None  # plain containers; None where config.yaml cannot be read
    metrics: dict[str, Any] | None  # None until the run has ended once
    status: Status
    message: str = ""  # what it failed with, why it cannot be read, or how far it is; one line

    @property
    def name(self) -> str:
        """In a sweep, what varies."""
        return self.directory.name

    @property
    def row(self) -> dict[str, Any]:
        """All that is known of it, by name: its place and status, its settings by dotted key, its metrics."""
        metrics = {name: value for name, value in (self.metrics or {}).items() if name != "provenance"}
        place = {"run": str(self.directory), "status": self.status, "message": self.message}
        return place | dict(leaves(self.settings or {})) | metrics


def list_runs(*roots: str | os.PathLike[str]) -> list[RunRecord]:
    """Every run at or below these folders, each once; numbers in names are sorted as numbers.

    Raises InputError for a folder that is not there. A run that cannot be read is listed with the reason.
    """
    found: dict[Path, RunRecord] = {}
    for root in map(expand, roots):
        if not root.is_dir():
            raise InputError(
                f"{root}: there is no such folder; name one that holds runs, such as outputs/multirun/mine"
            )
        for directory in find_directories(root):
            found.setdefault(directory.resolve(), read_record(directory))
    return sorted(found.values(), key=lambda record: natural(str(record.directory)))


def find_directories(root: Path) -> Iterator[Path]:
    """Folders with a config.yaml; a run holds no other runs, and hidden folders none.

    A folder of options, such as conf/, holds a file of that name too, and nothing that a run writes beside it.
    """
    seen: set[str] = set()  # a link may lead back up
    for folder, below, files in os.walk(root, followlinks=True):
        below[:] = [name for name in below if not name.startswith(".")]
        place = os.path.realpath(folder)
        if place in seen:
            below.clear()
            continue
        seen.add(place)
        if "config.yaml" in files and not (Path(folder, "trainer").is_dir() or Path(folder, "model").is_dir()):
            below.clear()
            yield Path(folder)


def read_record(directory: Path) -> RunRecord:
    """One run's record; raises nothing for files that are damaged."""
    try:
        settings = read_settings(directory / "config.yaml")
    except InputError as error:
        return RunRecord(directory, None, None, "unreadable", str(error))
    try:
        metrics = read_metrics(directory / "metrics.json")
    except InputError as error:
        return RunRecord(directory, settings, None, "unreadable", str(error))
    status, message = _standing(directory, is_complete(metrics, settings["trainer"]["max_epochs"]))
    return RunRecord(directory, settings, metrics, status, message)


def _standing(directory: Path, complete: bool) -> tuple[Status, str]:
    if complete:
        return "finished", ""
    if is_locked(directory):
        return "running", last_epoch(directory)
    if (directory / FAILURE).exists():
        return "failed", read_line(directory / FAILURE)
    return "unfinished", last_epoch(directory)


def read_line(path: Path) -> str:
    """The first line of a file, or why it cannot be read."""
    try:
        with open(require_plain(path), errors="replace") as file:
            return file.readline(1000).strip()
    except (OSError, InputError) as error:
        return str(error)


def is_locked(directory: Path) -> bool:
    """Whether a process works in this run's directory, here or, where the file system tells, on another machine."""
    if not (directory / ".lock").exists():
        return False
    try:
        with FileLock(directory / ".lock", timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a folder that may only be read
        return False


def last_epoch(directory: Path) -> str:
    """`epoch 3 of 70`, or nothing before the first has ended."""
    try:
        with open(require_plain(directory / "train.log"), "rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - 4096))
            found = re.findall(r"epoch \d+ of \d+", log.read().decode(errors="replace"))
    except (OSError, InputError):
        return ""
    return found[-1] if found else ""
