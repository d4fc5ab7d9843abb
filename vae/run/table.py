"""The closing table of a run, and what to know before its numbers."""

import math
from pathlib import Path
from typing import Any

from vae.run.directory import Run
from vae.run.keys import Plain
from vae.run.settings import caption, monitored
from vae.tables import terminal_width, text_table, wrapped
from vae.words import HALF_INTERVAL, error_of, plus_minus, printable

UNWEIGHTED = ("neg_elbo", "unweighted_loss")
LOSSES = ("loss", "reconstruction", *UNWEIGHTED)
COLLAPSED = "collapsed: no latent is active (no posterior mean moves with x); try objective/beta=linear or dropout=0"
PLUS_MINUS = "± is half of the 95 % interval over images"


def show_result(run: Run) -> float:
    """The best epoch's monitored metric, under the closing table; a sweep has one table of its own, at its end."""
    metrics = run.metrics
    assert metrics is not None
    if not run.one_of_many:
        print_results(run)
    return float(metrics[monitored(run.settings.plain, "dev/elbo" in metrics)[0]])


def print_results(run: Run, metrics: dict[str, Any] | None = None, everything: bool = False) -> None:
    """Prints the closing table of a finished run, or of these metrics."""
    metrics = run.metrics if metrics is None else metrics
    assert metrics is not None
    monitor = monitored(run.settings.plain, "dev/elbo" in metrics)[0]
    rows = table_rows(metrics, run.settings.plain["likelihood"]["_target_"])
    columns = dict(zip(("metric", "dev", "test", "unit"), map(list, zip(*rows, strict=True)), strict=True))
    table = text_table(columns, drop=("unit",), width=min(terminal_width(), 100))
    print(f"{wrapped(headline(run, metrics, monitor))}\n\n{table}\n{PLUS_MINUS}\n")
    if everything:
        for name in metrics:
            if name != "provenance":
                print(f"{printable(name):<40} {written(metrics, name)}")
    for line in closing_lines(run, metrics):
        print(wrapped(line) if line.startswith("note") else printable(line))


