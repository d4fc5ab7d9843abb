"""What the runs of a sweep will cost, from a few steps of each: for `--dry-run`."""

import re
from collections.abc import Iterable
from typing import Any

import torch

from vae.data.module import ImageDataModule
from vae.run.bare import Bare, timed
from vae.run.build import build_data
from vae.run.directory import read_metrics
from vae.run.jobs import Cost, Job, fingerprint
from vae.run.keys import Plain

SEEDS = ("seed", "data.seed")  # runs that differ in these alone cost the same
WARM, LONGEST = 3, 0.5  # steps before the clock starts, seconds that it runs for at most


def probe(jobs: Iterable[Job]) -> list[Cost]:
    """Parameters of each job's model, and the seconds that its epochs of training and validation still take on this
    machine.

    Writes nothing, but fetches a data set that is not there. Raises InputError for data or a model that cannot be
    built.
    """
    measured: dict[str, tuple[int, float]] = {}
    data: dict[str, ImageDataModule] = {}
    costs = []
    for job in jobs:
        metrics = read_metrics(job.directory / "metrics.json") if job.is_done else None
        if metrics is not None:
            costs.append(Cost(int(metrics["parameters"]), 0))
            continue
        plain = job.settings.plain
        kind = fingerprint(plain, without=lambda key: key in SEEDS)
        if kind not in measured:
            images = data.get(name := _identity_of_data(plain))
            if images is None:
                data = {name: build_data(job.settings)}  # one at a time: a sweep over data sets need not fit in memory
            measured[kind] = measure(job, data[name])
        parameters, epoch = measured[kind]
        costs.append(Cost(parameters, epoch * (job.settings.trainer.max_epochs - epochs_done(job))))
    return costs


def _identity_of_data(plain: Plain) -> str:
    return repr({key: value for key, value in plain["data"].items() if key != "seed"})


def measure(job: Job, data: ImageDataModule) -> tuple[int, float]:
    """Parameters, and seconds of one epoch."""
    before = torch.get_num_threads()
    if job.settings.threads:
        torch.set_num_threads(job.settings.threads)
    bare = Bare(job.settings, data)
    timed(bare.epoch(), WARM)
    bare.validate()
    steps, validation, spent, taken = bare.epoch(), timed(bare.validate), 0.0, 0
    while spent < LONGEST and taken < bare.steps_an_epoch:
        spent, taken = spent + timed(steps, 1), taken + 1
    torch.set_num_threads(before)
    return bare.vae.parameter_count, spent / taken * bare.steps_an_epoch + validation


def epochs_done(job: Job) -> int:
    found: Any = re.match(r"epoch (\d+) of", job.standing)
    return int(found[1]) if found else 0
