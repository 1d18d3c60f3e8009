"""Runs on the same test images, two at a time: which differences can be shown, and which may be chance.

Each image is judged by both networks, so what is hard for both cancels out: a difference may be shown although the two
intervals overlap. The unit is the case, as everywhere; p-values are corrected for the number of pairs.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from breakhis_pl.data.breakhis import CLASS_NAMES
from breakhis_pl.errors import PredictionsError, join_truncated
from breakhis_pl.evaluation import confusion as of_confusion
from breakhis_pl.evaluation.differences import PairedDifference, align, holm, mcnemar, paired_differences
from breakhis_pl.evaluation.intervals import N_DRAWS, check_case_count
from breakhis_pl.evaluation.predictions import Predictions
from breakhis_pl.evaluation.published import REPORT_RESULTS, ReportResult
from breakhis_pl.evaluation.run_summary import RunSummary

MAIN_METRIC = "weighted_f1"
"""The report's main figure, by which one run is called better than another."""

METRICS = (MAIN_METRIC, "accuracy", "auroc", "patient_recognition_rate")
"""What pairs are compared by."""

PUBLISHED_METRICS = ("accuracy", MAIN_METRIC, *(f"f1_{name}" for name in CLASS_NAMES))
"""What follows from the report's confusion matrices."""

MOST_RUNS_IN_ALL_PAIRS = 8
"""Of more runs on the same images, each is compared with the first alone: 8 make 28 pairs, 50 would make 1,225."""

N_REPORT_TEST_IMAGES = 597
_REPORT_SPLIT = ("official", 2, (200,))


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """A metric of two runs, first minus second.

    Attributes:
        first: Name of a run.
        second: Name of the other.
        metric: One of `METRICS`.
        difference: Value of the first minus that of the second; None where they have no images to be compared on.
        ci95: Lower and upper limit, over cases; None where there is no interval.
        p: Two-sided p-value of no difference, over cases; None where there is no interval.
        p_holm: The same, corrected by Holm's method for all pairs that have one for this metric.
        mcnemar_p: Exact p-value that both classify as many images correctly, whatever the metric. It takes images as
            independent and claims too much; it is here because others report it.
        n_images: Images that both were tested on; 0 where they are not compared.
        n_cases: Cases behind the difference, for the AUROC those of the rarer class; 0 where they are not compared.
        reason: Why there is no difference or no interval; None where there are both.
    """

    first: str
    second: str
    metric: str
    difference: float | None = None
    ci95: tuple[float, float] | None = None
    p: float | None = None
    p_holm: float | None = None
    mcnemar_p: float | None = None
    n_images: int = 0
    n_cases: int = 0
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class PublishedComparison:
    """A metric of a run beside what the report states for the same network.

    Attributes:
        run: Name of the run.
        network: Name of the network in the report.
        metric: One of `PUBLISHED_METRICS`.
        ours: Value of the run.
        ci95: Its 95 % interval over cases; None where it has none.
        theirs: What follows from the report's confusion matrix.
        is_inside: Whether theirs lies inside our interval; None without one.
        is_indicative: Whether the run's test images are not exactly the report's 597.
    """

    run: str
    network: str
    metric: str
    ours: float
    ci95: tuple[float, float] | None
    theirs: float
    is_inside: bool | None
    is_indicative: bool


