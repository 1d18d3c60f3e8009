"""Decoded and resized images in one array on disk, made once per set of files and image size.

A store is a folder of two files: `pixels.npy`, uint8 (n_images, size, size, 3), RGB, and `store.json`, which says what
lies in it, with a checksum and the sums of the pixels of each image, and one checksum of all that. The folder is named
after the names, lengths and modification times of the image files and the image size, so that opening a store reads no
image file. It is built in a folder aside and renamed, so that what bears the name is whole.
"""

import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional
from tqdm import tqdm

from breakhis_pl.cores import n_cores
from breakhis_pl.data.index import ImageRecord
from breakhis_pl.data.png import UInt8Array, read_png
from breakhis_pl.errors import ImageError, StorageError, listed
from breakhis_pl.files import clear_leftovers, folder_aside, open_file, put_in_place

Value = TypeVar("Value")
Int64Array: TypeAlias = npt.NDArray[np.int64]

VERSION = 3
"""Of the store's layout and of the way images are decoded and resized; another one makes another store."""

SPARE_BYTES = 50_000_000
"""Room that is left on the disk when a store has been built."""

_FACT_BYTES = 1_000
"""That `store.json` has for each image, at most: two hundred are used."""


@dataclass(frozen=True, slots=True)
class Store:
    """An open store.

    Attributes:
        folder: Where it lies.
        pixels: uint8, (n_images, size, size, 3), RGB, in the order of the records it was opened for.
        checksums: SHA-256 of each image's pixels, hexadecimal.
        sums: int64, (n_images, 2, 3): sums of the values and of their squares over the pixels, per channel.
        built: Whether it was built just now.
    """

    folder: Path
    pixels: UInt8Array
    checksums: tuple[str, ...]
    sums: Int64Array
    built: bool

    def checksum(self) -> str:
        """SHA-256 over the checksums of all images, in their order: equal pixels, equal checksum."""
        return f"sha256:{hashlib.sha256(''.join(self.checksums).encode()).hexdigest()}"


def open_store(
    records: Sequence[ImageRecord], *, image_size: int, cache_dir: Path, show_progress: bool = True
) -> Store:
    """The store of these images, built if there is none that is whole.

    Args:
        records: The images, in the order of the store's rows.
        image_size: Side in pixels that images are resized to.
        cache_dir: Folder of all stores.
        show_progress: Whether a progress bar is shown on a terminal while building.

    Raises:
        ImageError: If files are no readable images; all of them in one message.
        StorageError: If the cache folder cannot be written to, or there is not enough room on its disk.
    """

    def image_of(row: int) -> UInt8Array:
        return decode(records[row].path, image_size)

    folder = cache_dir / f"{image_size}px-{_key(records, image_size)}"
    return open_or_build(
        folder, records, image_size=image_size, image_of=image_of, show_progress=show_progress, doing="decoding images"
    )


def open_or_build(
    folder: Path,
    records: Sequence[ImageRecord],
    *,
    image_size: int,
    image_of: Callable[[int], UInt8Array],
    show_progress: bool,
    doing: str,
) -> Store:
    """The store in a folder, built if there is none that is whole.

    Args:
        folder: Of the store; its name says what lies in it, all of it.
        records: The images, in the order of the store's rows.
        image_size: Side of the images in pixels.
        image_of: The image of a row, uint8, (image_size, image_size, 3); called from several threads.
        show_progress: Whether a progress bar is shown on a terminal while building.
        doing: What it says.

    Raises:
        ImageError: If `image_of` does; all of them in one message.
        StorageError: If the folder cannot be written, or there is not enough room on its disk.
    """
    cache_dir = folder.parent
    clear_leftovers(cache_dir, of="*px-*")
    store = _opened(folder, records, image_size)
    if store is not None:
        return store
    try:
        with folder_aside(folder) as aside:
            _check_disk(aside, n_bytes=len(records) * image_size**2 * 3)
            pixels, checksums, sums = _build(
                aside, records, image_size=image_size, image_of=image_of, show_progress=show_progress, doing=doing
            )
            put_in_place(aside, folder, is_whole=lambda: _opened(folder, records, image_size) is not None)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"{cache_dir} cannot take the store of decoded images ({error}); make room or give access, "
            "or set data.cache_dir to a folder elsewhere"
        ) from error
    return Store(folder=folder, pixels=pixels, checksums=checksums, sums=sums, built=True)


