"""People's own images, and sprites: what a folder, an array and a grid of factors become, and what is refused."""

import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, settings_of, train
from PIL import Image

from vae.data import own
from vae.data.axes import leading_axes, principal_axes
from vae.data.module import ImageDataModule
from vae.data.sprites import FACTORS, draw, make_sprites
from vae.errors import InputError
from vae.run.settings import caption
from vae.training import checkpoints


def module(name: str, **settings: Any) -> ImageDataModule:
    data = ImageDataModule(name, **settings)
    data.setup()
    return data


def picture(path: Path, number: int, shape: tuple[int, ...] = (5, 7)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape, number, np.uint8)).save(path)


def numbers(images: Any) -> list[int]:
    return images.images[:, 0, 0, 0].tolist()


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_flat_folder_has_no_labels_and_is_cut_in_three_by_its_seed(tmp_path: Path) -> None:
    for number in range(40):
        picture(tmp_path / f"{number:02d}.png", number)
    (tmp_path / "notes.txt").write_text("no image")
    data, same, other = (module("folder", path=str(tmp_path), split="random", split_seed=s) for s in (1, 1, 2))
    assert [len(part) for part in (data.train, data.dev, data.test)] == [33, 3, 4]  # a tenth, and a tenth of the rest
    assert sorted(numbers(data.train) + numbers(data.dev) + numbers(data.test)) == list(range(40))
    assert numbers(data.test) == numbers(same.test) != numbers(other.test)
    assert numbers(module("folder", path=str(tmp_path), split_seed=1).test) == [36, 37, 38, 39]
    assert data.image_shape == (1, 5, 7)
    assert (data.classes, data.train.labels.max()) == (0, -1)
    assert data.md5 == other.md5
    picture(tmp_path / "07.png", 200)
    assert module("folder", path=str(tmp_path)).md5 != data.md5


def test_subfolders_are_classes_and_train_and_test_are_splits(tmp_path: Path) -> None:
    for number, name in enumerate(["cat", "dog", "dog", "eel"] * 3):
        picture(tmp_path / "plain" / name / "deeper" / f"{number}.png", number)
        picture(tmp_path / "split" / "train" / name / f"{number}.png", number)
    picture(tmp_path / "split" / "test" / "dog" / "x.png", 99)
    data = module("folder", path=str(tmp_path / "plain"), dev_size=2, test_size=3)
    names = ["cat", "dog", "dog", "eel"] * 3
    for part in (data.train, data.dev, data.test):
        assert [data.class_names[k] for k in part.labels] == [names[number] for number in numbers(part)]
    data = module("folder", path=str(tmp_path / "split"), dev_size=2)
    assert data.class_names == ["cat", "dog", "eel"]
    assert (numbers(data.test), data.test.labels.tolist()) == ([99], [1])
    assert len(data.train) == 10


def test_size_and_mode_give_all_images_one_shape(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 3, (20, 30))
    picture(tmp_path / "b.jpg", 4, (30, 20, 3))
    picture(tmp_path / "c.png", 5)
    where = {"path": str(tmp_path), "dev_size": 1, "test_size": 1}
    assert module("folder", size=8, mode="RGB", **where).image_shape == (3, 8, 8)
    assert module("folder", size=[6, 9], mode="L", **where).image_shape == (1, 6, 9)
    with pytest.raises(InputError, match=r"several shapes, 1x20x30 .*a\.png\) and 3x30x20 \(b\.jpg\); data\.size=28"):
        module("folder", **where)


def mixture(path: Path) -> None:
    picture(path / "a.png", 1)
    picture(path / "cat" / "b.png", 1)


def text(path: Path) -> None:
    picture(path / "a.png", 1)
    (path / "b.png").write_text("no picture")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "there is nothing; give a folder"),
        (lambda path: path.mkdir(), "holds no image; give a folder of .png"),
        (lambda path: path.write_text(""), "is no folder; for an array in a file take data=npz"),
        (mixture, "1 images lie beside subfolders, such as a.png"),
        (text, "b.png: cannot be read as an image"),
        (lambda path: picture(path / "a.png", 1), "data.test_size=1: leaves none of 1 images"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path, make: Callable, said: str) -> None:
    make(tmp_path / "mine")
    with pytest.raises(InputError, match=said) as caught:
        module("folder", path=str(tmp_path / "mine"))
    assert "\n" not in str(caught.value)


