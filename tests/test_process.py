"""A process and those around it: ranks that are left over, children, a standard output that goes away."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SHORT, process, settings_of, train
from filelock import FileLock
from lightning.fabric.utilities.rank_zero import rank_zero_only

from vae.errors import InputError
from vae.run import command
from vae.run.directory import Run
from vae.run.process import alone, in_a_child

LEFT_OVER = {"RANK": "1", "LOCAL_RANK": "1", "SLURM_PROCID": "1"}
FARM = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "farm", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4"}


# --- ranks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEFT_OVER)
def test_a_run_on_one_device_is_a_run_whatever_a_rank_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None
) -> None:
    monkeypatch.setenv(name, LEFT_OVER[name])
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # as Lightning has read it
    train(*SHORT, f"run_dir={tmp_path}")
    names = {path.name.partition(".")[0] for path in tmp_path.iterdir()}
    assert {"config", "metrics", "train", "events", "checkpoints"} <= names
    assert (os.environ[name], rank_zero_only.rank) == ("1", 1)  # another program in this process may need them


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [LEFT_OVER | FARM, {"RANK": "none", "SLURM_PROCID": ""}], ids=["farm", "text"])
def test_a_process_of_a_task_farm_writes_its_run(ranks: dict[str, str], tmp_path: Path) -> None:
    run = [sys.executable, str(ROOT / "train.py"), *SHORT, f"run_dir={tmp_path / 'run'}"]
    ended = subprocess.run(run, cwd=tmp_path, env=os.environ | ranks, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tmp_path / "run" / "config.yaml").exists()
    assert (tmp_path / "run" / "metrics.json").exists()


def test_a_second_process_in_one_run_dir_is_refused_whatever_its_rank_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    run = Run(tmp_path, settings_of(*SHORT))
    refused = pytest.raises(InputError, match="another process is working in it")
    with FileLock(tmp_path / ".lock"), refused, run.open():
        pytest.fail("it was opened")


def test_processes_that_share_a_run_keep_their_ranks_and_text_in_them_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = settings_of("data=digits", "trainer=ddp")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with alone(shared.trainer):
        assert in_a_child()
    with alone(settings_of("data=digits").trainer):
        assert not in_a_child()
    monkeypatch.setenv("LOCAL_RANK", "first")
    with pytest.raises(InputError, match=r"^LOCAL_RANK=first: must be a number"), alone(shared.trainer):
        pytest.fail("it began")


# --- children ---------------------------------------------------------------------------------------------------------

# names of modules that Python, joblib, TensorBoard or torch look for
NAMES = ("absl", "dill", "joblib", "multiprocessing", "tensorboard")


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A working directory with files of these names, each of which leaves a mark where it is executed."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'a').write('{name} ')\n")
    return tmp_path


def test_no_child_imports_from_the_working_directory(hostile: Path) -> None:
    code = (
        "import subprocess, sys; from vae.run.process import begin_command, python_command\n"
        "subprocess.run(python_command('-c', 'import absl'))\n"
        "begin_command()\n"
        "subprocess.run([sys.executable, '-c', 'import tensorboard, vae; print(vae.__name__)'])"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    python = [sys.executable, "-P", "-c", code]
    ended = subprocess.run(python, cwd=hostile, env=environment, capture_output=True, text=True, timeout=60)
    assert (ended.stdout, ended.stderr) == ("vae\n", "")
    assert not (hostile / "mark").exists()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_the_workers_of_a_sweep_import_nothing_from_the_working_directory(hostile: Path, launcher: str) -> None:
    pytest.importorskip(launcher.partition("_")[0])
    given = ("-m", "seed=0,1", *SHORT, f"run_dir={hostile / 'runs'}", f"hydra/launcher={launcher}", "threads=1")
    ended = process(*given, cwd=hostile)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(list(hostile.glob("runs/*/metrics.json"))) == 2
    assert not (hostile / "mark").exists()


def test_of_the_working_directory_only_a_part_that_is_named_is_found(
    hostile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from vae.likelihoods import Gaussian\n\n\nclass Mine(Gaussian):\n    pass\n"
    (hostile / "parts_of_mine.py").write_text(source.replace("Gaussian", "GaussianHead"))
    monkeypatch.chdir(hostile)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one not in ("", str(hostile))])
    command.check(command.prepare(["data=digits", "likelihood=gaussian"]))
    assert "parts_of_mine" not in sys.modules
    command.check(command.prepare(["data=digits", "likelihood._target_=parts_of_mine.Mine"]))
    assert sys.modules.pop("parts_of_mine").__file__ == str(hostile / "parts_of_mine.py")
    assert str(hostile) not in sys.path
    assert not (hostile / "mark").exists()


# --- standard output --------------------------------------------------------------------------------------------------

LIST = "-P -m vae.commands.cli reproduce --list"


@pytest.mark.parametrize("end", ["| head -n 1", "| true", ">&-"])
def test_a_reader_that_goes_away_is_no_error(end: str, tmp_path: Path) -> None:
    line = f"set -o pipefail; {sys.executable} {LIST} {end}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (0, "")
