"""Fetching the MNIST family: real files, real local servers, and every fault that one meets."""

import gzip
import hashlib
import json
import logging
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import numpy as np
import pytest

from vae.data import KMNIST, MNIST, FashionMNIST
from vae.data.downloads import FILES, MD5, SIZES, ensure, raw_folder, read_idx
from vae.errors import InputError

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = FILES
Contents = dict[str, bytes]


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 2048 + array.ndim, *array.shape) + array.tobytes()


def small_set(train: int = 37, test: int = 11) -> Contents:
    """Four files in the format of MNIST, 5x7 pixels; an image's first pixel is its number in the file."""
    rng = np.random.default_rng(0)
    contents = []
    for count in (train, test):
        images = rng.integers(0, 256, (count, 5, 7), dtype=np.uint8)
        images[:, 0, 0] = np.arange(count)
        contents += [idx(images), idx(rng.integers(0, 10, count, dtype=np.uint8))]
    return dict(zip(FILES, contents, strict=True))


def packed(contents: Contents) -> Contents:
    return {f"{file}.gz": gzip.compress(content, mtime=0) for file, content in contents.items()}


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def publish(monkeypatch: pytest.MonkeyPatch, contents: Contents, kind: type[MNIST] = MNIST) -> None:
    """Makes these four files the published ones of a set, with the kinds of sums that it has."""
    source = kind.source
    monkeypatch.setattr(source, "mirrors", [])
    monkeypatch.setattr(source, "resources", [(file, md5(content)) for file, content in packed(contents).items()])
    if source.__name__ in MD5:
        monkeypatch.setitem(MD5, source.__name__, {file: md5(content) for file, content in contents.items()})
    for file in FILES:
        monkeypatch.setitem(SIZES, file, len(contents[file]))


def put(root: Path, contents: Contents, kind: type[MNIST] = MNIST) -> Path:
    folder = raw_folder(kind.source, root)
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in contents.items():
        (folder / file).write_bytes(content)
    return folder


def tree(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder, with its time of change, so that a rewrite shows too."""
    paths = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


@contextmanager
def serve(answer: Callable[[BaseHTTPRequestHandler, str], None]) -> Iterator[tuple[str, list[str]]]:
    """A local server: its base URL and the files that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path.lstrip("/"))
            answer(self, asked[-1])

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def reply(handler: BaseHTTPRequestHandler, body: bytes, length: int | None = None) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)


def whole(contents: Contents) -> Callable[[BaseHTTPRequestHandler, str], None]:
    return lambda handler, file: reply(handler, packed(contents)[file])


@pytest.fixture
def contents(monkeypatch: pytest.MonkeyPatch) -> Contents:
    """A small set, published as MNIST."""
    files = small_set()
    publish(monkeypatch, files)
    return files


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/"


def fetch(root: Path, *mirrors: str, kind: type[MNIST] = MNIST, timeout: float = 5) -> None:
    ensure(kind.source, root, mirrors or [closed_port()], timeout)


def refused(root: Path, *mirrors: str, kind: type[MNIST] = MNIST, timeout: float = 5) -> str:
    with pytest.raises(InputError) as caught:
        fetch(root, *mirrors, kind=kind, timeout=timeout)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("shape", [(6,), (2, 3, 5)])
