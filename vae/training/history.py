"""The metrics of each epoch, kept in the checkpoint, and the event files that Lightning writes them to."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from vae.evaluation.draws import mean_sigma
from vae.training.lit import LitVAE

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

UNKNOWN = "unknown"  # a commit, of code that was no checkout or did not say


def writer_of(trainer: Trainer) -> "SummaryWriter | None":
    """TensorBoard's, in the first process of a run; the others write nothing."""
    loggers = [each for each in trainer.loggers if isinstance(each, TensorBoardLogger) and trainer.is_global_zero]
    return loggers[0].experiment if loggers else None


class EventFileLogger(TensorBoardLogger):
    """TensorBoard's event files in `save_dir` itself, without hparams.yaml: config.yaml says all that it would."""

    def __init__(self, save_dir: str, purge_step: int | None = None) -> None:
        super().__init__(save_dir, name="", version="", default_hp_metric=False, purge_step=purge_step)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Lightning counts the epoch from 0 and names the last step by its number; here both are counts."""
        counted = dict(metrics)
        if "epoch" in counted:
            counted["epoch"] += 1
        super().log_metrics(counted, None if step is None else step + 1)

    def save(self) -> None:
        self.experiment.flush()


def commits_of(history: Mapping[str, Any]) -> list[str]:
    """Those that a checkpoint's history names."""
    return list(history.get("commits", [UNKNOWN]))


class History(Callback):
    """One row of metrics for each epoch, kept in the checkpoint, so that a resumed run knows its whole curve.

    Put first, since the others read it. `seconds` counts training and validation, over all the run's sittings;
    `commits` are those of the code that trained it, one after the other, UNKNOWN among them.
    """

    def __init__(self, commit: str | None = None) -> None:
        self.commit = commit or UNKNOWN
        self.commits: list[str] = []
        self.rows: list[dict[str, float]] = []
        self.kl_per_latent: list[float] = []
        self.earlier = 0.0
        self.images = 0
        self.since: float | None = None

    @property
    def seconds(self) -> float:
        return self.earlier + (0.0 if self.since is None else time.perf_counter() - self.since)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.since = time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Not where a run that is trained to its end is opened again, to be evaluated."""
        if self.commit not in self.commits:
            self.commits = [*self.commits, self.commit]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.earlier, self.since = self.seconds, None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LitVAE)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        sigma = mean_sigma(pl_module.vae, trainer.datamodule)  # type: ignore[attr-defined]  # Lightning sets it
        if sigma is not None:
            metrics["dev/sigma"] = sigma
        kl = pl_module.meters["dev"].kl_per_latent().tolist()
        self.kl_per_latent = kl if len(kl) == pl_module.vae.latent_dim else []
        self.images += min(len(trainer.datamodule.train), self._limit(trainer))  # type: ignore[attr-defined]  # Lightning sets it
        self.rows.append({"epoch": trainer.current_epoch + 1, "step": trainer.global_step, **metrics})

    @staticmethod
    def _limit(trainer: Trainer) -> int:
        return int(trainer.num_training_batches) * trainer.datamodule.batch_size  # type: ignore[attr-defined]  # Lightning sets it

    def curve(self, name: str) -> list[tuple[int, float]]:
        """(epoch, value) where the metric was logged."""
        return [(int(row["epoch"]), row[name]) for row in self.rows if name in row]

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "kl": self.kl_per_latent,
            "seconds": self.seconds,
            "images": self.images,
            "commits": self.commits,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.kl_per_latent = list(state_dict["rows"]), list(state_dict["kl"])
        self.earlier, self.images = state_dict["seconds"], state_dict["images"]
        self.commits = commits_of(state_dict)


def find_history(trainer: Trainer) -> History:
    """That of the run which `trainer` trains."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets the list
    return next(callback for callback in callbacks if isinstance(callback, History))
