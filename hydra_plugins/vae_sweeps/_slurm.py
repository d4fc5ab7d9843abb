"""submitit's Slurm launcher for runs that resume: a job that is lost stops no other, and sacct may be missing.

Time limits come as SIGUSR1, on which a run saves and puts its job back into the queue (vae/training/signals.py).
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT",
}  # fmt: skip


class Launcher(SlurmLauncher):
    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        os.environ.setdefault("SUBMITIT_PREEMPT_SIGNAL", "USR1")  # read when submitit is imported
        from submitit.slurm.slurm import SlurmJob

        if not has_accounting():
            SlurmJob.watcher = squeue_watcher()
        with lost_jobs_are_results():
            return super().launch(job_overrides, initial_job_idx)  # type: ignore[no-any-return]  # the plugin has no types


def has_accounting() -> bool:
    """Whether sacct answers; many small clusters have no data base behind it."""
    try:
        return subprocess.run(["sacct", "-n", "-X", "--starttime=now"], capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def squeue_watcher() -> Any:
    """How it stands with the jobs, from squeue alone: one that it does not list any more has ended."""
    from submitit.slurm.slurm import SlurmInfoWatcher

    class Watcher(SlurmInfoWatcher):
        def _make_command(self) -> list[str] | None:
            if not self._registered - self._finished:
                return None
            return ["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T"]

        def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
            text = string if isinstance(string, str) else string.decode()
            states = dict(line.split("|") for line in text.split() if "|" in line)
            found = {job: states.get(job, "COMPLETED") for job in self._registered}
            return {job: {"State": state if state in ENDED else "RUNNING"} for job, state in found.items()}

    return Watcher(delay_s=30)


@contextlib.contextmanager
def lost_jobs_are_results() -> Iterator[None]:
    """A Slurm job that ended without a word is a failed run, instead of an error that ends the whole sweep."""
    from submitit import Job
    from submitit.core.utils import FailedJobError, UncompletedJobError

    from vae.run.plan import Failed

    original = Job.results

    def results(job: Any) -> list[Any]:
        try:
            return list(original(job))
        except (FailedJobError, UncompletedJobError) as error:
            line = (str(error).strip().splitlines() or ["no message"])[0]
            return [JobReturn(_return_value=Failed(f"Slurm job {job.job_id}: {line}"), status=JobStatus.COMPLETED)]

    Job.results = results  # type: ignore[method-assign, assignment]  # submitit has no hook for it
    try:
        yield
    finally:
        Job.results = original  # type: ignore[method-assign, assignment]  # as above
