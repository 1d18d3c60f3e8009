"""Decoding and resizing of PNG images."""

import io
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch.nn import functional

from breakhis_pl.errors import DataError

UInt8Array: TypeAlias = npt.NDArray[np.uint8]

MAX_PIXELS = 20_000_000
"""Largest number of pixels of an image, 60 times that of an original."""

_BIT_DEPTH_BYTE = 24  # signature, length and name of the chunk IHDR, width, height (PNG specification, 11.2.1)


def read_image(path: Path) -> UInt8Array:
    """Read a PNG file.

    Values are taken as stored: color profiles and gamma are ignored. Gray images and palettes are converted to RGB.

    Returns:
        uint8, (height, width, 3), RGB.

    Raises:
        DataError: If the file is not a complete PNG of at most 8 bits per channel without transparency.
    """
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            _check_kind(image, bit_depth=content[_BIT_DEPTH_BYTE])
            image.verify()  # checksums, which decoding ignores
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            return np.array(image.convert("RGB"))
    except Exception as error:  # Pillow raises many kinds for damaged files
        reason = "no PNG image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"{path.name}: cannot be read ({reason}); expected a complete PNG of 8-bit RGB") from error


def _check_kind(image: Image.Image, *, bit_depth: int) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"{image.width}x{image.height} pixels, at most {MAX_PIXELS:,} are possible")
    if bit_depth > 8:
        raise DataError(f"{bit_depth} bits per channel")  # of which Pillow would drop half without a warning
    if image.mode not in ("1", "L", "P", "RGB") or "transparency" in image.info:
        raise DataError("has transparency")


def resize(image: UInt8Array, size: int) -> UInt8Array:
    """Resize an image to a square by antialiased bilinear interpolation; the aspect ratio is not kept.

    The result differs from Pillow's, which torchvision's Resize uses on Pillow images, by at most one of 255 levels.

    Args:
        image: uint8, (height, width, 3).
        size: Side of the result in pixels.

    Returns:
        uint8, (size, size, 3).
    """
    if image.shape[:2] == (size, size):
        return image
    batch = torch.from_numpy(image).permute(2, 0, 1)[None]  # (1, 3, height, width)
    resized = functional.interpolate(batch, (size, size), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).contiguous().numpy()  # (size, size, 3)
