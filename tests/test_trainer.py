"""What a run's trainer is made of, what it shows on a terminal, and which sizes are refused before it is built."""

import importlib.util
import logging
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT, SHORT, process, settings_of, train
from lightning import Callback
from lightning.pytorch.loggers import CSVLogger, Logger

from vae.data import Digits
from vae.errors import InputError
from vae.run.build import build
from vae.run.directory import Run
from vae.run.trainer import build_parts, prepared_trainer
from vae.training.callbacks import EpochLine, SlowdownWatch
from vae.training.history import EventFileLogger, History
from vae.words import duration


class Mine(Callback):
    """A person's own callback."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.ends = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends += 1


def test_own_callbacks_and_loggers_come_by_configuration(tmp_path: Path, undrawn: None) -> None:
    mine = ("+callbacks.extra.mine._target_=test_trainer.Mine", "+callbacks.extra.mine.every=3")
    s = settings_of(*SHORT, *mine, "logger=[tensorboard,csv]", f"run_dir={tmp_path / 'run'}")
    lit, data = build(s)
    run = Run(tmp_path / "run", s)
    with run.open(), prepared_trainer(run, lit, data) as (trainer, _):
        trainer.fit(lit, datamodule=data)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets the list
        (mine,) = (callback for callback in callbacks if isinstance(callback, Mine))
        assert (mine.every, mine.ends) == (3, 2)
        assert [type(callback).__name__ for callback in callbacks][-3:] == ["SaveBest", "SaveLast", "GracefulStop"]
        assert [type(logger) for logger in trainer.loggers] == [EventFileLogger, CSVLogger]
    assert "dev/loss" in (run.directory / "metrics.csv").read_text()
    assert list(run.directory.glob("events.out.tfevents.*"))


def test_mlflow_and_wandb_take_the_metrics(tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's own loggers, offline: MLflow in a file, wandb in the run's folder; no TensorBoard beside them."""
    mlflow = pytest.importorskip("mlflow", reason="pip install '.[mlflow]'")
    wandb = importlib.util.find_spec("wandb") is not None
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    chosen = ("logger=[mlflow,wandb]", "logger.wandb.offline=true") if wandb else ("logger=mlflow",)
    loss = train(*SHORT, *chosen, "run_dir=run")
    client = mlflow.MlflowClient("sqlite:///mlflow.db")
    (logged,) = client.search_runs([client.get_experiment_by_name("vae").experiment_id])
    assert logged.info.run_name == "run"
    assert logged.data.metrics["dev/loss"] == pytest.approx(loss, rel=1e-5)
    assert not list(Path("run").glob("events.out.tfevents.*"))
    assert not wandb or list(Path("run/wandb").glob("offline-run-*/*.wandb"))


def test_a_logger_whose_package_is_absent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vae.run.parts.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^logger=wandb: wandb is not installed; pip install '\.\[wandb\]'$"):
        settings_of(*SHORT, "logger=wandb")
    with pytest.raises(
        InputError, match=r"^logger\.csv\.nam=x: lightning\.pytorch\.loggers\.csv_logs\.CSVLogger has no such key; "
    ):
        settings_of(*SHORT, "logger=csv", "+logger.csv.nam=x")


def test_a_part_of_another_kind_is_refused() -> None:
    node = {"mine": {"_target_": "test_trainer.Mine", "every": 3}}
    assert isinstance(build_parts("logger", node, Callback)[0], Mine)
    with pytest.raises(InputError, match=r"^logger.mine._target_=test_trainer.Mine: must be a .*Logger$"):
        build_parts("logger", node, Logger)  # type: ignore[type-abstract]  # for isinstance
    with pytest.raises(InputError, match=r"^callbacks.extra.mine: .*evry"):
        build_parts("callbacks.extra", {"mine": {**node["mine"], "evry": 1}}, Callback)


def test_more_workers_than_a_machine_can_run_are_refused() -> None:
    with pytest.raises(InputError, match=r"^data.num_workers=1000000: this machine has \d+ cores; take at most \d+"):
        Digits(num_workers=1_000_000)
    assert Digits(num_workers=64).num_workers == 64


def test_a_model_that_does_not_fit_is_refused_with_its_size_and_keys(tmp_path: Path) -> None:
    ended = process(*SHORT, "latent_dim=1000000000", f"run_dir={tmp_path / 'run'}")
    assert ended.returncode == 2, ended.stderr
    (line,) = ended.stdout.splitlines()
    # weights and biases: 784 x 5, 5 x 2e9, 1e9 x 4, 4 x 784
    assert "latent_dim=1000000000, model." in line
    assert "parameters take 64 GB (encoder.out.weight alone 40)" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("seconds", "said"), [(41.4, "41 s"), (240, "4 min"), (9000, "2.5 h")])
