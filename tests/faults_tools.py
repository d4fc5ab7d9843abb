"""What the tests of faults share: commands as processes, what a run directory holds, disks that refuse."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from vae.training.checkpoints import load

ROOT = Path(__file__).parent.parent
PATIENCE = 300  # seconds that anything may take on a machine that others use too
USUAL = re.compile(
    r"VAE of |on \S+, |epoch \d+ of \d+  |continuing from |removing |run |sweep of |seed=\d: "
)  # what is said while all is well
SCREEN = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "agg"}


class Command:
    """A process under way: `python train.py arguments`, or another script."""

    def __init__(self, server: "Server", pid: int, folder: Path, cwd: Path) -> None:
        self.server, self.pid, self.folder, self.cwd = server, pid, folder, cwd
        self.code: int | None = None

    def ended(self, seconds: float = 0) -> bool:
        if self.code is None:
            self.code = self.server.ask({"wait": self.pid, "seconds": seconds})
        return self.code is not None

    def wait(self) -> int:
        """The exit status; negative where a signal killed it."""
        if not self.ended(PATIENCE):
            self.kill()
            pytest.fail(f"still running after {PATIENCE} s:\n{self.said}")
        assert self.code is not None
        return self.code

    def send(self, signum: int, group: bool = False) -> None:
        """To the process, or to it and its workers, as a terminal, `timeout` and `scancel` do."""
        assert not self.ended(), self.said  # its number may be another's by now
        (os.killpg if group else os.kill)(self.pid, signum)

    def kill(self) -> None:
        """kill -9, of this process alone: its workers are orphans."""
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def until(self, happens: Callable[[], Any], pause: float = 0.001) -> bool:
        """Waits for something that the process does; False when the process ended first."""
        deadline, looks = time.monotonic() + PATIENCE, 0
        while not happens():
            looks += 1
            if looks % 100 == 0:
                if self.ended():
                    return bool(happens())
                if time.monotonic() > deadline:
                    self.kill()
                    pytest.fail(f"waited {PATIENCE} s in vain:\n{self.said}")
            time.sleep(pause)
        return True

    def kill_within(self, happens: Callable[[], Any]) -> bool:
        """kill -9 while something lasts: it is held still before the second look; False when it ended first."""
        while self.until(happens, pause=0):
            with contextlib.suppress(ProcessLookupError):
                self.send(signal.SIGSTOP)
                time.sleep(0.002)  # a stop takes effect when the system call under way is done
                if happens() and not self.ended():
                    self.kill()
                    return True
                self.send(signal.SIGCONT)
            if self.ended():
                return False
        return False

    @property
    def said(self) -> str:
        return (self.folder / "stdout").read_text() + (self.folder / "stderr").read_text()

    @property
    def lines(self) -> list[str]:
        """What it said beyond the progress of a run."""
        return [line for line in self.said.splitlines() if line.strip() and not USUAL.match(line)]


class Server:
    """tests/faults_server.py, and a folder for what its children say."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "faults_server.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | SCREEN,
        )  # fmt: skip
        assert self._answer() == "ready"

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the parent of the commands has died"
        return json.loads(line)

    def ask(self, request: dict[str, Any]) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def start(
        self,
        *arguments: str,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        limits: dict[str, int] | None = None,
        script: Path = ROOT / "train.py",
    ) -> Command:
        self.count += 1
        folder = self.folder / str(self.count)
        folder.mkdir()
        cwd = self.folder if cwd is None else cwd
        request = {
            "script": str(script), "arguments": arguments, "cwd": str(cwd), "env": env or {},
            "limits": limits or {}, "stdout": str(folder / "stdout"), "stderr": str(folder / "stderr"),
        }  # fmt: skip
        for name in ("stdout", "stderr"):
            (folder / name).touch()
        return Command(self, self.ask(request), folder, cwd)

    def run(self, *arguments: str, **options: Any) -> Command:
        command = self.start(*arguments, **options)
        command.wait()
        return command

    def close(self) -> None:
        self.process.kill()  # its end would take seconds, and it keeps nothing
        self.process.communicate()


