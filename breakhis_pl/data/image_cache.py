"""Cache of decoded and resized images: one memory-mapped file per set of images and size."""

import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.contrib.concurrent import thread_map

from breakhis_pl.data.dataset import ImageRecord
from breakhis_pl.data.images import UInt8Array, read_image, resize
from breakhis_pl.errors import DataError, join_truncated
from breakhis_pl.run_folder import atomic_write

Value = TypeVar("Value")

log = logging.getLogger(__name__)

VERSION = 4
"""Version of the file, of decoding, resizing and stain normalization; raise it with any change to one of them."""


@dataclass(frozen=True, slots=True)
class ImageCache:
    """Decoded images of equal size.

    Attributes:
        path: The file.
        pixels: uint8, (n_images, size, size, 3), RGB, in the order of the records; memory-mapped.
        sums: int64, (n_images, 2, 3), sums over the pixels of an image of values and of their squares, per channel.
        checksums: SHA-256 of the pixels of each image.
        pixels_checksum: SHA-256 of `checksums`.
        was_built: Whether the file was written just now.
    """

    path: Path
    pixels: Tensor
    sums: Tensor
    checksums: list[str]
    pixels_checksum: str
    was_built: bool

    @classmethod
    def open(
        cls, records: Sequence[ImageRecord], *, image_size: int, folder: Path, progress_bar: bool = True
    ) -> "ImageCache":
        """Open the cache of images, or build it if it does not exist or is damaged.

        Names, sizes and modification times of the image files identify a cache; opening one reads no image. Equal
        pixels of several patients are reported as a warning in the log.

        Args:
            records: The images.
            image_size: Side in pixels that images are resized to.
            folder: Folder of all caches.
            progress_bar: Show a progress bar on a terminal while images are decoded.

        Raises:
            DataError: If images cannot be read, all of them in one message, or the folder cannot be used.
        """
        digest = hashlib.sha256(f"{VERSION} {image_size}\n".encode())
        for record in records:
            status = record.path.stat() if record.path.exists() else None  # broken links are reported with other faults
            digest.update(f"{record.image} {status and (status.st_size, status.st_mtime_ns)}\n".encode())
        cache = cls._open_or_build(
            folder / f"{image_size}px-{digest.hexdigest()[:16]}.safetensors",
            lambda index: resize(read_image(records[index].path), image_size),
            shape=(len(records), image_size, image_size, 3),
            description="decoding" if progress_bar else None,
        )
        if len(set(cache.checksums)) < len(records):
            _report_duplicates(records, cache.checksums)
        return cache

    def transform(
        self, transform: Callable[[UInt8Array], UInt8Array], *, key: str, progress_bar: bool = True
    ) -> "ImageCache":
        """Open the cache of transformed images, or build it from this cache.

        Args:
            transform: Function of an image, uint8 (size, size, 3), called from several threads.
            key: Everything that the result of the transform depends on.
            progress_bar: Show a progress bar on a terminal while images are transformed.

        Raises:
            DataError: If the folder cannot be used.
        """
        images = self.pixels.numpy()
        digest = hashlib.sha256(f"{self.pixels_checksum} {key}".encode()).hexdigest()[:16]
        return self._open_or_build(
            self.path.with_stem(f"{self.path.stem}-{digest}"),
            lambda index: transform(images[index]),
            shape=images.shape,
            description="transforming" if progress_bar else None,
        )

    @classmethod
    def _open_or_build(
        cls, path: Path, get_image: Callable[[int], UInt8Array], *, shape: tuple[int, ...], description: str | None
    ) -> "ImageCache":
        try:
            cache = _load(path)
            if cache is not None:
                return cache
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):  # processes that start together build a cache once
                cache = _load(path)
                if cache is not None:
                    return cache
                pixels, sums = _build(get_image, shape, description)
                checksums, metadata = _checksums(pixels, sums)
                with atomic_write(path) as temporary:
                    save_file({"pixels": pixels, "sums": sums}, temporary, metadata)
                    temporary.chmod(0o644)  # safetensors 0.8 writes files that other users of a cache cannot read
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"data.cache_dir={path.parent}: cannot be used ({error}); free space on its disk, or set "
                "data.cache_dir to another folder"
            ) from error
        return cls(path, pixels, sums, checksums, metadata["pixels"], was_built=True)

    def verify(self, records: Sequence[ImageRecord], *, progress_bar: bool = True) -> None:
        """Decode all images again and compare them with the cache.

        Raises:
            DataError: If images cannot be read, or have other pixels.
        """
        pixels = self.pixels.numpy()

        def check(index: int) -> str | None:
            image = resize(read_image(records[index].path), pixels.shape[1])
            return None if np.array_equal(image, pixels[index]) else records[index].image

        changed = [
            name for name in _map(check, len(records), "verifying" if progress_bar else None) if name is not None
        ]
        if changed:
            raise DataError(
                f"{self.path}: {len(changed)} of {len(records)} images have other pixels than their files: "
                f"{join_truncated(changed)}; delete the cache if the files are right"
            )

    def checksum(self) -> str:
        """Return the SHA-256 of the pixels."""
        return f"sha256:{self.pixels_checksum}"

    def channel_statistics(self, indices: Sequence[int]) -> tuple[list[float], list[float]]:
        """Compute mean and population standard deviation of the channels of some images, of values in [0, 1].

        Sums are integers, so the result does not depend on the order of summation.
        """
        n_pixels = len(indices) * self.pixels.shape[1] * self.pixels.shape[2]
        sums = self.sums[list(indices)].sum(dim=0).T.tolist()  # (3, 2)
        variances = [(n_pixels * squares - values**2) / (255 * n_pixels) ** 2 for values, squares in sums]
        return [values / (255 * n_pixels) for values, _ in sums], [math.sqrt(variance) for variance in variances]


