"""People's own images, and sprites: what a folder, an array and a grid of factors become, and what is refused."""

import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from conftest import ROOT, settings_of, train
from PIL import Image

from vae.data import EMNIST, Arrays, Folder, ImageDataModule, RawSet, Sprites, arrays, sets
from vae.data.axes import leading_axes, principal_axes
from vae.data.sprites import FACTORS, draw
from vae.device import keeps_denormals
from vae.errors import InputError
from vae.run.settings import caption
from vae.training import checkpoints


def module(kind: Any, **settings: Any) -> ImageDataModule:
    data = kind(**{"split": "last"} | settings)
    data.setup()
    return data


def picture(path: Path, number: int, shape: tuple[int, ...] = (5, 7)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape, 255 - number, np.uint8)).save(path)


def numbers(images: Any) -> list[int]:
    return (255 - images.images[:, 0, 0, 0].int()).tolist()


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_flat_folder_has_no_labels_and_is_cut_in_three_by_its_seed(tmp_path: Path) -> None:
    for number in range(40):
        picture(tmp_path / f"{number:02d}.png", number)
    (tmp_path / "notes.txt").write_text("no image")
    data, same, other = (module(Folder, path=str(tmp_path), split="random", split_seed=s) for s in (1, 1, 2))
    assert [len(part) for part in (data.train, data.dev, data.test)] == [33, 3, 4]  # a tenth, and a tenth of the rest
    assert sorted(numbers(data.train) + numbers(data.dev) + numbers(data.test)) == list(range(40))
    assert numbers(data.test) == numbers(same.test) != numbers(other.test)
    assert numbers(module(Folder, path=str(tmp_path)).test) == [36, 37, 38, 39]
    assert data.image_shape == (1, 5, 7)
    assert (data.classes, data.train.labels.max()) == (0, -1)
    assert data.md5 == other.md5
    picture(tmp_path / "07.png", 200)
    assert module(Folder, path=str(tmp_path)).md5 != data.md5


def test_subfolders_are_classes_and_train_and_test_are_splits(tmp_path: Path) -> None:
    for number, name in enumerate(["cat", "dog", "dog", "eel"] * 3):
        picture(tmp_path / "plain" / name / "deeper" / f"{number}.png", number)
        picture(tmp_path / "split" / "train" / name / f"{number}.png", number)
    picture(tmp_path / "split" / "test" / "dog" / "x.png", 99)
    data = module(Folder, path=str(tmp_path / "plain"), dev_size=2, test_size=3)
    names = ["cat", "dog", "dog", "eel"] * 3
    for part in (data.train, data.dev, data.test):
        assert [data.class_names[k] for k in part.labels] == [names[number] for number in numbers(part)]
    data = module(Folder, path=str(tmp_path / "split"), dev_size=2)
    assert data.class_names == ["cat", "dog", "eel"]
    assert (numbers(data.test), data.test.labels.tolist()) == ([99], [1])
    assert len(data.train) == 10


def test_size_and_mode_give_all_images_one_shape(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 3, (20, 30))
    picture(tmp_path / "b.jpg", 4, (30, 20, 3))
    picture(tmp_path / "c.png", 5)
    where = {"path": str(tmp_path), "dev_size": 1, "test_size": 1}
    assert module(Folder, size=8, mode="RGB", **where).image_shape == (3, 8, 8)
    assert module(Folder, size=[6, 9], mode="L", **where).image_shape == (1, 6, 9)
    with pytest.raises(InputError, match=r"several shapes, 1x20x30 .*a\.png\) and 3x30x20 \(b\.jpg\); data\.size=28"):
        module(Folder, **where)


def test_classes_and_files_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in range(12):
        picture(tmp_path / str(number) / "img10.png", number)
        picture(tmp_path / str(number) / "img9.png", 100 + number)
    data = module(Folder, path=str(tmp_path), dev_size=1, test_size=1)
    assert data.class_names == [str(number) for number in range(12)]
    assert numbers(data.train)[:6] == [100, 0, 101, 1, 102, 2]
    assert data.train.labels[:6].tolist() == [0, 0, 1, 1, 2, 2]


