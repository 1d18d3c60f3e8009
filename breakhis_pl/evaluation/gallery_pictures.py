"""The pictures of a gallery: an image as it is, and beside it in gray, tinted by what speaks for the prediction."""

from pathlib import Path
from typing import TypeAlias

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from PIL import Image

from breakhis_pl.errors import ShapeError

UInt8Array: TypeAlias = npt.NDArray[np.uint8]

LARGEST_SIDE = 256
"""Of each half of a picture, in pixels; larger images are made smaller."""

GAP = 8
"""White columns between the halves, in pixels."""

JPEG_QUALITY = 85

COLORMAP = "viridis"
"""Perceptually uniform, and readable without seeing red or green."""


def check_pictures(n: int, pixels: UInt8Array, heat: npt.NDArray[np.float32]) -> None:
    """Refuses arrays that are not the pictures of `n` entries.

    Args:
        n: Number of entries.
        pixels: uint8, (n, size, size, 3), RGB.
        heat: float, (n, size, size), in [0, 1].

    Raises:
        ShapeError: Naming what is wrong.
    """
    size = pixels.shape[1] if pixels.ndim == 4 else 0
    if pixels.shape != (n, size, size, 3) or heat.shape != (n, size, size):
        raise ShapeError(
            f"{n} entries, pixels of shape {pixels.shape} and heat of shape {heat.shape}; "
            f"expected ({n}, size, size, 3) and ({n}, size, size)"
        )
    if pixels.dtype != np.uint8:
        raise ShapeError(f"pixels are {pixels.dtype}; expected uint8")
    lowest, highest = heat.min(initial=0), heat.max(initial=0)
    if not (lowest >= 0 and highest <= 1):  # also where one is not a number
        raise ShapeError(f"heat lies in {lowest:g} to {highest:g}; expected 0 to 1")


def save_picture(path: Path, image: UInt8Array, heat: npt.NDArray[np.float32] | None, *, aspect: float = 1.0) -> None:
    """Writes the picture of an image and its heat as JPEG.

    Args:
        path: The file; its folder exists.
        image: uint8, (size, size, 3), RGB.
        heat: float, (size, size), in [0, 1]; None saves the image alone.
        aspect: Width by height of each half; the longer side is that of the image, or `LARGEST_SIDE`.
    """
    _picture(image, heat, aspect).save(path, format="JPEG", quality=JPEG_QUALITY)


def _picture(image: UInt8Array, heat: npt.NDArray[np.float32] | None, aspect: float) -> Image.Image:
    """The image and the tinted image side by side.

    Args:
        image: uint8, (size, size, 3), RGB.
        heat: float, (size, size), in [0, 1].
        aspect: Width by height of each half.
    """
    size = min(image.shape[0], LARGEST_SIDE)
    width, height = max(1, round(size * min(aspect, 1))), max(1, round(size / max(aspect, 1)))
    halves = [(0, image)] if heat is None else [(0, image), (width + GAP, _tinted(image, heat))]
    picture = Image.new("RGB", (halves[-1][0] + width, height), "white")
    for left, half in halves:
        picture.paste(Image.fromarray(half).resize((width, height), Image.Resampling.LANCZOS), (left, 0))
    return picture


def _tinted(image: UInt8Array, heat: npt.NDArray[np.float32]) -> UInt8Array:
    """The image in gray, multiplied by the color of the heat, so that tissue stays visible under any color."""
    luma = image @ np.array([0.299, 0.587, 0.114]) / 255  # (size, size), ITU-R BT.601
    lightened = 0.3 + 0.7 * luma[..., None]  # (size, size, 1)
    color = mpl.colormaps[COLORMAP](0.35 + 0.65 * heat)[..., :3]  # (size, size, 3), without the nearly black end
    strength = 0.9 * heat[..., None]  # (size, size, 1)
    tinted: UInt8Array = np.round(255 * lightened * (1 - strength + strength * color)).astype(np.uint8)
    return tinted
