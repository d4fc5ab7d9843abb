"""Image data: MNIST, Fashion-MNIST, KMNIST, scikit-learn's digits, in batches whose order can be resumed."""

import hashlib
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from vae.downloads import FILES, SOURCES, ensure, raw_folder, read_idx
from vae.errors import InputError
from vae.seeds import derive
from vae.signals import ignore_in_worker

Batch = tuple[Tensor, Tensor]

NAMES = (*SOURCES, "digits")
SPLITS = ("last", "random")
BINARIZE = ("none", "threshold", "static", "dynamic")
TRAIN_EVAL_SIZE = 10_000
DEV_SIZES = {"digits": 300}


def as_floats(images: Tensor) -> Tensor:
    """uint8 grey levels 0..255 as float32 in [0, 1], on the same device."""
    return images.float().div_(255)


class Images(Dataset[Batch]):
    """uint8 images (N, C, H, W) and int64 labels (N,), indexed by a batch of indices (B,), 0 or more, on their device.

    `repeat` lengthens the set without a copy, for benchmarks: index i is image i modulo N.
    """

    def __init__(self, images: Tensor, labels: Tensor, repeat: int = 1) -> None:
        self.images = images
        self.labels = labels
        self.repeat = repeat

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


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise InputError(f"data.{key}={value}: unknown; choose one of {', '.join(allowed)}")
    return value


def _at_least(key: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"data.{key}={value}: must be a whole number, {least} or more")
    return value


def _read_pair(images: Path, labels: Path) -> Batch:
    """Images (N, 1, H, W) uint8 and labels (N,) int64 from two idx files, checked against each other."""
    x, y = read_idx(images), read_idx(labels)
    if len(x) != len(y):
        raise InputError(
            f"{labels}: {len(y)} labels for the {len(x)} images of {images.name}; remove the wrong one of "
            "the two and it is fetched again"
        )
    if len(y) and y.max() > 9:
        raise InputError(f"{labels}: label {y.max()}, expected 0 to 9; remove it and it is fetched again")
    return torch.from_numpy(x.copy()).unsqueeze(1), torch.from_numpy(y.astype(np.int64))


def _load_idx(name: str, root: str | Path) -> tuple[Batch, Batch, str]:
    """The official training set, the official test set, and the md5 of the four files one after the other."""
    paths = [raw_folder(name, root) / file for file in FILES]
    train, test = _read_pair(*paths[:2]), _read_pair(*paths[2:])
    digest = hashlib.md5(usedforsecurity=False)
    for path in paths:
        digest.update(path.read_bytes())
    return train, test, digest.hexdigest()


def _load_digits(test_size: int) -> tuple[Batch, Batch, str]:
    """scikit-learn's 1,797 digits, 8x8 levels 0..16, enlarged to 1x28x28, with the md5 of what it bundles.

    The set is ordered by writer, so it is shuffled, always in the same way; the test set is the end of it.
    """
    from sklearn.datasets import load_digits  # here, since it is slow to import and seldom needed

    digits = load_digits()
    levels = digits.images.astype(np.uint8)  # (N, 8, 8)
    labels = digits.target.astype(np.int64)
    md5 = hashlib.md5(levels.tobytes() + labels.tobytes(), usedforsecurity=False).hexdigest()
    small = torch.from_numpy(levels).float().unsqueeze(1) * (255 / 16)
    small = F.pad(small, (1, 1, 1, 1))  # a margin, as MNIST has: the digits touch the upper and lower edge
    images = F.interpolate(small, (28, 28), mode="bicubic").round().clamp(0, 255).to(torch.uint8)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x, y = images[order], torch.from_numpy(labels)[order]
    _fits("test_size", test_size, len(x))
    cut = len(x) - test_size
    return (x[:cut], y[:cut]), (x[cut:], y[cut:]), md5


def _fits(key: str, value: int, size: int) -> None:
    if value >= size:
        raise InputError(f"data.{key}={value}: leaves none of {size} images to train on; set it below {size}")


