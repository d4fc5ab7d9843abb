"""Files: written whole or not at all; read only where they are plain files of plain values."""

import contextlib
import errno
import itertools
import json
import logging
import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import psutil
import yaml

from vae.errors import InputError, RunFailed

logger = logging.getLogger(__name__)

FORMAT = 2  # of metrics.json and of checkpoints; raised when those written before can no longer be read
PART = re.compile(r".*\.(?P<pid>\d{1,9})\.part")
MOST_BYTES = 2**24  # of a file that is read as text: the metrics of 10,000 latents take a tenth of it
DEEPEST, MOST_VALUES = 30, 200_000
SCALARS = (str, int, float, bool, type(None))
# the one in C takes a tenth of the time
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


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


def read_json(path: str | os.PathLike[str]) -> Any:
    """The plain values in a JSON file; raises InputError for a file that is damaged, too large or too deep."""
    return _parse(path, json.loads, MOST_BYTES)


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """The plain values in a YAML file; raises InputError as `read_json` does, and for aliases, tags and dates.

    A few hundred bytes of aliases can stand for gigabytes, or for themselves.
    """
    return _parse(path, parse_yaml, MOST_BYTES // 16)


def parse_yaml(text: str) -> Any:
    """The plain values of a text; raises ValueError or yaml.YAMLError."""
    depth = 0
    for event in yaml.parse(text, Loader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it holds an alias, *{event.anchor}; write out its value")
        if getattr(event, "tag", None) not in (None, "!"):
            raise ValueError(f"it holds a tag, {event.tag}; leave it out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} levels deep")
    return yaml.load(text, Loader)


def _parse(path: str | os.PathLike[str], parse: Callable[[str], Any], most: int) -> Any:
    try:
        values = parse(require_plain(path, most).read_text(encoding="utf-8"))
        require_values(values)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # parsers answer a stranger's text with anything, a RecursionError among them
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be read ({reason[:200]})") from error
    return values


def require_values(root: Any) -> None:
    """Raises ValueError unless `root` is made of dicts with texts as keys, lists, texts, numbers, true, false and null.

    Nor may it be nested too deep, as what holds itself is, or hold more values than any file of ours.
    """
    level, count = [root], 0
    for _ in range(DEEPEST + 1):
        odd = [value for value in level if type(value) not in (*SCALARS, dict, list)]
        odd += [key for value in level if type(value) is dict for key in value if type(key) is not str]
        if odd:
            raise ValueError(f"it holds {str(odd[0])[:40]!r}, which is a {type(odd[0]).__name__}")
        level = list(itertools.islice(_children(level), MOST_VALUES + 1))
        count += len(level)
        if count > MOST_VALUES:
            raise ValueError(f"it holds more than {MOST_VALUES:,} values")
        if not level:
            return
    raise ValueError(f"it is nested more than {DEEPEST} levels deep")


def _children(level: Iterable[Any]) -> Iterator[Any]:
    for value in level:
        if isinstance(value, dict):
            yield from value.values()
        elif isinstance(value, list):
            yield from value


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


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder that takes the place of the one at `path` when the block ends well; the old one is removed.

    Killed in between, either of them is there as a whole, or none. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new, old = (path.with_name(f"{path.name}.{name}.{os.getpid()}.part") for name in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)  # of a killed process that had this number
    new.mkdir()
    try:
        yield new
        if path.exists():
            os.replace(path, old)
        os.replace(new, path)
    finally:
        for part in (new, old):
            shutil.rmtree(part, ignore_errors=True)
    sync_directory(path.parent)


def replace(path: Path, content: bytes | memoryview) -> None:
    """Puts `content` in the place of the file at `path`, as `whole_file` does."""
    with whole_file(path) as file:
        file.write(content)


def sync_directory(directory: Path) -> None:
    """Makes the names in `directory` durable, not only the contents behind them."""
    if os.name == "nt":  # where a directory cannot be opened
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # file systems that cannot do so
            raise
    finally:
        os.close(descriptor)


def remove_leftovers(directory: str | os.PathLike[str]) -> None:
    """Removes the `.part` files and folders of processes that died while writing; those of living processes stay.

    For the start of a run: a file with our own process number is then a leftover too (containers reuse numbers).
    """
    for part in Path(directory).glob("*.part"):
        match = PART.fullmatch(part.name)
        pid = int(match["pid"]) if match else os.getpid()
        if match and (pid == os.getpid() or not psutil.pid_exists(pid)):  # on Windows os.kill(pid, 0) sends Ctrl-C
            logger.info("removing %s, which a killed process left behind", part)
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


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
