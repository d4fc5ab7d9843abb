"""`vae bench`: training through train.py's own path, beside bare PyTorch loops and the usual Lightning recipe.

Each contender is a process of its own. They take turns, an epoch each, so that a machine's moods fall on all alike.
"""

import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, redirect_stdout
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import ToTensor
from torchvision.transforms.functional import to_pil_image

from vae.data.module import ImageDataModule
from vae.device import flush_denormals
from vae.errors import InputError, RunFailed
from vae.evaluation import estimates
from vae.noise import fixed_noise
from vae.objectives import terms_of
from vae.run.bare import Bare, Clock, timed
from vae.run.build import build_data, build_model
from vae.run.compose import compose
from vae.run.directory import Run
from vae.run.keys import CONF, Settings
from vae.run.process import log_to
from vae.run.train import train

Seconds = dict[str, list[float]]
Turn = AbstractContextManager[None]  # begins when the contender's turn comes, ends with its epoch
Contender = Callable[[Settings, ImageDataModule, Turn, int], None]

MATRIX = 2048
SAMPLES, EVALUATED = 500, 40  # importance samples of each image, images
SLOWER = 1.25  # the last epochs by the first, from which a line says so
LAYERS = nn.Linear | nn.Conv2d | nn.ConvTranspose2d
GROUPS = ("prior", "posterior", "likelihood", "objective", "optimizer")  # what a step of the same data is made of
STEPS = 20  # of each option of a group in a turn

# Parts of the profiler's names for operations. Every other operation works element by element.
KINDS = {
    "arithmetic": ("mm", "conv"),
    "random numbers": ("normal", "uniform", "bernoulli", "dropout", "random", "randperm"),
    "optimizer": ("adam", "sgd", "foreach", "Optimizer"),
    "moving data": ("copy", "index", "cat", "fill", "zero", "to"),
}

# --- the contenders ---------------------------------------------------------------------------------------------------


def loop(epoch: Callable[[Bare], None]) -> Contender:
    """A part of the bare loop, again and again."""

    def contend(s: Settings, data: ImageDataModule, turn: Turn, epochs: int) -> None:
        bare = Bare(s, data)
        for _ in range(epochs):
            with turn:
                epoch(bare)

    return contend


def run_through(steps: Callable[[Bare], Iterator[Any]]) -> Callable[[Bare], None]:
    """A whole epoch of a part that has `steps`, as far as `trainer.limit_train_batches` goes."""

    def epoch(bare: Bare) -> None:
        for _ in zip(range(bare.steps_an_epoch), steps(bare), strict=False):
            pass

    return epoch


def train_and_validate(bare: Bare) -> None:
    run_through(Bare.epoch)(bare)
    bare.validate()


class Turns(Callback):
    """A turn for each epoch of a Lightning trainer: steps, and where there are any, validation, log and checkpoints."""

    def __init__(self, turn: Turn) -> None:
        self.turn, self.begun = turn, False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_end(trainer, pl_module)  # the epoch before ends here, its checkpoint written
        self.begun = True
        self.turn.__enter__()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.begun:
            self.turn.__exit__(None, None, None)


def train_py(s: Settings, data: ImageDataModule, turn: Turn, epochs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        train(Run(Path(folder) / "run", s), callbacks=[Turns(turn)], data=data, evaluate=False)
        log_to(None)  # the folder, and the log in it, go


class Usual(LightningModule):
    """The recipe of most tutorials: images one by one through a DataLoader, `self.log` in each step."""

    def __init__(self, s: Settings, data: ImageDataModule) -> None:
        super().__init__()
        lit = build_model(s, data)
        self.vae, self.objective, self.make = lit.vae, lit.objective, lit.optimizer

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        terms = terms_of(self.objective, self.vae, batch[0], self.global_step, *batch[1:])
        self.log("train/loss", terms.loss, prog_bar=True)
        self.log("train/reconstruction", -terms.log_px.mean())
        self.log("train/kl", terms.kl.sum(-1).mean())
        return terms.loss

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters())


