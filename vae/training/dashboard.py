"""What TensorBoard shows of a run while it trains; `results` adds the end.

Epochs count from 1, latents from 0, and every tag stands at the number of steps taken.
"""

import logging
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from vae.data.module import ImageDataModule
from vae.evaluation import metrics
from vae.evaluation.gallery import Subject, draw_figure, lacks
from vae.model import VAE
from vae.pixels import as_floats
from vae.training.history import History, writer_of
from vae.training.hparams import Sheet
from vae.training.lit import LitVAE

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)

LATENTS_LOGGED = 64  # beyond it the KL of single latents is in the figure only
PICTURES = ("reconstructions", "samples", "traversals", "manifold")
HISTOGRAMS = 8  # latents with histograms of their own
WATCHED = 1000  # dev images whose posteriors are looked at after each epoch


def layout(normalised: bool) -> dict[str, Any]:
    """The charts of the Custom Scalars tab: train and dev in one, and none that a run of its kind leaves empty.

    TensorBoard shows the charts of all runs, each different one once: no number of latents may stand here.
    """
    bound = "elbo" if normalised else "unweighted_loss"
    words = "ELBO (nats, beta 1)" if normalised else "reconstruction + KL (beta 1)"
    lines = [] if normalised else ["reference/.*"]
    return {
        "losses": {
            "loss, train and dev": ["Multiline", ["train/loss", "train_eval/loss", "dev/loss"]],
            "reconstruction": ["Multiline", ["train/reconstruction", "dev/reconstruction", *lines]],
            "KL (nats)": ["Multiline", ["train/kl", "dev/kl"]],
            words: ["Multiline", [f"train/{bound}", f"dev/{bound}"]],
        },
        "latents": {
            "KL per latent (nats, dev)": ["Multiline", ["kl_per_latent/.*"]],
            "active units (of the first 1,000 dev images)": ["Multiline", ["dev/active_units"]],
        },
        "optimisation": {
            "learning rate": ["Multiline", ["lr"]],
            "gradient norm": ["Multiline", ["train/grad_norm"]],
            "beta": ["Multiline", ["train/beta"]],
            "images a second, validation included": ["Multiline", ["images_per_second"]],
        },
    }


def is_round(epoch: int) -> bool:
    """1, 2, 5, 10, 20, 50, 100, ...: pictures on a logarithmic scale show the fast beginning and cost little."""
    return str(epoch).rstrip("0") in ("1", "2", "5")


