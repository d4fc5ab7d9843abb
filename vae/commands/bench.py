"""`vae bench`: training through train.py's own path, beside a bare PyTorch loop and the usual Lightning recipe.

They run in one process and take turns, every few steps (validation and the usual recipe every epoch), so that a
machine's moods fall on each alike; only start-up is measured in processes of its own.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from vae.data.module import ImageDataModule
from vae.errors import InputError
from vae.evaluation import estimates
from vae.noise import fixed_noise
from vae.objectives import terms_of
from vae.run.bare import Bare, elapsed, timed
from vae.run.build import build_data, build_model
from vae.run.compose import compose
from vae.run.directory import Run
from vae.run.keys import CONF, Settings
from vae.run.process import log_to
from vae.run.train import train

Seconds = dict[str, list[float]]

TURN = 20  # steps

MATRIX = 2048

SAMPLES, EVALUATED = 500, 40  # importance samples of each image, images

LAYERS = nn.Linear | nn.Conv2d | nn.ConvTranspose2d

# Parts of the profiler's names for operations. Every other operation works element by element.
KINDS = {
    "arithmetic": ("mm", "conv"),
    "random numbers": ("normal", "uniform", "bernoulli", "dropout", "random", "randperm"),
    "optimizer": ("adam", "sgd", "foreach", "Optimizer"),
    "moving data": ("copy", "index", "cat", "fill", "zero", "to"),
}


class Usual(LightningModule):
    """The recipe of most tutorials: images one by one through a DataLoader, `self.log` in each step."""

    def __init__(self, s: Settings, data: ImageDataModule) -> None:
        super().__init__()
        lit = build_model(s, data)
        self.vae, self.objective, self.make = lit.vae, lit.objective, lit.optimizer

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        terms = terms_of(self.objective, self.vae, batch[0], self.global_step, batch[1])
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
    """Seconds of each epoch: its training steps alone, and all of it with validation, log, measures and checkpoints.

    The clock stands still for `each_turn(steps)` after every few steps, and for `each_epoch()` after every epoch.
    """

    def __init__(
        self, each_turn: Callable[[int], None] | None = None, each_epoch: Callable[[], None] | None = None
    ) -> None:
        self.steps: list[float] = []
        self.whole: list[float] = []
        self.each_turn, self.each_epoch = each_turn, each_epoch
        self.since = self.spent = 0.0
        self.done = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.steps:  # the epoch before ends here, its checkpoint written
            self._close()
        self.spent, self.done = 0.0, 0
        self.since = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.done += 1
        if self.done == TURN or trainer.is_last_batch:
            self.spent += elapsed(self.since)
            if self.each_turn is not None:
                self.each_turn(self.done)
            self.done = 0
            self.since = time.perf_counter()
        if trainer.is_last_batch:
            self.steps.append(self.spent)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def _close(self) -> None:
        self.whole.append(self.spent + elapsed(self.since))
        if self.each_epoch is not None:
            self.each_epoch()


def matrix_rate(device: torch.device) -> float:
    """Floating-point operations a second of one large product, the best of five."""
    a = torch.randn(MATRIX, MATRIX, device=device)
    return 2 * MATRIX**3 / min(timed(lambda: a @ a) for _ in range(5))


def usual_epoch(s: Settings, data: ImageDataModule, workers: int, steps: int) -> float:
    loader: DataLoader[Any] = DataLoader(OneByOne(data), data.batch_size, shuffle=True, num_workers=workers)
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            max_epochs=1, limit_train_batches=steps, accelerator=s.trainer.accelerator, callbacks=[watch],
            default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False,
        ).fit(Usual(s, data), loader)  # fmt: skip
    return watch.steps[0]


class Turns:
    """All parts of the measurement, each taking its turn after some steps of train.py, or after an epoch of it."""

    def __init__(self, s: Settings, turns: int, usual: bool) -> None:
        self.s, self.turns, self.usual = s, turns, usual
        self.data = build_data(s)
        self.bare = Bare(s, self.data)
        self.device, self.steps = self.bare.device, self.bare.steps_an_epoch
        self.seconds: Seconds = {}
        self.first = True

    @property
    def images(self) -> int:
        return min(len(self.data.train), self.steps * self.data.batch_size)

    def start(self) -> None:
        """Each part's next epoch, none of it done."""
        bare = self.bare
        self.parts = {"data": bare.batches(), "forward": bare.forward(), "bare": bare.epoch()}
        self.spent = dict.fromkeys(self.parts, 0.0)

    def run_contenders(self, steps: int) -> None:
        for name, part in self.parts.items():
            self.spent[name] += timed(part, steps)

    def end_epoch(self) -> None:
        spent, self.spent = self.spent, {}
        spent["bare, validated"] = spent["bare"] + timed(self.bare.validate)
        self.start()
        if self.first:  # the first epoch only warms the machine up
            self.first = False
            return
        for workers in (0, 2) if self.usual else ():
            spent[f"usual, {workers} workers"] = usual_epoch(self.s, self.data, workers, self.steps)
        for name, seconds in spent.items():
            self.seconds.setdefault(name, []).append(seconds)

    def run(self) -> Seconds:
        """Seconds of an epoch of every part, one value a turn."""
        s = self.s
        watch = Stopwatch(self.run_contenders, self.end_epoch)
        self.start()
        with tempfile.TemporaryDirectory() as folder:
            train(Run(Path(folder) / "run", s), callbacks=[watch], data=self.data, evaluate=False)
            log_to(None)  # the folder, and the log in it, go
        self.seconds["train.py, its steps"] = watch.steps[1:]
        self.seconds["train.py, all of it"] = watch.whole[1:]
        return self.seconds


