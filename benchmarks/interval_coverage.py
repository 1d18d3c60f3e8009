"""Measure how often 95% intervals of several methods cover the true value on simulated test sets, and their width.

Usage: uv run python -m benchmarks.interval_coverage [--trials 600] [--draws 1000] [--metrics auroc accuracy]
       uv run python -m benchmarks.interval_coverage --paired
       uv run python -m benchmarks.interval_coverage --predictions <run>/test/predictions.csv

The first command prints a table for each metric: coverage in percent, mean width, interval score. The second prints how
often the pooled paired test calls two equal configurations different. The third prints the intraclass correlations of
real predictions, which say what dependence to simulate.

The score of an image is the effect of its case plus noise; a positive score is a correct decision. Sizes and classes of
the cases are those of the test images of fold 2 at 200X (597 images, 27 cases, 8 of them benign), or of a part (316
images, 19 cases, 6 of them benign). Case effects are normal, with a given fraction of the variance (the intraclass
correlation of the scores), or a few cases are hard and the others easy.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import special, stats

from breakhis_pl.data.breakhis import CLASS_NAMES, FOLDS, official_patients, parse_file_name
from breakhis_pl.data.dataset import Subset
from breakhis_pl.metrics.calibration import log_odds
from breakhis_pl.metrics.cases import CaseTable, Draws, draw_cases
from breakhis_pl.metrics.classification import divide
from breakhis_pl.metrics.intervals import case_intervals, t_quantile
from breakhis_pl.metrics.paired import decision_metrics, pooled_differences
from breakhis_pl.metrics.predictions import FloatArray, IntArray, NameArray, Predictions, read_predictions
from breakhis_pl.metrics.registry import METRICS, Metric

NAMES = ("auroc", "average_precision", "accuracy", "weighted_f1", "sensitivity", "specificity", "brier", "log_loss")
MEANS = stats.norm.ppf([0.80, 0.93])
"""Mean scores of benign and malignant images: 80% and 93% are correct, about as fine-tuned networks reach."""
HARD = (((0.8, 1.15, 0.35), (0.2, -0.35, 0.35)), ((0.9, 1.6, 0.35), (0.1, -0.2, 0.35)))
"""Kinds of benign and malignant cases, easy and hard: fraction, mean and standard deviation of the effect."""
SHARPNESS = 4.0
"""Log-odds per unit of score; gives a Brier score of 0.08 to 0.09."""
PART = ((21, 12, 34, 16, 14, 16), (9, 21, 14, 12, 21, 18, 10, 16, 21, 14, 17, 9, 21))
"""Images of each benign and of each malignant case in a part of the test images."""
POPULATION = 300_000
NO_SPREAD = 1e-6


@dataclass(frozen=True)
class Setting:
    """Test sets to simulate: case and class of each image, kinds of case by class, standard deviation of the noise."""

    name: str
    case: NameArray
    target: IntArray
    kinds: Sequence[Sequence[tuple[float, float, float]]]
    noise: float


def settings() -> Iterator[Setting]:
    """Yield both sets of images with four kinds of dependence."""
    sizes = PART[0] + PART[1]
    part = np.repeat(np.arange(len(sizes)), sizes).astype(object), np.repeat([0, 1], [sum(each) for each in PART])
    for n_cases, (case, target) in {27: images_of_fold(2), 19: part}.items():
        for correlation in (0.1, 0.3, 0.65):
            kinds = [[(1.0, float(mean), math.sqrt(correlation))] for mean in MEANS]
            yield Setting(f"{n_cases} cases, {correlation}", case, target, kinds, math.sqrt(1 - correlation))
        yield Setting(f"{n_cases} cases, hard", case, target, HARD, 0.6)


def images_of_fold(fold: int) -> tuple[NameArray, IntArray]:
    """Return case and class of the test images of one of the authors' folds at 200X."""
    patients = [each for each in official_patients().values() if each.subsets[fold] is Subset.TEST]
    names = [parse_file_name(f"{each.patient}-200-001.png") for each in patients for _ in range(each.n_images[200])]
    return np.array([name.case for name in names], dtype=object), np.array([name.target_of("binary") for name in names])


