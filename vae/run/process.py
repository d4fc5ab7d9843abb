"""This process: its rank, its Slurm job, its log."""

import functools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

ORPHAN_WATCH = "orphan watch"
NOISY = ("lightning.pytorch", "lightning.fabric", "matplotlib", "hydra", "hydra_plugins")  # loggers


def slurm_job() -> str | None:
    """The number of the batch job that this process belongs to; an interactive one is never requeued."""
    if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")


def find_own_modules() -> None:
    """Modules of the working directory can be named as own parts."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def in_a_child() -> bool:
    """Whether Lightning's ddp, or Slurm, started this process for another device of a run that is already open."""
    return any(int(os.environ.get(name, 0)) > 0 for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID"))


def in_a_sweep() -> bool:
    """Whether this process is at work on a job of a sweep."""
    hydra = sys.modules.get("hydra.core.hydra_config")
    if hydra is None or not hydra.HydraConfig.initialized():
        return False
    mode = hydra.HydraConfig.get().mode  # None where a configuration was only composed
    return mode is not None and mode.name == "MULTIRUN"


def works_for_a_sweep() -> bool:
    """Whether a sweep started this process to work on its jobs beside others, on the same terminal."""
    return os.environ.get("VAE_SWEEP") == str(os.getppid())


def stop_with_the_sweep() -> None:
    """A worker whose sweep is killed saves and stops, as on SIGTERM: the same command is to find its run free."""
    if not works_for_a_sweep() or any(thread.name == ORPHAN_WATCH for thread in threading.enumerate()):
        return

    def watch(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, args=(os.getppid(),), name=ORPHAN_WATCH, daemon=True).start()


class TerminalHandler(logging.StreamHandler):  # type: ignore[type-arg]  # it writes text
    """Writes each line above the progress bar, if one is there."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm = sys.modules.get("tqdm")  # imported with the bar
        if tqdm is None:
            super().emit(record)
        else:
            tqdm.tqdm.write(self.format(record), file=self.stream)
            self.flush()


def log_to(file: Path | None) -> None:
    """Sends the log's lines to the terminal and, with the time, to `file`."""
    root = logging.getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(logging.ERROR if in_a_child() else logging.INFO)
    if not works_for_a_sweep():  # which tells of each job when it ends
        screen = TerminalHandler(sys.stdout)
        screen.setFormatter(logging.Formatter("%(message)s"))
        root.addHandler(screen)
    if file is not None:
        written = logging.FileHandler(file)
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
