"""The way back to a trained model."""

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from vae.data.module import ImageDataModule
from vae.errors import InputError
from vae.model import VAE
from vae.run.build import build_data, build_lit, build_vae
from vae.run.directory import MAY_GROW, Run, describe_differences, differences, read_settings, upgrade
from vae.run.keys import Plain
from vae.run.own_parts import distrust
from vae.run.settings import verify
from vae.training import checkpoints
from vae.training.lit import LitVAE


class TrainedRun(Run):
    """A run whose model is loaded, in eval mode; its data are read when they are asked for."""

    lit: LitVAE
    data_root: str | None = None

    @property
    def vae(self) -> VAE:
        return self.lit.vae

    @cached_property
    def data(self) -> ImageDataModule:
        """The images that it was trained on; a relative `data.root` is taken from where the run was started."""
        plain = self.settings.plain["data"]
        root = self.data_root or self._root(plain.get("root"))
        self.settings.plain["data"] = plain | ({} if root is None else {"root": root})
        return build_data(self.settings)

    def _root(self, root: str | None) -> str | None:
        record = self.directory / ".hydra" / "hydra.yaml"
        if root is None or Path(root).is_absolute() or Path(root).exists() or not record.exists():
            return root
        started = Path(yaml.safe_load(record.read_text())["runtime"]["cwd"], root)
        return str(started) if started.exists() else root


def load_run(
    directory: str | os.PathLike[str],
    which: str = "best",
    data_root: str | os.PathLike[str] | None = None,
    trust: tuple[str, ...] = (),
) -> TrainedRun:
    """A trained model from its run directory; `which` is `best` or `last`.

    Parts from outside this project are built, and so executed, only where `trust` names their package. Raises
    InputError, one line, for a directory that is no run and a checkpoint that is missing, damaged or foreign.
    """
    path = Path(directory) / "config.yaml"
    if not path.exists():
        raise InputError(f"{directory}: is not a run (no config.yaml); name a folder that train.py wrote")
    plain = read_settings(path)
    distrust(plain, trust)
    run = TrainedRun(Path(directory), verify(plain))
    run.data_root = None if data_root is None else os.fspath(data_root)
    checkpoint = checkpoints.load(run.checkpoint(which))
    shape = checkpoint["vae"].get("image_shape") or run.data.image_shape  # runs before 0.2 kept no shape
    run.lit = build_lit(run.settings, build_vae(run.settings, tuple(shape))).eval()
    load_weights(run.lit, run.checkpoint(which), checkpoint)
    return run


def load_weights(lit: LitVAE, path: Path, checkpoint: dict[str, Any] | None = None) -> dict[str, Any]:
    checkpoint = checkpoints.load(path) if checkpoint is None else checkpoint
    checkpoints.check_architecture(checkpoint["state_dict"], lit)
    check_origin(path, checkpoint["vae"]["settings"], lit.settings)
    lit.load_state_dict(checkpoint["state_dict"])
    return checkpoint


def check_origin(path: Path, saved: Plain, now: Plain) -> None:
    """Raises InputError for a checkpoint of the same shapes that another configuration trained."""
    own = (MAY_GROW, "evaluation.", "callbacks.", "logger.")  # what may have grown or changed since it was written
    differ = {key: pair for key, pair in differences(upgrade(saved), now).items() if not key.startswith(own)}
    if differ:
        other = "best" if path.name == "last.ckpt" else "last"
        raise InputError(
            f"{path}: was written under another configuration, which differs in {describe_differences(differ)}; put "
            f"this run's own file back, or continue from the other one (checkpoint={other})"
        )
