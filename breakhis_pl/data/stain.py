"""Stain normalization: the colors of an image brought to those of the train images; without torch.

Fitting takes the medians over the train images of what is estimated for each, so that no single image, good or bad,
decides what all others look like. What is estimated uses stained pixels alone: how much empty glass an image shows says
nothing about its stain. All sums are numpy's own, not those of a linear algebra library, whose last bits change with
the number of threads.

Sources:
    Macenko et al., A method for normalizing histology slides for quantitative analysis, ISBI 2009,
    doi:10.1109/ISBI.2009.5193250. Reinhard et al., Color transfer between images, IEEE Computer Graphics and
    Applications 2001, doi:10.1109/38.946629.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from breakhis_pl.errors import ImageError

UInt8Array: TypeAlias = npt.NDArray[np.uint8]
FloatArray: TypeAlias = npt.NDArray[np.float64]
Three: TypeAlias = tuple[float, float, float]

LIGHT = 240.0
"""Level of empty glass, as in the program that Macenko et al. published; lighter pixels are lighter than no stain."""

LEAST_DENSITY = 0.15
"""Optical density (natural logarithm), mean of the channels, from which a pixel counts as stained; Macenko's beta.

Their program asks it of every channel. Eosin takes next to no red: in BreakHis, where glass is often overexposed, that
leaves nothing but nuclei, in one image of ten less than a tenth of the pixels, and what is then estimated for eosin
bleaches the image. Both stains take green most of all; what does not is tinted glass and does not count either.
"""

ANGLE_PERCENTILE = 1.0
"""Of the angles that the two stains are taken from, at either end; alpha of Macenko et al."""

LARGEST_PERCENTILE = 99.0
"""Of the amounts of a stain: what is called its largest."""

LEAST_STAINED = 0.01
"""Share of the pixels that must be stained for an estimate; of fewer, an image is left as it is."""

LEAST_ANGLE_DEG = 4.0
"""Between two stains; of vectors that are nearer to each other, the amounts of either are noise."""

LARGEST_SCALE = 4.0
"""Amounts and spreads are multiplied by so much at most, and by its inverse at least: what is not there is not made."""

_DENSITIES: FloatArray = -np.log((np.arange(256) + 1.0) / LIGHT)  # (256,); the one keeps black finite


@dataclass(frozen=True, slots=True)
class MacenkoTarget:
    """Two stains and how much of each there is, as images are to have them.

    Attributes:
        stains: Optical densities of red, green and blue of hematoxylin, then eosin; each of length 1.
        largest: 99th percentile of the amount of each.
    """

    stains: tuple[Three, Three]
    largest: tuple[float, float]
    method: ClassVar[str] = "macenko"

    def applied(self, image: UInt8Array) -> UInt8Array:
        """The image with its stains replaced by these, and their amounts scaled.

        An image that is nearly unstained, or whose stains cannot be told apart, is given back as it is.

        Args:
            image: uint8, (height, width, 3), RGB.
        """
        own = macenko_estimate(image)
        if own is None:
            return image
        densities = optical_densities(image)
        amounts = _amounts(densities, own.stains)  # (2, n)
        scale = np.array(self.largest) / np.array(own.largest)
        amounts *= scale.clip(1 / LARGEST_SCALE, LARGEST_SCALE)[:, None]
        stains = np.array(self.stains)  # (2, 3)
        levels = [LIGHT * np.exp(-(amounts[0] * stains[0, c] + amounts[1] * stains[1, c])) - 1 for c in range(3)]
        return _to_image(np.stack(levels), image.shape)

    def plain(self) -> dict[str, Any]:
        """Plain values, for `restored_target`."""
        return {"method": self.method, "stains": [list(stain) for stain in self.stains], "largest": list(self.largest)}


@dataclass(frozen=True, slots=True)
class ReinhardTarget:
    """Mean and spread of the stained pixels in the space l alpha beta, as images are to have them.

    Attributes:
        mean: Of l, alpha and beta.
        std: Likewise the standard deviation.
    """

    mean: Three
    std: Three
    method: ClassVar[str] = "reinhard"

    def applied(self, image: UInt8Array) -> UInt8Array:
        """The image shifted and stretched in l alpha beta; one that is nearly unstained is given back as it is.

        Args:
            image: uint8, (height, width, 3), RGB.
        """
        own = reinhard_estimate(image)
        if own is None:
            return image
        values = to_lab(image)  # (3, n)
        scale = np.array([_scale(wanted, there) for wanted, there in zip(self.std, own.std, strict=True)])
        values = (values - np.array(own.mean)[:, None]) * scale[:, None] + np.array(self.mean)[:, None]
        return _to_image(from_lab(values), image.shape)

    def plain(self) -> dict[str, Any]:
        """Plain values, for `restored_target`."""
        return {"method": self.method, "mean": list(self.mean), "std": list(self.std)}


StainTarget: TypeAlias = MacenkoTarget | ReinhardTarget

ESTIMATES: Mapping[str, Callable[[UInt8Array], StainTarget | None]]


def fitted_target(method: str, estimates: Iterable[StainTarget | None]) -> StainTarget:
    """The median of what was estimated for images; what has no estimate does not count.

    Args:
        method: "macenko" or "reinhard", that of the estimates.
        estimates: One per image.

    Raises:
        ImageError: If no image has one.
    """
    there = [estimate for estimate in estimates if estimate is not None]
    if not there:
        raise ImageError(
            f"data.stain={method}: no train image has stains that can be told apart; "
            "look at the images, or set data.stain=none"
        )
    first = there[0]
    match first:
        case MacenkoTarget():
            stains = np.median([each.stains for each in there if isinstance(each, MacenkoTarget)], axis=0)  # (2, 3)
            stains /= np.sqrt((stains**2).sum(axis=1, keepdims=True))
            largest = np.median([each.largest for each in there if isinstance(each, MacenkoTarget)], axis=0)
            return MacenkoTarget((_three(stains[0]), _three(stains[1])), (float(largest[0]), float(largest[1])))
        case ReinhardTarget():
            of_all = [each for each in there if isinstance(each, ReinhardTarget)]
            return ReinhardTarget(
                mean=_three(np.median([each.mean for each in of_all], axis=0)),
                std=_three(np.median([each.std for each in of_all], axis=0)),
            )


def restored_target(values: Mapping[str, Any]) -> StainTarget:
    """The target that plain values describe, checked: they may come from a stranger's file.

    Raises:
        ValueError: If they describe none.
    """
    match values.get("method"):
        case MacenkoTarget.method:
            stains = values.get("stains")
            if not isinstance(stains, list | tuple) or len(stains) != 2:
                raise ValueError("stain.stains are not two lists of three numbers")
            first, second = (_numbers(stain, 3, "stain.stains", at_least=-1, at_most=1) for stain in stains)
            for stain in (first, second):
                if abs(math.hypot(*stain) - 1) > 1e-3:
                    raise ValueError("stain.stains are not of length 1")
            if _angle_deg(first, second) < LEAST_ANGLE_DEG:
                raise ValueError("stain.stains cannot be told apart")
            largest = _numbers(values.get("largest"), 2, "stain.largest", at_least=1e-3, at_most=100)
            return MacenkoTarget((_three(first), _three(second)), (largest[0], largest[1]))
        case ReinhardTarget.method:
            return ReinhardTarget(
                mean=_three(_numbers(values.get("mean"), 3, "stain.mean", at_least=-10, at_most=10)),
                std=_three(_numbers(values.get("std"), 3, "stain.std", at_least=0, at_most=10)),
            )
        case _:
            raise ValueError("stain.method is neither macenko nor reinhard")


def optical_densities(image: UInt8Array) -> FloatArray:
    """Natural logarithm of glass over pixel, per channel: float64, (3, n_pixels); 0 for empty glass.

    Args:
        image: uint8, (height, width, 3), RGB.
    """
    return np.stack([_DENSITIES[image[..., channel].reshape(-1)] for channel in range(3)])


def macenko_estimate(image: UInt8Array) -> MacenkoTarget | None:
    """The two stains of an image and how much of each there is.

    The stained pixels lie near a plane in the space of densities, that of the two largest principal components; within
    it, the directions at either end of the pixels' angles are the stains.

    Args:
        image: uint8, (height, width, 3), RGB.

    Returns:
        None if too few pixels are stained, or the stains cannot be told apart.

    Source:
        Macenko et al. 2009, sections 2.2 and 2.3.
    """
    densities = optical_densities(image)
    stained = densities[:, _is_stained(densities)]  # (3, n_stained)
    if stained.shape[1] < max(LEAST_STAINED * densities.shape[1], 3):
        return None
    centered = stained - stained.mean(axis=1, keepdims=True)
    covariance = np.array([[float((one * other).mean()) for other in centered] for one in centered])
    plane = np.linalg.eigh(covariance)[1][:, :0:-1].T  # (2, 3); the components of largest variance, largest first
    if plane[0].sum() < 0:  # densities are positive: so are their projections then, and no angle wraps around
        plane[0] *= -1
    along, across = (sum(axis[c] * stained[c] for c in range(3)) for axis in plane)
    angles = np.arctan2(across, along)
    ends = np.percentile(angles, [ANGLE_PERCENTILE, 100 - ANGLE_PERCENTILE])
    first, second = (math.cos(angle) * plane[0] + math.sin(angle) * plane[1] for angle in ends)
    if first[0] < second[0]:  # hematoxylin takes more of the red
        first, second = second, first
    stains = (_three(first), _three(second))
    if _angle_deg(*stains) < LEAST_ANGLE_DEG:
        return None
    largest = np.percentile(_amounts(densities, stains), LARGEST_PERCENTILE, axis=1)  # (2,)
    if largest.min() <= 1e-3:
        return None
    return MacenkoTarget(stains, (float(largest[0]), float(largest[1])))


def reinhard_estimate(image: UInt8Array) -> ReinhardTarget | None:
    """Mean and standard deviation of the stained pixels in l alpha beta.

    Args:
        image: uint8, (height, width, 3), RGB.

    Returns:
        None if too few pixels are stained.

    Source:
        Reinhard et al. 2001, who take all pixels.
    """
    is_stained = _is_stained(optical_densities(image))
    if is_stained.sum() < max(LEAST_STAINED * is_stained.size, 3):
        return None
    values = to_lab(image)[:, is_stained]
    return ReinhardTarget(mean=_three(values.mean(axis=1)), std=_three(values.std(axis=1)))


ESTIMATES = {MacenkoTarget.method: macenko_estimate, ReinhardTarget.method: reinhard_estimate}
"""From an image to what is estimated for it, by `data.stain`."""


_TO_LMS = ((0.3811, 0.5783, 0.0402), (0.1967, 0.7244, 0.0782), (0.0241, 0.1288, 0.8444))
_TO_LAB = (
    tuple(factor / math.sqrt(3) for factor in (1, 1, 1)),
    tuple(factor / math.sqrt(6) for factor in (1, 1, -2)),
    tuple(factor / math.sqrt(2) for factor in (1, -1, 0)),
)
_FROM_LMS = np.linalg.inv(np.array(_TO_LMS))
"""Exactly the inverse; the paper prints it with four digits, which moves levels by one."""


def to_lab(image: UInt8Array) -> FloatArray:
    """l, alpha and beta of all pixels: float64, (3, n_pixels); black counts as level 1, for the logarithm.

    Args:
        image: uint8, (height, width, 3), RGB.

    Source:
        Reinhard et al. 2001, equations 4 to 6.
    """
    rgb = np.stack([np.maximum(image[..., c].reshape(-1), 1) / 255.0 for c in range(3)])
    return _times(_TO_LAB, np.log10(_times(_TO_LMS, rgb)))


def from_lab(values: FloatArray) -> FloatArray:
    """Levels of red, green and blue, 0 to 255 where a screen can show them; float64, (3, n_pixels).

    Args:
        values: float64, (3, n_pixels); l, alpha and beta.

    Source:
        Reinhard et al. 2001, equations 8 and 9.
    """
    transposed = tuple(zip(*_TO_LAB, strict=True))  # the matrix is orthogonal
    return 255.0 * _times(_FROM_LMS.tolist(), 10.0 ** _times(transposed, values).clip(max=2.0))


def _is_stained(densities: FloatArray) -> npt.NDArray[np.bool_]:
    """Whether a pixel is more than glass; bool, (n_pixels,)."""
    mean = (densities[0] + densities[1] + densities[2]) / 3
    return np.asarray((mean >= LEAST_DENSITY) & (densities[1] >= mean))


def _times(matrix: Sequence[Sequence[float]], values: FloatArray) -> FloatArray:
    """The product of a 3x3 matrix and (3, n) values."""
    return np.stack([row[0] * values[0] + row[1] * values[1] + row[2] * values[2] for row in matrix])


def _amounts(densities: FloatArray, stains: tuple[Three, Three]) -> FloatArray:
    """How much of each stain explains the densities best, by least squares: float64, (2, n_pixels)."""
    first, second = stains
    dot = sum(a * b for a, b in zip(first, second, strict=True))  # both have length 1
    on_first, on_second = (sum(stain[c] * densities[c] for c in range(3)) for stain in stains)
    return np.stack([on_first - dot * on_second, on_second - dot * on_first]) / (1 - dot**2)


def _angle_deg(first: Sequence[float], second: Sequence[float]) -> float:
    """Between two vectors of length 1, in degrees."""
    dot = sum(a * b for a, b in zip(first, second, strict=True))
    return math.degrees(math.acos(min(1.0, max(-1.0, dot))))


def _scale(wanted: float, there: float) -> float:
    """What a spread is multiplied by, within reason; 1 where there is none to stretch."""
    return 1.0 if there <= 1e-6 else min(max(wanted / there, 1 / LARGEST_SCALE), LARGEST_SCALE)


def _to_image(levels: FloatArray, shape: tuple[int, ...]) -> UInt8Array:
    """Levels as an image: rounded, kept within 0 and 255; uint8, (height, width, 3)."""
    return np.ascontiguousarray(np.rint(levels).clip(0, 255).astype(np.uint8).T).reshape(shape)


def _three(values: Iterable[float]) -> Three:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _numbers(values: object, n: int, name: str, *, at_least: float, at_most: float) -> tuple[float, ...]:
    """So many numbers within limits.

    Raises:
        ValueError: If there are others.
    """
    given: list[Any] = list(values) if isinstance(values, list | tuple) and len(values) == n else []
    if not given or not all(_is_number(value) and at_least <= value <= at_most for value in given):
        raise ValueError(f"{name} is not a list of {n} numbers from {at_least:g} to {at_most:g}")
    return tuple(float(value) for value in given)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
