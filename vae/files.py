"""Files that are written whole or not at all."""

import contextlib
import errno
import logging
import os
import re
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vae.errors import InputError, RunFailed

logger = logging.getLogger(__name__)


PART = re.compile(r".*\.(?P<pid>\d+)\.part")


def expand(path: str | os.PathLike[str]) -> Path:
    """The path with `~` replaced by the home directory; raises InputError for a user without one."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: there is no such home directory; write out the path") from error


def require_plain(path: str | os.PathLike[str], most: int | None = None) -> Path:
    """The path of a regular file of at most `most` bytes; raises InputError for anything else, or where it is missing.

    To open a FIFO or a device may wait for ever.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # a name may hold a NUL
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: cannot be read (it is a {kind_of(status.st_mode)}, not a file)")
    if most is not None and status.st_size > most:
        size, limit = (f"{count / 1e6:,.1f} MB" for count in (status.st_size, most))
        raise InputError(f"{path}: cannot be read (it has {size}; such a file has at most {limit})")
    return Path(path)


def kind_of(mode: int) -> str:
    tests = {stat.S_ISDIR: "directory", stat.S_ISFIFO: "FIFO", stat.S_ISSOCK: "socket"}
    return next((name for test, name in tests.items() if test(mode)), "device")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of the one at `path` when the block ends well, in one step that survives a power cut.

    A reader, or a second writer of the same path, never meets half a file. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # beside the target, never in $TMPDIR: os.replace is atomic within one file system only
    part = path.with_name(f"{path.name}.{threading.get_ident()}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    sync_directory(path.parent)


def replace(path: Path, content: bytes | memoryview) -> None:
    """Puts `content` in the place of the file at `path`, as `whole_file` does."""
    with whole_file(path) as file:
        file.write(content)


def sync_directory(directory: Path) -> None:
    """Makes the names in `directory` durable, not only the contents behind them."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (
            errno.EINVAL,
            errno.ENOTSUP,
            errno.ENOSYS,
        ):  # file systems that have no such thing
            raise
    finally:
        os.close(descriptor)


def remove_leftovers(directory: str | os.PathLike[str]) -> None:
    """Removes the `.part` files of processes that died while writing; those of living processes stay.

    For the start of a run: a file with our own process number is then a leftover too (containers reuse numbers).
    """
    for part in Path(directory).glob("*.part"):
        match = PART.fullmatch(part.name)
        if match and not _alive_elsewhere(int(match["pid"])):
            logger.info("removing %s, which a killed process left behind", part)
            part.unlink(missing_ok=True)


def _alive_elsewhere(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def writable(directory: str | os.PathLike[str], bytes_needed: int) -> None:
    """Tries, before training, what a checkpoint will need: create, reserve `bytes_needed`, sync, remove.

    Raises RunFailed. Space is really reserved, because the free space that a file system reports knows no quota.
    """
    probe = Path(directory) / f"probe.{os.getpid()}.part"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        with open(probe, "wb") as file:
            if bytes_needed > 0 and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, bytes_needed)
            os.fsync(file.fileno())
    except OSError as error:
        raise RunFailed(
            f"cannot write checkpoints to {directory}: {error.strerror or error} ({bytes_needed / 1e6:.1f} MB are "
            "needed); make room there, or give another directory with run_dir=..."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def natural(name: str) -> tuple[list[str | int], str]:
    """A sort key by which numbers within names count as numbers: 2 comes before 10."""
    parts = re.split("([0-9]+)", name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name
