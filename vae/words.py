"""Numbers and losses as one says them."""

import math
from collections.abc import Mapping
from typing import Any

# What the reconstruction of a likelihood without nats is, by its `_target_`.
ERRORS = {
    "vae.likelihoods.SquaredErrorHead": "squared error",
    "vae.likelihoods.CrossEntropyHead": "cross-entropy",
}


def error_of(target: str) -> str:
    return ERRORS.get(target, "reconstruction")


def digits(error: float) -> int:
    """Decimals that a number with this error deserves: the error shows two figures, or whole ones from 10 on."""
    return max(0, 1 - math.floor(math.log10(error)))


def duration(seconds: float) -> str:
    """40 s, 4 min, 2.5 h."""
    if seconds < 99:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99 * 60 else f"{seconds / 3600:.1f} h"


def short_commits(provenance: Mapping[str, Any]) -> list[str]:
    """Of the code that trained a model and that evaluated it, in short; older versions name the second alone."""
    named = [provenance.get("git_commit"), *provenance.get("training_commits", [])]
    return sorted({short_commit(commit) for commit in named if commit})


def short_commit(commit: str | None) -> str:
    """Eight digits, with the mark of a tree that differed from them; empty outside a checkout."""
    digest, mark, _ = (commit or "").partition("+changes")
    return digest[:8] + mark
