"""Settings -> Lightning's Trainer, for where the run directory stands."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger

from vae.data.module import ImageDataModule
from vae.evaluation.baselines import baselines
from vae.files import writable
from vae.run.directory import Run
from vae.run.load import check_origin
from vae.run.settings import caption, monitored
from vae.training import checkpoints
from vae.training.callbacks import EpochLine, Pictures, QuietBar, on_a_terminal
from vae.training.checkpoints import DurableCheckpointIO, SaveBest, SaveLast
from vae.training.history import History
from vae.training.lightning_insides import NullProfiler, StepLoop
from vae.training.lit import LitVAE
from vae.training.signals import GracefulStop

log = logging.getLogger(__name__)


class EventFileLogger(TensorBoardLogger):
    """TensorBoard's events alone: config.yaml says what hparams.yaml would."""

    def save(self) -> None:
        self.experiment.flush()


def build_trainer(
    run: Run, normalised: bool, history: History, pictures: Pictures, stop: GracefulStop, last: SaveLast
) -> Trainer:
    s = run.settings.plain
    options = dict(s["trainer"])
    options.pop("fast_step")
    bar = options.pop("enable_progress_bar")
    bar = on_a_terminal() if bar is None else bar
    monitor, mode = monitored(run.settings, normalised)
    callbacks: list[Callback] = [history, EpochLine(history), pictures]
    callbacks += [QuietBar()] if bar else []
    if s["callbacks"]["early_stopping"]:
        # what is not finite is caught in the step, with its cause
        patience = s["callbacks"]["early_stopping"]
        callbacks.append(EarlyStopping(monitor, patience=patience, mode=mode, check_finite=False))
    best = SaveBest(run.checkpoint_directory, monitor, mode)
    trainer = Trainer(
        **options,
        callbacks=[*callbacks, best, last, stop],
        logger=EventFileLogger(run.directory, name="", version="", default_hp_metric=False, purge_step=_purge(run)),
        plugins=[DurableCheckpointIO()],
        profiler=NullProfiler(),
        enable_progress_bar=bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10**9,  # nothing is logged by the step
        use_distributed_sampler=False,
        default_root_dir=run.directory,
    )
    trainer.fit_loop.epoch_loop = StepLoop(trainer)
    return trainer


def _purge(run: Run) -> int | None:
    """Hides the events that a sitting wrote after its last checkpoint: the resumed one writes them again."""
    path = run.resume_from
    return None if path is None else checkpoints.load(path)["global_step"] + 1


@contextmanager
def prepared_trainer(run: Run, lit: LitVAE, data: ImageDataModule) -> Iterator[tuple[Trainer, History]]:
    """A trainer for where the directory stands; signals stop it between two steps while the block runs."""
    s = run.settings.plain
    if s["threads"]:
        torch.set_num_threads(s["threads"])
    start = run.resume_from
    if start is not None:
        saved = checkpoints.load(start)
        checkpoints.check_architecture(saved["state_dict"], lit)
        check_origin(start, saved["vae"]["settings"], s)
        log.info("continuing from %s", start)
    state = 3 * sum(value.nbytes for value in lit.state_dict().values())  # weights, and Adam's two moments
    writable(run.checkpoint_directory, 2 * state if start is None else state)  # best and last, or one anew
    history, last = History(), SaveLast(run.checkpoint_directory, s["callbacks"]["checkpoint_minutes"])
    pictures = Pictures(s["callbacks"]["figures_every"], s["seed"], caption(s), lambda: baselines(s, data))
    with GracefulStop(last.save) as stop:
        yield build_trainer(run, lit.vae.likelihood.normalised, history, pictures, stop, last), history
