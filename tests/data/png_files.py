"""Writes PNG files byte by byte: those that Pillow does not write, and those that nobody should."""

import random
import struct
import zlib
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tests.evaluation.mutations import mutated_bytes

SIGNATURE = b"\x89PNG\r\n\x1a\n"
RGB, PALETTE = 2, 3
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    """A chunk with its length and its checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def header(width: int, height: int, *, depth: int = 8, color: int = RGB, interlace: int = 0) -> bytes:
    """The chunk that says what the pixels are."""
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace))


def noise(width: int = 20, height: int = 16) -> npt.NDArray[np.uint8]:
    """Pixels; uint8, (height, width, 3)."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def rows(pixels: npt.NDArray[np.generic]) -> bytes:
    """Lines of pixels, each after the byte that says that it is not filtered."""
    return b"".join(b"\0" + line.tobytes() for line in pixels)


def interlaced(pixels: npt.NDArray[np.uint8]) -> bytes:
    """The lines of the seven passes of Adam7."""
    parts = (pixels[top::down, left::across] for top, left, down, across in _ADAM7)
    return b"".join(rows(part) for part in parts if part.size)


def png(
    pixels: npt.NDArray[np.uint8] | None = None, *, before: bytes = b"", after: bytes = b"", n_parts: int = 1
) -> bytes:
    """A PNG of 8-bit RGB with chunks before and after its pixels, and these in several parts."""
    pixels = noise() if pixels is None else pixels
    data = zlib.compress(rows(pixels))
    cuts = [len(data) * part // n_parts for part in range(n_parts + 1)]
    parts = b"".join(chunk(b"IDAT", data[start:end]) for start, end in pairwise(cuts))
    return SIGNATURE + header(pixels.shape[1], pixels.shape[0]) + before + parts + after + chunk(b"IEND")


def of_kind(pixels: npt.NDArray[np.generic], *, depth: int, color: int, before: bytes = b"") -> bytes:
    """A PNG whose pixels are of any kind, their last axis the channels."""
    start = SIGNATURE + header(pixels.shape[1], pixels.shape[0], depth=depth, color=color) + before
    return start + chunk(b"IDAT", zlib.compress(rows(pixels))) + chunk(b"IEND")


def with_pixel_data(data: bytes, *, width: int = 20, height: int = 16, interlace: int = 0) -> bytes:
    """A PNG of 8-bit RGB around what is given as its compressed pixels."""
    return SIGNATURE + header(width, height, interlace=interlace) + chunk(b"IDAT", data) + chunk(b"IEND")


def exif(orientation: int, *, order: str = ">", kind: int = 3) -> bytes:
    """Exif data with an orientation and nothing else."""
    start = b"MM\0*" if order == ">" else b"II*\0"
    value = struct.pack(f"{order}HHI", 0x0112, kind, 1) + struct.pack(f"{order}HH", orientation, 0)
    return chunk(b"eXIf", start + struct.pack(f"{order}IH", 8, 1) + value + bytes(4))


def compressed_zeros(n_bytes: int) -> bytes:
    """Zeros that take a thousandth of their length."""
    packer = zlib.compressobj(1)
    portion = bytes(1_000_000)
    return b"".join(packer.compress(portion) for _ in range(n_bytes // len(portion))) + packer.flush()


def mutated_png(content: bytes, chance: random.Random) -> bytes:
    """Bytes are changed anywhere, or chunks are, with checksums that fit."""
    if chance.random() < 0.3:
        return mutated_bytes(content, chance)
    parts = _parts(content)
    for _ in range(chance.choice((1, 1, 2, 4))):
        place = chance.randrange(len(parts))
        kind, body = parts[place]
        match chance.randrange(6):
            case 0:
                parts.insert(chance.randrange(len(parts) + 1), (kind, body))
            case 1 if len(parts) > 1:
                del parts[place]
            case 2:
                new = chance.choice((b"tEXt", b"zTXt", b"iCCP", b"PLTE", b"tRNS", b"eXIf", b"acTL", b"fdAT", b"gAMA"))
                parts.insert(place, (new, chance.randbytes(chance.choice((0, 1, 9, 300)))))
            case 3:
                data = (b"", rows(noise())[:-1], rows(noise()) * 2, chance.randbytes(60), bytes(100_000))
                parts[place] = (b"IDAT", zlib.compress(chance.choice(data)))
            case 4 if kind == b"IHDR":
                values = (chance.choice((0, 1, 20, 4000, 2**31, 2**32 - 1)), chance.choice((0, 16, 4000, 2**32 - 1)))
                kinds = (
                    chance.choice((1, 8, 8, 8, 16)),
                    chance.choice((0, 2, 2, 2, 3, 6)),
                    0,
                    0,
                    chance.choice((0, 1, 7)),
                )
                parts[place] = (kind, struct.pack(">IIBBBBB", *values, *kinds))
            case _:
                parts[place] = (kind, mutated_bytes(body, chance) if body else b"\0")
    return SIGNATURE + b"".join(chunk(kind, body) for kind, body in parts)


def _parts(content: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and body of each chunk of a whole file."""
    parts, start = [], len(SIGNATURE)
    while start < len(content):
        (length,) = struct.unpack_from(">I", content, start)
        parts.append((content[start + 4 : start + 8], content[start + 8 : start + 8 + length]))
        start += 12 + length
    return parts
