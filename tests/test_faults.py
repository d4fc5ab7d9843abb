"""The table of faults: each is injected into a real `python train.py`, which must lose nothing and say what happened.

Most commands here are forked from a warm parent (tests/faults_server.py); some are started from a shell, as users do.
"""

import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tree
from faults_tools import (
    PATIENCE,
    ROOT,
    SCREEN,
    Command,
    Server,
    assert_same,
    contents,
    last,
    metrics,
    small_disk,
    unwritable,
)
from faults_writer import checkpoint
from filelock import FileLock

from vae.files import remove_leftovers
from vae.training.checkpoints import DurableCheckpointIO, load

pytestmark = pytest.mark.faults

QUICK = (
    "data=digits", "latent_dim=3", "model.encoder.hidden=[16]", "model.decoder.hidden=[16]", "trainer=cpu", "threads=1",
    "evaluation=none", "callbacks.figures_every=0", "trainer.max_epochs=10", "data.batch_size=50",
)  # fmt: skip
# All that a resumed run can get wrong: dropout, images drawn anew, beta and the rate by a schedule, an early stop.
ALL = (
    *QUICK, "dropout=0.3", "likelihood=bernoulli", "data.binarize=dynamic", "objective/beta=linear",
    "callbacks.early_stopping=2",
)  # fmt: skip
RATES = {
    "plateau": (
        "scheduler=plateau", "scheduler.patience=0", "optimizer.lr=0.05", "objective.beta.end=20",
        "objective.beta.steps=400",
    ),
    "cosine": (
        "scheduler=warmup_cosine", "scheduler.warmup=2", "scheduler.epochs=9", "optimizer.lr=0.01",
        "objective.beta.end=5", "objective.beta.steps=200",
    ),
}  # fmt: skip
STEPS = 24  # an epoch: 1,197 images
OFTEN = "callbacks.checkpoint_minutes=0.001"
NO_NETWORK = "data.mirrors=[file:///nowhere/]"


