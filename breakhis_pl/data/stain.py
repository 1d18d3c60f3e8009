"""Stain normalization: map the colors of an image to those of the train images.

Only stained pixels enter an estimate: the share of empty glass says nothing about the stain. Sums over pixels are those
of numpy, not of a linear algebra library, whose last bits depend on the number of threads.
"""

import math
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from breakhis_pl.data.images import UInt8Array
from breakhis_pl.errors import DataError

FloatArray: TypeAlias = npt.NDArray[np.float64]

GLASS_LEVEL = 240.0  # level of empty glass, as in the program published by Macenko et al.
MIN_DENSITY = 0.15
"""Least optical density (natural logarithm, mean of the channels) of a stained pixel; beta of Macenko et al.

Their program demands it of every channel. Eosin absorbs hardly any red: in BreakHis, where glass is often overexposed,
that would leave nothing but nuclei, and bleach the image. Both stains absorb green most, tinted glass does not.
"""
ANGLE_PERCENTILE = 1.0  # percentile of the angles, from either end, that defines a stain; alpha of Macenko et al.
MAX_PERCENTILE = 99.0  # percentile of the amounts of a stain that serves as its maximum
MIN_STAINED_FRACTION = 0.01  # least fraction of stained pixels for an estimate
MIN_ANGLE_DEG = 4.0  # least angle between two stains; the amounts of closer ones are noise
MAX_SCALE = 4.0  # largest factor, and inverse of the least, of amounts and standard deviations

_DENSITIES: FloatArray = -np.log((np.arange(256) + 1.0) / GLASS_LEVEL)  # by level; + 1 keeps black finite
_RGB_TO_LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
_LMS_TO_LAB = np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]]) / np.sqrt([[3], [6], [2]])  # orthogonal


@dataclass(frozen=True, slots=True)
class StainTarget:
    """Statistics that all images are normalized to.

    Attributes:
        method: "macenko" or "reinhard".
        statistics: macenko: for hematoxylin and eosin, its optical density in red, green and blue (a unit vector) and
            its maximal amount; reinhard: mean, then standard deviation, of l, alpha and beta.
    """

    method: str
    statistics: tuple[tuple[float, ...], tuple[float, ...]]

    def normalize(self, image: UInt8Array) -> UInt8Array:
        """Normalize an image: uint8, (height, width, 3), RGB; one without separable stains is returned unchanged."""
        own = estimate_statistics(self.method, image)
        if own is None:
            return image
        transfer = _transfer_macenko if self.method == "macenko" else _transfer_reinhard
        levels = transfer(image, own, np.array(self.statistics))  # (3, n_pixels)
        return np.ascontiguousarray(np.rint(levels).clip(0, 255).astype(np.uint8).T).reshape(image.shape)

    def to_plain(self) -> dict[str, Any]:
        """Convert to plain Python values."""
        return {"method": self.method, "statistics": [list(row) for row in self.statistics]}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> "StainTarget":
        """Restore a target from `to_plain`."""
        first, second = (tuple(map(float, row)) for row in values["statistics"])
        return cls(values["method"], (first, second))


def fit_stain(method: str, images: Iterable[UInt8Array]) -> StainTarget:
    """Fit the target: the median of the statistics of images, which no single image decides.

    Args:
        method: "macenko" or "reinhard".
        images: Train images, all held at once (views of a memory map are cheap): uint8, (height, width, 3), RGB.

    Raises:
        DataError: If no image has separable stains.
    """
    with ThreadPoolExecutor() as pool:
        estimates = pool.map(partial(estimate_statistics, method), images)
        found = [statistics for statistics in estimates if statistics is not None]
    if not found:
        raise DataError(f"data.stain={method}: no train image has separable stains; check the images or set it to none")
    statistics = np.median(found, axis=0)
    if method == "macenko":  # a median of unit vectors is not a unit vector
        statistics[:, :3] /= np.sqrt((statistics[:, :3] ** 2).sum(axis=1, keepdims=True))
    return StainTarget.from_plain({"method": method, "statistics": statistics.tolist()})


