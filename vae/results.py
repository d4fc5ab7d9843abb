"""The end of a run: the best checkpoint is evaluated, drawn and written down; metrics.json is the last file."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from vae import checkpoints, evaluation, figures, metrics
from vae.callbacks import History, prior_figure, reconstruction_figure, shown_images, writer_of
from vae.data import ImageDataModule, as_floats
from vae.errors import InputError
from vae.evaluation import Generated, Posteriors, posteriors
from vae.lit import LitVAE
from vae.runs import Run, anchors, caption, load_weights, monitored, provenance, write
from vae.settings import leaves

log = logging.getLogger(__name__)

# What only training can say; an evaluation on demand leaves it as it was.
TRAINING = ("epochs", "best_epoch", "steps", "seconds", "images_per_second", "parameters", "stopped_early")
COLLAPSED = "collapsed: no latent is active (its posterior mean does not move with x); try objective/beta=linear"


def finish(run: Run, lit: LitVAE, data: ImageDataModule, history: History, trainer: Trainer) -> float:
    """Everything after training; returns the best epoch's monitored metric, for sweepers that optimise."""
    s = run.settings
    checkpoint = load_weights(lit, run.checkpoint("best"))
    lit.to(trainer.strategy.root_device).eval()  # the trainer has taken it off the device when it left
    found, generated = evaluate(lit, data, s, checkpoint["global_step"])
    found |= training_figures(history, checkpoint["epoch"])
    found |= {
        "epochs": len(history.rows),
        "best_epoch": checkpoint["epoch"],
        "steps": trainer.global_step,
        "seconds": history.seconds,
        "images_per_second": history.images / history.seconds,
        "parameters": sum(p.numel() for p in lit.vae.parameters()),
        "stopped_early": int(trainer.current_epoch < s["trainer"]["max_epochs"]),
    }
    drawn = draw(run, lit, data, history, generated)
    writer = writer_of(trainer)
    if writer is not None:
        tensorboard(writer, run, lit, data, found, drawn)
    write_metrics(run, found, provenance(s, data, lit.device))
    return show(run)


def training_figures(history: History, epoch: int) -> dict[str, float]:
    """What was logged of the training images in the best epoch."""
    row = next((row for row in history.rows if row["epoch"] == epoch), {})
    return {name: value for name, value in row.items() if name.startswith(("train/", "train_eval/"))}


def again(run: Run, lit: LitVAE, data: ImageDataModule, which: str) -> None:
    """The evaluation of a run that is there, under `run.settings`; what training measured of itself is kept."""
    if run.metrics is None:
        raise InputError(f"{run.directory}: is not finished (no metrics.json); its command continues it")
    with run.locked():
        checkpoint = checkpoints.load(run.checkpoint(which))
        history = History()
        history.load_state_dict(checkpoint_state(run))
        found, generated = evaluate(lit, data, run.settings, checkpoint["global_step"])
        epoch = run.metrics["best_epoch"] if which == "best" else history.rows[-1]["epoch"]
        kept = {name: value for name, value in run.metrics.items() if name in TRAINING}
        kept |= training_figures(history, int(epoch))
        drawn = draw(run, lit, data, history, generated, which)
        log.info("%d figures drawn", len(drawn))
        origin = provenance(run.settings, data, lit.device) | {"checkpoint": which}
        show(run, write_metrics(run, found | kept, origin, which))


def checkpoint_state(run: Run) -> dict[str, Any]:
    """The history of the epochs, as last.ckpt keeps it."""
    return checkpoints.load(run.checkpoint("last"))["callbacks"]["History"]


