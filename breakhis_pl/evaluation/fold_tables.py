"""The part of a comparison that sums up the authors' folds: mean and standard deviation, each fold beside them."""

from collections.abc import Sequence

from breakhis_pl.data.breakhis import FOLDS, official_patients
from breakhis_pl.data.dataset import Subset
from breakhis_pl.errors import join_truncated
from breakhis_pl.evaluation.conclusions import metric_name
from breakhis_pl.evaluation.pages import Table
from breakhis_pl.evaluation.published import FOLD_RESULTS, FoldResult
from breakhis_pl.evaluation.repetitions import Repetitions, Spread, over_folds
from breakhis_pl.evaluation.run_summary import Estimate, RunSummary
from breakhis_pl.evaluation.sections import Section, columns, number_cell
from breakhis_pl.evaluation.texts import one_line

LEVELS = (
    ("images", "accuracy"),
    ("images", "weighted_f1"),
    ("images", "auroc"),
    ("images", "balanced_accuracy"),
    ("patients", "patient_recognition_rate"),
    ("cases", "case_accuracy"),
)
"""What is summed up, and what its unit is."""

PLUS_MINUS = "\N{PLUS-MINUS SIGN}"


def fold_section(runs: Sequence[RunSummary]) -> list[Section]:
    """Mean and standard deviation over folds; no section where no configuration has a result on two.

    Args:
        runs: All of the comparison, those without a result too.
    """
    groups = over_folds(runs)
    if not groups:
        return []
    published = [result for result in FOLD_RESULTS if any(is_comparable(group, result) for group in groups)]
    several = [_summary_table(groups, published)] if len(groups) > 1 else []
    return [
        Section(
            "folds",
            "Over the five folds",
            points=[sentence for group in groups if (sentence := _lack(group)) is not None],
            tables=[*several, *(_table(group, published) for group in groups)],
            notes=_notes(groups, published),
        )
    ]


def is_comparable(group: Repetitions, result: FoldResult) -> bool:
    """Whether a configuration was tested on exactly the images of a published result: all five folds, complete."""
    return group.folds == FOLDS and all(_has_published_images(run, result.magnification) for run in group.runs)


def overlap_sentence() -> str:
    """What the standard deviation over the authors' folds is not, and why."""
    counts = [sum(subset is Subset.TEST for subset in each.subsets.values()) for each in official_patients().values()]
    return (
        f"The standard deviation over folds is no standard error: the five test sets are no partition but overlap "
        f"({counts.count(0)} of the {len(counts)} patients are in none of them, {counts.count(4)} in four)."
    )


def _has_published_images(run: RunSummary, magnification: int) -> bool:
    n_images = sum(
        each.n_images[magnification]
        for each in official_patients().values()
        if run.fold is not None and each.subsets[run.fold] is Subset.TEST
    )
    is_whole = run.is_synthetic is False and run.is_complete is True and run.n_test_images == n_images
    return is_whole and run.test_magnification == (magnification,)


def _lack(group: Repetitions) -> str | None:
    """What a configuration lacks of five folds with the same seeds each; None where it lacks nothing."""
    lacks = []
    without = [fold for fold in FOLDS if fold not in group.folds]
    if without:
        lacks.append(f"no result on fold {join_truncated(map(str, without))}")
        lacks += [f"{one_line(run.name)} is {_state(run)}" for run in group.others if run.fold in without]
    for fold in group.folds:
        seeds = {run.seed for run in group.of_fold(fold)}
        lacking = [seed for seed in group.seeds if seed not in seeds]
        if lacking:
            lacks.append(f"fold {fold} without seed {join_truncated(lacking)}")
    return f"{group.name} is incomplete: {'; '.join(lacks)}." if lacks else None


def _state(run: RunSummary) -> str:
    return "without a result" if run.status == "finished" else run.status


def _summary_table(groups: Sequence[Repetitions], published: Sequence[FoldResult]) -> Table:
    rows: list[list[str | Estimate | None]] = [
        [group.name, *(_spread_cell(group, group.over_folds(metric)) for _, metric in LEVELS), str(len(group.folds))]
        for group in groups
    ]
    rows += [
        [
            f"{result.source} (published)",
            *(_published_cell(result, metric) for _, metric in LEVELS),
            str(len(FOLDS)),
        ]
        for result in published
    ]
    heads = columns(["configuration"], [*(f"{metric_name(m)} ({level})" for level, m in LEVELS), "folds"])
    return Table(f"Mean {PLUS_MINUS} standard deviation over folds", heads, rows)


def _table(group: Repetitions, published: Sequence[FoldResult]) -> Table:
    """The metrics of one configuration, each fold with its interval beside the mean."""
    beside = [result for result in published if is_comparable(group, result)]
    with_seeds = group.has_several_runs_a_fold
    rows: list[list[str | Estimate | None]] = [
        [
            f"{metric_name(metric)} ({level})",
            _spread_cell(group, group.over_folds(metric)),
            *([number_cell(group.over_seeds(metric), "{:.3f}")] if with_seeds else []),
            *(_published_cell(result, metric) for result in beside),
            *(group.on_fold(fold, metric) for fold in group.folds),
        ]
        for level, metric in LEVELS
    ]
    n_empty = 1 + with_seeds + len(beside)
    rows.append(
        ["test images, patients, cases", *[""] * n_empty, *(_sizes(group.of_fold(fold)[0]) for fold in group.folds)]
    )
    numbers = [
        f"mean {PLUS_MINUS} sd",
        *(["sd over seeds"] if with_seeds else []),
        *("published" for _ in beside),  # by whom: in the notes
        *(_fold_head(group, fold) for fold in group.folds),
    ]
    return Table(f"{group.name}: {_count(len(group.folds), 'fold')}", columns(["metric"], numbers), rows)


def _fold_head(group: Repetitions, fold: int) -> str:
    n_runs = len(group.of_fold(fold))
    return f"fold {fold}" if n_runs == 1 else f"fold {fold} ({n_runs} runs)"


def _sizes(run: RunSummary) -> str | None:
    if run.predictions is None:
        return number_cell(run.n_test_images, "{:,}")
    table = run.predictions
    return f"{len(table):,}, {len(set(table.patient)):,}, {len(set(table.case)):,}"


def _spread_cell(group: Repetitions, found: Spread | None) -> str | None:
    """Mean and deviation as text, with n where not every fold has the metric."""
    if found is None:
        return None
    return str(found) if found.n == len(group.folds) else f"{found} (n = {found.n})"


def _published_cell(result: FoldResult, metric: str) -> str | None:
    found = result.spreads.get(metric)
    return None if found is None else f"{found[0]:.3f} {PLUS_MINUS} {found[1]:.3f}"


def _count(n: int, thing: str) -> str:
    return f"1 {thing}" if n == 1 else f"{n} {thing}s"


def _notes(groups: Sequence[Repetitions], published: Sequence[FoldResult]) -> list[str]:
    notes = [
        f"Mean {PLUS_MINUS} sample standard deviation over folds; beside them each fold with its own 95 % interval, "
        f"cases resampled. {overlap_sentence()}",
        "Patient recognition rate: mean over patients of the share of their images that are right. Case accuracy: "
        "share of cases that are right by the mean probability of their images.",
    ]
    if any(group.has_several_runs_a_fold for group in groups):
        notes.append(
            "Where a fold has several runs (seeds), its value is their mean first, and its limits are the means of "
            "theirs, which are not narrower than those of the mean; the deviation over seeds is that within a fold, "
            "pooled over folds."
        )
    notes += [f"Published: {result.source}, {result.method}, {result.magnification}X." for result in published]
    return notes
