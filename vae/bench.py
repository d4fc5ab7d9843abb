"""`vae bench`: training through train.py's own path, beside a bare PyTorch loop and the usual Lightning recipe.

All parts run in one process and take turns, epoch by epoch, so that a machine's moods fall on each alike.
"""

import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from vae import command, runs, settings
from vae.callbacks import History, Pictures
from vae.checkpoints import SaveLast
from vae.data import ImageDataModule, as_floats
from vae.lit import LitVAE
from vae.signals import GracefulStop

Settings = dict[str, Any]
MATRIX = 2048


class Bare:
    """The loop one would write without any framework: data in memory, torch's fused optimizer, nothing logged."""

    def __init__(self, s: Settings, data: ImageDataModule) -> None:
        lit = runs.build_model(s, data)
        self.vae, self.objective = lit.vae.train(), lit.objective
        self.images, self.size = data.train.images, data.batch_size
        self.optimizer = lit.optimizer(self.vae.parameters())

    def batches(self) -> Any:
        order = torch.randperm(len(self.images))
        for rows in order.split(self.size):
            yield as_floats(self.images[rows])

    def epoch(self, steps: int) -> None:
        for step, x in zip(range(steps), self.batches(), strict=False):
            loss = self.objective(self.vae, x, step).loss
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()

    @torch.no_grad()
    def forward(self, steps: int) -> None:
        for step, x in zip(range(steps), self.batches(), strict=False):
            self.objective(self.vae, x, step)

    def gather(self, steps: int) -> None:
        for _ in zip(range(steps), self.batches(), strict=False):
            pass

    def flops(self) -> int:
        """Of one step, forward and backward, as torch counts its matrix products and convolutions."""
        x = next(iter(self.batches()))
        with FlopCounterMode(display=False) as counter:
            self.objective(self.vae, x, 0).loss.backward()
        return counter.get_total_flops()


class Usual(LightningModule):
    """The recipe of most tutorials: images one by one through a DataLoader, `self.log` in each step."""

    def __init__(self, s: Settings, data: ImageDataModule) -> None:
        super().__init__()
        lit = runs.build_model(s, data)
        self.vae, self.objective, self.make = lit.vae, lit.objective, lit.optimizer

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        terms = self.objective(self.vae, batch[0], self.global_step)
        self.log("train/loss", terms.loss, prog_bar=True)
        self.log("train/reconstruction", -terms.log_px.mean())
        self.log("train/kl", terms.kl.sum(-1).mean())
        return terms.loss

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters())


class OneByOne(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """What torchvision's MNIST with ToTensor does for each image: to PIL, and back as floats."""

    def __init__(self, data: ImageDataModule) -> None:
        from torchvision.transforms import ToTensor
        from torchvision.transforms.functional import to_pil_image

        self.images, self.labels = data.train.images, data.train.labels
        self.pil, self.tensor = to_pil_image, ToTensor()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.tensor(self.pil(self.images[index])), self.labels[index]


class Stopwatch(Callback):
    """Seconds of an epoch: its training steps alone, and all of it with validation, log, figures and checkpoints."""

    def __init__(self, others: Callable[[], None] | None = None) -> None:
        self.steps: list[float] = []
        self.whole: list[float] = []
        self.others = others
        self.since = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.steps:  # the epoch before ends here, its checkpoint written
            self.whole.append(time.perf_counter() - self.since)
            if self.others is not None:
                self.others()
        self.since = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.is_last_batch:
            self.steps.append(time.perf_counter() - self.since)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.whole.append(time.perf_counter() - self.since)


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def matrix_rate() -> float:
    """Floating-point operations a second of one large product, the best of five."""
    a = torch.randn(MATRIX, MATRIX)
    return 2 * MATRIX**3 / min(timed(lambda: a @ a) for _ in range(5))


def usual_epoch(s: Settings, data: ImageDataModule, workers: int, steps: int) -> float:
    loader: DataLoader[Any] = DataLoader(OneByOne(data), data.batch_size, shuffle=True, num_workers=workers)
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            max_epochs=1, limit_train_batches=steps, accelerator="cpu", callbacks=[watch], default_root_dir=folder,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        ).fit(Usual(s, data), loader)  # fmt: skip
    return watch.steps[0]


