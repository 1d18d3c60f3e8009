"""How often 95 % intervals of several methods cover the truth on simulated test sets, and how wide they are.

    uv run python benchmarks/interval_coverage.py [--trials 600] [--draws 1000] [--metrics auroc accuracy]
    uv run python benchmarks/interval_coverage.py --predictions <run>/test/predictions.csv

The first prints one table per metric, ready for docs/intervals.md (three minutes on one core); the second the
intraclass correlations of real predictions, which say what dependence to simulate.

An image's score is the mean of its class, plus an effect of its case, plus noise; a score above 0 is right. The cases
and images are those of the 597 test images of fold 2 at 200X (27 cases, 7 of them benign), or a part of them
(316 images of 19 cases, 6 of them benign). Their effects are normal, with a given share of the variance of the scores
(their intraclass correlation), or most cases are easy and a few are hard.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from breakhis_pl.data.breakhis import CLASS_NAMES, official_patients, parse_file_name
from breakhis_pl.data.dataset import Subset
from breakhis_pl.evaluation.case_table import CaseTable, tabulate_cases
from breakhis_pl.evaluation.intervals import case_intervals
from breakhis_pl.evaluation.predictions import Predictions, index_of, read_predictions
from breakhis_pl.evaluation.scores import average_precision, log_loss, roc_auc
from breakhis_pl.evaluation.student import quantile_95

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Limits = tuple[float, float] | None

METRICS = (
    "auroc",
    "average_precision",
    "accuracy",
    "weighted_f1",
    "recall_benign",
    "recall_malignant",
    "brier",
    "log_loss",
)

RECALL = (0.8, 0.93)
"""Of the two classes where effects are normal; about what fine-tuned networks reach."""

SHARPNESS = 4.0
"""Log-odds per unit of score; gives a Brier score of 0.08 to 0.09."""

PART = ((21, 12, 34, 16, 14, 16), (9, 21, 14, 12, 21, 18, 10, 16, 21, 14, 17, 9, 21))
"""Images of each benign and of each malignant case in a part of the test images."""

NORMAL = NormalDist()
POPULATION = 400_000


@dataclass(frozen=True, slots=True)
class CaseEffects:
    """How the cases of a class differ.

    Attributes:
        share: Share of the cases of each kind; sums to 1.
        mean: Mean score of the cases of each kind.
        deviation: Standard deviation of the cases of each kind around it.
    """

    share: tuple[float, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Setting:
    """A kind of test set to simulate.

    Attributes:
        name: Head of its column.
        case: Index of each image's case; (n_images,).
        target: Class of each image; (n_images,).
        effects: Of the cases of both classes.
        noise: Standard deviation of an image's score around its case.
    """

    name: str
    case: IntArray
    target: IntArray
    effects: tuple[CaseEffects, CaseEffects]
    noise: float


def settings() -> Iterator[Setting]:
    """Both sets of images, each with four kinds of dependence."""
    hard = (CaseEffects((0.8, 0.2), (1.15, -0.35), (0.35, 0.35)), CaseEffects((0.9, 0.1), (1.6, -0.2), (0.35, 0.35)))
    for images, (case, target) in {"27": images_of_fold_2(), "19": images_of_part()}.items():
        for correlation in (0.1, 0.3, 0.65):
            deviation = math.sqrt(correlation)
            benign, malignant = (CaseEffects((1.0,), (NORMAL.inv_cdf(recall),), (deviation,)) for recall in RECALL)
            noise = math.sqrt(1 - correlation)
            yield Setting(f"{images} cases, {correlation}", case, target, (benign, malignant), noise)
        yield Setting(f"{images} cases, hard ones", case, target, hard, 0.6)


def images_of_fold_2() -> tuple[IntArray, IntArray]:
    """Case and class of the 597 test images of fold 2 at 200X."""
    names = [
        parse_file_name(f"{official.patient}-200-{number:03d}.png")
        for official in official_patients().values()
        if official.subsets[2] is Subset.TEST
        for number in range(1, official.n_images[200] + 1)
    ]
    return index_of([name.case for name in names]), np.array([name.target for name in names])


def images_of_part() -> tuple[IntArray, IntArray]:
    """Case and class of 316 of these images."""
    sizes = PART[0] + PART[1]
    targets = [0] * len(PART[0]) + [1] * len(PART[1])
    return np.repeat(np.arange(len(sizes)), sizes), np.repeat(targets, sizes)


def draw(setting: Setting, rng: np.random.Generator) -> Predictions:
    """Simulated predictions."""
    effect = np.empty(setting.case.max() + 1)
    for case, target in set(zip(setting.case.tolist(), setting.target.tolist(), strict=True)):
        kinds = setting.effects[target]
        kind = rng.choice(len(kinds.share), p=kinds.share)
        effect[case] = rng.normal(kinds.mean[kind], kinds.deviation[kind])
    score = effect[setting.case] + setting.noise * rng.normal(size=setting.case.size)
    prob = probability(score, setting.target)
    return Predictions(
        image=tuple(str(i) for i in range(prob.size)),
        patient=tuple(f"{case:02d}" for case in setting.case),
        case=tuple(f"{case:02d}" for case in setting.case),
        magnification=np.full(prob.size, 200),
        target=setting.target,
        probabilities=np.stack([1 - prob, prob], axis=1),
        predicted=(prob > 0.5).astype(np.int64),
    )


def probability(score: FloatArray, target: IntArray) -> FloatArray:
    """Probability of "malignant" for scores that are positive where the network is right."""
    return 1 / (1 + np.exp(-SHARPNESS * np.where(target == 1, score, -score)))


def truth(setting: Setting) -> dict[str, float]:
    """What the metrics are over all cases there could be, with as many images of either class, from quantiles."""
    n_malignant = round(POPULATION * float(setting.target.mean()))
    target = np.repeat([0, 1], [POPULATION - n_malignant, n_malignant])
    score = np.concatenate([_scores(setting, c, int((target == c).sum())) for c in range(2)])
    prob = probability(score, target)
    recall = [float((score[target == c] > 0).mean()) for c in range(2)]
    n = np.bincount(target)
    right = np.array(recall) * n
    f1 = 2 * right / (right + right + (n - right) + (n - right)[::-1])
    return {
        "auroc": roc_auc(target, prob) or math.nan,
        "average_precision": average_precision(target, prob) or math.nan,
        "accuracy": float(right.sum() / n.sum()),
        "weighted_f1": float((f1 * n).sum() / n.sum()),
        "recall_benign": recall[0],
        "recall_malignant": recall[1],
        "brier": float(((prob - target) ** 2).mean()),
        "log_loss": log_loss(target, np.stack([1 - prob, prob], axis=1)),
    }


def _scores(setting: Setting, target: int, n: int) -> FloatArray:
    kinds = setting.effects[target]
    counts = np.diff(np.rint(np.cumsum([0, *kinds.share]) * n).astype(int))
    parts = []
    for count, mean, deviation in zip(counts, kinds.mean, kinds.deviation, strict=True):
        grid = np.linspace(-5, 5, 2001)
        cumulative = np.array([NORMAL.cdf(x) for x in grid])
        quantiles = np.interp((np.arange(count) + 0.5) / count, cumulative, grid)
        parts.append(mean + math.hypot(deviation, setting.noise) * quantiles)
    return np.concatenate(parts)


def percentile(value: float, draws: FloatArray, table: CaseTable, metric: str) -> Limits:
    """Quantiles of the draws."""
    del value, table, metric
    return _quantiles(draws, 0.025, 0.975)


def percentile_widened(value: float, draws: FloatArray, table: CaseTable, metric: str) -> Limits:
    """Quantiles of the draws, pulled apart by sqrt(n / (n - 1))."""
    n = table.n_cases_behind(metric)
    low, high = _quantiles(draws, 0.025, 0.975)
    factor = math.sqrt(n / (n - 1))
    return max(0.0, value - factor * (value - low)), min(1.0, value + factor * (high - value))


def percentile_student(value: float, draws: FloatArray, table: CaseTable, metric: str) -> Limits:
    """Expanded percentiles: quantiles further out by Student's t and sqrt(n / (n - 1)) (Hesterberg 2015)."""
    del value
    n = table.n_cases_behind(metric)
    tail = NORMAL.cdf(-math.sqrt(n / (n - 1)) * quantile_95(n - 1))
    return _quantiles(draws, tail, 1 - tail)


