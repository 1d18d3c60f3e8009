"""Two networks on the same images: differences with intervals over cases, and tests.

Every draw takes the same cases of both networks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from breakhis_pl.errors import PredictionsError
from breakhis_pl.metrics.cases import MAX_GROUPS, N_DRAWS, CaseTable, Draws, draw_cases
from breakhis_pl.metrics.intervals import NO_SPREAD, Limits, t_quantile
from breakhis_pl.metrics.predictions import BoolArray, FloatArray, Predictions, align
from breakhis_pl.metrics.registry import METRICS, Metric


@dataclass(frozen=True)
class Difference:
    """Difference of a metric of two networks, first minus second.

    Attributes:
        metric: Name of the metric.
        value: The difference; None if the metric is not defined for both.
        ci95: Its interval; None if it rests on a single case, or does not vary over the draws.
        p: Two-sided p-value of Student's t; None without an interval.
        n_cases: Cases that it is based on; of the class with fewer, if both classes weigh the same.
    """

    metric: str
    value: float | None
    ci95: Limits
    p: float | None
    n_cases: int


def paired_differences(
    first: Predictions,
    second: Predictions,
    metrics: Sequence[Metric],
    *,
    case_weights: FloatArray | None = None,
    seed: int = 0,
    n_draws: int = N_DRAWS,
) -> list[Difference]:
    """Compare two networks.

    Args:
        first: Predictions of one network.
        second: Predictions of the other for the same images, in any order.
        metrics: Metrics of all classes together, not per class.
        case_weights: Weight of each case, in the order of their sorted names, for at most `MAX_GROUPS` cases; None: 1.
        seed: Seed of the draws of cases.
        n_draws: Number of draws.

    Raises:
        PredictionsError: If images, classes or cases differ.

    Source:
        Hesterberg 2015, doi:10.1080/00031305.2015.1089789: the draws' standard error times sqrt(n / (n - 1)), with
        Student's t, on the plain scale; n is `Metric.n_effective_cases`.
    """
    tables = CaseTable(first), CaseTable(align(second, first))
    n_groups = tables[0].n_groups
    weight = np.ones(n_groups) if case_weights is None else case_weights
    weights = draw_cases(n_groups, seed=seed, n_draws=n_draws) * weight
    once = [Draws(table, weight[None]) for table in tables]
    drawn = [Draws(table, weights) for table in tables]
    return [
        _difference(
            metric,
            float(metric.values(once[0])[0] - metric.values(once[1])[0]),
            metric.values(drawn[0]) - metric.values(drawn[1]),
            min(metric.n_cases(table) for table in tables),
            min(metric.n_effective_cases(table) for table in tables),
        )
        for metric in metrics
    ]


def _difference(metric: Metric, value: float, draws: FloatArray, n_cases: int, n_effective: float) -> Difference:
    if math.isnan(value):
        return Difference(metric.name, None, None, None, n_cases)
    draws = draws[~np.isnan(draws)]
    if n_cases < 2 or len(draws) == 0 or draws.std() < NO_SPREAD:
        return Difference(metric.name, value, None, None, n_cases)
    n = math.floor(n_effective)
    error = float(draws.std()) * math.sqrt(n / (n - 1))
    largest = metric.range[1] - metric.range[0]
    half_width = t_quantile(n - 1) * error
    limits = max(value - half_width, -largest), min(value + half_width, largest)
    return Difference(metric.name, value, limits, float(2 * stats.t.sf(abs(value) / error, n - 1)), n_cases)


def pooled_differences(
    pairs: Sequence[tuple[Predictions, Predictions]], metrics: Sequence[Metric], **options: int
) -> list[Difference]:
    """Compare two configurations over several folds, with the case as unit.

    A case that is tested in several folds counts once: its images have the weight 1 / number of these folds. Networks
    of different folds rank on scales of their own, so only metrics of decisions can be pooled.

    Args:
        pairs: Predictions of both configurations for each fold (and seed) that both have.
        metrics: Metrics of decisions.
        **options: `seed` and `n_draws` of `paired_differences`.
    """
    parts: list[list[Predictions]] = [[], []]
    for number, pair in enumerate(pairs):
        for part, predictions in zip(parts, pair, strict=True):
            part.append(
                replace(predictions, image=np.array([f"{number}/{name}" for name in predictions.image], object))
            )
    first, second = (concatenate(part) for part in parts)
    cases = np.unique(first.case)
    n_folds = sum(np.isin(cases, pair[0].case).astype(np.int64) for pair in pairs)
    case_weights = None if (np.asarray(n_folds) == 1).all() else 1 / np.asarray(n_folds)
    if case_weights is not None and len(cases) > MAX_GROUPS:
        raise PredictionsError(
            f"{len(cases):,} cases, some tested in several folds: at most {MAX_GROUPS:,} are possible"
        )
    return paired_differences(first, second, metrics, case_weights=case_weights, **options)


def concatenate(tables: Sequence[Predictions]) -> Predictions:
    """Return the rows of all tables, which have the same classes."""

    def rows(name: str) -> Any:
        return np.concatenate([getattr(table, name) for table in tables])

    is_known = all(table.magnification is not None for table in tables)
    return Predictions(
        classes=tables[0].classes,
        image=rows("image"),
        patient=rows("patient"),
        case=rows("case"),
        magnification=rows("magnification") if is_known else None,
        target=rows("target"),
        probabilities=rows("probabilities"),
        predicted=rows("predicted"),
    )


def mcnemar(first_correct: BoolArray, second_correct: BoolArray) -> float:
    """Return the exact two-sided p-value that two networks err equally often.

    It takes images as independent, which those of a case are not: it claims too much.

    Args:
        first_correct: Whether one network is correct; bool, (n_images,).
        second_correct: Whether the other one is.

    Source:
        McNemar 1947, doi:10.1007/BF02295996, with the binomial distribution.

    Example:
        >>> correct = np.array([True] * 6 + [False] * 2)
        >>> round(mcnemar(correct, ~correct), 4)
        0.2891
    """
    first_alone, second_alone = (
        int((first_correct & ~second_correct).sum()),
        int((second_correct & ~first_correct).sum()),
    )
    n = first_alone + second_alone
    return 1.0 if n == 0 else float(stats.binomtest(first_alone, n).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number.

    Source:
        Holm 1979, Scandinavian Journal of Statistics 6, 65-70.

    Example:
        >>> [round(p, 2) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values)
    steps = np.array(p_values)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps))
    return [float(p) for p in adjusted]


def decision_metrics() -> list[Metric]:
    """Return the metrics of pairs that need no ranking across networks, for `pooled_differences`."""
    return [metric for metric in METRICS.values() if "paired" in metric.shown and metric.name != "auroc"]
