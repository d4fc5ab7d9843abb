"""Writes the checkpoint named on the command line over and over, each time with a higher number, until it is killed."""

import sys
from pathlib import Path

import torch

from vae.training.checkpoints import DurableCheckpointIO, load

BIG = 250_000  # int64: 2 MB a checkpoint


def checkpoint(value: int) -> dict[str, object]:
    tensors = {"value": torch.full((BIG,), value)}
    facts = {"format": 2, "settings": {}, "image_shape": [1, 2, 3]}
    parts = {"vae": facts, "epoch": 0, "global_step": 0, "callbacks": {}}
    return {"pytorch-lightning_version": "2.6.6", "state_dict": tensors} | parts


if __name__ == "__main__":
    path = Path(sys.argv[1])
    value = int(load(path)["state_dict"]["value"][0])
    while True:
        value += 1
        DurableCheckpointIO().save_checkpoint(checkpoint(value), path)