def as_markdown(metrics: dict[str, Any], likelihood: str) -> str:
    """The closing table for TensorBoard's Text tab."""
    rows = [("metric", "dev", "test", "unit"), ("---",) * 4, *table_rows(metrics, likelihood)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def headline(run: Run, metrics: dict[str, Any], monitor: str) -> str:
    """The metric that the best epoch was chosen by, and the NLL where there is one."""
    best = f"{monitor} {written(metrics, monitor)} in epoch {metrics['best_epoch']} of {metrics['epochs']}"
    nll = f", test NLL {written(metrics, 'test/nll')}" if "test/nll" in metrics else ""
    last = "; these are the last epoch's metrics" if is_of_the_last(metrics) else ""
    return f"{caption(run.settings.plain)}: {best}{nll}{last}"


def table_rows(metrics: dict[str, Any], likelihood: str) -> list[tuple[str, str, str, str]]:
    """The metrics of the splits: name, of dev, of test, unit. `likelihood` is the settings' `_target_`.

    One that repeats another with beta 1 and no free bits is left out.
    """
    names = [name.partition("/")[2] for name in metrics if name.startswith(("dev/", "test/"))]
    repeated = {"beta", "nll_samples", "elbo" if "test/nll" not in metrics else ""}
    if metrics.get("dev/beta") == 1 and all(
        # the loss of an image is a float32, the other sum is taken in float64
        math.isclose(metrics.get(f"dev/{name}", metrics["dev/loss"]), metrics["dev/loss"], rel_tol=1e-6)
        for name in UNWEIGHTED
    ):
        repeated |= set(UNWEIGHTED)
    left_out = ("kl_per_latent/", "train_eval")
    return [
        (n, written(metrics, f"dev/{n}"), written(metrics, f"test/{n}"), units(n, metrics, likelihood))
        for n in dict.fromkeys(names)
        if n not in repeated and not n.endswith("_error") and not n.startswith(left_out)
    ]


def written(metrics: dict[str, Any], name: str) -> str:
    """A metric with half of its 95 % interval over images, where it has a standard error; "" where it is not there."""
    value = metrics.get(name)
    return "" if value is None else plus_minus(value, HALF_INTERVAL * metrics.get(f"{name}_error", 0.0))


def is_of_the_last(metrics: dict[str, Any]) -> bool:
    """Whether `vae evaluate --checkpoint last` made these metrics."""
    return metrics.get("provenance", {}).get("checkpoint") == "last"


def units(name: str, metrics: dict[str, Any], likelihood: str) -> str:
    normalised = "dev/elbo" in metrics
    if name in ("elbo", "neg_elbo", "nll", "rate", "distortion", "kl") or (normalised and name in LOSSES):
        return "nats per image"
    if name in LOSSES:
        error = error_of(likelihood)
        return f"{error} per image" if name == "reconstruction" else f"{error} + nats"
    return {"bits_per_dimension": "bits per pixel"}.get(name, "")


def closing_lines(run: Run, metrics: dict[str, Any]) -> list[str]:
    active = metrics["test/active_units"]
    lines = [f"{active} of {run.settings.latent_dim} latents are active"] if active else []
    if "test/kl_per_latent/00" not in metrics:
        lines.append("no KL per latent: the prior or the posterior ties the latents together")
    if "dev/unweighted_loss" in metrics:
        lines.append("the likelihood is not normalised: its loss cannot be compared with another likelihood's nats")
    lines += [f"note: {warning}" for warning in warnings(metrics, run.settings.plain)]
    root = run.directory if run.directory.is_absolute() else Path(run.directory.parts[0])
    curves = any(run.directory.glob("events.out.tfevents.*"))
    folder = run.directory / ("figures_last" if is_of_the_last(metrics) else "figures")
    pictures = folder if folder.is_dir() else f"vae evaluate {run.directory} draws them"
    lines += [f"run:      {run.directory}", f"pictures: {pictures}"]
    return [*lines, f"curves:   tensorboard --logdir {root}"] if curves else lines


FEW_STEPS, LITTLE_KL, LITTLE_ENTROPY, LOW_ESS, OVERFITTED = 1000, 0.1, 0.7, 10, 0.1


def warnings(metrics: dict[str, Any], plain: Plain) -> list[str]:
    """What to know before the numbers, each with the key to change."""
    active, latents, epochs = metrics.get("test/active_units"), plain["latent_dim"], metrics["epochs"]
    kl, steps, ess = (metrics.get(name, math.inf) for name in ("dev/kl", "steps", "test/nll_ess"))
    train, dev = (metrics.get(name, math.nan) for name in ("train_eval/loss", "dev/loss"))
    noise = 2 * HALF_INTERVAL * metrics.get("dev/loss_error", 0.0)
    entropy = next((metrics[name] for name in metrics if name.startswith("samples/class_entropy")), math.inf)
    lines = {
        COLLAPSED: active == 0,
        f"only {active} of {latents} latents are active; try dropout=0 or objective/beta=linear": (
            active and active < latents / 2
        ),
        f"dev KL {kl:.2g} nats: the latents say next to nothing about an image; try objective/beta=linear": (
            active and kl < LITTLE_KL
        ),
        f"only {steps} optimiser steps in all; raise trainer.max_epochs or lower data.batch_size": steps < FEW_STEPS,
        f"the best epoch is the last one; trainer.max_epochs={2 * epochs} trains on": (
            metrics["best_epoch"] == epochs and not metrics["stopped_early"]
        ),
        "dev loss is far above the training loss (dropout off): overfitting; try dropout=0.3, a smaller network or "
        "callbacks.early_stopping=10": dev - train > max(OVERFITTED * abs(dev), noise),
        f"samples are nearly all of one class (entropy {entropy:.2g} nats); train longer, or try prior=flow": (
            entropy < LITTLE_ENTROPY
        ),
        f"too few samples for the NLL (median effective number {ess:.2g} of {metrics.get('test/nll_samples')}), "
        "so it is too high; vae evaluate RUN samples=5000": ess < LOW_ESS,
    }
    return [line for line, met in lines.items() if met]
