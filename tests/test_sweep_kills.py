"""A sweep under joblib is killed ten times and repeated; its result is that of an undisturbed one."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow

SWEEP = (
    "-m", "latent_dim=2,3", "model=mlp,conv", "seed=0,1,2", "data=digits", "data.repeat=5", "evaluation=none",
    "trainer.max_epochs=8", "callbacks.checkpoint_minutes=0.02", "callbacks.figures_every=0", "threads=1",
    "model.encoder.hidden=[5]", "model.decoder.hidden=[4]", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2",
)  # fmt: skip


def start(folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "train.py", *SWEEP, f"run_dir={folder}"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, text=True, start_new_session=True)


def ended(folder: Path) -> dict[Path, int]:
    """The finished runs, and when each was."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("*/metrics.json")}


def newest(folder: Path) -> int:
    """When a run last saved; 0 before the first has."""
    return max((path.stat().st_mtime_ns for path in folder.glob("*/checkpoints/last.ckpt")), default=0)


def test_ten_kills_lose_nothing(tmp_path: Path) -> None:
    """Five of the command alone, five with its workers; no finished run is run again."""

    pause, before, killed = random.Random(0), dict[Path, int](), 0
    for attempt in range(10):
        saved, process = newest(tmp_path / "killed"), start(tmp_path / "killed")
        while newest(tmp_path / "killed") == saved and process.poll() is None:
            time.sleep(0.02)
        time.sleep(pause.uniform(0, 1.5))
        if process.poll() is None:
            (os.killpg if attempt % 2 else os.kill)(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
        now = ended(tmp_path / "killed")
        assert before.items() <= now.items(), "a finished run was run again"
        before = now
    assert killed == 10, "the sweep ended before the kills"
    assert start(tmp_path / "killed").wait() == 0
    assert before.items() <= ended(tmp_path / "killed").items()
    assert start(tmp_path / "whole").wait() == 0
    for name in ("comparison.csv", "comparison.md", "comparison.tex"):
        one, other = (tmp_path / sweep / "comparison" / name for sweep in ("killed", "whole"))
        assert one.read_text().replace("/killed", "/whole") == other.read_text()
