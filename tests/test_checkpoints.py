"""Checkpoints against full disks, kill -9, flipped bits, foreign files and code."""

import contextlib
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from vae.errors import InputError, RunFailed
from vae.files import remove_leftovers, writable
from vae.training.checkpoints import DurableCheckpointIO, SaveLast, check_architecture, load

NOWHERE = Path("/sys/vae")  # nobody can write there, not even root


def checkpoint(**more: Any) -> dict[str, Any]:
    weights = {"weight": torch.arange(6.0).reshape(2, 3) + 1, "bias": torch.tensor([0.5, -2.0])}
    facts = {"format": 2, "settings": {}, "image_shape": [1, 2, 3]}
    parts = {"vae": facts, "epoch": 0, "global_step": 0, "callbacks": {}}
    return {"pytorch-lightning_version": "2.6.6", "state_dict": weights} | parts | more


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "last.ckpt"
    DurableCheckpointIO().save_checkpoint(checkpoint(), path)
    return path


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    return a == b


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        load(path)
    line = str(error.value)
    assert str(path) in line
    assert "\n" not in line
    assert "weights_only" not in line
    return line


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to let any file of this process grow beyond `size` bytes, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_round_trip_without_a_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(NOWHERE))
    path = tmp_path / "new" / "last.ckpt"
    for value in (1, 2):
        DurableCheckpointIO().save_checkpoint(checkpoint(value=value), str(path))
        assert same(DurableCheckpointIO().load_checkpoint(str(path)), checkpoint(value=value))
    assert list(path.parent.iterdir()) == [path]
    DurableCheckpointIO().remove_checkpoint(path)
    assert not path.exists()


def test_bare_weights_pass_between_processes(tmp_path: Path) -> None:
    """ddp_fork and ddp_spawn hand the final weights over in a file that is no checkpoint."""
    path = tmp_path / ".temp.ckpt"
    DurableCheckpointIO().save_checkpoint(checkpoint()["state_dict"], path)
    assert same(DurableCheckpointIO().load_checkpoint(path), checkpoint()["state_dict"])


