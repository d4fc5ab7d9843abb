"""Sweeps on a real Slurm, and what it does to jobs: requeue, time limits, a drained node.

python -m pytest -n 0 -m slow tests/slurm
"""

import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Slurm, missing, until
from conftest import process
from faults_tools import assert_same

pytestmark = pytest.mark.slow

SMALL = (
    "data=digits", "dropout=0.3", "model.encoder.hidden=[5]", "model.decoder.hidden=[4]", "evaluation=none",
    "threads=1", "callbacks.figures_every=0", "trainer.max_epochs=4",
)  # fmt: skip
LONG = (*SMALL, "data.repeat=40", "callbacks.checkpoint_minutes=0.02")  # some twenty seconds


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    if why := missing():
        pytest.skip(why)
    with tempfile.TemporaryDirectory(prefix="slurm") as folder:  # a short path: sockets allow 108 bytes
        cluster = Slurm(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed") / "run"
    ended = process(*LONG, "seed=1", f"run_dir={directory}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return directory


def ended_well(sweep: "subprocess.Popen[str]") -> str:
    said, _ = sweep.communicate(timeout=600)
    assert sweep.returncode == 0, said
    return said


def test_a_sweep_of_four_jobs(slurm: Slurm, tmp_path: Path) -> None:
    """And nothing is said of sacct, which has nobody to ask here."""
    arguments = (*SMALL, "seed=0,1", "latent_dim=2,3", f"run_dir={tmp_path}/sweep")
    said = ended_well(slurm.sweep(*arguments))
    assert "sacct" not in said
    assert "Warning" not in said
    names = {f"latent_dim={latents},seed={seed}" for latents in (2, 3) for seed in (0, 1)}
    assert {path.parent.name for path in tmp_path.glob("sweep/*/metrics.json")} == names
    again = ended_well(slurm.sweep(*arguments))
    assert "4 finished" in again
    assert not slurm.ask("squeue", "--noheader")


def test_a_job_that_is_requeued_in_mid_run_ends_bit_equal(slurm: Slurm, undisturbed: Path, tmp_path: Path) -> None:
    sweep = slurm.sweep(*LONG, "seed=1,2", f"run_dir={tmp_path}/sweep")
    run = tmp_path / "sweep" / "seed=1"
    until((run / "checkpoints" / "last.ckpt").exists)
    job = slurm.running()[0]
    slurm.ask("scontrol", "requeue", job)
    ended_well(sweep)
    assert_same(undisturbed, run)
    assert "continuing from" in (run / "train.log").read_text() + (run.parent / "seed=2" / "train.log").read_text()


def test_a_job_over_its_time_limit_is_requeued_and_ends_bit_equal(slurm: Slurm, tmp_path: Path) -> None:
    """Slurm counts limits in minutes, and its warning may come a minute early: the run takes more than two."""
    long = (*LONG, "data.repeat=400", "seed=1")
    ended = process(*long, f"run_dir={tmp_path}/undisturbed")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    ended_well(
        slurm.sweep(
            *long, "hydra.launcher.timeout_min=2", "hydra.launcher.signal_delay_s=5", f"run_dir={tmp_path}/sweep"
        )
    )
    run = tmp_path / "sweep" / "default"
    assert "SIGUSR1: saving at the next batch, then requeueing the job" in (run / "train.log").read_text()
    assert "continuing from" in (run / "train.log").read_text()
    assert_same(tmp_path / "undisturbed", run)


def test_a_node_drained_and_resumed_in_mid_sweep_loses_nothing(slurm: Slurm, undisturbed: Path, tmp_path: Path) -> None:
    sweep = slurm.sweep(*LONG, "seed=0,1,2", f"run_dir={tmp_path}/sweep")
    until(lambda: (tmp_path / "sweep" / "seed=1" / "checkpoints" / "last.ckpt").exists())
    slurm.ask("scontrol", "update", f"nodename={slurm.host}", "state=drain", "reason=test")
    time.sleep(3)
    slurm.ask("scontrol", "update", f"nodename={slurm.host}", "state=resume")
    ended_well(sweep)
    assert_same(undisturbed, tmp_path / "sweep" / "seed=1")
    assert len(list(tmp_path.glob("sweep/*/metrics.json"))) == 3


def test_a_job_that_slurm_cancels_stops_no_other(slurm: Slurm, tmp_path: Path) -> None:
    sweep = slurm.sweep(*LONG, "seed=0,1", f"run_dir={tmp_path}/sweep")
    run = tmp_path / "sweep" / "seed=0"
    until((run / "config.yaml").exists)
    slurm.ask("scancel", next(job for job in slurm.running() if job.endswith("_0")))
    said, _ = sweep.communicate(timeout=600)
    assert sweep.returncode == 1, said
    assert "1 of 2 runs are not finished" in said
    assert (tmp_path / "sweep" / "seed=1" / "metrics.json").exists()
