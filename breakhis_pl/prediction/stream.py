"""Pictures decoded ahead by threads, in their order, a bounded number at a time in memory (no torch)."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from breakhis_pl.data.domain import appearance
from breakhis_pl.data.pictures import NO_MEMORY, read_picture
from breakhis_pl.data.resampling import resized
from breakhis_pl.data.stain import StainTarget
from breakhis_pl.errors import ImageError


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """An image as a network takes it.

    Attributes:
        path: As given.
        width: Of the picture in pixels, in the direction its camera was held.
        height: Likewise.
        pixels: uint8, (size, size, 3), RGB.
        features: How it looks, from `appearance`; (11,).
    """

    path: str
    width: int
    height: int
    pixels: npt.NDArray[np.uint8]
    features: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An image that cannot be read, and why."""

    path: str
    reason: str


def decode(path: str, image_size: int, stain: StainTarget | None = None) -> Decoded | Unreadable:
    """A file as a network takes it.

    Args:
        path: The file.
        image_size: Side of the result in pixels.
        stain: What its stains are brought to, as those of the train images were.
    """
    try:
        picture = read_picture(Path(path))
        pixels = resized(picture.pixels, image_size)
        pixels = pixels if stain is None else stain.applied(pixels)
        return Decoded(path, picture.width, picture.height, pixels, appearance(pixels))
    except ImageError as error:
        return Unreadable(path, str(error))
    except MemoryError:
        return Unreadable(path, NO_MEMORY)


def decoded(
    paths: Iterable[str], *, image_size: int, stain: StainTarget | None = None, n_threads: int, n_ahead: int
) -> Iterator[Decoded | Unreadable]:
    """Every file, in order.

    Args:
        paths: The files.
        image_size: Side of the results in pixels.
        stain: As in `decode`.
        n_threads: How many files are worked on at once.
        n_ahead: How many results may wait, those in work included.
    """
    rest = iter(paths)
    pool = ThreadPoolExecutor(n_threads)
    try:
        waiting: deque[Future[Decoded | Unreadable]] = deque(
            pool.submit(decode, path, image_size, stain) for path in islice(rest, n_ahead)
        )
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(decode, path, image_size, stain) for path in islice(rest, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