def evaluate(
    lit: LitVAE, data: ImageDataModule, s: dict[str, Any], step: int
) -> tuple[dict[str, float], Generated | None]:
    """All figures of a model in eval mode, by name, and the samples that some were taken from."""
    vae, e, seed = lit.vae, s["evaluation"], s["seed"]
    found: dict[str, float] = {}
    batch = max(1, min(1000, evaluation.ROWS // s["objective"]["samples"]))
    for split in ("dev", "test"):
        images = getattr(data, split).images
        found |= evaluation.objective_figures(vae, lit.objective, images, split, seed, step, batch)
    found |= evaluation.nats_figures(vae, data.test.images, e["samples"], seed, "test")
    found |= evaluation.latent_figures(vae, data.train_once, data.test, "test", e["probes"])
    if not e["features"]:
        return found, None
    more, generated = evaluation.sample_figures(vae, data, e, seed)
    return found | more, generated


def write_metrics(run: Run, found: dict[str, float], origin: dict[str, Any], which: str = "best") -> dict[str, Any]:
    """metrics.json: name -> number, and beside them where they come from; of the last epoch, metrics_last.json."""
    whole = {**found, "provenance": origin}
    name = "metrics.json" if which == "best" else f"metrics_{which}.json"
    write(run.directory / name, json.dumps(whole, indent=2) + "\n")
    return whole


# --- pictures ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def draw(
    run: Run, lit: LitVAE, data: ImageDataModule, history: History, generated: Generated | None, which: str = "best"
) -> dict[str, Figure]:
    """The report's figures and ours, as PNG files in the run's `figures/`; by name."""
    what = caption(run.settings)
    x, _ = shown_images(data)
    drawn = common_figures(run, lit, data, history, which)
    if lit.vae.likelihood.normalised:  # else there are no nats to draw
        drawn["rate_distortion"] = rate_distortion(history, what)
    drawn |= sigma_figures(lit.vae, x, history, what)
    drawn |= generated_figures(data, generated, what)
    folder = run.directory / ("figures" if which == "best" else f"figures_{which}")
    for name, figure in drawn.items():
        figures.to_png(figure, folder / f"{name}.png")
    return drawn


def common_figures(run: Run, lit: LitVAE, data: ImageDataModule, history: History, which: str) -> dict[str, Figure]:
    """What every model has: the report's figures 4 to 8, and what its latents hold."""
    s, vae = run.settings, lit.vae
    what = caption(s)
    x, _ = shown_images(data)
    dev = posteriors(vae, data.dev.images)
    curves = {name: history.curve(f"{name}/loss") for name in ("train", "dev", "train_eval")}
    return {
        "reconstructions": reconstruction_figure(vae, x, f"{what}; dev; {which} checkpoint"),
        "losses": figures.losses(
            curves, f"{what}; the objective, summed over pixels, a mean over images", anchors(s, data)
        ),
        "latents": figures.latents(
            dev.mu[:5000], data.dev.labels[:5000], f"{what}; dev; posterior means of {min(5000, len(dev.mu))} images"
        ),
        "samples": prior_figure(vae, s["seed"], what),
        "kl_per_latent": figures.kl_per_latent(
            dev.kl.mean(0),
            f"{what}; dev; a unit is active where its posterior mean varies by more than 0.01",
            metrics.active_units(dev.mu),
        ),
        "latent_space": latent_space(vae, dev, what),
    }


def rate_distortion(history: History, what: str) -> Figure:
    rate, distortion = history.curve("dev/kl"), history.curve("dev/reconstruction")
    epochs = [e for e, _ in rate]
    return figures.rate_distortion(
        [v for _, v in rate], [v for _, v in distortion], epochs, f"{what}; dev; one point an epoch"
    )


def latent_space(vae: Any, dev: Posteriors, what: str) -> Figure:
    """Two latents: the plane, at the prior's quantiles; else one row for each of the latents that are used most."""
    at = torch.linspace(0.02, 0.98, 15 if vae.latent_dim == 2 else 11)
    steps = torch.distributions.Normal(0.0, 1.0).icdf(at)
    if vae.latent_dim == 2:
        z = torch.cartesian_prod(steps.flip(0), steps).flip(1)  # z_1 to the right, z_2 upwards
        return figures.grid(
            vae.sample(z.to(vae.prior_loc)).cpu(),
            len(at),
            f"{what}; means of p(x|z) on the plane of z, at the prior's quantiles",
        )
    order = dev.kl.mean(0).argsort(descending=True)[:8]
    z = torch.zeros(len(order), len(at), vae.latent_dim)
    for row, latent in enumerate(order.tolist()):
        z[row, :, latent] = steps
    names = [f"z{latent}" for latent in order.tolist()]
    text = (
        f"{what}; means of p(x|z); each row moves one latent through the prior's quantiles 2 % to 98 %, the others at 0"
    )
    return figures.grid(vae.sample(z.flatten(0, 1).to(vae.prior_loc)).cpu(), len(at), text, names)


def sigma_figures(vae: Any, x: torch.Tensor, history: History, what: str) -> dict[str, Figure]:
    if not vae.likelihood.has_sigma:
        return {}
    p = vae.decode(vae.encode(x.to(vae.prior_loc)).mean.unsqueeze(0))
    sigma = p.stddev.mean((0, 1)).cpu()
    drawn = {
        "sigma_history": figures.sigma_history(
            history.curve("dev/sigma"), f"{what}; dev; the ten images of the reconstructions, z: posterior mean"
        ),
    }
    if vae.likelihood.params_per_pixel > 1:  # else one sigma for all pixels
        text = f"{what}; dev; the decoder's standard deviation, mean over the images of the reconstructions"
        drawn["sigma_image"] = figures.sigma_image(sigma, text)
    if vae.likelihood.normalised:
        residual = ((x.to(p.mean) - p.mean[0]) / p.stddev[0]).cpu()
        drawn["residuals"] = figures.residuals(residual, f"{what}; dev; (x - mean) / sigma, z: posterior mean")
    return drawn


def generated_figures(data: ImageDataModule, generated: Generated | None, what: str) -> dict[str, Figure]:
    if generated is None:
        return {}
    shown, train = generated.images[:10], data.train_once.images
    rows, distances = metrics.nearest(shown, train)
    mode = evaluation.sample_mode(data)
    return {
        "neighbours": figures.neighbours(
            shown,
            as_floats(train[rows]),
            distances,
            f"{what}; samples from the prior, x: {mode}; Euclidean distance in pixels",
        ),
        "class_histogram": figures.class_histogram(
            generated.counts,
            f"{what}; {len(generated.images)} samples from the prior, x: {mode}, as {generated.classifier} sees them",
        ),
    }


# --- TensorBoard and the closing table --------------------------------------------------------------------------------


def tensorboard(
    writer: SummaryWriter,
    run: Run,
    lit: LitVAE,
    data: ImageDataModule,
    found: dict[str, float],
    drawn: dict[str, Figure],
) -> None:
    for name, figure in drawn.items():
        writer.add_figure(f"final/{name}", figure, int(found["steps"]), close=False)
    count = min(1000, len(data.dev))
    images = as_floats(data.dev.images[:count])
    means = posteriors(lit.vae, data.dev.images[:count]).mu
    writer.add_embedding(means, data.dev.labels[:count].tolist(), images, int(found["steps"]), "posterior_means")
    flat = {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in leaves(run.settings)}
    flat.pop("run_dir")
    hparams(writer, flat, found)
    writer.flush()


def hparams(writer: SummaryWriter, flat: dict[str, Any], found: dict[str, float]) -> None:
    """Into the run's own event file; SummaryWriter.add_hparams would open a second folder."""
    from torch.utils.tensorboard.summary import hparams as summaries

    final = {
        f"final/{name}": value for name, value in found.items() if "/kl_per_latent/" not in name
    }  # apart from the curves of the same names
    for summary in summaries(flat, final):
        writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]  # None only after close
    for name, value in final.items():
        writer.add_scalar(name, value, int(found["steps"]))


