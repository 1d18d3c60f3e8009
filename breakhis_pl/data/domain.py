"""How an image looks, in a dozen numbers, and whether train images look like that.

A network answers whatever it is shown. Colors and texture that its train images did not have are a simple sign that
the answer means nothing. Each image is described by numbers that follow a bell curve roughly; their mean and covariance
over the train images give a distance (Mahalanobis), and how far train images of cases that were left out lie from the
others gives the distance up to which an image is nothing unusual.
"""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

UInt8Array: TypeAlias = npt.NDArray[np.uint8]
FloatArray: TypeAlias = npt.NDArray[np.float64]

FEATURES = (
    "mean absorption of red",
    "mean absorption of green",
    "mean absorption of blue",
    "contrast of red",
    "contrast of green",
    "contrast of blue",
    "agreement of red and green",
    "agreement of green and blue",
    "share of stained tissue",
    "sharpness",
    "graininess",
)
"""What `appearance` gives, in this order."""

STAINED = 0.15
"""Optical density of the green channel from which a pixel is tissue; glass has less than 0.1."""

FEWEST_CASES = 5
FEWEST_IMAGES = 4 * len(FEATURES)
"""Without so many nothing is fitted."""

SHRINKAGE = 0.1
"""Share of the covariance that is its own diagonal, which keeps it well-conditioned where images are few."""

QUANTILE = 0.99
MARGIN = 1.25
"""The limit is this quantile of the distances of left-out cases, times this: new laboratories vary more than cases."""

LARGEST = 1e6
"""Of a number that a stranger's checkpoint may hold."""

LEAST_VARIANCE = 1e-4
"""Of a number over train images; drawn or equal images may have none."""

NOTABLE = 2.0
"""Standard deviations from which a number is named as a reason."""

_DENSITY = (-np.log10((np.arange(256) + 1) / 256)).astype(np.float32)
_LEAST_CONTRAST = 1e-3


def appearance(image: UInt8Array) -> FloatArray:
    """The numbers of `FEATURES` for an image as the network sees it.

    Absorption is optical density, -log10 of the share of light that is left: stains add up in it.

    Args:
        image: uint8, (size, size, 3), RGB.

    Returns:
        float64, (11,).
    """
    density = _DENSITY[np.ascontiguousarray(image.transpose(2, 0, 1))]  # (3, size, size)
    mean = density.mean(axis=(1, 2), dtype=np.float64)
    red, green, blue = density - mean.astype(np.float32)[:, None, None]
    contrast = [math.sqrt(_mean(plane * plane) + _LEAST_CONTRAST**2) for plane in (red, green, blue)]
    agreement = [_mean(red * green) / (contrast[0] * contrast[1]), _mean(green * blue) / (contrast[1] * contrast[2])]
    stained = float((density[1] > STAINED).mean())
    nearest = _mean(np.abs(np.diff(green, axis=1))) + _LEAST_CONTRAST
    next_nearest = _mean(np.abs(green[:, 2:] - green[:, :-2])) + _LEAST_CONTRAST
    return np.array(
        [
            *np.log(mean + 0.02),
            *np.log(contrast),
            *np.arctanh(0.999 * np.clip(agreement, -1, 1)),
            math.log((stained + 0.05) / (1.05 - stained)),
            math.log(nearest / contrast[1]),
            math.log(nearest / next_nearest),
        ]
    )


def appearances(images: UInt8Array, rows: Sequence[int], *, n_threads: int) -> FloatArray:
    """The numbers of `FEATURES` for some images.

    Args:
        images: uint8, (n_images, size, size, 3), RGB.
        rows: Those wanted, at least one.
        n_threads: How many are worked on at once.

    Returns:
        float64, (n_rows, 11).
    """
    with ThreadPoolExecutor(n_threads) as pool:
        return np.stack(list(pool.map(lambda row: appearance(images[row]), rows)))


def _mean(values: npt.NDArray[np.float32]) -> float:
    return float(values.mean(dtype=np.float64))


@dataclass(frozen=True, slots=True)
class Domain:
    """What train images look like.

    Attributes:
        mean: Of the numbers of `FEATURES`; 11 of them.
        covariance: Of them, shrunk; 11 rows of 11, positive definite.
        limit: Distance beyond which an image is flagged.
        n_images: Number of train images.
        n_cases: Number of their cases.
    """

    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    limit: float
    n_images: int
    n_cases: int

    def score(self, features: FloatArray) -> float:
        """Distance of an image from the train images, in limits: above 1 it is flagged.

        Args:
            features: From `appearance`; (11,).
        """
        covariance = np.array(self.covariance)
        return float(_distances(features[None], np.array(self.mean), covariance)[0]) / self.limit

    def reason(self, features: FloatArray) -> str:
        """What is unlike the train images: the two numbers that are farthest off, in their standard deviations.

        Args:
            features: From `appearance`; (11,).
        """
        deviation = (features - np.array(self.mean)) / np.sqrt(np.diag(np.array(self.covariance)))
        farthest = sorted(range(len(FEATURES)), key=lambda index: -abs(deviation[index]))[:2]
        parts = [
            f"{FEATURES[index]} {deviation[index]:+.1f} sd" for index in farthest if abs(deviation[index]) > NOTABLE
        ]
        return "; ".join(parts) or "a combination of colors and texture that train images do not have"


