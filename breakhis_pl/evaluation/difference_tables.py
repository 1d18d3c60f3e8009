"""The parts of a comparison that set runs against each other and against published results."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from matplotlib.figure import Figure

from breakhis_pl.errors import join_truncated
from breakhis_pl.evaluation.conclusions import (
    conclusions,
    is_shown,
    metric_name,
    p_value_text,
    published_conclusions,
    signed,
)
from breakhis_pl.evaluation.pages import Picture, Table
from breakhis_pl.evaluation.paired import (
    MAIN_METRIC,
    METRICS,
    MOST_RUNS_IN_ALL_PAIRS,
    N_REPORT_TEST_IMAGES,
    PUBLISHED_METRICS,
    PairedComparison,
    PublishedComparison,
    against_published,
    has_the_reports_images,
    is_on_the_reports_split,
    published_values,
)
from breakhis_pl.evaluation.published import LITERATURE_RESULTS, REPORT_RESULTS
from breakhis_pl.evaluation.row_figures import forest_figure
from breakhis_pl.evaluation.run_summary import Estimate, RunSummary
from breakhis_pl.evaluation.sections import Section, columns, matrix_cell, number_cell

MOST_ROWS_OF_FOREST = 28
"""All pairs of eight runs; a figure with more rows is no figure."""

MOST_SENTENCES = 10
"""Pairs that are spelled out; of more, those come first of which a difference can be shown."""


def difference_figure(comparisons: Sequence[PairedComparison], *, note: str | None) -> Figure | None:
    """The differences of the main metric with their intervals, first pair on top; None where there is none to draw.

    Args:
        comparisons: What `paired.compare_runs` returns.
        note: Warning that must not be lost.
    """
    drawn = _drawn(comparisons)
    if not drawn:
        return None
    limits = np.array([comparison.ci95 for comparison in drawn], dtype=np.float64)  # (n_pairs, 2)
    name = metric_name(MAIN_METRIC)
    return forest_figure(
        [f"{comparison.first} \N{MINUS SIGN} {comparison.second}" for comparison in drawn],
        np.array([comparison.difference for comparison in drawn], dtype=np.float64),
        limits[:, 0],
        limits[:, 1],
        axis_label=f"Difference of {name} (95% interval over cases)",
        title=f"Differences of {name}, first run minus second",
        note=note,
    )


def drawn_runs(comparisons: Sequence[PairedComparison]) -> frozenset[str]:
    """Names of the runs in the figure of differences."""
    return frozenset(name for each in _drawn(comparisons) for name in (each.first, each.second))


def difference_figure_text(comparisons: Sequence[PairedComparison]) -> str:
    """What the figure shows, in words and numbers, for those who do not see it."""
    drawn = _drawn(comparisons)
    rows = (
        f"{each.first} minus {each.second} {signed(each.difference)} ({signed(each.ci95[0])} to {signed(each.ci95[1])})"
        for each in drawn
        if each.ci95 is not None and each.difference is not None
    )
    pairs = "1 pair" if len(drawn) == 1 else f"{len(drawn)} pairs"
    name = metric_name(MAIN_METRIC)
    return f"Differences of {name} of {pairs} of runs with 95 % intervals, and a line at 0: {join_truncated(rows)}."


def difference_section(
    comparisons: Sequence[PairedComparison], picture: Picture | None, runs: Sequence[RunSummary]
) -> list[Section]:
    """What can be shown of each pair of runs; no section where there is no pair, and no reason why.

    Args:
        comparisons: What `paired.compare_runs` returns.
        picture: Of `difference_figure`.
        runs: Those with a result, which it was given.
    """
    pairs = [comparison for comparison in comparisons if comparison.metric == MAIN_METRIC]
    apart = _folds_apart(runs, has_pairs=bool(pairs))
    if not pairs and not apart:
        return []
    compared = [pair for pair in pairs if pair.difference is not None]
    return [
        Section(
            "differences",
            "Differences",
            points=[*_points(pairs), *apart],
            picture=picture,
            caption="Green diamonds: the interval, not corrected for the number of pairs, excludes 0.",
            tables=[_difference_table(comparisons, compared)] if compared else [],
            notes=_difference_notes(compared, runs),
        )
    ]


def report_section(runs: Sequence[RunSummary]) -> list[Section]:
    """The report's results, and others', beside those of runs on its split; no section where there is no such run.

    Args:
        runs: Runs with a result.
    """
    comparable = [run for run in runs if is_on_the_reports_split(run)]
    if not comparable:
        return []
    published = against_published(comparable)
    notes = [
        "The report states counts, not what was said of each image: whether its figure lies inside our interval is all "
        "that can be asked, and no paired test. Rows of a matrix are the truth."
    ]
    others = [run for run in comparable if not has_the_reports_images(run)]
    if others:
        names = join_truncated(f"{run.name}: {number_cell(run.n_test_images, '{:,}') or 'unknown'}" for run in others)
        which = f"The test images are not the report's {N_REPORT_TEST_IMAGES} ({names})"
        notes.insert(0, f"{which}: the comparison is indicative only.")
    tables = [_report_table(comparable, published), _literature_table()]
    return [Section("report", "Beside published results", published_conclusions(published), tables=tables, notes=notes)]


def _folds_apart(runs: Sequence[RunSummary], *, has_pairs: bool) -> list[str]:
    """Why runs of different folds make no pair; nothing where all are of one fold."""
    folds = sorted({run.fold for run in runs if run.fold is not None})
    if len(folds) < 2:
        return []
    rest = "pairs of the same fold are" if has_pairs else "and no two runs share a fold"
    return [
        f"Runs of different folds ({', '.join(map(str, folds))}) have different test images and are not compared in "
        f"pairs; {rest}."
    ]


def _points(pairs: Sequence[PairedComparison]) -> list[str]:
    """A sentence for each pair; where there are many, pairs of which the same can be said are counted instead."""
    sentences = list(zip(pairs, conclusions(pairs), strict=True))
    apart = [sentence for pair, sentence in sentences if pair.difference is None]
    points = [sentence for pair, sentence in sentences if pair.difference is not None]
    if len(points) > MOST_SENTENCES:
        shown = [sentence for pair, sentence in sentences if is_shown(pair)]
        counted = (
            f"Pairs in which no difference in {metric_name(MAIN_METRIC)} can be shown: {len(points) - len(shown)}."
        )
        points = [*_at_most(shown, "More pairs in which a difference can be shown"), counted]
    return [*points, *_at_most(apart, "More pairs that are not compared")]


def _at_most(sentences: Sequence[str], rest: str) -> list[str]:
    n_more = len(sentences) - MOST_SENTENCES
    return list(sentences) if n_more <= 0 else [*sentences[:MOST_SENTENCES], f"{rest}: {n_more}."]


def _drawn(comparisons: Sequence[PairedComparison]) -> list[PairedComparison]:
    is_drawn = [each for each in comparisons if each.metric == MAIN_METRIC and each.ci95 is not None]
    return is_drawn[:MOST_ROWS_OF_FOREST]


def _difference_table(comparisons: Sequence[PairedComparison], compared: Sequence[PairedComparison]) -> Table:
    shown = {(pair.first, pair.second) for pair in compared}
    rows = [
        [
            each.first,
            each.second,
            metric_name(each.metric),
            None if each.difference is None else signed(each.difference),
            None if each.ci95 is None else f"{signed(each.ci95[0])} to {signed(each.ci95[1])}",
            None if each.difference is None else f"{each.n_cases:,}",
            None if each.p is None else p_value_text(each.p),
            None if each.p_holm is None else p_value_text(each.p_holm),
            p_value_text(each.mcnemar_p) if each.metric == "accuracy" and each.mcnemar_p is not None else None,
            each.reason,
        ]
        for metric in METRICS
        for each in comparisons
        if each.metric == metric and (each.first, each.second) in shown
    ]
    headings = ["difference", "95 % interval", "cases", "p", "p after Holm", "McNemar p"]
    heads = columns(["first", "second", "metric"], headings)
    if any(row[-1] for row in rows):
        heads += columns(["remark"], [])
    else:
        rows = [row[:-1] for row in rows]
    return Table("First run minus second, on the same test images", heads, rows)


def _difference_notes(compared: Sequence[PairedComparison], runs: Sequence[RunSummary]) -> list[str]:
    if not compared:
        return []
    notes = [
        'Interval and p (two-sided): both runs judged on the same draws of cases. "cases" are those behind a '
        'difference: for the AUROC those of the class that has fewer. "p after Holm" is '
        "corrected for the number of pairs, metric by metric; intervals are not. McNemar's test counts the images that "
        "only one of the two has right; it takes images of a case as independent, claims too much here, and is not "
        "corrected.",
        "A run is one training: a difference between two runs holds for these two trained networks. How much another "
        "seed changes is seen from runs that differ in seed alone.",
    ]
    is_apart = [None not in (a.fold, b.fold) and a.fold != b.fold for a, b in combinations(runs, 2)]
    if len(runs) > MOST_RUNS_IN_ALL_PAIRS and len(compared) < is_apart.count(False):
        notes.append(
            f"More than {MOST_RUNS_IN_ALL_PAIRS} runs: runs on different test images are left out, and where more than "
            f"{MOST_RUNS_IN_ALL_PAIRS} have the same ones, each is compared with the first of them only."
        )
    return notes


def _report_table(runs: Sequence[RunSummary], published: Sequence[PublishedComparison]) -> Table:
    inside = {(each.run, each.metric): each.is_inside for each in published}
    rows: list[list[str | Estimate | None]] = []
    for model, result in REPORT_RESULTS.items():
        values = (f"{value:.3f}" for value in published_values(result).values())
        rows.append([f"{result.network}, the report", *values, matrix_cell(result.confusion_matrix), None])
        rows += [
            [
                run.name,
                *(run.metrics.get(metric) for metric in PUBLISHED_METRICS),
                matrix_cell(run.confusion_matrix),
                _inside_cell({metric: inside.get((run.name, metric)) for metric in PUBLISHED_METRICS}),
            ]
            for run in runs
            if run.model == model
        ]
    heads = columns(["network or run"], [*map(metric_name, PUBLISHED_METRICS), "confusion matrix"])
    heads += columns(["the report inside our interval"], [])
    return Table("The report's networks and the runs of the same network", heads, rows)


def _inside_cell(is_inside: dict[str, bool | None]) -> str | None:
    known = {metric: inside for metric, inside in is_inside.items() if inside is not None}
    if not known:
        return None
    outside = [metric_name(metric) for metric, inside in known.items() if not inside]
    if not outside:
        return "yes" if len(known) == len(is_inside) else f"yes ({', '.join(map(metric_name, known))})"
    return f"not {', '.join(outside)}" if len(outside) < len(known) else "no"


def _literature_table() -> Table:
    metrics = ("accuracy", "weighted_f1", "auroc", "patient_recognition_rate")
    rows = [
        [result.method, result.source or None, *(number_cell(getattr(result, metric), "{:.3f}") for metric in metrics)]
        for result in LITERATURE_RESULTS
    ]
    heads = columns(["method", "source"], [metric_name(metric) for metric in metrics])
    return Table(f"What others published on the same {N_REPORT_TEST_IMAGES} images", heads, rows)