# --- arrays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "shape"),
    [
        (np.arange(20 * 5 * 7).reshape(20, 5, 7) % 256, (1, 5, 7)),
        (np.arange(20 * 5 * 7 * 3).reshape(20, 5, 7, 3) % 256, (3, 5, 7)),
        (np.arange(20 * 5 * 7 * 3).reshape(20, 3, 5, 7) % 256, (3, 5, 7)),
        (np.arange(20 * 5 * 7).reshape(20, 5, 7, 1) % 256, (1, 5, 7)),
        (np.arange(20 * 5 * 7 * 2).reshape(20, 2, 5, 7) % 256, (2, 5, 7)),
    ],
)
def test_arrays_come_in_any_order_of_axes(tmp_path: Path, array: np.ndarray, shape: tuple[int, ...]) -> None:
    array = array.astype(np.uint8)
    np.save(tmp_path / "x.npy", array)
    np.savez_compressed(tmp_path / "x.npz", images=array, labels=np.arange(20) % 3)
    plain, labeled = (module("npz", path=str(tmp_path / f"x.{end}"), dev_size=4, test_size=5) for end in ("npy", "npz"))
    assert plain.image_shape == labeled.image_shape == shape
    assert torch.equal(plain.test.images, labeled.test.images)
    assert plain.test.images.numpy().tobytes() == (
        array[15:].tobytes() if array.shape[1:] != (*shape[1:], 3) else array[15:].transpose(0, 3, 1, 2).tobytes()
    )
    assert labeled.test.labels.tolist() == [0, 1, 2, 0, 1]
    assert (plain.classes, labeled.classes) == (0, 3)


def test_floats_become_the_nearest_of_256_levels(tmp_path: Path) -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(8, 4, 8)
    np.savez(tmp_path / "x.npz", images=(levels / 255).numpy(), test_images=np.ones((2, 4, 8), bool))
    data = module("npz", path=str(tmp_path / "x.npz"), dev_size=1)
    assert torch.equal(torch.cat([data.train.images, data.dev.images]).squeeze(1), levels)
    assert data.test.images.unique().tolist() == [255]


