"""ImageDataModule: the splits train, dev and test, their binarisation and their loaders."""

import math
import os
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from vae.data.axes import EXACT_PIXELS, leading_axes, principal_axes
from vae.data.batches import Batch, EpochBatches, Images, ResumableLoader, _as_is, as_floats
from vae.data.downloads import SOURCES, ensure
from vae.data.own import TORCHVISION, Loaded, RawSet, Size, read_arrays, read_folder, read_torchvision
from vae.data.sources import NAMES, USUAL_SIZES, _at_least, _load_digits, _load_idx, _one_of
from vae.data.sprites import GRID, make_sprites
from vae.errors import InputError
from vae.noise import derive

SPLITS = ("last", "random")

BINARIZE = ("none", "threshold", "static", "dynamic")

TRAIN_EVAL_SIZE = 10_000

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

    `dev` is cut from the training set: its last `dev_size` images in the file's order (`split="last"`, the report's
    cut) or random ones (`split="random"`, drawn from `split_seed`). A set that comes without a test set has `test`
    cut from it before, in the same way.
    `train_eval` is the first 10,000 of `train`, to compare train and dev on the same terms. With
    `binarize="static"` every image is drawn once, from `split_seed`: runs of every `seed` see the same images.
    With `binarize="dynamic"` a training image is drawn anew at each visit (Burda et al. 2015), and every other set
    as in `static`.

    Raises InputError, naming the key or file, for settings or files that cannot be used.
    """

    name: str
    train: Images
    dev: Images
    test: Images
    train_eval: Images
    md5: str  # of the raw files, or arrays: the same on every machine
    class_names: list[str]  # none without labels

    def __init__(
        self,
        name: str = "mnist",
        root: str = "data",
        batch_size: int = 100,
        eval_batch_size: int = 1000,
        dev_size: int | None = None,
        test_size: int | None = None,  # of sets that come without a test set
        split: str = "last",
        split_seed: int = 0,
        binarize: str = "none",
        num_workers: int = 0,
        seed: int = 0,
        repeat: int = 1,
        mirrors: list[str] | None = None,
        timeout: float = 30,
        resident: bool | None = None,
        path: str | None = None,
        size: Size = None,
        mode: str | None = None,
        grid: list[int] | None = None,
        count: int | None = None,
    ) -> None:
        super().__init__()
        self.name = _one_of("name", name, NAMES)
        self.root = root
        self.batch_size = _at_least("batch_size", batch_size, 1)
        self.eval_batch_size = _at_least("eval_batch_size", eval_batch_size, 1)
        self.dev_size = None if dev_size is None else _at_least("dev_size", dev_size, 1)
        self.test_size = None if test_size is None else _at_least("test_size", test_size, 1)
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
        self.path, self.size, self.mode, self.grid, self.count = path, size, mode, grid, count
        self.is_set_up = False

    def prepare_data(self) -> None:
        """Makes the files available, by download if need be; touches nothing when all are right."""
        if self.name in SOURCES and not self.is_own and not self.is_set_up:
            ensure(self.name, self.root, self.mirrors, self.timeout)

    @property
    def is_own(self) -> bool:
        """Whether `load` was overridden, so that the set is none of the named ones."""
        return type(self).load is not ImageDataModule.load

    def load(self) -> RawSet | tuple[Loaded, Loaded | None, str]:
        """uint8 images (N, C, H, W) and labels (N,), or None: the training set, the test set or None, a fingerprint.

        The place for a set of your own: the splits, the binarisation and the loaders follow from it.
        """
        if self.name in TORCHVISION:
            return read_torchvision(self.name, self.root, self.size, self.mode, self.timeout)
        readers: dict[str, Callable[[], RawSet]] = {
            "digits": _load_digits,
            "folder": lambda: read_folder(self.path, self.size, self.mode),
            "npz": lambda: read_arrays(self.path),
            "sprites": lambda: make_sprites(self.grid or GRID, self.count, self.size, self.split_seed),
        }
        return readers[self.name]() if self.name in readers else _load_idx(self.name, self.root)

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
        images, labels = _labeled(*raw.train)
        self.md5 = raw.md5
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
        size = getattr(self, key) or USUAL_SIZES[key].get(self.name) or max(1, count // 10)
        if count < 2:
            raise InputError(f"data.{key}={size}: {count} image cannot be split; give more images")
        if size >= count:
            raise InputError(f"data.{key}={size}: leaves none of {count} images to train on; set it below {count}")
        cut = count - size
        if self.split == "last" or (self.name, key) == ("digits", "test_size"):  # digits come shuffled
            return images.take(slice(cut)), images.take(slice(cut, None))
        purpose = "split" if key == "dev_size" else "test split"
        generator = torch.Generator().manual_seed(derive(self.split_seed, purpose))
        order = torch.randperm(count, generator=generator)
        return images.take(order[:cut]), images.take(order[cut:])

    def _binarized(self, images: Images, split: int) -> Images:
        x = images.images
        if self.binarize == "threshold":
            x = (x >= 128).to(torch.uint8) * 255  # 127.5 is one half
        elif self.binarize != "none":
            x = _draw(x, derive(self.split_seed, "binarize-static", split))
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