def estimate_statistics(method: str, image: UInt8Array) -> FloatArray | None:
    """Estimate the statistics of one image, as in `StainTarget.statistics`.

    Args:
        method: "macenko" or "reinhard".
        image: uint8, (height, width, 3), RGB.

    Returns:
        float64, (2, n); None if too few pixels are stained or the stains are not separable.
    """
    densities = _densities(image)
    mean = densities.mean(axis=0)
    is_stained = (mean >= MIN_DENSITY) & (densities[1] >= mean)
    if is_stained.sum() < max(MIN_STAINED_FRACTION * is_stained.size, 3):
        return None
    if method == "macenko":
        return _estimate_macenko(densities, densities[:, is_stained])
    lab = _to_lab(image)[:, is_stained]
    return np.stack([lab.mean(axis=1), lab.std(axis=1)])


def _estimate_macenko(densities: FloatArray, stained: FloatArray) -> FloatArray | None:
    """Estimate the stains from the densities of all and of the stained pixels, (3, n).

    Stained pixels lie near a plane, that of the two largest principal components. The directions at either end of their
    angles in it are the stains.

    Source:
        Macenko et al. 2009, sections 2.2 and 2.3, doi:10.1109/ISBI.2009.5193250.
    """
    centered = stained - stained.mean(axis=1, keepdims=True)
    covariance = [[(one * other).mean() for other in centered] for one in centered]
    plane = np.linalg.eigh(covariance)[1][:, :0:-1].T  # (2, 3), the largest component first
    if plane[0].sum() < 0:  # densities are positive: now their projections are, too, and no angle wraps around
        plane[0] *= -1
    along, across = _multiply(plane, stained)
    low, high = np.percentile(np.arctan2(across, along), [ANGLE_PERCENTILE, 100 - ANGLE_PERCENTILE])
    stains = np.array([math.cos(angle) * plane[0] + math.sin(angle) * plane[1] for angle in (low, high)])
    if stains[0, 0] < stains[1, 0]:  # hematoxylin absorbs more red
        stains = stains[::-1]
    if high - low < math.radians(MIN_ANGLE_DEG):
        return None
    maxima = np.percentile(_multiply(np.linalg.pinv(stains.T), densities), MAX_PERCENTILE, axis=1)  # (2,)
    return None if maxima.min() <= 1e-3 else np.column_stack([stains, maxima])


def _transfer_macenko(image: UInt8Array, own: FloatArray, target: FloatArray) -> FloatArray:
    """Replace the stains of an image and scale their amounts; levels, (3, n_pixels)."""
    amounts = _multiply(np.linalg.pinv(own[:, :3].T), _densities(image))  # (2, n_pixels)
    amounts *= (target[:, 3:] / own[:, 3:]).clip(1 / MAX_SCALE, MAX_SCALE)
    return GLASS_LEVEL * np.exp(-_multiply(target[:, :3].T, amounts)) - 1


def _transfer_reinhard(image: UInt8Array, own: FloatArray, target: FloatArray) -> FloatArray:
    """Shift and scale l, alpha and beta of an image; levels, (3, n_pixels)."""
    (own_mean, own_std), (mean, std) = own[..., None], target[..., None]  # (3, 1)
    scale = np.where(own_std > 1e-6, std / own_std.clip(1e-6), 1.0).clip(1 / MAX_SCALE, MAX_SCALE)
    lab = (_to_lab(image) - own_mean) * scale + mean
    return 255 * _multiply(np.linalg.inv(_RGB_TO_LMS), 10 ** _multiply(_LMS_TO_LAB.T, lab).clip(max=2))


def _to_lab(image: UInt8Array) -> FloatArray:
    """Convert to l, alpha and beta, (3, n_pixels); black counts as level 1.

    Source:
        Reinhard et al. 2001, equations 4 to 6, doi:10.1109/38.946629.
    """
    rgb = np.maximum(image.reshape(-1, 3).T, 1) / 255.0
    return _multiply(_LMS_TO_LAB, np.log10(_multiply(_RGB_TO_LMS, rgb)))


def _densities(image: UInt8Array) -> FloatArray:
    """Look up the optical densities of pixels, (3, n_pixels)."""
    return _DENSITIES.take(image.reshape(-1, 3).T)


def _multiply(matrix: npt.NDArray[np.floating[Any]], pixels: FloatArray) -> FloatArray:
    """Multiply a small matrix and pixels, (n_channels, n_pixels), by loops of numpy."""
    return np.asarray(np.einsum("ij,jn->in", matrix, pixels))
