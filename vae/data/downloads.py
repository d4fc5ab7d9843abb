"""What torchvision fetches, and the checks that it leaves out.

It checks the sum of a `.gz` alone and loads whatever was extracted from it; it waits for ever for a silent server; and
processes that start one download together disturb each other.
"""

import logging
import socket
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from torchvision import datasets
from torchvision.datasets.utils import calculate_md5, check_integrity, download_and_extract_archive

from vae.errors import InputError, first_line
from vae.files import expand, require_plain

log = logging.getLogger(__name__)

IdxSet = type[datasets.MNIST]  # its name, `mirrors` and `resources` (file.gz, md5) say where a set comes from

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

SIZES = dict(zip(FILES, (47_040_016, 60_008, 7_840_016, 10_008), strict=True))  # the same in all three sets

MD5 = {  # of the extracted files; for the other sets none are published
    "MNIST": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    }
}

PATIENCE = 80  # to wait for another process's download, in time-outs of a stall


def raw_folder(source: IdxSet, root: str | Path) -> Path:
    """Where torchvision keeps, and we look for, the extracted files."""
    return expand(root) / source.__name__ / "raw"


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of an idx file; its rank is the one that the name states (3 images, 1 labels).

    Raises InputError where the file cannot be read, or its magic number or length is not what it should be.
    """
    content = require_plain(path).read_bytes()
    rank = 3 if "idx3" in path.name else 1
    start = 4 + 4 * rank
    magic = int.from_bytes(content[:4], "big")
    if len(content) < start or magic != 2048 + rank:
        header = f"{len(content)} bytes with the magic number {magic}, expected {2048 + rank}"
        raise InputError(f"{path}: not an idx file of {rank} dimensions ({header}); put the right file there")
    shape = struct.unpack(f">{rank}I", content[4:start])
    size = start + int(np.prod(shape, dtype=np.int64))
    if len(content) != size:
        raise InputError(
            f"{path}: {len(content)} bytes, but the shape {shape} in its header makes {size}; put the right file there"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def ensure(source: IdxSet, root: str | Path, mirrors: Sequence[str] | None = None, timeout: float = 30) -> None:
    """Makes the four files of a set right; writes nothing when they are.

    A missing or wrong file is extracted anew from its `.gz`, which is downloaded from the first of `mirrors` (base
    URLs) that has it. `timeout`, in seconds, is for each stall. Processes that do this at once wait for each other.
    Raises InputError, with all that is needed to mend it by hand, when a file stays missing or wrong.
    """
    folder = raw_folder(source, root)
    if not (faults := find_faults(source, folder)):
        return
    reasons: list[str] = []
    try:
        with fetching(source.__name__, expand(root), timeout):
            for file in find_faults(source, folder):
                reasons += _fetch(source, folder, file, source.mirrors if mirrors is None else mirrors)
    except OSError as error:  # the folder cannot be made, or another process does not come to an end
        reasons.append(first_line(error))
    if faults := find_faults(source, folder):
        wrong = "; ".join(f"{file} {fault}" for file, fault in faults.items())
        raise InputError(
            f"data.root={root}: in {folder}, {wrong}. Fetching failed: {'; '.join(reasons)}. Put the files "
            f"{', '.join(FILES)} (or their .gz) there by hand, or use data=digits, which needs no download"
        )


@contextmanager
def fetching(name: str, root: Path, timeout: float) -> Iterator[None]:
    """One process at a time fetches the set `name`, and gives up where a server is silent for `timeout` seconds."""
    root.mkdir(parents=True, exist_ok=True)
    before = socket.getdefaulttimeout()
    with FileLock(root / f".{name}.lock", timeout=PATIENCE * timeout):
        socket.setdefaulttimeout(timeout)
        try:
            yield
        finally:
            socket.setdefaulttimeout(before)


def fetched(source: Any, root: str, requests: Sequence[dict[str, Any]], timeout: float) -> list[Any]:
    """torchvision's data sets for these requests, fetched into `root`; raises InputError where they cannot be."""
    try:
        with fetching(source.__name__, expand(root), timeout):
            return [source(str(expand(root)), download=True, **request) for request in requests]
    except Exception as error:  # of the network, of the disk, of a damaged file: torchvision raises many kinds
        raise InputError(
            f"data.root={root}: {source.__name__} is not there and cannot be fetched ({first_line(error)}); try again, "
            "or put torchvision's files there"
        ) from error


def find_faults(source: IdxSet, folder: Path) -> dict[str, str]:
    """What is wrong with which file; empty when all is well."""
    faults = {file: _fault(source, folder / file) for file in FILES}
    return {file: fault for file, fault in faults.items() if fault}


def _fault(source: IdxSet, path: Path) -> str | None:
    """What is wrong with a file, by its published sum or else by what its `.gz` says of it."""
    if not path.exists():
        return "is missing"
    size = require_plain(path).stat().st_size
    if size != SIZES[path.name]:
        return f"has {size} bytes, expected {SIZES[path.name]}"
    if expected := MD5.get(source.__name__, {}).get(path.name):
        md5 = calculate_md5(path)
        return None if md5 == expected else f"has the md5 {md5}, expected {expected}"
    packed = path.with_name(f"{path.name}.gz")
    if not check_integrity(packed, dict(source.resources)[packed.name]):
        log.warning("%s: only size and header are checked, for there is no (good) .gz to compare it with", path)
        try:
            read_idx(path)
        except InputError as error:
            return f"is no idx file ({error})"
        return None
    expected = packed.read_bytes()[-8:-4][::-1].hex()  # a gzip file ends in the CRC-32 and the size of its content
    crc = f"{zlib.crc32(path.read_bytes()):08x}"
    return None if crc == expected else f"has the CRC-32 {crc}, expected {expected}"


def _fetch(source: IdxSet, folder: Path, file: str, mirrors: Sequence[str]) -> list[str]:
    """Extracts a file from its `.gz`, downloaded where it is not there; why it failed, for each mirror."""
    name, reasons = f"{file}.gz", []
    for mirror in [mirrors] if isinstance(mirrors, str) else mirrors:
        url = f"{mirror.rstrip('/')}/{name}"
        try:
            log.info("fetching %s", url)
            download_and_extract_archive(url, str(folder), filename=name, md5=dict(source.resources)[name])
            return []
        except (OSError, HTTPException, RuntimeError, ValueError) as error:
            reasons.append(f"{url}: {first_line(error)}")
    return reasons or ["no mirrors"]