class OneByOne(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """What torchvision's MNIST with ToTensor does for each image: to PIL, and back as floats."""

    def __init__(self, data: ImageDataModule) -> None:
        self.images, self.labels, self.tensor = data.train.images, data.train.labels, ToTensor()
        self.dynamic = data.binarize == "dynamic"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x = self.tensor(to_pil_image(self.images[index]))
        return torch.bernoulli(x) if self.dynamic else x, self.labels[index]


def usual(workers: int) -> Contender:
    def contend(s: Settings, data: ImageDataModule, turn: Turn, epochs: int) -> None:
        fork = "fork" if workers else None  # as in a script; a process of a forkserver would ask that for its workers
        loader: DataLoader[Any] = DataLoader(
            OneByOne(data), data.batch_size, shuffle=True, num_workers=workers, multiprocessing_context=fork
        )
        with tempfile.TemporaryDirectory() as folder:
            Trainer(
                max_epochs=epochs, limit_train_batches=s.trainer.limit_train_batches,
                accelerator=s.trainer.accelerator, callbacks=[Turns(turn)], default_root_dir=folder,
                enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
            ).fit(Usual(s, data), loader)  # fmt: skip

    return contend


CONTENDERS: dict[str, Contender] = {
    "data": loop(run_through(Bare.batches)),
    "forward": loop(run_through(Bare.forward)),
    "bare": loop(run_through(Bare.epoch)),
    "bare, validated": loop(train_and_validate),
    "usual, 0 workers": usual(0),
    "usual, 2 workers": usual(2),
    "train.py": train_py,
}
UNFLUSHED = ", denormals kept"


# --- their turns ------------------------------------------------------------------------------------------------------


def contend(name: str, overrides: list[str], epochs: int, pipe: Connection) -> None:
    """A contender's process, to its end."""
    sys.stdout = sys.stderr  # the progress of training
    flush_denormals(not name.endswith(UNFLUSHED))
    s = compose(overrides)
    log_to(None)
    if s.threads:
        torch.set_num_threads(s.threads)
    CONTENDERS[name.removesuffix(UNFLUSHED)](s, build_data(s), Clock(pipe), epochs)


def race(names: list[str], overrides: list[str], epochs: int) -> Seconds:
    """Seconds of each epoch of each contender; raises RunFailed where one of them ends early."""
    context = multiprocessing.get_context("forkserver")  # imports torch once; its children have no thread yet
    context.set_forkserver_preload(["vae.commands.bench"])
    pipes, processes = {}, []
    for name in names:
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=contend, args=(name, overrides, epochs, theirs)))
        processes[-1].start()
        theirs.close()
    seconds: Seconds = {name: [] for name in names}
    try:
        for _ in range(epochs):
            for name, pipe in pipes.items():
                pipe.send("go")
                seconds[name].append(pipe.recv())
    except (EOFError, OSError):
        raise RunFailed(f"vae bench: {name} ended early; its error stands above") from None
    finally:
        for process, pipe in zip(processes, pipes.values(), strict=True):
            pipe.close()
            process.join(timeout=10)
            process.terminate()
    return seconds


def summarise(seconds: Seconds, images: int) -> dict[str, dict[str, float]]:
    """By contender: median and half the range, seconds of the first, middle and last tenth, ratios turn by turn."""

    def ratio(name: str, reference: str) -> float:
        flushed = reference + (UNFLUSHED if name.endswith(UNFLUSHED) else "")
        return median(one / other for one, other in zip(seconds[name], seconds[flushed], strict=True))

    table = {}
    for name, values in seconds.items():
        tenth, middle = max(1, len(values) // 10), len(values) // 2
        table[name] = {
            "seconds": median(values),
            "spread": (max(values) - min(values)) / 2,
            "first": median(values[:tenth]),
            "middle": median(values[middle : middle + tenth]),
            "last": median(values[-tenth:]),
            "images_per_second": images / median(values),
            "to_bare": ratio(name, "bare"),
            "to_bare_validated": ratio(name, "bare, validated"),
        }
    return table


# --- a step of the bare loop, looked at more closely ------------------------------------------------------------------


def matrix_rate(device: torch.device) -> float:
    """Floating-point operations per second of one large product, the best of five."""
    a = torch.randn(MATRIX, MATRIX, device=device)
    return 2 * MATRIX**3 / min(timed(lambda: a @ a) for _ in range(5))


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


@torch.inference_mode()
def evaluation_turns(bare: Bare, test: Tensor, seed: int, turns: int) -> Seconds:
    """The importance-weighted bound, and the products of its decoder alone on as many rows; seconds, by turns."""
    vae, images = bare.vae.eval(), test[:EVALUATED]
    calls: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda layer, inputs, _: calls.append((layer, inputs[0])))
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
            for layer, inputs in calls:
                layer(inputs)

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


