"""Runs of another format or version are refused in one line that names the version that reads them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import tree
from test_use import trained  # noqa: F401  # a fixture
from test_vae_command import vae


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:  # noqa: F811
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.mark.parametrize("verb", ["show", "sample", "encode", "evaluate", "report", "export"])
def test_a_run_of_a_newer_version_is_refused_in_one_line(
    verb: str, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("latent_dim: 3", "latent_dim: 3\nlatent_shape: sphere", 1))
    before = tree(copy)
    options = {"export": ["--format", "onnx"], "report": ["-o", str(tmp_path / "x.html")]}.get(verb, [])
    assert vae(monkeypatch, verb, str(copy), *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    commit = json.loads((copy / "metrics.json").read_text())["provenance"]["git_commit"]
    assert line.startswith(f"{config}: does not fit this version (latent_shape=sphere")
    assert line.endswith(f"check out commit {commit[:12]}, which wrote it")
    assert tree(copy) == before


def test_another_format_is_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = json.loads((copy / "metrics.json").read_text())
    metrics["provenance"] |= {"format": 1, "git_commit": "0123456789abcdef"}
    (copy / "metrics.json").write_text(json.dumps(metrics))
    assert vae(monkeypatch, "show", str(copy)) == 2
    said = capsys.readouterr().err
    assert said.endswith(
        "has format 1, and this version reads format 2; check out commit 0123456789ab, which wrote it\n"
    )
    path = copy / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path)
    checkpoint["vae"]["format"] = 1
    torch.save(checkpoint, path)
    assert vae(monkeypatch, "encode", str(copy)) == 2
    assert "has format 1, this version reads format 2; the version that wrote it" in capsys.readouterr().err
