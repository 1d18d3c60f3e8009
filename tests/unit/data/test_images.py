import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional

from breakhis_pl.data.images import read_image, resize
from breakhis_pl.errors import DataError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (16, 20, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "1", "L", "P"])
def test_rgb_is_read_as_stored_and_gray_images_and_palettes_are_converted(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(PIXELS).convert(mode)
    image.save(tmp_path / "image.png")
    np.testing.assert_array_equal(read_image(tmp_path / "image.png"), np.asarray(image.convert("RGB")))


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def changed(content: bytes, at: int) -> bytes:
    """Change a bit of a byte."""
    return content[:at] + bytes([content[at] ^ 1]) + content[at:][1:]


def png_of_16_bit_rgb() -> bytes:
    """Write what Pillow reads, but cannot write: zeros in six bytes per pixel."""
    header = struct.pack(">IIBBBBB", 20, 16, 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(16 * (1 + 6 * 20)))), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return content


IMAGE = Image.fromarray(PIXELS)
PNG = saved(IMAGE)
REFUSED = {
    "RGB of 16 bits": png_of_16_bit_rgb(),
    "truncated": PNG[:-200],
    "changed byte": changed(PNG, len(PNG) // 2),
    "wrong checksum": changed(PNG, len(PNG) - 13),  # IEND is 12 bytes long; the checksum of the pixels is before it
    "huge": saved(Image.new("1", (10_000, 10_000))),
    "empty": b"",
    "missing": None,
}


@pytest.mark.parametrize("fault", [*REFUSED, "folder"])
def test_other_and_damaged_files_are_refused_by_name(tmp_path: Path, fault: str) -> None:
    if fault == "folder":
        (tmp_path / "image.png").mkdir()
    elif (content := REFUSED[fault]) is not None:
        (tmp_path / "image.png").write_bytes(content)
    with pytest.raises(DataError, match=r"image\.png"):
        read_image(tmp_path / "image.png")


@pytest.mark.parametrize("size", [8, 40])
def test_resized_images_differ_from_torchvision_on_pillow_by_one_level_at_most(size: int) -> None:
    expected = np.asarray(functional.resize(Image.fromarray(PIXELS), [size, size]), dtype=np.int64)
    resized = resize(PIXELS, size)
    assert resized.shape == (size, size, 3)
    assert abs(resized - expected).max() <= 1