def measure(s: Settings, repeats: int, usual: bool) -> dict[str, list[float]]:
    """Seconds of every part, one value a turn."""
    data = runs.build_data(s)
    lit, bare = runs.build_model(s, data), Bare(s, data)
    limit = s["trainer"]["limit_train_batches"]
    steps = math.ceil(len(data.train) / data.batch_size)
    steps = steps if limit is None else min(limit, steps)
    bare.epoch(min(steps, 20))  # warm
    seconds: dict[str, list[float]] = {
        name: [] for name in ("data", "forward", "bare", "usual, 0 workers", "usual, 2 workers")
    }

    def others() -> None:
        seconds["data"].append(timed(lambda: bare.gather(steps)))
        seconds["forward"].append(timed(lambda: bare.forward(steps)))
        seconds["bare"].append(timed(lambda: bare.epoch(steps)))
        for workers in (0, 2) if usual else ():
            seconds[f"usual, {workers} workers"].append(usual_epoch(s, data, workers, steps))

    watch = Stopwatch(others)
    with tempfile.TemporaryDirectory() as folder:
        run = runs.Run(Path(folder) / "run", s | {"trainer": s["trainer"] | {"max_epochs": repeats + 1}})
        run.checkpoint_directory.mkdir(parents=True)
        history, last = History(), SaveLast(run.checkpoint_directory)
        pictures = Pictures(s["callbacks"]["figures_every"], s["seed"], runs.caption(s), dict)
        trainer = runs.trainer_of(run, history, pictures, GracefulStop(last.save), last)
        trainer.callbacks.insert(0, watch)  # type: ignore[attr-defined]  # Lightning sets the list
        trainer.fit(lit, datamodule=data)
    seconds["steps of train.py"] = watch.steps[1:]  # the first epoch warms up
    seconds["epoch of train.py"] = watch.whole[1:]
    return seconds | {
        "step flops": [float(bare.flops())],
        "steps": [float(steps)],
        "images": [float(min(len(data.train), steps * data.batch_size))],
    }


def first_step(overrides: list[str]) -> None:
    """In a process of its own: train.py's way up to its first step, and out."""

    class FirstStep(BaseException):
        pass

    def stop(*_: Any) -> Tensor:
        raise FirstStep

    LitVAE.training_step = stop  # type: ignore[assignment, method-assign]  # for this process only
    s = settings.check(composed(overrides))
    with tempfile.TemporaryDirectory() as folder:
        data = runs.build_data(s)
        lit = runs.build_model(s, data)
        one = runs.Run(Path(folder) / "run", s)
        try:
            with one.opened(), runs.training(one, lit, data) as (trainer, _):
                trainer.fit(lit, datamodule=data)
        except FirstStep:
            return


def start_up(overrides: list[str]) -> dict[str, float]:
    """Seconds until the first step, and of the imports alone, each in a fresh process, the better of two."""
    train = f"from vae import bench; bench.first_step({overrides!r})"
    imports = "import torch, torchvision, lightning"

    def process(code: str) -> float:
        return timed(lambda: subprocess.run([sys.executable, "-c", code], check=True, capture_output=True))

    return {"first step": min(process(train) for _ in range(2)), "imports": min(process(imports) for _ in range(2))}


def composed(overrides: list[str]) -> Any:
    from hydra import initialize_config_dir

    with initialize_config_dir(command.CONF, version_base="1.3"):
        return command.composed(overrides)


def report(seconds: dict[str, list[float]], rate: float, starts: dict[str, float]) -> dict[str, Any]:
    """Medians and spreads, images a second, ratios to the bare loop, the share of the arithmetic limit."""
    images, steps, flops = (seconds.pop(name)[0] for name in ("images", "steps", "step flops"))
    bare = median(seconds["bare"])
    parts = {
        name: {
            "seconds": median(values),
            "spread": (max(values) - min(values)) / 2,
            "images_per_second": images / median(values),
            "to_bare": median(v / b for v, b in zip(values, seconds["bare"], strict=False)),
        }
        for name, values in seconds.items()
        if values
    }
    return {
        "parts": parts,
        "matrix_gflops": rate / 1e9,
        "share_of_arithmetic": steps * flops / rate / bare,
        "seconds_to_first_step": starts["first step"],
        "first_step_to_imports": starts["first step"] / starts["imports"],
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "threads": torch.get_num_threads(),
        "repeats": len(seconds["bare"]),
    }


def main(overrides: list[str], repeats: int, usual: bool, as_json: bool) -> None:
    s = settings.check(composed(overrides))
    if s["threads"]:
        torch.set_num_threads(s["threads"])
    found = report(measure(s, repeats, usual), matrix_rate(), start_up(overrides))
    if as_json:
        print(json.dumps(found, indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("an epoch of", "seconds", "+-", "images a second", "to the bare loop", box=box.SIMPLE)
    for name, row in found["parts"].items():
        table.add_row(
            name,
            *(f"{row[key]:.3g}" for key in ("seconds", "spread")),
            f"{row['images_per_second']:,.0f}",
            f"{row['to_bare']:.2f}",
        )
    Console(width=100).print(table)
    share, ratio = found["share_of_arithmetic"], found["first_step_to_imports"]
    print(f"matrix products      {found['matrix_gflops']:.0f} GFLOP/s; the bare loop reaches {share:.0%} of it")
    print(f"to the first step    {found['seconds_to_first_step']:.1f} s, {ratio:.2f} of the imports")
    print(
        f"peak memory          {found['peak_memory_gib']:.2f} GiB; {found['threads']} threads, {found['repeats']} turns"
    )
