"""Real signals to real trainers, in this process and in others; and runs that go on exactly where they were stopped."""

import logging
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn

from vae.data.batches import EpochBatches, Images, ResumableLoader, ignore_in_worker
from vae.errors import Stopped
from vae.training.checkpoints import DurableCheckpointIO, SaveLast, load
from vae.training.signals import GracefulStop

# Lightning's remarks: on every resume; on loaders without workers; on a loop of five batches.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
]

BATCHES, EPOCHS = 5, 4  # a batch holds 3 images of 1x2x2


class Tiny(LightningModule):
    """A regression whose every number depends on all that a resume can lose: weights, momentum, two learning rate
    schedulers, the order of the images and the step's noise."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.1)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.3)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
        step = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        schedules = [{"scheduler": plateau, "monitor": "dev/loss"}, {"scheduler": decay, "interval": "step"}, step]
        return [optimizer], schedules

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return (self.layer(x.flatten(1).float() / 255).squeeze(1) - y).square().mean()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        noise = torch.randn((), generator=torch.Generator().manual_seed(self.global_step))
        return self.loss(batch) * (1 + 0.1 * noise)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("dev/loss", self.loss(batch), batch_size=len(batch[1]))

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.loss(batch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["vae"] = {"format": 2, "settings": {}, "image_shape": [1, 1, 1], "data": {}}


def images() -> Images:
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(256, (3 * BATCHES, 1, 2, 2), generator=generator, dtype=torch.uint8)
    return Images(x, torch.randn(len(x), generator=generator))


def images_loader(workers: int = 0, shuffle: bool = True) -> ResumableLoader:
    loader = ResumableLoader(images(), EpochBatches(images(), 3, seed=7, shuffle=shuffle), workers)
    loader.worker_init_fn = ignore_in_worker
    return loader


def tiny_trainer(directory: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    best = ModelCheckpoint(
        directory,
        monitor="dev/loss",
        filename="best",
        save_top_k=1,
        enable_version_counter=False,
        auto_insert_metric_name=False,
    )
    return Trainer(
        **{"max_epochs": EPOCHS, "accelerator": "cpu", "devices": 1} | settings,
        default_root_dir=directory,
        callbacks=[best, *callbacks],
        plugins=[DurableCheckpointIO()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def fit(directory: Path, *callbacks: Callback, workers: int = 0, **settings: Any) -> Trainer:
    """Trains in `directory`, or goes on from its last.ckpt."""
    saver = SaveLast(directory)
    guard = GracefulStop(saver.save)
    last = directory / "last.ckpt"
    with guard:
        trainer = tiny_trainer(directory, *callbacks, saver, guard, **settings)
        dev = images_loader(shuffle=False)
        trainer.fit(Tiny(), images_loader(workers), dev, ckpt_path=last if last.is_file() else None)
    return trainer


class Raise(Callback):
    """Sends this process a signal from within a hook, once, when so many steps are done."""

    def __init__(self, hook: str, step: int, signum: int = signal.SIGTERM) -> None:
        self.left = [step]

        def send(trainer: Trainer, *args: Any, **kwargs: Any) -> None:
            if trainer.global_step in self.left:
                self.left.clear()
                signal.raise_signal(signum)

        setattr(self, hook, send)


def content(directory: Path) -> dict[str, Any]:
    """last.ckpt without the two things that may differ: where it lies, and a score that ModelCheckpoint forgets."""
    checkpoint = load(directory / "last.ckpt")
    for key, state in checkpoint["callbacks"].items():
        if key.startswith("ModelCheckpoint"):
            state["best_k_models"] = list(state["best_k_models"].values())
            for name in ("dirpath", "best_model_path", "kth_best_model_path", "current_score"):
                del state[name]
    return checkpoint


def assert_same(expected: Any, found: Any, where: str = "") -> None:
    assert type(expected) is type(found), where
    if isinstance(expected, dict):
        assert expected.keys() == found.keys(), where
        for key in expected:
            assert_same(expected[key], found[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(expected) == len(found), where
        for i, pair in enumerate(zip(expected, found, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    else:
        assert torch.equal(expected, found) if isinstance(expected, Tensor) else expected == found, where


def early() -> EarlyStopping:
    """Stops after 3 of the 4 epochs."""
    return EarlyStopping("dev/loss", patience=2, mode="max", min_delta=1e6)  # nothing is ever better


@pytest.mark.parametrize(
    ("stops", "settings"),
    [
        ([("on_train_start", 0)], {}),
        ([("on_train_batch_start", 0)], {}),
        ([("on_train_batch_start", 2)], {}),
        ([("on_train_batch_start", 4)], {}),  # the last batch of an epoch
        ([("on_validation_batch_start", 10)], {}),
        ([("on_train_epoch_end", 10)], {}),
        ([("on_train_batch_start", 19)], {}),  # the last batch of all
        ([("on_train_batch_start", 1), ("on_train_batch_start", 3), ("on_validation_end", 5)], {}),
        ([("on_train_batch_start", 6), ("on_train_batch_start", 9), ("on_train_batch_start", 10)], {}),
        ([("on_train_batch_start", 1), ("on_train_batch_start", 4)], {"accumulate_grad_batches": 2}),
        ([("on_train_batch_start", 1), ("on_train_batch_start", 8)], {"val_check_interval": 2}),
        ([("on_train_batch_start", 1), ("on_train_epoch_end", 6)], {"limit_train_batches": 3}),
        ([("on_train_batch_start", 2), ("on_validation_end", 10)], {"workers": 2}),
        ([("on_train_batch_start", 12), ("on_train_epoch_end", 15)], {"early": True}),
    ],
)
def test_a_run_stopped_anywhere_ends_as_if_never_stopped(
    tmp_path: Path, stops: list[tuple[str, int]], settings: dict[str, Any]
) -> None:
    """Bit by bit: weights, momentum, learning rates, best score, patience, and every one of Lightning's counters."""
    stopping = settings.pop("early", False)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(whole, *[early()] * stopping, **settings)
    for stop in stops:
        with pytest.raises(Stopped, match="SIGTERM"):
            fit(parts, *[early()] * stopping, Raise(*stop), **settings)
    trainer = fit(parts, *[early()] * stopping, **settings)
    assert_same(content(whole), content(parts))
    assert trainer.current_epoch == (3 if stopping else EPOCHS)
    assert_same(load(whole / "best.ckpt")["state_dict"], load(parts / "best.ckpt")["state_dict"])