def bias_corrected(value: float, draws: FloatArray, table: CaseTable, metric: str) -> Limits:
    """BCa (Efron 1987), its acceleration from leaving out one case at a time."""
    without = table.metrics(np.ones((table.n_cases, table.n_cases)) - np.eye(table.n_cases))[metric]
    influence = np.nanmean(without) - without[~np.isnan(without)]
    spread = float((influence**2).sum()) ** 1.5
    if spread == 0:
        return None
    acceleration = float((influence**3).sum()) / (6 * spread)
    below = float((draws < value).mean() + (draws == value).mean() / 2)
    shift = NORMAL.inv_cdf(min(max(below, 1e-4), 1 - 1e-4))
    tails = [
        NORMAL.cdf(shift + (shift + z) / (1 - acceleration * (shift + z)))
        for z in (NORMAL.inv_cdf(0.025), NORMAL.inv_cdf(0.975))
    ]
    return _quantiles(draws, *tails)


def logit_of_draws(value: float, draws: FloatArray, table: CaseTable, metric: str) -> Limits:
    """Standard deviation of the draws' logits, and Student's t; a draw at a bound counts as half an image or pair."""
    n = table.n_cases_behind(metric)
    support = table.support.sum(0)
    step = 0.5 / (support.prod() if metric in ("auroc", "average_precision") else support.sum())
    if metric.startswith("recall_"):
        step = 0.5 / support[CLASS_NAMES.index(metric.removeprefix("recall_"))]
    error = float(_logit(draws, step).std()) * math.sqrt(n / (n - 1))
    center = float(_logit(np.array(value), step))
    return _from_logit(center, quantile_95(n - 1) * error)


