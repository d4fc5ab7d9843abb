"""The way back to a trained model."""

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pandas import DataFrame
from torch import Tensor

from vae.data.batches import Images
from vae.data.module import ImageDataModule
from vae.errors import InputError
from vae.evaluation.estimates import bounds
from vae.model import VAE
from vae.run.build import build_data, build_lit, build_vae
from vae.run.directory import (
    MAY_GROW,
    Run,
    as_settings,
    describe_differences,
    differences,
    read_settings,
    upgrade,
)
from vae.run.find import find_run, require_checkpoint
from vae.run.keys import Plain, Settings
from vae.run.own_parts import refuse_untrusted
from vae.run.settings import verify
from vae.training import checkpoints
from vae.training.lit import LitVAE


class TrainedRun(Run):
    """A run whose model is loaded, in eval mode; its data are read when they are asked for."""

    lit: LitVAE
    which: str = "best"  # the checkpoint
    data_root: str | None = None
    label: int | None = None  # the class that a command names for every image of a conditional model

    @property
    def vae(self) -> VAE:
        return self.lit.vae

    @cached_property
    def data(self) -> ImageDataModule:
        """The images that it was trained on; a relative `data.root` is taken from where the run was started."""
        plain = self.settings.plain["data"]
        for name in ("root", "path"):
            if name in plain:
                plain = plain | {name: self.data_root or self._found_again(plain[name])}
        self.settings.plain["data"] = plain
        return build_data(self.settings)

    def _found_again(self, place: str | None) -> str | None:
        record = self.directory / ".hydra" / "hydra.yaml"
        if place is None or Path(place).is_absolute() or Path(place).exists() or not record.exists():
            return place
        started = Path(yaml.safe_load(record.read_text())["runtime"]["cwd"], place)
        return str(started) if started.exists() else place

    @property
    def history(self) -> DataFrame:
        """The metrics of each epoch, one row per epoch."""
        return DataFrame(self.history_rows)

    @property
    def history_rows(self) -> list[dict[str, float]]:
        """The same as a list, of the last checkpoint where it is there."""
        last = self.checkpoint("last")
        return checkpoints.read_history(last if last.exists() else self.checkpoint(self.which))

    def log_prob(self, x: Tensor, samples: int = 500, seed: int = 0, y: Tensor | None = None) -> Tensor:
        """log p(x) (N,) of images (N, C, H, W), uint8 or floats in [0, 1], in nats: the importance-weighted bound.

        A conditional model takes labels y (N,) and gives log p(x|y). Raises InputError where the likelihood has no
        nats, and for images that `VAE.check_images` refuses.
        """
        if not self.vae.likelihood.normalised:
            raise InputError(
                f"{self.directory}: likelihood={type(self.vae.likelihood).__name__} is not normalised, so images have "
                "no log p(x); train with a normalised one, such as likelihood=gaussian"
            )
        return bounds(self.vae, x if y is None else Images(x, y), samples, seed).log_px


def load_run(
    directory: str | os.PathLike[str],
    which: str = "best",
    data_root: str | os.PathLike[str] | None = None,
    trust: tuple[str, ...] = (),
) -> TrainedRun:
    """A trained model from its run directory, a checkpoint file, or `latest`; `which` is `best` or `last`.

    Parts from outside this project are built, and so executed, only where `trust` names their package. Raises
    InputError, one line, for what is no run and a checkpoint that is missing, damaged or foreign.
    """
    found = find_run(directory)
    which = found.which or which
    path = found.file or found.directory / "checkpoints" / f"{which}.ckpt"
    alone = upgrade(checkpoints.load(path)["vae"]["settings"]) if found.file else None
    plain = alone or read_settings(found.directory / "config.yaml")
    refuse_untrusted(plain, trust)
    run = TrainedRun(found.directory, verified(plain, found.directory))
    run.which, run.data_root = which, None if data_root is None else os.fspath(data_root)
    require_checkpoint(found, which)
    checkpoint = checkpoints.load(path)
    shape = checkpoint["vae"].get("image_shape") or run.data.image_shape  # runs before 0.2 kept no shape
    classes = len(checkpoint["vae"].get("data", {}).get("class_names", []))
    run.lit = build_lit(run.settings, build_vae(run.settings, tuple(shape), classes)).eval()
    load_weights(run.lit, path, checkpoint)
    return run


def verified(plain: Plain, directory: Path) -> Settings:
    """A run's settings, checked as those of a command line are; raises InputError for those of another version."""
    as_settings(plain, directory)
    return verify(plain)


def load_weights(lit: LitVAE, path: Path, checkpoint: dict[str, Any] | None = None) -> dict[str, Any]:
    checkpoint = checkpoints.load(path) if checkpoint is None else checkpoint
    checkpoints.check_architecture(checkpoint["state_dict"], lit)
    check_origin(path, checkpoint["vae"]["settings"], lit.settings)
    lit.load_state_dict(checkpoint["state_dict"])
    return checkpoint


def check_data(path: Path, saved: Plain, data: ImageDataModule) -> None:
    """Raises InputError for a checkpoint that was trained on other images; older ones do not say which."""
    before = saved.get("data", {}).get("md5", data.md5)
    if before != data.md5:
        raise InputError(
            f"{data.path or data.root}: the images have changed since {path} was written (md5 {before[:8]} then, "
            f"{data.md5[:8]} now); put the old ones back, or start anew in another run_dir"
        )


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
