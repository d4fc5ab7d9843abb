"""Runs many jobs, one after another or several at once, and tells of each as it ends: sweeps, `vae reproduce`.

Every engine takes jobs and a deadline and yields an Outcome for each job that was begun: `in_turn` in this process,
`with_joblib` in workers on this machine, `with_submitit_local` and `with_submitit_slurm` in processes of submitit.
"""

import contextlib
import functools
import logging
import math
import multiprocessing
import os
import signal
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from vae.errors import FAILED, InputError, RunFailed, Stopped, ending, first_line, is_known
from vae.run.directory import FAILED_EVENTS, FAILURE, Run, read_metrics, write, write_yaml
from vae.run.jobs import Job, describe, is_finished
from vae.run.keys import CONF
from vae.run.process import alone, import_torch_and_lightning, log_file, log_to, stop_with
from vae.run.records import is_locked
from vae.run.settings import monitored
from vae.run.table import show_result
from vae.words import duration

COMPARISON = "comparison"  # a folder in the sweep's own
STOPPED = 143  # exit code of a run that was told to stop, by a signal or by its deadline
PAUSE = 1.0  # seconds between two looks at what submitit's jobs do

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a job ended: the exit code that `train.py` has for it, and one line."""

    job: Job
    code: int
    line: str

    @property
    def was_stopped(self) -> bool:
        return self.code > 128


Engine = Callable[[Sequence[Job], float], Iterator[Outcome]]


# --- one job ----------------------------------------------------------------------------------------------------------


def run_job(job: Job, deadline: float = math.inf) -> Outcome:
    """Trains, continues or reads one run in this process.

    `deadline` is a `time.time()` at which the run saves and stops. What a run fails with is kept beside it.
    """
    if time.time() >= deadline:
        return Outcome(job, STOPPED, "not begun")
    log_to(None)
    try:
        job = job.take()
        log.info("run %s", job.directory)
        with stopped_at(deadline):
            finish(job.run, job.cfg)
        return Outcome(job, 0, result_line(job))
    except BaseException as error:
        code, line = ending(error)
        if code in (1, 2):
            keep_failure(job.run, line, error, job.cfg)
        return Outcome(job, code, line)
    finally:
        log_to(None)


def finish(run: Run, cfg: DictConfig | None = None, callbacks: Callable[[], list[Any]] = list) -> float:
    """Trains a run to its end, or reads one that has ended; returns the best epoch's monitored metric.

    `cfg`: what Hydra composed. `callbacks` makes further ones, once torch and Lightning are imported: that takes
    seconds, which neither a mistyped key nor a finished run waits for. Raises as `vae.run.train.train` does.
    """
    with alone(run.settings.trainer):
        run.check()
        if run.is_finished:
            return show_result(run)
        import_torch_and_lightning()
        from vae.run.train import train

        return train(run, cfg, callbacks()) or 0.0


@contextlib.contextmanager
def stopped_at(deadline: float) -> Iterator[None]:
    """Inside the block, this process is sent SIGTERM at the deadline: a run saves and stops."""
    timer = threading.Timer(min(deadline - time.time(), threading.TIMEOUT_MAX), os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def result_line(job: Job) -> str:
    """`dev/loss 35.13 in epoch 3 of 5`."""
    metrics = read_metrics(job.directory / "metrics.json")
    assert metrics is not None
    name = monitored(job.settings.plain, "dev/elbo" in metrics)[0]
    return f"{name} {metrics[name]:.6g} in epoch {metrics['best_epoch']} of {metrics['epochs']}"


def keep_failure(run: Run, line: str, error: BaseException, cfg: DictConfig | None = None) -> None:
    """Keeps what a run failed with beside it until it goes on: in failure.txt, its log and TensorBoard's HPARAMS.

    A run in which another process works is left alone. `cfg`: what Hydra composed, for a run that was refused.
    """
    file = log_file()
    with contextlib.suppress(OSError):  # the disk may be what failed
        if file is not None and not is_known(error):
            with open(file, "a") as written:
                traceback.print_exception(error, file=written)
        if not (run.directory / "config.yaml").exists() or (file is None and is_locked(run.directory)):
            return
        write(run.directory / FAILURE, line + "\n")
        if cfg is not None:
            run.record(cfg)
        if "tensorboard" in run.settings.plain["logger"]:
            import_torch_and_lightning()
            from vae.run.trainer import sheet_of
            from vae.training.hparams import write_failed_row

            write_failed_row(run.directory, sheet_of(run), FAILED_EVENTS)


# --- engines ----------------------------------------------------------------------------------------------------------


def in_turn(jobs: Sequence[Job], deadline: float = math.inf) -> Iterator[Outcome]:
    """One after another in this process; ends with the job that is told to stop."""
    for job in jobs:
        with raising_stopped():
            outcome = run_job(job, deadline)
        yield outcome
        if outcome.was_stopped:
            return


@contextlib.contextmanager
def raising_stopped() -> Iterator[None]:
    """SIGTERM raises Stopped inside the block; while a run trains, vae/training/signals.py takes it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, _: object) -> None:
        raise Stopped(signum)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def with_joblib(jobs: Sequence[Job], deadline: float = math.inf, n_jobs: int = -1, **options: Any) -> Iterator[Outcome]:
    """`n_jobs` at once in worker processes; -1: one per core. Each has its share of the cores as threads.

    At SIGINT or SIGTERM, all runs save and stop. Raises RunFailed if a worker is killed.
    """
    from joblib import Parallel, delayed

    batch, options = uuid.uuid4().hex, {"batch_size": 1, "pre_dispatch": "n_jobs"} | options
    parallel = Parallel(n_jobs=n_jobs, backend="loky", return_as="generator_unordered", **options)
    try:
        with passing_signals_on() as signals:
            waiting = (job for job in jobs if not signals)
            yield from parallel(delayed(_work)(job, deadline, batch, os.getpid()) for job in waiting)
    except BrokenProcessPool as error:
        raise RunFailed(
            "a worker was killed, perhaps for want of memory; lower hydra.launcher.n_jobs, and the same command "
            "continues the runs"
        ) from error


