"""Intervals and tests that treat a case, not an image, as the unit.

Images of one case resemble each other, so 597 images of 27 cases say far less than 597 independent ones would. Cases
are drawn with replacement, without strata. The quantiles of the draws themselves (percentile interval) cover too
little: a bootstrap of few cases is too narrow, its quantiles miss the skew near a bound, and where no hard case
happens to be among the cases it knows of none. So the draws give only the standard error, a fifth of a case that is
decided by a coin is added, and Student's t on the logit scale gives the width. docs/intervals.md compares this with
other methods, and how often each covers the truth.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from breakhis_pl.errors import ConfigurationError, PredictionsError, ShapeError, listed
from breakhis_pl.evaluation.case_table import CaseTable, tabulate_cases
from breakhis_pl.evaluation.predictions import Predictions
from breakhis_pl.evaluation.student import quantile_95, two_sided_p

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]

N_DRAWS = 10_000
"""Draws behind an interval, if nothing else is asked for."""

INTERVAL_METHOD = (
    "standard error from a bootstrap of cases, a fifth of a coin-flip case added, Student t on the logit scale "
    "(log_loss: logarithm; ece: plain; case_accuracy: Wilson)"
)
"""As metrics.json names it."""

COIN_CASES = 0.2
"""Cases decided by a coin that are added: chosen by the simulations of docs/intervals.md."""

_MIN_DRAWS = 100
_NO_SPREAD = 1e-12
_RANGES = MappingProxyType({"mcc": (-1.0, 1.0), "log_loss": (0.0, math.inf)})
_UNIT_RANGE = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class CaseIntervals:
    """95 % intervals of all metrics.

    Attributes:
        ci95: Lower and upper limit by metric; None where the metric is not defined, or rests on a single case.
        n_draws: Draws of cases.
        seed: Of the draws.
        draws_lacking_a_class: Draws without an image of one of the classes. Metrics that need both use the others.
    """

    ci95: MappingProxyType[str, tuple[float, float] | None]
    n_draws: int
    seed: int
    draws_lacking_a_class: int


def case_intervals(predictions: Predictions, *, seed: int = 0, n_draws: int = N_DRAWS) -> CaseIntervals:
    """95 % interval of every metric.

    With v the value, s the standard deviation of the draws, n the number of cases and c what a coin scores, a
    fifth of a case (w = 1/5) that is decided by a coin moves the value to u = (n v + w c) / (n + w) and its variance
    to s^2 n / (n + w) + w (c - u)^2 / (n + w)^2. The limits are u -+ t(n - 1) times its root on the logit scale, to
    which it is carried by the slope there (the logits of the draws themselves run off to infinity where a draw holds
    easy cases only); v always lies between them. Neither goes beyond Wilson's limit for as many cases as the metric
    rests on, each right or wrong as a whole: images cannot depend on each other more than that. n counts all cases, or
    those of the class for its recall; where both classes weigh alike it is `CaseTable.n_effective_cases`. The ECE,
    which few images inflate, keeps its own scale; what the draws exceed it by on average is taken off its upper limit,
    and twice off the lower, because draws around an inflated value show only a part of its bias. The case accuracy, a
    share of independent decisions, needs no draws: its interval is Wilson's.

    Args:
        predictions: One row per image, at least one.
        seed: Of the draws; 0 or more.
        n_draws: Number of draws, at least 100.

    Raises:
        ConfigurationError: If there are too few draws, or the seed is negative.

    Source:
        Field and Welsh 2007, doi:10.1111/j.1467-9868.2007.00593.x (bootstrap of clusters); Agresti and Coull 1998,
        doi:10.1080/00031305.1998.10480550 (added guesses; the weight is ours); Pepe 2003, The Statistical Evaluation
        of Medical Tests, section 5.2 (logit with the slope); Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    table = tabulate_cases(predictions)
    weights = _draw_cases(table.n_cases, seed=seed, n_draws=n_draws)
    values = table.metrics(np.ones((1, table.n_cases)))
    draws = table.metrics(weights)
    has_both = ((weights @ table.support) > 0).all(1)
    return CaseIntervals(
        ci95=MappingProxyType({name: _interval(name, float(values[name][0]), draws[name], table) for name in values}),
        n_draws=n_draws,
        seed=seed,
        draws_lacking_a_class=int((~has_both).sum()),
    )


def _draw_cases(n_cases: int, *, seed: int, n_draws: int) -> NDArray[np.int64]:
    """How often each case is in each draw; int64, (n_draws, n_cases)."""
    if n_draws < _MIN_DRAWS:
        raise ConfigurationError(f"{n_draws} draws; expected at least {_MIN_DRAWS}, {N_DRAWS} are usual")
    if seed < 0:
        raise ConfigurationError(f"seed {seed} is negative; expected 0 or more")
    return np.random.default_rng(seed).multinomial(n_cases, np.full(n_cases, 1 / n_cases), size=n_draws)