IMAGES = np.zeros((9, 4, 6), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": IMAGES, "labels": np.arange(8)}, r"labels has the shape \(8,\) .*; give 9 whole numbers"),
        ({"images": IMAGES, "labels": np.full(9, 0.5)}, "the type float64; give 9 whole numbers"),
        ({"images": IMAGES, "labels": np.full(9, -1)}, "give 9 whole numbers from 0"),
        ({"images": IMAGES, "labels": np.full(9, 10**9)}, "from 0 to 9999"),
        ({"images": IMAGES * 1.5 + 2}, r"floats must lie in \[0, 1\]"),
        ({"images": IMAGES * np.nan}, r"floats must lie in \[0, 1\]"),
        ({"images": IMAGES.astype(np.int32)}, "the type int32; give uint8"),
        ({"images": IMAGES[0]}, r"shape \(4, 6\)"),
        ({"images": IMAGES, "test_images": IMAGES[:, 1:]}, "differ in shape"),
        ({"images": IMAGES, "labels": np.arange(9), "test_images": IMAGES}, "one of labels and test_labels"),
        ({"pictures": IMAGES, "labels": np.arange(9)}, "holds pictures, labels; the images must be called images"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused_in_one_line(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=said) as caught:
        module("npz", path=str(tmp_path / "x.npz"), dev_size=1, test_size=1)
    assert str(caught.value).startswith(f"data.path={tmp_path / 'x.npz'}: ")
    assert "\n" not in str(caught.value)


class Trap:
    """What pickle executes when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("kind", ["npz", "npy", "pickle"])
def test_pickled_objects_are_refused_and_not_executed(tmp_path: Path, kind: str) -> None:
    path, trap = tmp_path / f"x.{kind}", tmp_path / "executed"
    objects = np.array([Trap(trap)], dtype=object)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Trap(trap)))
    else:
        np.savez(path, images=objects) if kind == "npz" else np.save(path, objects, allow_pickle=True)
    said = "the magic string is not correct" if kind == "pickle" else "nothing of it was executed"
    with pytest.raises(InputError, match=said) as caught:
        module("npz", path=str(path))
    assert "\n" not in str(caught.value)
    assert not trap.exists()


def test_an_archive_larger_than_the_memory_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "x.npz", images=np.zeros((9, 400, 600), np.uint8))
    assert (tmp_path / "x.npz").stat().st_size < 10_000
    monkeypatch.setattr("os.sysconf", lambda name: 1000)  # a machine of a megabyte
    with pytest.raises(InputError, match=r"unpacked it has 0 GB, this machine 0"):
        module("npz", path=str(tmp_path / "x.npz"))


@pytest.mark.parametrize("content", [b"", b"no array", b"PK\x03\x04 no archive"])
def test_a_file_of_anything_else_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.npz: cannot be read") as caught:
        module("npz", path=str(tmp_path / "x.npz"))
    assert "\n" not in str(caught.value)


def test_a_cut_archive_is_refused_in_one_line(tmp_path: Path) -> None:
    np.savez(tmp_path / "whole.npz", images=IMAGES, labels=np.arange(9))
    with zipfile.ZipFile(tmp_path / "whole.npz") as archive, zipfile.ZipFile(tmp_path / "x.npz", "w") as cut:
        cut.writestr("images.npy", archive.read("images.npy")[:150])
    with pytest.raises(InputError, match=r"x\.npz: cannot be read"):
        module("npz", path=str(tmp_path / "x.npz"))


# --- torchvision ------------------------------------------------------------------------------------------------------


class Fetched:
    """As torchvision's sets look: PIL images and labels by index."""

    classes = ("a", "b", "c")

    def __init__(self, root: str, download: bool, **asked: Any) -> None:
        assert download
        self.first = 0 if asked.get("train", asked.get("background", asked.get("split") == "train")) else 100
        self.asked = asked

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        pixels = np.zeros((6, 8, 3), np.uint8)
        pixels[0, -1] = self.first + index
        return Image.fromarray(pixels), index % 3


@pytest.mark.parametrize(("name", "kind"), [("cifar10", "CIFAR10"), ("svhn", "SVHN"), ("omniglot", "Omniglot")])
def test_torchvision_s_sets_are_taken_over(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"torchvision.datasets.{kind}", Fetched)
    data = module(name, root=str(tmp_path), dev_size=2)
    assert data.image_shape == (3, 6, 8)
    assert data.test.images[:, 0, 0, -1].tolist() == list(range(100, 112))
    if name == "omniglot":
        assert data.classes == 0
    else:
        assert (data.class_names, data.test.labels.tolist()) == (["a", "b", "c"], [0, 1, 2] * 4)
    assert module(name, root=str(tmp_path), dev_size=2, size=5, mode="L").image_shape == (1, 5, 5)


def test_emnist_is_turned_upright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.EMNIST", Fetched)
    data = module("emnist", root=str(tmp_path), dev_size=2)
    assert data.image_shape == (3, 8, 6)
    assert data.train.images[:, 1, -1, 0].tolist() == list(range(10))


def test_a_set_that_cannot_be_fetched_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.CIFAR10.url", "file:///nowhere")
    with pytest.raises(
        InputError, match=r"data\.name=cifar10: is not in data\.root=.* put torchvision's files"
    ) as caught:
        module("cifar10", root=str(tmp_path))
    assert "\n" not in str(caught.value)


# --- sprites ----------------------------------------------------------------------------------------------------------

GRID = [3, 2, 4, 5, 6]


def test_the_whole_grid_is_every_combination_once() -> None:
    raw = make_sprites(GRID, None, 16, 0)
    assert raw.factors is not None
    assert len(raw.factors.values.unique(dim=0)) == len(raw.train[0]) == 720
    assert raw.factors.values.amax(0).tolist() == [2, 1, 3, 4, 5]
    assert raw.factors.names == list(FACTORS)
    assert raw.train[1] is not None
    assert torch.equal(raw.train[1], raw.factors.values[:, 0])


def test_a_part_of_the_grid_is_a_function_of_the_seed_and_factors_stay_with_their_images() -> None:
    data, same, other = (
        module("sprites", size=[12, 15], grid=GRID, count=200, split="random", split_seed=s, dev_size=30, test_size=40)
        for s in (1, 1, 2)
    )
    assert data.image_shape == (1, 12, 15)
    assert (data.md5 == same.md5, data.md5 == other.md5) == (True, False)
    assert [len(p) for p in (data.train, data.dev, data.test)] == [130, 30, 40]
    for part in (data.train, data.dev, data.test):
        assert torch.equal(part.images[:, 0], draw(part.factors.values, GRID, 12, 15))
        assert torch.equal(part.labels, part.factors.values[:, 0])
    assert data.class_names == ["square", "ellipse", "heart"]


def test_factors_do_what_their_names_say() -> None:
    grid, base = [3, 5, 8, 9, 9], torch.tensor([0, 2, 0, 4, 4])

    def changed(factor: int, value: int, shape: int = 0) -> torch.Tensor:
        values = base.clone()
        values[0], values[factor] = shape, value
        return draw(values[None], grid, 40, 40)[0].double() / 255

    def centre(image: torch.Tensor) -> tuple[float, float]:
        at = torch.arange(40, dtype=torch.float64) + 0.5
        return (image.sum(0) @ at / image.sum()).item(), (image.sum(1) @ at / image.sum()).item()

    ink = [changed(1, scale).sum().item() for scale in range(5)]
    assert ink == sorted(ink)
    radius = 0.2 * 40 * 0.75
    assert changed(1, 2).sum().item() == pytest.approx((2 * 0.7 * radius) ** 2, rel=0.03)  # the square's area
    assert changed(1, 2, 1).sum().item() == pytest.approx(np.pi * 0.5 * radius**2, rel=0.03)  # the ellipse's
    assert changed(1, 2, 2).sum().item() == pytest.approx((1 + np.pi / 4) * radius**2, rel=0.03)  # the heart's
    assert centre(changed(3, 8)) == pytest.approx((32, 20), abs=0.05)
    assert centre(changed(4, 0)) == pytest.approx((20, 8), abs=0.05)
    torch.testing.assert_close(changed(2, 2), changed(2, 0))  # a square turned by a quarter
    torch.testing.assert_close(changed(2, 2, 1), changed(2, 0, 1).T)
    torch.testing.assert_close(changed(2, 4, 2), changed(2, 0, 2).flip(0, 1))


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"grid": [4, 1, 1, 1, 9]}, "there are 3 shapes"), ({"grid": GRID, "count": 721}, "has 720 points")],
)
def test_a_grid_that_cannot_be_drawn_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        module("sprites", size=8, **settings)