class Dashboard(Callback):
    """Curves, histograms, pictures, the configuration and the graph of a run, in its TensorBoard events.

    `texts` are Markdown by tag, `sheet` the run's row in HPARAMS. Pictures come after the epochs 1, 2, 5, 10, 20, 50,
    ..., after every `every`th and after the last; with `every` 0 at the end of the run only.
    """

    def __init__(
        self,
        history: History,
        every: int,
        seed: int,
        caption: str,
        find_baselines: Callable[[], dict[str, float]],
        texts: Mapping[str, str],
        sheet: Sheet,
    ) -> None:
        self.history, self.every, self.seed, self.caption = history, every, seed, caption
        self.find_baselines, self.texts, self.sheet = find_baselines, texts, sheet
        self.references: dict[str, float] | None = None
        self.active = -1  # units, after the epoch before
        self.seen = (0, 0.0)  # images and seconds until then

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (writer := writer_of(trainer)) is None:
            return
        assert isinstance(pl_module, LitVAE)
        for tag, text in self.texts.items():
            writer.add_text(tag, text, 0)
        self.sheet.begin(writer)
        self.seen = self.history.images, self.history.seconds
        if trainer.ckpt_path is None:  # a resumed run's events hold it already
            add_graph(writer, pl_module.vae)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # a signal only interrupts: the same command continues the run
        if isinstance(exception, Exception) and (writer := writer_of(trainer)) is not None:
            writer.add_text("warnings", f"ended early: {exception}", trainer.global_step)
            writer.flush()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (writer := writer_of(trainer)) is None:
            return
        assert isinstance(pl_module, LitVAE)
        step, epoch = trainer.global_step, trainer.current_epoch + 1
        vae, training = pl_module.vae, pl_module.vae.training
        vae.eval()
        data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
        self._curves(writer, step, vae)
        self._latents(writer, vae, as_floats(data.dev.images[:WATCHED]), data.dev.labels[:WATCHED], step)
        if self.every and (is_round(epoch) or epoch % self.every == 0 or epoch == trainer.max_epochs):
            for name, figure in self._pictures(vae, data, epoch).items():
                writer.add_figure(name, figure, step, close=False)
        vae.train(training)

    def _curves(self, writer: "SummaryWriter", step: int, vae: VAE) -> None:
        history = self.history
        if self.references is None:
            self.references = self._first(writer, vae)
        scalars = {f"kl_per_latent/z{k:02d}": kl for k, kl in enumerate(history.kl_per_latent[:LATENTS_LOGGED])}
        scalars |= {f"reference/{name}": value for name, value in self.references.items()}
        if "dev/sigma" in history.rows[-1]:
            scalars["dev/sigma"] = history.rows[-1]["dev/sigma"]
        images, seconds = history.images - self.seen[0], history.seconds - self.seen[1]
        self.seen = history.images, history.seconds
        scalars["images_per_second"] = images / seconds
        for name, value in scalars.items():
            writer.add_scalar(name, value, step)

    def _first(self, writer: "SummaryWriter", vae: VAE) -> dict[str, float]:
        """What to compare the reconstruction with: all baselines in a table, the two that bear on this model as lines.

        All of them as lines would crowd a chart of several runs.
        """
        found = self.find_baselines()
        if found:
            rows = "".join(f"| {name} | {value:.2f} |\n" for name, value in found.items())
            head = "What trivial models leave of dev images:\n\n| model | squared error an image |\n|---|---|\n"
            writer.add_text("baselines", head + rows, 0)
        shown = ("mean image", f"PCA {vae.latent_dim}")
        lines = {name.replace(" ", "_"): value for name, value in found.items() if name in shown}
        if not self.history.kl_per_latent:
            writer.add_text("kl_per_latent", "None: the prior or the posterior ties the latents together.", 0)
        writer.add_custom_scalars(layout(vae.likelihood.normalised))
        return lines

    @torch.no_grad()
    def _latents(self, writer: "SummaryWriter", vae: VAE, x: Tensor, y: Tensor, step: int) -> None:
        """Histograms of q's means and variances, the active units, and a word when their number leaves or meets 0."""
        q = vae.encode(x.to(vae.prior_loc.device), y)
        active = int(metrics.active_units(q.mean).sum())
        writer.add_scalar("dev/active_units", active, step)
        for name, values in (("posterior_mean", q.mean.cpu()), ("posterior_variance", q.variance.cpu())):
            for latent in range(min(values.shape[1], HISTOGRAMS)):
                writer.add_histogram(f"{name}/z{latent:02d}", values[:, latent], step)
        if (active == 0) != (self.active == 0):
            if active == 0:
                text = "collapsed: no latent is active, so z says nothing of x; try objective/beta=linear"
                writer.add_text("warnings", text, step)
            elif self.active == 0:
                writer.add_text("warnings", f"no longer collapsed: {active} latents are active", step)
        self.active = active

    def _pictures(self, vae: VAE, data: ImageDataModule, epoch: int) -> "dict[str, Figure]":
        kl = torch.tensor(self.history.kl_per_latent)
        use = kl if len(kl) == vae.latent_dim else torch.zeros(vae.latent_dim)
        subject = Subject(vae, data, self.history.curve, self.caption, self.seed, f"epoch {epoch}", use=use)
        return {f"pictures/{name}": draw_figure(name, subject) for name in PICTURES if not lacks(name, subject)}


class Means(nn.Module):
    """x, and y of a conditional model -> the decoder's output at the posterior mean: the graph without a draw."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.vae.decoder_output(self.vae.encode(x, y).mean.unsqueeze(0), y)


def add_graph(writer: "SummaryWriter", vae: VAE) -> None:
    """The two halves as a graph; says in one line why there is none, since a part of one's own may not be traceable."""
    training, x = vae.training, torch.zeros(1, *vae.image_shape, device=vae.prior_loc.device)
    labels = [torch.zeros(1, dtype=torch.int64)] if vae.classes else []
    vae.eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # torch calls its tracer deprecated, and TensorBoard's writer knows no other
            writer.add_graph(Means(vae), (x, *labels))
    except Exception as error:
        log.info("no graph in TensorBoard: %s", (str(error).splitlines() or [type(error).__name__])[0])
    vae.train(training)