def test_what_is_no_image_is_counted_and_hidden_folders_are_no_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, name in enumerate(["cat", "dog"] * 4):
        picture(tmp_path / name / f"{number}.{['png', 'TIFF', 'bmp', 'tif'][number // 2]}", number * 20)
    picture(tmp_path / ".ipynb_checkpoints" / "0.png", 1)
    picture(tmp_path / "dog" / "@eaDir" / "0.png", 1)
    picture(tmp_path / "dog" / ".hidden.png", 1)
    for name in ("a.gif", "b.GIF", "notes.txt", "README"):
        (tmp_path / "cat" / name).touch()
    with caplog.at_level("INFO"):
        data = module(Folder, path=str(tmp_path))
    assert data.class_names == ["cat", "dog"]
    assert len(data.train) + len(data.dev) + len(data.test) == 8
    (line,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert "8 images of 1x5x7 (channels x height x width) in 2 classes" in line
    assert line.endswith("left out: 2 .gif, 1 .ipynb_checkpoints/, 1 .txt, 1 @eaDir/, 1 hidden, 1 without a suffix")


@pytest.mark.parametrize(
    ("folders", "sizes"),
    [
        (("train", "val", "test"), (4, 3, 2)),
        (("Train", "valid"), (3, 3, 1)),
        (("train", "dev", "testing"), (4, 3, 2)),
        (("train",), (2, 1, 1)),
    ],
)
def test_folders_of_splits_are_never_classes(tmp_path: Path, folders: tuple[str, ...], sizes: tuple[int, ...]) -> None:
    first = {"train": 0, "val": 50, "valid": 50, "dev": 50, "test": 100, "testing": 100}
    count = {0: 4, 50: 3, 100: 2}
    for name in folders:
        start = first[name.lower()]
        for number in range(count[start]):
            picture(tmp_path / name / ["b", "a"][number % 2] / f"{number}.png", start + number)
    data = module(Folder, path=str(tmp_path))
    assert data.class_names == ["a", "b"]
    assert tuple(len(part) for part in (data.train, data.dev, data.test)) == sizes
    if len(folders) > 1:
        assert numbers(data.dev) == [51, 50, 52]
        assert data.dev.labels.tolist() == [0, 1, 1]
    if len(folders) > 2:
        assert numbers(data.test) == [101, 100]
        with pytest.raises(InputError, match=r"data\.dev_size=2: the set comes with its own dev images"):
            module(Folder, path=str(tmp_path), dev_size=2)


def test_linked_folders_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    for number in range(6):
        picture(tmp_path / "far" / f"{number}.png", number)
        picture(tmp_path / "set" / "near" / f"{number}.png", number)
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "far")
    (tmp_path / "set" / "near" / "loop").symlink_to(tmp_path / "set")
    data = module(Folder, path=str(tmp_path / "set"))
    assert data.class_names == ["linked", "near"]
    assert sum(len(part) for part in (data.train, data.dev, data.test)) == 12


def test_many_images_are_decoded_once_and_anew_where_one_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "CACHED_FROM", 6)
    for number in range(6):
        picture(tmp_path / "mine" / str(number % 2) / f"{number}.png", number)
    decoded: list[int] = []
    decode = arrays.decode
    monkeypatch.setattr(arrays, "decode", lambda files, *rest: decoded.append(len(files)) or decode(files, *rest))
    where = {"path": str(tmp_path / "mine"), "cache_dir": str(tmp_path / "cache")}
    first, second = (module(Folder, **where) for _ in range(2))
    assert decoded == [6]
    assert first.md5 == second.md5
    assert torch.equal(first.train.images, second.train.images)
    picture(tmp_path / "mine" / "0" / "0.png", 77, (5, 7))
    os.utime(tmp_path / "mine" / "0" / "0.png", (1, 1))
    assert 77 in numbers(module(Folder, **where).train)
    module(Folder, size=4, **where)
    assert decoded == [6, 6, 6]
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2  # the stale one is gone, another size has its own
    (tmp_path / "file").touch()
    assert module(Folder, path=where["path"], cache_dir=str(tmp_path / "file")).image_shape == (1, 5, 7)


def test_a_tilde_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for number in range(4):
        picture(tmp_path / "mine" / f"{number}.png", number)
    assert module(Folder, path="~/mine").image_shape == (1, 5, 7)