def test_a_full_disk_leaves_the_previous_checkpoint(path: Path) -> None:
    before = path.read_bytes()
    with largest_file(len(before) + 100), pytest.raises(RunFailed) as error:
        DurableCheckpointIO().save_checkpoint(checkpoint(more=torch.zeros(1000)), path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    line = str(error.value)
    assert f"{path}: File too large; the previous checkpoint is intact; " in line
    assert "\n" not in line


@pytest.mark.parametrize("directory", [NOWHERE, Path("/dev/null")])
def test_an_unwritable_directory_is_no_success(directory: Path) -> None:
    with pytest.raises(RunFailed, match=r"cannot write the checkpoint .*last\.ckpt: [A-Z].*; make room"):
        DurableCheckpointIO().save_checkpoint(checkpoint(), directory / "last.ckpt")


class Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_a_run_that_cannot_save_fails(tmp_path: Path) -> None:
    """Lightning itself ends such a run as finished, with no file (lightning #21800)."""
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        default_root_dir=tmp_path,
        callbacks=[SaveLast(NOWHERE)],
        plugins=[DurableCheckpointIO()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(RunFailed, match="cannot write the checkpoint"):
        trainer.fit(Model(), torch.utils.data.DataLoader(torch.ones(4, 3), batch_size=2))


def test_sweep_takes_the_parts_of_dead_processes_only(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    for name in (dead.pid, os.getpid(), os.getppid(), 1, "mine"):
        (tmp_path / f"last.ckpt.{name}.part").touch()
    (tmp_path / "last.ckpt").touch()
    remove_leftovers(tmp_path)
    left = {"last.ckpt", f"last.ckpt.{os.getppid()}.part", "last.ckpt.1.part", "last.ckpt.mine.part"}
    assert {path.name for path in tmp_path.iterdir()} == left
    remove_leftovers(tmp_path / "not there")


def test_writable_tries_and_leaves_nothing(tmp_path: Path) -> None:
    writable(tmp_path / "new" / "checkpoints", 1_000_000)
    assert list((tmp_path / "new" / "checkpoints").iterdir()) == []
    with largest_file(1_000_000), pytest.raises(RunFailed, match=r"File too large \(3\.0 MB are needed\).*run_dir"):
        writable(tmp_path, 3_000_000)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    with pytest.raises(RunFailed, match=f"cannot write checkpoints to {NOWHERE}"):
        writable(NOWHERE, 0)


def test_missing_and_empty(path: Path) -> None:
    assert "nowhere.ckpt does not exist; give a checkpoint" in refusal(path.with_name("nowhere.ckpt"))
    assert "is a directory" in refusal(path.parent).lower()
    path.write_bytes(b"")
    assert "last.ckpt is empty; continue from the other one (checkpoint=best)" in refusal(path)


def test_every_truncation_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for size in (1, 3, 4, 100, len(whole) // 2, len(whole) - 23, len(whole) - 1):
        path.write_bytes(whole[:size])
        refusal(path)
    assert "is truncated" in refusal(path)


def test_foreign_files(path: Path) -> None:
    path.write_text("not a checkpoint")
    assert "is no checkpoint of this project" in refusal(path)
    for foreign in ({"state_dict": {}}, checkpoint(vae=3), [1, 2], torch.zeros(2)):
        torch.save(foreign, path)
        assert "is no checkpoint of this project" in refusal(path)
    torch.save(checkpoint(vae={"format": 3}), path)
    assert "has format 3, this version reads format 2" in refusal(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 10_000)
    assert "is not as torch writes it" in refusal(path)


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_code_is_refused_and_not_executed(path: Path) -> None:
    target = path.parent / "executed"
    torch.save(checkpoint(payload=Payload(target)), path)
    assert "holds code (posix.mkdir): refused, nothing was executed; " in refusal(path)
    assert not target.exists()


def flips(path: Path, bits: list[int]) -> None:
    """Each of these bits, flipped alone, must be noticed or be without effect."""
    whole, expected = path.read_bytes(), load(path)
    harmless = 0
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with contextlib.suppress(InputError):
            assert same(load(path), expected), f"bit {bit % 8} of byte {bit // 8} passes unnoticed"
            harmless += 1
    assert harmless < 0.6 * len(bits)  # padding and time stamps


def test_flipped_bits_are_noticed(path: Path) -> None:
    bits = 8 * path.stat().st_size
    flips(path, random.Random(5).sample(range(bits), 500))


@pytest.mark.slow
def test_every_single_flipped_bit_is_noticed(path: Path) -> None:
    flips(path, list(range(8 * path.stat().st_size)))


def test_an_entry_that_poses_as_a_directory_is_noticed(path: Path) -> None:
    """Torch would load it unfilled, with whatever the memory held; and the checksum of the tensor is right."""
    damaged = bytearray(path.read_bytes())
    entry = damaged.rindex(b"PK\x01\x02", 0, damaged.rindex(b"archive/data/1"))
    damaged[entry + 38] ^= 0x10  # of the external attributes
    path.write_bytes(damaged)
    assert not torch.equal(torch.load(path)["state_dict"]["bias"], checkpoint()["state_dict"]["bias"])
    assert "member archive/data/1 is not as torch writes it" in refusal(path)


def save_for_ever(path: Path) -> None:
    value = load(path)["value"]
    while True:
        value += 1
        DurableCheckpointIO().save_checkpoint(checkpoint(value=value, big=torch.full((50_000,), value)), path)


def kill_often(path: Path) -> None:
    """20 processes, one after another, killed while they write over and over; fails if a checkpoint is lost."""
    torch.set_num_threads(1)
    DurableCheckpointIO().save_checkpoint(checkpoint(value=0, big=torch.full((50_000,), 0)), path)
    parts = 0
    for attempt in range(20):
        pid = os.fork()
        if pid == 0:
            save_for_ever(path)
        time.sleep(random.Random(attempt).uniform(0.01, 0.1))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        found = load(path)
        assert torch.equal(found["big"], torch.full((50_000,), found["value"]))
        parts += len(list(path.parent.glob("*.part")))
        remove_leftovers(path.parent)
        assert list(path.parent.iterdir()) == [path]
    assert parts, "no kill came in the midst of writing"
    assert load(path)["value"], "nothing was ever written"


@pytest.mark.faults
def test_kill_9_never_costs_the_checkpoint(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vae.data.module", "vae.training.signals"])
    process = context.Process(target=kill_often, args=(tmp_path / "last.ckpt",))
    process.start()
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weights: weights.pop("bias"), r"bias is missing in the checkpoint and \(2,\) in the model"),
        (lambda weights: weights.update(scale=torch.ones(5)), r"scale is \(5,\) in the checkpoint and missing in"),
        (lambda weights: weights.update(weight=torch.ones(3, 2)), r"weight is \(3, 2\) .* and \(2, 3\) in the model"),
    ],
)
def test_a_checkpoint_of_another_architecture(change: Any, words: str) -> None:
    weights = dict(nn.Linear(3, 2).state_dict())
    check_architecture(weights, nn.Linear(3, 2))
    change(weights)
    with pytest.raises(InputError, match=words):
        check_architecture(weights, nn.Linear(3, 2))
