"""The four idx files of the MNIST family: read, checked, and fetched when they are missing or damaged."""

import gzip
import hashlib
import logging
import struct
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.error import HTTPError

import numpy as np

from vae.errors import InputError
from vae.files import whole_file

log = logging.getLogger(__name__)

T = TypeVar("T")

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

SIZES = dict(zip(FILES, (47_040_016, 60_008, 7_840_016, 10_008), strict=True))  # the same in all three sets

MISSING = "is missing"

CHUNK = 1 << 16

PATIENCE = 20  # a whole download may take that many times the time-out of a stall


@dataclass(frozen=True)
class Source:
    """Where a set comes from; the sums of the `.gz` are torchvision's, those of the files known for MNIST."""

    folder: str
    mirrors: tuple[str, ...]
    gz_md5: dict[str, str]
    md5: dict[str, str]


def _sums(*sums: str) -> dict[str, str]:
    return dict(zip(FILES, sums, strict=True))


SOURCES = {
    "mnist": Source(
        "MNIST",
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
        _sums(
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        _sums(
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
    ),
    "fashion_mnist": Source(
        "FashionMNIST",
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        _sums(
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        {},
    ),
    "kmnist": Source(
        "KMNIST",
        ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
        _sums(
            "bdb82020997e1d708af4cf47b453dcf7",
            "e144d726b3acfaa3e44228e80efcd344",
            "5c965bf0a639b31b8f53240b1b52f4d7",
            "7320c461ea6c1c855c0b718fb2a4b134",
        ),
        {},
    ),
}


def raw_folder(name: str, root: str | Path) -> Path:
    """Where torchvision keeps, and we look for, the extracted files."""
    return Path(root) / SOURCES[name].folder / "raw"


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of an idx file; its rank is the one that the name states (3 images, 1 labels).

    Raises InputError where the file cannot be read, or its magic number or length is not what it should be.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); put the file there") from error
    rank = 3 if "idx3" in path.name else 1
    start = 4 + 4 * rank
    magic = int.from_bytes(content[:4], "big")
    if len(content) < start or magic != 2048 + rank:
        found = f"{len(content)} bytes with the magic number {magic}, expected {2048 + rank}"
        raise InputError(f"{path}: not an idx file of {rank} dimensions ({found}); put the right file there")
    shape = struct.unpack(f">{rank}I", content[4:start])
    size = start + int(np.prod(shape, dtype=np.int64))
    if len(content) != size:
        found = f"{len(content)} bytes, but the shape {shape} in its header makes {size}"
        raise InputError(f"{path}: {found}; put the right file there")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def ensure(name: str, root: str | Path, mirrors: Sequence[str] | None = None, timeout: float = 30) -> None:
    """Sees to it that the four files of a set are there and right; writes nothing when they are.

    A missing or wrong file is extracted anew from its `.gz`, which is downloaded from the first of `mirrors`
    (base URLs) that has it. A wrong file is replaced by a verified one or left as it is. `timeout`, in
    seconds, is for each stall; one download may take 20 times that. Processes that do this at once wait for
    each other.

    Raises InputError, with all that is needed to mend it by hand, when a file stays missing or wrong.
    """
    if not _faults(name, root):
        return
    try:
        with _locked(name, root, timeout):
            for file in _faults(name, root):
                _repair(name, raw_folder(name, root), file, _bases(name, mirrors), timeout)
    except OSError as error:
        raise InputError(_help(name, root, _reason(error))) from error


def _help(name: str, root: str | Path, reason: str) -> str:
    faults = _faults(name, root)
    found = "; ".join(f"{file} {fault}" for file, fault in faults.items())
    if list(faults.values()) == [MISSING] * len(FILES):
        found = "all files are missing"
    return (
        f"data.name={name}: in {raw_folder(name, root)}, {found}. Fetching failed: {reason}. Put the files "
        f"{', '.join(FILES)} (or their .gz) there by hand, or use data=digits, which needs no download"
    )


def _reason(error: BaseException) -> str:
    """One line, never empty."""
    said = str(error).removeprefix("<urlopen error ").removesuffix(">")
    return " ".join(said.split()) or type(error).__name__


def _faults(name: str, root: str | Path) -> dict[str, str]:
    """What is wrong with which file; empty when all is well."""
    found = {file: _fault(SOURCES[name], raw_folder(name, root) / file) for file in FILES}
    return {file: fault for file, fault in found.items() if fault}


def _fault(source: Source, path: Path) -> str | None:
    """What is wrong with a file, by its published sum, or else the content of its `.gz`, or its header."""
    try:
        if not path.exists():
            return MISSING
        size, md5 = path.stat().st_size, _md5(path)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if size != SIZES[path.name]:
        return f"has {size} bytes, expected {SIZES[path.name]}"
    expected = source.md5.get(path.name) or _md5_inside(source, path)
    if expected:
        return None if md5 == expected else f"has the md5 {md5}, expected {expected}"
    log.warning("%s: only size and header are checked, for there is no (good) .gz to compare it with", path)
    try:
        read_idx(path)
    except InputError as error:
        return f"is no idx file ({error})"
    return None


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, _new_md5).hexdigest()


def _new_md5() -> Any:
    return hashlib.md5(usedforsecurity=False)


def _gz(path: Path) -> Path:
    return path.with_name(path.name + ".gz")


def _md5_inside(source: Source, path: Path) -> str | None:
    """The sum of what the `.gz` beside a file holds; None when there is no such file, or a wrong one."""
    if not _good_gz(source, path):
        return None
    with gzip.open(_gz(path), "rb") as file:
        return hashlib.file_digest(file, _new_md5).hexdigest()  # type: ignore[arg-type]  # typed for raw files


def _good_gz(source: Source, path: Path) -> bool:
    try:
        return _md5(_gz(path)) == source.gz_md5[path.name]
    except OSError:
        return False


def _locked(name: str, root: str | Path, timeout: float) -> Any:
    """The lock of one set; it and the folders are made here, so that a good root is never written to."""
    from filelock import FileLock  # here, since a normal run downloads nothing

    raw_folder(name, root).mkdir(parents=True, exist_ok=True)
    return FileLock(Path(root) / f"{SOURCES[name].folder}.lock", timeout=len(FILES) * PATIENCE * timeout)


def _bases(name: str, mirrors: Sequence[str] | None) -> list[str]:
    """Base URLs in the order in which to try them."""
    given = SOURCES[name].mirrors if mirrors is None else mirrors
    return [base.rstrip("/") + "/" for base in ([given] if isinstance(given, str) else given)]


def _repair(name: str, folder: Path, file: str, bases: list[str], timeout: float) -> None:
    """Puts the right file in place, from its `.gz` or the network; OSError when that cannot be done."""
    source, path = SOURCES[name], folder / file
    if not _good_gz(source, path):
        _download(bases, _gz(path), source.gz_md5[file], timeout)
    log.info("extracting %s", path)
    with gzip.open(_gz(path), "rb") as packed:
        _write(path, lambda: packed.read(CHUNK), source.md5.get(file))


def _download(bases: list[str], target: Path, md5: str, timeout: float) -> None:
    """Fetches the first copy with the right sum. Raises OSError with the reason of each base URL."""
    reasons: dict[str, str] = {}
    waiting = list(bases)
    while waiting:
        base = waiting.pop(0)
        try:
            log.info("downloading %s%s", base, target.name)
            return _download_from(base + target.name, target, md5, timeout)
        except (OSError, HTTPException, ValueError) as error:
            if isinstance(error, ConnectionError) and base not in reasons:
                waiting.append(base)  # it was cut short: worth a second try, when the others fail too
            reasons[base] = _reason(error)
    raise OSError("; ".join(f"{base}{target.name}: {why}" for base, why in reasons.items()) or "no mirrors")


def _download_from(url: str, target: Path, md5: str, timeout: float) -> None:
    deadline = time.monotonic() + PATIENCE * timeout
    with _within(timeout, lambda: _open(url, timeout)) as response:
        length = response.headers.get("Content-Length")

        def read() -> bytes:
            if time.monotonic() > deadline:
                raise TimeoutError(f"not done after {PATIENCE * timeout:g} s")
            return response.read1(CHUNK)  # what has come, not a whole chunk: a trickle must meet the deadline

        _write(target, read, md5, int(length) if length else None)


def _open(url: str, timeout: float) -> Any:
    try:
        return urllib.request.urlopen(url, timeout=timeout)
    except HTTPError as error:
        error.close()  # it is the answer too, and holds the connection
        raise


def _within(seconds: float, call: Callable[[], T]) -> T:
    """The result of a call, or TimeoutError when it takes longer; its thread is then left behind.

    Needed for opening a URL: a socket's time-out holds anew for each address of a host, which may have many,
    and not at all for the look-up of its name.
    """
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return results[0]


def _write(target: Path, read: Callable[[], bytes], md5: str | None, length: int | None = None) -> None:
    """Copies what `read` gives until it gives nothing; what proves right takes the target's place."""
    with whole_file(target) as file:
        digest, size = _copy(read, file)
        if length is not None and size != length:
            raise ConnectionError(f"cut off after {size} of {length} bytes")
        if md5 is not None and digest != md5:
            raise OSError(f"{size} bytes with the md5 {digest}, expected {md5}")


def _copy(read: Callable[[], bytes], file: BinaryIO) -> tuple[str, int]:
    """md5 and number of the bytes copied."""
    digest, size = _new_md5(), 0
    while chunk := read():
        file.write(chunk)
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size