def test_an_early_stopped_run_stays_stopped(tmp_path: Path) -> None:
    fit(tmp_path, early())
    before = content(tmp_path)
    fit(tmp_path, early())
    assert_same(before, content(tmp_path))


def test_more_epochs_continue_a_finished_run(tmp_path: Path) -> None:
    fit(tmp_path / "whole")
    fit(tmp_path / "parts", max_epochs=2)
    fit(tmp_path / "parts")
    assert_same(content(tmp_path / "whole"), content(tmp_path / "parts"))


def test_minutes_are_kept_in_mid_epoch(tmp_path: Path) -> None:
    seen = []

    class Look(Callback):
        def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
            seen.append((trainer.global_step, load(tmp_path / "last.ckpt")["global_step"]))

    saver = SaveLast(tmp_path, minutes=0)
    tiny_trainer(tmp_path, Look(), saver, max_epochs=2).fit(Tiny(), images_loader(), images_loader())
    assert [saved for step, saved in seen] == list(range(2 * BATCHES))


def test_the_best_checkpoint_is_recorded_in_the_last(tmp_path: Path) -> None:
    trainer = fit(tmp_path)
    state = next(v for k, v in load(tmp_path / "last.ckpt")["callbacks"].items() if k.startswith("ModelCheckpoint"))
    assert state["best_model_path"] == str(tmp_path / "best.ckpt")
    best = trainer.checkpoint_callback
    assert isinstance(best, ModelCheckpoint)
    assert state["best_model_score"] == best.best_model_score
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]