def show(run: Run, found: dict[str, Any] | None = None) -> float:
    """Prints the closing table of a finished run, or these figures; returns the best epoch's monitored metric."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    found = run.metrics if found is None else found
    assert found is not None
    normalised = "test/elbo" in found or "dev/elbo" in found
    last = of_the_last(found)
    table = Table(
        box=box.SIMPLE,
        show_header=False,
        title=f"{caption(run.settings)}: epoch {found['best_epoch']} is the best of 0 to {found['epochs'] - 1}"
        + (", these are the last one's figures" if last else ""),
    )
    for name, value in found.items():
        if name == "provenance" or name.endswith("_error") or "/kl_per_latent/" in name:
            continue
        error = found.get(f"{name}_error")
        table.add_row(name, f"{value:.6g}" + ("" if error is None else f" +- {error:.2g}"), units(name, normalised))
    console = Console(width=100)
    console.print(table)
    for line in closing_lines(run, found):
        console.print(line, highlight=False, soft_wrap=True)
    return float(found[monitored(run.settings)[0]])


def of_the_last(found: dict[str, Any]) -> bool:
    """Whether `vae evaluate --checkpoint last` made these figures."""
    return found.get("provenance", {}).get("checkpoint") == "last"


def units(name: str, normalised: bool) -> str:
    last = name.rpartition("/")[2]
    if last in ("elbo", "nll", "rate", "distortion", "kl"):
        return "nats per image"
    if last in ("loss", "bound") and not normalised:
        return "squared error and nats of KL, per image"
    if last in ("loss", "reconstruction", "bound"):
        return "nats per image" if normalised else "squared error per image"
    return {"bits_per_dimension": "bits per pixel", "seconds": "of training and validation"}.get(last, "")


def closing_lines(run: Run, found: dict[str, Any]) -> list[str]:
    active, latents = found["test/active_units"], run.settings["latent_dim"]
    last = of_the_last(found)
    state = COLLAPSED if not active else f"{active} of {latents} latents are active"
    lines = [state]
    if "SquaredError" in run.settings["likelihood"]["_target_"]:
        lines.append("squared error is not normalised: the loss is no NLL and compares with no other likelihood's nats")
    root = run.directory if run.directory.is_absolute() else Path(run.directory.parts[0])
    return [
        *lines,
        f"run:      {run.directory}",
        f"pictures: {run.directory / ('figures_last' if last else 'figures')}",
        f"curves:   tensorboard --logdir {root}",
    ]
