"""What the figures of scores are drawn from: ROC, precision and recall with bands over cases, calibration.

Bands resample cases with replacement, as the intervals do, and hold at each place of a curve alone (pointwise): more
than 5 % of such draws leave a band somewhere.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from breakhis_pl.data.breakhis import CLASS_NAMES
from breakhis_pl.errors import ConfigurationError, PredictionsError
from breakhis_pl.evaluation import scores
from breakhis_pl.evaluation.intervals import MOST_CASES
from breakhis_pl.evaluation.predictions import Predictions, index_of
from breakhis_pl.evaluation.score_figures import Band
from breakhis_pl.evaluation.student import quantile_95

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

N_BAND_DRAWS = 2000
"""Draws behind a band; its limits lie some tenths of a percent beside those of infinitely many."""

GRID = np.linspace(0.0, 1.0, 101)
"""Rates at which a band is computed."""

BAND_LABEL = "95% band, cases resampled"

_DRAWS_AT_ONCE = 250
"""Bounds memory: 7,909 images then take 16 MB an array."""

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A curve of rates over thresholds; malignant is the positive class.

    Attributes:
        x: False positive rate, or recall; float64, (n_points,), 0..1.
        y: True positive rate, or precision; float64, (n_points,), 0..1.
        point: x and y of the decisions in the table; None where y is not defined for them.
        band: None where there are fewer than two cases of a class, or more than `intervals.MOST_CASES` in all.
    """

    x: FloatArray
    y: FloatArray
    point: tuple[float, float] | None
    band: Band | None


@dataclass(frozen=True, slots=True, eq=False)
class ReliabilityBins:
    """Images by predicted probability of malignant, in the bins of the expected calibration error.

    Attributes:
        edges: float64, (n_bins + 1,), 0..1.
        predicted: Mean predicted probability, NaN where a bin is empty; float64, (n_bins,).
        observed: Share of malignant images, NaN where a bin is empty; float64, (n_bins,).
        counts: Number of images; int64, (n_bins,).
    """

    edges: FloatArray
    predicted: FloatArray
    observed: FloatArray
    counts: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class _Ranking:
    """Images by falling probability of malignant; images of equal probability pass a threshold together.

    Attributes:
        case: Index of each image's case; int64, (n_images,).
        is_malignant: bool, (n_images,).
        ends: Index of the last image at each threshold; int64, (n_thresholds,).
    """

    case: IntArray
    is_malignant: BoolArray
    ends: IntArray


def roc_points(predictions: Predictions, *, seed: int = 0, n_draws: int = N_BAND_DRAWS) -> Curve | None:
    """True over false positive rate, from the strictest threshold to the loosest.

    In a draw of cases, the true positive rate at a given false positive rate lies on the line between its neighbors.

    Args:
        predictions: One row per image, at least one.
        seed: Of the draws; 0 or more.
        n_draws: Number of draws, at least 100.

    Returns:
        The curve from (0, 0) to (1, 1); None where a class has no image.

    Raises:
        PredictionsError: If there is no row.
        ConfigurationError: If there are too few draws, or the seed is negative.

    Source:
        Fawcett 2006, doi:10.1016/j.patrec.2005.10.010, section 7.1 for the vertical averaging that the band rests on.
    """
    ranking = _ranked(predictions, seed=seed, n_draws=n_draws)
    false, true = _passing(ranking, np.ones((1, int(ranking.case.max()) + 1)))
    if not (false[0, -1] and true[0, -1]):
        return None
    x, y = _rates(false)[0], _rates(true)[0]
    called = predictions.predicted == 1
    malignant = predictions.target == 1
    return Curve(
        x=x,
        y=y,
        point=(float(called[~malignant].mean()), float(called[malignant].mean())),
        band=_band(ranking, _true_rate_at, seed=seed, n_draws=n_draws),
    )


def precision_recall_points(predictions: Predictions, *, seed: int = 0, n_draws: int = N_BAND_DRAWS) -> Curve | None:
    """Precision over recall, in the order of a rising threshold, so that recall falls.

    In a draw of cases, the precision at a given recall is that at the strictest threshold that reaches it: the steps
    of which the average precision is the area.

    Args:
        predictions: One row per image, at least one.
        seed: Of the draws; 0 or more.
        n_draws: Number of draws, at least 100.

    Returns:
        The curve, with its last precision carried on to recall 0; None where a class has no image.

    Raises:
        PredictionsError: If there is no row.
        ConfigurationError: If there are too few draws, or the seed is negative.

    Source:
        Davis and Goadrich 2006, doi:10.1145/1143844.1143874, on why no line joins the points.
    """
    ranking = _ranked(predictions, seed=seed, n_draws=n_draws)
    false, true = _passing(ranking, np.ones((1, int(ranking.case.max()) + 1)))
    if not (false[0, -1] and true[0, -1]):
        return None
    recall, precision = _rates(true)[0, 1:], _precision(false, true)[0, 1:]
    called = predictions.predicted == 1
    malignant = predictions.target == 1
    return Curve(
        x=np.append(recall[::-1], 0.0),
        y=np.append(precision[::-1], precision[0]),
        point=(float(called[malignant].mean()), float(malignant[called].mean())) if called.any() else None,
        band=_band(ranking, _precision_at, seed=seed, n_draws=n_draws),
    )


