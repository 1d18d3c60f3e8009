"""The parts of a comparison that describe runs one by one: data, results, classes, overtraining, failures."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

from breakhis_pl.data.breakhis import CLASS_NAMES
from breakhis_pl.data.dataset import INCOMPLETE_NOTE, SYNTHETIC_NOTE
from breakhis_pl.errors import join_truncated
from breakhis_pl.evaluation.conclusions import metric_name
from breakhis_pl.evaluation.difference_tables import difference_section, report_section
from breakhis_pl.evaluation.fold_tables import fold_section
from breakhis_pl.evaluation.pages import Picture, Table
from breakhis_pl.evaluation.paired import METRICS, PairedComparison
from breakhis_pl.evaluation.published import REPORT_RESULTS
from breakhis_pl.evaluation.repetitions import Repetitions, Spread, repetitions
from breakhis_pl.evaluation.run_summary import Estimate, RunSummary
from breakhis_pl.evaluation.sections import ComparisonPage, Section, Warnings, columns, number_cell
from breakhis_pl.evaluation.texts import named, one_line

MAIN_METRICS = (*METRICS, "balanced_accuracy", "mcc")
CLASS_METRICS = tuple(f"{metric}_{name}" for name in CLASS_NAMES for metric in ("precision", "recall", "f1"))

LONGEST_REASON = 300
"""Characters of an error, or of what is said of a file, that a table row shows; the run folder has the rest."""


def comparison_page(
    runs: Sequence[RunSummary], comparisons: Sequence[PairedComparison], picture: Picture | None
) -> ComparisonPage:
    """All that is said of several runs, with a section only where there is something to say.

    Args:
        runs: At least one.
        comparisons: What `paired.compare_runs` returns for them.
        picture: Of their differences.
    """
    with_result = [run for run in runs if run.metrics]
    return ComparisonPage(
        lead=_data_sentences(runs),
        warnings=_warnings(runs),
        sections=[
            *fold_section(runs),
            *_result_section(with_result),
            *difference_section(comparisons, picture, with_result),
            *report_section(with_result),
            *_class_section(with_result),
            *_overtraining_section(with_result),
            *_failure_section(runs),
        ],
    )


def figure_warning(runs: Sequence[RunSummary]) -> str | None:
    """The warning that a figure must carry; None where there is none.

    Args:
        runs: Those that are drawn; where a warning holds for some of them, it names these.
    """
    synthetic = [run for run in runs if run.is_synthetic]
    incomplete = [run for run in runs if run.is_complete is False and not run.is_synthetic]
    lines = [
        heading
        if len(concerned) == len(runs)
        else f"{heading}: {join_truncated(one_line(run.name) for run in concerned)}"
        for heading, concerned in ((SYNTHETIC_NOTE, synthetic), (INCOMPLETE_NOTE, incomplete))
        if concerned
    ]
    return "\n".join(lines) or None


def _data_sentences(runs: Sequence[RunSummary]) -> list[str]:
    """What was trained and tested on, a sentence per kind of data."""
    kinds: dict[tuple[object, ...], list[RunSummary]] = defaultdict(list)
    for run in runs:
        if run.split is not None or run.is_synthetic is not None:
            kinds[run.is_synthetic, run.magnification, run.test_magnification, run.split, run.group].append(run)
    lines = [_data_sentence(group) for group in kinds.values()] or ["No run says what data it was given."]
    n_with_result = sum(bool(run.metrics) for run in runs)
    lines.append(f"{n_with_result} of {len(runs)} run{'' if len(runs) == 1 else 's'} with a result.")
    if len({run.split_checksum for run in runs if run.metrics and run.split_checksum is not None}) > 1:
        lines.append("The runs have different train and test images (fold, seed or data differ).")
    return lines


def _warnings(runs: Sequence[RunSummary]) -> Warnings:
    warnings = []
    synthetic = [run.name for run in runs if run.is_synthetic]
    if synthetic:
        which = (
            "These numbers"
            if len(synthetic) == len(runs)
            else f"The numbers of {join_truncated(map(named, synthetic))}"
        )
        warnings.append(("Synthetic images, no tissue.", f"{which} say nothing about pathology."))
    incomplete = [run.name for run in runs if run.is_complete is False and not run.is_synthetic]
    if incomplete:
        missing = "Images are missing; results are not comparable with published ones"
        warnings.append(("Incomplete archive.", f"{missing} ({join_truncated(incomplete)})."))
    return warnings


def _data_sentence(runs: Sequence[RunSummary]) -> str:
    first = runs[0]
    source = {True: "Synthetic images", False: "BreakHis", None: "Images of unknown origin"}[first.is_synthetic]
    magnification = ", ".join(f"{m}X" for m in first.magnification) or "unknown magnification"
    if first.test_magnification != first.magnification:
        magnification += f", tested at {', '.join(f'{m}X' for m in first.test_magnification)}"
    folds = sorted({run.fold for run in runs if run.fold is not None})
    match first.split:
        case "official":
            split = (
                f"the authors' fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds)) or 'of unknown number'}"
            )
        case "ratio":
            split = f"a split by {first.group or 'case'}"
        case _:
            split = "an unknown split"
    n_train = _range(run.n_train_images for run in runs)
    n_test = _range(run.n_test_images for run in runs)
    return f"{source} at {magnification}, {split}: {n_train} train and {n_test} test images."


def _range(counts: Iterable[int | None]) -> str:
    known = [count for count in counts if count is not None]
    if not known:
        return "an unknown number of"
    low, high = min(known), max(known)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _result_section(runs: Sequence[RunSummary]) -> list[Section]:
    if not runs:
        return []
    heads = columns(["run", "model"], [*map(metric_name, MAIN_METRICS), "test images", "fold", "seed"])
    rows: list[list[str | Estimate | None]] = [
        [run.name, run.model, *(run.metrics.get(name) for name in MAIN_METRICS), *_counts(run)] for run in runs
    ]
    of_seeds = [group for group in _repeated(runs) if len(group.folds) < 2]  # others have a section of their own
    rows += [
        [_group_name(group), group.runs[0].model, *(_spread_cell(group, m) for m in MAIN_METRICS), "", "", ""]
        for group in of_seeds
    ]
    notes = []
    if any(estimate.interval for run in runs for estimate in run.metrics.values()):
        notes.append("In parentheses: 95 % interval, cases resampled.")
    if of_seeds:
        notes.append("\N{PLUS-MINUS SIGN}: standard deviation over runs that differ in seed alone.")
    table = Table("Each run with its intervals", heads, rows)
    return [Section("results", "Results on the test images", tables=[table], notes=notes)]


def _class_section(runs: Sequence[RunSummary]) -> list[Section]:
    if not runs:
        return []
    rows: list[list[str | Estimate | None]] = [
        [run.name, *(run.metrics.get(name) for name in CLASS_METRICS)] for run in runs
    ]
    rows += [[_group_name(group), *(_spread_cell(group, m) for m in CLASS_METRICS)] for group in _repeated(runs)]
    heads = columns(["run"], [metric_name(metric) for metric in CLASS_METRICS])
    return [Section("classes", "By class", tables=[Table("Precision, recall and F1 of each class", heads, rows)])]


def _overtraining_section(runs: Sequence[RunSummary]) -> list[Section]:
    if not runs:
        return []
    headings = (
        "parameters",
        "train accuracy",
        "test accuracy",
        "train minus test accuracy",
        "seconds of training",
        "seconds in all",
        "images per second",
    )
    rows = [
        [
            run.name,
            run.model,
            number_cell(run.n_parameters, "{:,}"),
            number_cell(run.train_accuracy, "{:.3f}"),
            number_cell(run.test_accuracy, "{:.3f}"),
            number_cell(run.train_minus_test_accuracy, "{:+.3f}"),
            number_cell(run.seconds, "{:,.1f}"),
            number_cell(run.seconds_total, "{:,.1f}"),
            number_cell(run.images_per_second, "{:,.0f}"),
        ]
        for run in runs
    ]
    table = Table("Accuracy of the last epoch, and what it cost", columns(["run", "model"], headings), rows)
    notes = [
        "Accuracy of train is measured while training, on augmented images.",
        _overtraining_sentence(runs),
    ]
    return [Section("overtraining", "Size, overtraining, time", tables=[table], notes=notes)]


def _overtraining_sentence(runs: Sequence[RunSummary]) -> str:
    """What the runs say about the report's claim."""
    claim = "The report claims that the two larger networks overtrain (train better than test)"
    gaps: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        if run.model is not None and run.train_minus_test_accuracy is not None:
            gaps[run.model].append(run.train_minus_test_accuracy)
    means = {model: statistics.fmean(gaps[model]) for model in REPORT_RESULTS if gaps[model]}
    larger = [model for model in means if model != "resnet18"]
    if "resnet18" not in means or not larger:
        return f"{claim}; these runs cannot say, as ResNet-18 or the larger networks are missing."
    values = ", ".join(f"{mean:+.3f} for {REPORT_RESULTS[model].network}" for model, mean in means.items())
    # where train is no better than test, nothing overtrains, however the gaps compare
    wider = [REPORT_RESULTS[model].network for model in larger if means[model] > max(0, means["resnet18"])]
    verdict = (
        f"positive and larger than ResNet-18's for {' and '.join(wider)}"
        if wider
        else "positive and larger than ResNet-18's for none of them"
    )
    return f"{claim}; here, train minus test accuracy is {values}: {verdict}."


