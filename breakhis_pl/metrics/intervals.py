"""95% intervals in which a case, not an image, is the unit.

Images of one case resemble each other, so 597 images of 27 cases say far less than 597 independent ones. Cases are
drawn with replacement, without strata. The quantiles of the draws (percentile interval) cover too rarely: a bootstrap
of few cases is too narrow, misses the skew near a bound, and knows of no hard case if none is in the sample. So the
draws give the standard error only, a fifth of a case that is decided by chance is added, and Student's t on the logit
scale gives the limits. docs/intervals.md compares other methods, and says how often each one covers the truth.
"""

import math
from collections.abc import Mapping

import numpy as np
from scipy import stats

from breakhis_pl.metrics.cases import CaseTable, Draws
from breakhis_pl.metrics.predictions import FloatArray, IntArray
from breakhis_pl.metrics.registry import METRICS, Metric

Limits = tuple[float, float] | None

INTERVAL_METHOD = (
    "standard error from a bootstrap of cases, plus 0.2 cases decided by chance; limits from Student's t on the logit "
    "scale (log loss: logarithm; calibration error: plain scale; case accuracy: Wilson)"
)
"""The method as metrics.json names it."""

CHANCE_CASES = 0.2
"""Cases decided by chance that are added: chosen by the simulations of docs/intervals.md."""

MIN_CASES_OF_LOG = 5
"""Cases below which a metric without an upper bound has no interval: its upper limit would be in the thousands."""

NO_ERROR_SPREAD = 1e-3
"""Standard error below which the calibration error has no interval, as of a table without a wrong image."""

NO_SPREAD = 1e-12


def t_quantile(df: int) -> float:
    """Return the 97.5% quantile of Student's t distribution."""
    return float(stats.t.ppf(0.975, df))


def case_intervals(
    table: CaseTable, weights: FloatArray | IntArray, metrics: Mapping[str, Metric] = METRICS
) -> dict[str, list[Limits]]:
    """Return the 95% interval of every metric.

    Args:
        table: The cases.
        weights: Draws of cases, (n_draws, n_groups).
        metrics: The metrics.

    Returns:
        Limits by metric: one pair, or one for each class. None if the value is not defined, rests on a single case, or
        does not vary, as the recalls of a network that predicts one class.

    Source:
        Field and Welsh 2007, doi:10.1111/j.1467-9868.2007.00593.x (bootstrap of clusters); Agresti and Coull 1998,
        doi:10.1080/00031305.1998.10480550 (added guesses; the weight is ours); Pepe 2003, The Statistical Evaluation
        of Medical Tests, section 5.2 (logit with the slope); Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    once, draws = Draws(table), Draws(table, weights)
    intervals = {}
    for name, metric in metrics.items():
        if metric.is_for(table.n_classes):
            values = metric.values(once).reshape(-1)  # (1,) or (n_classes,)
            drawn = metric.values(draws).reshape(len(weights), -1)
            intervals[name] = [
                _interval(metric, float(value), drawn[:, index], table, index) for index, value in enumerate(values)
            ]
    return intervals


def missing_interval_reason(metric: Metric, table: CaseTable, index: int) -> str:
    """Say why `case_intervals` returns no interval for a value that is defined."""
    n_cases = metric.n_cases(table, index)
    if metric.basis == "prediction" and n_cases == 0:
        return "no interval: the class is never predicted"
    if n_cases < 2:
        return f"no interval: {'a class has' if metric.basis == 'classes' else 'it is of'} one case only"
    if table.predicts_one_class:
        return "no interval: the network predicts one class"
    if metric.interval == "log" and n_cases < MIN_CASES_OF_LOG:
        return f"no interval: fewer than {MIN_CASES_OF_LOG} cases"
    return "no interval: it hardly varies between draws of cases"


def _interval(metric: Metric, value: float, draws: FloatArray, table: CaseTable, index: int) -> Limits:
    draws = draws[~np.isnan(draws)]
    n_cases = metric.n_cases(table, index)
    error = float(draws.std()) if len(draws) else 0.0
    if math.isnan(value) or n_cases < 2 or (error < NO_SPREAD and (table.predicts_one_class or len(draws) == 0)):
        return None
    if metric.interval == "wilson":
        n_decisions = len(np.unique(table.predictions.case_index * table.n_classes + table.predictions.target))
        return _wilson_interval(value, n_decisions, float(stats.norm.ppf(0.975)))
    if metric.interval == "unbiased":
        return None if error < NO_ERROR_SPREAD else _unbiased_interval(value, draws, n_cases)
    n = metric.n_effective_cases(table, index)
    center, error = _add_chance_cases(value, error, n, chance=metric.chance_value(table))
    reach = t_quantile(math.floor(n) - 1) * error
    if reach < NO_SPREAD or (metric.interval == "log" and n_cases < MIN_CASES_OF_LOG):
        return None
    if metric.interval == "log":
        factor = math.exp(min(700, reach / center))
        return min(value, center / factor), max(value, center * factor)
    return _logit_interval(value, center, reach, metric.range, n_cases)


def _add_chance_cases(value: float, error: float, n: float, *, chance: float) -> tuple[float, float]:
    """Return value and standard error after a part of a case that is decided by chance has been added."""
    total = n + CHANCE_CASES
    center = (value * n + chance * CHANCE_CASES) / total
    return center, math.sqrt(error**2 * n / total + CHANCE_CASES * ((chance - center) / total) ** 2)


def _logit_interval(value: float, center: float, reach: float, bounds: tuple[float, float], n_cases: int) -> Limits:
    """Limits on the logit scale of the bounds, at most as wide as Wilson's for that many independent cases."""
    lower, width = bounds[0], bounds[1] - bounds[0]
    fraction = (center - lower) / width
    logit, reach = math.log(fraction / (1 - fraction)), reach / width / (fraction * (1 - fraction))
    widest = _wilson_interval((value - lower) / width, n_cases, t_quantile(n_cases - 1))
    low = max(0.5 + 0.5 * math.tanh((logit - reach) / 2), widest[0])
    high = min(0.5 + 0.5 * math.tanh((logit + reach) / 2), widest[1])
    return min(lower + width * low, value), max(lower + width * high, value)


def _wilson_interval(fraction: float, n: float, quantile: float) -> tuple[float, float]:
    shrink = 1 + quantile**2 / n
    center = (fraction + quantile**2 / (2 * n)) / shrink
    half_width = quantile / shrink * math.sqrt(fraction * (1 - fraction) / n + quantile**2 / (4 * n**2))
    return max(0.0, min(center - half_width, fraction)), min(1.0, max(center + half_width, fraction))


def _unbiased_interval(value: float, draws: FloatArray, n_cases: int) -> tuple[float, float]:
    """Limits on the plain scale; few images inflate the calibration error.

    The mean of the draws exceeds the value by about the bias. It is subtracted once from the upper limit and twice from
    the lower one, because draws around an inflated value show a part of its bias only.
    """
    bias = float(draws.mean()) - value
    half_width = t_quantile(n_cases - 1) * math.sqrt(n_cases / (n_cases - 1)) * float(draws.std())
    return max(0.0, min(value - 2 * bias - half_width, value)), min(1.0, max(value - bias + half_width, value))