def fit_domain(features: FloatArray, cases: Sequence[str]) -> Domain | None:
    """What train images look like, and how far off an image of another case may be.

    Args:
        features: From `appearance`; (n_images, 11).
        cases: Case of each image.

    Returns:
        None where there are fewer than `FEWEST_IMAGES` or `FEWEST_CASES`.

    Source:
        Mahalanobis 1936 for the distance; the limit is ours (`QUANTILE`, `MARGIN`).
    """
    case = np.array(cases)
    groups = sorted(set(cases))
    if len(groups) < FEWEST_CASES or len(features) < FEWEST_IMAGES:
        return None
    distances = []
    for group in groups:
        others = features[case != group]
        if len(others) < len(FEATURES):  # nearly all images are of one case
            return None
        distances.append(_distances(features[case == group], others.mean(axis=0), _shrunk_covariance(others)))
    return Domain(
        mean=tuple(features.mean(axis=0).tolist()),
        covariance=tuple(map(tuple, _shrunk_covariance(features).tolist())),
        limit=max(float(np.quantile(np.concatenate(distances), QUANTILE)) * MARGIN, 1.0),
        n_images=len(features),
        n_cases=len(groups),
    )


def plain_domain(domain: Domain) -> dict[str, Any]:
    """The same as plain values, for a checkpoint or an exported network."""
    return {
        "features": list(FEATURES),
        "mean": list(domain.mean),
        "covariance": [list(row) for row in domain.covariance],
        "limit": domain.limit,
        "n_images": domain.n_images,
        "n_cases": domain.n_cases,
    }


def restored_domain(values: object) -> Domain:
    """What `plain_domain` gave, from a file of anyone.

    Raises:
        ValueError: If it is something else; the text names what.
    """
    if not isinstance(values, Mapping) or values.get("features") != list(FEATURES):
        raise ValueError("the numbers that describe train images are not those of this version")
    n = len(FEATURES)
    covariance = values.get("covariance")
    if not isinstance(covariance, list) or len(covariance) != n:
        raise ValueError(f"covariance of train images is not {n} rows of {n} numbers")
    rows = tuple(_numbers(row, "covariance") for row in covariance)
    matrix = np.array(rows)
    if not np.allclose(matrix, matrix.T) or np.linalg.eigvalsh(matrix)[0] <= LEAST_VARIANCE / 10:
        raise ValueError("covariance of train images is none: it is not positive definite")
    counts = [values.get(name) for name in ("n_images", "n_cases")]
    (limit,) = _numbers([values.get("limit")], "limit", n=1)
    if limit <= 0 or not all(isinstance(count, int) and 0 < count <= LARGEST for count in counts):
        raise ValueError("limit and counts of train images are not above 0")
    return Domain(_numbers(values.get("mean"), "mean"), rows, limit, *counts)  # type: ignore[arg-type]


def _numbers(values: object, name: str, *, n: int = len(FEATURES)) -> tuple[float, ...]:
    """So many finite numbers.

    Raises:
        ValueError: If it is something else.
    """
    if not isinstance(values, list) or len(values) != n:
        raise ValueError(f"{name} of train images is not {n} numbers")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
            raise ValueError(f"{name} of train images is not {n} numbers of sensible size")
    return tuple(float(value) for value in values)


def _shrunk_covariance(features: FloatArray) -> FloatArray:
    """Covariance with a share of its own diagonal; (11, 11)."""
    covariance: FloatArray = np.cov(features.T)
    diagonal = np.diag(np.maximum(np.diag(covariance), LEAST_VARIANCE))
    return (1 - SHRINKAGE) * covariance + SHRINKAGE * diagonal


def _distances(features: FloatArray, mean: FloatArray, covariance: FloatArray) -> FloatArray:
    """Mahalanobis distances; (n,)."""
    centered = features - mean
    solved = np.linalg.solve(covariance, centered.T)  # (11, n)
    squares: FloatArray = np.einsum("ij,ji->i", centered, solved)
    return np.sqrt(squares)