def pixel_sums(image: UInt8Array) -> npt.NDArray[np.int64]:
    """Sum the values of an image, uint8 (height, width, 3), and their squares over the pixels; int64, (2, 3)."""
    values = image.reshape(len(image), -1).astype(np.uint32)  # (height, 3 * width)
    columns = np.stack([values.sum(axis=0, dtype=np.uint32), np.square(values).sum(axis=0, dtype=np.uint32)])
    sums: npt.NDArray[np.int64] = columns.reshape(2, -1, 3).sum(axis=1, dtype=np.int64)  # (2, width, 3) -> (2, 3)
    return sums


def _build(
    get_image: Callable[[int], UInt8Array], shape: tuple[int, ...], description: str | None
) -> tuple[Tensor, Tensor]:
    """Compute all images and their sums.

    Raises:
        DataError: If some raise one, after all were tried.
    """
    pixels, sums = np.empty(shape, np.uint8), np.empty((shape[0], 2, 3), np.int64)

    def fill(index: int) -> str | None:
        try:
            pixels[index] = get_image(index)
        except DataError as error:
            return str(error)
        sums[index] = pixel_sums(pixels[index])
        return None

    faults = [fault for fault in _map(fill, shape[0], description) if fault is not None]
    if faults:
        raise DataError(f"{len(faults)} of {shape[0]} images cannot be used:\n  " + "\n  ".join(faults[:20]))
    return torch.from_numpy(pixels), torch.from_numpy(sums)


def _load(path: Path) -> ImageCache | None:
    """Open a cache; None if it does not exist or is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            pixels, sums, metadata = file.get_tensor("pixels"), file.get_tensor("sums"), file.metadata()
    except (FileNotFoundError, SafetensorError):
        return None
    checksums, expected = _checksums(pixels, sums)
    if metadata != expected:
        return None
    return ImageCache(path, pixels, sums, checksums, metadata["pixels"], was_built=False)


def _checksums(pixels: Tensor, sums: Tensor) -> tuple[list[str], dict[str, str]]:
    """Compute the SHA-256 of each image, in parallel; also return the SHA-256 of these and that of the sums."""
    images = pixels.numpy()
    checksums = _map(lambda index: hashlib.sha256(images[index]).hexdigest(), len(images), None)
    return checksums, {
        "pixels": hashlib.sha256("".join(checksums).encode()).hexdigest(),
        "sums": hashlib.sha256(sums.numpy().tobytes()).hexdigest(),
    }


def _report_duplicates(records: Sequence[ImageRecord], checksums: Sequence[str]) -> None:
    """Log a warning if images of several patients have equal pixels, which any split may separate.

    It is no error, because empty regions of two slides may have equal pixels.
    """
    first: dict[str, ImageRecord] = {}
    pairs = [
        (first[checksum].image, record.image)
        for record, checksum in zip(records, checksums, strict=True)
        if first.setdefault(checksum, record).patient != record.patient
    ]
    if pairs:
        log.warning(
            "found the pixels of another patient in %d of %d images, for example %s and %s; a split may put them into "
            "train and test: keep one of them, or give them the same patient",
            len(pairs),
            len(records),
            *pairs[0],
        )


def _map(function: Callable[[int], Value], n: int, description: str | None) -> list[Value]:
    """Call a function for 0 to n - 1 in threads, with a progress bar if it has a description."""
    return thread_map(
        function,
        range(n),
        desc=description,
        unit=" images",
        disable=description is None or None,  # None: only on a terminal
        leave=False,
    )