@pytest.mark.parametrize("levels", [2, 17])
@pytest.mark.parametrize("kind", ["npz", "npy", "folder"])
def test_masks_become_black_and_white_and_other_dark_levels_are_refused(
    tmp_path: Path, kind: str, levels: int, caplog: pytest.LogCaptureFixture
) -> None:
    pixels = np.random.default_rng(0).integers(levels, size=(20, 5, 7), dtype=np.uint8)
    path = tmp_path / f"x.{kind}"
    if kind == "npz":
        np.savez(path, images=pixels)
    elif kind == "npy":
        np.save(path, pixels)
    else:
        path.mkdir()
        for number, image in enumerate(pixels):
            Image.fromarray(image).save(path / f"{number}.png")
    if levels > 2:
        with pytest.raises(InputError, match=r"the pixels lie in 0 to 16, and 255 is white; multiply them by 15"):
            module(Folder if kind == "folder" else Arrays, path=str(path))
        return
    with caplog.at_level("INFO"):
        data = module(Folder if kind == "folder" else Arrays, path=str(path), dev_size=1, test_size=1)
    assert np.array_equal(data.train.images[:, 0].numpy(), pixels[:18] * 255)
    assert "the pixels are 0 and 1, which is taken as black and white" in caplog.text


def test_one_range_holds_for_all_splits(tmp_path: Path) -> None:
    """A split that happens to be dark is not scaled by itself."""
    bright = np.random.default_rng(0).integers(256, size=(20, 5, 7), dtype=np.uint8)
    dark = bright[:4] % 2
    np.savez(tmp_path / "x.npz", images=bright, test_images=dark)
    data = module(Arrays, path=str(tmp_path / "x.npz"), dev_size=1)
    assert np.array_equal(data.test.images[:, 0].numpy(), dark)
    np.savez(tmp_path / "x.npz", images=bright % 2, test_images=dark * 0)
    data = module(Arrays, path=str(tmp_path / "x.npz"), dev_size=1)
    assert data.train.images.max() == 255
    assert data.test.images.max() == 0


def mixture(path: Path) -> None:
    picture(path / "a.png", 1)
    picture(path / "cat" / "b.png", 1)


def split_and_classes(path: Path) -> None:
    picture(path / "train" / "a.png", 1)
    picture(path / "cat" / "b.png", 1)


def one_split_without_classes(path: Path) -> None:
    picture(path / "train" / "cat" / "a.png", 1)
    picture(path / "test" / "b.png", 1)


def empty_test(path: Path) -> None:
    picture(path / "train" / "a.png", 1)
    (path / "test").mkdir()


def waiting(path: Path) -> None:
    path.mkdir()
    os.mkfifo(path / "a.png")


def not_utf8(path: Path) -> None:
    picture(path / "a.png", 1)
    os.rename(path, os.fsencode(path) + b"\xff")
    path.mkdir()
    os.rename(os.fsencode(path) + b"\xff", path / os.fsdecode(b"caf\xe9"))


def text(path: Path) -> None:
    picture(path / "a.png", 1)
    (path / "b.png").write_text("no picture")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "there is nothing; give a folder"),
        (lambda path: path.mkdir(), "holds no image; give a folder of .png"),
        (lambda path: path.write_text(""), "is not a folder; for an array in a file take data=npz"),
        (mixture, "1 images lie beside subfolders, such as a.png"),
        (text, "b.png: cannot be read as an image"),
        (lambda path: picture(path / "a.png", 1), "data.test_size=1: 1 image cannot be split; give more images"),
        (split_and_classes, "the folders train and 1 images elsewhere"),
        (one_split_without_classes, "of train, test, some have folders of classes"),
        (empty_test, "holds the folders test, train and 0 images elsewhere"),
        (lambda path: picture(path / "val" / "a.png", 1), "holds the folders val and 0 images elsewhere"),
        (waiting, "a.png: cannot be read .it is a FIFO"),
        (not_utf8, r"caf.xe9.*: the name is not UTF-8; rename it"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path, make: Callable, said: str) -> None:
    make(tmp_path / "mine")
    with pytest.raises(InputError, match=said) as caught:
        module(Folder, path=str(tmp_path / "mine"))
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
        (np.arange(20 * 5 * 7 * 2).reshape(20, 5, 7, 2) % 256, (2, 5, 7)),
        (np.arange(20 * 5 * 7 * 4).reshape(20, 5, 7, 4) % 256, (4, 5, 7)),
        (np.arange(20 * 3 * 7 * 4).reshape(20, 4, 7, 3) % 256, (3, 4, 7)),
    ],
)
def test_arrays_come_in_any_order_of_axes(tmp_path: Path, array: np.ndarray, shape: tuple[int, ...]) -> None:
    array = array.astype(np.uint8)
    np.save(tmp_path / "x.npy", array)
    np.savez_compressed(tmp_path / "x.npz", images=array, labels=np.arange(20) % 3)
    plain, labeled = (
        module(Arrays, path=str(tmp_path / f"x.{end}"), dev_size=4, test_size=5) for end in ("npy", "npz")
    )
    assert plain.image_shape == labeled.image_shape == shape
    assert torch.equal(plain.test.images, labeled.test.images)
    assert plain.test.images.numpy().tobytes() == (
        array[15:].tobytes() if array.shape[-2:] == shape[1:] else array[15:].transpose(0, 3, 1, 2).tobytes()
    )
    assert labeled.test.labels.tolist() == [0, 1, 2, 0, 1]
    assert (plain.classes, labeled.classes) == (0, 3)