def simulate(setting: Setting, rng: np.random.Generator) -> Predictions:
    """Simulate a test set."""
    _, first, case = np.unique(setting.case, return_index=True, return_inverse=True)
    effect = np.empty(len(first))
    for target, kinds in enumerate(setting.kinds):
        of_class = np.flatnonzero(setting.target[first] == target)
        fraction, mean, deviation = np.transpose(kinds)
        kind = rng.choice(len(kinds), size=len(of_class), p=fraction)
        effect[of_class] = rng.normal(mean[kind], deviation[kind])
    return to_predictions(rng.normal(effect[case], setting.noise), setting.case, setting.target)


def to_predictions(score: FloatArray, case: NameArray, target: IntArray) -> Predictions:
    """Return predictions whose decision is correct where the score is positive."""
    positive = special.expit(SHARPNESS * np.where(target == 1, score, -score))
    probabilities, predicted = np.stack([1 - positive, positive], axis=1), (positive > 0.5).astype(np.int64)
    image, magnification = np.arange(len(score)).astype(object), np.full(len(score), 200)
    return Predictions(CLASS_NAMES, image, case, case, magnification, target, probabilities, predicted)


def true_values(setting: Setting, metrics: Sequence[str], rng: np.random.Generator) -> dict[str, float]:
    """Return the metrics of very many images, each of a case of its own."""
    case, target = np.arange(POPULATION).astype(object), np.resize(setting.target, POPULATION)
    images = simulate(replace(setting, case=case, target=target), rng)
    draws = Draws(CaseTable(replace(images, case=np.zeros(POPULATION).astype(object))))
    return {name: float(METRICS[name].values(draws)[0]) for name in metrics}


class Sample:
    """What the methods need of a metric on a simulated test set; n is the number of cases behind Student's t."""

    def __init__(self, metric: Metric, table: CaseTable, weights: IntArray) -> None:
        self.metric, self.table, self.weights, self.n = metric, table, weights, metric.n_cases(table)
        self.t = t_quantile(self.n - 1) * np.array([-1.0, 1.0])
        self.widening = math.sqrt(self.n / (self.n - 1))
        self.value = float(metric.values(Draws(table))[0])
        self.drawn = metric.values(Draws(table, weights))  # NaN where a class is missing
        self.draws = self.drawn[~np.isnan(self.drawn)]
        self.without = metric.values(Draws(table, 1 - np.eye(table.n_cases)))  # without each case
        self.error = float(self.widening * sandwich_errors(metric, table, np.ones((1, table.n_cases)))[0])
        self.upper = metric.range[1]
        self.to_logit: Callable[..., FloatArray] = np.log if self.upper == math.inf else special.logit
        self.from_logit: Callable[..., FloatArray] = np.exp if self.upper == math.inf else special.expit


def sandwich_errors(metric: Metric, table: CaseTable, weights: FloatArray | IntArray) -> FloatArray:
    """Return the cluster-robust sandwich standard error in each draw; (n_draws, n_cases) to (n_draws,).

    The influence of a case is the derivative of the metric with respect to the weight of the case. For a metric of the
    confusion matrix this is the delta method of Hong, Lim and Bae 2026, arXiv:2606.03656; for the others, the
    infinitesimal jackknife. `Sample.widening` is the factor for few cases (Cameron and Miller 2015,
    doi:10.3368/jhr.50.2.317).
    """
    step = 1e-5
    raised = (weights * (1 + step * np.eye(table.n_cases))[:, None]).reshape(-1, table.n_cases)
    values, changed = (metric.values(Draws(table, each)) for each in (weights, raised))
    slope = ((changed.reshape(table.n_cases, -1) - values) / step).T  # influence times weight, (n_draws, n_cases)
    return np.asarray(np.sqrt(divide(slope**2, weights.astype(np.float64)).sum(1)))


