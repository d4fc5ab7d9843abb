"""What a run shows on a terminal while it trains: a line an epoch, a progress bar."""

import logging
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from tqdm import tqdm

from vae.training.history import History

log = logging.getLogger(__name__)


class EpochLine(Callback):
    """One line an epoch in the log."""

    def __init__(self, history: History) -> None:
        self.history = history

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        row, seconds = self.history.rows[-1], self.history.seconds
        parts = [f"{name} {row[name]:.2f}" for name in ("train/loss", "dev/loss", "dev/kl", "dev/elbo") if name in row]
        epochs, last = len(self.history.rows), trainer.max_epochs or 0
        left = f", about {duration(seconds / epochs * (last - epochs))} left" if epochs < last else ""
        log.info("epoch %d of %s  %s  %.0f s%s", row["epoch"], last, "  ".join(parts), seconds, left)


def duration(seconds: float) -> str:
    """As one says it: 40 s, 4 min, 2.5 h."""
    if seconds < 99:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99 * 60 else f"{seconds / 3600:.1f} h"


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
