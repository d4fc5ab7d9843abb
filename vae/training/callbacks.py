"""What a run shows on a terminal while it trains: a line an epoch, a progress bar."""

import logging
import math
import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from tqdm import tqdm

from vae.device import keeps_denormals
from vae.training.history import History
from vae.words import duration

log = logging.getLogger(__name__)


ANNOUNCED_AFTER = 3.0  # seconds of steps, by which their pace is known
SLOWER = 2.0  # an epoch by the fastest of the first two, from which a line says so
NOTICED = 1.0  # processor seconds of difference below which nobody waits longer, and short epochs waver


class SlowdownWatch(Callback):
    """Says once, with the likely cause, that an epoch's steps take far more processor seconds than at first."""

    def __init__(self) -> None:
        self.seconds: list[float] = []  # of the epochs that this sitting has trained from their beginning
        self.since: float | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.since = time.process_time()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.since is None:  # resumed in the middle of an epoch, or validation alone
            return
        self.seconds.append(time.process_time() - self.since)
        self.since = None
        first, last = min(self.seconds[:2]), self.seconds[-1]
        # two in a row: a busy machine makes threads wait for one another, which costs processor time as well
        if len(self.seconds) > 3 and min(self.seconds[-2:]) > max(SLOWER * first, first + NOTICED):
            line = "epoch %d took %.1f processor seconds, the first %.1f; likely cause: %s"
            denormals = "denormal numbers, which this processor does not flush"
            cause = denormals if keeps_denormals() else "a throttled processor, or one that shares its cores"
            log.warning(line, trainer.current_epoch + 1, last, first, cause)
            self.seconds = [math.inf] * 2  # said once


class EpochLine(Callback):
    """One line per epoch in the log, and one in the first epoch that says when the run will be done."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.announced = False
        self.since, self.batches = 0.0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.since, self.batches = time.perf_counter(), 0

    on_train_epoch_start = on_train_start  # which a run resumed in mid-epoch does not meet

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.announced:
            return
        self.batches += 1
        if (passed := time.perf_counter() - self.since) < ANNOUNCED_AFTER:
            return
        self.announced = True
        epoch = passed / self.batches * int(trainer.num_training_batches)
        left = epoch * ((trainer.max_epochs or 1) - trainer.current_epoch)
        end = time.strftime("%H:%M", time.localtime(time.time() + left))
        log.info("about %s per epoch and %s in all: done at about %s", duration(epoch), duration(left), end)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        row, seconds = self.history.rows[-1], self.history.seconds
        parts = [f"{name} {row[name]:.2f}" for name in ("train/loss", "dev/loss", "dev/kl", "dev/elbo") if name in row]
        self.announced = True  # by the line itself
        epochs, last = len(self.history.rows), trainer.max_epochs or 0
        left = f", about {duration(seconds / epochs * (last - epochs))} left" if epochs < last else ""
        log.info("epoch %d of %s  %s  %.0f s%s", row["epoch"], last, "  ".join(parts), seconds, left)


class QuietBar(TQDMProgressBar):
    """A bar over the epochs of training, refreshed rarely: one that moves in each step slows a small model down.

    It leaves nothing behind, and `process.TerminalHandler` clears it before each line of the log.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=25, leave=False)

    def init_train_tqdm(self) -> Any:
        bar = super().init_train_tqdm()
        bar.leave = False
        return bar

    def on_train_epoch_start(self, trainer: Trainer, *rest: Any) -> None:
        super().on_train_epoch_start(trainer, *rest)
        self.train_progress_bar.set_description(f"epoch {trainer.current_epoch + 1}")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        if (rest[-1] + 1) % self.refresh_rate == 0 or trainer.is_last_batch:
            super().on_train_batch_end(trainer, pl_module, *rest)

    def init_validation_tqdm(self) -> Any:
        return tqdm(disable=True)  # one that is turned off later has already drawn itself

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        return {k: v for k, v in trainer.progress_bar_metrics.items() if k != "v_num"}
