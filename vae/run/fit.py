"""A model of one's own images in one call, from Python."""

from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from hydra import initialize_config_dir

from vae.errors import InputError
from vae.files import whole_file
from vae.run import command, settings
from vae.run.build import build
from vae.run.directory import Run
from vae.run.find import HOME
from vae.run.keys import CONF, Settings, show
from vae.run.load import TrainedRun, load_run
from vae.run.process import log_to
from vae.run.results import evaluate_and_write
from vae.run.trainer import prepared_trainer


def fit(
    images: Any, *overrides: str, labels: Any = None, run_dir: str | PathLike[str] | None = None, **keys: Any
) -> TrainedRun:
    """Trains on images (N, H, W), (N, H, W, C) or (N, C, H, W), uint8 or floats in [0, 1], and gives the run back.

    `overrides` and `keys` are those of train.py: `fit(images, "model=conv", "trainer.max_epochs=5", latent_dim=4)`.
    The images are kept beside the run, as `<run_dir>.npz`. The same call again continues the run, or loads it where it
    is finished. Raises InputError for what cannot be used.
    """
    directory = Path(run_dir or f"{HOME}/fit/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")
    file = directory.with_name(f"{directory.name}.npz")
    given = [*overrides, *(f"{name}={show(value)}" for name, value in keys.items())]
    s = compose(["data=npz", f"data.path={file}", f"run_dir={directory}", *given])
    new = keep(file, {"images": np.asarray(images)} | ({} if labels is None else {"labels": np.asarray(labels)}))
    run = Run(directory, s)
    try:
        run.check()
        built = None if run.is_finished else build(s)
    except InputError:
        if new:
            file.unlink()
        raise
    if built:
        lit, data = built
        with run.open(), prepared_trainer(run, lit, data) as (trainer, history):
            trainer.fit(lit, datamodule=data, ckpt_path=run.resume_from, weights_only=True)
            evaluate_and_write(run, lit, data, trainer, history)
        log_to(None)
    return load_run(directory)


def compose(overrides: list[str]) -> Settings:
    command.check(overrides)
    with initialize_config_dir(CONF, version_base="1.3"):
        return settings.check(command.compose_settings(overrides))


def keep(file: Path, arrays: dict[str, np.ndarray]) -> bool:
    """Whether the file is new; raises InputError where another run's images are there already."""
    if file.exists():
        with np.load(file, allow_pickle=False) as found:
            if found.files != list(arrays) or any(not np.array_equal(found[name], arrays[name]) for name in arrays):
                raise InputError(f"{file}: holds other images than these; name another run_dir")
        return False
    with whole_file(file) as written:
        np.savez_compressed(written, **arrays)  # type: ignore[arg-type]  # it takes arrays by any name
    return True
