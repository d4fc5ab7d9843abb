"""This machine's memory: whether a model fits into it, before it is built; what becomes of memory that is freed."""

import ctypes
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

from vae.errors import InputError

COPIES = 4  # each weight, its gradient, and Adam's two moments
MIB = 2**20
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # the numbers of mallopt's options


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


def trim_memory() -> None:
    """Freed memory goes back to the system: glibc keeps it, and the evaluation's would come on top of training's."""
    gc.collect()
    call_glibc("malloc_trim", 0)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Large tensors reuse each other's pages, which glibc would give back and ask for again at every layer.

    Doing so takes more than a quarter of a convolutional decoder's time. Afterwards the thresholds are the highest to
    which glibc raises them by itself. Before 2.35 it refuses higher ones, and nothing is gained.
    """
    call_glibc("mallopt", M_MMAP_THRESHOLD, 1024 * MIB)
    call_glibc("mallopt", M_TRIM_THRESHOLD, 1024 * MIB)
    try:
        yield
    finally:
        call_glibc("mallopt", M_MMAP_THRESHOLD, 32 * MIB)
        call_glibc("mallopt", M_TRIM_THRESHOLD, 64 * MIB)


def call_glibc(name: str, *arguments: int) -> None:
    with suppress(AttributeError, OSError, TypeError):  # other systems' libraries have no such call, and no such need
        getattr(ctypes.CDLL(None), name)(*arguments)