def logit_by_slope(value: float, draws: FloatArray, table: CaseTable, metric: str) -> Limits:
    """Standard deviation of the draws, carried to the logit scale by its slope, and Student's t."""
    n = table.n_cases_behind(metric)
    inside = min(max(value, 1e-4), 1 - 1e-4)
    error = float(draws.std()) * math.sqrt(n / (n - 1)) / (inside * (1 - inside))
    return _from_logit(float(_logit(np.array(inside), 0)), quantile_95(n - 1) * error)


def _quantiles(draws: FloatArray, low: float, high: float) -> tuple[float, float]:
    low, high = np.quantile(draws, [low, high])
    return float(low), float(high)


def _logit(values: FloatArray, step: float) -> FloatArray:
    clipped = np.clip(values, step, 1 - step)
    return np.log(clipped) - np.log1p(-clipped)


def _from_logit(center: float, reach: float) -> tuple[float, float]:
    low, high = (0.5 + 0.5 * math.tanh((center + sign * reach) / 2) for sign in (-1, 1))
    return low, high


def bootstrap_t(value: float, weights: FloatArray, table: CaseTable, metric: str) -> Limits:
    """Bootstrap-t on the plain scale, the standard error of each draw from the influence of its cases."""
    n = table.n_cases
    drawn, error = _studentized(weights, table, metric)
    error_of_value = float(_studentized(np.ones((1, n)), table, metric)[1][0])
    is_usable = error > 1e-9
    if not is_usable.any():
        return None
    low, high = _quantiles((drawn[is_usable] - value) / error[is_usable], 0.025, 0.975)
    return max(0.0, value - high * error_of_value), min(1.0, value - low * error_of_value)


def _studentized(weights: FloatArray, table: CaseTable, metric: str) -> tuple[FloatArray, FloatArray]:
    """Value and standard error of each draw; NaN where a class is missing."""
    support = weights @ table.support  # (n_draws, 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        if metric == "auroc":
            pairs = support.prod(1)
            values = ((weights @ table.ordered_pairs) * weights).sum(1) / pairs
            share = table.support[:, 0] / support[:, :1] + table.support[:, 1] / support[:, 1:]
            influence = (weights @ table.ordered_pairs + weights @ table.ordered_pairs.T) / pairs[:, None]
            influence -= values[:, None] * share
        else:
            numerator, denominator = _quotient(table, metric)
            total = weights @ denominator
            values = weights @ numerator / total
            influence = (numerator - values[:, None] * denominator) / total[:, None]
        error = np.sqrt((weights * influence**2).sum(1) * table.n_cases / (table.n_cases - 1))
    return values, np.nan_to_num(error)


def _quotient(table: CaseTable, metric: str) -> tuple[FloatArray, FloatArray]:
    """Sums by case whose totals' quotient is the metric."""
    if metric == "brier":
        return table.squared_error, table.support.sum(1)
    if metric == "accuracy":
        return np.trace(table.confusion, axis1=1, axis2=2), table.support.sum(1)
    i = CLASS_NAMES.index(metric.removeprefix("recall_"))
    return table.confusion[:, i, i], table.support[:, i]


METHODS: dict[str, Callable[[float, FloatArray, CaseTable, str], Limits]] = {
    "percentile": percentile,
    "percentile, widened": percentile_widened,
    "percentile, t": percentile_student,
    "BCa": bias_corrected,
    "logit of draws, t": logit_of_draws,
    "logit by slope, t": logit_by_slope,
}
BOOTSTRAP_T = "bootstrap-t"
CHOSEN = "chosen: + coin"
NO_BOOTSTRAP_T = ("average_precision", "weighted_f1", "log_loss")
WITHIN_0_AND_1 = tuple(name for name in METHODS if not name.startswith("percentile") or name == "percentile, widened")
"""Methods that the log loss is not compared by: it has no upper bound."""


