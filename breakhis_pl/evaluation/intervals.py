"""Intervals and tests that treat a case, not an image, as the unit.

Images of one case resemble each other, so 597 images of 27 cases say far less than 597 independent ones would. Cases
are drawn with replacement, without strata. The quantiles of the draws themselves (percentile interval) cover too
little: a bootstrap of few cases is too narrow, its quantiles miss the skew near a bound, and where no hard case
happens to be among the cases it knows of none. So the draws give only the standard error, a fifth of a case that is
decided by a coin is added, and Student's t on the logit scale gives the width. docs/intervals.md compares this with
other methods, and how often each covers the truth.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from breakhis_pl.errors import ConfigurationError, PredictionsError
from breakhis_pl.evaluation.case_table import CaseTable, tabulate_cases
from breakhis_pl.evaluation.predictions import Predictions
from breakhis_pl.evaluation.student import quantile_95

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

MOST_CASES = 2_000
"""Of a table with intervals, which hold a number for every two cases and for every draw of each; BreakHis has 70."""

_MIN_DRAWS = 100

METRIC_RANGES = MappingProxyType({"mcc": (-1.0, 1.0), "log_loss": (0.0, math.inf)})
"""Of the metrics that do not lie in `UNIT_RANGE`."""

UNIT_RANGE = (0.0, 1.0)


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
        PredictionsError: If there are more than `MOST_CASES`.

    Source:
        Field and Welsh 2007, doi:10.1111/j.1467-9868.2007.00593.x (bootstrap of clusters); Agresti and Coull 1998,
        doi:10.1080/00031305.1998.10480550 (added guesses; the weight is ours); Pepe 2003, The Statistical Evaluation
        of Medical Tests, section 5.2 (logit with the slope); Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    check_case_count(predictions)
    table = tabulate_cases(predictions)
    weights = draw_cases(table.n_cases, seed=seed, n_draws=n_draws)
    values = table.metrics(np.ones((1, table.n_cases)))
    draws = table.metrics(weights)
    has_both = ((weights @ table.support) > 0).all(1)
    return CaseIntervals(
        ci95=MappingProxyType({name: _interval(name, float(values[name][0]), draws[name], table) for name in values}),
        n_draws=n_draws,
        seed=seed,
        draws_lacking_a_class=int((~has_both).sum()),
    )


def check_case_count(predictions: Predictions) -> None:
    """Refuses a table whose intervals no memory holds.

    Raises:
        PredictionsError: If it has more than `MOST_CASES`.
    """
    n_cases = len(set(predictions.case))
    if n_cases > MOST_CASES:
        raise PredictionsError(
            f"{n_cases:,} cases; expected at most {MOST_CASES:,} for intervals: look into the column case"
        )


def draw_cases(n_cases: int, *, seed: int, n_draws: int) -> NDArray[np.int64]:
    """How often each case is in each draw; int64, (n_draws, n_cases).

    Args:
        n_cases: Number of cases.
        seed: Of the draws; 0 or more.
        n_draws: Number of draws, at least 100.

    Raises:
        ConfigurationError: If there are too few draws, or the seed is negative.
    """
    if n_draws < _MIN_DRAWS:
        raise ConfigurationError(f"{n_draws} draws; expected at least {_MIN_DRAWS}, {N_DRAWS} are usual")
    if seed < 0:
        raise ConfigurationError(f"seed {seed} is negative; expected 0 or more")
    return np.random.default_rng(seed).multinomial(n_cases, np.full(n_cases, 1 / n_cases), size=n_draws)


def _interval(name: str, value: float, draws: FloatArray, table: CaseTable) -> tuple[float, float] | None:
    draws = draws[~np.isnan(draws)]
    if math.isnan(value) or table.n_cases_behind(name) < 2 or draws.size == 0:
        return None
    lower, upper = METRIC_RANGES.get(name, UNIT_RANGE)
    if name == "case_accuracy":
        return _wilson_interval(value, float(table.n_decisions.sum()), NormalDist().inv_cdf(0.975))
    if name == "ece":
        return _calibration_interval(value, draws, table.n_cases)
    n = table.n_effective_cases(name)
    center, error = _with_coin(value, float(draws.std()), n, coin=table.value_of_a_coin(name))
    reach = quantile_95(math.floor(n) - 1) * error
    if upper == math.inf:
        return min(value, center * math.exp(-reach / center)), max(value, center * math.exp(min(700, reach / center)))
    return _bounded_interval(value, center, reach, bounds=(lower, upper), n_behind=table.n_cases_behind(name))


def case_level_interval(value: float, draws: FloatArray, *, n_cases: int, coin: float) -> tuple[float, float] | None:
    """The interval of `case_intervals` for a metric in [0, 1] that rests on all cases.

    Args:
        value: Of all images.
        draws: Of the draws of cases; float64, (n_draws,).
        n_cases: Number of cases.
        coin: What it is where the class is decided by chance.

    Returns:
        Lower and upper limit; None where it rests on a single case.
    """
    if n_cases < 2:
        return None
    center, error = _with_coin(value, float(draws.std()), n_cases, coin=coin)
    return _bounded_interval(value, center, quantile_95(n_cases - 1) * error, bounds=UNIT_RANGE, n_behind=n_cases)


def _bounded_interval(
    value: float, center: float, reach: float, *, bounds: tuple[float, float], n_behind: float
) -> tuple[float, float]:
    """Limits on the logit scale of the bounds, no wider than Wilson's for so many cases."""
    lower, upper = bounds
    low, high = _logit_limits((center - lower) / (upper - lower), reach / (upper - lower))
    widest = _wilson_interval((value - lower) / (upper - lower), n_behind, quantile_95(int(n_behind) - 1))
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
