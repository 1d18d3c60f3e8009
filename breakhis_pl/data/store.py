"""Decoded and resized images in one array on disk, made once per set of files and image size.

A store is a folder of two files: `pixels.npy`, uint8 (n_images, size, size, 3), RGB, and `store.json`, which says what
lies in it, with a checksum of the pixels of each image. Its folder is named after the names, lengths and modification
times of the image files and the image size, so that opening a store reads no image file. It is built in a folder
aside and renamed, so that what bears the name is whole.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from breakhis_pl.data.index import ImageRecord
from breakhis_pl.errors import ImageError, StorageError, listed
from breakhis_pl.files import folder_aside

UInt8Array: TypeAlias = npt.NDArray[np.uint8]

VERSION = 1
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
        built: Whether it was built just now.
    """

    folder: Path
    pixels: UInt8Array
    checksums: tuple[str, ...]
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
        _build(aside, records, image_size=image_size, show_progress=show_progress)
        _put_in_place(aside, folder, records)
    built = _opened(folder, records, image_size)
    if built is None:
        raise ImageError(f"the store {folder} is damaged right after it was built; check the disk it lies on")
    return Store(folder=built.folder, pixels=built.pixels, checksums=built.checksums, built=True)


def verify_store(store: Store, records: Sequence[ImageRecord], *, show_progress: bool = True) -> None:
    """Decodes all files again and compares them with the store.

    Raises:
        ImageError: Naming the images whose pixels are not those of the store.
    """
    image_size = store.pixels.shape[1]
    decoded = _decoded(records, image_size=image_size, show_progress=show_progress, doing="verifying images")
    changed = [
        record.name.file_name
        for record, image, checksum in zip(records, decoded, store.checksums, strict=True)
        if _checksum(image) != checksum
    ]
    if changed:
        raise ImageError(
            f"{len(changed)} of {len(records)} images are not those of the store {store.folder}: {listed(changed)}; "
            "delete the store if the files are right"
        )


def decode(path: Path, image_size: int) -> UInt8Array:
    """An image file as a square array.

    Bilinear and antialiased, as torchvision's Resize does on Pillow images; the aspect is not kept.

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
            resized = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    except UnidentifiedImageError:
        length = path.stat().st_size
        raise ImageError(f"{path.name}: {'no PNG' if length else 'empty file'} ({length} bytes)") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{path.name}: {error}") from error
    return np.asarray(resized)


def channel_statistics(
    pixels: UInt8Array, rows: Sequence[int]
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel over all pixels of some images, exact.

    Sums are taken over integers (a histogram of the 256 values), so that no order of summation matters.

    Args:
        pixels: uint8, (n_images, height, width, 3).
        rows: Which images.

    Returns:
        Mean and population standard deviation of red, green and blue, of values in [0, 1].
    """
    histogram = np.zeros((3, 256), dtype=np.int64)
    for row in rows:
        for channel in range(3):
            histogram[channel] += np.bincount(pixels[row, :, :, channel].ravel(), minlength=256)
    values = np.arange(256, dtype=np.float64) / 255
    shares = histogram / histogram.sum(axis=1, keepdims=True)
    mean = shares @ values
    deviation = np.sqrt([shares[channel] @ (values - mean[channel]) ** 2 for channel in range(3)])
    red, green, blue = (float(value) for value in mean)
    return (red, green, blue), (float(deviation[0]), float(deviation[1]), float(deviation[2]))


def _key(records: Iterable[ImageRecord], image_size: int) -> str:
    """Name of a store: changes with any name, length, modification time, with the image size and the version."""
    digest = hashlib.sha256(f"{VERSION} {image_size}\n".encode())
    for record in records:
        digest.update(f"{record.name.file_name}\t{record.n_bytes}\t{record.modified_ns}\n".encode())
    return digest.hexdigest()[:16]


def _check_disk(folder: Path, *, n_bytes: int) -> None:
    """A memory map of a file that does not fit ends the process without a word, so the room is looked at before.

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
        pixels = np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    names = [record.name.file_name for record in records]
    shape = (len(names), image_size, image_size, 3)
    if (facts.get("version"), facts.get("names")) != (VERSION, names) or pixels.shape != shape:
        return None
    if pixels.dtype != np.uint8 or len(checksums) != len(names):
        return None
    in_memory = np.empty(pixels.shape, dtype=np.uint8)

    def copy_row(row: int) -> str:
        in_memory[row] = pixels[row]
        return _checksum(in_memory[row])

    with ThreadPoolExecutor(_n_workers()) as pool:
        if tuple(pool.map(copy_row, range(len(names)))) != checksums:
            return None
    return Store(folder=folder, pixels=in_memory, checksums=checksums, built=False)


def _build(folder: Path, records: Sequence[ImageRecord], *, image_size: int, show_progress: bool) -> None:
    """Writes the two files of a store."""
    shape = (len(records), image_size, image_size, 3)
    pixels = np.lib.format.open_memmap(folder / "pixels.npy", mode="w+", dtype=np.uint8, shape=shape)
    checksums = []
    decoded = _decoded(records, image_size=image_size, show_progress=show_progress, doing="decoding images")
    for row, image in enumerate(decoded):
        pixels[row] = image
        checksums.append(_checksum(image))
    pixels.flush()
    facts = {
        "version": VERSION,
        "image_size": image_size,
        "resized": "Pillow, bilinear, antialiased",
        "names": [record.name.file_name for record in records],
        "checksums": checksums,
    }
    (folder / "store.json").write_text(json.dumps(facts), encoding="utf-8")


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


def _decoded(
    records: Sequence[ImageRecord], *, image_size: int, show_progress: bool, doing: str
) -> Iterator[UInt8Array]:
    """The decoded images in order, decoded by as many threads as there are cores (Pillow releases the lock).

    Raises:
        ImageError: After all files were tried, naming those that failed.
    """
    faults: list[str] = []

    def decode_or_note(record: ImageRecord) -> UInt8Array | str:
        try:
            return decode(record.path, image_size)
        except ImageError as error:
            return str(error)

    with (
        ThreadPoolExecutor(_n_workers()) as pool,
        tqdm(total=len(records), desc=doing, unit=" images", disable=None if show_progress else True) as bar,
    ):
        for result in _bounded_map(pool, decode_or_note, records):
            bar.update()
            if isinstance(result, str):
                faults.append(result)
            elif not faults:
                yield result
    if faults:
        raise ImageError(f"{len(faults)} of {len(records)} files are no usable images: {_lines(faults)}")


def _lines(faults: Sequence[str], limit: int = 10) -> str:
    """The first faults, a line each, then how many more there are."""
    more = [f"and {len(faults) - limit} more"] if len(faults) > limit else []
    return "".join(f"\n  {line}" for line in [*faults[:limit], *more])


def _bounded_map(
    pool: ThreadPoolExecutor, function: Callable[[ImageRecord], UInt8Array | str], records: Sequence[ImageRecord]
) -> Iterator[UInt8Array | str]:
    """Like `pool.map`, but holds a bounded number of results in memory."""
    chunk = 64 * _n_workers()
    for start in range(0, len(records), chunk):
        yield from pool.map(function, records[start : start + chunk])


def _checksum(image: UInt8Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()


def _n_workers() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