@dataclass(frozen=True, slots=True)
class Performance:
    """How well a method did: share covered, mean width, mean interval score (Gneiting and Raftery 2007)."""

    coverage: float
    width: float
    score: float


def measure(setting: Setting, metrics: list[str], *, n_trials: int, n_draws: int) -> dict[tuple[str, str], Performance]:
    """Performance by metric and method; where a method has no interval, the chosen one's counts."""
    rng = np.random.default_rng(2022)
    true = truth(setting)
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for trial in range(n_trials):
        predictions = draw(setting, rng)
        table = tabulate_cases(predictions)
        n = table.n_cases
        weights = rng.multinomial(n, np.full(n, 1 / n), size=n_draws).astype(np.float64)
        drawn, values = table.metrics(weights), table.metrics(np.ones((1, n)))
        chosen = case_intervals(predictions, seed=trial, n_draws=n_draws).ci95
        for metric in metrics:
            own = chosen[metric]
            if own is None:
                raise ValueError(f"{metric} has no interval in {setting.name}; expected one in every trial")
            value, draws = float(values[metric][0]), drawn[metric][~np.isnan(drawn[metric])]
            names = [name for name in METHODS if metric != "log_loss" or name not in WITHIN_0_AND_1]
            by_method = {name: METHODS[name](value, draws, table, metric) for name in names}
            if metric not in NO_BOOTSTRAP_T:
                by_method[BOOTSTRAP_T] = bootstrap_t(value, weights, table, metric)
            by_method[CHOSEN] = own
            for name, limits in by_method.items():
                found.setdefault((metric, name), []).append(limits or own)
    return {key: _performance(np.array(limits), true[key[0]]) for key, limits in found.items()}


def _performance(limits: FloatArray, true: float) -> Performance:
    low, high = limits.T
    miss = np.maximum(low - true, 0) + np.maximum(true - high, 0)
    return Performance(float((miss == 0).mean()), float((high - low).mean()), float((high - low + 40 * miss).mean()))


def intraclass_correlations(predictions: Predictions) -> Iterator[tuple[str, float, float]]:
    """By class: its name, the intraclass correlation of log-odds, and that of being right (one-way, by moments)."""
    case = index_of(predictions.case)
    clipped = np.clip(predictions.probabilities, 1e-7, 1)
    log_odds = np.log(clipped[:, 1]) - np.log(clipped[:, 0])
    for target, name in enumerate(CLASS_NAMES):
        keep = predictions.target == target
        right = predictions.correct[keep].astype(np.float64)
        yield name, _correlation(log_odds[keep], case[keep]), _correlation(right, case[keep])


def _correlation(values: FloatArray, case: IntArray) -> float:
    groups = [values[case == each] for each in np.unique(case)]
    sizes = np.array([len(group) for group in groups])
    between = sum(len(group) * (group.mean() - values.mean()) ** 2 for group in groups) / (len(groups) - 1)
    within = sum(((group - group.mean()) ** 2).sum() for group in groups) / (len(values) - len(groups))
    mean_size = (len(values) - (sizes**2).sum() / len(values)) / (len(groups) - 1)
    return float((between - within) / (between + (mean_size - 1) * within))


def main() -> None:
    """Print what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--trials", type=int, default=600)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=list(METRICS))
    parser.add_argument("--predictions", type=Path, help="print the intraclass correlations of this predictions.csv")
    options = parser.parse_args()
    write = sys.stdout.write
    if options.predictions is not None:
        for name, of_scores, of_right in intraclass_correlations(read_predictions(options.predictions)):
            write(f"{name}: {of_scores:.2f} of log-odds, {of_right:.2f} of being right\n")
        return
    columns = list(settings())
    results = [measure(each, options.metrics, n_trials=options.trials, n_draws=options.draws) for each in columns]
    for metric in options.metrics:
        write(f"\n| {metric} | {' | '.join(each.name for each in columns)} |\n|---|{'---|' * len(columns)}\n")
        for method in (*METHODS, BOOTSTRAP_T, CHOSEN):
            if (metric, method) in results[0]:
                cells = (result[metric, method] for result in results)
                row = " | ".join(f"{100 * cell.coverage:.1f} · {cell.width:.2f} · {cell.score:.2f}" for cell in cells)
                write(f"| {method} | {row} |\n")


if __name__ == "__main__":
    main()
