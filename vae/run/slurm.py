"""submitit's Slurm for clusters without sacct: where it does not answer, squeue is asked."""

import subprocess
from typing import Any

from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

# what submitit sets for every kind of cluster; the rest is Slurm's
SHARED_PARAMETERS = {
    "name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node", "stderr_to_stdout",
}  # fmt: skip
# states after which a job does not run again; one that squeue does not list any more has ended too
ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT",
}  # fmt: skip


def has_accounting() -> bool:
    """Whether sacct answers; many small clusters have no data base behind it."""
    try:
        return subprocess.run(["sacct", "-n", "-X", "--starttime=now"], capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


class SqueueWatcher(SlurmInfoWatcher):
    """The states of the jobs, from squeue alone."""

    def _make_command(self) -> list[str] | None:
        if not self._registered - self._finished:
            return None
        return ["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T"]

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        text = string if isinstance(string, str) else string.decode()
        states = dict(line.split("|") for line in text.split() if "|" in line)
        now = {job: states.get(job, "COMPLETED") for job in self._registered}
        return {job: {"State": state if state in ENDED else "RUNNING"} for job, state in now.items()}


class SqueueJob(SlurmJob[Any]):
    watcher = SqueueWatcher(delay_s=30)