# --- principal axes ---------------------------------------------------------------------------------------------------


def test_leading_axes_span_what_the_exact_ones_do() -> None:
    images = make_sprites([3, 6, 8, 10, 10], 700, 16, 0).train[0]
    (mean, exact), (same, found) = principal_axes(images), leading_axes(images, count=16)
    torch.testing.assert_close(same, mean)
    torch.testing.assert_close(found.T @ found, torch.eye(16, dtype=torch.float64), atol=1e-5, rtol=0)
    x = images.flatten(1).double() / 255 - mean
    kept, most = ((x @ axes[:, :16]).square().sum(0).cumsum(0) for axes in (found, exact))
    torch.testing.assert_close(kept, most, rtol=2e-3, atol=0)


# --- training ---------------------------------------------------------------------------------------------------------

RUN = (
    "trainer.max_epochs=2", "threads=1", "evaluation=none", "callbacks.figures_every=0", "data.batch_size=20",
    "latent_dim=3", "model.encoder.hidden=[20]", "model.decoder.hidden=[20]",
)  # fmt: skip


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 images of 3x64x64 in two classes."""
    folder, random = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for number in range(120):
        pixels = np.full((64, 64, 3), random.integers(256, size=3), np.uint8)
        pixels[8:40, 4 + number % 30 : 20 + number % 30] = random.integers(256, size=3)
        (folder / f"class {number % 2}").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"class {number % 2}" / f"{number}.png")
    return folder


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("model", ["mlp", "conv"])
def test_a_folder_of_colour_images_resumes_bit_equal(colours: Path, tmp_path: Path, model: str) -> None:
    run = ("data=folder", f"data.path={colours}", f"model={model}", *RUN)
    train(*run, f"run_dir={tmp_path / 'whole'}")
    train(*run, "trainer.max_epochs=1", f"run_dir={tmp_path / 'cut'}")
    train(*run, f"run_dir={tmp_path / 'cut'}")
    whole, cut = (checkpoints.load(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "cut"))
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, cut["state_dict"][name]), name
    assert whole["vae"]["data"]["class_names"] == ["class 0", "class 1"]
    assert whole["vae"]["image_shape"] == [3, 64, 64]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp", "conv"])
def test_a_folder_of_colour_images_trains_below_2_gib(colours: Path, tmp_path: Path, model: str) -> None:
    """A process of its own, whose greatest memory is its own; pictures and baselines included."""
    code = (
        "import sys, resource, train; sys.argv[0] = 'train.py'; train.main(); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    arguments = ["data=folder", f"data.path={colours}", f"model={model}", "trainer.max_epochs=1", "threads=1"]
    arguments += [f"evaluation.cache_dir={tmp_path}", f"run_dir={tmp_path / 'run'}"]
    ended = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert int(ended.stdout.split()[-1]) * 1024 < 2 * 2**30  # Linux counts kibibytes


def test_a_run_is_not_continued_on_images_that_have_changed(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(256, size=(60, 5, 7), dtype=np.uint8)
    np.save(tmp_path / "x.npy", images)
    run = ("data=npz", f"data.path={tmp_path / 'x.npy'}", *RUN, f"run_dir={tmp_path / 'run'}")
    train(*run, "trainer.max_epochs=1")
    images[7, 2, 3] ^= 1
    np.save(tmp_path / "x.npy", images)
    with pytest.raises(InputError, match=r"x\.npy: the images have changed since .*last\.ckpt was written"):
        train(*run)


def test_fingerprints_tell_shapes_apart() -> None:
    flat = torch.arange(12, dtype=torch.uint8)
    assert own.fingerprint(flat.view(3, 4)) != own.fingerprint(flat.view(4, 3))
    assert own.fingerprint(flat, None) == own.fingerprint(flat)


def test_the_caption_names_the_folder(tmp_path: Path) -> None:
    assert caption(settings_of("data=folder", "data.path=my/cats").plain).startswith("cats, ")
