"""The closing table of a run."""

import math
from pathlib import Path
from typing import Any

from vae.run.directory import Run
from vae.run.process import in_a_sweep
from vae.run.settings import caption, monitored
from vae.words import digits, error_of

UNWEIGHTED = ("neg_elbo", "unweighted_loss")
LOSSES = ("loss", "reconstruction", *UNWEIGHTED)
COLLAPSED = "collapsed: no latent is active (its posterior mean does not move with x); try objective/beta=linear"


def show_result(run: Run) -> float:
    """The best epoch's monitored metric, under the closing table; a sweep has one table of its own, at its end."""
    metrics = run.metrics
    assert metrics is not None
    if not in_a_sweep():
        print_results(run)
    return float(metrics[monitored(run.settings, "dev/elbo" in metrics)[0]])


def print_results(run: Run, metrics: dict[str, Any] | None = None, everything: bool = False) -> None:
    """Prints the closing table of a finished run, or of these metrics."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    metrics = run.metrics if metrics is None else metrics
    assert metrics is not None
    monitor = monitored(run.settings, "dev/elbo" in metrics)[0]
    table = Table("", "dev", "test", "", box=box.SIMPLE)
    for row in table_rows(metrics, run.settings.plain["likelihood"]["_target_"]):
        table.add_row(*row)
    console = Console(width=100)
    console.print(headline(run, metrics, monitor), style="bold", highlight=False, soft_wrap=True)
    console.print(table)
    if everything:
        for name in metrics:
            if name != "provenance":
                console.print(f"{name:<40} {written(metrics, name)}", highlight=False)
    for line in closing_lines(run, metrics):
        console.print(line, highlight=False, soft_wrap=True)


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
    """A number with the digits that its standard error leaves it."""
    value, error = metrics.get(name), metrics.get(f"{name}_error")
    if value is None:
        return ""
    if not error or not math.isfinite(error):
        return f"{value + 0.0:.6g}" if isinstance(value, float) else str(value)
    places = digits(error)
    return f"{round(value, places) + 0.0:.{places}f} +- {error:.{places}f}"


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
    active, latents = metrics["test/active_units"], run.settings.latent_dim
    last = is_of_the_last(metrics)
    state = COLLAPSED if not active else f"{active} of {latents} latents are active"
    lines = [state]
    if "test/kl_per_latent/00" not in metrics:
        lines.append("no KL per latent: the prior or the posterior ties the latents together")
    if "dev/unweighted_loss" in metrics:
        lines.append("the likelihood is not normalised: this loss compares with no other likelihood's nats")
    root = run.directory if run.directory.is_absolute() else Path(run.directory.parts[0])
    if any(run.directory.glob("events.out.tfevents.*")):
        curves = [f"curves:   tensorboard --logdir {root}"]
    else:
        curves = []
    folder = run.directory / ("figures_last" if last else "figures")
    pictures = folder if folder.is_dir() else f"vae evaluate {run.directory} draws them"
    return [*lines, f"run:      {run.directory}", f"pictures: {pictures}", *curves]
