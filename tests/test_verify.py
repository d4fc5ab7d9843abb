"""`vae verify` says "same" of a run of this machine, and names the cause of one that was meddled with."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import SHORT, train
from test_use import trained  # noqa: F401  # a fixture
from test_vae_command import vae

from vae.data import Digits, RawSet
from vae.run.provenance import processor


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:  # noqa: F811
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_a_run_of_this_machine_is_the_same(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vae(monkeypatch, "verify", str(copy)) == 0
    lines = capsys.readouterr().out.splitlines()
    found = {line[:15].strip(): line[16:] for line in lines}
    assert found["first steps"] == "same (5 numbers)"
    assert found["evaluation"].startswith("same (")
    assert {found[name][:4] for name in ("configuration", "data", "packages")} == {"same"}
    assert lines[-1] == "same"


@pytest.mark.parametrize("likelihood", [["likelihood=gaussian"], ["likelihood=bernoulli", "data.binarize=dynamic"]])
def test_what_the_importance_samples_gave_is_not_compared_with_other_draws(
    likelihood: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(*SHORT, *likelihood, "evaluation.samples=3", f"run_dir={tmp_path / 'run'}")
    capsys.readouterr()
    assert vae(monkeypatch, "verify", str(tmp_path / "run")) == 0
    *_, later, last = capsys.readouterr().out.splitlines()
    assert last == "same"
    assert later.startswith("not repeated")
    assert all(f"test/{name}" in later for name in ("elbo", "rate", "distortion", "nll"))


def test_a_metric_that_was_edited_is_named(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = json.loads((copy / "metrics.json").read_text())
    (copy / "metrics.json").write_text(json.dumps(metrics | {"test/kl": metrics["test/kl"] * 0.9}))
    assert vae(monkeypatch, "verify", str(copy)) == 1
    line = capsys.readouterr().err.strip()
    assert line.startswith("not the same: evaluation (test/kl); nothing else differs, so metrics.json")
    assert "metrics.json" in line
    assert "\n" not in line


def test_another_seed_is_named(copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    plain = yaml.safe_load((copy / "config.yaml").read_text())
    (copy / "config.yaml").write_text(yaml.safe_dump(plain | {"seed": 7}))
    assert vae(monkeypatch, "verify", str(copy)) == 1
    assert "seed (0 there, 7 now)" in capsys.readouterr().err


def test_losses_of_another_seed_are_not_the_same(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The seed was changed in the checkpoint too, so that only the numbers can tell."""
    plain = yaml.safe_load((copy / "config.yaml").read_text())
    plain = plain | {"seed": 7, "data": plain["data"] | {"seed": 7}}
    (copy / "config.yaml").write_text(yaml.safe_dump(plain))
    for name in ("best", "last"):
        path = copy / "checkpoints" / f"{name}.ckpt"
        checkpoint = torch.load(path)
        checkpoint["vae"]["settings"] = plain
        torch.save(checkpoint, path)
    assert vae(monkeypatch, "verify", str(copy)) == 1
    assert "first steps (step 0" in capsys.readouterr().err


def test_changed_data_are_named(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = Digits.load

    def changed(digits: Digits) -> RawSet:
        raw = original(digits)
        raw.train[0][0, 0, 0, 0] ^= 255
        return raw

    monkeypatch.setattr(Digits, "load", changed)
    assert vae(monkeypatch, "verify", str(copy)) == 1
    assert "data: the images in" in capsys.readouterr().err


def test_the_commits_that_trained_are_named_where_the_numbers_differ(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = json.loads((copy / "metrics.json").read_text())
    metrics["provenance"]["training_commits"] = ["aaa"]
    (copy / "metrics.json").write_text(json.dumps(metrics | {"dev/loss": 1.0}))
    assert vae(monkeypatch, "verify", str(copy)) == 1
    assert "training_commits aaa there" in capsys.readouterr().err


def test_other_packages_are_named_where_the_numbers_differ(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = json.loads((copy / "metrics.json").read_text())
    metrics["provenance"]["versions"]["torch"] = "1.0"
    (copy / "metrics.json").write_text(json.dumps(metrics))
    assert vae(monkeypatch, "verify", str(copy)) == 0
    out = capsys.readouterr().out
    assert "torch 1.0 there" in out
    assert out.endswith("same, in spite of these differences\n")
    (copy / "metrics.json").write_text(json.dumps(metrics | {"dev/loss": 1.0}))
    assert vae(monkeypatch, "verify", str(copy)) == 1
    assert "what differs beside them: packages: torch 1.0 there" in capsys.readouterr().err


def test_another_processor_moves_numbers_by_rounding(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = json.loads((copy / "metrics.json").read_text())
    metrics["provenance"]["processor"] = "Another CPU"
    (copy / "metrics.json").write_text(json.dumps(metrics | {"dev/loss": metrics["dev/loss"] * (1 + 1e-7)}))
    assert vae(monkeypatch, "verify", str(copy)) == 0
    out = capsys.readouterr().out
    assert f"processor Another CPU there, {processor()} now" in out
    assert out.endswith("the same but for rounding, in spite of these differences\n")
