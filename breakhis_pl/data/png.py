"""PNG files from anywhere as pixels: whole ones of 8-bit RGB are read right, all others refused by name.

Pillow reads 16 bits per channel as 8, compares no checksum of pixels, and lets text, profiles and animations take
memory. So a file's chunks are looked at here, and Pillow is given none but those that hold pixels.
"""

import io
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from isal import isal_zlib
from PIL import Image

from breakhis_pl.errors import ImageError
from breakhis_pl.files import open_file

UInt8Array: TypeAlias = npt.NDArray[np.uint8]

LARGEST_IMAGE = 20_000_000
"""Pixels of an image that is still decoded; 60 times those of an original."""

LONGEST_SIDE = 65_535
"""Pixels of a side; 94 times that of a BreakHis image."""

LARGEST_FILE = 100_000_000
"""Bytes of a file that is still read; `LARGEST_IMAGE` takes 60 million without any compression."""

MOST_CHUNKS = 100_000
"""Of a file; `LARGEST_IMAGE` in the usual portions of 8,192 bytes has 7,300."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_OTHERS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"BM", "BMP"),
    (b"RIFF", "WebP"),
)
_COLORS = {0: "gray", 2: "RGB", 3: "palette", 4: "gray with transparency", 6: "RGB with transparency"}
_ORIENTATION = 0x0112  # tag of Exif 2.32, table 4
_LARGEST_STORED = 65_535  # bytes of a stored block, RFC 1951
_OPTIONAL = 0x20  # bit of a chunk's first letter: a reader may leave it out


def read_png(path: Path) -> UInt8Array:
    """The pixels of a PNG file.

    Text, color profiles and gamma change nothing: values are taken as they are stored. Bytes behind the end of the PNG
    are ignored, as its specification wants. Readers do not agree whether an orientation in Exif data turns the pixels
    of a PNG, so a file that asks for being turned or mirrored is refused.

    Args:
        path: The file.

    Returns:
        uint8, (height, width, 3), RGB.

    Raises:
        ImageError: If the file is not a whole 8-bit RGB PNG of sensible size; the text names it, without its folder.

    Source:
        Portable Network Graphics (PNG) Specification, third edition, W3C.
    """
    try:
        return _decoded(_pixel_chunks(_content(path)))
    except ImageError as error:
        raise ImageError(f"{path.name}: {error}") from error.__cause__
    except OSError as error:
        raise ImageError(f"{path.name}: {error.strerror or error}") from error


def _content(path: Path) -> bytes:
    """The bytes of a file, if they may be those of a PNG.

    Raises:
        OSError: If it cannot be read.
        ImageError: If it is empty, too large or something else.
    """
    with open_file(path) as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise ImageError(f"more than {LARGEST_FILE // 10**6} MB cannot be right")
    if not content:
        raise ImageError("empty file (0 bytes)")
    if content[: len(_SIGNATURE)] != _SIGNATURE:
        other = next((f" but {name}" for start, name in _OTHERS if content.startswith(start)), "")
        raise ImageError(f"no PNG{other} ({len(content)} bytes)")
    return content


def _pixel_chunks(content: bytes) -> list[memoryview]:
    """The chunks that hold pixels: the header, the compressed data, the end.

    Raises:
        ImageError: If the file is damaged, or its pixels are not plain 8-bit RGB.
    """
    whole = memoryview(content)
    kept = []
    before = b""
    for kind, chunk in _chunks(whole):
        if (kind == b"IHDR") != (before == b""):
            raise ImageError("damaged: its header is not at its start")
        match kind:
            case b"IHDR":
                _check_header(chunk[8:-4])
            case b"IDAT" | b"IEND":
                pass
            case b"tRNS":
                raise ImageError("one color is transparent, expected 8-bit RGB without transparency")
            case b"acTL":
                raise ImageError("an animation, expected a single picture")
            case b"eXIf":
                _check_orientation(chunk[8:-4])
            case _ if kind != b"PLTE" and not kind[0] & _OPTIONAL:
                raise ImageError(f"damaged: a part of unknown kind {kind!r}")
            case _:
                pass
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            kept.append(chunk)
        before = kind
    return kept


def _chunks(content: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Name and bytes of each chunk, its length and its checksum included.

    Raises:
        ImageError: If the file ends early, or a checksum differs.
    """
    start = len(_SIGNATURE)
    for _ in range(MOST_CHUNKS):
        if start + 12 > len(content):
            raise ImageError(f"truncated after {len(content):,} bytes")
        length, kind = struct.unpack_from(">I4s", content, start)
        end = start + 12 + length
        if end > len(content):
            raise ImageError(f"truncated after {len(content):,} bytes")
        if struct.pack(">I", isal_zlib.crc32(content[start + 4 : end - 4])) != content[end - 4 : end]:
            raise ImageError(f"damaged: the checksum of its part {kind!r} at byte {start:,} differs")
        yield kind, content[start:end]
        if kind == b"IEND":
            return
        start = end
    raise ImageError(f"more than {MOST_CHUNKS:,} parts cannot be right")