@dataclass
class _Worker:
    """What a worker of joblib knows of itself; it outlives a batch."""

    batch: str = ""
    stopped: str = ""  # the batch in which it was told to stop
    is_busy: bool = False
    parent: int = 0

    def leave_if_orphaned(self) -> None:
        """loky's workers wait for ever for the next job of a parent that was killed."""
        if os.getppid() != self.parent:
            os._exit(STOPPED)

    def note(self, signum: int, _: object) -> None:
        self.stopped = self.batch
        if self.is_busy:
            raise Stopped(signum)
        self.leave_if_orphaned()


_worker = _Worker()


def _work(job: Job, deadline: float, batch: str, parent: int) -> Outcome:
    """A job in a worker, which stops when the process that started it does."""
    if os.getpid() == parent:  # n_jobs=1
        return run_job(job, deadline)
    stop_with(parent)
    _worker.batch, _worker.parent = batch, parent
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _worker.note)
    if _worker.stopped == batch:
        return Outcome(job, STOPPED, "not begun")
    _worker.is_busy = True
    outcome = run_job(job, deadline)
    _worker.is_busy = False
    _worker.leave_if_orphaned()
    if outcome.was_stopped:
        _worker.stopped = batch
    return outcome


@contextlib.contextmanager
def passing_signals_on() -> Iterator[list[int]]:
    """SIGINT and SIGTERM tell the workers to save and stop; the block ends with them, and then Stopped is raised.

    Yields the signals so far. A second one raises Stopped at once.
    """
    signals: list[int] = []

    def pass_on(signum: int, _: object) -> None:
        signals.append(signum)
        if len(signals) > 1:
            raise Stopped(signum)
        for worker in multiprocessing.active_children():
            worker.terminate()

    previous = {signum: signal.signal(signum, pass_on) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    if signals:
        raise Stopped(signals[0])


class Resumable:
    """A job for submitit, which puts it back into its queue if its time is over before the run has begun.

    Later, SIGUSR1 makes the run save and requeue itself (vae/training/signals.py).
    """

    def __call__(self, job: Job) -> Outcome:
        outcome = run_job(job)
        if outcome.was_stopped:  # it leaves no result: the job goes on when Slurm starts it again
            raise SystemExit(outcome.code)
        return outcome

    def checkpoint(self, job: Job) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


def with_submitit_local(
    jobs: Sequence[Job], deadline: float = math.inf, submitit_folder: str = "", **parameters: Any
) -> Iterator[Outcome]:
    """All at once, each in a process that goes on when this one is killed."""
    import submitit

    executor = submitit.AutoExecutor(submitit_folder, cluster="local")
    executor.update_parameters(**parameters)
    yield from outcomes_of(executor.map_array(Resumable(), jobs), jobs)


def with_submitit_slurm(
    jobs: Sequence[Job],
    deadline: float = math.inf,
    submitit_folder: str = "",
    max_num_timeout: int = 0,
    **parameters: Any,
) -> Iterator[Outcome]:
    """One array of Slurm jobs."""
    os.environ.setdefault("SUBMITIT_PREEMPT_SIGNAL", "USR1")  # read when submitit is imported
    import submitit

    from vae.run.slurm import SHARED_PARAMETERS, SqueueJob, has_accounting

    executor = submitit.AutoExecutor(submitit_folder, cluster="slurm", slurm_max_num_timeout=max_num_timeout)
    named = {name if name in SHARED_PARAMETERS else f"slurm_{name}": value for name, value in parameters.items()}
    executor.update_parameters(**named)
    submitted: list[Any] = executor.map_array(Resumable(), jobs)
    if not has_accounting():
        submitted = [SqueueJob(submitit_folder, job.job_id) for job in submitted]
    yield from outcomes_of(submitted, jobs)


def outcomes_of(submitted: Sequence[Any], jobs: Sequence[Job]) -> Iterator[Outcome]:
    """Those of submitit's jobs. One that is cancelled or lost has failed; it stops no other."""
    from submitit.core.utils import FailedJobError, UncompletedJobError
    from submitit.helpers import as_completed

    job_of = {task.job_id: job for task, job in zip(submitted, jobs, strict=True)}
    for task in as_completed(submitted, poll_frequency=PAUSE):
        try:
            yield task.result()
        except (FailedJobError, UncompletedJobError) as error:
            yield Outcome(job_of[task.job_id], FAILED, f"job {task.job_id}: {first_line(error)}")


LAUNCHER = "hydra/launcher"
ENGINES: dict[str, Callable[..., Iterator[Outcome]]] = {
    "basic": in_turn,
    "joblib": with_joblib,
    "submitit_local": with_submitit_local,
    "submitit_slurm": with_submitit_slurm,
}


def choose_engine(overrides: Iterable[str], root: Path) -> Engine:
    """The engine of `hydra/launcher=NAME hydra.launcher.KEY=VALUE`; raises InputError for what it does not take."""
    parsed = OverridesParser.create().parse_overrides(
        [override for override in overrides if override.lstrip("+").startswith(("hydra/launcher", "hydra.launcher."))]
    )
    values = {override.get_key_element().lstrip("+"): override for override in parsed}
    name = str(values.pop(LAUNCHER).value()) if LAUNCHER in values else "basic"
    if name not in ENGINES:
        raise InputError(f"{LAUNCHER}={name}: there is no such launcher; it is one of {', '.join(ENGINES)}")
    if name.startswith("submitit") and find_spec("submitit") is None:
        raise InputError(f"{LAUNCHER}={name}: submitit is not installed; pip install 'vae-lightning[sweep]'")
    file = Path(CONF, "hydra", "launcher", f"{name}.yaml")
    options = OmegaConf.create({"run_dir": str(root)})
    allowed = OmegaConf.load(file) if file.exists() else OmegaConf.create({})
    options.merge_with(allowed)
    for key, override in values.items():
        option = key.removeprefix("hydra.launcher.")
        if option.partition(".")[0] not in allowed:
            keys = ", ".join(map(str, allowed)) or "none"
            raise InputError(f"{override.input_line}: {LAUNCHER}={name} has no such key; its keys: {keys}")
        OmegaConf.update(options, option, override.value(), force_add=True)
    resolved = {str(key): value for key, value in OmegaConf.to_container(options, resolve=True).items()}  # type: ignore[union-attr]  # of a mapping
    del resolved["run_dir"]
    return functools.partial(ENGINES[name], **resolved)


# --- many jobs --------------------------------------------------------------------------------------------------------


def run_jobs(
    jobs: Sequence[Job], engine: Engine, deadline: float = math.inf, refusal_ends: bool = False
) -> list[Outcome]:
    """Runs all of them and prints one line as each ends; returns those that were begun.

    Raises Stopped if a signal ended them before the deadline, and with `refusal_ends` RunFailed if a run is refused:
    what refuses one, such as a data set that is not there, refuses all.
    """
    outcomes: list[Outcome] = []
    began = time.monotonic()
    for outcome in engine(jobs, deadline):
        outcomes.append(outcome)
        if not outcome.was_stopped:
            left = len(jobs) - len(outcomes)
            seconds = (time.monotonic() - began) / len(outcomes) * left
            end = datetime.now() + timedelta(seconds=seconds)
            rest = f" ({left} of {len(jobs)} left, about {duration(seconds)}, done at about {end:%H:%M})"
            when = rest if left else ""
            print(f"{outcome.job.name}: {'failed: ' if outcome.code else ''}{outcome.line}{when}", flush=True)
        elif time.time() < deadline:
            raise Stopped(outcome.code - 128)
        if outcome.code == InputError.exit_code and refusal_ends:
            raise RunFailed(f"{outcome.job.name} was refused; see the line above")
    return outcomes


def run_sweep(overrides: Sequence[str], jobs: Sequence[Job]) -> None:
    """Runs what is left of a sweep and closes with the comparison of its runs; exits with 1 if one is not finished."""
    root = jobs[0].directory.parent
    engine = choose_engine(overrides, root)
    print(describe(root, jobs), flush=True)
    try:
        write_yaml(root / "multirun.yaml", {"overrides": list(overrides)})
    except OSError as error:
        raise InputError(f"run_dir={root}: cannot be written ({error.strerror}); choose another folder") from error
    left = [job for job in jobs if not job.is_done]
    outcomes = run_jobs(left, engine) if left else []
    print_comparison(root)
    for outcome in outcomes:
        if outcome.code:
            print(f"failed: {outcome.job.name}: {outcome.line}")
    ended = {outcome.job.name for outcome in outcomes if is_finished(outcome.job.directory, outcome.job.settings)}
    if missing := [job for job in left if job.name not in ended]:
        print(f"{len(missing)} of {len(jobs)} runs are not finished; the same command continues them")
        raise SystemExit(FAILED)


def print_comparison(root: Path) -> None:
    """Prints and writes the comparison of the runs in a folder."""
    from vae.run.compare import compare
    from vae.run.compare_text import to_text, write_tables

    try:
        comparison = compare([root])
        print(to_text(comparison).rstrip())
        if comparison.tables:
            write_tables(comparison, root / COMPARISON)
            print(f"written: {root / COMPARISON}; to draw a run's figures: vae evaluate RUN")
    except (InputError, OSError) as error:  # the runs are what counts, and they are saved
        print(f"no comparison: {error}")