def compare_runs(
    runs: Sequence[RunSummary | tuple[str, Predictions]], *, seed: int = 0, n_draws: int = N_DRAWS
) -> list[PairedComparison]:
    """Every metric of `METRICS` for every pair of runs, in the order of the runs.

    Runs of different folds, whose test images differ, make no pair. Of more than `MOST_RUNS_IN_ALL_PAIRS` runs, those
    on the same images are compared with the first of them alone, and pairs on different images are left out.

    Args:
        runs: Summaries, of which those without a result are passed over, or tables with their names.
        seed: Of the draws; 0 or more.
        n_draws: Number of draws of cases, at least 100.

    Returns:
        `len(METRICS)` entries a pair; none of fewer than two results.

    Raises:
        ConfigurationError: If there are too few draws, or the seed is negative.
        PredictionsError: If two runs have the same name.

    Source:
        Interval and p-value: `differences.paired_differences`. Correction: `differences.holm`, over the pairs.
    """
    tables: dict[str, Predictions | None] = {}
    folds: dict[str, int] = {}
    for run in runs:
        if isinstance(run, RunSummary) and not run.metrics:
            continue
        name, predictions = (run.name, run.predictions) if isinstance(run, RunSummary) else run
        if name in tables:
            raise PredictionsError(f"two runs are named {name!r}; expected a name of its own for each")
        tables[name] = predictions
        if isinstance(run, RunSummary) and run.fold is not None:
            folds[name] = run.fold
    comparisons = [
        comparison
        for first, second in _pairs(tables)
        if first not in folds or second not in folds or folds[first] == folds[second]
        for comparison in _compare(first, tables[first], second, tables[second], seed=seed, n_draws=n_draws)
    ]
    return _corrected(comparisons)


def against_published(runs: Sequence[RunSummary]) -> list[PublishedComparison]:
    """Runs on the report's split beside its results for the same network.

    The report states counts, not what was said of each image, so that no paired test is possible: all there is to see
    is whether our interval holds its figure.

    Args:
        runs: Summaries; those without a result, on another split or of drawn images are passed over.

    Source:
        `published.REPORT_RESULTS`.
    """
    return [
        PublishedComparison(
            run=run.name,
            network=result.network,
            metric=metric,
            ours=estimate.value,
            ci95=estimate.interval,
            theirs=theirs,
            is_inside=None if estimate.interval is None else estimate.interval[0] <= theirs <= estimate.interval[1],
            is_indicative=not has_the_reports_images(run),
        )
        for run in runs
        if is_on_the_reports_split(run) and (result := REPORT_RESULTS.get(run.model or "")) is not None
        for metric, theirs in published_values(result).items()
        if (estimate := run.metrics.get(metric)) is not None
    ]


def published_values(result: ReportResult) -> dict[str, float]:
    """The metrics of `PUBLISHED_METRICS` that follow from a published confusion matrix, with all digits.

    Example:
        >>> {metric: round(value, 3) for metric, value in published_values(REPORT_RESULTS["resnet18"]).items()}
        {'accuracy': 0.876, 'weighted_f1': 0.873, 'f1_benign': 0.763, 'f1_malignant': 0.916}
    """
    counts = np.array(result.confusion_matrix)
    f1 = of_confusion.f1(counts)
    values = (of_confusion.accuracy(counts), of_confusion.weighted(f1, counts), *f1)
    return {metric: float(value) for metric, value in zip(PUBLISHED_METRICS, values, strict=True)}


def is_on_the_reports_split(run: RunSummary) -> bool:
    """Whether a run has real images of the report's magnification in the report's split, complete or not."""
    is_at_its_magnification = run.magnification == run.test_magnification
    return (
        (run.split, run.fold, run.magnification) == _REPORT_SPLIT
        and is_at_its_magnification
        and run.is_synthetic is False
    )


