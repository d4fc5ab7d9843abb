"""How a process computes on the CPU: denormal numbers are flushed to zero, in each of its threads."""

import ctypes
from contextlib import suppress

import torch

OMP_PAUSE_HARD = 2  # of OpenMP 5.0: the threads end, and the next parallel region starts new ones


def flush_denormals() -> bool:
    """Makes this thread, and each thread that it starts, compute 0 for results below 1e-38; False if the CPU cannot.

    Processors handle denormal numbers in microcode. Weight decay shrinks the weights that no gradient holds until they
    are denormal, Adam's moments follow, and an epoch of the report's MLP then takes five times as long.

    A thread inherits the flag from the one that starts it. OpenMP's threads may be running already, in a notebook for
    instance; these end here.
    """
    if not torch.set_flush_denormal(True):
        return False
    with suppress(AttributeError, OSError, TypeError):  # other libraries pass the flag on by themselves
        ctypes.CDLL(None).omp_pause_resource_all(OMP_PAUSE_HARD)
    return True


def keeps_denormals() -> bool:
    """Whether any of torch's threads still computes with denormal numbers; takes a few milliseconds."""
    product = torch.full((600, 600), 1e-39) @ torch.eye(600)  # large enough for all threads, which MKL starts too
    return bool(product.view(torch.int32).any())