def peak_memory(device: torch.device) -> float:
    """GiB: of the device's memory, or of this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


# --- the command ------------------------------------------------------------------------------------------------------


def measure(overrides: list[str], epochs: int, usual: bool, denormals: bool) -> dict[str, Any]:
    """Medians and spreads, images per second, ratios to the bare loop, the share of the arithmetic limit."""
    names = [name for name in CONTENDERS if usual or not name.startswith("usual")]
    names += [f"{name}{UNFLUSHED}" for name in names[2:] if denormals]  # all that train
    overrides = [*overrides, f"trainer.max_epochs={epochs + 1}"]  # schedules follow
    seconds = {name: values[1:] for name, values in race(names, overrides, epochs + 1).items()}  # the first warms up
    s = compose(overrides)
    data = build_data(s)
    bare, few = Bare(s, data), min(epochs, 5)
    rate, starts = matrix_rate(bare.device), start_up(overrides, few)
    measures = {
        "parts": summarise(seconds, min(len(data.train), bare.steps_an_epoch * data.batch_size)),
        "step_shares": shares(bare, min(50, bare.steps_an_epoch)),
        "matrix_gflops": rate / 1e9,
        "share_of_arithmetic": bare.steps_an_epoch * flops(bare) / rate / median(seconds["bare"]),
        "seconds_to_first_step": median(starts["first step"]),
        "first_step_to_imports": median(starts["first step"]) / median(starts["imports"]),
        "peak_memory_gib": peak_memory(bare.device),
        "device": str(bare.device),
        "threads": torch.get_num_threads(),
        "epochs": epochs,
    }
    if bare.vae.likelihood.normalised:
        spent = evaluation_turns(bare, data.test.images, s.seed, few)
        measures["importance_samples_per_second"] = SAMPLES * EVALUATED / median(spent["bound"])
        measures["evaluation_to_products"] = median(spent["products"]) / median(spent["bound"])
    return measures


def main(overrides: list[str], epochs: int, usual: bool, as_json: bool, denormals: bool = False) -> None:
    """Measures and prints."""
    s = compose(overrides)
    if s.threads:
        torch.set_num_threads(s.threads)
    with redirect_stdout(sys.stderr):  # the progress of training
        log_to(None)
        measures = measure(overrides, epochs, usual, denormals)
    print(json.dumps(measures, indent=2)) if as_json else show(measures)


def warn_of_slowing(parts: dict[str, dict[str, float]]) -> None:
    for name, row in parts.items():
        if row["last"] > SLOWER * row["first"]:
            cause = "denormal numbers" if name.endswith(UNFLUSHED) else "a busy or throttled processor"
            print(f"{name}: epochs become slower, from {row['first']:.3g} to {row['last']:.3g} s; likely {cause}")


def show(measures: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    columns = ("seconds", "spread", "first", "middle", "last")
    table = Table("an epoch of", "seconds", "spread", "first", "middle", "last", "images/s", "÷ bare", "÷ validated",
                  box=box.SIMPLE)  # fmt: skip
    for name, row in measures["parts"].items():
        ratios = (f"{row[key]:.2f}" for key in ("to_bare", "to_bare_validated"))
        table.add_row(name, *(f"{row[key]:.3g}" for key in columns), f"{row['images_per_second']:,.0f}", *ratios)
    Console(width=120).print(table)
    warn_of_slowing(measures["parts"])
    share = ", ".join(f"{kind} {part:.0%}" for kind, part in measures["step_shares"].items())
    print(f"a bare step          {share}")
    reached, times = measures["share_of_arithmetic"], measures["first_step_to_imports"]
    print(f"matrix products      {measures['matrix_gflops']:.0f} GFLOP/s; the bare loop reaches {reached:.0%} of it")
    print(f"to the first step    {measures['seconds_to_first_step']:.1f} s, {times:.2f} of the imports")
    if "evaluation_to_products" in measures:
        samples, part = measures["importance_samples_per_second"], measures["evaluation_to_products"]
        print(f"evaluation           {samples:,.0f} importance samples/s, {part:.2f} of the decoder's products")
    place = f"{measures['threads']} threads, {measures['epochs']} epochs, {measures['device']}"
    print(f"peak memory          {measures['peak_memory_gib']:.2f} GiB; {place}")


def main_each(group: str, overrides: list[str], turns: int) -> None:
    """Prints a line per option of a group of conf/: milliseconds per step, median over turns, and the ratio to the
    group's default."""
    usual, options = options_of(group, overrides)
    default = compose(overrides)
    if default.threads:
        torch.set_num_threads(default.threads)
    data, loops = build_data(default), {}
    for option in options:
        try:
            loops[option] = Bare(compose([*overrides, f"{group}={option}"]), data)
        except InputError as error:
            print(f"{option:<22} {error}")
    seconds: Seconds = {option: [] for option in loops}
    for _ in range(turns + 1):  # the first turn only warms up
        for option, bare in loops.items():
            steps = min(STEPS, bare.steps_an_epoch)
            seconds[option].append(timed(bare.epoch(), steps) / steps)
    spent = {option: median(values[1:]) for option, values in seconds.items()}
    for option, step in spent.items():
        ratio = f"{step / spent[usual]:.2f} of {usual}" if usual in spent else ""
        print(
            f"{option:<22} {1000 * step:8.2f} ms per step  {loops[option].vae.parameter_count:>11,} parameters  {ratio}"
        )


def options_of(group: str, overrides: list[str]) -> tuple[str, list[str]]:
    """The default's name and all names; raises InputError for what is no group, or is chosen already."""
    folder = Path(CONF, group)
    options = sorted(path.stem for path in folder.glob("*.yaml") if path.stem not in ("own", "base"))
    if group not in GROUPS:
        raise InputError(f"--each={group}: must be one of {', '.join(GROUPS)}")
    if chosen := [override for override in overrides if override.startswith(f"{group}=")]:
        raise InputError(f"{chosen[0]}: --each={group} takes all of them; leave it out")
    defaults = yaml.safe_load(Path(CONF, "config.yaml").read_text())["defaults"]
    return next((line[group] for line in defaults if isinstance(line, dict) and group in line), options[0]), options