def has_the_reports_images(run: RunSummary) -> bool:
    """Whether a run was tested on exactly the report's 597 images, as far as its files say."""
    is_whole = run.is_complete is not False and run.n_test_images in (None, N_REPORT_TEST_IMAGES)
    return is_whole and is_on_the_reports_split(run)


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path that tell the paths apart, joined by "_", without a file's suffix.

    Args:
        paths: Files or folders, each once.

    Raises:
        PredictionsError: If one is given twice.

    Example:
        >>> distinct_names([Path("/runs/a/test/predictions.csv"), Path("/runs/b/test/predictions.csv")])
        ['a_test_predictions', 'b_test_predictions']
    """
    full = [path.resolve() for path in paths]
    twice = [str(path) for path, resolved in zip(paths, full, strict=True) if full.count(resolved) > 1]
    if twice:
        raise PredictionsError(f"{join_truncated(dict.fromkeys(twice))} is given more than once; name each once")
    stems = [path if path.is_dir() else path.with_suffix("") for path in full]
    for n_parts in range(1, max((len(path.parts) for path in full), default=1)):
        names = ["_".join(path.parts[-n_parts:]) for path in stems]
        if len(set(names)) == len(names):
            return names
    return [f"{path.name}_{i}" for i, path in enumerate(stems, start=1)]


def _pairs(tables: Mapping[str, Predictions | None]) -> list[tuple[str, str]]:
    if len(tables) <= MOST_RUNS_IN_ALL_PAIRS:
        return list(combinations(tables, 2))
    groups: dict[frozenset[str], list[str]] = defaultdict(list)
    for name, predictions in tables.items():
        if predictions is not None:
            groups[frozenset(predictions.image)].append(name)
    pairs: list[tuple[str, str]] = []
    for group in groups.values():
        is_small = len(group) <= MOST_RUNS_IN_ALL_PAIRS
        pairs += combinations(group, 2) if is_small else [(group[0], other) for other in group[1:]]
    return pairs


def _compare(
    first: str, a: Predictions | None, second: str, b: Predictions | None, *, seed: int, n_draws: int
) -> list[PairedComparison]:
    without = [name for name, predictions in ((first, a), (second, b)) if predictions is None]
    if a is None or b is None:
        return _not_compared(first, second, f"no usable test/predictions.csv in {' and '.join(without)}")
    only_a, only_b = len(set(a.image) - set(b.image)), len(set(b.image) - set(a.image))
    if only_a or only_b:
        return _not_compared(
            first, second, f"the test images differ: {only_a:,} only in {first}, {only_b:,} only in {second}"
        )
    try:
        check_case_count(a)
        aligned = align(b, a)
    except PredictionsError as error:
        return _not_compared(first, second, str(error))
    has_both_classes = 0 < int(a.target.sum()) < len(a)
    defined = [metric for metric in METRICS if metric != "auroc" or has_both_classes]
    differences = paired_differences(a, aligned, metrics=defined, seed=seed, n_draws=n_draws)
    mcnemar_p = mcnemar(a.correct, aligned.correct)
    compared = {
        difference.metric: PairedComparison(
            first=first,
            second=second,
            metric=difference.metric,
            difference=difference.difference,
            ci95=difference.ci95,
            p=difference.p_value,
            mcnemar_p=mcnemar_p,
            n_images=len(a),
            n_cases=difference.n_cases,
            reason=_reason_for_no_interval(difference),
        )
        for difference in differences
    }
    undefined = {comparison.metric: comparison for comparison in _not_compared(first, second, _ONE_CLASS)}
    return [compared.get(metric, undefined[metric]) for metric in METRICS]


_ONE_CLASS = "not defined, as the test images are all of one class"


def _not_compared(first: str, second: str, reason: str) -> list[PairedComparison]:
    return [PairedComparison(first, second, metric, reason=reason) for metric in METRICS]


def _reason_for_no_interval(difference: PairedDifference) -> str | None:
    if difference.ci95 is not None:
        return None
    if difference.n_cases < 2:
        return f"no interval, as it rests on {difference.n_cases} case; at least 2 are needed"
    return "no interval, as every draw of cases gives the same difference"


def _corrected(comparisons: Sequence[PairedComparison]) -> list[PairedComparison]:
    corrected = list(comparisons)
    for metric in METRICS:
        tested = [i for i, each in enumerate(comparisons) if each.metric == metric and each.p is not None]
        adjusted = holm([p for i in tested if (p := comparisons[i].p) is not None])
        for i, p_holm in zip(tested, adjusted, strict=True):
            corrected[i] = replace(comparisons[i], p_holm=p_holm)
    return corrected
