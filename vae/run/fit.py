"""A model of one's own images in one call, from Python."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vae.errors import InputError
from vae.files import whole_file
from vae.run.compose import compose, hydra_set_aside, override_of
from vae.run.directory import Run
from vae.run.find import HOME
from vae.run.keys import expand_place, leaves
from vae.run.load import TrainedRun, load_run
from vae.run.process import NOISY
from vae.run.train import train


def fit(
    images: Any, *overrides: str, labels: Any = None, run_dir: str | PathLike[str] | None = None, **keys: Any
) -> TrainedRun:
    """Trains on images (N, H, W), (N, H, W, C) or (N, C, H, W), uint8 or floats in [0, 1], and returns the run.

    `overrides` and `keys` are those of train.py: `fit(images, "model=conv", "trainer.max_epochs=5", latent_dim=4)`.
    The images are saved beside the run, as `<run_dir>.npz`. The same call again continues the run, or loads it if it
    is finished. The caller's log, warnings, random numbers, threads and Hydra are as before afterwards. Raises
    InputError for what cannot be used.
    """
    for flag in (text for text in overrides if text.startswith("-")):
        raise InputError(f"{flag}: fit takes key=value and trains one run; a sweep is `python train.py -m ...`")
    directory = Path(expand_place(str(run_dir or f"{HOME}/fit/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")))
    if directory.name in ("", ".."):
        directory = directory.resolve()
    file = directory.with_name(f"{directory.name}.npz")
    places = {"data.path": str(file), "run_dir": str(directory)}
    given = [*overrides, *(override_of(name, value) for name, value in (keys | places).items())]
    with as_it_was():
        run = Run(directory, compose(["data=npz", *given]))
        run_on(run, file, {"images": np.asarray(images)} | ({} if labels is None else {"labels": np.asarray(labels)}))
        parts = (str(value) for key, value in leaves(run.settings.plain) if key.endswith("_target_"))
        return load_run(directory, trust=tuple(parts))  # the caller chose them


def run_on(run: Run, file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Saves the images and trains the run to its end; a run that is refused leaves no file behind."""
    new = save(file, arrays)
    try:
        run.check()
        if not run.is_finished:
            train(run)
    except InputError:
        if new and not (run.directory / "config.yaml").exists():
            file.unlink()
        raise


def save(file: Path, arrays: dict[str, np.ndarray]) -> bool:
    """Whether the file is new; raises InputError where another run's images are there already."""
    if file.exists():
        with np.load(file, allow_pickle=False) as saved:
            if saved.files != list(arrays) or any(not np.array_equal(saved[name], arrays[name]) for name in arrays):
                raise InputError(f"{file}: holds other images than these; name another run_dir")
        return False
    with whole_file(file) as written:
        np.savez_compressed(written, **arrays)  # type: ignore[arg-type]  # it takes arrays by any name
    return True


@contextmanager
def as_it_was() -> Iterator[None]:
    """A run inside the block leaves the process as it was: its log, warnings, random numbers, threads and Hydra."""
    root, threads = logging.getLogger(), torch.get_num_threads()
    handlers, level = root.handlers[:], root.level
    noisy = {name: logging.getLogger(name).level for name in NOISY}
    root.handlers[:] = []  # so that a run closes none of them
    try:
        with hydra_set_aside(), warnings.catch_warnings(), torch.random.fork_rng():
            yield
    finally:
        for handler in root.handlers:
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        for name in NOISY:
            logging.getLogger(name).setLevel(noisy[name])
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
