"""The closing table of a run."""

from pathlib import Path
from typing import Any

from vae.run.directory import Run
from vae.run.settings import caption, monitored

COLLAPSED = "collapsed: no latent is active (its posterior mean does not move with x); try objective/beta=linear"


def print_results(run: Run, found: dict[str, Any] | None = None) -> float:
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
        title=f"{caption(run.settings.plain)}: epoch {found['best_epoch']} is the best of {found['epochs']}"
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
    return float(found[monitored(run.settings, normalised)[0]])


def of_the_last(found: dict[str, Any]) -> bool:
    """Whether `vae evaluate --checkpoint last` made these figures."""
    return found.get("provenance", {}).get("checkpoint") == "last"


def units(name: str, normalised: bool) -> str:
    last = name.rpartition("/")[2]
    if last in ("elbo", "nll", "rate", "distortion", "kl"):
        return "nats per image"
    if last in ("loss", "unweighted_loss") and not normalised:
        return "squared error and nats of KL, per image"
    if last in ("loss", "reconstruction", "neg_elbo"):
        return "nats per image" if normalised else "squared error per image"
    return {"bits_per_dimension": "bits per pixel", "seconds": "of training and validation"}.get(last, "")


def closing_lines(run: Run, found: dict[str, Any]) -> list[str]:
    active, latents = found["test/active_units"], run.settings.latent_dim
    last = of_the_last(found)
    state = COLLAPSED if not active else f"{active} of {latents} latents are active"
    lines = [state]
    if "SquaredError" in run.settings.plain["likelihood"]["_target_"]:
        lines.append("squared error is not normalised: the loss is no NLL and compares with no other likelihood's nats")
    root = run.directory if run.directory.is_absolute() else Path(run.directory.parts[0])
    return [
        *lines,
        f"run:      {run.directory}",
        f"pictures: {run.directory / ('figures_last' if last else 'figures')}",
        f"curves:   tensorboard --logdir {root}",
    ]
