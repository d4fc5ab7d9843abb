"""Numbers, names and losses as a person reads them."""

import math
import re
from collections.abc import Mapping
from typing import Any

# What the reconstruction of a likelihood without nats is, by its `_target_`.
ERRORS = {
    "vae.likelihoods.SquaredErrorHead": "squared error",
    "vae.likelihoods.CrossEntropyHead": "cross-entropy",
}


def error_of(target: str) -> str:
    return ERRORS.get(target, "reconstruction")


HALF_INTERVAL = 1.96  # standard errors of a mean over images that make half of a 95 % interval


def digits(error: float) -> int:
    """Decimals that a number with this error deserves: the error shows two figures, or whole ones from 10 on."""
    return max(0, 1 - math.floor(math.log10(error)))


def plus_minus(value: float, half: float | None) -> str:
    """`34.70 ± 0.57`, with as many decimals as `half`, half of the 95 % interval, allows.

    Everywhere in the project `±` has this one meaning. Without an interval the value has four figures.
    """
    if not half or not 0 < half < math.inf:
        return number(value)
    places = digits(half)
    return f"{round(value, places) + 0.0:.{places}f} ± {half:.{places}f}".replace("-", "−")


def number(value: float, sign: str = "") -> str:
    """Four figures, or all that stand before the point; a whole number in full."""
    whole = math.isfinite(value) and value == int(value)
    form = ".0f" if whole or 1e4 <= abs(value) < 1e9 else "#.4g"
    return f"{value + 0:{sign}{form}}".replace("-", "−")


FORMULA = re.compile(r"[=+\-@\t\r]")  # what a spreadsheet takes for the beginning of one


def defused(cell: Any) -> Any:
    """A cell of a CSV file; a text that a spreadsheet would compute, such as `=cmd`, stands behind an apostrophe."""
    if not isinstance(cell, str) or not FORMULA.match(cell):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def printable(text: str) -> str:
    """The text with what moves a terminal's cursor, or cannot be shown, spelled out: `\\x1b` for an escape."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def duration(seconds: float) -> str:
    """40 s, 4 min, 2.5 h."""
    if seconds < 99:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99 * 60 else f"{seconds / 3600:.1f} h"


def short_commits(provenance: Mapping[str, Any]) -> list[str]:
    """Of the code that trained a model and that evaluated it, in short; older versions name the second alone."""
    trained = provenance.get("training_commits")
    named = [provenance.get("git_commit"), *(trained if isinstance(trained, list) else ())]
    return sorted({short_commit(str(commit)) for commit in named if commit})


def short_commit(commit: str | None) -> str:
    """Eight digits, with the mark of a tree that differed from them; empty outside a checkout."""
    digest, mark, _ = (commit or "").partition("+changes")
    return digest[:8] + mark