@dataclass
class Whole:
    """A run that nothing disturbed, without workers."""

    directory: Path
    seconds: float


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("commands"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def wholes(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Whole]:
    """The undisturbed run with one or the other schedule of the learning rate, made by who first asks for it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def whole(rate: str) -> Whole:
        directory, seconds = shared / "whole" / rate, shared / f"{rate}.seconds"
        with FileLock(shared / f"{rate}.lock"):
            if not seconds.exists():
                begun = time.monotonic()
                command = server.run(*ALL, *RATES[rate], f"run_dir={directory}")
                assert command.code == 0, command.said
                assert metrics(directory)["stopped_early"] == 1, "it was to show that an early stop survives"
                seconds.write_text(str(time.monotonic() - begun))
        return Whole(directory, float(seconds.read_text()))

    return whole


@pytest.fixture(scope="module")
def stopped_once(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("stopped") / "run"
    stop_in_mid_epoch(server, [*ALL, *RATES["cosine"], f"run_dir={directory}"], directory)
    return directory


@pytest.fixture
def stopped(stopped_once: Path) -> Iterator[tuple[Path, list[str]]]:
    """A run that SIGTERM stopped in the middle of its second epoch, as it was left, and its command."""
    kept = stopped_once.with_name("kept")
    shutil.copytree(stopped_once, kept)
    yield stopped_once, [*ALL, *RATES["cosine"], f"run_dir={stopped_once}"]
    shutil.rmtree(stopped_once)
    kept.rename(stopped_once)


def the_line(command: Command, code: int) -> str:
    """The one line that a command ended with, after the progress of the run."""
    assert command.wait() == code, command.said
    assert "Traceback" not in command.said
    assert len(command.lines) == 1, command.said
    return command.lines[0]


def an_epoch(command: Command) -> bool:
    """Whether it has said that an epoch is over."""
    return epochs(command) > 0


def epochs(command: Command) -> int:
    return len(re.findall(r"^epoch \d+ of \d+  ", command.said, re.MULTILINE))


def saved(command: Command, run: Path) -> Callable[[], bool]:
    """Whether it has trained an epoch and written both checkpoints after it."""
    at = run / "checkpoints"
    return lambda: an_epoch(command) and newer(at / "last.ckpt", at / "best.ckpt") and not any(at.glob("*.part"))


def stop_in_mid_epoch(
    server: Server, arguments: list[str], directory: Path, signum: int = signal.SIGTERM, **options: Any
) -> None:
    """Signals the command after an epoch of its own, until it stops in the middle of the next one.

    A try that came between two epochs, or after the last one, is undone.
    """
    kept = directory.with_name("before the signal")
    for attempt in range(20):
        if directory.exists():
            shutil.copytree(directory, kept)
        command = server.start(*arguments, **options)
        assert command.until(lambda: an_epoch(command)), command.said  # noqa: B023  # called in this round only
        time.sleep(random.Random(attempt).uniform(0, 0.1))
        if not command.ended():
            command.send(signum, group="data.num_workers=2" in arguments)
            # A run that is told to stop in training says so twice: that it will, and that it has.
            assert command.wait() == 128 + signum, command.said
            announced = [line for line in command.lines if "saving and stopping at the next batch" in line]
            (line,) = [line for line in command.lines if line not in announced]
            assert line.startswith(f"stopped by {signal.Signals(signum).name}; the same command continues")
            if announced and last(directory)["global_step"] % STEPS:
                shutil.rmtree(kept, ignore_errors=True)
                return
        for path in (directory, *other_jobs(directory, arguments)):
            shutil.rmtree(path, ignore_errors=True)
        if kept.exists():
            kept.rename(directory)
    pytest.fail("no signal came in the middle of an epoch")


def other_jobs(directory: Path, arguments: list[str]) -> list[Path]:
    """The folders of a sweep's later jobs."""
    if "-m" not in arguments:
        return []
    return [path for path in directory.parent.iterdir() if path.is_dir() and path.name != "before the signal"]


# --- kill -9 ------------------------------------------------------------------------------------------------------


def survive(server: Server, arguments: list[str], whole: Whole, folder: Path, kills: int, seed: int) -> int:
    """Repeats a command, killed at random moments of its life, until it has ended; and anew, until that many came."""
    moments, done, runs = random.Random(seed), 0, 0
    while done < kills:
        runs += 1
        directory = folder / str(runs)
        while True:
            command = server.start(*arguments, f"run_dir={directory}")
            if done < kills and not command.ended(moments.uniform(0, whole.seconds)):
                command.kill()
            if command.wait() != -signal.SIGKILL:
                break
            done += 1
        assert command.code == 0, command.said
        assert_same(whole.directory, directory)
    return runs


@pytest.mark.parametrize(("rate", "workers"), [("plateau", 0), ("cosine", 2)])
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_9_at_random_moments(
    server: Server, wholes: Callable[[str], Whole], tmp_path: Path, rate: str, workers: int, kills: int
) -> None:
    arguments = [*ALL, *RATES[rate], OFTEN, f"data.num_workers={workers}"]
    survive(server, arguments, wholes(rate), tmp_path, kills, seed=kills + workers)


@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    [
        ("prior=mixture",),
        ("prior=vamp", "prior.inputs=20"),
        ("prior=flow",),
        ("posterior=full",),
        ("posterior=iaf",),
        ("objective=tc",),
        ("objective=mmd",),
        ("objective=iwae", "objective.samples=3", "objective.gradient=dreg"),
        ("trainer.precision=bf16-mixed", "prior=flow", "posterior=iaf"),
    ],
    ids=" ".join,
)
def test_kill_9_with_each_part(server: Server, tmp_path: Path, part: tuple[str, ...]) -> None:
    """Its parameters, its buffers and its draws are all in the checkpoint, or follow from the seed."""
    arguments = [*QUICK, "dropout=0.3", "likelihood=bernoulli", "data.binarize=dynamic", OFTEN, *part]
    begun = time.monotonic()
    command = server.run(*arguments, f"run_dir={tmp_path / 'whole'}")
    assert command.code == 0, command.said
    survive(server, arguments, Whole(tmp_path / "whole", time.monotonic() - begun), tmp_path / "killed", 2, seed=0)


