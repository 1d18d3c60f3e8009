"""Resizing of 8-bit images without torch, in the arithmetic that torch uses for them, so that networks see the same."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]

BITS = 15
"""Of a weight, its sign left out: torch stores them as int16."""

_MOST_PRECISION = 22
_MOST_VALUES = 4_000_000
"""Of a band of rows that is worked on at once; bounds the memory."""


def resized(image: UInt8Array, size: int) -> UInt8Array:
    """An image as a square; bilinear, antialiased, the aspect not kept.

    First along the rows, then along the columns, each in whole numbers: weights of 15 bits, sums of 32, rounded to
    8 bits between the two. An image of that size is returned as it is.

    Args:
        image: uint8, (height, width, 3).
        size: Side of the result in pixels.

    Returns:
        uint8, (size, size, 3).

    Source:
        torch 2.15, aten/src/ATen/native/cpu/UpSampleKernel.cpp (`compute_index_ranges_int16_weights`), which follows
        Pillow's Resample.c.
    """
    if image.shape[1] != size:
        band = max(1, _MOST_VALUES // (3 * max(image.shape[1], size)))
        bands = (image[start : start + band] for start in range(0, len(image), band))
        image = np.concatenate([_resized_rows(each.transpose(1, 0, 2), size) for each in bands], axis=1)
        image = image.transpose(1, 0, 2)  # (height, size, 3)
    if image.shape[0] != size:
        image = _resized_rows(image, size)
    return np.ascontiguousarray(image)  # (size, size, 3)


def _resized_rows(image: UInt8Array, size: int) -> UInt8Array:
    """An image with another number of rows; uint8, (size, width, 3)."""
    first, weights, precision = _weights(len(image), size)
    rows = np.ascontiguousarray(image).reshape(len(image), -1)  # (height, 3 * width)
    total = np.full((size, rows.shape[1]), 1 << (precision - 1), dtype=np.int32)
    part = np.empty_like(total)
    for tap, weight in enumerate(weights):
        # beyond a window its weight is 0
        np.multiply(rows[np.minimum(first + tap, len(image) - 1)], weight[:, None], out=part)
        total += part
    np.right_shift(total, precision, out=total)
    return np.clip(total, 0, 255, out=total).astype(np.uint8).reshape(size, -1, 3)


@lru_cache(maxsize=64)
def _weights(n_before: int, n_after: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], int]:
    """What each pixel of a row is made of.

    Returns:
        The first pixel of its window, int64 (n_after,); weights of the pixels from there on, int32 (n_taps, n_after);
        and the power of two by which they are too large.
    """
    scale = n_before / n_after
    support = max(scale, 1.0)  # of a triangle, in pixels to either side
    center = scale * (np.arange(n_after) + 0.5)
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    n_pixels = np.minimum((center + support + 0.5).astype(np.int64), n_before) - first
    tap = np.arange(int(n_pixels.max()))[:, None]  # (n_taps, 1)
    distance = np.abs((tap + first - center + 0.5) / support)
    weight = np.where(tap < n_pixels, np.maximum(1 - distance, 0), 0)  # (n_taps, n_after)
    weight /= weight.sum(axis=0)
    precision = 0
    while precision < _MOST_PRECISION and int(0.5 + weight.max() * (1 << (precision + 1))) < 1 << BITS:
        precision += 1
    return first, (0.5 + weight * (1 << precision)).astype(np.int32), precision
