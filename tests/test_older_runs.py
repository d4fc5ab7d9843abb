"""Runs that commit 6d90c2e wrote are read, evaluated and continued; the numbers are those that it would have given.

Under its schedule of beta `dev/bound` chose the best epoch, and the plateau scheduler watched it.
"""

import json
import shutil
from pathlib import Path

import pytest
from conftest import train, tree

from vae.commands import cli
from vae.run.load import load_run

RUNS = Path(__file__).parent / "data" / "runs_6d90c2e"
COMMAND = (
    "data=digits", "latent_dim=2", "model.encoder.hidden=[5]", "model.decoder.hidden=[4]", "evaluation=none",
    "evaluation.samples=3", "threads=1", "trainer.max_epochs=3", "likelihood=gaussian", "objective/beta=linear",
    "scheduler=plateau", "callbacks.figures_every=0", "data.repeat=15", "callbacks.checkpoint_minutes=0.001",
)  # fmt: skip


def copied(name: str, place: Path) -> Path:
    return Path(shutil.copytree(RUNS / name, place / name))


def numbers(directory: Path) -> dict[str, float]:
    """metrics.json in today's words, without what is not repeated."""
    found = json.loads((directory / "metrics.json").read_text())
    if "format" not in found.pop("provenance"):
        found = {name.replace("/bound", "/neg_elbo"): value for name, value in found.items()}
        found["best_epoch"] += 1
    return {name: value for name, value in found.items() if name not in ("seconds", "images_per_second")}


def test_a_finished_run_shows_its_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = copied("finished", tmp_path)
    old = json.loads((directory / "metrics.json").read_text())
    assert train(*COMMAND, f"run_dir={directory}") == old["dev/bound"]
    assert f"in epoch {old['best_epoch'] + 1} of 3" in capsys.readouterr().out


@pytest.mark.usefixtures("undrawn")
def test_a_finished_run_loads_and_evaluates_to_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = copied("finished", tmp_path)
    assert load_run(directory).vae.latent_dim == 2
    before = numbers(directory)
    monkeypatch.setattr("sys.argv", ["vae", "evaluate", str(directory)])
    cli.main()
    assert numbers(directory) == before


@pytest.mark.usefixtures("undrawn")
def test_a_stopped_run_ends_as_it_would_have(tmp_path: Path) -> None:
    directory = copied("stopped", tmp_path)
    train(*COMMAND, f"run_dir={directory}")
    assert numbers(directory) == numbers(RUNS / "finished")


@pytest.mark.usefixtures("undrawn")
def test_a_finished_run_trains_on(tmp_path: Path) -> None:
    directory = copied("finished", tmp_path)
    more = [one for one in COMMAND if not one.startswith("trainer.max_epochs")]
    train(*more, "trainer.max_epochs=4", f"run_dir={directory}")
    assert numbers(directory)["epochs"] == 4


@pytest.mark.parametrize("verb", ["show", "sample", "encode", "evaluate", "report", "export"])
def test_a_run_of_a_newer_version_is_refused_in_one_line(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = copied("finished", tmp_path)
    config = directory / "config.yaml"
    config.write_text(config.read_text().replace("latent_dim: 2", "latent_dim: 2\nlatent_shape: sphere", 1))
    before = tree(directory)
    options = {"export": ["--format", "onnx"], "report": ["-o", str(tmp_path / "x.html")]}.get(verb, [])
    monkeypatch.setattr("sys.argv", ["vae", verb, str(directory), *options])
    with pytest.raises(SystemExit) as end:
        cli.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert line.startswith(f"{config}: does not fit this version (latent_shape=sphere")
    assert line.endswith("which wrote it")
    assert tree(directory) == before