def verify_store(store: Store, records: Sequence[ImageRecord], *, show_progress: bool = True) -> None:
    """Decodes all files again and compares them with the store.

    Raises:
        ImageError: Naming the images whose pixels are not those of the store.
    """
    image_size = store.pixels.shape[1]

    def checksum(row: int) -> str:
        return _checksum(decode(records[row].path, image_size))

    found = _read_all(checksum, records, show_progress=show_progress, doing="verifying images")
    changed = [
        record.name.file_name for record, now, then in zip(records, found, store.checksums, strict=True) if now != then
    ]
    if changed:
        raise ImageError(
            f"{len(changed)} of {len(records)} images are not those of the store {store.folder}: {listed(changed)}; "
            "delete the store if the files are right"
        )


def decode(path: Path, image_size: int) -> UInt8Array:
    """An image file as a square array.

    Bilinear and antialiased; the aspect is not kept. torch's resampling differs from Pillow's, which torchvision's
    Resize uses on Pillow images, by one of 255 levels at most, and takes a third of its time.

    Args:
        path: A PNG file.
        image_size: Side of the result in pixels.

    Returns:
        uint8, (image_size, image_size, 3), RGB.

    Raises:
        ImageError: As `read_png`: if the file is not a whole 8-bit RGB PNG of sensible size.
    """
    pixels = read_png(path)  # (height, width, 3)
    if pixels.shape[:2] == (image_size, image_size):
        return pixels
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None]  # (1, 3, height, width)
    resized = functional.interpolate(batch, (image_size, image_size), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).contiguous().numpy()  # (image_size, image_size, 3)


def pixel_sums(image: UInt8Array) -> Int64Array:
    """Sums over an image, for `channel_statistics`.

    Args:
        image: uint8, (height, width, 3).

    Returns:
        int64, (2, 3): of the values and of their squares, per channel.
    """
    values = image.reshape(len(image), -1).astype(np.uint32)  # (height, 3 * width)
    by_column = np.stack(  # (2, 3 * width); squares of 66,000 rows fit into 32 bits
        [values.sum(axis=0, dtype=np.uint32), np.square(values, out=values).sum(axis=0, dtype=np.uint32)]
    )
    sums: Int64Array = by_column.reshape(2, -1, 3).sum(axis=1).astype(np.int64)
    return sums


