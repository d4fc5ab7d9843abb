"""The loop one would write without any framework: what `vae bench` compares with, and what a dry run is timed by."""

import math
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from vae.data.module import ImageDataModule
from vae.device import choose_device
from vae.objectives import terms_of
from vae.pixels import as_floats
from vae.run.build import build_model
from vae.run.keys import Settings


class Bare:
    """Data in memory, torch's fused optimizer, nothing logged."""

    def __init__(self, s: Settings, data: ImageDataModule) -> None:
        lit = build_model(s, data)
        self.device = torch.device(choose_device(s.trainer.accelerator))
        self.vae, self.objective = lit.vae.to(self.device).train(), lit.objective
        self.images, self.labels = data.train.images.to(self.device), data.train.labels.to(self.device)
        self.count = len(data.train)  # more than there are under data.repeat
        self.held_out = [
            (one.images.to(self.device), one.labels.to(self.device)) for one in (data.dev, data.train_eval)
        ]
        self.dynamic = data.binarize == "dynamic"
        self.size, self.eval_size = data.batch_size, data.eval_batch_size
        self.limit = s.trainer.limit_train_batches
        self.optimizer = lit.optimizer(self.vae.parameters())
        self.half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(s.trainer.precision)

    @property
    def steps_an_epoch(self) -> int:
        steps = math.ceil(self.count / self.size)
        return steps if self.limit is None else min(self.limit, steps)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, C, H, W) in [0, 1] and labels (B,), in a new order."""
        order = torch.randperm(self.count, device=self.device)
        order = order % len(self.images) if self.count > len(self.images) else order
        for rows in order.split(self.size):
            x = as_floats(self.images.index_select(0, rows))
            yield torch.bernoulli(x) if self.dynamic else x, self.labels.index_select(0, rows)

    def loss(self, x: Tensor, labels: Tensor, step: int) -> Tensor:
        with torch.autocast(self.device.type, self.half, enabled=self.half is not None):
            return terms_of(self.objective, self.vae, x, step, labels).loss

    def epoch(self) -> Iterator[None]:
        """An epoch, a step for each `next`."""
        for step, (x, labels) in enumerate(self.batches()):
            loss = self.loss(x, labels, step)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            yield

    def validate(self) -> None:
        """dev and train_eval, as train.py evaluates both after each epoch."""
        self.vae.eval()
        for images, labels in self.held_out:
            for x, y in zip(images.split(self.eval_size), labels.split(self.eval_size), strict=True):
                with torch.no_grad():
                    self.loss(as_floats(x), y, 0)
        self.vae.train()

    def forward(self) -> Iterator[None]:
        for step, (x, labels) in enumerate(self.batches()):
            with torch.no_grad():
                self.loss(x, labels, step)
            yield


class Clock:
    """A turn of a process that is timed: it begins when the other end of the pipe says so, and sends its seconds."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def __enter__(self) -> None:
        self.pipe.recv()
        self.since = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        if kind is None:
            self.pipe.send(elapsed(self.since))


def elapsed(since: float) -> float:
    """Seconds, when all that was asked of an accelerator is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - since


def timed(work: Callable[[], Any] | Iterator[Any], steps: int = 0) -> float:
    """Seconds of one call, or of the next `steps` of an iterator."""
    start = time.perf_counter()
    if isinstance(work, Iterator):
        for _ in zip(range(steps), work, strict=False):
            pass
    else:
        work()
    return elapsed(start)