def _check_header(body: memoryview) -> None:
    """Looks at size and kind of the pixels before there is memory for them.

    Raises:
        ImageError: If they are not 8-bit RGB of sensible size.
    """
    if len(body) != 13:
        raise ImageError("damaged: its header has another length")
    width, height, depth, color, compression, filtering, interlace = struct.unpack(">IIBBBBB", body)
    if not 0 < width * height <= LARGEST_IMAGE or max(width, height) > LONGEST_SIDE:
        raise ImageError(f"{width}x{height} pixels cannot be right")
    if (depth, color) != (8, 2):
        raise ImageError(f"{depth}-bit {_COLORS.get(color, f'color type {color}')}, expected 8-bit RGB")
    if (compression, filtering) != (0, 0) or interlace not in {0, 1}:
        raise ImageError("damaged: its header names methods that no PNG has")


def _check_orientation(exif: memoryview) -> None:
    """Looks for an orientation that a reader may or may not follow.

    Raises:
        ImageError: If there is one.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(exif[:4]))
    if order is None:
        return
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (n_entries,) = struct.unpack_from(f"{order}H", exif, start)
        for place in range(start + 2, start + 2 + 12 * n_entries, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, place)
            if tag == _ORIENTATION and 2 <= value <= 8:
                raise ImageError(f"to be turned or mirrored (Exif orientation {value}), expected pixels as they are")
    except struct.error:
        return


def _decoded(chunks: Sequence[memoryview]) -> UInt8Array:
    """The pixels of a PNG that was looked at; uint8, (height, width, 3).

    Raises:
        ImageError: If they are not all there.
    """
    width, height, *_, interlace = struct.unpack(">IIBBBBB", chunks[0][8:-4])
    try:
        if interlace:
            with Image.open(io.BytesIO(b"".join((_SIGNATURE, *chunks))), formats=["PNG"]) as image:
                return np.array(image)  # (height, width, 3)
        rows = _inflated(b"".join(chunk[8:-4] for chunk in chunks[1:-1]), n_bytes=height * (1 + 3 * width))
        return np.array(Image.frombytes("RGB", (width, height), _stored(rows), "zip", "RGB"))
    except ImageError:
        raise
    except Exception as error:  # Pillow and ISA-L raise whatever their parsers do
        raise ImageError(f"its pixels cannot be decoded: {error}") from error


def _inflated(data: bytes, *, n_bytes: int) -> bytes:
    """What a zlib stream holds, by ISA-L, in less than half of zlib's time.

    Raises:
        ImageError: If it holds less or more.
    """
    stream = isal_zlib.decompressobj()
    content: bytes = stream.decompress(data, n_bytes)
    is_more = bool(stream.decompress(stream.unconsumed_tail, 1)) if not stream.eof else False
    if len(content) < n_bytes or is_more or not stream.eof:
        raise ImageError(f"its pixels are {'more' if is_more else 'fewer'} than its header says")
    return content


def _stored(content: bytes) -> bytes:
    """A zlib stream that holds bytes as they are: Pillow undoes the filters of rows, and finds nothing to inflate."""
    parts: list[bytes | memoryview] = [b"\x78\x01"]
    whole = memoryview(content)
    for start in range(0, len(content), _LARGEST_STORED):
        part = whole[start : start + _LARGEST_STORED]
        is_last = start + len(part) == len(content)
        parts += [struct.pack("<BHH", is_last, len(part), len(part) ^ 0xFFFF), part]
    parts.append(struct.pack(">I", isal_zlib.adler32(content)))
    return b"".join(parts)