def channel_statistics(
    sums: Int64Array, *, n_pixels: int
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel over all pixels of some images.

    Taken from sums of integers, so that they depend on no order of summation and are exact until the last step.

    Args:
        sums: int64, (n_images, 2, 3), from `pixel_sums`.
        n_pixels: Of all these images together.

    Returns:
        Mean and population standard deviation of red, green and blue, of values in [0, 1].
    """
    means, deviations = [], []
    for channel in range(3):
        total, squares = (sum(int(value) for value in sums[:, power, channel]) for power in range(2))
        means.append(float(Fraction(total, 255 * n_pixels)))
        deviations.append(math.sqrt(Fraction(squares * n_pixels - total**2, (255 * n_pixels) ** 2)))
    return (means[0], means[1], means[2]), (deviations[0], deviations[1], deviations[2])


def _key(records: Iterable[ImageRecord], image_size: int) -> str:
    """Name of a store: changes with any name, length, modification time, with the image size and the version."""
    digest = hashlib.sha256(f"{VERSION} {image_size}\n".encode())
    for record in records:
        digest.update(f"{record.name.file_name}\t{record.n_bytes}\t{record.modified_ns}\n".encode())
    return digest.hexdigest()[:16]


def _check_disk(folder: Path, *, n_bytes: int) -> None:
    """Looks at the room before anything is decoded.

    Raises:
        StorageError: If the disk has less room.
    """
    free = shutil.disk_usage(folder).free
    if free < n_bytes + SPARE_BYTES:
        raise StorageError(
            f"{folder.parent}: {free / 1e6:,.0f} MB free, {(n_bytes + SPARE_BYTES) / 1e6:,.0f} MB needed for decoded "
            "images; make room, or set data.cache_dir to a folder elsewhere"
        )


def _opened(folder: Path, records: Sequence[ImageRecord], image_size: int) -> Store | None:
    """The store in a folder if it is whole; None if there is none, or if it is damaged."""
    try:
        return _read(folder, records, image_size)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _read(folder: Path, records: Sequence[ImageRecord], image_size: int) -> Store | None:
    """The store in a folder; None if it is another one or does not fit its checksums.

    Raises:
        Exception: Whatever the parsers raise where the files hold something else.
    """
    names = [record.name.file_name for record in records]
    with open_file(folder / "store.json") as file:
        facts = json.loads(file.read(_FACT_BYTES * (len(names) + 10)))
    if facts.pop("checksum") != _facts_checksum(facts):
        return None
    if (facts["version"], facts["image_size"], facts["names"]) != (VERSION, image_size, names):
        return None
    checksums, sums = tuple(facts["checksums"]), np.array(facts["sums"], dtype=np.int64)
    pixels = np.empty((len(names), image_size, image_size, 3), dtype=np.uint8)
    header = _npy_header(pixels)
    with open_file(folder / "pixels.npy") as file, ThreadPoolExecutor(n_cores()) as pool:
        if os.fstat(file.fileno()).st_size != len(header) + pixels.nbytes or file.read(len(header)) != header:
            return None
        found = []
        for image in pixels:
            if file.readinto(image.reshape(-1).data) != image.nbytes:
                return None
            found.append(pool.submit(_checksum, image))
        if tuple(each.result() for each in found) != checksums or sums.shape != (len(names), 2, 3):
            return None
    return Store(folder=folder, pixels=pixels, checksums=checksums, sums=sums, built=False)


def _build(
    folder: Path,
    records: Sequence[ImageRecord],
    *,
    image_size: int,
    image_of: Callable[[int], UInt8Array],
    show_progress: bool,
    doing: str,
) -> tuple[UInt8Array, tuple[str, ...], Int64Array]:
    """Makes the images and writes the two files of a store; gives what `Store` holds."""
    pixels = np.empty((len(records), image_size, image_size, 3), dtype=np.uint8)
    sums = np.empty((len(records), 2, 3), dtype=np.int64)
    checksums: list[str] = []

    def fill(row: int) -> str:
        pixels[row] = image_of(row)
        sums[row] = pixel_sums(pixels[row])
        return _checksum(pixels[row])

    with (folder / "pixels.npy").open("wb") as file:
        file.write(_npy_header(pixels))
        for checksum in _read_all(fill, records, show_progress=show_progress, doing=doing):
            file.write(pixels[len(checksums)].data)  # while the threads go on
            checksums.append(checksum)
    facts = {
        "version": VERSION,
        "image_size": image_size,
        "resized": "torch, bilinear, antialiased",
        "names": [record.name.file_name for record in records],
        "checksums": checksums,
        "sums": sums.tolist(),
    }
    facts["checksum"] = _facts_checksum(facts)
    (folder / "store.json").write_text(json.dumps(facts), encoding="utf-8")
    return pixels, tuple(checksums), sums


def _npy_header(pixels: UInt8Array) -> bytes:
    """The first bytes of `pixels.npy`; what begins otherwise is not parsed at all."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(pixels))
    return header.getvalue()


def _facts_checksum(facts: Mapping[str, Any]) -> str:
    """Of `store.json`, which holds the sums that no checksum of pixels covers."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def in_threads(work: Callable[[int], Value], n_rows: int, *, show_progress: bool, doing: str) -> Iterator[Value]:
    """What `work` gives for each row, in order, by as many threads as there are cores (Pillow releases the lock)."""
    pool = ThreadPoolExecutor(n_cores())
    try:
        futures = [pool.submit(work, row) for row in range(n_rows)]
        for future in tqdm(futures, desc=doing, unit=" images", disable=None if show_progress else True):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read_all(
    read: Callable[[int], str], records: Sequence[ImageRecord], *, show_progress: bool, doing: str
) -> Iterator[str]:
    """What `read` gives for each row, in order.

    Raises:
        ImageError: After all files were tried, naming those that failed.
    """

    def tried(row: int) -> str | ImageError:
        try:
            return read(row)
        except ImageError as error:
            return error

    faults: list[str] = []
    for found in in_threads(tried, len(records), show_progress=show_progress, doing=doing):
        if isinstance(found, ImageError):
            faults.append(str(found))
        elif not faults:
            yield found
    if faults:
        folder = os.path.commonpath([record.path.parent for record in records])
        raise ImageError(
            f"{len(faults)} of {len(records)} files are no usable images: {_lines(faults)}\n"
            f"expected whole PNG files of 8-bit RGB; mend or replace them in {folder} "
            "(where images are drawn: delete that folder)"
        )


def _lines(faults: Sequence[str], limit: int = 10) -> str:
    """The first faults, a line each, then how many more there are."""
    more = [f"and {len(faults) - limit} more"] if len(faults) > limit else []
    return "".join(f"\n  {line}" for line in [*faults[:limit], *more])


def _checksum(image: UInt8Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()