# --- what a run directory holds -----------------------------------------------------------------------------------


def last(directory: Path, which: str = "last") -> dict[str, Any]:
    return load(directory / "checkpoints" / f"{which}.ckpt")


def exact(value: Any) -> Any:
    """Equal exactly where every bit is equal, and NaN equal to itself."""
    if isinstance(value, dict):
        return {str(key): exact(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [exact(inner) for inner in value]
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    return value.hex() if isinstance(value, float) else value


def state(directory: Path, which: str) -> Any:
    """All of a checkpoint but clocks, places, and the keys on which no result depends; also Lightning's counters."""
    from vae.run.directory import NOT_IDENTITY

    checkpoint = last(directory, which)
    del checkpoint["callbacks"]["History"]["seconds"]
    for kept in checkpoint["callbacks"].values():
        if "best_k_models" in kept:
            kept["best_k_models"] = list(kept["best_k_models"].values())
            for place in ("dirpath", "best_model_path", "kth_best_model_path", "current_score"):
                del kept[place]
    for key in NOT_IDENTITY:
        group, _, leaf = key.rpartition(".")
        settings = checkpoint["vae"]["settings"]
        (settings[group] if group else settings).pop(leaf, None)  # not every data set has each key
    return exact(checkpoint)


def metrics(directory: Path) -> dict[str, Any]:
    found = json.loads((directory / "metrics.json").read_text())
    return exact({k: v for k, v in found.items() if k not in ("seconds", "images_per_second", "provenance")})


def assert_same(expected: Path, found: Path) -> None:
    """Two finished runs ended alike: both checkpoints and the metrics, to the bit."""
    assert metrics(found) == metrics(expected)
    for which in ("best", "last"):
        different = differences(state(expected, which), state(found, which))
        assert not different, "\n".join([f"{which}.ckpt", *different])


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [line for key in one for line in differences(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [line for i in range(len(one)) for line in differences(one[i], other[i], f"{where}[{i}]")]
    return [] if one == other else [f"{where}: {str(one)[:100]} and {str(other)[:100]}"]


def contents(root: Path, *without: str) -> dict[str, bytes]:
    """Every file below a folder, by its path, but those of these names."""
    files = [path for path in root.rglob("*") if path.is_file() and path.name not in without]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


# --- disks that refuse --------------------------------------------------------------------------------------------


def as_root(*command: str) -> bool:
    """Whether root, or sudo where it asks for no password, could do this."""
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if shutil.which([*prefix, *command][0]) is None:
        return False
    return subprocess.run([*prefix, *command], capture_output=True).returncode == 0


@contextlib.contextmanager
def unwritable(directory: Path) -> Iterator[str]:
    """Nothing can be made, renamed or removed in it: `chattr +i`, a read-only mount, or modes; names what was used."""
    place = str(directory)
    if as_root("chattr", "+i", place):
        undo = ["chattr", "-i", place]
    elif as_root("mount", "--bind", "-o", "ro", place, place):
        undo = ["umount", place]
    else:
        assert os.geteuid() != 0, "root that may neither chattr nor mount writes everywhere"
        directory.chmod(0o555)
        undo = []
    try:
        yield undo[0] if undo else "chmod"
    finally:
        if undo:
            assert as_root(*undo)
        directory.chmod(0o755)


@contextlib.contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[bool]:
    """A file system of this size at `place`, if this user may mount one."""
    place.mkdir()
    owner = f"uid={os.geteuid()},gid={os.getegid()}"
    mounted = as_root("mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=755,{owner}", "vae-faults", str(place))
    try:
        yield mounted
    finally:
        if mounted:
            assert as_root("umount", "--lazy", str(place))
