"""The end of a run: the best checkpoint is evaluated, drawn and written down; metrics.json is the last file."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning import Trainer
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from vae.data.module import ImageDataModule
from vae.errors import InputError
from vae.evaluation import estimates, figures
from vae.evaluation.annealing import annealed_metrics
from vae.evaluation.estimates import Generated, posteriors
from vae.evaluation.gallery import Subject, draw_figure, names_of
from vae.pixels import as_floats
from vae.run.directory import Run, write
from vae.run.keys import Settings
from vae.run.load import load_weights
from vae.run.memory import freed_memory_kept, trim_memory
from vae.run.provenance import provenance
from vae.run.settings import caption
from vae.run.table import as_markdown, print_results, show_result
from vae.run.trainer import sheet_of
from vae.training import checkpoints
from vae.training.history import History, commits_of, writer_of
from vae.training.lit import LitVAE

log = logging.getLogger(__name__)

# What only training can say; an evaluation on demand leaves it as it was.
TRAINING = ("epochs", "best_epoch", "steps", "seconds", "images_per_second", "parameters", "stopped_early")


def finish(run: Run, lit: LitVAE, data: ImageDataModule, history: History, trainer: Trainer) -> float:
    """Everything after training; returns the best epoch's monitored metric, for sweepers that optimise."""
    checkpoint = load_weights(lit, run.checkpoint("best"))
    lit.to(trainer.strategy.root_device, torch.float32).eval()  # the trainer has taken it off the device when it left
    metrics, generated = evaluate(lit, data, run.settings, checkpoint["global_step"])
    metrics |= training_metrics(history, checkpoint["epoch"] + 1)
    metrics |= {
        "epochs": len(history.rows),
        "best_epoch": checkpoint["epoch"] + 1,
        "steps": trainer.global_step,
        "seconds": history.seconds,
        "images_per_second": history.images / history.seconds,
        "parameters": lit.vae.parameter_count,
        "stopped_early": int(trainer.current_epoch < run.settings.trainer.max_epochs),
    }
    drawn = draw(run, lit, data, history, generated) if draws_figures(run) else {}
    writer = writer_of(trainer)
    if writer is not None:
        tensorboard(writer, run, lit, data, metrics, drawn)
    write_metrics(run, metrics, origin_of(run, data, lit, checkpoint))
    return show_result(run)


def draws_figures(run: Run) -> bool:
    """A sweep's runs draw on demand: figures take two seconds of a run, and nobody looks at a hundred runs' figures."""
    choice = run.settings.evaluation.figures
    return not run.one_of_many if choice is None else choice


def training_metrics(history: History, epoch: int) -> dict[str, float]:
    """What was logged of the training images in the best epoch."""
    row = next((row for row in history.rows if row["epoch"] == epoch), {})
    return {name: value for name, value in row.items() if name.startswith(("train/", "train_eval/"))}


def reevaluate(run: Run, lit: LitVAE, data: ImageDataModule, which: str) -> None:
    """The evaluation of a run that is there, under `run.settings`; what training measured of itself is kept."""
    if run.metrics is None:
        raise InputError(
            f"{run.directory}: is not finished (no metrics.json); its command continues it, and may "
            "change the keys of evaluation"
        )
    with run.lock():
        checkpoint = checkpoints.load(run.checkpoint(which))
        history = history_of(run)
        metrics, generated = evaluate(lit, data, run.settings, checkpoint["global_step"])
        epoch = run.metrics["best_epoch"] if which == "best" else history.rows[-1]["epoch"]
        kept = {name: value for name, value in run.metrics.items() if name in TRAINING}
        kept |= training_metrics(history, int(epoch))
        drawn = draw(run, lit, data, history, generated, which)
        log.info("%d figures drawn", len(drawn))
        origin = origin_of(run, data, lit, checkpoint) | {"checkpoint": which}
        print_results(run, write_metrics(run, metrics | kept, origin, which))


def origin_of(run: Run, data: ImageDataModule, lit: LitVAE, checkpoint: dict[str, Any]) -> dict[str, Any]:
    return provenance(run.settings, data, lit.device, commits_of(checkpoint["callbacks"].get("History", {})))


def history_of(run: Run) -> History:
    """The history of the epochs, as last.ckpt keeps it."""
    history = History()
    history.load_state_dict(checkpoints.read_history(run.checkpoint("last")))
    return history


