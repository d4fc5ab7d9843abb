"""Lists and tables of runs: whatever lies in a folder, every run has its line, and names stay names."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, settings_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vae.commands import cli
from vae.tables import as_csv, text_table
from vae.words import number, plus_minus

PLAIN = settings_of("data=digits", "likelihood=gaussian", "run_dir=x").plain
METRICS = {
    "dev/loss": 30.5, "dev/elbo": -30.5, "dev/neg_elbo": 30.5, "test/nll": 29.25, "test/nll_error": 0.25,
    "test/nll_samples": 50, "test/elbo": -30.0, "test/active_units": 3, "epochs": 70, "best_epoch": 60,
    "stopped_early": 0, "seconds": 61.25, "provenance": {"format": 2, "git_commit": None, "data_md5": "1"},
}  # fmt: skip

DAMAGE: list[Any] = [None, "text", -1, [], [1, {}], {}, {"_target_": None}, {"a": {"b": [None]}}, True, 1e400]


def write_run(folder: Path, plain: Any = PLAIN, metrics: Any = METRICS) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(plain if isinstance(plain, str) else yaml.safe_dump(plain))
    (folder / "metrics.json").write_text(metrics if isinstance(metrics, str) else json.dumps(metrics))
    return folder


Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """The exit code of a `vae` command, and all that it said."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["vae", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def places(node: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every group and key of a configuration."""
    found = [path] if path else []
    for name, value in node.items() if isinstance(node, dict) else ():
        found += places(value, (*path, name))
    return found


def damaged(node: Any, path: tuple[str, ...], value: Any) -> Any:
    return value if not path else node | {path[0]: damaged(node[path[0]], path[1:], value)}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_run_ends_no_list(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory, call: Call) -> None:
    root = tmp_path_factory.mktemp("runs")
    kind = data.draw(st.sampled_from([PLAIN, METRICS]))
    broken = damaged(kind, data.draw(st.sampled_from(places(kind))), data.draw(st.sampled_from(DAMAGE)))
    write_run(root / "good")
    write_run(root / "bad", *((broken, METRICS) if kind is PLAIN else (PLAIN, broken)))
    for verb in ("runs", "ledger", "compare"):
        code, said = call(verb, root)
        assert code == 0, said
        assert "29.25" in said or "30.50" in said  # the good one's
        assert "good" in said or verb == "compare"
    assert "bad" in call("runs", root)[1]


@pytest.mark.parametrize("file", ["config.yaml", "metrics.json"])
@pytest.mark.parametrize("content", ["null", "text", "", "[]", "[" * 100_000, "a: &a [*a]", "{", "\x00", "1"])
def test_a_file_that_is_none_makes_a_line(file: str, content: str, tmp_path: Path, call: Call) -> None:
    write_run(tmp_path / "good")
    write_run(tmp_path / "bad")
    (tmp_path / "bad" / file).write_text(content)
    for verb in ("runs", "compare"):
        code, said = call(verb, tmp_path)
        assert code == 0
        assert re.search(r"bad\b\S* +unreadable", " ".join(said.split())), said


def test_names_are_shown_as_they_are_without_moving_the_cursor(tmp_path: Path, call: Call) -> None:
    names = ["[red]a", "b[/bold]", "\x1b[31mc", "=1+1"]
    for seed, name in enumerate(names):
        write_run(tmp_path / name, PLAIN | {"seed": seed})
    write_run(tmp_path / "half", PLAIN).joinpath("metrics.json").unlink()
    (tmp_path / "half" / "failure.txt").write_text("[/bold] went \x1b[2J wrong\n")
    said = call("runs", tmp_path)[1] + call("ledger", tmp_path)[1]
    assert "\x1b" not in said
    for shown in ("[red]a", "b[/bold]", r"\x1b[31mc", "=1+1"):
        assert said.count(f"{tmp_path}/{shown} ") == 2
    assert r"failed: [/bold] went \x1b[2J wrong" in said


def test_no_cell_of_a_csv_is_a_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(["=cmd|calc", "+1+1", "@SUM(1)", "-2+3"]):
        write_run(Path(name, "r"), PLAIN | {"seed": seed, "optimizer": PLAIN["optimizer"] | {"lr": -0.5}})
    for verb in ("runs", "ledger"):
        assert call(verb, ".", "--out", f"{verb}.csv")[0] == 0
    assert call("runs", *[f"./{name}" for name in ("=cmd|calc", "+1+1")], "--out", "more.csv")[0] == 0
    for file in tmp_path.glob("*.csv"):
        cells = [cell for row in csv.reader(io.StringIO(file.read_text())) for cell in row]
        assert not [cell for cell in cells if cell[:1] in "=+@" and cell], file
    assert as_csv({"=a": ["-1", "-x", "+3", "=1", "\t=1", "3"]}) == "'=a\n-1\n'-x\n+3\n'=1\n'\t=1\n3\n"


@pytest.mark.parametrize("verb", ["runs", "ledger", "compare"])
def test_a_place_that_cannot_be_written_is_one_line(verb: str, tmp_path: Path, call: Call) -> None:
    write_run(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    code, said = call(verb, tmp_path / "a", "--out", tmp_path / "file" / "x.csv")
    line = said.splitlines()[-1]
    assert code == 2
    assert line.startswith(f"--out={tmp_path}/file/x.csv")
    assert "cannot be written" in line


def test_a_closed_pipe_ends_quietly(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    command = f"{sys.executable} -m vae.commands.cli runs {tmp_path} | true"  # which reads nothing
    ended = subprocess.run(
        command, shell=True, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert ended.stderr == ""


# --- in 80 columns ----------------------------------------------------------------------------------------------------


def test_a_list_of_runs_keeps_names_whole_and_drops_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "outputs/multirun/sizes/latent_dim=4,model.encoder.hidden=200-200"
    write_run(Path(name))
    write_run(Path("outputs/other"), PLAIN | {"likelihood": PLAIN["likelihood"] | {"_target_": "x.Other"}})
    monkeypatch.setenv("COLUMNS", "80")
    said = call("runs")[1]
    assert max(map(len, said.splitlines())) <= 80
    (line,) = [line for line in said.splitlines() if name in line]
    assert line.split() == [name, "30.50"]
    assert "(no room for seconds, epochs, test/active_units, test/nll)" in said
    titles = [line for line in said.splitlines() if "digits" in line]
    assert [("gaussian" in title, "Other" in title) for title in titles] == [(True, False), (False, True)]
    monkeypatch.setenv("COLUMNS", "120")
    assert "61.25" in call("runs")[1]


def test_columns_are_as_wide_as_what_they_show() -> None:
    text = text_table({"name": ["a", "日本"], "loss": ["1.5 ± 0.1", "−20 ± 3"]}, width=30)
    assert text.splitlines() == ["name       loss", "────  ─────────", "a     1.5 ± 0.1", "日本    −20 ± 3"]


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [(34.7012, 0.5678, "34.70 ± 0.57"), (-312.64, 12.3, "−313 ± 12"), (2.0, None, "2"), (1234567.8, None, "1234568"),
     (0.00123456, float("nan"), "0.001235"), (30.5, None, "30.50"),
     (-0.0, 0.1, "0.00 ± 0.10"), (7, None, "7"), (61.2345, 0.0, "61.23")],
)  # fmt: skip
def test_a_number_has_the_digits_that_its_interval_leaves_it(value: float, half: float | None, text: str) -> None:
    assert plus_minus(value, half) == text


def test_large_counts_are_written_in_full() -> None:
    assert number(123456789) == "123456789"
    assert number(-0.5, "+") == "−0.5000"
    assert number(2.0, "+") == "+2"
