"""Sweeps: the runs below a folder, folders named by what varies, what is left to do, and what failed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from filelock import FileLock

from vae.errors import InputError
from vae.run.sweep import FAILURE, list_runs, natural

# --- the list of runs -------------------------------------------------------------------------------------------------


def test_every_run_below_a_folder_is_listed_once_with_its_settings_and_metrics(sweep: Path) -> None:
    records = list_runs(sweep.parent, sweep)
    assert [record.directory.parent for record in records] == [sweep] * 4
    assert {(r.settings["latent_dim"], r.status, r.message) for r in records if r.settings} == {
        (2, "finished", ""),
        (3, "finished", ""),
    }
    for record in records:
        assert record.metrics == json.loads((record.directory / "metrics.json").read_text())


def test_how_it_stands_with_a_run(sweep: Path, tmp_path: Path) -> None:
    first = list_runs(sweep)[0].directory
    for name in ("cut", "failed", "running", "damaged", "no metrics", "grown"):
        shutil.copytree(first, tmp_path / name)
        if name != "grown":
            (tmp_path / name / "metrics.json").unlink()
    (tmp_path / "failed" / FAILURE).write_text("the loss is not finite\n")
    (tmp_path / "damaged" / "config.yaml").write_text("latent_dim: [")
    (tmp_path / "no metrics" / "metrics.json").write_text("{}")
    config = tmp_path / "grown" / "config.yaml"
    plain = yaml.safe_load(config.read_text())
    plain["trainer"]["max_epochs"] += 1
    config.write_text(yaml.safe_dump(plain))
    shutil.copytree(ROOT / "conf", tmp_path / "conf")  # which holds a config.yaml too
    with FileLock(tmp_path / "running" / ".lock"):
        found = {record.name: (record.status, record.message) for record in list_runs(tmp_path)}
    for name in ("damaged", "no metrics"):
        assert "cannot be read" in found[name][1]
    assert {name: status for name, (status, _) in found.items()} == {
        "cut": "unfinished", "failed": "failed", "running": "running", "damaged": "unreadable",
        "no metrics": "unreadable", "grown": "unfinished",
    }  # fmt: skip
    assert found["cut"][1] == "epoch 1 of 1"
    assert found["failed"][1] == "the loss is not finite"


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert list_runs(tmp_path) == []
    with pytest.raises(InputError, match="there is no such folder"):
        list_runs(tmp_path / "nowhere")


def test_runs_are_listed_without_torch() -> None:
    code = "import sys; from vae.run.sweep import list_runs; list_runs('.'); print({'torch', 'hydra'} & {*sys.modules})"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (ended.stdout, ended.stderr) == ("set()\n", "")


def test_numbers_in_names_are_sorted_as_numbers() -> None:
    assert sorted(["latent_dim=16", "latent_dim=4", "10", "9"], key=natural) == [
        "9",
        "10",
        "latent_dim=4",
        "latent_dim=16",
    ]
