"""The one sentence that trains: data, model, trainer, fit, evaluation, metrics.json."""

from collections.abc import Sequence

from lightning import Callback
from omegaconf import DictConfig

from vae.data.module import ImageDataModule
from vae.run.build import build_data, build_model
from vae.run.directory import Run
from vae.run.results import evaluate_and_write
from vae.run.trainer import prepared_trainer


def train(
    run: Run,
    cfg: DictConfig | None = None,
    callbacks: Sequence[Callback] = (),
    data: ImageDataModule | None = None,
    evaluate: bool = True,
) -> float | None:
    """Trains a run, from its last checkpoint if it has one, and returns the best epoch's monitored metric.

    `cfg`: what Hydra composed, kept in `.hydra`. `callbacks` are called after the run's own. `data`: built from the
    run's settings if None. Without `evaluate`, training is all, and the result None.
    Raises InputError before anything is written, RunFailed if training cannot go on, Stopped after a signal.
    """
    data = data or build_data(run.settings)
    lit = build_model(run.settings, data)  # its training_step calls the objective: training/lit.py, objectives.py
    with run.open(cfg), prepared_trainer(run, lit, data, callbacks) as (trainer, history):
        trainer.fit(lit, datamodule=data, ckpt_path=run.resume_from, weights_only=True)
        return evaluate_and_write(run, lit, data, trainer, history) if evaluate else None
