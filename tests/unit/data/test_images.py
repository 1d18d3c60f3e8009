import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional

from breakhis_pl.data.images import read_image, resize
from breakhis_pl.errors import DataError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (16, 20, 3), dtype=np.uint8)


def test_an_8_bit_rgb_image_is_read_as_stored(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "image.png")

    np.testing.assert_array_equal(read_image(tmp_path / "image.png"), PIXELS)


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_gray_images_and_palettes_are_converted(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(PIXELS).convert(mode)
    image.save(tmp_path / "image.png")

    np.testing.assert_array_equal(read_image(tmp_path / "image.png"), np.asarray(image.convert("RGB")))


def save_16_bit(path: Path) -> None:
    Image.fromarray(RNG.integers(0, 2**16, (16, 20), dtype=np.uint16)).save(path)


def save_16_bit_rgb(path: Path) -> None:
    """Write what Pillow reads, but cannot write: zeros in six bytes per pixel."""
    header = struct.pack(">IIBBBBB", 20, 16, 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(16 * (1 + 6 * 20)))), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(content)


def save_rgba(path: Path) -> None:
    Image.fromarray(PIXELS).convert("RGBA").save(path)


def save_transparent_color(path: Path) -> None:
    Image.fromarray(PIXELS).save(path, transparency=(0, 0, 0))


def save_jpeg(path: Path) -> None:
    Image.fromarray(PIXELS).save(path, format="JPEG")


def save_truncated(path: Path) -> None:
    Image.fromarray(PIXELS).save(path)
    path.write_bytes(path.read_bytes()[:-200])


def save_with_a_changed_byte(path: Path) -> None:
    Image.fromarray(PIXELS).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def save_with_a_wrong_checksum(path: Path) -> None:
    Image.fromarray(PIXELS).save(path)
    content = bytearray(path.read_bytes())
    content[-13] ^= 1  # IEND is 12 bytes long; the checksum of the pixels is before it
    path.write_bytes(content)


def save_huge(path: Path) -> None:
    Image.new("1", (5000, 5000)).save(path)


def save_empty(path: Path) -> None:
    path.touch()


def make_folder(path: Path) -> None:
    path.mkdir()


def save_nothing(path: Path) -> None:
    """Leave the path without a file."""


@pytest.mark.parametrize(
    "save",
    [
        *(save_16_bit, save_16_bit_rgb, save_rgba, save_transparent_color, save_jpeg),
        *(
            save_truncated,
            save_with_a_changed_byte,
            save_with_a_wrong_checksum,
            save_huge,
            save_empty,
            make_folder,
            save_nothing,
        ),
    ],
)
def test_other_and_damaged_files_are_refused_by_name(tmp_path: Path, save: Callable[[Path], None]) -> None:
    save(tmp_path / "image.png")

    with pytest.raises(DataError, match=r"^image\.png"):
        read_image(tmp_path / "image.png")


@pytest.mark.parametrize("size", [8, 40])
def test_resized_images_differ_from_torchvision_on_pillow_by_one_level_at_most(size: int) -> None:
    expected = np.asarray(functional.resize(Image.fromarray(PIXELS), [size, size]), dtype=np.int64)

    resized = resize(PIXELS, size)

    assert resized.shape == (size, size, 3)
    assert abs(resized - expected).max() <= 1


def test_an_image_of_the_wanted_size_is_not_changed() -> None:
    square = PIXELS[:16, :16]

    assert resize(square, 16) is square
