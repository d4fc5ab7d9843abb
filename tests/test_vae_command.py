"""The `vae` command: its help, its refusals, what its verbs write."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from typer.main import get_command

from vae.commands import cli

VERBS = get_command(cli.app).commands  # type: ignore[attr-defined]  # a group has them


def vae(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of the `vae` command, in this process."""
    monkeypatch.setattr(sys, "argv", ["vae", *arguments])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


# --- help and refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"train"}))
def test_every_verb_shows_an_example_that_its_own_parser_takes(verb: str) -> None:
    found = re.findall(rf"^ *Example: vae {verb} (.*)$", VERBS[verb].help or "", re.MULTILINE)
    assert found, VERBS[verb].help
    for example in found:
        VERBS[verb].make_context(verb, example.split(), resilient_parsing=False)


def test_help_answers_without_torch_and_lists_every_verb(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vae(monkeypatch) == 0
    alone = capsys.readouterr().out
    assert vae(monkeypatch, "--help") == 0
    assert capsys.readouterr().out == alone
    for verb in VERBS:
        assert re.search(rf"^\W*{verb} ", alone, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--hlp",), "vae: No such option: --hlp (Possible options: --help); see vae --help"),
        (("evaluat", "."), "vae: No such command 'evaluat'. Did you mean 'evaluate'?; see vae --help"),
        (
            ("evaluate", ".", "--checkpoint", "bst"),
            "vae evaluate: Invalid value for '--checkpoint': 'bst' is not one of 'best', 'last'; "
            "see vae evaluate --help",
        ),
        (("show",), "vae show: Missing argument 'RUN'; see vae show --help"),
        (
            ("show", "."),
            ". is not a run (no config.yaml); give a folder written by train.py, such as outputs/mine; "
            "train one: vae train data=digits run_dir=outputs/mine",
        ),
        (
            ("sample", "mine"),
            "mine does not exist; give a folder written by train.py, such as outputs/mine; "
            "train one: vae train data=digits run_dir=outputs/mine",
        ),
        (
            ("score", "latest"),
            "latest: there is no run with a checkpoint in outputs/; give a run's directory, or "
            "train one: vae train data=digits run_dir=outputs/mine",
        ),
        (
            ("traverse", "latest", "--out", "x.txt"),
            "--out=x.txt: must end in .png, .svg, .pdf, .npz, .csv; for example --out x.png",
        ),
        (
            ("sample", "latest", "--temperature", "inf"),
            "--temperature=inf: must be a number >= 0; for example --temperature 0.7",
        ),
        (("bench", "--turns", "-1"), "--epochs=-1: must be a whole number of at least 1; for example --epochs 3"),
        (("bench", "--turns", "0"), "--epochs=0: must be a whole number of at least 1; for example --epochs 3"),
    ],
)
def test_a_bad_argument_of_the_vae_command_is_refused_before_torch_is_imported(
    arguments: tuple[str, ...], line: str, tmp_path: Path
) -> None:
    code = "import atexit, sys; from vae.commands.cli import main; "
    code += "atexit.register(lambda: print('torch' in sys.modules)); main()"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *arguments]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr, ended.stdout) == (2, line + "\n", "False\n")


@pytest.mark.parametrize(
    ("pair", "line"),
    [
        ("smples=3", "smples=3: there is no such key; did you mean evaluation.samples?"),
        ("samples=-1", "samples=-1: must be an integer >= 0"),
    ],
)
def test_a_bad_key_of_the_evaluation_is_refused_in_one_line(
    pair: str, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["vae", "evaluate", ".", pair])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (ended.value.code, capsys.readouterr().err) == (2, line + "\n")
