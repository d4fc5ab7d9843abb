"""The table of faults: each is injected into a real `python train.py`, which must lose nothing and say what happened.

Most commands here are forked from a warm parent (tests/faults_server.py); some are started from a shell, as users do.
"""

import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from faults_tools import (
    PATIENCE,
    ROOT,
    SCREEN,
    Command,
    Server,
    assert_same,
    contents,
    differences,
    last,
    metrics,
    small_disk,
    state,
    unwritable,
)
from faults_writer import checkpoint
from vae.checkpoints import DurableCheckpointIO, load, sweep_parts

pytestmark = pytest.mark.faults

QUICK = (
    "data=digits", "latent_dim=3", "model.encoder.hidden=[16]", "model.decoder.hidden=[16]", "trainer=cpu", "threads=1",
    "evaluation=none", "callbacks.figures_every=0", "trainer.max_epochs=10", "data.batch_size=50",
)  # fmt: skip
# All that a resumed run can get wrong: dropout, images drawn anew, beta and the rate by a schedule, an early stop.
ALL = (
    *QUICK, "dropout=0.3", "likelihood=bernoulli", "data.binarize=dynamic", "objective/beta=linear",
    "callbacks.early_stopping=2",
)  # fmt: skip
RATES = {
    "plateau": (
        "scheduler=plateau", "scheduler.patience=0", "optimizer.lr=0.02", "objective.beta.end=20",
        "objective.beta.steps=400",
    ),
    "cosine": (
        "scheduler=warmup_cosine", "scheduler.warmup=2", "scheduler.epochs=9", "optimizer.lr=0.01",
        "objective.beta.end=5", "objective.beta.steps=200",
    ),
}  # fmt: skip
STEPS = 24  # an epoch: 1,197 images
OFTEN = "callbacks.checkpoint_minutes=0.001"
NO_NETWORK = "data.mirrors=[file:///nowhere/]"