def _interval(name: str, value: float, draws: FloatArray, table: CaseTable) -> tuple[float, float] | None:
    draws = draws[~np.isnan(draws)]
    if math.isnan(value) or table.n_cases_behind(name) < 2 or draws.size == 0:
        return None
    lower, upper = _RANGES.get(name, _UNIT_RANGE)
    if name == "case_accuracy":
        return _wilson_interval(value, float(table.n_decisions.sum()), NormalDist().inv_cdf(0.975))
    if name == "ece":
        return _calibration_interval(value, draws, table.n_cases)
    n = table.n_effective_cases(name)
    center, error = _with_coin(value, float(draws.std()), n, coin=table.value_of_a_coin(name))
    reach = quantile_95(math.floor(n) - 1) * error
    if upper == math.inf:
        return min(value, center * math.exp(-reach / center)), max(value, center * math.exp(min(700, reach / center)))
    low, high = _logit_limits((center - lower) / (upper - lower), reach / (upper - lower))
    n_behind = table.n_cases_behind(name)
    widest = _wilson_interval((value - lower) / (upper - lower), n_behind, quantile_95(n_behind - 1))
    low, high = (lower + (upper - lower) * limit for limit in (max(low, widest[0]), min(high, widest[1])))
    return min(low, value), max(high, value)


def _with_coin(value: float, error: float, n: float, *, coin: float) -> tuple[float, float]:
    """A value and its standard error, after a part of a case has been added that is decided by a coin."""
    total = n + COIN_CASES
    center = (value * n + coin * COIN_CASES) / total
    return center, math.sqrt(error**2 * n / total + COIN_CASES * ((coin - center) / total) ** 2)


def _logit_limits(share: float, reach: float) -> tuple[float, float]:
    on_scale = math.log(share / (1 - share))
    reach /= share * (1 - share)
    return 0.5 + 0.5 * math.tanh((on_scale - reach) / 2), 0.5 + 0.5 * math.tanh((on_scale + reach) / 2)


def _wilson_interval(share: float, n: float, quantile: float) -> tuple[float, float]:
    shrink = 1 + quantile**2 / n
    center = (share + quantile**2 / (2 * n)) / shrink
    half_width = quantile / shrink * math.sqrt(share * (1 - share) / n + quantile**2 / (4 * n**2))
    return max(0.0, min(center - half_width, share)), min(1.0, max(center + half_width, share))


def _calibration_interval(value: float, draws: FloatArray, n_cases: int) -> tuple[float, float]:
    bias = float(draws.mean()) - value
    half_width = quantile_95(n_cases - 1) * math.sqrt(n_cases / (n_cases - 1)) * float(draws.std())
    return max(0.0, min(value - 2 * bias - half_width, value)), min(1.0, max(value - bias + half_width, value))


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
        n_cases: Cases behind it.
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
    tables = tabulate_cases(a), tabulate_cases(align(b, a))
    n_cases = tables[0].n_cases
    weights = _draw_cases(n_cases, seed=seed, n_draws=n_draws)
    values_a, values_b = (table.metrics(np.ones((1, n_cases))) for table in tables)
    unknown = [metric for metric in metrics if metric not in values_a]
    if unknown:
        raise ConfigurationError(
            f"metric {listed(unknown)} does not exist; expected one of {listed(values_a, len(values_a))}"
        )
    undefined = [metric for metric in metrics if np.isnan(values_a[metric][0] + values_b[metric][0])]
    if undefined:
        raise PredictionsError(
            f"{listed(undefined)} is not defined for these images: a class has no image or is never predicted; "
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
    lower, upper = _RANGES.get(metric, _UNIT_RANGE)
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
        raise PredictionsError(f"{listed(sorted(differing))}: in one table only; expected the same images in both")
    aligned = predictions.take(np.array([row_of_image[image] for image in reference.image], dtype=np.int64))
    other = [
        image
        for row, image in enumerate(reference.image)
        if aligned.target[row] != reference.target[row] or aligned.case[row] != reference.case[row]
    ]
    if other:
        raise PredictionsError(f"{listed(other)}: of another class or case in the other table; expected the same truth")
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
        raise ConfigurationError(f"{listed(wrong)} is no p-value; expected numbers between 0 and 1")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, p_values[i] * (len(p_values) - rank)))
        adjusted[i] = largest
    return adjusted
