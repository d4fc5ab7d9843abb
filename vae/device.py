"""Where and how a process computes: its device, and denormal numbers flushed to zero in each of its threads."""

import ctypes
from contextlib import suppress

import torch

from vae.errors import InputError

OMP_PAUSE_HARD = 2  # of OpenMP 5.0: the threads end, and the next parallel region starts new ones


def flush_denormals(flush: bool = True) -> bool:
    """Makes this thread, and each thread that it starts, compute 0 for results below 1e-38; False if the CPU cannot.

    Processors handle denormal numbers in microcode. Weight decay shrinks the weights that no gradient holds until they
    are denormal, Adam's moments follow, and an epoch of the report's MLP then takes five times as long.

    A thread inherits the flag from the one that starts it. OpenMP's threads may be running already, in a notebook for
    instance; these end here.
    """
    if not torch.set_flush_denormal(flush):
        return False
    with suppress(AttributeError, OSError, TypeError):  # other libraries pass the flag on by themselves
        ctypes.CDLL(None).omp_pause_resource_all(OMP_PAUSE_HARD)
    return True


def keeps_denormals() -> bool:
    """Whether any of torch's threads still computes with denormal numbers; takes a few milliseconds."""
    product = torch.full((600, 600), 1e-39) @ torch.eye(600)  # large enough for all threads, which MKL starts too
    return bool(product.view(torch.int32).any())


def choose_device(accelerator: str) -> str:
    """`cuda`, `mps` or `cpu`: what `trainer.accelerator` asks for, and for `auto` a GPU of CUDA if there is one.

    MPS, which lacks float64, is used only when asked for. Raises InputError for a device that torch does not find.
    """
    cuda = torch.cuda.is_available()
    if accelerator in ("gpu", "cuda") and not cuda:
        raise InputError(
            f"trainer.accelerator={accelerator}: torch finds no GPU here; take trainer=cpu or trainer=default"
        )
    if accelerator == "mps" and not torch.backends.mps.is_available():
        raise InputError("trainer.accelerator=mps: torch finds no Metal device here; take trainer=cpu")
    return accelerator if accelerator in ("cpu", "mps") else "cuda" if cuda else "cpu"


def describe_device(device: torch.device) -> str:
    """`CPU, 2 threads` or the GPU's name."""
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "MPS (untested)"
