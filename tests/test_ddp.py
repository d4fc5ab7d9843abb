"""Two processes (gloo) that share each batch train as one process does."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from faults_tools import ROOT, SCREEN

from vae.distributions import Normal
from vae.noise import SharedNoise, fixed_noise
from vae.training import checkpoints

SMALL = (
    "data=digits", "latent_dim=3", "model.encoder.hidden=[16]", "model.decoder.hidden=[12]", "dropout=0", "threads=1",
    "data.batch_size=90", "trainer.max_epochs=3", "evaluation=none", "callbacks.figures_every=0", "objective.samples=2",
    "optimizer.lr=0.01",
)  # fmt: skip
# 1,197 images: 13 batches of 90, and a last one of 27, of which the ranks have 14 and 13
CURVES = ("train/loss", "train/kl", "dev/loss", "dev/reconstruction", "train/grad_norm")


def trained(directory: Path, *more: str) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "train.py"), *SMALL, *more, f"run_dir={directory}"]
    ended = subprocess.run(command, env=os.environ | SCREEN, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return checkpoints.load(directory / "checkpoints" / "last.ckpt")


def test_two_processes_have_the_loss_curve_of_one(tmp_path: Path) -> None:
    """Also of images that are drawn anew at each visit."""
    # equal shares: then only the order of the sums differs
    whole = ("trainer.limit_train_batches=13", "likelihood=bernoulli", "data.binarize=dynamic")
    one, two = trained(tmp_path / "one", *whole), trained(tmp_path / "two", *whole, "trainer=ddp")
    rows, others = (found["callbacks"]["History"]["rows"] for found in (one, two))
    assert len(rows) == len(others) == 3
    for row, other in zip(rows, others, strict=True):
        for name in CURVES:
            assert other[name] == pytest.approx(row[name], rel=1e-4), (name, row["epoch"])
    assert rows[-1]["dev/loss"] < 0.7 * rows[0]["dev/loss"], "it was to learn something"
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_ranks_share_what_one_process_draws(ranks: int) -> None:
    whole = Normal(torch.zeros(6, 5), torch.ones(6, 5))
    torch.default_generator.manual_seed(4)
    alone = [whole.rsample(torch.Size((2,))) for _ in range(2)]
    for rank in range(ranks):
        part = Normal(whole.loc[rank::ranks], whole.scale[rank::ranks])
        with fixed_noise(SharedNoise(4, rank, ranks, torch.device("cpu"))):
            drawn = [part.rsample(torch.Size((2,))) for _ in range(2)]
        for mine, theirs in zip(drawn, alone, strict=True):
            assert torch.equal(mine, theirs[:, rank::ranks])
