"""README and docs: their Python runs, and their commands are accepted."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from conftest import ROOT, process
from typer.main import get_command

from vae.commands import cli
from vae.run import command
from vae.run.load import load_run

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FEW = (
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "evaluation=none",
    "threads=1",
    "callbacks.figures_every=0",
)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[2:] for line in lines if line.startswith("python train.py")]


EVERY_COMMAND = [list(command) for command in dict.fromkeys(tuple(c) for page in PAGES for c in commands(page))]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person's working folder: the package of docs/extending.md, and the configuration that the README names."""
    (own,) = blocks(ROOT / "docs" / "extending.md", "python")
    (tmp_path / "mypkg.py").write_text(own)
    group = tmp_path / "my_configs" / "likelihood"
    group.mkdir(parents=True)
    (group / "mine.yaml").write_text("_target_: mypkg.MyHead\nwidth: 3.0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("mypkg", None)
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("arguments", EVERY_COMMAND, ids=" ".join)
def test_every_command_is_accepted(arguments: list[str]) -> None:
    command.check(command.prepare(arguments))


@pytest.mark.parametrize("arguments", commands(ROOT / "docs" / "extending.md"), ids=" ".join)
def test_own_parts_of_the_page_train(arguments: list[str], folder: Path) -> None:
    ended = process(*arguments, *FEW, "run_dir=run", cwd=folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (folder / "run" / "metrics.json").exists()


def test_the_readme_s_python_runs_on_a_trained_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = process("data=digits", *FEW, "run_dir=outputs/mine", cwd=folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (code,) = blocks(ROOT / "README.md", "python")
    names: dict[str, object] = {}
    exec(code, names)
    assert tuple(names["images"].shape) == (16, 1, 28, 28)  # type: ignore[attr-defined]  # a tensor, which exec hides
    assert float(capsys.readouterr().out) > 0


def test_links_and_pictures_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https://)([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)
    assert len((ROOT / "README.md").read_bytes()) <= 7 * 1024


def test_the_model_is_used_without_its_data(folder: Path) -> None:
    """`load_run` reads no data set until `run.data` is asked for."""
    ended = process("data=digits", *FEW, "run_dir=outputs/mine", cwd=folder)
    assert ended.returncode == 0
    run = load_run(folder / "outputs" / "mine")
    assert "data" not in vars(run)
    assert run.vae.sample(2).shape == (2, 1, 28, 28)
    assert "data" not in vars(run)


def test_the_page_on_using_a_model_runs_line_by_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each block continues the one before, as a reader's session would."""
    ended = process("data=digits", *FEW, "run_dir=outputs/mine", cwd=folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    names: dict[str, object] = {}
    for code in blocks(ROOT / "docs" / "use.md", "python"):
        exec(code, names)
    assert "torch.Size([3, 1, 8, 8])" in capsys.readouterr().out
    assert (folder / "outputs" / "fitted" / "metrics.json").exists()


def test_every_vae_command_of_the_docs_is_one_that_its_parser_takes() -> None:
    verbs = get_command(cli.app).commands  # type: ignore[attr-defined]  # a group has them
    found = [line for page in PAGES for line in re.findall(r"^(?:    )?(vae .*)$", page.read_text(), re.MULTILINE)]
    assert len(found) > 10
    for line in found:
        verb, *arguments = shlex.split(line, comments=True)[1:]
        if verb != "train":
            verbs[verb].make_context(verb, arguments)
