"""The one sentence that trains: data, model, trainer, fit, evaluation, metrics.json."""

import copy
from collections.abc import Sequence

import torch
from lightning import Callback
from omegaconf import DictConfig

from vae.data.module import ImageDataModule
from vae.errors import InputError
from vae.model import VAE
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
    check_last_batch(lit.vae, data)
    with run.open(cfg), prepared_trainer(run, lit, data, callbacks) as (trainer, history):
        trainer.fit(lit, datamodule=data, ckpt_path=run.resume_from, weights_only=True)
        return evaluate_and_write(run, lit, data, trainer, history) if evaluate else None


def check_last_batch(vae: VAE, data: ImageDataModule) -> None:
    """Raises InputError for a last batch of one image that leaves a batch norm a single value per channel."""
    if len(data.train) % data.batch_size != 1:
        return
    vae = copy.deepcopy(vae).train()  # a forward pass moves the running means
    x, y = torch.zeros(1, *data.image_shape), torch.zeros(1, dtype=torch.long) if vae.classes else None
    try:
        with torch.no_grad():
            vae.decode(vae.encode(x, y).mean, y)
    except ValueError as error:
        raise InputError(
            f"data.batch_size={data.batch_size}: {len(data.train)} training images leave a last batch of one, which "
            f"batch norm cannot take ({error}); choose another data.batch_size"
        ) from None
