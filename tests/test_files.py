"""Files that others wrote: read where they are plain files of plain values, refused in one line elsewhere."""

import itertools
import json
import os
import subprocess
from pathlib import Path

import psutil
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vae.errors import InputError
from vae.files import MOST_BYTES, expand, read_json, read_yaml, remove_leftovers, replace, require_plain

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_subnormal=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
NINE = {b: ", ".join([f"*{a}"] * 9) for a, b in itertools.pairwise("abcdefghi")}  # of each letter the next holds nine
BOMB = "a: &a [x, x, x]\n" + "".join(f"{name}: &{name} [{nine}]\n" for name, nine in NINE.items())
MERGES = "a: &a {x: 1}\n" + "".join(f"{name}: &{name} {{<<: [{nine}]}}\n" for name, nine in NINE.items())
YAML = {
    "aliases": (BOMB, "alias"),
    "merged aliases": (MERGES, "alias"),
    "itself": ("&a [*a]", "alias"),
    "deep lists": ("[" * 500, "levels deep"),
    "deeper lists": ("[" * 50_000, "nesting depth"),
    "deep blocks": ("- " * 50_000 + "x", "levels deep"),
    "a tag": ("!!python/object/apply:os.system [touch executed]", "tag"),
    "a pair in a tuple": ("!!pairs [a: {b: c}]", "tag"),
    "a date": ("2020-01-01", "date"),
    "a number of 5,000 digits": ("1" * 5_000, "digits"),
    "a number as key": ("1: x", "int"),
    "no text": ("a: b: c", "mapping values"),
    "too large": ("x" * (MOST_BYTES // 16 + 1), "at most"),
}
JSON = {
    "deep lists": ("[" * 50_000 + "]" * 50_000, "recursion"),
    "deep objects": ('{"a":' * 40 + "1" + "}" * 40, "levels deep"),
    "no text": ("{", "Expecting"),
    "a number of 5,000 digits": ("1" * 5_000, "digits"),
    "too large": (" " * (MOST_BYTES + 1), "at most"),
}


@settings(max_examples=50, deadline=None)
@given(VALUES)
def test_plain_values_come_back_from_both_files(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "values"
    path.write_text(json.dumps(value), encoding="utf-8")
    assert read_json(path) == value
    path.write_text(yaml.safe_dump(value), encoding="utf-8")
    assert read_yaml(path) == value


@pytest.mark.parametrize("kind", YAML)
def test_a_yaml_file_of_a_stranger_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    text, reason = YAML[kind]
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=rf"^{tmp_path}/config.yaml: cannot be read \(.*{reason}") as caught:
        read_yaml(tmp_path / "config.yaml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("kind", JSON)
def test_a_json_file_of_a_stranger_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    text, reason = JSON[kind]
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(InputError, match=rf"^{tmp_path}/metrics.json: cannot be read \(.*{reason}") as caught:
        read_json(tmp_path / "metrics.json")
    assert "\n" not in str(caught.value)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_values_or_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes"
    path.write_bytes(content)
    for read in (read_json, read_yaml):
        try:
            line = str(read(path)) and ""
        except InputError as error:
            line = str(error)
        assert "\n" not in line


def test_only_plain_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    kinds = {"fifo": "a FIFO", ".": "a directory", "/dev/zero": "a device", "nowhere": "No such file", "a\0b": "null"}
    kinds["n" * 300] = "name too long"
    for name, reason in kinds.items():
        for read in (read_json, read_yaml, require_plain):
            with pytest.raises(InputError, match=rf"cannot be read \(.*{reason}"):
                read(tmp_path / name)


def test_the_home_directory_is_written_as_a_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand("~/runs") == tmp_path / "runs"
    assert expand("a~b") == Path("a~b")
    with pytest.raises(InputError, match="~nobody-of-that-name/x: there is no such home"):
        expand("~nobody-of-that-name/x")


def test_windows_neither_opens_a_directory_nor_is_asked_by_a_signal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """There a directory cannot be opened, and os.kill(pid, 0) sends Ctrl-C."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    parts = [tmp_path / f"x.{pid}.part" for pid in (ended.pid, os.getppid())]
    for part in parts:
        part.touch()
    opened = os.open

    def refuse(path: object, *arguments: int) -> int:
        assert not Path(str(path)).is_dir()
        return opened(str(path), *arguments)

    with monkeypatch.context() as patch:
        patch.setattr("os.open", refuse)
        patch.setattr("os.kill", None)
        patch.setattr("os.name", "nt")
        replace(tmp_path / "x", b"content")
        patch.undo()
        patch.setattr("os.kill", None)
        patch.setattr(psutil, "pid_exists", [os.getppid()].__contains__)
        remove_leftovers(tmp_path)
    assert (tmp_path / "x").read_bytes() == b"content"
    assert [part.exists() for part in parts] == [False, True]