@pytest.mark.parametrize("hook", ["setup", "on_test_start"])
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_outside_training_stops_at_once(tmp_path: Path, hook: str, signum: int, code: int) -> None:
    saver = SaveLast(tmp_path)
    guard = GracefulStop(saver.save)
    trainer = tiny_trainer(tmp_path, Raise(hook, 0, signum), saver, guard, max_epochs=0)
    entry, loaders = (trainer.fit, 2) if hook == "setup" else (trainer.test, 1)
    with pytest.raises(Stopped) as stopped, guard:
        entry(Tiny(), *[images_loader()] * loaders)
    assert stopped.value.exit_code == code
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", [None, Stopped, RuntimeError, KeyError])
def test_handlers_are_put_back(tmp_path: Path, ending: type[BaseException] | None) -> None:
    class Fail(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            if ending is not None:
                raise RuntimeError

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    if ending is None:
        fit(tmp_path)
    elif ending is KeyError:
        with pytest.raises(KeyError), GracefulStop(lambda trainer: None):
            raise KeyError
    else:
        with pytest.raises(ending):
            fit(tmp_path, Raise("on_train_batch_start", 3) if ending is Stopped else Fail())
    assert [signal.getsignal(number) for number in numbers] == before


# From here on, processes. A server that has imported everything forks them, so that each takes a second and not eight.


class Hold(Callback):
    """At some steps, in a hook, waits until the test has sent its signals."""

    def __init__(self, directory: Path, hook: str, steps: tuple[int, ...]) -> None:
        def wait(trainer: Trainer, *args: Any) -> None:
            if trainer.global_step in steps:
                here, go = directory / f"here.{trainer.global_step}", directory / f"go.{trainer.global_step}"
                here.touch()
                deadline = time.monotonic() + 120
                while not go.exists() and time.monotonic() < deadline:
                    time.sleep(0.01)

        setattr(self, hook, wait)


def main(directory: Path, hook: str, steps: tuple[int, ...], workers: int, environ: dict[str, str]) -> None:
    """A run as the command line starts it, in a process group of its own, with its words in `stderr`."""
    os.setpgrp()
    multiprocessing.set_start_method("fork", force=True)  # else its data workers import everything once more
    os.environ.update(environ)
    torch.set_num_threads(1)
    os.dup2(os.open(directory / "stderr", os.O_WRONLY | os.O_CREAT), 2)
    logging.basicConfig(level=logging.WARNING, force=True)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    try:
        fit(directory / "run", Hold(directory, hook, steps), workers=workers)
    except Stopped as stopped:
        sys.exit(stopped.exit_code)


class Run:
    def __init__(
        self, directory: Path, *steps: int, hook: str = "on_train_batch_start", workers: int = 0, **environ: str
    ):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["vae.data.module", "vae.training.signals"])
        self.directory = directory
        self.process = context.Process(target=main, args=(directory, hook, steps, workers, environ))
        self.process.start()

    def at(self, step: int) -> int:
        """The process's number, once it holds at this step."""
        self.wait_for(lambda: (self.directory / f"here.{step}").exists())
        assert self.process.pid is not None
        return self.process.pid

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert self.process.is_alive(), self.words()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def go_on(self, step: int) -> None:
        (self.directory / f"go.{step}").touch()

    def exit_code(self) -> int | None:
        self.process.join(120)
        return self.process.exitcode

    def words(self) -> str:
        return (self.directory / "stderr").read_text()


@pytest.mark.faults
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_process_stops_between_two_batches(tmp_path: Path, signum: int, code: int, workers: int) -> None:
    """With workers the whole process group is told, as a terminal, `timeout` and `scancel` do."""
    run = Run(tmp_path, 7, workers=workers)
    pid = run.at(7)
    os.killpg(pid, signum) if workers else os.kill(pid, signum)
    time.sleep(0.2)  # long enough for a worker to die of it, if it would
    run.go_on(7)
    assert run.exit_code() == code, run.words()
    assert len(run.words().splitlines()) == 1, run.words()
    assert load(tmp_path / "run" / "last.ckpt")["global_step"] == 8
    fit(tmp_path / "run", workers=workers)
    fit(tmp_path / "whole")
    assert_same(content(tmp_path / "whole"), content(tmp_path / "run"))


@pytest.mark.faults
def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    run = Run(tmp_path, 10, hook="on_validation_batch_start")
    pid = run.at(10)
    os.kill(pid, signal.SIGINT)
    run.wait_for(lambda: "Ctrl-C" in run.words())
    os.kill(pid, signal.SIGINT)
    assert run.exit_code() == 130, run.words()
    assert load(tmp_path / "run" / "last.ckpt")["global_step"] == 5
    assert not list((tmp_path / "run").glob("*.part"))


@pytest.mark.faults
@pytest.mark.parametrize("accepts", [True, False])
def test_slurm_requeues_and_trains_on(tmp_path: Path, accepts: bool) -> None:
    """SIGUSR1 saves and calls scontrol, here one of our own; the job ends by the SIGTERM that Slurm then sends."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\necho no such job >&2\nexit {int(not accepts)}\n')
    scontrol.chmod(0o755)
    path = f"{scontrol.parent}:{os.environ['PATH']}"
    run = Run(tmp_path, 7, 12, PATH=path, SLURM_JOB_ID="41", SLURM_ARRAY_JOB_ID="40", SLURM_ARRAY_TASK_ID="3")
    os.kill(run.at(7), signal.SIGUSR1)
    run.go_on(7)
    pid = run.at(12)
    assert (tmp_path / "asked").read_text() == "requeue 40_3\n"
    assert ("could not requeue the Slurm job 40_3: no such job" in run.words()) is not accepts
    assert "Traceback" not in run.words()
    os.kill(pid, signal.SIGTERM)
    run.go_on(12)
    assert run.exit_code() == 143, run.words()
    assert load(tmp_path / "run" / "last.ckpt")["global_step"] == 13
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["best.ckpt", "last.ckpt"]  # no hpc_ckpt_1


@pytest.mark.parametrize("swallow", [False, True])
def test_a_signal_that_a_library_makes_an_error_of_is_still_a_signal(swallow: bool) -> None:
    """matplotlib's C code turns any exception into a ValueError; Lightning's teardown fails after one."""

    def draw() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        except Stopped:
            if not swallow:
                raise ValueError("Invalid affine transformation matrix") from None

    with pytest.raises(Stopped, match="SIGTERM"), GracefulStop(lambda trainer: None):
        draw()