def reliability_bins(predictions: Predictions) -> ReliabilityBins:
    """Images in the bins of `scores.expected_calibration_error`.

    Args:
        predictions: One row per image.
    """
    n_bins = scores.N_CALIBRATION_BINS
    of_image = scores.calibration_bin(predictions.prob_malignant)
    counts = np.bincount(of_image, minlength=n_bins).astype(np.int64)

    def mean(values: FloatArray) -> FloatArray:
        sums = np.bincount(of_image, weights=values, minlength=n_bins)
        means: FloatArray = np.divide(sums, counts, out=np.full(n_bins, np.nan), where=counts > 0)
        return means

    return ReliabilityBins(
        edges=np.linspace(0.0, 1.0, n_bins + 1),
        predicted=mean(predictions.prob_malignant),
        observed=mean(predictions.target.astype(np.float64)),
        counts=counts,
    )


def _ranked(predictions: Predictions, *, seed: int, n_draws: int) -> _Ranking:
    if len(predictions) == 0:
        raise PredictionsError("a table of predictions without rows has no curve; expected one row per image")
    if n_draws < 100:
        raise ConfigurationError(f"{n_draws} draws; expected at least 100, {N_BAND_DRAWS} are usual")
    if seed < 0:
        raise ConfigurationError(f"seed {seed} is negative; expected 0 or more")
    order = np.argsort(-predictions.prob_malignant, kind="stable")
    falls = np.diff(predictions.prob_malignant[order]) != 0
    return _Ranking(
        case=index_of(predictions.case)[order],
        is_malignant=predictions.target[order] == CLASS_NAMES.index("malignant"),
        ends=np.flatnonzero(np.append(falls, True)),
    )


def _passing(ranking: _Ranking, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Benign and malignant images above each threshold, first none; each float64, (n_draws, n_thresholds + 1).

    Args:
        ranking: Images in order.
        weights: How often each case is in each draw; (n_draws, n_cases).
    """
    of_image = weights[:, ranking.case]  # (n_draws, n_images)
    none = np.zeros((len(weights), 1))
    false, true = (
        np.hstack([none, np.cumsum(of_image * is_one, axis=1)[:, ranking.ends]])
        for is_one in (~ranking.is_malignant, ranking.is_malignant)
    )
    return false, true


def _rates(passing: FloatArray) -> FloatArray:
    rates: FloatArray = passing / passing[:, -1:]
    return rates


def _precision(false: FloatArray, true: FloatArray) -> FloatArray:
    """Precision at each threshold, 0 where nothing passes it."""
    called = false + true
    return np.divide(true, called, out=np.zeros_like(true), where=called > 0)


def _true_rate_at(false: FloatArray, true: FloatArray) -> FloatArray:
    """True positive rate of each draw where its false positive rate is that of the grid; (n_draws, n_grid)."""
    # one call for all draws: each has its own stretch of two units on the axis
    start = 2.0 * np.arange(len(false))[:, None]
    at = np.interp((GRID + start).ravel(), (_rates(false) + start).ravel(), _rates(true).ravel())
    return at.reshape(len(false), GRID.size)


def _precision_at(false: FloatArray, true: FloatArray) -> FloatArray:
    """Precision of each draw at the strictest threshold that reaches a recall of the grid; (n_draws, n_grid)."""
    start = 2.0 * np.arange(len(true))[:, None]
    wanted = np.maximum(GRID, _ROUNDING * 10)  # at recall 0 that of the first malignant image
    reached = np.searchsorted((_rates(true) + start).ravel(), (wanted - _ROUNDING + start).ravel())
    return _precision(false, true).ravel()[reached].reshape(len(true), GRID.size)


def _band(
    ranking: _Ranking, curve_at: Callable[[FloatArray, FloatArray], FloatArray], *, seed: int, n_draws: int
) -> Band | None:
    """Quantiles of the curves of draws, moved outwards for the number of cases of the rarer class.

    Source:
        Hesterberg 2015, doi:10.1080/00031305.2015.1089789, expanded percentiles.
    """
    n_cases = int(ranking.case.max()) + 1
    behind = min(np.unique(ranking.case[ranking.is_malignant == is_one]).size for is_one in (False, True))
    if behind < 2 or n_cases > MOST_CASES:
        return None
    draws = np.random.default_rng(seed).multinomial(n_cases, np.full(n_cases, 1 / n_cases), size=n_draws)
    curves = []
    for first in range(0, n_draws, _DRAWS_AT_ONCE):
        false, true = _passing(ranking, draws[first : first + _DRAWS_AT_ONCE].astype(np.float64))
        has_both = (false[:, -1] > 0) & (true[:, -1] > 0)
        curves.append(curve_at(false[has_both], true[has_both]))
    tail = NormalDist().cdf(-math.sqrt(behind / (behind - 1)) * quantile_95(behind - 1))
    lower, upper = np.quantile(np.vstack(curves), [tail, 1 - tail], axis=0)
    return Band(x=GRID, lower=lower, upper=upper, label=BAND_LABEL)
