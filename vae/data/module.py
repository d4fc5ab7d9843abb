"""ImageDataModule: the splits train, dev and test, their binarisation and their loaders."""

import hashlib
import math
import os
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from vae.data.axes import EXACT_PIXELS, leading_axes, principal_axes
from vae.data.batches import Batch, EpochBatches, Factors, Images, ResumableLoader, _as_is
from vae.errors import InputError
from vae.noise import derive
from vae.pixels import as_floats, at_threshold, draw_binary
from vae.types import Count, CountOrZero, Seed

Split = Annotated[Literal["last", "random"], "which images are held out: the last of the file, or random ones"]

BatchSize = Annotated[Count | None, "images per batch, over all devices; null: by the number of training images"]

TRAIN_EVAL_SIZE = 10_000
STEPS, SMALLEST_BATCH, LARGEST_BATCH = 60, 8, 100  # with digits' 1,197 images the default 70 epochs are 4,200 steps

LEAST_LIMIT_OF_WORKERS = 64  # a run of a larger machine loads on a smaller one

Loaded = tuple[Tensor, Tensor | None]  # uint8 images (N, C, H, W) and, where there are any, int64 labels (N,)


class RawSet(NamedTuple):
    """A set as its source gives it: with a test set and a dev set, or without, which are then cut from `train`.

    `factors` belong to a `train` that all splits are cut from.
    """

    train: Loaded
    test: Loaded | None = None
    dev: Loaded | None = None
    class_names: list[str] | None = None
    factors: Factors | None = None

    @property
    def md5(self) -> str:
        """Of shapes and contents: the same on every machine."""
        digest = hashlib.md5(usedforsecurity=False)
        for split in (self.train, self.dev, self.test):
            for array in split or ():
                if array is not None:
                    digest.update(repr(tuple(array.shape)).encode())
                    digest.update(array.contiguous().numpy().data)
        return digest.hexdigest()


def _labeled(images: Tensor, labels: Tensor | None) -> Batch:
    """Images without labels get -1, which no class has."""
    return images, torch.full((len(images),), -1) if labels is None else labels


