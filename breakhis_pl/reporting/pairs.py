"""Paired differences and tests of runs, and of configurations over folds, on the same test images."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TypeVar

import numpy as np

from breakhis_pl.errors import PredictionsError
from breakhis_pl.metrics.paired import (
    Difference,
    decision_metrics,
    holm,
    mcnemar,
    paired_differences,
    pooled_differences,
)
from breakhis_pl.metrics.predictions import align
from breakhis_pl.metrics.registry import MAIN_METRIC, METRICS, shown
from breakhis_pl.reporting.pages import Cell, Table
from breakhis_pl.reporting.repeats import Repeats
from breakhis_pl.reporting.runs import Run

Item = TypeVar("Item")

MAX_RUNS_IN_PAIRS = 8
"""Runs on the same images above which each is compared only with the first."""

MAX_CONCLUSIONS = 10
"""Sentences on pairs; more pairs are counted."""

SIGNIFICANCE = 0.05
"""P-value after correction below which a difference is shown."""


@dataclass(frozen=True)
class Pair:
    """Comparison of two runs, or of two configurations over folds, on the same images.

    Attributes:
        first: Name of one.
        second: Name of the other.
        differences: First minus second, by metric; empty if they are not compared.
        p_holm: p-values corrected for the number of tests, by metric.
        mcnemar_p: p-value of McNemar's test; None for configurations.
        reason: Why they are not compared; None if they are.
        basis: Folds and number of runs of a comparison over folds.
    """

    first: str
    second: str
    differences: dict[str, Difference] = field(default_factory=dict)
    p_holm: dict[str, float] = field(default_factory=dict)
    mcnemar_p: float | None = None
    reason: str | None = None
    basis: str = ""

    @property
    def is_shown(self) -> bool:
        """Whether the runs differ in the main metric, after correction."""
        return self.p_holm.get(MAIN_METRIC, 1.0) < SIGNIFICANCE


def compare_runs(runs: Sequence[Run]) -> list[Pair]:
    """Compare every two runs with the same test images; different folds are not paired.

    Of more than `MAX_RUNS_IN_PAIRS` runs on the same images, each is compared with the first one. A network that
    predicts one class is not compared.
    """
    pairs = []
    for first, second in _pairs(runs):
        a, b, pair = first.predictions, second.predictions, Pair(first.name, second.name)
        if a is None or b is None:
            continue
        reason = "other classes" if a.classes != b.classes else _one_class([first, second])
        reason = reason or _other_images(first, second)
        if reason is None:
            try:
                aligned = align(b, a)
                if np.array_equal(aligned.probabilities, a.probabilities):
                    raise PredictionsError("the same predictions in all digits; one may be a copy")
                found = paired_differences(a, b, shown("paired", a.n_classes))
                differences = {difference.metric: difference for difference in found}
                pair = replace(pair, differences=differences, mcnemar_p=mcnemar(a.correct, aligned.correct))
            except PredictionsError as error:
                reason = str(error)
        pairs.append(replace(pair, reason=reason))
    return _correct(pairs)


def group_by_images(runs: Sequence[Run]) -> dict[object, list[Run]]:
    """Group runs by their fold, or by their test images if they have none."""
    groups: dict[object, list[Run]] = defaultdict(list)
    for run in runs:
        if run.predictions is not None:
            groups[run.fold if run.fold is not None else frozenset(run.predictions.image)].append(run)
    return groups


def _pairs(runs: Sequence[Run]) -> Iterator[tuple[Run, Run]]:
    groups = group_by_images(runs)
    if len(groups) > 1 and len(runs) <= MAX_RUNS_IN_PAIRS and not all(run.fold for run in runs):
        groups = {"all": list(runs)}  # few runs: name the pairs whose images differ
    for group in groups.values():
        yield from _combinations(group)


def _combinations(items: Sequence[Item]) -> Iterator[tuple[Item, Item]]:
    if len(items) <= MAX_RUNS_IN_PAIRS:
        yield from combinations(items, 2)
    else:
        yield from ((items[0], other) for other in items[1:])


def _one_class(runs: Sequence[Run]) -> str | None:
    names = []
    for run in runs:
        if run.one_class is not None and run.predictions is not None:
            almost = "" if len(np.unique(run.predictions.predicted)) == 1 else "almost "
            names.append(f"{run.name} predicts {almost}only {run.one_class}")
    if len(runs) > 2 and names:
        return f"no conclusion: {len(names)} of {len(runs)} networks predict one class only, or almost"
    return f"no conclusion: {' and '.join(names)}" if names else None


def _other_images(first: Run, second: Run) -> str | None:
    """Say how the test images of two runs differ; None if they are the same."""
    images = [set(run.predictions.image) for run in (first, second) if run.predictions is not None]
    if images[0] == images[1]:
        return None
    facts = [
        [f"fold {run.fold or 'none'}" for run in (first, second)],
        ["/".join(f"{each}X" for each in run.magnifications[1]) for run in (first, second)],
    ]
    differing = [f"{a} and {b}" for a, b in facts if a != b]
    n_common = len(images[0] & images[1])
    return (
        f"other test images ({', '.join(differing) or 'other splits'}; {len(images[0]):,} and {len(images[1]):,}, "
        f"{n_common:,} of them in both)"
    )


def compare_configurations(groups: Sequence[Repeats]) -> list[Pair]:
    """Compare every two configurations over the folds and seeds that both have, with the case as unit.

    Of more than `MAX_RUNS_IN_PAIRS`, each is compared with the first one.
    """
    pairs = []
    for first, second in _combinations(groups):
        by_key = [{(run.fold, run.seed): run for run in group.runs} for group in (first, second)]
        keys = sorted(by_key[0].keys() & by_key[1].keys(), key=str)
        if len({fold for fold, _ in keys}) < 2:
            continue
        matched = [(by_key[0][key], by_key[1][key]) for key in keys]
        tables = [(a.predictions, b.predictions) for a, b in matched if a.predictions and b.predictions]
        folds = ", ".join(dict.fromkeys(str(fold) for fold, _ in keys))
        pair = Pair(first.name, second.name, basis=f" (folds {folds}; {len(keys)} runs of each)")
        reason = _one_class([run for both in matched for run in both])
        if reason is None:
            try:
                found = pooled_differences(tables, decision_metrics())
                pair = replace(pair, differences={difference.metric: difference for difference in found})
            except PredictionsError as error:
                reason = str(error)
        pairs.append(replace(pair, reason=reason))
    return _correct(pairs)


def _correct(pairs: Sequence[Pair]) -> list[Pair]:
    """Correct the p-values of each metric for their number."""
    corrected: list[dict[str, float]] = [{} for _ in pairs]
    for metric in METRICS:
        tested = [(i, d.p) for i, pair in enumerate(pairs) if (d := pair.differences.get(metric)) and d.p is not None]
        for (i, _), p in zip(tested, holm([p for _, p in tested]), strict=True):
            corrected[i][metric] = p
    return [replace(pair, p_holm=p_holm) for pair, p_holm in zip(pairs, corrected, strict=True)]


def conclusions(pairs: Sequence[Pair]) -> list[str]:
    """Return a sentence on the main metric per pair; for many pairs, counts and the significant differences only."""
    n_tests = sum(MAIN_METRIC in pair.p_holm for pair in pairs)
    ordered = sorted(pairs, key=lambda pair: not pair.is_shown) if len(pairs) > MAX_CONCLUSIONS else pairs
    texts = [_conclusion(pair, n_tests) for pair in ordered]
    if len(pairs) <= MAX_CONCLUSIONS:
        return texts
    n_shown, n_compared = sum(pair.is_shown for pair in pairs), sum(pair.reason is None for pair in pairs)
    if n_compared == 0:
        return ["No pair of runs can be compared: one class only, other classes, or other test images."]
    counts = (
        f"{n_shown} of {n_compared} compared pairs differ significantly in {_title()}. The others may differ too; "
        "these data do not show it."
    )
    if n_compared < len(pairs):
        counts += (
            f" {len(pairs) - n_compared} pairs are not compared: one class only, other classes, or other test images."
        )
    return [counts, *texts[: min(n_shown, MAX_CONCLUSIONS)]]


def _title() -> str:
    title = METRICS[MAIN_METRIC].title
    return title[0].lower() + title[1:]


def _conclusion(pair: Pair, n_tests: int) -> str:
    both = f"{pair.first} and {pair.second}{pair.basis}"
    if pair.reason is not None:
        return f"{both}: {pair.reason}."
    found = pair.differences[MAIN_METRIC]
    if found.value is None:
        return f"{both}: {_title()} is not defined for both."
    if found.ci95 is None or found.p is None:
        cases = "from one case only" if found.n_cases < 2 else "in every draw of cases, so there is no interval"
        difference = f"differs by {_signed(found.value)}, {cases}" if found.value else "is the same"
        return f"{both}: {_title()} {difference}."
    low, high = found.ci95
    p = f"p {format_p(found.p)}" if found.p < 0.001 else f"p = {format_p(found.p)}"
    if n_tests > 1:
        corrected = format_p(pair.p_holm[MAIN_METRIC])
        p += f", {corrected} after Holm's correction for {n_tests} tests (interval not corrected)"
    if not pair.is_shown:
        interval = f"{_signed(found.value)} ({_signed(low)} to {_signed(high)})"
        return f"{both}: no difference shown; {_title()} {interval}, {p}."
    better, worse, sign = (pair.first, pair.second, 1) if found.value > 0 else (pair.second, pair.first, -1)
    ends = sorted((sign * low, sign * high))
    interval = f"{abs(found.value):.3f} ({ends[0]:.3f} to {ends[1]:.3f})"
    return f"On these images, {better} has a higher {_title()} than {worse}{pair.basis}: by {interval}, {p}."


def pair_table(pairs: Sequence[Pair], caption: str) -> Table | None:
    """Build the table of differences; None if no pair is compared."""
    rows: list[list[Cell]] = []
    for metric in shown("paired"):
        for pair in pairs:
            found = pair.differences.get(metric.name)
            if found is not None:
                rows.append(
                    [
                        f"{pair.first} minus {pair.second}",
                        metric.title,
                        None if found.value is None else _signed(found.value),
                        None if found.ci95 is None else f"{_signed(found.ci95[0])} to {_signed(found.ci95[1])}",
                        str(found.n_cases),
                        None if found.p is None else format_p(found.p),
                        format_p(pair.p_holm[metric.name]) if metric.name in pair.p_holm else None,
                        None if pair.mcnemar_p is None or metric.name != "accuracy" else format_p(pair.mcnemar_p),
                    ]
                )
    headings = ["Pair", "Metric", "Difference", "95% interval", "Cases", "p", "p (Holm)", "McNemar p"]
    if all(row[-1] is None for row in rows):
        headings, rows = headings[:-1], [row[:-1] for row in rows]
    return Table(caption, headings, rows, texts={"Metric"}) if rows else None


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def format_p(p: float) -> str:
    """Format a p-value.

    Example:
        >>> format_p(0.0004), format_p(0.0213), format_p(0.4)
        ('< 0.001', '0.021', '0.40')
    """
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
