"""One image file -> uint8 (C, H, W): upright, of the size and mode asked for; anything else is refused in one line."""

import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vae.data.images import read_image
from vae.errors import InputError


def saved(path: Path, pixels: np.ndarray, **settings: object) -> Path:
    Image.fromarray(pixels).save(path, **settings)
    return path


def ramp(*shape: int) -> np.ndarray:
    return (np.arange(np.prod(shape)) * 7 % 256).astype(np.uint8).reshape(shape)


def test_grey_and_colour_come_as_they_are(tmp_path: Path) -> None:
    grey, colour = ramp(4, 6), ramp(4, 6, 3)
    assert np.array_equal(read_image(saved(tmp_path / "a.png", grey)), grey[None])
    assert np.array_equal(read_image(saved(tmp_path / "b.png", colour)), colour.transpose(2, 0, 1))
    assert read_image(tmp_path / "b.png", mode="L").shape == (1, 4, 6)
    assert np.array_equal(read_image(tmp_path / "a.png", mode="RGB"), np.repeat(grey[None], 3, 0))
    Image.fromarray(colour).quantize(8).save(tmp_path / "c.png")
    assert read_image(tmp_path / "c.png").shape == (3, 4, 6)


def test_size_takes_the_largest_centred_part(tmp_path: Path) -> None:
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 255
    path = saved(tmp_path / "a.png", wide)
    assert np.array_equal(read_image(path, 10), np.full((1, 10, 10), 255))
    assert read_image(path, (5, 15)).shape == (1, 5, 15)
    assert read_image(path, (5, 15))[0, 2, 7] == 255


def test_exif_turns_it_upright(tmp_path: Path) -> None:
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    path = saved(tmp_path / "a.jpg", pixels, exif=exif, quality=95)
    upright = read_image(path)[0]
    assert upright.shape == (16, 8)
    assert upright[:7].mean() > 240
    assert upright[9:].mean() < 15


@pytest.mark.parametrize(("mode", "shape"), [("LA", (1, 4, 5)), ("RGBA", (3, 4, 5))])
def test_transparent_pixels_are_white(tmp_path: Path, mode: str, shape: tuple[int, ...]) -> None:
    Image.new(mode, (5, 4), 0).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), np.full(shape, 255))


def write_png(path: Path, side: tuple[int, int], depth: int, colour: int, pixels: bytes) -> None:
    """A PNG with any header, true or not."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *side, depth, colour, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b""))


def bomb(path: Path, side: int = 30_000) -> None:
    """A few hundred bytes that say they are 900 million pixels."""
    write_png(path, (side, side), 8, 0, bytes(100_000))


def truncated(path: Path) -> None:
    saved(path, np.random.default_rng(0).integers(256, size=(40, 60), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:200])


def animation(path: Path) -> None:
    first, second = (Image.fromarray(ramp(4, 5) + k) for k in (0, 9))
    first.save(path, save_all=True, append_images=[second])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_text("no picture"), "cannot be read as an image .*; give a PNG or JPEG"),
        (lambda path: path.write_bytes(b""), "cannot be read as an image"),
        (lambda path: Image.new("RGB", (4, 4)).save(path, "GIF"), "cannot be read as an image"),
        (truncated, "cannot be read as an image"),
        (lambda path: Image.fromarray(np.full((4, 5), 40_000, np.uint16)).save(path), "more than 8 bits per channel"),
        (bomb, "cannot be read as an image .*|has 30000 x 30000 pixels"),
        (lambda path: bomb(path, 9_000), "has 9000 x 9000 pixels, more than 50,000,000; nothing of it was decoded"),
        (lambda path: None, "No such file"),
        (os.mkfifo, "it is a FIFO, not a file"),
        (lambda path: path.mkdir(), "it is a directory, not a file"),
        (animation, "holds 2 pictures; save the one"),
    ],
)  # fmt: skip
def test_what_is_no_such_image_is_refused_in_one_line(tmp_path: Path, make, said: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "x.png"
    make(path)
    with pytest.raises(InputError) as caught:
        read_image(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert re.search(said, line), line
    assert "\n" not in line


def test_sixteen_bits_of_colour_are_refused_too(tmp_path: Path) -> None:
    """PIL opens it as an ordinary RGB image."""
    write_png(tmp_path / "deep.png", (2, 3), 16, 2, b"".join(b"\0" + bytes(2 * 3 * 2) for _ in range(3)))
    with pytest.raises(InputError, match="more than 8 bits per channel"):
        read_image(tmp_path / "deep.png")


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "tif", "tiff"])
def test_formats_without_loss_give_the_pixels_that_were_saved(tmp_path: Path, suffix: str) -> None:
    settings = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"a.{suffix}", ramp(6, 5, 3), **settings)
    assert np.array_equal(read_image(path), ramp(6, 5, 3).transpose(2, 0, 1))


def test_deep_tiff_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "a.tif", np.full((4, 5), 40_000, np.uint16))
    with pytest.raises(InputError, match="more than 8 bits per channel"):
        read_image(tmp_path / "a.tif")
