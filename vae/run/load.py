"""The way back to a trained model. Opening a run executes nothing of its author's.

A command line is its author's own; a run's files may be a stranger's, and to build a part is to execute it.
"""

import os
import re
import sys
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pandas import DataFrame
from torch import Tensor

from vae.data.batches import Images
from vae.data.module import ImageDataModule
from vae.errors import InputError, first_line
from vae.evaluation.estimates import bounds
from vae.files import read_yaml
from vae.model import VAE
from vae.run.build import build_data, build_lit, build_vae
from vae.run.directory import (
    MAY_GROW,
    Run,
    as_settings,
    describe_differences,
    differences,
    read_settings,
)
from vae.run.find import find_run, require_checkpoint
from vae.run.keys import Plain, targets, walk
from vae.run.own_modules import find_own_modules
from vae.run.parts import GROUPS, import_target
from vae.run.settings import caption, verify
from vae.training import checkpoints
from vae.training.lit import LitVAE
from vae.words import printable

PART_PLACES = {tuple(group.split(".")) for group in GROUPS}  # where a part of the project may stand
# torch's own, which take numbers
TORCH = re.compile(r"torch\.optim(\.lr_scheduler)?\.[A-Z]\w+")
# packages that hold functions of every kind, torch.hub.load among them: nothing of theirs is trusted by the package
BY_FULL_NAME = {"vae", "torch", "torchvision", "lightning", "hydra"} | sys.stdlib_module_names
# a loaded run builds none of them
LOGGERS = re.compile(r"(lightning\.pytorch\.loggers|vae\.training\.history)\.[A-Z]\w+")


class TrainedRun(Run):
    """A run whose model is loaded, in eval mode; its data are read when they are asked for."""

    lit: LitVAE
    which: str = "best"  # the checkpoint
    data_root: str | None = None
    label: int | None = None  # the class that a command names for every image of a conditional model
    class_names: Sequence[str] = ()  # of the data; none without labels

    @property
    def vae(self) -> VAE:
        return self.lit.vae

    @property
    def caption(self) -> str:
        """What figures say of the data."""
        return caption(self.settings.plain, self.vae.image_shape[0])

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
        plain = read_yaml(record)
        runtime = plain.get("runtime") if isinstance(plain, dict) else None
        folder = runtime.get("cwd") if isinstance(runtime, dict) else None
        started = Path(folder, place) if isinstance(folder, str) else Path(place)
        return str(started) if started.exists() else place

    def class_number(self, name: str) -> int:
        """A class of a conditional model, by its name or its number; raises InputError for another."""
        if not self.vae.classes:
            raise InputError(f"--label={name}: this model is not conditional; leave it out")
        if name in self.class_names:
            return list(self.class_names).index(name)
        if name.isdecimal() and int(name) < self.vae.classes:
            return int(name)
        raise InputError(f"--label={name}: this model has the classes {in_short(self.class_names)}")

    @property
    def history(self) -> DataFrame:
        """The metrics of each epoch, one row per epoch."""
        return DataFrame(self.history_rows)

    @property
    def history_rows(self) -> list[dict[str, float]]:
        """The same as a list, of the last checkpoint where it is there."""
        last = self.checkpoint("last")
        return list(checkpoints.read_history(last if last.exists() else self.checkpoint(self.which))["rows"])

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


def in_short(names: Sequence[str]) -> str:
    """The first names of a list, or all where they are few."""
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


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
    run, path = open_settings(directory, which, trust)
    run.data_root = None if data_root is None else os.fspath(data_root)
    checkpoint = checkpoints.load(path)
    facts = checkpoint["vae"]
    refuse_untrusted(facts["settings"], trust)
    run.class_names = facts.get("data", {}).get("class_names", [])

    def build() -> LitVAE:
        return build_lit(run.settings, build_vae(run.settings, tuple(facts["image_shape"]), len(run.class_names)))

    require_fit(build, path, checkpoint)
    try:
        run.lit = build().eval()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # of values that only their use shows as bad
        raise InputError(f"{path}: its model cannot be built ({first_line(error)}); restore the run's files") from error
    load_weights(run.lit, path, checkpoint)
    return run