def test_a_duration_is_said_shortly(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize("start", ["on_train_start", "on_train_epoch_start"])
def test_the_end_is_announced_once_the_pace_is_known(start: str, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """Ten batches take 4 s: an epoch of 25 takes 10 s, and five of eight epochs are left.

    A run resumed in mid-epoch meets no start of an epoch.
    """
    line, now = EpochLine(History()), 1e6
    monkeypatch.setattr("vae.training.callbacks.time.perf_counter", lambda: now)
    trainer: Any = SimpleNamespace(num_training_batches=25, max_epochs=8, current_epoch=3)
    lit: Any = None
    with caplog.at_level(logging.INFO):
        getattr(line, start)(trainer, lit)
        for _ in range(20):
            now += 0.4
            line.on_train_batch_end(trainer, lit)
    (said,) = (record.getMessage() for record in caplog.records)
    assert re.fullmatch(r"about 10 s per epoch and 50 s in all: done at about \d\d:\d\d", said)


def test_short_epochs_may_waver(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    watch, now = SlowdownWatch(), 0.0
    monkeypatch.setattr("vae.training.callbacks.time.process_time", lambda: now)
    trainer: Any = SimpleNamespace(current_epoch=2)
    lit: Any = None
    for seconds in (0.1, 0.1, 0.9, 0.9):
        watch.on_train_epoch_start(trainer, lit)
        now += seconds
        watch.on_validation_start(trainer, lit)
    assert not caplog.records


@pytest.mark.parametrize(("keeps", "cause"), [(True, "denormal numbers"), (False, "a throttled processor")])
def test_a_training_that_slows_down_says_so_once(
    keeps: bool, cause: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    watch, now = SlowdownWatch(), 0.0
    monkeypatch.setattr("vae.training.callbacks.time.process_time", lambda: now)
    monkeypatch.setattr("vae.training.callbacks.keeps_denormals", lambda: keeps)
    lit: Any = None
    with caplog.at_level(logging.INFO):
        for epoch, seconds in enumerate([4.0, 3.0, 9.0, 5.9, 6.5, 9.0, 9.5]):
            trainer: Any = SimpleNamespace(current_epoch=epoch)
            watch.on_train_epoch_start(trainer, lit)
            now += seconds
            watch.on_validation_start(trainer, lit)
            now += 50  # validation and pictures do not count
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith(f"epoch 6 took 9.0 processor seconds, the first 3.0; likely cause: {cause}")


def test_a_last_batch_that_batch_norm_cannot_take_is_refused_before_training(tmp_path: Path) -> None:
    norm = ("model=conv", "model.encoder.norm=batch", "model.encoder.channels=[2,2,2,2,2]", "data.batch_size=23")
    with pytest.raises(InputError, match=r"^data.batch_size=23: 1197 training images leave a last batch of one"):
        train("data=digits", *norm, "evaluation=none", "trainer.max_epochs=1", f"run_dir={tmp_path}/run")
    assert not (tmp_path / "run").exists()


def test_a_run_in_double_precision_ends_with_its_pictures(tmp_path: Path) -> None:
    more = ("posterior=iaf", "prior=flow", "likelihood=gaussian", "evaluation.figures=true")
    loss = train(*SHORT, *more, "trainer.precision=64-true", f"run_dir={tmp_path}/run")
    assert 0 < abs(loss) < 1e6
    assert (tmp_path / "run" / "figures" / "interpolations.png").exists()


def on_a_terminal(*arguments: str) -> str:
    """What a real `python train.py` writes to a terminal."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 150))
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment, cwd=ROOT)
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # how a terminal ends on Linux
            part = b""
        if not part:
            break
        parts.append(part)
    os.close(ours)
    assert run.wait(timeout=60) == 0
    return b"".join(parts).decode()


def screen_of(written: str) -> list[str]:
    """The lines that stay: a carriage return puts what follows over what was there."""
    lines = []
    for line in written.replace("\r\n", "\n").split("\n"):
        shown: list[str] = []
        for piece in re.sub(r"\x1b\[[A-Z]", "", line).split("\r"):
            shown[: len(piece)] = piece
        lines.append("".join(shown).rstrip())
    return lines


def test_bar_and_log_keep_their_own_lines(tmp_path: Path) -> None:
    overrides = [o for o in SHORT if not o.startswith("trainer.max_epochs")]
    written = on_a_terminal(*overrides, "trainer.max_epochs=3", "callbacks.figures_every=0", f"run_dir={tmp_path}/run")
    assert "epoch 2:" in written  # the bar
    lines = screen_of(written)
    assert not [line for line in lines if "it/s" in line]
    assert lines[0].startswith("VAE of MLPEncoder, MLPDecoder, SquaredErrorHead: 2 latents, ")
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert [line[:12] for line in epochs] == [f"epoch {i} of 3" for i in (1, 2, 3)]
    assert re.search(r" s, about \d+ s left$", epochs[0])
    assert re.search(r" \d+ s$", epochs[-1])
