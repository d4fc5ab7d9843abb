"""A real Slurm of one node: munged, slurmctld and slurmd of a temporary folder, on loopback, stopped by their pids.

Needs root and Debian's packages slurm-wlm and munge; where they are missing, these tests are skipped by name.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from conftest import ROOT

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
PATIENCE = 300  # seconds that anything may take

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={other_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobCompType=jobcomp/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=20
SchedulerParameters=sched_interval=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory={memory}
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why no Slurm can be started here, or nothing."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]
    if absent:
        return f"Slurm is not installed ({', '.join(absent)}): apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "a Slurm of one's own is started as root"


def search_path() -> str:
    return os.environ["PATH"] + ":/usr/sbin"


class Slurm:
    """The daemons, and what a user does with them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.daemons = folder, list[subprocess.Popen[bytes]]()
        self.host = socket.gethostname().partition(".")[0]
        self.env = os.environ | {
            "PATH": search_path(), "SLURM_CONF": str(folder / "slurm.conf"), "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip

    def start(self) -> None:
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        (self.folder / "munge.key").chmod(0o400)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
        port, other_port = free_ports()
        values = {"host": self.host, "folder": self.folder, "memory": memory, "port": port, "other_port": other_port}
        (self.folder / "slurm.conf").write_text(CONF.format(**values))
        places = [f"--{n}={self.folder}/munge.{n.partition('-')[0]}" for n in ("socket", "pid-file", "log-file")]
        places += [f"--key-file={self.folder}/munge.key", f"--seed-file={self.folder}/munge.seed"]
        self.daemon("munged", "--foreground", "--force", *places)
        until((self.folder / "munge.socket").exists)
        self.daemon("slurmctld", "-D", "-i")
        self.daemon("slurmd", "-D", "-N", self.host)
        until(lambda: "idle" in self.ask("sinfo", "--noheader", "--format=%T"))

    def daemon(self, *command: str) -> None:
        program = shutil.which(command[0], path=search_path())
        assert program is not None
        with open(self.folder / f"{command[0]}.out", "wb") as log:
            self.daemons.append(
                subprocess.Popen([program, *command[1:]], env=self.env, stdout=log, stderr=log, start_new_session=True)
            )

    def stop(self) -> None:
        with contextlib.suppress(subprocess.SubprocessError):
            self.ask("scancel", "--user=root")
            until(lambda: not self.ask("squeue", "--noheader"), 30)
        for process in reversed(self.daemons):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def ask(self, *command: str) -> str:
        ended = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60)
        return ended.stdout.strip() if ended.returncode == 0 else ""

    def sweep(self, *overrides: str) -> "subprocess.Popen[str]":
        """`python train.py -m`, each run a Slurm job; one whose machine has two cores runs two at once."""
        command = [
            sys.executable, str(ROOT / "train.py"), "-m", "hydra/launcher=submitit_slurm", "hydra.launcher.mem_gb=2",
            "hydra.launcher.cpus_per_task=1", "hydra.launcher.partition=main", *overrides,
        ]  # fmt: skip
        return subprocess.Popen(command, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def running(self) -> list[str]:
        """The jobs at work, as 12_0."""
        return self.ask("squeue", "--noheader", "--array", "--states=running", "--format=%i").split()


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def until(happens: Callable[[], object], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        if time.monotonic() > deadline:
            raise subprocess.TimeoutExpired("waiting", seconds)
        time.sleep(0.2)
