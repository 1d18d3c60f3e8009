"""ROC and precision-recall curves of two classes with bands over cases, and bins of calibration.

A band holds 95% at each place of the curve (pointwise), not the whole curve.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats

from breakhis_pl.metrics.cases import CaseTable, draw_cases
from breakhis_pl.metrics.classification import N_CALIBRATION_BINS, calibration_bin, calibration_pairs
from breakhis_pl.metrics.intervals import t_quantile
from breakhis_pl.metrics.predictions import FloatArray, IntArray, Predictions

N_BAND_DRAWS = 2000
"""Draws behind a band; its limits differ by some tenths of a percent from those of infinitely many."""

GRID = np.linspace(0.0, 1.0, 101)
"""Rates at which a band is computed."""

_DRAWS_AT_ONCE = 250  # bounds memory: 7,909 images take 16 MB an array
_ROUNDING = 1e-9


class Curve(NamedTuple):
    """A curve of rates over thresholds.

    Attributes:
        x: False positive rate, or recall; float64, (n_points,), 0 to 1.
        y: True positive rate, or precision; float64, (n_points,), 0 to 1.
        point: x and y of the decisions; None if y is not defined for them.
        band: Grid, lower and upper end, float64, (101,) each; None with fewer than two cases of a class.
    """

    x: FloatArray
    y: FloatArray
    point: tuple[float, float] | None
    band: tuple[FloatArray, FloatArray, FloatArray] | None


class ReliabilityBins(NamedTuple):
    """Images by predicted probability of the positive class, in ten bins.

    Attributes:
        predicted: Mean probability, NaN for an empty bin; float64, (10,).
        observed: Fraction of positive images, NaN for an empty bin; float64, (10,).
        counts: Number of images; int64, (10,).
    """

    predicted: FloatArray
    observed: FloatArray
    counts: IntArray


def roc_curve(predictions: Predictions, *, with_band: bool = True) -> Curve | None:
    """Compute true over false positive rate; None if a class has no image.

    Source:
        Fawcett 2006, doi:10.1016/j.patrec.2005.10.010, section 7.1 for the vertical averaging of the band.
    """
    from sklearn import metrics  # noqa: PLC0415 - takes a second

    is_positive, is_called = predictions.target == 1, predictions.predicted == 1
    if is_positive.all() or not is_positive.any():
        return None
    x, y, _ = metrics.roc_curve(is_positive, predictions.prob_positive, drop_intermediate=False)
    point = (float(is_called[~is_positive].mean()), float(is_called[is_positive].mean()))
    return Curve(x, y, point, _band(predictions, _true_rate_at) if with_band else None)


def precision_recall_curve(predictions: Predictions) -> Curve | None:
    """Compute precision over recall, recall falling; None if a class has no image.

    At a given recall, the band has the precision of the strictest threshold that reaches it.

    Source:
        Davis and Goadrich 2006, doi:10.1145/1143844.1143874, on why points are joined by steps.
    """
    from sklearn import metrics  # noqa: PLC0415 - takes a second

    is_positive, is_called = predictions.target == 1, predictions.predicted == 1
    if is_positive.all() or not is_positive.any():
        return None
    precision, recall, _ = metrics.precision_recall_curve(is_positive, predictions.prob_positive)
    precision[-1] = precision[-2]  # scikit-learn ends at a precision of 1, which no threshold has
    decided = (float(is_called[is_positive].mean()), float(is_positive[is_called].mean())) if is_called.any() else None
    return Curve(recall, precision, decided, _band(predictions, _precision_at))


def reliability_bins(predictions: Predictions) -> ReliabilityBins:
    """Group images by the probability of the positive class."""
    probability, outcome = calibration_pairs(predictions)
    of_image = calibration_bin(probability)
    counts = np.bincount(of_image, minlength=N_CALIBRATION_BINS)
    with np.errstate(invalid="ignore"):
        predicted, observed = (
            np.bincount(of_image, weights=each, minlength=N_CALIBRATION_BINS) / counts
            for each in (probability, outcome)
        )
    return ReliabilityBins(predicted, observed, counts.astype(np.int64))


def _band(
    predictions: Predictions, curve_at: Callable[[FloatArray, FloatArray], FloatArray]
) -> tuple[FloatArray, FloatArray, FloatArray] | None:
    """Quantiles of the curves of bootstrap draws, widened for the number of cases of the rarer class.

    Source:
        Hesterberg 2015, doi:10.1080/00031305.2015.1089789, expanded percentiles.
    """
    table = CaseTable(predictions)
    n_behind = int(table.cases_of_class.min())
    if n_behind < 2:
        return None
    order = np.argsort(-predictions.prob_positive, kind="stable")
    is_last_of_tie = np.append(np.diff(predictions.prob_positive[order]) != 0, True)
    group, is_positive = table.group[order], predictions.target[order] == 1
    weights = draw_cases(table.n_groups, seed=0, n_draws=N_BAND_DRAWS).astype(np.float64)
    curves = []
    for first in range(0, N_BAND_DRAWS, _DRAWS_AT_ONCE):
        of_image = weights[first : first + _DRAWS_AT_ONCE, group]  # (n_draws, n_images)
        none = np.zeros((len(of_image), 1))
        false, true = (
            np.hstack([none, np.cumsum(of_image * is_one, axis=1)[:, is_last_of_tie]])
            for is_one in (~is_positive, is_positive)
        )  # images above each threshold, (n_draws, n_thresholds + 1)
        has_both = (false[:, -1] > 0) & (true[:, -1] > 0)
        curves.append(curve_at(false[has_both], true[has_both]))
    tail = stats.norm.cdf(-math.sqrt(n_behind / (n_behind - 1)) * t_quantile(n_behind - 1))
    lower, upper = np.quantile(np.vstack(curves), [tail, 1 - tail], axis=0)
    return GRID, lower, upper


def _true_rate_at(false: FloatArray, true: FloatArray) -> FloatArray:
    """True positive rate of each draw at the false positive rates of the grid; (n_draws, 101)."""
    start = 2.0 * np.arange(len(false))[:, None]  # one call for all draws: each has a part of the axis
    x, y = false / false[:, -1:], true / true[:, -1:]
    return np.interp((GRID + start).ravel(), (x + start).ravel(), y.ravel()).reshape(len(false), GRID.size)


def _precision_at(false: FloatArray, true: FloatArray) -> FloatArray:
    """Precision of each draw at the strictest threshold that reaches the recalls of the grid; (n_draws, 101)."""
    start = 2.0 * np.arange(len(true))[:, None]
    wanted = np.maximum(GRID, 10 * _ROUNDING)  # at recall 0, that of the first positive image
    reached = np.searchsorted((true / true[:, -1:] + start).ravel(), (wanted - _ROUNDING + start).ravel())
    n_called = false + true
    precision = np.divide(true, n_called, out=np.zeros_like(true), where=n_called > 0)
    return precision.ravel()[reached].reshape(len(true), GRID.size)
