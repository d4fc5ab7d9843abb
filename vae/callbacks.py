"""Who draws and writes when: the history of the epochs, the log line, TensorBoard's pictures and its layout.

matplotlib and TensorBoard are imported at the first validation, not before the first step.
"""

import logging
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from vae.data import ImageDataModule, as_floats
from vae.distributions import fixed_noise
from vae.lit import LitVAE
from vae.model import VAE
from vae.seeds import derive

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)

SHOWN = 10  # images in a row: one of each class of MNIST
LATENTS_LOGGED = 64  # beyond it the KL of single latents is in the figure only
LAYOUT = {
    "losses": {
        "loss, train and dev": ["Multiline", ["train/loss", "train_eval/loss", "dev/loss", "anchor/.*"]],
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
    return trainer.logger.experiment if isinstance(trainer.logger, TensorBoardLogger) else None


def shown_images(data: ImageDataModule) -> tuple[Tensor, Tensor]:
    """The first dev image of each class, in order: x (n, C, H, W) in [0, 1] and labels (n,)."""
    labels = data.dev.labels
    rows = [int((labels == c).nonzero()[0]) for c in range(data.classes) if (labels == c).any()]
    rows = (rows + [i for i in range(len(labels)) if i not in rows])[: min(SHOWN, len(labels))]
    return as_floats(data.dev.images[rows]), labels[rows]


def shown_latents(vae: VAE, seed: int) -> Tensor:
    """The same ten prior draws (n, D) in every figure of a run."""
    generator = torch.Generator().manual_seed(derive(seed, "prior draws"))
    return torch.randn(SHOWN, vae.latent_dim, generator=generator).to(vae.prior_loc)


@torch.no_grad()
def reconstruction_figure(vae: VAE, x: Tensor, caption: str) -> "Figure":
    """z is the posterior mean and x the likelihood's mean, which the caption says."""
    from vae import figures

    x_hat = vae.reconstruct(x.to(vae.prior_loc.device), z="mean", x_hat="mean").cpu()
    return figures.reconstructions(x, x_hat, f"{caption}; z: posterior mean; x: mean of p(x|z)")


@torch.no_grad()
def prior_figure(vae: VAE, seed: int, caption: str) -> "Figure":
    from vae import figures

    z = shown_latents(vae, seed)
    with fixed_noise(derive(seed, "figure 7")), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "figure 7"))
        rows = {"x sampled": vae.sample(z, x="sample").cpu(), "mean of p(x|z)": vae.sample(z, x="mean").cpu()}
    return figures.samples(rows, f"{caption}; z: the same ten draws from the prior in both rows")


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
        self.kl_per_latent = pl_module.meters["dev"].kl_per_latent().tolist()
        self.images += min(len(trainer.datamodule.train), self._limit(trainer))  # type: ignore[attr-defined]  # Lightning sets it
        self.rows.append({"epoch": trainer.current_epoch, "step": trainer.global_step, **metrics})
        self._write(trainer, metrics)

    @staticmethod
    def _limit(trainer: Trainer) -> int:
        return int(trainer.num_training_batches) * trainer.datamodule.batch_size  # type: ignore[attr-defined]  # Lightning sets it

    def _write(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        writer = writer_of(trainer)
        if writer is None:
            return
        step = trainer.global_step
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


@torch.no_grad()
def mean_sigma(vae: VAE, data: ImageDataModule) -> float | None:
    """The decoder's standard deviation at the posterior means of the shown images, averaged over pixels."""
    if not vae.likelihood.has_sigma:
        return None
    x, _ = shown_images(data)
    training = vae.training
    vae.eval()
    p = vae.decode(vae.encode(x.to(vae.prior_loc.device)).mean.unsqueeze(0))
    vae.train(training)
    return p.stddev.mean().item()


class EpochLine(Callback):
    """One line an epoch in the log."""

    def __init__(self, history: History) -> None:
        self.history = history

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        row = self.history.rows[-1]
        parts = [f"{name} {row[name]:.2f}" for name in ("train/loss", "dev/loss", "dev/kl", "dev/elbo") if name in row]
        log.info(
            "epoch %d of %s  %s  %.0f s", row["epoch"] + 1, trainer.max_epochs, "  ".join(parts), self.history.seconds
        )


class Pictures(Callback):
    """Reconstructions of the same dev images and samples of the same prior draws, every few epochs."""

    def __init__(self, every: int, seed: int, caption: str, anchors: Callable[[], dict[str, float]]) -> None:
        self.every, self.seed, self.caption = every, seed, caption
        self.find_anchors = anchors
        self.anchors: dict[str, float] | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        writer = writer_of(trainer)
        if writer is None:
            return
        if self.anchors is None:
            self.anchors = self.find_anchors()
            writer.add_custom_scalars(LAYOUT)
        for name, value in self.anchors.items():
            writer.add_scalar(f"anchor/{name.replace(' ', '_')}", value, trainer.global_step)
        if self.every and (trainer.current_epoch % self.every == 0 or trainer.current_epoch + 1 == trainer.max_epochs):
            self._draw(trainer, pl_module, writer)

    def _draw(self, trainer: Trainer, pl_module: LightningModule, writer: "SummaryWriter") -> None:
        assert isinstance(pl_module, LitVAE)
        x, _ = shown_images(trainer.datamodule)  # type: ignore[attr-defined]  # Lightning sets it
        caption = f"{self.caption}; epoch {trainer.current_epoch}"
        vae, training = pl_module.vae, pl_module.vae.training
        vae.eval()
        drawn = {
            "reconstructions": reconstruction_figure(vae, x, f"{caption}; dev"),
            "prior samples": prior_figure(vae, self.seed, caption),
        }
        vae.train(training)
        for name, figure in drawn.items():
            writer.add_figure(name, figure, trainer.global_step, close=False)


class QuietBar(TQDMProgressBar):
    """A bar over the epochs of training, refreshed rarely: a bar that moves each step costs a small model dearly."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=25, leave=False)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        if (rest[-1] + 1) % self.refresh_rate == 0 or trainer.is_last_batch:
            super().on_train_batch_end(trainer, pl_module, *rest)

    def init_validation_tqdm(self) -> Any:
        bar = super().init_validation_tqdm()
        bar.disable = True
        return bar

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        return {k: v for k, v in trainer.progress_bar_metrics.items() if k != "v_num"}


def on_a_terminal() -> bool:
    return sys.stderr.isatty()
