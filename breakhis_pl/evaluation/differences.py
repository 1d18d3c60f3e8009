"""Two networks on the same images: differences with intervals over cases, and tests.

The unit is the case, as in `intervals`; every draw takes the same cases of both networks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from breakhis_pl.errors import ConfigurationError, PredictionsError, ShapeError, join_truncated
from breakhis_pl.evaluation.case_table import tabulate_cases
from breakhis_pl.evaluation.intervals import METRIC_RANGES, N_DRAWS, UNIT_RANGE, check_case_count, draw_cases
from breakhis_pl.evaluation.predictions import Predictions
from breakhis_pl.evaluation.student import quantile_95, two_sided_p
from breakhis_pl.evaluation.texts import named

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]

_NO_SPREAD = 1e-12


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """The difference of two models on the same images, a minus b.

    Attributes:
        metric: Name as in `metrics.point_values`.
        value_a: Value of a.
        value_b: Value of b.
        difference: value_a - value_b.
        ci95: Lower and upper limit; None if it rests on a single case, or the difference is the same in every draw.
        p_value: Two-sided, from Student's t; None where there is no interval. 1 for equal predictions.
        n_cases: Cases behind it; for what weighs both classes alike, those of the rarer class.
    """

    metric: str
    value_a: float
    value_b: float
    difference: float
    ci95: tuple[float, float] | None
    p_value: float | None
    n_cases: int


def paired_difference(
    a: Predictions, b: Predictions, *, metric: str = "accuracy", seed: int = 0, n_draws: int = N_DRAWS
) -> PairedDifference:
    """Difference of a metric between two models, with interval and p-value; every draw takes the same cases of both.

    Args:
        a: Predictions of one model.
        b: Predictions of another for the same images, in any order.
        metric: Name as in `metrics.point_values`.
        seed: Of the draws; 0 or more.
        n_draws: Number of draws, at least 100.

    Raises:
        PredictionsError: If the images, their classes or their cases differ, or the metric is not defined for them.
        ConfigurationError: If there is no such metric, too few draws, or the seed is negative.

    Source:
        Hesterberg 2015, doi:10.1080/00031305.2015.1089789: the draws' standard error times sqrt(n / (n - 1)), with
        Student's t, on the plain scale.
    """
    return paired_differences(a, b, metrics=(metric,), seed=seed, n_draws=n_draws)[0]


def paired_differences(
    a: Predictions, b: Predictions, *, metrics: Sequence[str], seed: int = 0, n_draws: int = N_DRAWS
) -> list[PairedDifference]:
    """As `paired_difference`, of several metrics from the same draws.

    Args:
        a: Predictions of one model.
        b: Predictions of another for the same images, in any order.
        metrics: Names as in `metrics.point_values`.
        seed: Of the draws; 0 or more.
        n_draws: Number of draws, at least 100.

    Raises:
        PredictionsError: If the images, their classes or their cases differ, or a metric is not defined for them.
        ConfigurationError: If there is no such metric, too few draws, or the seed is negative.
    """
    check_case_count(a)
    tables = tabulate_cases(a), tabulate_cases(align(b, a))
    n_cases = tables[0].n_cases
    weights = draw_cases(n_cases, seed=seed, n_draws=n_draws)
    values_a, values_b = (table.metrics(np.ones((1, n_cases))) for table in tables)
    unknown = [metric for metric in metrics if metric not in values_a]
    if unknown:
        raise ConfigurationError(
            f"metric {join_truncated(unknown)} does not exist; "
            f"expected one of {join_truncated(values_a, len(values_a))}"
        )
    undefined = [metric for metric in metrics if np.isnan(values_a[metric][0] + values_b[metric][0])]
    if undefined:
        raise PredictionsError(
            f"{join_truncated(undefined)} is not defined for these images: a class has no image or is never predicted; "
            "compare another metric"
        )
    draws_a, draws_b = (table.metrics(weights) for table in tables)
    return [
        _difference(
            metric,
            float(values_a[metric][0]),
            float(values_b[metric][0]),
            draws_a[metric] - draws_b[metric],
            min(table.n_cases_behind(metric) for table in tables),
        )
        for metric in metrics
    ]


def _difference(metric: str, value_a: float, value_b: float, draws: FloatArray, n_cases: int) -> PairedDifference:
    lower, upper = METRIC_RANGES.get(metric, UNIT_RANGE)
    limits, p_value = _difference_interval(value_a - value_b, draws[~np.isnan(draws)], n_cases)
    if limits is not None:
        limits = max(limits[0], lower - upper), min(limits[1], upper - lower)
    return PairedDifference(metric, value_a, value_b, value_a - value_b, limits, p_value, n_cases)


def _difference_interval(
    difference: float, draws: FloatArray, n_cases: int
) -> tuple[tuple[float, float] | None, float | None]:
    if n_cases < 2 or draws.size == 0:
        return None, None
    error = float(draws.std()) * math.sqrt(n_cases / (n_cases - 1))
    if error < _NO_SPREAD:
        return ((0.0, 0.0), 1.0) if abs(difference) < _NO_SPREAD else (None, None)
    half_width = quantile_95(n_cases - 1) * error
    return (difference - half_width, difference + half_width), two_sided_p(difference / error, df=n_cases - 1)


def align(predictions: Predictions, reference: Predictions) -> Predictions:
    """The rows of a table in the order of another's images.

    Raises:
        PredictionsError: If the images, their classes or their cases differ.
    """
    row_of_image = {image: row for row, image in enumerate(predictions.image)}
    differing = row_of_image.keys() ^ set(reference.image)
    if differing:
        images = join_truncated(map(named, sorted(differing)))
        raise PredictionsError(f"{images}: in one table only; expected the same images in both")
    aligned = predictions.take(np.array([row_of_image[image] for image in reference.image], dtype=np.int64))
    other = [
        image
        for row, image in enumerate(reference.image)
        if aligned.target[row] != reference.target[row] or aligned.case[row] != reference.case[row]
    ]
    if other:
        images = join_truncated(map(named, other))
        raise PredictionsError(f"{images}: of another class or case in the other table; expected the same truth")
    return aligned


def mcnemar(a_correct: BoolArray, b_correct: BoolArray) -> float:
    """Exact two-sided p-value that two models err equally often, by the images that one of them alone has right.

    It takes images as independent. Images of a case are not, so it claims too much here; `paired_difference` does not.

    Args:
        a_correct: Whether one model is right; bool, (n,).
        b_correct: Whether the other is; bool, (n,).

    Returns:
        In (0, 1]; 1 where they never differ.

    Raises:
        ShapeError: If the arrays are empty or differ in length.

    Source:
        McNemar 1947, doi:10.1007/BF02295996, with the binomial distribution in place of its approximation.

    Example:
        >>> a_correct = np.array([True] * 6 + [False] * 2)
        >>> round(mcnemar(a_correct, ~a_correct), 4)
        0.2891
    """
    if a_correct.size == 0 or a_correct.shape != b_correct.shape:
        raise ShapeError(
            f"arrays of shape {a_correct.shape} and {b_correct.shape}; expected one value per image in both"
        )
    a_alone, b_alone = int((a_correct & ~b_correct).sum()), int((b_correct & ~a_correct).sum())
    n = a_alone + b_alone
    ways = sum(math.comb(n, k) for k in range(min(a_alone, b_alone) + 1))
    return min(1.0, float(2 * ways / 2**n))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for there being several, in their order.

    Args:
        p_values: Each 0..1.

    Raises:
        ConfigurationError: If one is not between 0 and 1.

    Source:
        Holm 1979, Scandinavian Journal of Statistics 6, 65-70.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    wrong = [p for p in p_values if not 0 <= p <= 1]
    if wrong:
        raise ConfigurationError(f"{join_truncated(wrong)} is no p-value; expected numbers between 0 and 1")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, p_values[i] * (len(p_values) - rank)))
        adjusted[i] = largest
    return adjusted
