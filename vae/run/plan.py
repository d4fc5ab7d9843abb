"""A sweep as a whole: what is done, what is left and when it will end."""

import contextlib
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from vae.errors import InputError
from vae.run.directory import FAILURE, Run, read_metrics
from vae.run.jobs import choose_directory, fingerprint, identify_runs, is_finished
from vae.run.keys import Settings
from vae.run.settings import monitored
from vae.run.sweep import Status, last_epoch, read_record
from vae.words import duration

PAUSE = 0.5  # seconds between two looks at the folder


class Failed(float):
    """The result of a job that failed: not a number, with the line that says why."""

    def __new__(cls, line: str) -> "Failed":
        return super().__new__(cls, math.nan)

    def __init__(self, line: str) -> None:
        self.line = line

    def __reduce__(self) -> tuple[type["Failed"], tuple[str]]:
        return Failed, (self.line,)


@dataclass(frozen=True)
class Job:
    """One run of a sweep, before it is started."""

    name: str
    overrides: tuple[str, ...]
    settings: Settings
    directory: Path
    status: Status | None  # None: nothing is there yet

    @property
    def is_done(self) -> bool:
        return self.status == "finished"

    @property
    def standing(self) -> str:
        if self.status == "unfinished":
            return last_epoch(self.directory) or "begun"
        return self.status or "to do"


def plan_jobs(root: Path, names: list[str], overrides: list[list[str]], settings: list[Settings]) -> list[Job]:
    """Each configuration once, with its folder and how it stands there.

    Raises InputError for a folder that is itself a run, and for what would be refused once it is the job's turn.
    """
    if (root / "config.yaml").exists():
        raise InputError(f"run_dir={root}: is a run; a sweep needs a folder of its own, for example {root}_sweep")
    there = identify_runs(root) if root.is_dir() else []
    jobs: dict[str, Job] = {}
    for name, given, s in zip(names, overrides, settings, strict=True):
        if (key := fingerprint(s.plain)) in jobs:
            continue
        directory = choose_directory(root, name, s, there)
        Run(directory, s).check()
        status = read_record(directory).status if (directory / "config.yaml").exists() else None
        if status == "finished" and not is_finished(directory, s):  # it is to train on
            status = "unfinished"
        jobs[key] = Job(name, tuple(given), s, directory, status)
    return list(jobs.values())


def describe(root: Path, jobs: list[Job]) -> str:
    """`sweep of 4 runs in outputs/multirun/sizes: 2 finished, 1 begun, 1 to do`."""
    done = sum(job.is_done for job in jobs)
    new = sum(job.status is None for job in jobs)
    counts = {"finished": done, "begun": len(jobs) - done - new, "to do": new}
    return f"sweep of {len(jobs)} runs in {root}: {', '.join(f'{n} {word}' for word, n in counts.items() if n)}"


@dataclass(frozen=True)
class Cost:
    """What a run costs, as `vae.run.probe` finds it."""

    parameters: int
    seconds: float  # of training and validation that are left


def list_jobs(jobs: list[Job], costs: list[Cost] | None) -> list[str]:
    """A line a job: how it stands, the model's parameters and what varies; then the time that the rest takes."""
    lines = [describe(jobs[0].directory.parent, jobs)]
    if costs is None:
        return [*lines, *(f"{job.standing:<14} {job.name}" for job in jobs)]
    for job, cost in zip(jobs, costs, strict=True):
        lines.append(f"{job.standing:<14} {cost.parameters:>11,} parameters  {job.name}")
    left, seconds = sum(not job.is_done for job in jobs), sum(cost.seconds for cost in costs)
    if left:
        lines.append(
            f"about {duration(seconds)} of training and validation for the {left} left, one after another, by a few "
            "steps of each on this machine"
        )
    return lines


def result_line(directory: Path, settings: Settings) -> str:
    """`dev/loss 35.13 in epoch 3 of 5`."""
    metrics = read_metrics(directory / "metrics.json")
    assert metrics is not None
    name = monitored(settings.plain, "dev/elbo" in metrics)[0]
    return f"{name} {metrics[name]:.6g} in epoch {metrics['best_epoch']} of {metrics['epochs']}"


class Progress:
    """Tells of each job when it ends, in whatever process that is: it looks at the sweep's folder now and then."""

    def __init__(self, root: Path, jobs: list[Job]) -> None:
        self.root, self.total = root, len(jobs)
        self.left = {fingerprint(job.settings.plain): job for job in jobs if not job.is_done}
        self.started, self.began = time.time(), time.monotonic()
        self.ended = 0

    @contextmanager
    def lines(self) -> Iterator[None]:
        """Looks while the block runs, and once after it."""
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(PAUSE):
                self.look()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.look()

    def look(self) -> None:
        for directory, found in identify_runs(self.root):
            job = self.left.get(found or "")
            if job is not None and (said := self._ending(directory, job)):
                del self.left[found or ""]
                self.ended += 1
                say(f"{job.name}: {said}{self._left()}")

    def _ending(self, directory: Path, job: Job) -> str:
        with contextlib.suppress(InputError, OSError):
            if is_finished(directory, job.settings):
                return result_line(directory, job.settings)
            failure = directory / FAILURE
            if failure.stat().st_mtime >= self.started:
                return f"failed: {failure.read_text().strip()}"
        return ""

    def _left(self) -> str:
        if not self.left:
            return ""
        seconds = (time.monotonic() - self.began) / self.ended * len(self.left)
        end = datetime.now() + timedelta(seconds=seconds)
        return f" ({len(self.left)} of {self.total} left, about {duration(seconds)}, until {end:%H:%M})"


def say(line: str) -> None:
    """To the terminal, above a progress bar; not to the log of the run that is under way."""
    from tqdm import tqdm

    tqdm.write(line)
