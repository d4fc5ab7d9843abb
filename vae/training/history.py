"""The metrics of each epoch, kept in the checkpoint and written to TensorBoard."""

import time
from typing import TYPE_CHECKING, Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from vae.evaluation.panels import mean_sigma
from vae.training.lit import LitVAE

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LATENTS_LOGGED = 64  # beyond it the KL of single latents is in the figure only

LAYOUT = {
    "losses": {
        "loss, train and dev": ["Multiline", ["train/loss", "train_eval/loss", "dev/loss", "baseline/.*"]],
        "reconstruction": ["Multiline", ["train/reconstruction", "dev/reconstruction"]],
        "KL": ["Multiline", ["train/kl", "dev/kl"]],
        "ELBO (nats)": ["Multiline", ["train/elbo", "dev/elbo"]],
    },
    "latents": {"KL per latent (nats, dev)": ["Multiline", ["kl_per_latent/.*"]]},
    "optimisation": {
        "learning rate": ["Multiline", ["lr"]],
        "gradient norm": ["Multiline", ["train/grad_norm"]],
        "beta": ["Multiline", ["train/beta"]],
        "decoder's mean sigma": ["Multiline", ["dev/sigma"]],
    },
}


def writer_of(trainer: Trainer) -> "SummaryWriter | None":
    return next((each.experiment for each in trainer.loggers if isinstance(each, TensorBoardLogger)), None)


class EventFileLogger(TensorBoardLogger):
    """TensorBoard's event files in `save_dir` itself, without hparams.yaml: config.yaml says all that it would."""

    def __init__(self, save_dir: str, purge_step: int | None = None) -> None:
        super().__init__(save_dir, name="", version="", default_hp_metric=False, purge_step=purge_step)

    def save(self) -> None:
        self.experiment.flush()


class History(Callback):
    """One row of metrics for each epoch, kept in the checkpoint, so that a resumed run knows its whole curve.

    Put first, since the others read it. `seconds` counts training and validation, over all the run's sittings.
    """

    def __init__(self) -> None:
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
        self._write(trainer, metrics)

    @staticmethod
    def _limit(trainer: Trainer) -> int:
        return int(trainer.num_training_batches) * trainer.datamodule.batch_size  # type: ignore[attr-defined]  # Lightning sets it

    def _write(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        writer = writer_of(trainer)
        if writer is None:
            return
        step = trainer.global_step
        if not self.kl_per_latent:
            writer.add_text("kl_per_latent", "None: the prior or the posterior ties the latents together.", 0)
        if "dev/sigma" in metrics:
            writer.add_scalar("dev/sigma", metrics["dev/sigma"], step)
        for latent, kl in enumerate(self.kl_per_latent[:LATENTS_LOGGED]):
            writer.add_scalar(f"kl_per_latent/{latent:02d}", kl, step)

    def curve(self, name: str) -> list[tuple[int, float]]:
        """(epoch, value) where the metric was logged."""
        return [(int(row["epoch"]), row[name]) for row in self.rows if name in row]

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "kl": self.kl_per_latent, "seconds": self.seconds, "images": self.images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.kl_per_latent = list(state_dict["rows"]), list(state_dict["kl"])
        self.earlier, self.images = state_dict["seconds"], state_dict["images"]
