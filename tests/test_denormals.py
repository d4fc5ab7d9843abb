"""Denormal numbers are flushed to zero in every kind of process that computes, and in all of its threads."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, SHORT, process
from denormals_probe import denormals_left, products_left

import vae
from vae.data.batches import EpochBatches, Images, ResumableLoader
from vae.device import keeps_denormals

pytestmark = pytest.mark.skipif(not torch.set_flush_denormal(True), reason="this processor cannot flush denormals")


def found_by_probe(file: Path) -> list[int]:
    return [int(line.split()[1]) for line in file.read_text().splitlines()]


class ProbeImages(Images):
    def __getitem__(self, indices: Any) -> Any:
        return torch.tensor(products_left()), torch.tensor(os.getpid())


def run_python(code: str, *arguments: str) -> str:
    """What a fresh process prints last."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "2"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout.splitlines()[-1]


def test_this_process_keeps_no_denormals() -> None:
    assert denormals_left() == 0
    assert not keeps_denormals()
    np.finfo(np.float32)  # NumPy must not warn about it
    np.finfo(np.float64)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_data_worker(context: str) -> None:
    images = ProbeImages(torch.zeros(4, 1, 2, 3, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    loader = ResumableLoader(images, EpochBatches(images, 4), num_workers=1)
    loader.multiprocessing_context = context
    ((left, worker),) = loader
    assert int(worker) != os.getpid()
    assert int(left) == 0


def test_fit_in_a_notebook_whose_threads_run_already(tmp_path: Path) -> None:
    """OpenMP's threads inherit the flag when they start: those that are older keep their denormals."""
    code = """
import sys, torch
torch.set_num_threads(2)
def left():
    product = torch.full((600, 600), 1e-39) @ torch.eye(600)
    return int(product.view(torch.int32).count_nonzero())
before = left()
import vae
vae.fit(torch.rand(40, 3, 5), "trainer.max_epochs=1", "evaluation=none", "callbacks.figures_every=0",
        "+callbacks.extra.probe._target_=denormals_probe.Probe", f"+callbacks.extra.probe.file={sys.argv[1]}/lines",
        latent_dim=2, run_dir=f"{sys.argv[1]}/run")
print(before, left())
"""
    assert run_python(code, str(tmp_path)) == f"{600**2} 0"
    assert found_by_probe(tmp_path / "lines") == [0]


def test_a_verb(tmp_path: Path) -> None:
    vae.fit(
        torch.rand(40, 3, 5), "trainer.max_epochs=1", "evaluation=none", "callbacks.figures_every=0",
        latent_dim=2, run_dir=tmp_path / "run",
    )  # fmt: skip
    code = """
import sys
from vae.commands.cli import main
main()
from denormals_probe import denormals_left
print(denormals_left())
"""
    assert run_python(code, "sample", str(tmp_path / "run"), "-o", str(tmp_path / "samples.npz")) == "0"


@pytest.mark.parametrize(
    ("overrides", "processes"),
    [
        ((), 1),
        (("trainer=ddp",), 2),
        (("trainer=ddp", "trainer.strategy=ddp_spawn"), 2),
        (("-m", "seed=0,1", "hydra/launcher=joblib"), 2),
    ],
    ids=["main", "ddp", "ddp_spawn", "joblib"],
)
@pytest.mark.slow
def test_processes_that_train(overrides: tuple[str, ...], processes: int, tmp_path: Path) -> None:
    probe = ("+callbacks.extra.probe._target_=denormals_probe.Probe", f"+callbacks.extra.probe.file={tmp_path}/lines")
    few = ("callbacks.figures_every=0", "threads=1", f"run_dir={tmp_path}/run")
    ended = process(*SHORT, *probe, *few, *overrides, cwd=ROOT / "tests")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert found_by_probe(tmp_path / "lines") == [0] * processes
