"""Ctrl-C, SIGTERM and a cluster's warning: stop between two batches, with a checkpoint that continues exactly there."""

import contextlib
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from vae.errors import Stopped
from vae.training.checkpoints import resumable

logger = logging.getLogger(__name__)


class GracefulStop(Checkpoint):
    """A context manager around a whole run, and a callback in its Trainer; `save(trainer)` writes the checkpoint.

    While training, SIGINT and SIGTERM are noted, and at the next batch boundary the run is saved and Stopped raised;
    in validation, after the epoch's end. A second SIGINT, or any signal outside training, raises Stopped at once. Under
    Slurm, SIGUSR1 saves at the boundary and requeues the job, which trains on until its SIGTERM.

    A Checkpoint by type because Lightning calls those last, when all other callbacks know of the batch.
    """

    def __init__(self, save: Callable[[Trainer], None]) -> None:
        self.save = save
        self._previous: dict[int, Any] = {}
        self._pid = os.getpid()
        self._training = False
        self._stop: int | None = None
        self._raised: Stopped | None = None
        self._requeue = False

    def __enter__(self) -> Self:
        numbers = [signal.SIGINT, signal.SIGTERM]
        if "SLURM_JOB_ID" in os.environ:
            numbers.append(signal.SIGUSR1)  # taken before Lightning looks, which turns its own requeueing off
        self._pid = os.getpid()
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._training = False
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}
        if self._raised is not None and error is not self._raised:
            # a library turned it into an error of its own, or swallowed it: matplotlib's C code, Lightning's teardown
            raise self._raised from error

    def _stopped(self, signum: int) -> Stopped:
        self._raised = Stopped(signum)
        return self._raised

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return  # a data worker inherited the handler; its process decides for it
        if signum == signal.SIGUSR1 and not self._training:
            self._say("SIGUSR1: requeueing the job")  # nothing is new since its last checkpoint, if it has one
            if int(os.environ.get("SLURM_PROCID", 0)) == 0:
                requeue()
        elif signum == signal.SIGUSR1:
            self._requeue = True
            self._say("SIGUSR1: saving at the next batch, then requeueing the job")
        elif not self._training and self._stop is None:
            self._stop = signum
            raise self._stopped(signum)
        elif self._stop is None:
            self._stop = signum
            name = signal.Signals(signum).name
            self._say(f"{name}: saving and stopping at the next batch; Ctrl-C stops at once, without saving")
        elif signum == signal.SIGINT:
            raise self._stopped(signum)

    def _say(self, line: str) -> None:
        with contextlib.suppress(RuntimeError):  # the signal came while the same stream was being written to
            logger.warning(line)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning has put a handler of its own before ours, whose SIGTERMException would come before our boundary.
        # It puts back what it found when it leaves, also after an exception.
        for number in self._previous:
            signal.signal(number, self._handle)
        self._pid = os.getpid()  # of this rank, where ranks were forked
        self._training = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (self._asked or trainer.world_size > 1) and resumable(trainer, batch_idx):
            self._boundary(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._boundary(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._training = False
        self._boundary(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._training = False
        if isinstance(exception, Stopped) and trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGTERM)  # ranks that this process started and nobody told

    @property
    def _asked(self) -> bool:
        return self._stop is not None or self._requeue

    def _boundary(self, trainer: Trainer) -> None:
        """Saves, requeues and stops if any rank was asked to; every rank must come by."""
        anywhere = trainer.strategy.reduce_boolean_decision
        if not anywhere(self._asked, all=False):
            return
        self.save(trainer)
        if anywhere(self._requeue, all=False):
            self._requeue = False
            if trainer.is_global_zero:
                requeue()
        if anywhere(self._stop is not None, all=False):
            self._stop = self._stop or signal.SIGTERM
            raise self._stopped(self._stop)


def requeue() -> None:
    """Hands this Slurm job back to its queue; a failure is one line in the log, for training can go on."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
        logger.info("requeued the Slurm job %s", job)
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip()
        logger.warning("could not requeue the Slurm job %s: %s; give the same command again later", job, reason)
