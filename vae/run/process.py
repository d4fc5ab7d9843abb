"""This process: its rank, its children, its Slurm job, its log."""

import atexit
import contextlib
import functools
import gc
import importlib
import io
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from vae.errors import InputError

ORPHAN_WATCH = "orphan watch"
NOISY = ("lightning.pytorch", "lightning.fabric", "matplotlib", "hydra", "submitit")  # loggers
RANKS = ("LOCAL_RANK", "RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK", "NODE_RANK", "GROUP_RANK")
# With any of these, Lightning takes this process for one of several that share a run.
RANKS_AND_SIZES = (
    *RANKS, "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE",
    "SLURM_LOCALID", "SLURM_NODEID", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_LOCAL_RANK",
)  # fmt: skip


text_ranks: dict[str, str] = {}  # what begin_command took out of the environment


def begin_command() -> None:
    """Prepares the process of a command, before anything else is done.

    `python -m` and `python -c`, by which joblib, submitit and multiprocessing start their workers, put the working
    directory on the path, where a file may have the name of a library's module: no child of ours does so. A closed
    standard output is replaced by one that swallows all, so that no data file takes its number.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    _forget_working_directory()
    for name in RANKS:
        if not os.environ.get(name, "0").isdecimal():
            text_ranks[name] = os.environ.pop(name)  # Lightning cannot even be imported with one
    if not _is_installed():
        checkout = str(Path(__file__).parents[2])
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [checkout, os.environ.get("PYTHONPATH")]))
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (for as long as the process lives)
    out = sys.__stdout__
    if out is not None and sys.stdout is out and not out.isatty():
        sys.stdout = PatientOutput(out.buffer, out.encoding, out.errors)


def _forget_working_directory() -> None:
    """An empty entry in PYTHONPATH, as in `PYTHONPATH=$PYTHONPATH:/lib`, stands for the working directory."""
    places = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if "" in places and len(places) > 1:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, places))
        here = {os.getcwd()} - {str(Path(__file__).parents[2])}
        sys.path[:] = [place for place in sys.path if place not in here]


class PatientOutput(io.TextIOWrapper):
    """Standard output whose reader may go, as in `| head`: the rest is dropped, and the command goes on to its end."""

    def write(self, text: str) -> int:
        with self._dropping():
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            super().flush()

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())


def _is_installed() -> bool:
    try:
        metadata.distribution("vae-lightning")
    except metadata.PackageNotFoundError:
        return False
    return True


def python_command(*arguments: str) -> list[str]:
    """The command of a Python that imports nothing from the working directory, for `subprocess` and `os.exec*`."""
    return [sys.executable, "-P", *arguments]


def shares_its_batches(trainer: Any) -> bool:
    """Whether several processes train a run with these settings of the group `trainer`, each on its own device."""
    if trainer.devices == "auto" and trainer.accelerator != "cpu":
        import torch  # only a run that leaves its devices to Lightning waits for it here

        return trainer.num_nodes > 1 or torch.cuda.device_count() > 1
    devices = len(trainer.devices) if isinstance(trainer.devices, list) else trainer.devices
    return trainer.strategy != "auto" or trainer.num_nodes > 1 or devices not in (1, "auto")


@contextlib.contextmanager
def alone(trainer: Any) -> Iterator[None]:
    """Inside the block, a run on one device is this process's own, whatever a launcher or a task farm has left behind.

    `trainer` is the group of that name in the settings. Lightning would otherwise believe RANK, LOCAL_RANK or
    SLURM_PROCID, and a process of rank 1 writes nothing.
    """
    if shares_its_batches(trainer):
        for name, value in ({name: os.environ.get(name, "0") for name in RANKS} | text_ranks).items():
            if not value.isdecimal():
                raise InputError(f"{name}={value}: must be a number; unset it, or set it to this process's rank")
        yield
        return
    variables = {name: os.environ.pop(name) for name in RANKS_AND_SIZES if name in os.environ}
    lightning = sys.modules.get("lightning.fabric.utilities.rank_zero")
    rank = lightning.rank_zero_only.rank if lightning else 0
    try:
        if lightning:
            lightning.rank_zero_only.rank = 0  # it was read when Lightning was imported
        yield
    finally:
        os.environ.update(variables)
        if lightning:
            lightning.rank_zero_only.rank = rank


def slurm_job() -> str | None:
    """The number of the batch job that this process belongs to; an interactive one is never requeued."""
    if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")


def in_a_child() -> bool:
    """Whether Lightning's ddp, or Slurm, started this process for another device of a run that is already open."""
    return any(os.environ.get(name, "0").strip() not in ("", "0") for name in RANKS)


def stop_with(parent: int) -> None:
    """Saves and stops this process, as SIGTERM does, when its parent has gone: the next command finds its run free."""
    if any(thread.name == ORPHAN_WATCH for thread in threading.enumerate()):
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name=ORPHAN_WATCH, daemon=True).start()


@contextlib.contextmanager
def quiet_writers() -> Iterator[None]:
    """No thread prints an OSError: TensorBoard's meets a full disk first, the run where it writes next, and says so."""

    def pass_over(error: threading.ExceptHookArgs) -> None:
        if not issubclass(error.exc_type, OSError):
            previous(error)

    previous, threading.excepthook = threading.excepthook, pass_over
    try:
        yield
    finally:
        threading.excepthook = previous


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """For imports: they make a million objects and no garbage, and the collector would take a second to find that out.

    What they made is never looked through again.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
        atexit.register(gc.unfreeze)  # at the end, modules in C count what was not freed
    finally:
        gc.enable()


def import_torch_and_lightning() -> None:
    """What training needs."""
    if "vae.run.trainer" not in sys.modules:
        with collector_off():
            importlib.import_module("vae.run.trainer")


class TerminalHandler(logging.StreamHandler):  # type: ignore[type-arg]  # it writes text
    """Writes each line above the progress bar, if one is there."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm = sys.modules.get("tqdm")  # imported with the bar
        if tqdm is None:
            super().emit(record)
        else:
            tqdm.tqdm.write(self.format(record), file=self.stream)
            self.flush()


def require_own(file: Path) -> None:
    """Raises InputError for a link or pipe in the place of a run's file: lines would go where its author wants."""
    if file.is_symlink() or (file.exists() and not file.is_file()):
        raise InputError(f"{file}: is a link or no plain file; remove it")


class LogFile(logging.FileHandler):
    """train.log: on a full disk the terminal alone gets the line, instead of a trace of the handler."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def log_to(file: Path | None) -> None:
    """Sends the log's lines to the terminal and, with the time, to `file`.

    A worker of joblib leaves the terminal to its parent, which tells of each job when it ends.
    """
    root = logging.getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(logging.ERROR if in_a_child() else logging.INFO)
    if multiprocessing.parent_process() is None:
        screen = TerminalHandler(sys.stdout)
        screen.setFormatter(logging.Formatter("%(message)s"))
        root.addHandler(screen)
    if file is not None:
        require_own(file)
        written = LogFile(file)
        written.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        root.addHandler(written)
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.ERROR)
    # Lightning warns about torch, the number of workers (the data are in memory) and the steps between log lines
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")


def log_file() -> str | None:
    """Where the lines of the run under way are written, or None before it has a directory."""
    files = [h.baseFilename for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler)]
    return os.path.relpath(files[0]) if files else None


@functools.cache  # a process runs the code that it began with, also in a sweep's later jobs
def git_commit() -> str | None:
    """The project's commit, with `+changes` where the tree differs from it; None outside a git checkout."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "HEAD").strip() + ("+changes" if git("status", "--porcelain").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None