def _failure_section(runs: Sequence[RunSummary]) -> list[Section]:
    rows = [
        [run.name, run.status, run.model, _reason(run)]
        for run in runs
        if run.status != "finished" or not run.metrics or run.error is not None or run.damage
    ]
    if not rows:
        return []
    table = Table("Why a run has no result, or not all of it", columns(["run", "status", "model", "reason"], []), rows)
    return [Section("failures", "Runs without a full result", tables=[table])]


def _reason(run: RunSummary) -> str:
    reasons = list(run.damage)
    if run.error is not None:
        reasons.insert(0, next((line for line in run.error.splitlines() if line.strip()), "no reason given"))
    if reasons:
        return "; ".join(text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}…" for text in reasons)
    if run.status == "finished":
        return "holds no test/metrics.json"
    return "still going on, or cut off" if run.status == "running" else "no reason given"


def _repeated(runs: Sequence[RunSummary]) -> list[Repetitions]:
    """Configurations of which at least two finished runs differ in fold or seed."""
    return [group for group in repetitions(runs) if len({(run.fold, run.seed) for run in group.runs}) > 1]


def _group_name(group: Repetitions) -> str:
    head = "mean \N{PLUS-MINUS SIGN} sd"
    if len(group.folds) > 1:
        return f"{head} over {len(group.folds)} folds: {group.name}"
    return f"{head}, n = {len(group.runs)}: {join_truncated(run.name for run in group.runs)}"


def _spread_cell(group: Repetitions, metric: str) -> str | None:
    """Mean and deviation as text, with n where not every fold, or run, has the metric."""
    n_all = len(group.folds) if len(group.folds) > 1 else len(group.runs)
    found: Spread | None = group.over_folds(metric) if len(group.folds) > 1 else group.over_runs(metric)
    if found is None:
        return None
    return str(found) if found.n == n_all else f"{found} (n = {found.n})"


def _counts(run: RunSummary) -> list[str | None]:
    return [number_cell(run.n_test_images, "{:,}"), number_cell(run.fold, "{}"), number_cell(run.seed, "{}")]
