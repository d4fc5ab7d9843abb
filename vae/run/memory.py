"""Whether a model fits into this machine's memory, before it is built."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vae.errors import InputError

COPIES = 4  # each weight, its gradient, and Adam's two moments


def require_memory(build: Callable[[], nn.Module], keys: dict[str, Any]) -> None:
    """Raises InputError, naming `keys`, if training needs more memory than the machine has.

    Builds the model once on torch's meta device, which holds shapes alone. A person's own part that cannot be built
    there is not estimated.
    """
    try:
        with torch.device("meta"):
            sizes = {name: p.numel() * p.element_size() for name, p in build().named_parameters()}
    except Exception:  # an own part may do anything that needs values; the real build says what is wrong
        return
    total, machine = sum(sizes.values()), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if COPIES * total > machine:
        largest = max(sizes, key=sizes.__getitem__)
        given = ", ".join(f"{key}={value}".replace(" ", "") for key, value in keys.items())
        raise InputError(
            f"{given}: the parameters take {total / 1e9:,.0f} GB ({largest} alone {sizes[largest] / 1e9:,.0f}), "
            f"training takes {COPIES} times as much, and this machine has {machine / 1e9:,.0f} GB; lower these keys"
        )