@torch.inference_mode()
def evaluation_turns(bare: Bare, test: Tensor, seed: int, turns: int) -> Seconds:
    """The importance-weighted bound, and the products of its decoder alone on as many rows; seconds, by turns."""
    vae, images = bare.vae.eval(), test[:EVALUATED]
    calls: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda layer, given, _: calls.append((layer, given[0])))
        for layer in vae.decoder.modules()
        if isinstance(layer, LAYERS)
    ]
    with fixed_noise(seed):
        vae.decode(vae.prior.sample(torch.Size((estimates.ROWS, 1))))
    for hook in hooks:
        hook.remove()
    chunks = SAMPLES * len(images) // estimates.ROWS

    def products() -> None:
        for _ in range(chunks):
            for layer, given in calls:
                layer(given)

    seconds: Seconds = {"products": [], "bound": []}
    for _ in range(turns + 1):
        seconds["products"].append(timed(products))
        seconds["bound"].append(timed(lambda: estimates.bounds(vae, images, SAMPLES, seed)))
    vae.train()
    return {name: values[1:] for name, values in seconds.items()}


FIRST_STEP = """
import os, runpy, sys
import vae.training.lit
vae.training.lit.LitVAE.training_step = lambda *_: os._exit(0)
sys.argv = ["train.py", *{overrides!r}, "run_dir={folder}/run"]
runpy.run_path({script!r}, run_name="__main__")
"""  # for a process of its own: `python train.py` up to its first training step, and out


def start_up(overrides: list[str], turns: int) -> Seconds:
    """Seconds until the first step, and of the imports alone, each in fresh processes that take turns."""
    script = str(Path(CONF).parent / "train.py")
    imports = "import torch, torchvision, lightning"

    def process(code: str) -> float:
        return timed(lambda: subprocess.run([sys.executable, "-c", code], check=True, capture_output=True))

    seconds: Seconds = {"first step": [], "imports": []}
    for _ in range(turns):
        with tempfile.TemporaryDirectory() as folder:
            seconds["first step"].append(process(FIRST_STEP.format(overrides=overrides, folder=folder, script=script)))
        seconds["imports"].append(process(imports))
    return seconds


def spread(values: list[float]) -> float:
    return (max(values) - min(values)) / 2


def ratio(seconds: list[float], reference: list[float]) -> float:
    """The median over turns of a part's seconds divided by the reference's."""
    return median(one / other for one, other in zip(seconds, reference, strict=True))


def compare(seconds: Seconds, images: int) -> dict[str, dict[str, float]]:
    return {
        name: {
            "seconds": median(values),
            "spread": spread(values),
            "images_per_second": images / median(values),
            "to_bare": ratio(values, seconds["bare"]),
            "to_bare_validated": ratio(values, seconds["bare, validated"]),
        }
        for name, values in seconds.items()
    }


