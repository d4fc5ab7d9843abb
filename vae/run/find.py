"""Which run is meant: its directory, or one of its checkpoints. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path

from vae.errors import InputError


@dataclass(frozen=True)
class Found:
    """A run's directory, and the checkpoint of it that was named, `best` or `last`."""

    directory: Path
    which: str | None = None


def find_run(path: str) -> Found:
    """Raises InputError, with what to name instead, for a path that leads to no run."""
    given = Path(path)
    if given.is_file() and (given.parent.parent / "config.yaml").is_file():
        return Found(given.parent.parent, given.stem)
    if not (given / "config.yaml").is_file():
        raise InputError(
            f"{path}: is not a run (no config.yaml); name a folder that train.py wrote, such as outputs/mine"
        )
    return Found(given)