@freed_memory_kept()
def evaluate(
    lit: LitVAE, data: ImageDataModule, settings: Settings, step: int
) -> tuple[dict[str, float], Generated | None]:
    """All metrics of a model in eval mode, by name, and the samples that some were taken from."""
    vae, e, seed = lit.vae, settings.evaluation, settings.seed
    metrics: dict[str, float] = {}
    batch = max(1, min(1000, estimates.ROWS // getattr(lit.objective, "samples", 1)))
    for split in ("dev", "test"):
        images = getattr(data, split)
        metrics |= estimates.objective_metrics(
            vae, lit.objective, images, split, seed, step, batch, data.eval_batch_size
        )
    metrics |= estimates.likelihood_metrics(vae, data.test, e.samples, seed, "test")
    metrics |= annealed_metrics(vae, data.test.images, e.annealing, e.annealed, seed, e.samples)
    labeled = data.classes > 1
    if not labeled and (e.probes or e.features):
        log.info("fewer than two classes of labels: no probes of the latents, no classifier's scores of samples")
    if vae.classes and e.probes:
        log.info("a conditional model's encoder is given the class: no probes of the latents")
    metrics |= estimates.latent_metrics(
        vae, data.train_fixed, data.test, "test", e.probes and labeled and not vae.classes
    )
    if e.probes:
        metrics |= estimates.factor_metrics(vae, data.train_fixed, data.test, "test")
    if not (e.features and labeled):
        return metrics, None
    more, generated = estimates.sample_metrics(vae, data, Path(e.cache_dir), e.generated, seed)
    return metrics | more, generated


def write_metrics(run: Run, metrics: dict[str, float], origin: dict[str, Any], which: str = "best") -> dict[str, Any]:
    """metrics.json: name -> number, and beside them where they come from; of the last epoch, metrics_last.json."""
    whole = {**metrics, "provenance": origin}
    name = "metrics.json" if which == "best" else f"metrics_{which}.json"
    write(run.directory / name, json.dumps(whole, indent=2) + "\n")
    return whole


def draw(
    run: Run, lit: LitVAE, data: ImageDataModule, history: History, generated: Generated | None, which: str = "best"
) -> dict[str, Figure]:
    """The report's figures and ours, as files in the run's `figures/`; by name."""
    settings = run.settings
    subject = Subject(
        lit.vae,
        data,
        history.curve,
        caption(settings.plain, data.image_shape[0]),
        settings.seed,
        f"{which} checkpoint",
        generated,
    )
    drawn = {name: draw_figure(name, subject) for name in names_of(subject)}
    folder = run.directory / ("figures" if which == "best" else f"figures_{which}")
    for name, figure in drawn.items():
        for suffix in settings.evaluation.formats:
            figures.write_figure(figure, folder / f"{name}.{suffix}", settings.evaluation.dpi)
    return drawn


def tensorboard(
    writer: SummaryWriter,
    run: Run,
    lit: LitVAE,
    data: ImageDataModule,
    metrics: dict[str, float],
    drawn: dict[str, Figure],
) -> None:
    for name, figure in drawn.items():
        writer.add_figure(f"figures/{name}", figure, int(metrics["steps"]), close=False)
    if draws_figures(run):
        embed(writer, lit, data, int(metrics["steps"]))
    results = as_markdown(metrics, run.settings.plain["likelihood"]["_target_"])
    writer.add_text("results", results, int(metrics["steps"]))
    sheet_of(run).end(writer, metrics)
    writer.flush()


def embed(writer: SummaryWriter, lit: LitVAE, data: ImageDataModule, step: int) -> None:
    """Posterior means of dev images, with their pictures, for the projector."""
    count = min(1000, len(data.dev))
    images = as_floats(data.dev.images[:count])
    high, wide = images.shape[2:]
    images = F.pad(images, (0, max(high - wide, 0), 0, max(wide - high, 0)))  # a sprite's images are square
    means = posteriors(lit.vae, data.dev.take(slice(count))).mu
    labels = data.dev.labels[:count].tolist() if data.classes else None
    writer.add_embedding(means, labels, images, step, "posterior_means")


def evaluate_and_write(run: Run, lit: LitVAE, data: ImageDataModule, trainer: Trainer, history: History) -> float:
    """Evaluates, draws and writes down the best checkpoint; returns the best epoch's monitored metric."""
    if not trainer.is_global_zero:
        return 0.0
    trim_memory()
    result = finish(run, lit, data, history, trainer)
    trim_memory()
    return result
