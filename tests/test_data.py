"""Splits, binarisation, the order of batches, and a resume that sees what an undisturbed run sees."""

from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from test_downloads import FILES, Contents, publish, put, small_set
from torch import Tensor
from torch.nn import functional

from vae.data.batches import EpochBatches, Images, ResumableLoader
from vae.data.module import ImageDataModule
from vae.data.sets import MNIST, Digits, bicubic
from vae.errors import InputError
from vae.pixels import as_floats

TRAIN, TEST, DEV = 37, 11, 9
# Lightning's opinions on the hardware: "few workers", "GPU not used"
pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")


def numbered(count: int) -> Images:
    """Images (count, 1, 2, 3) whose pixels are their number."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 1, 2, 3)
    return Images(images, torch.arange(count))


def numbers(images: Images | Tensor) -> list[int]:
    """The numbers that `small_set` and `numbered` put into the first pixels."""
    return (images.images if isinstance(images, Images) else images)[:, 0, 0, 0].tolist()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    contents = small_set(TRAIN, TEST)
    publish(monkeypatch, contents)
    put(tmp_path / "data", contents)
    return tmp_path / "data"


def module(root: Path, **settings: Any) -> ImageDataModule:
    """Ready for use."""
    defaults: dict[str, Any] = {"root": str(root), "batch_size": 4, "eval_batch_size": 6, "dev_size": DEV}
    data = MNIST(**defaults | settings)
    data.prepare_data()
    data.setup()
    return data


# --- batches


def batches(size: int = 23, batch_size: int = 5, epoch: int = 0, **settings: Any) -> list[list[int]]:
    sampler = EpochBatches(numbered(size), batch_size, **settings)
    sampler.set_epoch(epoch)
    drawn = [batch.tolist() for batch in sampler]
    assert len(drawn) == len(sampler)
    return drawn


def test_an_epoch_holds_every_image_once_with_a_partial_last_batch() -> None:
    drawn = batches(seed=3)
    assert [len(batch) for batch in drawn] == [5, 5, 5, 5, 3]
    assert sorted(chain(*drawn)) == list(range(23))
    assert batches(shuffle=False) == [list(range(at, min(at + 5, 23))) for at in range(0, 23, 5)]


def test_order_is_a_function_of_seed_and_epoch_alone() -> None:
    torch.manual_seed(0)
    first = batches(seed=3, epoch=2)
    torch.manual_seed(1)
    assert batches(seed=3, epoch=2) == first
    assert batches(seed=3, epoch=1) != first
    assert batches(seed=4, epoch=2) != first


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_each_global_batch_of_one_process(world_size: int) -> None:
    alone = batches(size=24, batch_size=7)
    shares = [batches(size=24, batch_size=7, rank=rank, world_size=world_size) for rank in range(world_size)]
    for whole, *parts in zip(alone, *shares, strict=True):
        assert sorted(chain(*parts)) == sorted(whole)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_last_batch_too_small_for_all_ranks_is_dropped_on_all() -> None:
    shares = [batches(size=22, batch_size=5, rank=rank, world_size=3) for rank in range(3)]  # 2 are left over
    assert [len(share) for share in shares] == [4, 4, 4]


def test_global_batch_smaller_than_the_ranks_is_refused() -> None:
    with pytest.raises(InputError, match=r"data\.batch_size=2: .* 3 processes"):
        EpochBatches(numbered(9), 2, world_size=3)


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_goes_on_from_its_state(workers: int) -> None:
    def make() -> ResumableLoader:
        data = numbered(23)
        return ResumableLoader(data, EpochBatches(data, 5, seed=7), workers)

    loader = make()
    loader.sampler.set_epoch(2)
    whole = [numbers(x) for x, _ in loader]
    half = iter(loader)
    for _ in range(2):
        next(half)
    state = loader.state_dict()  # with a worker, more than 2 are fetched by now
    fresh = make()
    fresh.load_state_dict(state)
    ahead = iter(fresh)  # as Lightning does it: `iter` first, `set_epoch` second
    fresh.sampler.set_epoch(2)
    assert [numbers(x) for x, _ in ahead] == whole[2:]
    assert len(fresh) == len(whole)
    fresh.sampler.set_epoch(3)  # a position holds for its epoch only
    assert len(list(fresh)) == len(whole)


def test_loading_leaves_the_global_stream_of_random_numbers_alone(root: Path) -> None:
    data = module(root)
    before = torch.get_rng_state()
    for loader in (data.train_dataloader(), *data.val_dataloader(), data.test_dataloader()):
        list(loader)
    assert torch.equal(torch.get_rng_state(), before)


# --- sets


def test_last_split_keeps_the_order_of_the_file(root: Path) -> None:
    data = module(root)
    assert numbers(data.train) == list(range(TRAIN - DEV))
    assert numbers(data.dev) == list(range(TRAIN - DEV, TRAIN))
    assert numbers(data.test) == list(range(TEST))
    assert data.image_shape == (1, 5, 7)


def test_labels_stay_with_their_images(root: Path) -> None:
    straight, mixed = module(root), module(root, split="random")
    labels = straight.train.labels.tolist() + straight.dev.labels.tolist()
    for part in (mixed.train, mixed.dev):
        assert part.labels.tolist() == [labels[number] for number in numbers(part)]


def test_random_split_depends_on_its_seed_and_cuts_the_same_set(root: Path) -> None:
    cuts = [module(root, split="random", split_seed=seed, seed=other) for seed, other in ((1, 5), (1, 6), (2, 5))]
    for data in cuts:
        assert len(data.dev) == DEV
        assert sorted(numbers(data.train) + numbers(data.dev)) == list(range(TRAIN))
    assert numbers(cuts[0].dev) == numbers(cuts[1].dev)
    assert numbers(cuts[0].dev) != numbers(cuts[2].dev)


def test_train_eval_is_the_head_of_train(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert numbers(module(root).train_eval) == list(range(TRAIN - DEV))
    monkeypatch.setattr("vae.data.module.TRAIN_EVAL_SIZE", 5)
    data = module(root)
    assert numbers(data.train_eval) == list(range(5))
    sizes = [[len(y) for _, y in loader] for loader in (*data.val_dataloader(), data.test_dataloader())]
    assert sizes == [[6, 3], [5], [6, 5]]


def test_repeat_lengthens_training_without_a_copy(root: Path) -> None:
    data = module(root, repeat=3)
    seen = sorted(number for x, _ in data.train_dataloader() for number in numbers(x))
    assert seen == sorted(list(range(TRAIN - DEV)) * 3)
    assert len(data.train) == 3 * len(data.train.images) == 3 * len(data.train_eval)


def test_setup_twice_is_setup_once(root: Path) -> None:
    data = module(root, binarize="static")
    before = data.train
    data.setup("test")
    assert data.train is before


def test_shape_is_known_before_setup_and_sum_is_of_the_files(root: Path) -> None:
    data = MNIST(root=str(root), dev_size=DEV)
    assert data.image_shape == (1, 5, 7)
    assert data.md5 == module(root, split="random", seed=9).md5
    assert len(data.md5) == 32


def test_digits_need_no_files_and_look_like_ink_on_black() -> None:
    data, other = (
        Digits(),
        Digits(dev_size=7, seed=3),
    )
    assert other.image_shape == data.image_shape
    assert data.image_shape == (1, 28, 28)
    assert [len(part) for part in (data.train, data.dev, data.test, data.train_eval)] == [
        1197,
        300,
        300,
        1197,
    ]
    for part in (data.train, data.dev, data.test):
        assert part.images.dtype == torch.uint8
        assert set(part.labels.tolist()) == set(range(10))
        assert part.labels.bincount(minlength=10).min() > 15  # the writers are mixed
    edge = torch.cat([data.train.images[..., [0, -1], :].flatten(), data.train.images[..., [0, -1]].flatten()])
    assert edge.float().mean() < 8
    assert data.train.images.max() == 255
    assert data.md5 == other.md5 == "d570c557374c58a2c078d7f5c0fa9a76"  # of the bytes that every processor makes


def test_the_enlargement_of_digits_is_torch_s_up_to_its_rounding() -> None:
    small = torch.randint(17, (3, 1, 10, 10), generator=torch.Generator().manual_seed(0)).double()
    weights, one = bicubic(10, 28)
    exact = torch.from_numpy(weights).double() / one
    expected = functional.interpolate(small, (28, 28), mode="bicubic")
    torch.testing.assert_close(exact @ small @ exact.T, expected, atol=1e-12, rtol=0)


# --- pixels


def transferred(data: ImageDataModule, images: Images) -> Tensor:
    return data.on_after_batch_transfer((images.images, images.labels), 0)[0]


def test_pixels_become_floats_in_the_unit_interval(root: Path) -> None:
    x = as_floats(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, torch.tensor([0, 0.2, 1]), atol=1e-7, rtol=0)
    data = module(root)
    torch.testing.assert_close(transferred(data, data.dev) * 255, data.dev.images.float())


def test_threshold_is_at_one_half(root: Path) -> None:
    grey, black_white = module(root), module(root, binarize="threshold")
    for part in ("train", "dev", "test", "train_eval"):
        expected = transferred(grey, getattr(grey, part)) >= 0.5
        assert torch.equal(transferred(black_white, getattr(black_white, part)), expected.float())


def test_static_draws_once_with_the_grey_level_as_probability(root: Path) -> None:
    grey, drawn = module(root), module(root, binarize="static", seed=1)
    same, other = module(root, binarize="static", seed=2), module(root, binarize="static", split_seed=2)
    for part in ("train", "dev", "test"):
        images = getattr(drawn, part).images
        assert set(images.unique().tolist()) == {0, 255}
        assert torch.equal(images, getattr(same, part).images)
        assert not torch.equal(images, getattr(other, part).images)
    p = torch.cat([as_floats(part.images).flatten() for part in (grey.train, grey.dev, grey.test)])
    x = torch.cat([as_floats(part.images).flatten() for part in (drawn.train, drawn.dev, drawn.test)])
    z = (x - p).sum() / (p * (1 - p)).sum().sqrt()
    assert abs(z) < 4
    assert set(x[p == 0].tolist()) == {0.0}
    assert set(x[p == 1].tolist()) == {1.0}


# --- settings and files that cannot be used


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dev_size": TRAIN}, rf"data\.dev_size={TRAIN}: .* below {TRAIN}"),
        ({"test_size": 3}, r"data\.test_size=3: the set comes with its own test images"),
    ],
)
def test_setting_out_of_range_is_refused(root: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        module(root, **settings)


@pytest.mark.parametrize(("key", "size"), [("test_size", 1797), ("dev_size", 1497)])
def test_sizes_that_leave_no_training_image_are_refused(key: str, size: int) -> None:
    with pytest.raises(InputError, match=rf"data\.{key}={size}: leaves none of {size} images"):
        Digits(**{key: size}).setup()


def other_labels(contents: Contents) -> Contents:
    return {FILES[1]: contents[FILES[3]]}


def label_eleven(contents: Contents) -> Contents:
    return {FILES[3]: contents[FILES[3]][:-1] + b"\x0b"}


@pytest.mark.parametrize(
    ("change", "said"),
    [(other_labels, "11 labels for the 37 images"), (label_eleven, "label 11, expected 0 to 9")],
)
def test_files_that_do_not_fit_are_refused_even_when_their_sums_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Contents], Contents], said: str
) -> None:
    contents = small_set(TRAIN, TEST)
    contents |= change(contents)
    publish(monkeypatch, contents)
    put(tmp_path, contents)
    with pytest.raises(InputError, match=said):
        module(tmp_path)


# --- training and resuming


class Recorder(LightningModule):
    """Fits the mean image, and writes down all that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros(35))
        self.seen: list[tuple[Any, ...]] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, labels = batch
        pixels = tuple((x * 255).round().int().flatten().tolist())
        self.seen.append((self.current_epoch, batch_idx, self.global_step, pixels, tuple(labels.tolist())))
        return ((x.flatten(1) - self.mean) ** 2).sum()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.seen.append(("validation", self.current_epoch, dataloader_idx, batch[0].sum().item()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.01)


class StopHere(Exception):
    """Where a run is cut off."""


class SaveAndStop(Callback):
    """Saves a checkpoint in one hook, in one epoch, at one batch, and ends the run there."""

    def __init__(self, path: Path, hook: str, epoch: int, batch: int) -> None:
        self.path, self.hook, self.where = path, hook, (epoch, batch)

    def _check(self, trainer: Trainer, hook: str, batch: int) -> None:
        if (hook, trainer.current_epoch, batch) == (self.hook, *self.where):
            trainer.save_checkpoint(self.path)
            raise StopHere

    def on_before_zero_grad(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        self._check(trainer, "in the step", trainer.fit_loop.batch_idx)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        self._check(trainer, "batch end", args[-1])

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._check(trainer, "validation end", trainer.fit_loop.batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._check(trainer, "epoch end", trainer.fit_loop.batch_idx)


def fit(data: ImageDataModule, *callbacks: Callback, resume: Path | None = None, **settings: Any) -> Recorder:
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary"), False
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        num_sanity_val_steps=1,
        callbacks=list(callbacks),
        **quiet,
        **settings,
    )
    recorder = Recorder()
    with suppress(StopHere):
        trainer.fit(recorder, datamodule=data, ckpt_path=resume, weights_only=True)
    return recorder


def without_sanity(seen: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    first = next(at for at, event in enumerate(seen) if event[0] != "validation")
    return seen[first:]


LAST = -(-(TRAIN - DEV) // 4) - 1  # 28 images to train on are 7 batches of 4


def training_data(root: Path, workers: int = 0) -> ImageDataModule:
    return MNIST(root=str(root), batch_size=4, dev_size=DEV, num_workers=workers, binarize="dynamic", seed=5)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    contents, root = small_set(TRAIN, TEST), tmp_path_factory.mktemp("undisturbed")
    put(root, contents)
    with pytest.MonkeyPatch.context() as monkeypatch:
        publish(monkeypatch, contents)
        return fit(training_data(root))


@pytest.mark.parametrize(
    ("hook", "epoch", "batch", "workers"),
    [
        ("batch end", 0, 2, 0),
        ("batch end", 2, 3, 0),
        ("batch end", 2, 3, 2),
        ("in the step", 1, 3, 0),
        ("in the step", 1, 3, 2),
        ("validation end", 1, LAST, 0),
        ("epoch end", 0, LAST, 0),
        ("epoch end", 1, LAST, 0),
        ("epoch end", 1, LAST, 2),
    ],
)
def test_resumed_run_sees_what_an_undisturbed_one_sees(
    root: Path, tmp_path: Path, undisturbed: Recorder, hook: str, epoch: int, batch: int, workers: int
) -> None:
    cut = fit(training_data(root, workers), SaveAndStop(tmp_path / "cut.ckpt", hook, epoch, batch))
    resumed = fit(training_data(root, workers), resume=tmp_path / "cut.ckpt")
    before, after = without_sanity(cut.seen), without_sanity(resumed.seen)
    assert 0 < len(before) < len(without_sanity(undisturbed.seen))
    if hook == "in the step":
        before.pop()  # seen, but not trained on: it comes again
    assert before + after == without_sanity(undisturbed.seen)
    assert torch.equal(resumed.mean, undisturbed.mean)


def test_dynamic_draws_anew_at_each_visit_and_evaluates_on_one_draw(root: Path) -> None:
    grey = module(root)
    recorder = fit(module(root, binarize="dynamic", batch_size=TRAIN, seed=5))
    visits = [event for event in without_sanity(recorder.seen) if event[0] != "validation"]
    evaluations = [event[2:] for event in recorder.seen if event[0] == "validation"]
    assert set(chain(*(event[3] for event in visits))) == {0, 255}
    assert len({event[3] for event in visits}) == 3
    assert len(set(evaluations)) == len(evaluations) // 3  # plus the sanity check's, the same once more
    p = torch.cat([as_floats(grey.train.images).sum()[None]] * 3)
    drawn = torch.tensor([sum(event[3]) / 255 for event in visits])
    assert ((drawn - p).abs() < 5 * p.sqrt()).all()


def test_overfit_batches_is_refused(root: Path) -> None:
    with pytest.raises(InputError, match=r"trainer\.overfit_batches=2: .*limit_train_batches"):
        fit(module(root), overfit_batches=2)


def test_a_resident_set_gives_the_same_batches(tmp_path: Path) -> None:
    """On a CPU "the device" is the host: the path of the code is the GPU's, the copy is not."""
    seen = []
    for resident in (False, True):
        data = Digits(batch_size=500, resident=resident)
        data.setup()
        data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
        seen.append([batch for loader in (data.train_dataloader(), *data.val_dataloader()) for batch in loader])
    for (x, labels), (same_x, same_labels) in zip(*seen, strict=True):
        assert torch.equal(x, same_x)
        assert torch.equal(labels, same_labels)


def test_resident_images_cannot_be_read_by_workers() -> None:
    with pytest.raises(InputError, match=r"data.resident=true.*data.num_workers=2"):
        Digits(resident=True, num_workers=2)