def test_read_idx_is_the_inverse_of_the_format(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    path = tmp_path / (TRAIN_IMAGES if len(shape) == 3 else TRAIN_LABELS)
    path.write_bytes(idx(array))
    np.testing.assert_array_equal(read_idx(path), array)


def test_good_files_are_left_alone_and_nothing_is_made(tmp_path: Path, contents: Contents) -> None:
    put(tmp_path, contents)
    before = tree(tmp_path)
    fetch(tmp_path, closed_port())
    assert tree(tmp_path) == before


def test_missing_files_are_fetched_with_their_gz(tmp_path: Path, contents: Contents) -> None:
    with serve(whole(contents)) as (url, asked):
        fetch(tmp_path / "new" / "root", url)
        fetch(tmp_path / "new" / "root", url)
    folder = raw_folder(MNIST.source, tmp_path / "new" / "root")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == contents | packed(contents)
    assert set(asked) == {f"{file}.gz" for file in FILES}


def flipped(content: bytes, at: int = -1) -> bytes:
    changed = bytearray(content)
    changed[at] ^= 1
    return bytes(changed)


DAMAGES = {
    "truncated": lambda files: {TRAIN_IMAGES: files[TRAIN_IMAGES][:-3]},
    "empty": lambda files: {TRAIN_LABELS: b""},
    "one bit flipped": lambda files: {TEST_IMAGES: flipped(files[TEST_IMAGES])},
    "swapped": lambda files: {TRAIN_IMAGES: files[TEST_IMAGES], TEST_IMAGES: files[TRAIN_IMAGES]},
    "wrong magic": lambda files: {TEST_LABELS: flipped(files[TEST_LABELS], 3)},
    "labels of another count": lambda files: {TRAIN_LABELS: files[TEST_LABELS]},
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_damaged_file_is_refused_without_network_and_replaced_with_it(
    tmp_path: Path, contents: Contents, damage: Callable[[Contents], Contents]
) -> None:
    wrong = damage(contents)
    folder = put(tmp_path, contents | wrong)
    message = refused(tmp_path)
    for file, content in wrong.items():
        assert file in message
        same_size = len(content) == len(contents[file])
        found, expected = (md5(content), md5(contents[file])) if same_size else (len(content), len(contents[file]))
        assert str(found) in message
        assert str(expected) in message
        assert (folder / file).read_bytes() == content  # refused, not deleted
    with serve(whole(contents)) as (url, asked):
        fetch(tmp_path, url)
    assert {file: (folder / file).read_bytes() for file in FILES} == contents
    assert set(asked) == {f"{file}.gz" for file in wrong}


def test_good_gz_mends_a_file_without_network(tmp_path: Path, contents: Contents) -> None:
    folder = put(tmp_path, contents | packed(contents) | {TEST_IMAGES: b"damaged"})
    (folder / TRAIN_LABELS).unlink()
    fetch(tmp_path, closed_port())
    assert {file: (folder / file).read_bytes() for file in FILES} == contents


def test_bad_gz_is_fetched_anew(tmp_path: Path, contents: Contents) -> None:
    folder = put(tmp_path, contents | {f"{TEST_IMAGES}.gz": b"damaged", TEST_IMAGES: b"damaged"})
    with serve(whole(contents)) as (url, _):
        fetch(tmp_path, url)
    assert (folder / TEST_IMAGES).read_bytes() == contents[TEST_IMAGES]
    assert (folder / f"{TEST_IMAGES}.gz").read_bytes() == packed(contents)[f"{TEST_IMAGES}.gz"]


def test_set_without_sums_of_its_files_is_compared_with_its_gz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = small_set()
    publish(monkeypatch, contents, KMNIST)
    wrong = {TEST_IMAGES: flipped(contents[TEST_IMAGES])}
    folder = put(tmp_path, contents | packed(contents) | wrong, KMNIST)
    fetch(tmp_path, kind=KMNIST)
    assert (folder / TEST_IMAGES).read_bytes() == contents[TEST_IMAGES]


def test_set_without_sums_and_gz_is_checked_by_header_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    contents = small_set()
    publish(monkeypatch, contents, FashionMNIST)
    folder = put(tmp_path, contents, FashionMNIST)
    with caplog.at_level(logging.WARNING):
        fetch(tmp_path, kind=FashionMNIST)
    assert len(caplog.records) == len(FILES)
    for at in (3, 7):  # the magic number; the count of images
        (folder / TEST_IMAGES).write_bytes(flipped(contents[TEST_IMAGES], at))
        assert f"{TEST_IMAGES} is no idx file" in refused(tmp_path, kind=FashionMNIST)


def test_cut_download_is_reported_and_fetched_anew(tmp_path: Path, contents: Contents) -> None:
    with serve(lambda handler, file: reply(handler, packed(contents)[file][:20], 999)) as (url, _):
        message = refused(tmp_path, url)
    assert all(f"{file} is missing" in message for file in FILES)
    with serve(whole(contents)) as (url, _):
        fetch(tmp_path, url)
    folder = raw_folder(MNIST.source, tmp_path)
    assert {file: (folder / file).read_bytes() for file in FILES} == contents


def test_next_mirror_serves_what_the_first_gets_wrong(tmp_path: Path, contents: Contents) -> None:
    with (
        serve(lambda handler, file: reply(handler, b"<html>moved</html>")) as (wrong, asked),
        serve(whole(contents)) as (right, _),
    ):
        fetch(tmp_path, closed_port(), wrong, right.rstrip("/"))
    assert set(asked) == {f"{file}.gz" for file in FILES}


def test_wrong_content_is_never_used(tmp_path: Path, contents: Contents) -> None:
    with serve(lambda handler, file: reply(handler, gzip.compress(contents[TEST_LABELS]))) as (url, _):
        message = refused(tmp_path, url)
    assert "corrupted" in message
    assert not [file for file in FILES if (raw_folder(MNIST.source, tmp_path) / file).exists()]


def test_http_error_is_reported(tmp_path: Path, contents: Contents) -> None:
    with serve(lambda handler, file: handler.send_error(404)) as (url, _):
        assert "404" in refused(tmp_path, url)


def test_no_network_says_what_to_put_where(tmp_path: Path, contents: Contents) -> None:
    message = refused(tmp_path)
    for part in (*FILES, str(raw_folder(MNIST.source, tmp_path)), "Connection refused", "data=digits"):
        assert part in message


@pytest.mark.parametrize("mirrors", [["nonsense/"], ["http://127.0.0.1:no/"], "file:///does/not/exist"])
def test_unusable_mirror_is_reported(tmp_path: Path, contents: Contents, mirrors: list[str]) -> None:
    with pytest.raises(InputError, match=r"Fetching failed: .+\.gz: "):
        ensure(MNIST.source, tmp_path, mirrors)


def test_silent_network_is_given_up_in_time(tmp_path: Path, contents: Contents) -> None:
    with socket.socket() as silent:  # accepts, by its backlog, and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        message = refused(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}/", timeout=0.3)
    assert time.monotonic() - start < 3
    assert "timed out" in message or "no answer" in message


def test_stall_in_the_middle_is_given_up_in_time(tmp_path: Path, contents: Contents) -> None:
    done = threading.Event()

    def stall(handler: BaseHTTPRequestHandler, file: str) -> None:
        reply(handler, b"half", 99)
        handler.wfile.flush()
        done.wait(10)

    with serve(stall) as (url, _):
        start = time.monotonic()
        message = refused(tmp_path, url, timeout=0.3)
        done.set()
    assert time.monotonic() - start < 3
    assert "timed out" in message


def test_a_fifo_in_a_file_s_place_is_not_waited_for(tmp_path: Path, contents: Contents) -> None:
    folder = put(tmp_path, contents)
    (folder / TEST_LABELS).unlink()
    os.mkfifo(folder / TEST_LABELS)
    assert "it is a FIFO, not a file" in refused(tmp_path)


def test_root_that_cannot_be_made_is_reported(tmp_path: Path, contents: Contents) -> None:
    (tmp_path / "file").write_text("in the way")
    assert str(tmp_path / "file") in refused(tmp_path / "file" / "root")


WORKER = """
import json, sys
from vae.data import MNIST, downloads
sizes, resources, md5, root, url = json.loads(sys.argv[1])
downloads.SIZES.update(sizes)
downloads.MD5["MNIST"] = md5
MNIST.source.resources = [tuple(pair) for pair in resources]
print("ready", flush=True)
sys.stdin.readline()
downloads.ensure(MNIST.source, root, [url], 20)
"""


def test_two_processes_at_once_both_succeed(tmp_path: Path, contents: Contents) -> None:
    tables: list[Any] = [SIZES, MNIST.source.resources, MD5["MNIST"], str(tmp_path)]

    def slowly(handler: BaseHTTPRequestHandler, file: str) -> None:
        time.sleep(0.1)
        reply(handler, packed(contents)[file])

    with serve(slowly) as (url, asked):
        command = [sys.executable, "-c", WORKER, json.dumps([*tables, url])]
        here = Path(__file__).parents[1]
        workers = [Popen(command, text=True, cwd=here, stdin=PIPE, stdout=PIPE) for _ in range(2)]
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        ends = [threading.Thread(target=worker.communicate, args=("go\n",)) for worker in workers]
        for end in ends:
            end.start()
        for end in ends:
            end.join()
    assert [worker.returncode for worker in workers] == [0, 0]
    assert sorted(asked) == sorted([f"{file}.gz" for file in FILES] * (len(asked) // len(FILES)))
    assert len(asked) <= 2 * len(FILES)  # one of them fetched: torchvision asks for redirections before each file
    folder = raw_folder(MNIST.source, tmp_path)
    assert {file: (folder / file).read_bytes() for file in FILES} == contents
