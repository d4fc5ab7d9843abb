"""Real signals to real trainers. Run as a script this file is such a trainer: see `main`."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vae.checkpoints import DurableCheckpointIO, SaveLast, load
from vae.data import EpochBatches, Images, ResumableLoader
from vae.signals import GracefulStop, Stopped, ignore_in_worker

BATCHES, EPOCHS = 5, 4  # a batch holds 3 images of 1x2x2


class Tiny(LightningModule):
    """A regression whose every number depends on all that a resume can lose: weights, momentum, two learning rate
    schedulers, the order of the images and the step's noise."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.1)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.3)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
        step = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        schedules = [{"scheduler": plateau, "monitor": "dev/loss"}, {"scheduler": decay, "interval": "step"}, step]
        return [optimizer], schedules

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return (self.layer(x.flatten(1).float() / 255).squeeze(1) - y).square().mean()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        noise = torch.randn((), generator=torch.Generator().manual_seed(self.global_step))
        return self.loss(batch) * (1 + 0.1 * noise)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("dev/loss", self.loss(batch), batch_size=len(batch[1]))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["vae"] = {"format": 1}


def images() -> Images:
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(256, (3 * BATCHES, 1, 2, 2), generator=generator, dtype=torch.uint8)
    return Images(x, torch.randn(len(x), generator=generator))


def tiny_trainer(directory: Path, *callbacks: Callback, saver: SaveLast, **settings: Any) -> Trainer:
    best = ModelCheckpoint(
        directory,
        monitor="dev/loss",
        filename="best",
        save_top_k=1,
        enable_version_counter=False,
        auto_insert_metric_name=False,
    )
    return Trainer(
        **{"max_epochs": EPOCHS, "accelerator": "cpu", "devices": 1} | settings,
        default_root_dir=directory,
        callbacks=[*callbacks, best, saver],
        plugins=[DurableCheckpointIO()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def fit(directory: Path, *callbacks: Callback, workers: int = 0, stop: bool = True, **settings: Any) -> Trainer:
    """Trains in `directory`, or goes on from its last.ckpt."""
    saver = SaveLast(directory)
    guard = GracefulStop(saver.save)
    data = images()
    loader = ResumableLoader(data, EpochBatches(data, 3, seed=7), workers)
    loader.worker_init_fn = ignore_in_worker
    dev = DataLoader(data, batch_size=None, sampler=EpochBatches(data, 4, shuffle=False))
    last = directory / "last.ckpt"
    with guard:
        trainer = tiny_trainer(directory, *callbacks, guard, saver=saver, **settings)
        trainer.fit(Tiny(), loader, dev, ckpt_path=last if last.is_file() else None)
    return trainer


class Raise(Callback):
    """Sends this process a signal from within a hook, once, at a step."""

    def __init__(self, hook: str, step: int, *signums: int) -> None:
        self.signums = signums or (signal.SIGTERM,)

        def send(trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == step:
                for signum in self.signums:
                    signal.raise_signal(signum)
                self.signums = ()

        setattr(self, hook, send)