def bca(sample: Sample) -> FloatArray:
    """BCa (Efron 1987, doi:10.1080/01621459.1987.10478410), its acceleration from leaving out one case at a time."""
    influence = sample.without.mean() - sample.without
    acceleration = (influence**3).sum() / max(6 * (influence**2).sum() ** 1.5, NO_SPREAD**3)
    below = (sample.draws < sample.value).mean() + (sample.draws == sample.value).mean() / 2
    shift = stats.norm.ppf(np.clip(below, 1e-4, 1 - 1e-4))
    steps = shift + stats.norm.ppf([0.025, 0.975])
    return np.asarray(np.quantile(sample.draws, stats.norm.cdf(shift + steps / (1 - acceleration * steps))))


def bootstrap_t(sample: Sample) -> FloatArray:
    """Bootstrap-t on the plain scale, every draw divided by its own standard error (Efron 1982)."""
    errors = sample.widening * sandwich_errors(sample.metric, sample.table, sample.weights)
    is_usable = errors > NO_SPREAD  # False for NaN
    ratios = (sample.drawn[is_usable] - sample.value) / errors[is_usable] if is_usable.any() else np.zeros(1)
    return np.clip(sample.value - sample.error * np.quantile(ratios, [0.975, 0.025]), *sample.metric.range)


def logit_of_draws(sample: Sample) -> FloatArray:
    """Standard deviation of the draws' logits; a draw at a bound is moved by half an image, or half a pair of them."""
    negative, positive = Draws(sample.table).support[0]
    counts = {"classes": negative * positive, "negative": negative, "positive": positive}
    margin = 0.5 / counts.get(sample.metric.basis, negative + positive)
    logits = sample.to_logit(np.clip([sample.value, *sample.draws], margin, sample.upper - margin))
    return sample.from_logit(logits[0] + sample.t * sample.widening * logits[1:].std())


def logit_by_slope(sample: Sample, error: float) -> FloatArray:
    """Transform a standard error to the logit scale by the slope at the value (Pepe 2003, section 5.2)."""
    value = np.clip(sample.value, 1e-4, sample.upper - 1e-4)
    slope = 1 / value if sample.upper == math.inf else 1 / (value * (1 - value))
    return sample.from_logit(sample.to_logit(value) + sample.t * slope * error)


def jackknife(sample: Sample) -> FloatArray:
    """Jackknife standard error CV3 (MacKinnon, Nielsen and Webb 2023, doi:10.1002/jae.2969), on the logit scale."""
    return logit_by_slope(sample, math.sqrt(((sample.without - sample.value) ** 2).sum()) / sample.widening)


METHODS: dict[str, Callable[[Sample], FloatArray]] = {
    "percentile": lambda sample: np.quantile(sample.draws, [0.025, 0.975]),
    # Hesterberg 2015, doi:10.1080/00031305.2015.1089789: expanded percentiles
    "percentile, t": lambda sample: np.quantile(sample.draws, stats.norm.cdf(sample.widening * sample.t)),
    "BCa": bca,
    "bootstrap-t": bootstrap_t,
    "sandwich, t": lambda sample: np.clip(sample.value + sample.t * sample.error, *sample.metric.range),
    "jackknife, logit, t": jackknife,
    "logit of draws, t": logit_of_draws,
    "logit by slope, t": lambda sample: logit_by_slope(sample, sample.widening * float(sample.draws.std())),
    "chosen": lambda sample: np.array(case_intervals(sample.table, sample.weights, {"": sample.metric})[""][0]),
}