def test_kill_9_in_the_narrow_places(server: Server, wholes: Callable[[str], Whole], tmp_path: Path) -> None:
    """One run, killed in each of them in turn: the process is held still while we see that it is there."""
    run, arguments = tmp_path / "run", [*ALL, *RATES["plateau"], f"run_dir={tmp_path / 'run'}"]
    at = run / "checkpoints"

    def writing(pattern: str) -> Callable[[], bool]:
        return lambda: any(run.glob(pattern))

    places: dict[str, Callable[[], bool]] = {
        "a directory without a description": lambda: run.is_dir() and not (run / "config.yaml").exists(),
        "no checkpoint yet": lambda: at.is_dir() and not (at / "last.ckpt").exists(),
        "the first checkpoint": writing("checkpoints/last.ckpt.*.part"),
        "the best checkpoint": writing("checkpoints/best.ckpt.*.part"),
        "best written, last not yet": lambda: newer(at / "best.ckpt", at / "last.ckpt"),
        "the last checkpoint, after the best": lambda: any(at.glob("last.ckpt.*.part")) and (at / "best.ckpt").exists(),
        "a picture": writing("figures/*.part"),
        "pictures without metrics": lambda: (run / "figures" / "samples.png").exists(),
    }
    for place, there in places.items():
        for _ in range(5):  # a place of a millisecond is missed where the machine is busy: begin anew
            command = server.start(*arguments)
            if command.kill_within(there):
                break
            shutil.rmtree(run)
        else:
            pytest.fail(f"{place}: never seen; {command.said}")
    command = server.run(*arguments)
    assert command.code == 0, command.said
    assert_same(wholes("plateau").directory, run)
    assert not list(run.rglob("*.part"))


def newer(one: Path, other: Path) -> bool:
    try:
        return one.stat().st_mtime_ns > other.stat().st_mtime_ns
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("elsewhere", [False, True])
def test_kill_9_during_50_checkpoint_writes(server: Server, tmp_path: Path, elsewhere: bool) -> None:
    """Every kill comes while the file is being written; with TMPDIR on another file system as well."""
    env = {"TMPDIR": "/dev/shm"} if elsewhere else {}
    if elsewhere:
        assert os.stat("/dev/shm").st_dev != tmp_path.stat().st_dev
    path, script = tmp_path / "last.ckpt", ROOT / "tests" / "faults_writer.py"
    DurableCheckpointIO().save_checkpoint(checkpoint(0), path)
    within = 0
    for attempt in range(50):
        command = server.start(str(path), script=script, env=env)
        assert command.until(lambda: any(tmp_path.glob("*.part"))), command.said
        time.sleep(random.Random(attempt).uniform(0, 0.1))
        assert command.until(lambda: any(tmp_path.glob("*.part"))), command.said
        command.kill()
        within += len(list(tmp_path.glob("*.part")))
        assert len(load(path)["state_dict"]["value"].unique()) == 1
        remove_leftovers(tmp_path)
        assert list(tmp_path.iterdir()) == [path]
    assert within >= 40, "the kills came too late"
    assert load(path)["state_dict"]["value"][0] > 0, "nothing was ever written"


# --- signals ------------------------------------------------------------------------------------------------------


def test_signals_to_a_run(server: Server, wholes: Callable[[str], Whole], tmp_path: Path) -> None:
    """In mid-epoch, and while the pictures are drawn; workers get them too, as from a terminal."""
    run = tmp_path / "run"
    arguments = [*ALL, *RATES["plateau"], "data.num_workers=2", f"run_dir={run}"]
    stop_in_mid_epoch(server, arguments, run, signal.SIGTERM)
    stop_in_mid_epoch(server, arguments, run, signal.SIGINT)
    command = server.start(*arguments)
    assert command.until(lambda: (run / "figures").exists()), command.said
    command.send(signal.SIGINT, group=True)
    assert the_line(command, 130).startswith("stopped by SIGINT; the same command continues")
    assert not (run / "metrics.json").exists()
    command = server.run(*arguments)
    assert command.code == 0, command.said
    assert_same(wholes("plateau").directory, run)


