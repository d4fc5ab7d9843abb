"""Variational auto-encoders: distributions, networks, objectives, and experiments that can be trusted and repeated."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vae.commands.compare import sweep
    from vae.commands.runs import runs
    from vae.data import ImageDataModule
    from vae.model import VAE
    from vae.objectives import ELBO, IWAE
    from vae.run.fit import fit
    from vae.run.load import load_run
    from vae.training.lit import LitVAE

__all__ = ["ELBO", "IWAE", "VAE", "ImageDataModule", "LitVAE", "fit", "load_run", "runs", "sweep"]
HOMES = {
    "ELBO": "vae.objectives", "IWAE": "vae.objectives", "VAE": "vae.model", "ImageDataModule": "vae.data",
    "LitVAE": "vae.training.lit", "fit": "vae.run.fit", "load_run": "vae.run.load", "runs": "vae.commands.runs",
    "sweep": "vae.commands.compare",
}  # fmt: skip

if "VAE_OWN_MODULES" in os.environ:  # set by the process that started this one
    from vae.run.own_modules import find_those_of_the_parent

    find_those_of_the_parent()


def __getattr__(name: str) -> Any:
    """Imported at the first use: torch takes seconds, which `import vae` need not wait for."""
    if name not in HOMES:
        raise AttributeError(f"module 'vae' has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)