class ImageDataModule(LightningDataModule, ABC):
    """train, dev and test images of one set, uint8 until on the device, then float32 in [0, 1].

    A set is a subclass: `load` reads it, the splits, their binarisation and their loaders follow from it.
    `dev` is cut from the training set: its last `dev_size` images in the file's order (`split="last"`, the report's
    cut) or random ones (`split="random"`, drawn from `split_seed`). A set that comes without a test set has `test`
    cut from it before, in the same way.
    `train_eval` is the first 10,000 of `train`, to compare train and dev on the same terms. With
    `binarize="static"` every image is drawn once, from `split_seed`: runs of every `seed` see the same images.
    With `binarize="dynamic"` a training image is drawn anew at each visit (Burda et al. 2015), and every other set
    as in `static`.

    Raises InputError, naming the key or file, for settings or files that cannot be used.
    """

    train: Images
    dev: Images
    test: Images
    train_eval: Images
    md5: str  # of the images and labels of all splits, before binarisation
    class_names: list[str]  # none without labels
    usual_dev_size: ClassVar[int | None] = None  # where the key is null; None: a tenth
    usual_test_size: ClassVar[int | None] = None
    is_shuffled: ClassVar[bool] = False  # whether the images come in random order

    def __init__(
        self,
        batch_size: BatchSize = 100,
        eval_batch_size: Annotated[Count, "images at once in validation; changes no metric"] = 1000,
        dev_size: Annotated[
            Count | None, "images held out; null: 10,000 of a known set, digits 300, else a tenth"
        ] = None,
        test_size: Annotated[Count | None, "images held out where the set has no test images; null: a tenth"] = None,
        split: Split = "last",
        split_seed: Annotated[Seed, "seed of split=random, of static draws, and of the sprites"] = 0,
        binarize: Annotated[
            Literal["none", "threshold", "static", "dynamic"], "grey levels as 0 and 1; dynamic: at each visit"
        ] = "none",
        num_workers: Annotated[CountOrZero, "processes that load batches"] = 0,
        seed: Annotated[Seed, "seed of the order and of dynamic draws"] = 0,
        repeat: Annotated[Count, "length of an epoch, in training sets"] = 1,
        resident: Annotated[bool | None, "keep images on the device; null: on a GPU without workers"] = None,
    ) -> None:
        super().__init__()
        self._batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.dev_size, self.test_size = dev_size, test_size
        self.split, self.split_seed, self.binarize, self.seed = split, split_seed, binarize, seed
        self.num_workers, self.repeat, self.resident = num_workers, repeat, resident
        self._require_usable_workers()
        self.is_set_up = False

    def _require_usable_workers(self) -> None:
        cores = os.cpu_count() or 1
        most = max(LEAST_LIMIT_OF_WORKERS, 4 * cores)
        if self.num_workers > most:
            raise InputError(
                f"data.num_workers={self.num_workers}: this machine has {cores} cores; take at most {most}, or 0, "
                "since the images are in memory"
            )
        if self.resident and self.num_workers:
            raise InputError(
                f"data.resident=true: the images are on the device, where data.num_workers={self.num_workers} "
                "processes cannot read them; set data.num_workers=0"
            )

    @abstractmethod
    def load(self) -> RawSet | tuple[Loaded, Loaded | None]:
        """The set as it comes; called once, after `prepare_data`, which may fetch it. Raises InputError."""

    @property
    def batch_size(self) -> int:
        """Where the key is null, an epoch has 60 steps, in batches of 8 to 100 images; reads the data then."""
        if self._batch_size is not None:
            return self._batch_size
        self._ensure_loaded()
        return min(max(len(self.train.images) // STEPS, SMALLEST_BATCH), LARGEST_BATCH)

    @property
    def place(self) -> str:
        """What messages call the images: their path where they have one."""
        return type(self).__name__

    def setup(self, stage: str | None = None) -> None:
        """Reads, cuts and binarises the sets; a second call does nothing, whatever the stage."""
        if overfit := getattr(self.trainer, "overfit_batches", 0):
            raise InputError(
                f"trainer.overfit_batches={overfit}: it replaces the order of the batches, which resuming "
                "needs; use trainer.limit_train_batches, or a larger data.dev_size to train on fewer images"
            )
        if self.is_set_up:
            return
        raw = RawSet(*self.load())
        self.md5 = raw.md5
        images, labels = _labeled(*raw.train)
        whole = Images(images, labels, factors=raw.factors)
        self._refuse_sizes_of_given_splits(raw)
        rest, test = self._cut("test_size", whole) if raw.test is None else (whole, Images(*_labeled(*raw.test)))
        most = max(int(labels.max()), int(test.labels.max()))
        self.class_names = raw.class_names or [str(label) for label in range(most + 1)]
        train, dev = self._cut("dev_size", rest) if raw.dev is None else (rest, Images(*_labeled(*raw.dev)))
        self.dev, self.test = self._binarized(dev, 1), self._binarized(test, 2)
        self.train = train if self.binarize == "dynamic" else self._binarized(train, 0)
        self.train_eval = self._fixed_draw(self.train.take(slice(TRAIN_EVAL_SIZE)))
        self.train.repeat = self.repeat
        self.is_set_up = True

    def _refuse_sizes_of_given_splits(self, raw: RawSet) -> None:
        for split, images in (("test", raw.test), ("dev", raw.dev)):
            size = getattr(self, f"{split}_size")
            if images is not None and size:
                raise InputError(
                    f"data.{split}_size={size}: the set comes with its own {split} images; set data.{split}_size=null"
                )

    def _cut(self, key: str, images: Images) -> tuple[Images, Images]:
        """The images that stay, and those that `dev_size` or `test_size` holds out."""
        count = len(images)
        size = getattr(self, key) or getattr(self, f"usual_{key}") or max(1, count // 10)
        if count < 2:
            raise InputError(f"data.{key}={size}: {count} image cannot be split; give more images")
        if size >= count:
            raise InputError(f"data.{key}={size}: leaves none of {count} images to train on; set it below {count}")
        cut = count - size
        if self.split == "last" or (self.is_shuffled and key == "test_size"):
            return images.take(slice(cut)), images.take(slice(cut, None))
        purpose = "split" if key == "dev_size" else "test split"
        generator = torch.Generator().manual_seed(derive(self.split_seed, purpose))
        order = torch.randperm(count, generator=generator)
        return images.take(order[:cut]), images.take(order[cut:])

    def _binarized(self, images: Images, split: int) -> Images:
        x = images.images
        if self.binarize == "threshold":
            x = at_threshold(x)
        elif self.binarize != "none":
            x = draw_binary(x, derive(self.split_seed, "binarize-static", split))
        return Images(x, images.labels, factors=images.factors)

    def _fixed_draw(self, images: Images) -> Images:
        """Training images as an evaluation sees them: under dynamic binarisation one draw, the same each time."""
        return self._binarized(images, 0) if self.binarize == "dynamic" else images

    @cached_property
    def train_fixed(self) -> Images:
        """All of `train`, in the form that dev and test have: what classifiers and neighbours are taken from."""
        return self._fixed_draw(self.train.take(slice(None)))

    @cached_property
    def principal(self) -> tuple[Tensor, Tensor]:
        """Of train's P pixels in [0, 1]: the mean (P,) and, as columns, the principal axes (P, K), greatest variance
        first; float64. K is P up to 4096 pixels, and 64 above, from at most 10,000 images.
        """
        pixels = math.prod(self.image_shape)  # reads the data
        return principal_axes(self.train.images) if pixels <= EXACT_PIXELS else leading_axes(self.train.images[:10_000])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W); reads the data, fetching it if need be, when that has not been done."""
        self._ensure_loaded()
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def classes(self) -> int:
        """How many classes the labels tell apart; 0 without labels."""
        return len(self.class_names)

    @property
    def facts(self) -> dict[str, Any]:
        """What a run keeps of its data, in plain containers: enough to use the model without them."""
        return {"md5": self.md5, "class_names": self.class_names}

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
