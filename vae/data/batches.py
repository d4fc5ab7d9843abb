"""Images and the order of their batches, which a resumed run takes up where it stopped."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from vae.errors import InputError
from vae.noise import derive

Batch = tuple[Tensor, Tensor]


class Factors(NamedTuple):
    """What images were made from: which value (N, F), counted from 0, each of the F factors has.

    `ordered` (F,) says whether a factor's values have an order, as sizes have and shapes have not.
    """

    values: Tensor
    names: list[str]
    ordered: list[bool]


class Images(Dataset[Batch]):
    """uint8 images (N, C, H, W) and int64 labels (N,), indexed by a batch of indices (B,), 0 or more, on their device.

    `repeat` lengthens the set without a copy, for benchmarks: index i is image i modulo N.
    """

    def __init__(self, images: Tensor, labels: Tensor, repeat: int = 1, factors: Factors | None = None) -> None:
        self.images = images
        self.labels = labels
        self.repeat = repeat
        self.factors = factors

    def take(self, rows: slice | Tensor) -> "Images":
        """Some of the images, each once."""
        factors = self.factors and self.factors._replace(values=self.factors.values[rows])
        return Images(self.images[rows], self.labels[rows], factors=factors)

    def __len__(self) -> int:
        return len(self.images) * self.repeat

    def __getitem__(self, indices: list[int] | Tensor) -> Batch:
        where = torch.as_tensor(indices)
        if self.repeat > 1:
            where = where % len(self.images)
        # a quarter of the time that self.images[where] takes
        return self.images.index_select(0, where), self.labels.index_select(0, where)


class EpochBatches(DistributedSampler[Tensor]):
    """Batches of indices, as tensors (B,), in an order that depends on (seed, epoch) alone.

    `batch_size` is the global batch; rank r of `world_size` takes every world_size-th index of it from r on.
    As long as the ranks' shares are equal, several processes see the batches, and so the losses, of one. A
    last batch too small to give each rank an image is dropped on all of them. It is a DistributedSampler by
    type only, so that Lightning leaves it in its place.

    Raises InputError where the global batch is smaller than `world_size`.
    """

    def __init__(
        self,
        dataset: Images,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
    ) -> None:
        self.device = device or torch.device("cpu")  # of the indices: that of the images
        super().__init__(dataset, num_replicas=world_size, rank=rank, shuffle=shuffle, seed=seed)
        if batch_size < world_size:
            raise InputError(
                f"data.batch_size={batch_size}: the global batch must hold an image for each of the "
                f"{world_size} processes; set data.batch_size to {world_size} or more"
            )
        self.size = len(dataset)
        self.batch_size = batch_size
        self.skip = (0, 0)  # (epoch, batches): where a resumed run goes on

    def __len__(self) -> int:
        full, rest = divmod(self.size, self.batch_size)
        return full + (rest >= self.num_replicas)

    def order(self) -> Tensor:
        """The epoch's indices (N,), over all ranks."""
        if not self.shuffle:
            return torch.arange(self.size)
        generator = torch.Generator().manual_seed(derive(self.seed, "order", self.epoch))
        return torch.randperm(self.size, generator=generator)

    def first(self) -> int:
        """The batch at which this epoch starts: 0, but in the epoch in which a resumed run goes on."""
        epoch, batches = self.skip
        return batches if epoch == self.epoch else 0

    def __iter__(self) -> Iterator[Tensor]:
        batches = self.order().to(self.device).split(self.batch_size)[: len(self)]
        for batch in batches[self.first() :]:
            yield batch[self.rank :: self.num_replicas]


def _as_is(batch: Any) -> Any:
    return batch


class ResumableLoader(DataLoader[Batch]):
    """The batches of an EpochBatches sampler, with a position that Lightning stores in its checkpoints.

    Iteration begins at the first `next`, not at `iter`: on a resume Lightning calls `iter` before
    `set_epoch`, and workers that fetched ahead would fetch the first epoch's batches. The length stays that
    of the whole epoch, since Lightning adds the batches already done itself.

    `done` tells how many batches of the epoch are trained on, when someone knows better than this loader,
    which can only count those it has handed out: in the midst of a training step the two differ by one.
    """

    sampler: EpochBatches

    def __init__(
        self,
        dataset: Images,
        sampler: EpochBatches,
        num_workers: int = 0,
        done: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=num_workers,
            collate_fn=_as_is,
            persistent_workers=num_workers > 0,
            worker_init_fn=ignore_in_worker,
            generator=torch.Generator(),  # else each epoch draws a number from torch's global stream
        )
        self.handed = 0
        self.done = done  # no lambda on self: workers freed by way of a reference cycle take 5 s each to end

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch asks for its own private iterator
        self.handed = self.sampler.first()
        # without workers torch's own way to a batch takes as long as to gather it
        for batch in super().__iter__() if self.num_workers else map(self.dataset.__getitem__, self.sampler):
            self.handed += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The position: the epoch, and how many of its batches are done."""
        return {"epoch": self.sampler.epoch, "batches": self.done() if self.done else self.handed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from a stored position; it holds for the epoch it names and no other."""
        self.sampler.skip = (state["epoch"], state["batches"])


def ignore_in_worker(worker_id: int) -> None:
    """The DataLoader's `worker_init_fn`: signals to the whole process group are for the main process to answer.

    Ctrl-C, `timeout` and `scancel` reach workers too, and a worker that dies early kills the run before its boundary.
    A SIGTERM from the main process itself, which is how it ends its workers, still ends them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # all but macOS, where torch's own handler stays
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_leave_when_told, daemon=True).start()


def _leave_when_told() -> None:
    parent = multiprocessing.parent_process()
    while parent is not None and signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)