def open_settings(
    directory: str | os.PathLike[str], which: str = "best", trust: Collection[str] = ()
) -> tuple[TrainedRun, Path]:
    """A run whose settings are checked and trusted, and the file of its checkpoint; its model is not built yet."""
    found = find_run(directory)
    which = found.which or which
    path = found.file or found.directory / "checkpoints" / f"{which}.ckpt"
    plain = checkpoints.load(path)["vae"]["settings"] if found.file else read_settings(found.directory / "config.yaml")
    if not plain:
        raise InputError(f"{path}: was trained without a configuration; load its weights into the model that it is of")
    refuse_untrusted(plain, trust)
    as_settings(plain, found.directory)  # the keys of another version are refused with that version
    run = TrainedRun(found.directory, verify(plain | {"logger": {}}))  # which only training builds
    run.which = which
    require_checkpoint(found, which)
    return run, path


def refuse_untrusted(plain: Plain, trust: Collection[str] = ()) -> None:
    """Raises InputError for what loading would execute or look up, unless the project or the caller vouches for it.

    `trust` holds names of packages, modules or classes. A part of these is taken only where a part may stand, and only
    where it is at home in its package: what that imports from elsewhere is no part.
    """
    trust = (trust,) if isinstance(trust, str) else trust
    for place, value in walk(plain):
        entry = printable(f"{'.'.join(place)}={value}")[:200]
        if "${" in place[-1] or (isinstance(value, str) and "${" in value):  # OmegaConf would call a resolver
            raise InputError(
                f"{entry}: a run's config.yaml holds plain values, and this would be looked up; nothing "
                "of it was executed; restore the file"
            )
        if place[-1] == "_target_" and not is_trusted(place[:-1], value, trust):
            name = printable(str(value))
            package = name.partition(".")[0]
            named = name if package in BY_FULL_NAME else package
            advice = f'if you trust it, say so: load_run(..., trust=("{named}",)) or --trust {named}'
            nested = not is_place(place[:-1])
            raise InputError(
                f"{entry}: the run's config.yaml names a part "
                f"{'where none belongs' if nested else 'from outside the project'}, and nothing of it was executed; "
                + ("restore the file" if nested else advice)
            )


def is_place(place: tuple[str, ...]) -> bool:
    """Whether a part may stand under this key."""
    return place in PART_PLACES or place[:-1] in (("callbacks", "extra"), ("logger",))


def is_trusted(place: tuple[str, ...], target: Any, trust: Collection[str]) -> bool:
    if not is_place(place) or not isinstance(target, (str, type(None))):
        return False
    name = str(target)
    if place in PART_PLACES and target in targets():
        return True
    if (place[0] in ("optimizer", "scheduler") and TORCH.fullmatch(name)) or (
        place[0] == "logger" and LOGGERS.fullmatch(name)
    ):
        return True
    by_package = name.partition(".")[0] not in BY_FULL_NAME
    if name not in trust and not any(by_package and name.startswith(f"{package}.") for package in trust):
        return False
    find_own_modules([name])
    home = getattr(import_target(".".join(place), name), "__module__", "")
    return bool(home.partition(".")[0] == name.partition(".")[0])


def require_fit(build: Callable[[], LitVAE], path: Path, checkpoint: dict[str, Any]) -> None:
    """Raises InputError where the checkpoint is of another model, before that takes any memory.

    An own part that cannot be built on torch's meta device is not looked at.
    """
    try:
        with torch.device("meta"):
            lit = build()
    except InputError:
        raise
    except Exception:  # an own part may do anything that needs values
        return
    checkpoints.check_architecture(checkpoint["state_dict"], lit)


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
            f"{data.place}: the images have changed since {path} was written (md5 {before[:8]} then, "
            f"{data.md5[:8]} now); put the old ones back, or start anew in another run_dir"
        )


def check_origin(path: Path, saved: Plain, now: Plain) -> None:
    """Raises InputError for a checkpoint of the same shapes that another configuration trained."""
    own = (MAY_GROW, "evaluation.", "callbacks.", "logger.")  # what may have grown or changed since it was written
    differ = {key: pair for key, pair in differences(saved, now).items() if not key.startswith(own)}
    if differ:
        other = "best" if path.name == "last.ckpt" else "last"
        raise InputError(
            f"{path}: was written under another configuration, which differs in {describe_differences(differ)}; put "
            f"this run's own file back, or continue from the other one (checkpoint={other})"
        )
