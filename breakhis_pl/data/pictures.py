"""Pictures from anywhere, of any size and most kinds, as 8-bit RGB: whole ones are converted, others refused by reason.

Training takes whole 8-bit RGB PNG files and nothing else (`png.py`): there, another kind is a mistake. Here it is what
a user has. What is done to it, in this order:

    16 bits per channel     the upper 8
    gray, black and white   the same value in red, green and blue
    palette                 its colors
    transparency            laid over white, which is what a slide is where there is nothing
    CMYK, YCbCr             Pillow's conversion; color profiles are not applied, as they are not in training
    Exif orientation        followed
    several frames, pages   the first
"""

import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from breakhis_pl.errors import ImageError
from breakhis_pl.files import open_file

UInt8Array: TypeAlias = npt.NDArray[np.uint8]

FORMATS = (
    *("PNG", "JPEG", "MPO", "TIFF", "BMP", "DIB", "WEBP", "GIF", "JPEG2000", "AVIF"),
    *("PPM", "PCX", "SGI", "QOI", "PSD"),
)
"""Pillow's names of what is read. Left out: what starts another program (EPS), what cannot be told by its first bytes
(TGA), and what is no picture of pixels."""

SUFFIXES = frozenset(
    {
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".tif", ".tiff", ".bmp", ".dib", ".webp", ".gif"),
        *(".jp2", ".j2k", ".jpx", ".jpf", ".avif", ".avifs", ".ppm", ".pgm", ".pbm", ".pnm", ".pcx", ".sgi", ".qoi"),
        *(".psd",),
    }
)
"""Of files that are taken from a folder, in lower case."""

LARGEST_PICTURE = 80_000_000
"""Pixels of a picture that is still decoded, 240 MB of them; 250 times those of a BreakHis image."""

LONGEST_SIDE = 65_535
"""Pixels; no JPEG is longer, and what resizing to a square takes of a longer one grows with its length."""

NO_MEMORY = "not enough memory for it; expected a smaller picture, or more memory"

SEVERAL_AT_ONCE = 10_000_000
"""Pixels of a picture up to which threads decode at the same time; larger ones take turns, which bounds the memory."""

_one_large = threading.Lock()


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture in the direction its camera was held.

    Attributes:
        pixels: uint8, (height, width, 3), RGB.
    """

    pixels: UInt8Array

    @property
    def width(self) -> int:
        """In pixels."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """In pixels."""
        return int(self.pixels.shape[0])


def read_picture(path: Path) -> Picture:
    """A file as a picture.

    Args:
        path: A file of one of `FORMATS`, whatever its name.

    Raises:
        ImageError: If it cannot be read, is damaged, too large, or of a kind that has no plain meaning in 8 bits; the
            text gives the reason without the name.
    """
    try:
        with open_file(path) as file:
            return Picture(_read(file))
    except ImageError:
        raise
    except OSError as error:
        raise ImageError(_one_line(error.strerror or str(error))) from error


def _read(file: BinaryIO) -> UInt8Array:
    """The pixels in an open file.

    Raises:
        ImageError: As `read_picture`.
        OSError: If it cannot be read.
    """
    if not file.read(1):
        raise ImageError("empty file (0 bytes)")
    file.seek(0)
    try:
        return _decoded(file)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(NO_MEMORY) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"more pixels than can be right, expected at most {LARGEST_PICTURE:,}") from error
    except UnidentifiedImageError as error:
        raise ImageError("no picture of a kind that is read here") from error
    except Exception as error:  # Pillow raises whatever its parsers do
        raise ImageError(f"damaged: {_one_line(str(error)) or type(error).__name__}") from error


def _decoded(file: BinaryIO) -> UInt8Array:
    with Image.open(file, formats=_formats()) as picture:
        n_pixels = picture.width * picture.height
        if n_pixels > LARGEST_PICTURE:
            raise ImageError(f"{picture.width}x{picture.height} pixels, expected at most {LARGEST_PICTURE:,}")
        if max(picture.size) > LONGEST_SIDE:
            raise ImageError(f"{picture.width}x{picture.height} pixels, expected sides of at most {LONGEST_SIDE:,}")
        if picture.format == "PNG":
            picture.verify()  # the checksums of its parts, which loading leaves out
            file.seek(0)
            with Image.open(file, formats=["PNG"]) as again:
                return _converted(again)
        return _converted(picture)


@cache
def _formats() -> list[str]:
    """Those of `FORMATS` that this Pillow was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _converted(picture: Image.Image) -> UInt8Array:
    """The pixels of an opened picture; large ones one at a time."""
    if picture.width * picture.height <= SEVERAL_AT_ONCE:
        return np.asarray(_plain_rgb(picture))
    with _one_large:
        return np.asarray(_plain_rgb(picture))


def _plain_rgb(picture: Image.Image) -> Image.Image:
    """A picture in mode RGB, turned as its camera says.

    Raises:
        ImageError: If its values have no plain meaning in 8 bits.
    """
    picture.load()
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode.startswith("I;16"):
        upper = (np.asarray(picture) >> 8).astype(np.uint8)
        return Image.fromarray(upper).convert("RGB")
    if picture.mode in {"I", "F"}:
        raise ImageError(f"32 bits per pixel (Pillow's mode {picture.mode}); expected 8 or 16, save it so")
    if picture.mode == "LAB":  # which Pillow converts by color profiles alone
        raise ImageError("colors in L*a*b*; expected RGB, gray or CMYK, save it so")
    if picture.mode in {"LA", "PA", "RGBA", "La", "RGBa"} or "transparency" in picture.info:
        above = picture.convert("RGBA")
        white = Image.new("RGBA", above.size, "white")
        return Image.alpha_composite(white, above).convert("RGB")
    return picture.convert("RGB")


def _one_line(text: str) -> str:
    """A parser's message, which may hold bytes of the file, as one line that can be seen."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:200]