def report(turns: Turns, overrides: list[str]) -> dict[str, Any]:
    """Medians and spreads, images a second, ratios to the bare loop, the share of the arithmetic limit."""
    seconds, rate = turns.run(), matrix_rate(turns.device)
    bare = turns.bare
    starts = start_up(overrides, turns.turns)
    measures = {
        "parts": compare(seconds, turns.images),
        "step_shares": shares(bare, min(50, turns.steps)),
        "matrix_gflops": rate / 1e9,
        "share_of_arithmetic": turns.steps * flops(bare) / rate / median(seconds["bare"]),
        "seconds_to_first_step": median(starts["first step"]),
        "first_step_to_imports": ratio(starts["first step"], starts["imports"]),
        "peak_memory_gib": peak_memory(turns.device),
        "device": str(turns.device),
        "threads": torch.get_num_threads(),
        "turns": turns.turns,
    }
    if bare.vae.likelihood.normalised:
        spent = evaluation_turns(bare, turns.data.test.images, turns.s.seed, turns.turns)
        measures["importance_samples_per_second"] = SAMPLES * EVALUATED / median(spent["bound"])
        measures["evaluation_to_products"] = ratio(spent["products"], spent["bound"])
    return measures


def flops(bare: Bare) -> int:
    """Of one step, forward and backward, as torch counts its matrix products and convolutions."""
    x, y = next(iter(bare.batches()))
    with FlopCounterMode(display=False) as counter:
        bare.loss(x, y, 0).backward()
    return counter.get_total_flops()


def shares(bare: Bare, steps: int = 50) -> dict[str, float]:
    """Where a step's time goes, by the kind of operation; Python's own share is not in it."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it says at length that a machine has no GPU
    with torch.autograd.profiler.profile(use_cpu=True) as profile:
        timed(bare.epoch(), steps)
    spent = dict.fromkeys([*KINDS, "elementwise"], 0.0)
    for event in profile.key_averages():
        name = event.key.split("::")[-1]
        kind = next((k for k, parts in KINDS.items() if any(part in name for part in parts)), "elementwise")
        spent[kind] += event.self_device_time_total if bare.device.type == "cuda" else event.self_cpu_time_total
    return {kind: time / sum(spent.values()) for kind, time in spent.items()}


def peak_memory(device: torch.device) -> float:
    """GiB: of the device's memory, or of this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(overrides: list[str], turns: int, usual: bool, as_json: bool) -> None:
    """Measures and prints; raises InputError for turns below 1."""
    if turns < 1:
        raise InputError(f"--turns {turns}: must be a whole number of at least 1; for example --turns 3")
    s = compose([*overrides, f"trainer.max_epochs={turns + 1}"])  # schedules follow
    if s.threads:
        torch.set_num_threads(s.threads)
    with redirect_stdout(sys.stderr):  # the progress of training
        log_to(None)
        measures = report(Turns(s, turns, usual), overrides)
    print(json.dumps(measures, indent=2)) if as_json else show(measures)


def show(measures: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    titles = ("an epoch of", "seconds", "spread", "images a second", "to the bare loop", "validated")
    table = Table(*titles, box=box.SIMPLE)
    for name, row in measures["parts"].items():
        table.add_row(
            name,
            *(f"{row[key]:.3g}" for key in ("seconds", "spread")),
            f"{row['images_per_second']:,.0f}",
            *(f"{row[key]:.2f}" for key in ("to_bare", "to_bare_validated")),
        )
    Console(width=110).print(table)
    share = ", ".join(f"{kind} {part:.0%}" for kind, part in measures["step_shares"].items())
    print(f"a bare step          {share}")
    reached, times = measures["share_of_arithmetic"], measures["first_step_to_imports"]
    print(f"matrix products      {measures['matrix_gflops']:.0f} GFLOP/s; the bare loop reaches {reached:.0%} of it")
    print(f"to the first step    {measures['seconds_to_first_step']:.1f} s, {times:.2f} of the imports")
    if "evaluation_to_products" in measures:
        samples, part = measures["importance_samples_per_second"], measures["evaluation_to_products"]
        print(f"evaluation           {samples:,.0f} importance samples a second, {part:.2f} of the decoder's products")
    place = f"{measures['threads']} threads, {measures['turns']} turns, {measures['device']}"
    print(f"peak memory          {measures['peak_memory_gib']:.2f} GiB; {place}")