def test_signals_to_a_sweep(server: Server, wholes: Callable[[str], Whole], tmp_path: Path) -> None:
    """No signal lets it go on to the next run; repeated, it returns the first at once and continues the second."""
    sweep, first, second = tmp_path / "sweep", tmp_path / "sweep" / "seed=0", tmp_path / "sweep" / "seed=1"
    arguments = ["-m", "seed=0,1", *ALL, *RATES["cosine"], f"run_dir={sweep}"]
    for signum in (signal.SIGTERM, signal.SIGINT):
        stop_in_mid_epoch(server, arguments, first, signum)
        assert not second.exists()
    command = server.start(*arguments)
    assert command.until(lambda: (second / "config.yaml").exists()), command.said
    kept = contents(first)
    command.send(signal.SIGTERM)
    assert command.wait() in (143, -signal.SIGTERM), command.said
    command = server.run(*arguments)
    assert command.code == 0, command.said
    assert_same(wholes("cosine").directory, first)
    assert contents(first) == kept
    assert (second / "metrics.json").exists()
    folders = {path.name for path in sweep.iterdir() if path.is_dir()}
    assert folders - {"comparison"} == {"seed=0", "seed=1"}


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_at_the_start(tmp_path: Path, signum: int, code: int) -> None:
    """While torch and Lightning are imported, from a real shell: nothing is written yet, and no traceback is shown."""
    process = subprocess.Popen(
        shell(f"run_dir={tmp_path / 'run'}"), cwd=tmp_path, env=os.environ | SCREEN, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + PATIENCE
    while not maps_torch(process.pid):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signum)
    said = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode in (code, -signum), said  # which a shell shows as one number
    assert len(said.splitlines()) <= 1, said
    assert not (tmp_path / "run").exists()


def maps_torch(pid: int) -> bool:
    try:
        return "libtorch_cpu" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


def shell(*arguments: str, before: str = "") -> list[str]:
    """A command line as users give it, through a shell, which the process then takes the place of."""
    run = [sys.executable, str(ROOT / "train.py"), *ALL, *RATES["cosine"], *arguments]
    return ["env", "--default-signal=INT", "bash", "-c", f'{before} exec "$@"', "bash", *run]


# --- disks --------------------------------------------------------------------------------------------------------


def test_a_full_disk_before_the_first_epoch(stopped: tuple[Path, list[str]], tmp_path: Path) -> None:
    run, _ = stopped
    before = contents(run / "checkpoints")
    ended = subprocess.run(
        shell(f"run_dir={run}", before="ulimit -f 8000;"), env=os.environ | SCREEN, capture_output=True, text=True,
        timeout=PATIENCE,
    )  # fmt: skip
    assert ended.returncode == 1, ended
    (line,) = (ended.stdout + ended.stderr).splitlines()
    assert line.startswith(f"cannot write checkpoints to {run / 'checkpoints'}: File too large")
    assert contents(run / "checkpoints") == before