def test_floats_become_the_nearest_of_256_levels(tmp_path: Path) -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(8, 4, 8)
    np.savez(tmp_path / "x.npz", images=(levels / 255).numpy(), test_images=np.ones((2, 4, 8), bool))
    data = module(Arrays, path=str(tmp_path / "x.npz"), dev_size=1)
    assert torch.equal(torch.cat([data.train.images, data.dev.images]).squeeze(1), levels)
    assert data.test.images.unique().tolist() == [255]


def test_labels_of_any_numbers_are_as_many_classes_with_their_names(tmp_path: Path) -> None:
    images = np.full((20, 4, 6), 200, np.uint8)
    labels = np.array([30, 10, 20, 10], np.uint16).repeat(5)
    np.savez(tmp_path / "x.npz", images=images, labels=labels, test_images=images[:2], test_labels=[20, 40])
    data = module(Arrays, path=str(tmp_path / "x.npz"), dev_size=5)
    assert data.class_names == ["10", "20", "30", "40"]
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([2] * 5 + [0] * 5 + [1] * 5, [1, 3])


@pytest.mark.parametrize("path", ["x" * 300, "~nobody/x.npz", "a\0b", "there/is/none"])
@pytest.mark.parametrize("kind", [Arrays, Folder])
def test_a_path_that_no_file_can_have_is_refused_in_one_line(kind: type[ImageDataModule], path: str) -> None:
    with pytest.raises(InputError) as caught:
        module(kind, path=path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x.npz", "x.npy"])
def test_a_fifo_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match="it is a FIFO, not a file"):
        module(Arrays, path=str(tmp_path / name))


# --- any array --------------------------------------------------------------------------------------------------------

LEVELS, SIDES = st.integers(0, 255), st.integers(5, 7)
ANYWHERE = hypothesis.settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
)


@st.composite
def pictures(draw: Any) -> np.ndarray:
    """uint8 (N, C, H, W) with pixels of all kinds, a white one among them."""
    count, channels = draw(st.integers(3, 6)), draw(st.integers(1, 4))
    shape = (count, channels, draw(SIDES), draw(SIDES))
    truth = draw(hnp.arrays(np.uint8, shape, elements=LEVELS, fill=LEVELS))
    truth[0, 0, 0, 0] = 255
    return truth


def read(directory: Path, array: np.ndarray) -> np.ndarray:
    path = directory / "x.npy"
    np.save(path, array)
    return Arrays(path=str(path)).load().train[0].numpy()


@ANYWHERE
@hypothesis.given(
    truth=pictures(),
    kind=st.sampled_from(["|u1", "<f2", ">f2", "<f4", ">f4", "<f8", ">f8"]),
    last=st.booleans(),
    order=st.sampled_from("CF"),
)
def test_arrays_of_every_order_and_type_give_the_same_pixels(
    tmp_path: Path, truth: np.ndarray, kind: str, last: bool, order: Any
) -> None:
    array = truth.transpose(0, 2, 3, 1) if last else truth
    scaled = array if kind == "|u1" else (array / 255).astype(kind)
    assert np.array_equal(read(tmp_path, np.asarray(scaled, order=order)), truth)


@pytest.fixture
def denormals() -> Iterator[None]:
    """Hypothesis draws no floats where a run before has denormals flushed to 0."""
    are_kept = keeps_denormals()
    torch.set_flush_denormal(False)
    yield
    torch.set_flush_denormal(not are_kept)