def measure(setting: Setting, metrics: Sequence[str], *, n_trials: int, n_draws: int) -> dict[tuple[str, str], str]:
    """Return coverage, mean width and mean interval score by metric and method.

    Source:
        Gneiting and Raftery 2007, doi:10.1198/016214506000001437: width plus 40 times the distance to the true value.
    """
    rng = np.random.default_rng(2022)
    true = true_values(setting, metrics, rng)
    found: dict[tuple[str, str], list[FloatArray]] = {(name, method): [] for name in metrics for method in METHODS}
    for trial in range(n_trials):
        table = CaseTable(simulate(setting, rng))
        weights = draw_cases(table.n_cases, seed=trial, n_draws=n_draws)
        for name in metrics:
            sample = Sample(METRICS[name], table, weights)
            for method, interval in METHODS.items():
                found[name, method].append(interval(sample))
    cells = {}
    for (name, method), limits in found.items():
        low, high = np.transpose(limits)
        miss = np.maximum(low - true[name], 0) + np.maximum(true[name] - high, 0)
        width = high - low
        cells[name, method] = f"{100 * (miss == 0).mean():.1f} · {width.mean():.2f} · {(width + 40 * miss).mean():.2f}"
    return cells


def rejection_rates(*, n_trials: int, n_draws: int) -> dict[str, float]:
    """Return how often p < 0.05 for two equal configurations over the five folds, by metric.

    A case has three effects: one for all networks (0.35 of the variance), one for the configuration in all folds (0.2),
    one for the network of a fold (0.1). The rest is noise.
    """
    rng, metrics = np.random.default_rng(2022), decision_metrics()
    folds = [images_of_fold(fold) for fold in FOLDS]
    names = np.unique(np.concatenate([case for case, _ in folds]))
    p_values = []
    for trial in range(n_trials):
        effect = rng.normal(0, math.sqrt(0.35), len(names)) + rng.normal(0, math.sqrt(0.2), (2, len(names)))
        pairs = []
        for case, target in folds:
            of_case = (effect + rng.normal(0, math.sqrt(0.1), effect.shape))[:, np.searchsorted(names, case)]
            first, second = rng.normal(MEANS[target] + of_case, math.sqrt(0.35))  # (2, n_images)
            pairs.append((to_predictions(first, case, target), to_predictions(second, case, target)))
        p_values.append([each.p for each in pooled_differences(pairs, metrics, seed=trial, n_draws=n_draws)])
    is_rejected = np.array(p_values, dtype=float) < 0.05  # (n_trials, n_metrics)
    return {metric.name: float(rate) for metric, rate in zip(metrics, is_rejected.mean(0), strict=True)}


def intraclass_correlation(values: FloatArray, case: NameArray) -> float:
    """Return the one-way intraclass correlation by analysis of variance (Donner 1986, doi:10.2307/1403259)."""
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
    parser.add_argument("--metrics", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--paired", action="store_true", help="measure the level of the pooled paired test")
    parser.add_argument("--predictions", type=Path, help="print the intraclass correlations of this predictions.csv")
    options = parser.parse_args()
    write, counts = sys.stdout.write, {"n_trials": options.trials, "n_draws": options.draws}
    if options.predictions is not None:
        table = read_predictions(options.predictions)
        for what, values in {"log-odds": log_odds(table.probabilities), "correct": table.correct.astype(float)}.items():
            for target, name in enumerate(table.classes):
                of_class = table.target == target
                write(f"{name}, {what}: {intraclass_correlation(values[of_class], table.case[of_class]):.2f}\n")
    elif options.paired:
        for name, rate in rejection_rates(**counts).items():
            write(f"{name}: p < 0.05 in {100 * rate:.1f} %\n")
    else:
        results = {setting.name: measure(setting, options.metrics, **counts) for setting in settings()}
        for name in options.metrics:
            write(f"\n| {name} | {' | '.join(results)} |\n|---|{'---|' * len(results)}\n")
            for method in METHODS:
                write(f"| {method} | {' | '.join(cells[name, method] for cells in results.values())} |\n")


if __name__ == "__main__":
    main()