def _draw(images: Tensor, seed: int) -> Tensor:
    """One Bernoulli draw per pixel, as 0 or 255: u uniform on 0..254 has P(u < v) = v / 255."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.randint(255, images.shape, dtype=torch.uint8, generator=generator)
    return (uniform < images).to(torch.uint8) * 255


class ImageDataModule(LightningDataModule):
    """train, dev and test images of one set, uint8 until on the device, then float32 in [0, 1].

    `dev` is cut from the official training set: its last `dev_size` images in the file's order
    (`split="last"`, the report's cut) or random ones (`split="random"`, drawn from `split_seed`).
    `train_eval` is the first 10,000 of `train`, to compare train and dev on the same terms. With
    `binarize="dynamic"` a training image is drawn anew at each visit (Burda et al. 2015), and every other
    set is drawn once, so that scores repeat.

    Raises InputError, naming the key or file, for settings or files that cannot be used.
    """

    name: str
    train: Images
    dev: Images
    test: Images
    train_eval: Images
    md5: str  # of the raw files, or arrays: the same on every machine

    def __init__(
        self,
        name: str = "mnist",
        root: str = "data",
        batch_size: int = 100,
        eval_batch_size: int = 1000,
        dev_size: int | None = None,
        test_size: int = 300,  # of digits; the other sets come with theirs
        split: str = "last",
        split_seed: int = 0,
        binarize: str = "none",
        num_workers: int = 0,
        seed: int = 0,
        repeat: int = 1,
        mirrors: list[str] | None = None,
        timeout: float = 30,
        resident: bool | None = None,
    ) -> None:
        super().__init__()
        self.name = _one_of("name", name, NAMES)
        self.root = root
        self.batch_size = _at_least("batch_size", batch_size, 1)
        self.eval_batch_size = _at_least("eval_batch_size", eval_batch_size, 1)
        dev_size = DEV_SIZES.get(name, 10_000) if dev_size is None else dev_size
        self.dev_size = _at_least("dev_size", dev_size, 1)
        self.test_size = _at_least("test_size", test_size, 1)
        self.split = _one_of("split", split, SPLITS)
        self.split_seed = _at_least("split_seed", split_seed, 0)
        self.binarize = _one_of("binarize", binarize, BINARIZE)
        self.num_workers = _at_least("num_workers", num_workers, 0)
        self.seed = _at_least("seed", seed, 0)
        self.repeat = _at_least("repeat", repeat, 1)
        self.mirrors = mirrors
        if not timeout > 0:
            raise InputError(f"data.timeout={timeout}: must be a number of seconds above 0")
        self.timeout = timeout
        self.resident = resident
        if resident and num_workers:
            raise InputError(
                f"data.resident=true: the images are on the device, where data.num_workers={num_workers} processes "
                "cannot read them; set data.num_workers=0"
            )
        self.is_set_up = False

    def prepare_data(self) -> None:
        """Makes the files available, by download if need be; touches nothing when all are right."""
        if self.name != "digits" and not self.is_set_up:
            ensure(self.name, self.root, self.mirrors, self.timeout)

    def setup(self, stage: str | None = None) -> None:
        """Reads, cuts and binarises the sets; a second call does nothing, whatever the stage."""
        if overfit := getattr(self.trainer, "overfit_batches", 0):
            raise InputError(
                f"trainer.overfit_batches={overfit}: it replaces the order of the batches, which resuming "
                "needs; use trainer.limit_train_batches, or a larger data.dev_size to train on fewer images"
            )
        if self.is_set_up:
            return
        loaded = _load_digits(self.test_size) if self.name == "digits" else _load_idx(self.name, self.root)
        (images, labels), test, self.md5 = loaded
        train_rows, dev_rows = self._rows(len(images))
        grey = images[train_rows], labels[train_rows]
        self.dev = Images(*self._binarized(images[dev_rows], labels[dev_rows], 1))
        self.test = Images(*self._binarized(*test, 2))
        if self.binarize == "dynamic":
            self.train = Images(*grey, repeat=self.repeat)
        else:
            self.train = Images(*self._binarized(*grey, 0), repeat=self.repeat)
        first = slice(TRAIN_EVAL_SIZE)
        self.train_eval = Images(*self._once(self.train.images[first], self.train.labels[first]))
        self.is_set_up = True

    def _rows(self, size: int) -> tuple[Any, Any]:
        """The rows of the official training set that are train and dev: slices or index tensors."""
        _fits("dev_size", self.dev_size, size)
        cut = size - self.dev_size
        if self.split == "last":
            return slice(cut), slice(cut, None)
        generator = torch.Generator().manual_seed(derive(self.split_seed, "split"))
        order = torch.randperm(size, generator=generator)
        return order[:cut], order[cut:]

    def _binarized(self, images: Tensor, labels: Tensor, split: int) -> Batch:
        if self.binarize == "threshold":
            images = (images >= 128).to(torch.uint8) * 255  # 127.5 is one half
        elif self.binarize != "none":
            images = _draw(images, derive(self.seed, "binarize-static", split))
        return images, labels

    def _once(self, images: Tensor, labels: Tensor) -> Batch:
        """Training images as an evaluation sees them: under dynamic binarisation one draw, the same each time."""
        return self._binarized(images, labels, 0) if self.binarize == "dynamic" else (images, labels)

    @cached_property
    def train_once(self) -> Images:
        """All of `train`, in the form that dev and test have: what classifiers and neighbours are taken from."""
        return Images(*self._once(self.train.images, self.train.labels))

    @cached_property
    def principal(self) -> tuple[Tensor, Tensor]:
        """Of train's P pixels in [0, 1]: the mean (P,) and, as columns, the principal axes (P, P), greatest variance
        first; float64."""
        pixels, count = math.prod(self.image_shape), len(self.train.images)  # the first one reads the data
        total, products = torch.zeros(pixels, dtype=torch.float64), torch.zeros(pixels, pixels, dtype=torch.float64)
        for part in self.train.images.split(5000):  # all at once, as floats, would be the most memory that a run takes
            x = as_floats(part).flatten(1)
            total += x.sum(0)
            products += x.T @ x
        mean = total / count
        return mean, torch.linalg.eigh(products / count - torch.outer(mean, mean)).eigenvectors.flip(1)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W); reads the data, fetching it if need be, when that has not been done."""
        self._need()
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def classes(self) -> int:
        """How many labels there are: ten in every set."""
        return 10

    def _need(self) -> None:
        self.prepare_data()
        self.setup()

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled, this rank's share of each batch, resumable."""
        trainer = self.trainer
        if trainer is None:
            return ResumableLoader(self.train, EpochBatches(self.train, self.batch_size, self.seed), self.num_workers)
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress
        images, device = self._placed(self.train)
        rank, ranks = trainer.global_rank, trainer.world_size
        sampler = EpochBatches(images, self.batch_size, self.seed, True, rank, ranks, device)
        return ResumableLoader(images, sampler, self.num_workers, done=lambda: progress.current.processed)

    def _placed(self, images: Images) -> tuple[Images, torch.device]:
        """The images where batches are gathered: on the device if `resident`, so that no step copies from the host."""
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        resident = device.type == "cuda" and not self.num_workers if self.resident is None else self.resident
        if not resident:
            return images, torch.device("cpu")
        return Images(images.images.to(device), images.labels.to(device), images.repeat), device

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """dev, then train_eval."""
        return [self._eval_loader(self.dev), self._eval_loader(self.train_eval)]

    def test_dataloader(self) -> DataLoader[Batch]:
        """The official test set."""
        return self._eval_loader(self.test)

    def _eval_loader(self, images: Images) -> DataLoader[Batch]:
        """In order, the whole set on every rank: no image counts twice, no rank needs another's sums."""
        images, device = self._placed(images)
        sampler = EpochBatches(images, self.eval_batch_size, shuffle=False, device=device)
        return DataLoader(images, batch_size=None, sampler=sampler, collate_fn=_as_is, generator=torch.Generator())

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """uint8 images (B, C, H, W) as float32 in [0, 1] on their device, drawn anew in dynamic training."""
        images, labels = batch
        x = as_floats(images)
        if self.binarize == "dynamic" and self.trainer is not None and self.trainer.training:
            x = self._drawn(x)
        return x, labels

    def _drawn(self, x: Tensor) -> Tensor:
        """A function of (seed, step, batch of the epoch): a resumed run draws what it would have.

        Rank r of n draws for the whole batch and keeps images r, r + n, ...: those of one process.
        """
        assert self.trainer is not None
        where = self.trainer.global_step, self.trainer.fit_loop.batch_idx + 1
        generator = torch.Generator(x.device).manual_seed(derive(self.seed, "binarize", 0, *where))
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        if ranks == 1:
            return torch.bernoulli(x, generator=generator)
        whole = x.new_zeros(len(x) * ranks, *x.shape[1:])
        whole[rank::ranks] = x
        return torch.bernoulli(whole, generator=generator)[rank::ranks]