@pytest.mark.usefixtures("denormals")
@ANYWHERE
@hypothesis.given(
    array=hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6)),
)
def test_an_array_of_anything_is_read_as_images_or_refused_in_one_line(tmp_path: Path, array: np.ndarray) -> None:
    refusal = None
    try:
        images = read(tmp_path, array)
    except InputError as error:
        refusal = str(error)
    if refusal:
        assert "\n" not in refusal
        return
    assert (images.dtype, images.ndim, len(images), images.size) == (np.uint8, 4, len(array), array.size)
    assert images.max() >= 64
    white = 255 if array.dtype == np.uint8 and array.max() > 1 else 1
    assert np.allclose(np.sort(images.ravel()), np.sort(array.astype(float).ravel() * 255 / white), atol=0.51)


IMAGES = np.full((9, 4, 6), 200, np.uint8)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": IMAGES, "labels": np.arange(8)}, r"labels has the shape \(8,\) .*; give 9 whole numbers"),
        ({"images": IMAGES, "labels": np.full(9, 0.5)}, "the type float64; give 9 whole numbers"),
        ({"images": IMAGES, "labels": np.full(9, -1)}, "give 9 whole numbers from 0"),
        ({"images": IMAGES, "test_labels": np.arange(9)}, "one of labels and test_labels"),
        ({"images": IMAGES[:1].repeat(10_001, 0), "labels": np.arange(10_001)}, "10001 classes; give at most 10000"),
        ({"images": IMAGES // 100}, r"pixels lie in 0 to 2, and 255 is white; multiply them by 127"),
        ({"images": IMAGES // 12}, r"pixels lie in 0 to 16, and 255 is white; multiply them by 15"),
        ({"images": IMAGES * 0}, "pixels lie in 0 to 0"),
        ({"images": IMAGES / 255**2}, "values up to 0.0039, and 1 is white"),
        ({"images": IMAGES[..., None, None] * np.ones((5, 6), np.uint8)}, r"shape \(9, 4, 6, 5, 6\)"),
        ({"images": np.full((9, 5, 6, 5), 200, np.uint8)}, "give 1 to 4 channels"),
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
        module(Arrays, path=str(tmp_path / "x.npz"), dev_size=1, test_size=1)
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
        module(Arrays, path=str(path))
    assert "\n" not in str(caught.value)
    assert not trap.exists()


def test_an_archive_larger_than_the_memory_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "x.npz", images=np.zeros((9, 400, 600), np.uint8))
    assert (tmp_path / "x.npz").stat().st_size < 10_000
    monkeypatch.setattr("os.sysconf", lambda name: 1000)  # a machine of a megabyte
    with pytest.raises(InputError, match=r"unpacked it has 0 GB, this machine 0"):
        module(Arrays, path=str(tmp_path / "x.npz"))


@pytest.mark.parametrize("content", [b"", b"no array", b"PK\x03\x04 no archive"])
def test_a_file_of_anything_else_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.npz: cannot be read") as caught:
        module(Arrays, path=str(tmp_path / "x.npz"))
    assert "\n" not in str(caught.value)


def test_a_cut_archive_is_refused_in_one_line(tmp_path: Path) -> None:
    np.savez(tmp_path / "whole.npz", images=IMAGES, labels=np.arange(9))
    with zipfile.ZipFile(tmp_path / "whole.npz") as archive, zipfile.ZipFile(tmp_path / "x.npz", "w") as cut:
        cut.writestr("images.npy", archive.read("images.npy")[:150])
    with pytest.raises(InputError, match=r"x\.npz: cannot be read"):
        module(Arrays, path=str(tmp_path / "x.npz"))


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


@pytest.mark.parametrize("kind", [sets.CIFAR10, sets.SVHN, sets.Omniglot])
def test_torchvision_s_sets_are_taken_over(
    kind: type[sets.TorchvisionSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, "source", Fetched)
    data = module(kind, root=str(tmp_path), dev_size=2)
    assert data.image_shape == (3, 6, 8)
    assert data.test.images[:, 0, 0, -1].tolist() == list(range(100, 112))
    if kind is sets.Omniglot:
        assert data.classes == 0
    else:
        assert (data.class_names, data.test.labels.tolist()) == (["a", "b", "c"], [0, 1, 2] * 4)
    assert module(kind, root=str(tmp_path), dev_size=2, size=5, mode="L").image_shape == (1, 5, 5)


def test_emnist_is_turned_upright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EMNIST, "source", Fetched)
    data = module(EMNIST, root=str(tmp_path), dev_size=2)
    assert data.image_shape == (3, 8, 6)
    assert data.train.images[:, 1, -1, 0].tolist() == list(range(10))


def test_a_set_that_cannot_be_fetched_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.CIFAR10.url", "file:///nowhere")
    with pytest.raises(InputError, match=r"data\.root=.*: CIFAR10 is not there and cannot be fetched") as caught:
        module(sets.CIFAR10, root=str(tmp_path))
    assert "\n" not in str(caught.value)


# --- sprites ----------------------------------------------------------------------------------------------------------

GRID = [3, 2, 4, 5, 6]


def test_the_whole_grid_is_every_combination_once() -> None:
    raw = Sprites(16, GRID, None).load()
    assert raw.factors is not None
    assert len(raw.factors.values.unique(dim=0)) == len(raw.train[0]) == 720
    assert raw.factors.values.amax(0).tolist() == [2, 1, 3, 4, 5]
    assert raw.factors.names == list(FACTORS)
    assert raw.train[1] is not None
    assert torch.equal(raw.train[1], raw.factors.values[:, 0])


def test_a_part_of_the_grid_is_a_function_of_the_seed_and_factors_stay_with_their_images() -> None:
    data, same, other = (
        module(Sprites, size=[12, 15], grid=GRID, count=200, split="random", split_seed=s, dev_size=30, test_size=40)
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
        module(Sprites, size=8, **settings)


# --- principal axes ---------------------------------------------------------------------------------------------------


def test_leading_axes_span_what_the_exact_ones_do() -> None:
    images = Sprites(16, [3, 6, 8, 10, 10], 700).load().train[0]
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


@pytest.mark.parametrize(
    ("shape", "key", "said"),
    [
        ((60, 1, 1), "evaluation=default", "images of 1 x 1 pixels cannot be modelled"),
        ((60, 3, 4), "evaluation=default", "4 test images of 4 x 4 pixels or more, and there are 6 of 3 x 4"),
        ((12, 5, 7), "evaluation=default", "there are 1 of 5 x 7; give more, or set evaluation.features=false"),
        ((3, 5, 7), "evaluation.features=false", "all training images are of one class"),
        ((1, 5, 7), "evaluation=none", "data.test_size=1: 1 image cannot be split"),
    ],
)
def test_what_the_evaluation_could_not_use_is_refused_before_training(
    tmp_path: Path, shape: tuple[int, ...], key: str, said: str
) -> None:
    np.savez(tmp_path / "x.npz", images=np.full(shape, 200, np.uint8), labels=np.arange(len(np.empty(shape))) // 2)
    with pytest.raises(InputError, match=said):
        train(
            "data=npz",
            f"data.path={tmp_path / 'x.npz'}",
            *RUN[:2],
            key,
            "data.split=last",
            f"run_dir={tmp_path / 'run'}",
        )
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


@pytest.mark.parametrize(("count", "batch_size"), [(120, 8), (1800, 25), (9000, 100)])
def test_batches_follow_from_the_number_of_images(tmp_path: Path, count: int, batch_size: int) -> None:
    np.save(tmp_path / "x.npy", np.full((count, 5, 5), 200, np.uint8))
    data = Arrays(path=str(tmp_path / "x.npy"), dev_size=10, test_size=count // 6 - 10)
    assert data.batch_size == batch_size
    assert len(data.train_dataloader()) == -(-count * 5 // 6 // batch_size)
    assert Arrays(path=str(tmp_path / "x.npy"), batch_size=7).batch_size == 7


def test_own_images_train_without_dropout_and_the_first_lines_say_the_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(256, size=(90, 5, 7), dtype=np.uint8))
    run = [key for key in RUN if not key.startswith("data.batch_size")]
    train("data=npz", f"data.path={tmp_path / 'x.npy'}", *run, f"run_dir={tmp_path / 'run'}")
    assert "73 training and 8 dev images, 10 steps per epoch" in capsys.readouterr().out
    settings = settings_of("data=npz", f"data.path={tmp_path / 'x.npy'}")
    assert settings.plain["model"]["encoder"]["dropout"] == 0
    assert settings_of("data=npz", "data.path=x", "dropout=0.2").plain["model"]["encoder"]["dropout"] == 0.2


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
    assert RawSet((flat.view(3, 4), None)).md5 != RawSet((flat.view(4, 3), None)).md5


def test_the_caption_names_the_folder(tmp_path: Path) -> None:
    assert caption(settings_of("data=folder", "data.path=my/cats").plain, 3) == "cats, colour"
