"""ImageDataModule: the splits train, dev and test, their binarisation and their loaders."""

import math
import os
from functools import cached_property
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from vae.data.batches import Batch, EpochBatches, Images, ResumableLoader, _as_is, as_floats
from vae.data.downloads import ensure
from vae.data.sources import DEV_SIZES, NAMES, _at_least, _fits, _load_digits, _load_idx, _one_of
from vae.errors import InputError
from vae.noise import derive

SPLITS = ("last", "random")

BINARIZE = ("none", "threshold", "static", "dynamic")

TRAIN_EVAL_SIZE = 10_000

Loaded = tuple[Tensor, Tensor | None]  # images and, where there are any, labels

LEAST_LIMIT_OF_WORKERS = 64  # a run of a larger machine loads on a smaller one


def _draw(images: Tensor, seed: int) -> Tensor:
    """One Bernoulli draw per pixel, as 0 or 255: u uniform on 0..254 has P(u < v) = v / 255."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.randint(255, images.shape, dtype=torch.uint8, generator=generator)
    return (uniform < images).to(torch.uint8) * 255


def _labeled(images: Tensor, labels: Tensor | None) -> Batch:
    """Images without labels get -1, which no class has."""
    return images, torch.full((len(images),), -1) if labels is None else labels


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
        cores = os.cpu_count() or 1
        if num_workers > (most := max(LEAST_LIMIT_OF_WORKERS, 4 * cores)):
            raise InputError(
                f"data.num_workers={num_workers}: this machine has {cores} cores; take at most {most}, or 0, since the "
                "images are in memory"
            )
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
        if self.name != "digits" and not self.is_own and not self.is_set_up:
            ensure(self.name, self.root, self.mirrors, self.timeout)

    @property
    def is_own(self) -> bool:
        """Whether `load` was overridden, so that the set is none of the named ones."""
        return type(self).load is not ImageDataModule.load

    def load(self) -> tuple[Loaded, Loaded, str]:
        """uint8 images (N, C, H, W) and labels (N,), or None: the official training set, the test set, a fingerprint.

        The place for a set of your own: the splits, the binarisation and the loaders follow from it.
        """
        return _load_digits(self.test_size) if self.name == "digits" else _load_idx(self.name, self.root)

    def setup(self, stage: str | None = None) -> None:
        """Reads, cuts and binarises the sets; a second call does nothing, whatever the stage."""
        if overfit := getattr(self.trainer, "overfit_batches", 0):
            raise InputError(
                f"trainer.overfit_batches={overfit}: it replaces the order of the batches, which resuming "
                "needs; use trainer.limit_train_batches, or a larger data.dev_size to train on fewer images"
            )
        if self.is_set_up:
            return
        train, test, self.md5 = self.load()
        images, labels = _labeled(*train)
        train_rows, dev_rows = self._rows(len(images))
        grey = images[train_rows], labels[train_rows]
        self.dev = Images(*self._binarized(images[dev_rows], labels[dev_rows], 1))
        self.test = Images(*self._binarized(*_labeled(*test), 2))
        if self.binarize == "dynamic":
            self.train = Images(*grey, repeat=self.repeat)
        else:
            self.train = Images(*self._binarized(*grey, 0), repeat=self.repeat)
        first = slice(TRAIN_EVAL_SIZE)
        self.train_eval = Images(*self._fixed_draw(self.train.images[first], self.train.labels[first]))
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

    def _fixed_draw(self, images: Tensor, labels: Tensor) -> Batch:
        """Training images as an evaluation sees them: under dynamic binarisation one draw, the same each time."""
        return self._binarized(images, labels, 0) if self.binarize == "dynamic" else (images, labels)

    @cached_property
    def train_fixed(self) -> Images:
        """All of `train`, in the form that dev and test have: what classifiers and neighbours are taken from."""
        return Images(*self._fixed_draw(self.train.images, self.train.labels))

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
        self._ensure_loaded()
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def classes(self) -> int:
        """How many classes the training labels tell apart; 0 without labels."""
        return int(self.train.labels.max()) + 1 if self.is_own else 10

    def _ensure_loaded(self) -> None:
        self.prepare_data()
        self.setup()

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled, this rank's share of each batch, resumable."""
        trainer = self.trainer
        if trainer is None:
            return ResumableLoader(self.train, EpochBatches(self.train, self.batch_size, self.seed), self.num_workers)
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress
        images, device = self._on_device(self.train)
        rank, ranks = trainer.global_rank, trainer.world_size
        sampler = EpochBatches(images, self.batch_size, self.seed, True, rank, ranks, device)
        return ResumableLoader(images, sampler, self.num_workers, done=lambda: progress.current.processed)

    def _on_device(self, images: Images) -> tuple[Images, torch.device]:
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
        images, device = self._on_device(images)
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
