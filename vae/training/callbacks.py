"""What a run shows while it trains: a line an epoch, a progress bar, pictures in TensorBoard."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from tqdm import tqdm

from vae.evaluation.panels import example_images, prior_figure, reconstruction_figure
from vae.training.history import LAYOUT, History, writer_of
from vae.training.lit import LitVAE
from vae.words import duration

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

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


class Pictures(Callback):
    """Reconstructions of the same dev images and samples of the same prior draws, every few epochs."""

    def __init__(self, every: int, seed: int, caption: str, baselines: Callable[[], dict[str, float]]) -> None:
        self.every, self.seed, self.caption = every, seed, caption
        self.find_baselines = baselines
        self.baselines: dict[str, float] | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        writer = writer_of(trainer)
        if writer is None:
            return
        if self.baselines is None:
            self.baselines = self.find_baselines()
            writer.add_custom_scalars(LAYOUT)
        for name, value in self.baselines.items():
            writer.add_scalar(f"baseline/{name.replace(' ', '_')}", value, trainer.global_step)
        if self.every and (trainer.current_epoch % self.every == 0 or trainer.current_epoch + 1 == trainer.max_epochs):
            self._draw(trainer, pl_module, writer)

    def _draw(self, trainer: Trainer, pl_module: LightningModule, writer: "SummaryWriter") -> None:
        assert isinstance(pl_module, LitVAE)
        x, labels = example_images(trainer.datamodule)  # type: ignore[attr-defined]  # Lightning sets it
        caption = f"{self.caption}; epoch {trainer.current_epoch + 1}"
        vae, training = pl_module.vae, pl_module.vae.training
        vae.eval()
        drawn = {
            "reconstructions": reconstruction_figure(vae, x, labels, f"{caption}; dev"),
            "prior samples": prior_figure(vae, self.seed, caption),
        }
        vae.train(training)
        for name, figure in drawn.items():
            writer.add_figure(name, figure, trainer.global_step, close=False)


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
