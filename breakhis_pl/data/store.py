"""Decoded and resized images in one array on disk, made once per set of files and image size.

A store is a folder of two files: `pixels.npy`, uint8 (n_images, size, size, 3), RGB, and `store.json`, which says what
lies in it, with a checksum and the sums of the pixels of each image. Its folder is named after the names, lengths and
modification times of the image files and the image size, so that opening a store reads no image file. It is built in a
folder aside and renamed, so that what bears the name is whole.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch.nn import functional
from tqdm import tqdm

from breakhis_pl.data.index import ImageRecord
from breakhis_pl.errors import ImageError, StorageError, listed
from breakhis_pl.files import folder_aside

UInt8Array: TypeAlias = npt.NDArray[np.uint8]
Int64Array: TypeAlias = npt.NDArray[np.int64]

VERSION = 2
"""Of the store's layout and of the way images are decoded and resized; another one makes another store."""

SPARE_BYTES = 50_000_000
"""Room that is left on the disk when a store has been built."""

PATIENCE = 10
"""How often a store is put in its place while other processes do the same."""

LARGEST_IMAGE = 50_000_000
"""Pixels of an image that is still decoded; 150 times those of an original."""


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
        StorageError: If there is not enough room on the disk.
        OSError: If the cache folder cannot be written to.
    """
    folder = cache_dir / f"{image_size}px-{_key(records, image_size)}"
    store = _opened(folder, records, image_size)
    if store is not None:
        return store
    with folder_aside(folder) as aside:
        _check_disk(aside, n_bytes=len(records) * image_size**2 * 3)
        pixels, checksums, sums = _build(aside, records, image_size=image_size, show_progress=show_progress)
        _put_in_place(aside, folder, records)
    return Store(folder=folder, pixels=pixels, checksums=checksums, sums=sums, built=True)


def verify_store(store: Store, records: Sequence[ImageRecord], *, show_progress: bool = True) -> None:
    """Decodes all files again and compares them with the store.

    Raises:
        ImageError: Naming the images whose pixels are not those of the store.
    """
    image_size = store.pixels.shape[1]

    def checksum(row: int) -> str:
        return _checksum(decode(records[row].path, image_size))

    found = _in_threads(checksum, records, show_progress=show_progress, doing="verifying images")
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
        ImageError: If the file is not a whole 8-bit RGB PNG of sensible size.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.width * image.height > LARGEST_IMAGE:
                raise ImageError(f"{path.name}: {image.width}x{image.height} pixels are more than can be right")
            if image.mode != "RGB":
                raise ImageError(f"{path.name}: mode {image.mode}, expected 8-bit RGB")
            pixels = np.array(image)  # (height, width, 3)
    except UnidentifiedImageError:
        length = path.stat().st_size
        raise ImageError(f"{path.name}: {'no PNG' if length else 'empty file'} ({length} bytes)") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{path.name}: {error}") from error
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
        facts = json.loads((folder / "store.json").read_text(encoding="utf-8"))
        checksums = tuple(facts["checksums"])
        sums = np.array(facts["sums"], dtype=np.int64)
        pixels = np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    names = [record.name.file_name for record in records]
    shape = (len(names), image_size, image_size, 3)
    if (facts.get("version"), facts.get("names")) != (VERSION, names) or pixels.shape != shape:
        return None
    if pixels.dtype != np.uint8 or len(checksums) != len(names) or sums.shape != (len(names), 2, 3):
        return None
    in_memory = np.empty(pixels.shape, dtype=np.uint8)

    def copy_row(row: int) -> str:
        in_memory[row] = pixels[row]
        return _checksum(in_memory[row])

    with ThreadPoolExecutor(_n_workers()) as pool:
        if tuple(pool.map(copy_row, range(len(names)))) != checksums:
            return None
    return Store(folder=folder, pixels=in_memory, checksums=checksums, sums=sums, built=False)


def _build(
    folder: Path, records: Sequence[ImageRecord], *, image_size: int, show_progress: bool
) -> tuple[UInt8Array, tuple[str, ...], Int64Array]:
    """Decodes the images and writes the two files of a store; gives what `Store` holds."""
    pixels = np.empty((len(records), image_size, image_size, 3), dtype=np.uint8)
    sums = np.empty((len(records), 2, 3), dtype=np.int64)
    checksums: list[str] = []

    def fill(row: int) -> str:
        pixels[row] = decode(records[row].path, image_size)
        sums[row] = pixel_sums(pixels[row])
        return _checksum(pixels[row])

    with (folder / "pixels.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(pixels))
        for checksum in _in_threads(fill, records, show_progress=show_progress, doing="decoding images"):
            file.write(pixels[len(checksums)].data)  # while the threads go on decoding
            checksums.append(checksum)
    facts = {
        "version": VERSION,
        "image_size": image_size,
        "resized": "torch, bilinear, antialiased",
        "names": [record.name.file_name for record in records],
        "checksums": checksums,
        "sums": sums.tolist(),
    }
    (folder / "store.json").write_text(json.dumps(facts), encoding="utf-8")
    return pixels, tuple(checksums), sums


def _put_in_place(aside: Path, folder: Path, records: Sequence[ImageRecord]) -> None:
    """Renames a finished store; a damaged one in its place is moved away, a whole one of another process stays."""
    image_size = int(folder.name.partition("px-")[0])
    for _ in range(PATIENCE):
        try:
            aside.replace(folder)
        except OSError:
            if not folder.exists():
                raise
            if _opened(folder, records, image_size) is not None:
                return
            with folder_aside(folder) as away, contextlib.suppress(FileNotFoundError):
                folder.replace(away / "damaged")
        else:
            return


def _in_threads(
    read: Callable[[int], str], records: Sequence[ImageRecord], *, show_progress: bool, doing: str
) -> Iterator[str]:
    """What `read` gives for each row, in order, by as many threads as there are cores (Pillow releases the lock).

    Raises:
        ImageError: After all files were tried, naming those that failed.
    """
    faults: list[str] = []
    pool = ThreadPoolExecutor(_n_workers())
    try:
        readings = [pool.submit(read, row) for row in range(len(records))]
        for reading in tqdm(readings, desc=doing, unit=" images", disable=None if show_progress else True):
            try:
                result = reading.result()
            except ImageError as error:
                faults.append(str(error))
                continue
            if not faults:
                yield result
    finally:
        pool.shutdown(cancel_futures=True)
    if faults:
        raise ImageError(f"{len(faults)} of {len(records)} files are no usable images: {_lines(faults)}")


def _lines(faults: Sequence[str], limit: int = 10) -> str:
    """The first faults, a line each, then how many more there are."""
    more = [f"and {len(faults) - limit} more"] if len(faults) > limit else []
    return "".join(f"\n  {line}" for line in [*faults[:limit], *more])


def _checksum(image: UInt8Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()


def _n_workers() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