def test_a_file_size_limit_in_mid_run(server: Server, tmp_path: Path) -> None:
    """`prlimit --fsize` of a process under way: as of now no checkpoint fits."""
    run = tmp_path / "run"
    command = server.start(*ALL, *RATES["plateau"], f"run_dir={run}")
    assert command.until(saved(command, run)), command.said
    resource.prlimit(command.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    refused_to_write(command, run, "File too large")


def test_a_full_disk_in_mid_run(server: Server, wholes: Callable[[str], Whole], tmp_path: Path) -> None:
    """A file system of 40 MB fills up; with room again, the same command ends as if nothing had been."""
    with small_disk(tmp_path / "disk", 40) as mounted:
        run = tmp_path / "disk" / "run"
        arguments = [*ALL, *RATES["plateau"], f"run_dir={run}"]
        command = server.start(*arguments)
        assert command.until(saved(command, run)), command.said
        if mounted:
            fill(tmp_path / "disk" / "filler")
        else:
            resource.prlimit(command.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
        refused_to_write(command, run, "No space left on device" if mounted else "File too large")
        (tmp_path / "disk" / "filler").unlink(missing_ok=True)
        command = server.run(*arguments)
        assert command.code == 0, command.said
        assert_same(wholes("plateau").directory, run)


def fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    file.write(b"0" * size)
            except OSError:
                continue


def refused_to_write(command: Command, run: Path, reason: str) -> None:
    line = the_line(command, 1)
    checkpoint = rf"cannot write the checkpoint {run}/checkpoints/\w+\.ckpt: {reason}; the previous .* intact"
    curves = f"cannot write: {reason}; what was saved before is intact"  # TensorBoard's files may be the first to fail
    assert re.match(f"{checkpoint}|{curves}", line)
    assert last(run)["global_step"] >= 0
    assert last(run, "best")["global_step"] >= STEPS
    assert not list(run.rglob("*.part"))


def test_an_unwritable_directory_in_mid_run(server: Server, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [*ALL, *RATES["plateau"], f"run_dir={run}"]
    command = server.start(*arguments)
    assert command.until(saved(command, run)), command.said
    with unwritable(run / "checkpoints"):
        refused_to_write(command, run, "(Operation not permitted|Read-only file system|Permission denied)")
    before = contents(run / "checkpoints")
    with unwritable(run / "checkpoints"):
        line = the_line(server.run(*arguments), 1)
        assert line.startswith(f"cannot write checkpoints to {run / 'checkpoints'}: ")
    assert contents(run / "checkpoints") == before


def test_an_unwritable_place_for_runs(server: Server, tmp_path: Path) -> None:
    with unwritable(tmp_path):
        line = the_line(server.run(*ALL, *RATES["plateau"], f"run_dir={tmp_path / 'run'}", cwd=ROOT), 2)
        assert re.match(rf"run_dir={tmp_path}/run: {tmp_path} cannot be written; choose another folder", line)
        assert list(tmp_path.iterdir()) == []


# --- data ---------------------------------------------------------------------------------------------------------

IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = (
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte",
)  # fmt: skip
HEADERS = {
    IMAGES: struct.pack(">4I", 2051, 60_000, 28, 28),
    LABELS: struct.pack(">2I", 2049, 60_000),
    TEST_IMAGES: struct.pack(">4I", 2051, 10_000, 28, 28),
    TEST_LABELS: struct.pack(">2I", 2049, 10_000),
}
BYTES = {IMAGES: 47_040_016, LABELS: 60_008, TEST_IMAGES: 7_840_016, TEST_LABELS: 10_008}


def black(raw: Path) -> None:
    """Four files of the right size and header, and every image black: holes on the disk."""
    raw.mkdir(parents=True)
    for name, header in HEADERS.items():
        (raw / name).write_bytes(header)
        os.truncate(raw / name, BYTES[name])


def float_images(raw: Path) -> None:
    """NaN can come in a file of floats only: of the right size, and 0x0D, which stands for floats, in its header."""
    nan = struct.pack(">4I", 0x0D03, 15_000, 28, 28) + struct.pack(">f", float("nan")) * (15_000 * 784)
    (raw / IMAGES).write_bytes(nan)


DATA: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "truncated": ("mnist", lambda raw: os.truncate(raw / IMAGES, 1000), f"{IMAGES} has 1000 bytes, expected 47040016"),
    "empty": ("mnist", lambda raw: os.truncate(raw / LABELS, 0), f"{LABELS} has 0 bytes, expected 60008"),
    "missing": ("kmnist", lambda raw: (raw / TEST_LABELS).unlink(), f"{TEST_LABELS} is missing"),
    "other bytes": ("mnist", lambda raw: None, rf"{IMAGES} has the md5 \w+, expected 6bbc9ace898e44ae57da46a324031adb"),
    "swapped": (
        "mnist", lambda raw: os.rename(raw / TEST_IMAGES, raw / IMAGES),
        f"{IMAGES} has 7840016 bytes, expected 47040016; .*{TEST_IMAGES} is missing",
    ),
    "wrong magic": (
        "fashion_mnist", lambda raw: os.rename(raw / LABELS, raw / TEST_LABELS),
        f"{LABELS} is missing; {TEST_LABELS} has 60008 bytes, expected 10008",
    ),
    "NaN": ("fashion_mnist", float_images, f"{IMAGES} is no idx file .*magic number 3331, expected 2051"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DATA)
def test_wrong_data_is_never_trained_on(server: Server, tmp_path: Path, damage: str) -> None:
    name, do, said = DATA[damage]
    raw = tmp_path / "data" / {"mnist": "MNIST", "kmnist": "KMNIST", "fashion_mnist": "FashionMNIST"}[name] / "raw"
    black(raw)
    do(raw)
    before = tree(raw)
    places = (f"data.root={tmp_path / 'data'}", f"run_dir={tmp_path / 'run'}", NO_NETWORK)
    command = server.run(f"data={name}", "trainer=cpu", "evaluation=none", *places)
    warnings = [line for line in command.lines if "only size and header are checked" in line]
    assert command.code == 2, command.said
    (line,) = [line for line in command.lines if line not in warnings and not line.startswith("fetching ")]
    assert re.match(rf"data\.root={raw.parents[1]}: in {raw}, .*{said}", line), line
    assert tree(raw) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


# --- checkpoints --------------------------------------------------------------------------------------------------


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def malicious(path: Path) -> None:
    torch.save(load(path) | {"more": Payload()}, path)


def flipped(path: Path) -> None:
    """One bit in the middle of the file, which is in the midst of the weights."""
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 16
    path.write_bytes(damaged)


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "malicious": (malicious, r"last\.ckpt holds code \(\w+\.system\): refused, nothing was executed"),
    "truncated": (lambda path: os.truncate(path, path.stat().st_size // 2), r"last\.ckpt is truncated"),
    "empty": (lambda path: os.truncate(path, 0), r"last\.ckpt is empty"),
    "flipped": (flipped, r"last\.ckpt is damaged: member archive/data/\d+ fails its checksum"),
    "foreign": (lambda path: path.write_text("no checkpoint"), r"last\.ckpt is no checkpoint of this project"),
    "removed": (lambda path: path.unlink(), r"last\.ckpt: missing, though best\.ckpt is there"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_checkpoint_is_refused(server: Server, stopped: tuple[Path, list[str]], damage: str) -> None:
    run, arguments = stopped
    do, said = DAMAGED[damage]
    do(run / "checkpoints" / "last.ckpt")
    before = contents(run, "train.log")
    command = server.run(*arguments)
    line = the_line(command, 2)
    assert re.search(said, line), line
    assert "checkpoint=best" in line
    assert not (command.cwd / "executed").exists()
    assert contents(run, "train.log") == before


def test_a_checkpoint_of_another_architecture_is_refused(
    server: Server, stopped: tuple[Path, list[str]], tmp_path: Path
) -> None:
    run, arguments = stopped
    other = tmp_path / "other"
    wider = [a.replace("[16]", "[17]") for a in arguments if not a.startswith("run_dir=")]
    stop_in_mid_epoch(server, [*wider, f"run_dir={other}"], other)
    shutil.copy(other / "checkpoints" / "last.ckpt", run / "checkpoints" / "last.ckpt")
    before = contents(run, "train.log")
    line = the_line(server.run(*arguments), 2)
    assert re.search(r"does not fit .*: vae\.\S+ is \(17, 784\) in the checkpoint and \(16, 784\) in the model", line)
    assert contents(run, "train.log") == before


def test_a_checkpoint_of_the_same_shapes_from_another_configuration_is_refused(
    server: Server, stopped: tuple[Path, list[str]], tmp_path: Path
) -> None:
    run, arguments = stopped
    other = tmp_path / "other"
    hotter = [a for a in arguments if not a.startswith("run_dir=")] + ["optimizer.lr=0.02", "seed=5"]
    stop_in_mid_epoch(server, [*hotter, f"run_dir={other}"], other)
    shutil.copy(other / "checkpoints" / "last.ckpt", run / "checkpoints" / "last.ckpt")
    line = the_line(server.run(*arguments), 2)
    assert re.search(r"last\.ckpt: was written under another configuration, which differs in seed \(5 there", line)
    assert "checkpoint=best" in line


def test_a_run_that_cannot_be_evaluated_is_finished_by_another_evaluation(server: Server, tmp_path: Path) -> None:
    """Its training is done and kept: what failed can be changed, and a finished run's cannot."""
    arguments = [*QUICK, "trainer.max_epochs=2", f"run_dir={tmp_path / 'run'}"]
    figures = tmp_path / "run" / "figures"
    figures.mkdir(parents=True)
    figures.chmod(0o555)
    with unwritable(figures):
        line = the_line_of_failure(server.run(*arguments))
    assert "figures" in line
    command = server.run(*arguments, "evaluation.probes=true")
    assert command.code == 0, command.said
    assert not an_epoch(command), "it trained again"
    line = the_line(server.run(*arguments, "evaluation.probes=false"), 2)
    assert "vae evaluate" in line


def the_line_of_failure(command: Command) -> str:
    assert command.code == 1, command.said
    assert "Traceback" not in command.said
    return command.lines[-1]


def test_a_run_falls_back_to_the_best_when_told_to(
    server: Server, wholes: Callable[[str], Whole], stopped: tuple[Path, list[str]]
) -> None:
    run, arguments = stopped
    os.truncate(run / "checkpoints" / "last.ckpt", 1000)
    command = server.run(*arguments, "checkpoint=best")
    assert command.code == 0, command.said
    assert f"continuing from {run / 'checkpoints' / 'best.ckpt'}" in command.said
    assert_same(wholes("cosine").directory, run)


# --- divergence ---------------------------------------------------------------------------------------------------


def is_finite(directory: Path) -> bool:
    return all(value.isfinite().all() for value in last(directory)["state_dict"].values())


def test_an_infinite_loss_stops_the_run(server: Server, tmp_path: Path) -> None:
    """Also where a checkpoint is due between the step that ruins the weights and the one that shows it."""
    for more in ([], [], [OFTEN]):  # the same command meets the same fate
        line = the_line(server.run(*QUICK, "optimizer.lr=1e30", f"run_dir={tmp_path / 'run'}", *more), 1)
        assert re.match(r"the loss is \S+ at step 1 \(epoch 1\): \w+ = (nan|inf)", line), line
        assert re.search(r"last finite loss \d\S+ at step 0; lower optimizer\.lr=1e\+30 or", line), line
        assert last(tmp_path / "run")["global_step"] in ((0, 1) if more else (0,))
        assert is_finite(tmp_path / "run")


def test_a_run_that_diverges_in_its_last_step_is_no_success(server: Server, tmp_path: Path) -> None:
    """No next step shows it: the figures on dev do."""
    arguments = [*QUICK, "optimizer.lr=1e30", "trainer.limit_train_batches=1", "trainer.max_epochs=1"]
    line = the_line(server.run(*arguments, f"run_dir={tmp_path / 'run'}"), 1)
    assert "not finite" in line
    assert last(tmp_path / "run")["global_step"] == 0


@pytest.mark.parametrize("value", ["inf", "nan"])
def test_an_impossible_rate_is_refused(server: Server, tmp_path: Path, value: str) -> None:
    line = the_line(server.run(*QUICK, f"optimizer.lr={value}", f"run_dir={tmp_path / 'run'}"), 2)
    assert re.match(rf"optimizer\.lr={value}\S*: must be a number > 0", line), line
    assert list(tmp_path.iterdir()) == []


# --- one directory, one process, one configuration -----------------------------------------------------------------


def test_two_runs_in_one_second_are_apart(server: Server, tmp_path: Path) -> None:
    commands = [server.start(*ALL, *RATES["plateau"], cwd=tmp_path) for _ in range(2)]
    for command in commands:
        assert command.until(lambda: len(list(tmp_path.glob("outputs/*/*/checkpoints/last.ckpt"))) == 2), command.said
    for command in commands:
        command.kill()
    assert len(list(tmp_path.glob("outputs/*/*/config.yaml"))) == 2


def test_a_directory_is_for_one_process(server: Server, wholes: Callable[[str], Whole], tmp_path: Path) -> None:
    """The lock dies with the process that holds it, though its orphaned workers live on for seconds."""
    run = tmp_path / "run"
    arguments = [*ALL, *RATES["plateau"], "data.num_workers=2", f"run_dir={run}"]
    first = server.start(*arguments)
    assert first.until(lambda: an_epoch(first)), first.said
    first.send(signal.SIGSTOP)
    before = contents(run)
    line = the_line(server.run(*arguments), 2)
    assert line.startswith(f"run_dir={run}: another process is working in it")
    assert contents(run) == before
    first.send(signal.SIGCONT)
    seen = epochs(first)
    assert first.until(lambda: epochs(first) > seen + 1), first.said
    first.kill()
    command = server.run(*arguments)
    assert command.code == 0, command.said
    assert_same(wholes("plateau").directory, run)


def test_a_finished_directory(server: Server, wholes: Callable[[str], Whole]) -> None:
    """The same command returns the result at once; another configuration is refused; neither changes a file."""
    run = wholes("plateau").directory
    arguments, before = [*ALL, *RATES["plateau"], f"run_dir={run}"], contents(run)
    command = server.run(*arguments)
    assert command.code == 0, command.said
    assert "in epoch" in command.said
    assert not an_epoch(command)
    line = the_line(server.run(*arguments, "seed=3", "dropout=0.1"), 2)
    assert "belongs to another configuration, which differs in dropout (0.3 there, 0.1 now)" in line
    assert "seed (0 there, 3 now)" in line
    assert contents(run) == before


# --- a cluster ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [True, False])
def test_slurm_requeues_a_run(server: Server, wholes: Callable[[str], Whole], tmp_path: Path, named: bool) -> None:
    """SIGUSR1, the SIGTERM that follows it, and the same job again: with and without a run_dir in its command."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    env = {
        "PATH": f"{scontrol.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "41", "SLURM_JOB_NAME": "vae",
        "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
    }  # fmt: skip
    arguments = [*ALL, *RATES["cosine"], *[f"run_dir={tmp_path / 'outputs' / 'a' / 'run'}"] * named]
    command = server.start(*arguments, cwd=tmp_path, env=env)
    assert command.until(lambda: an_epoch(command)), command.said
    (run,) = tmp_path.glob("outputs/*/*")
    command.send(signal.SIGUSR1)
    assert command.until(lambda: (tmp_path / "asked").exists()), command.said
    assert last(run)["global_step"] >= STEPS
    seen = epochs(command)
    assert command.until(lambda: epochs(command) > seen), f"it does not train on: {command.said}"
    command.send(signal.SIGTERM)
    assert command.wait() == 143, command.said
    assert "Traceback" not in command.said, command.said
    assert (tmp_path / "asked").read_text() == "requeue 41\n"
    command = server.run(*arguments, cwd=tmp_path, env=env | {"SLURM_RESTART_COUNT": "1"})
    assert command.code == 0, command.said
    assert f"continuing from {Path('outputs')}" in command.said or f"continuing from {run}" in command.said
    assert list(tmp_path.glob("outputs/*/*")) == [run]
    assert_same(wholes("cosine").directory, run)


# --- beyond the table ---------------------------------------------------------------------------------------------


def test_out_of_memory_names_the_keys(server: Server, tmp_path: Path) -> None:
    arguments = [*QUICK, "objective.samples=30000000", f"run_dir={tmp_path / 'run'}"]  # z alone would take 18 GB
    line = the_line(server.run(*arguments, limits={"RLIMIT_AS": 12 << 30}), 1)
    assert line.startswith("out of memory: lower data.batch_size or objective.samples")
    assert last(tmp_path / "run")["global_step"] == 0


@pytest.mark.parametrize("content", ["", "latent_dim: [", "- 1", "\x00"])
def test_a_damaged_description_is_refused(server: Server, stopped: tuple[Path, list[str]], content: str) -> None:
    run, arguments = stopped
    (run / "config.yaml").write_text(content)
    before = contents(run)
    assert the_line(server.run(*arguments), 2).startswith(f"{run / 'config.yaml'}: ")
    assert contents(run) == before
