"""Decoding of pictures of any size and most formats as 8-bit RGB, and resizing.

Wrong pixels are worse than none: a kind of file whose pixels are not known to be decoded correctly is refused.
"""

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.nn import functional

from breakhis_pl.errors import DataError

UInt8Array: TypeAlias = npt.NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "WEBP", "GIF", "JPEG2000", "AVIF", "PPM", "PCX", "SGI", "QOI")
"""Pillow's names of the formats that are read; JPEG includes MPO."""

SLIDE_SUFFIXES = frozenset((".svs", ".ndpi", ".scn", ".mrxs", ".vms", ".vmu", ".bif", ".czi", ".dcm", ".isyntax"))
"""Suffixes of whole-slide scanners."""

MAX_PIXELS = 80_000_000
"""Largest number of pixels of a picture, 250 times that of an original."""

MAX_SIDE = 65_535
"""Largest side in pixels; no JPEG is longer."""

MIN_BRIGHTEST = 64
"""Least value of the brightest pixel of a picture of 16 bits per channel, in 8 bits.

Microscope cameras store 10 to 14 bits as 16. Their pictures look nearly black, and their scale is not known.
"""

_TIFF_KINDS = ((0, 8), (1, 8), (1, 16), (2, 8), (2, 16), (3, 8), (6, 8))
"""PhotometricInterpretation and bits per sample of the TIFF files that Pillow decodes correctly."""

_TIFF_COMPRESSIONS = (1, 5, 7, 8, 32773, 32946, 34925, 50000)
"""None, LZW, JPEG, Deflate, PackBits, old Deflate, LZMA, Zstandard."""


def read_image(path: Path) -> UInt8Array:
    """Read an image of a data set; see `read_picture`.

    Raises:
        DataError: If it cannot be read, with its path.
    """
    try:
        return read_picture(path)
    except DataError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def read_picture(path: Path) -> UInt8Array:
    """Read a picture.

    Of 16 bits per channel the upper 8 are used. Gray and palettes become RGB, transparent pixels are laid over white,
    the orientation of the camera is followed. Color profiles are ignored, as in training.

    Returns:
        uint8, (height, width, 3), RGB.

    Raises:
        DataError: If it cannot be read or is damaged, or its pixels are not known to be decoded correctly; the message
            is the reason, without the name.
    """
    try:
        if not path.is_file():
            raise DataError("is not a file" if path.exists() else "does not exist")
        if path.suffix.lower() in SLIDE_SUFFIXES:
            raise DataError(f"whole-slide file ({path.suffix}); cut regions of about 0.5 mm out of it")
        return _decode(path)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError("not a picture in a format that can be read") from error
    except MemoryError as error:
        raise DataError("not enough memory to decode it") from error
    except Exception as error:  # Pillow raises many kinds for damaged files
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        raise DataError(f"damaged or not supported ({' '.join(reason.split())[:200]})") from error


def _decode(path: Path) -> UInt8Array:
    with Image.open(path, formats=FORMATS) as image:
        _check_kind(image)
        if image.format == "PNG":
            image.verify()  # checksums, which decoding ignores
    with Image.open(path, formats=FORMATS) as image:
        is_16_bit = ";16" in str(image.tile) or image.mode.startswith("I;16")
        image.load()
        pixels = np.array(_to_rgb(image))
    if is_16_bit and pixels.max() < MIN_BRIGHTEST:
        raise DataError("16 bits per channel of which the upper ones are 0: of unknown scale; save it with 8 bits")
    return pixels


def _check_kind(image: Any) -> None:
    """Refuse a picture whose pixels may be decoded wrongly.

    Raises:
        DataError: With the reason.
    """
    if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
        limits = f"{MAX_PIXELS:,}, and {MAX_SIDE:,} along a side"
        raise DataError(f"{image.width}x{image.height} pixels; at most {limits}, are possible")
    if image.format == "TIFF":
        _check_tiff(image)
    if getattr(image, "is_animated", False) and image.format != "MPO":  # of MPO, the first one is the photograph
        raise DataError("several pages or frames; save the one to predict")
    if image.mode in ("CMYK", "LAB"):
        raise DataError(f"{image.mode}: its colors depend on a color profile; save it as RGB")
    if image.mode in ("I", "F"):
        raise DataError(f"not 8 or 16 unsigned bits per channel (mode {image.mode} of Pillow); save it as PNG")
    if ";16" in str(image.tile) and "transparency" in image.info:
        raise DataError("a transparent color of 16 bits; save it with 8 bits")
    if image.format == "JPEG2000" and image.mode[:1] != "I" and _jpeg2000_bits(Path(image.filename)) != {8}:
        raise DataError("JPEG 2000 of other than 8 bits per channel; save it with 8 bits")  # Pillow 13 overflows


def _jpeg2000_bits(path: Path) -> set[int]:
    """Return the bits per component, from the marker SIZ of the codestream (ISO/IEC 15444-1, A.5.1)."""
    content = path.read_bytes()
    start = content.index(b"\xff\x4f\xff\x51")
    n_components = int.from_bytes(content[start + 40 : start + 42])
    return {content[start + 42 + 3 * component] + 1 for component in range(n_components)}


def _check_tiff(image: Any) -> None:
    """Refuse TIFF files of scanners, and kinds that Pillow reads wrongly or that are not tested.

    Source:
        TIFF 6.0 for the numbers of tags and their defaults.
    """
    tags = image.tag_v2
    description, software = str(tags.get(270, "")), str(tags.get(305, ""))
    signs = (description[:6] == "Aperio", 65420 in tags, "<iScan" in description, "<scn" in description[:200])
    if any(signs) or software.startswith(("Philips", "MedScan")):
        raise DataError(f"whole-slide file ({description[:100]!r}); cut regions of about 0.5 mm out of it")
    if description.startswith("ImageJ=") and "images=" in description and "images=1\n" not in description:
        raise DataError("ImageJ stack of several images; save the one to predict")
    n_samples, extra = tags.get(277, 1), tuple(tags.get(338, ()))
    bits = set(tags.get(258, (1,)))
    kind = (tags.get(262), max(bits))
    n_colors = 3 if kind[0] in (2, 6) else 1
    rules = {
        f"PhotometricInterpretation {kind[0]} with {kind[1]} bits": kind in _TIFF_KINDS and len(bits) == 1,
        f"compression {tags.get(259, 1)}": tags.get(259, 1) in _TIFF_COMPRESSIONS,
        "separate planes of 16 bits": tags.get(284, 1) == 1 or kind[1] == 8,
        "YCbCr without JPEG compression": kind[0] != 6 or tags.get(259) == 7,
        f"sample format {tags.get(339)}": set(tags.get(339, (1,))) == {1},
        f"fill order {tags.get(266)}": tags.get(266, 1) == 1,
        f"{n_samples} samples per pixel": n_samples == n_colors + len(extra) and len(extra) <= 1,
    }
    faults = [fault for fault, holds in rules.items() if not holds]
    if faults:
        raise DataError(f"TIFF with {'; '.join(faults)}; save it as PNG or as TIFF of 8-bit RGB")


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded picture to mode RGB, in the orientation of its camera.

    Raises:
        DataError: If all of it is transparent.
    """
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        above = image.convert("RGBA")
        if not np.asarray(above)[..., 3].any():
            raise DataError("all pixels are transparent; save it without transparency")
        return Image.alpha_composite(Image.new("RGBA", above.size, "white"), above).convert("RGB")
    return image.convert("RGB")


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
