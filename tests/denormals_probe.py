"""How many denormals a process leaves; a callback that notes it in each process that trains."""

import os

import torch
from lightning import Callback, LightningModule, Trainer

DENORMAL = 1e-39


def products_left() -> int:
    """How many denormals survive a multiplication, of single numbers and of matrices; counted by their bits."""
    single, matrix = torch.full((2**18,), DENORMAL).mul(1), torch.full((600, 600), DENORMAL) @ torch.eye(600)
    return sum(int(product.view(torch.int32).count_nonzero()) for product in (single, matrix))


def denormals_left() -> int:
    """The same in one thread and in two."""
    threads, left = torch.get_num_threads(), 0
    for count in (1, 2):
        torch.set_num_threads(count)
        left += products_left()
    torch.set_num_threads(threads)
    return left


class Probe(Callback):
    """Adds a line to `file` for each process that trains."""

    def __init__(self, file: str) -> None:
        self.file = file

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with open(self.file, "a") as lines:
            lines.write(f"{os.getpid()} {denormals_left()}\n")