@dataclass
class Whole:
    """A run that nothing disturbed, without workers."""

    directory: Path
    seconds: float


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("commands"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def wholes(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Whole]:
    """The undisturbed run with one or the other schedule of the learning rate, made when first asked for."""
    made: dict[str, Whole] = {}

    def whole(rate: str) -> Whole:
        if rate not in made:
            directory, begun = tmp_path_factory.mktemp("whole") / rate, time.monotonic()
            command = server.run(*ALL, *RATES[rate], f"run_dir={directory}")
            assert command.code == 0, command.said
            assert metrics(directory)["stopped_early"] == 1, "it was to show that an early stop survives"
            made[rate] = Whole(directory, time.monotonic() - begun)
        return made[rate]

    return whole


@pytest.fixture(scope="module")
def stopped_once(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("stopped") / "run"
    stop_in_mid_epoch(server, [*ALL, *RATES["plateau"], f"run_dir={directory}"], directory)
    return directory


@pytest.fixture
def stopped(stopped_once: Path) -> Iterator[tuple[Path, list[str]]]:
    """A run that SIGTERM stopped in the middle of its second epoch, as it was left, and its command."""
    kept = stopped_once.with_name("kept")
    shutil.copytree(stopped_once, kept)
    yield stopped_once, [*ALL, *RATES["plateau"], f"run_dir={stopped_once}"]
    shutil.rmtree(stopped_once)
    kept.rename(stopped_once)


def the_line(command: Command, code: int) -> str:
    """The one line that a command ended with, after the progress of the run."""
    assert command.wait() == code, command.said
    assert "Traceback" not in command.said
    assert len(command.lines) == 1, command.said
    return command.lines[0]


def an_epoch(command: Command) -> bool:
    """Whether it has said that an epoch is over."""
    return re.search(r"epoch \d+ of", command.said) is not None


def stop_in_mid_epoch(
    server: Server, arguments: list[str], directory: Path, signum: int = signal.SIGTERM, **options: Any
) -> None:
    """Signals the command after an epoch of its own, until it stops in the middle of the next one."""
    for attempt in range(10):
        command = server.start(*arguments, **options)
        assert command.until(lambda: an_epoch(command)), command.said  # noqa: B023  # called in this round only
        time.sleep(random.Random(attempt).uniform(0.05, 0.2))
        command.send(signum, group="data.num_workers=2" in arguments)
        line = the_line_after_progress(command, 128 + signum)
        assert line.startswith(f"stopped by {signal.Signals(signum).name}; the same command continues")
        if last(directory)["global_step"] % STEPS:
            return
    pytest.fail("no signal came in the middle of an epoch")


def the_line_after_progress(command: Command, code: int) -> str:
    """A run that is told to stop says so twice: that it will, and that it has."""
    assert command.wait() == code, command.said
    announced, line = command.lines
    assert "saving and stopping at the next batch" in announced
    return line


# --- kill -9 ------------------------------------------------------------------------------------------------------


def survive(server: Server, arguments: list[str], whole: Whole, folder: Path, kills: int, seed: int) -> int:
    """Repeats a command, killed at random moments of its life, until it has ended; and anew, until that many came."""
    moments, done, runs = random.Random(seed), 0, 0
    while done < kills:
        runs += 1
        directory = folder / str(runs)
        while True:
            command = server.start(*arguments, f"run_dir={directory}")
            if done < kills and not command.ended(moments.uniform(0, whole.seconds)):
                command.kill()
            if command.wait() != -signal.SIGKILL:
                break
            done += 1
        assert command.code == 0, command.said
        assert_same(whole.directory, directory)
    return runs


@pytest.mark.parametrize(("rate", "workers"), [("plateau", 0), ("cosine", 2)])
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_9_at_random_moments(
    server: Server, wholes: Callable[[str], Whole], tmp_path: Path, rate: str, workers: int, kills: int
) -> None:
    arguments = [*ALL, *RATES[rate], OFTEN, f"data.num_workers={workers}"]
    survive(server, arguments, wholes(rate), tmp_path, kills, seed=kills + workers)


def test_kill_9_in_the_narrow_places(server: Server, wholes: Callable[[str], Whole], tmp_path: Path) -> None:
    """One run, killed in each of them in turn: the process is held still while we see that it is there."""
    run, arguments = tmp_path / "run", [*ALL, *RATES["plateau"], f"run_dir={tmp_path / 'run'}"]
    at = run / "checkpoints"

    def writing(pattern: str) -> Callable[[], bool]:
        return lambda: any(run.glob(pattern))

    places: dict[str, Callable[[], bool]] = {
        "a directory without a description": lambda: run.is_dir() and not (run / "config.yaml").exists(),
        "the description": writing("config.yaml.*.part"),
        "the trial of the disk": writing("checkpoints/probe.*.part"),
        "the first checkpoint": writing("checkpoints/last.ckpt.*.part"),
        "the best checkpoint": writing("checkpoints/best.ckpt.*.part"),
        "best written, last not yet": lambda: newer(at / "best.ckpt", at / "last.ckpt"),
        "the last checkpoint at an epoch's end": lambda: writing("checkpoints/last.ckpt.*.part")() and (at / "best.ckpt").exists(),
        "a picture": writing("figures/.*.part"),
        "the metrics": writing("metrics.json.*.part"),
    }
    for place, there in places.items():
        command = server.start(*arguments)
        assert command.kill_within(there), f"{place}: never seen; {command.said}"
    command = server.run(*arguments)
    assert command.code == 0, command.said
    assert_same(wholes("plateau").directory, run)
    assert not list(run.rglob("*.part"))


def newer(one: Path, other: Path) -> bool:
    try:
        return one.stat().st_mtime_ns > other.stat().st_mtime_ns
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("elsewhere", [False, True])
def test_kill_9_during_50_checkpoint_writes(server: Server, tmp_path: Path, elsewhere: bool) -> None:
    """Every kill comes while the file is being written; with TMPDIR on another file system as well."""
    env = {"TMPDIR": "/dev/shm"} if elsewhere else {}
    if elsewhere:
        assert os.stat("/dev/shm").st_dev != tmp_path.stat().st_dev
    path, script = tmp_path / "last.ckpt", ROOT / "tests" / "faults_writer.py"
    DurableCheckpointIO().save_checkpoint(checkpoint(0), path)
    within = 0
    for attempt in range(50):
        command = server.start(str(path), script=script, env=env)
        assert command.until(lambda: any(tmp_path.glob("*.part"))), command.said
        time.sleep(random.Random(attempt).uniform(0, 0.1))
        assert command.until(lambda: any(tmp_path.glob("*.part"))), command.said
        command.kill()
        within += len(list(tmp_path.glob("*.part")))
        assert len(load(path)["state_dict"]["value"].unique()) == 1
        sweep_parts(tmp_path)
        assert list(tmp_path.iterdir()) == [path]
    assert within >= 40, "the kills came too late"
    assert load(path)["state_dict"]["value"][0] > 0, "nothing was ever written"
