"""What comparison.html and comparison.md show: sentences, tables and figures of several runs."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from breakhis_pl.data.breakhis import FOLDS, official_patients
from breakhis_pl.data.dataset import Subset
from breakhis_pl.errors import join_truncated
from breakhis_pl.metrics.registry import METRICS, shown
from breakhis_pl.reporting.curves import roc_curve
from breakhis_pl.reporting.figures import QUANTITIES, overlay_figure, roc_figure
from breakhis_pl.reporting.pages import Cell, Picture, Section, Table, link, picture_of, three_digits
from breakhis_pl.reporting.pairs import (
    MAX_RUNS_IN_PAIRS,
    compare_configurations,
    compare_runs,
    conclusions,
    group_by_images,
    pair_table,
)
from breakhis_pl.reporting.published import published_sentences, published_table
from breakhis_pl.reporting.reference_results import MAGNIFICATION, OTTO2022, PUBLISHED
from breakhis_pl.reporting.repeats import Repeats, Spread, over_folds, repeats
from breakhis_pl.reporting.run_report import cases_text, images_text, split_text
from breakhis_pl.reporting.runs import Run
from breakhis_pl.run_folder import REPORT_PAGE

MAX_DRAWN = 8
"""Runs in one figure."""

_DIFFERENCE_NOTES = (
    "Interval and p (two-sided) use the same draws of cases for both runs. Holm: p corrected for the number of tests "
    "of the metric; the intervals are not corrected. Cases: for AUROC, those of the class that has fewer. McNemar's "
    "test compares the images that only one of the two predicts correctly; it takes images of a case as independent, "
    "so its p can be much too small.",
    "A run is one training: a difference holds for these two trained networks. Runs with other seeds show how much a "
    "seed changes.",
)


def class_names(runs: Sequence[Run]) -> list[str]:
    """Return the classes of all runs, each once."""
    return list(dict.fromkeys(name for run in runs if run.metrics for name in run.metrics["class_names"]))


def lead_sentences(runs: Sequence[Run]) -> list[str]:
    """Say what the runs were trained and tested on."""
    kinds: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        if run.data_config and run.data.get("n_images"):
            split = "" if run.fold is not None else split_text(run).partition(" (seed")[0]
            kinds[images_text(run), split].append(run)
    sentences = []
    for (images, split), group in kinds.items():
        folds = sorted({run.fold for run in group if run.fold is not None}, key=str)
        whose = "the authors' " if group[0].is_of_breakhis else ""
        where = f"{whose}fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}" if folds else split
        sizes = [
            " to ".join(f"{n:,}" for n in dict.fromkeys((min(counts), max(counts))))
            for subset in ("train", "test")
            if (counts := [sum(run.data["n_images"].get(subset, {}).values()) for run in group])
        ]
        title = f"{images[0].upper()}{images[1:]}" if group[0].is_synthetic else images
        sentences.append(f"{title}, {where}: {sizes[0]} train and {sizes[1]} test images.")
    n_with_result = sum(run.metrics is not None for run in runs)
    sentences.append(f"{n_with_result} of {len(runs)} run{'' if len(runs) == 1 else 's'} with a result.")
    by_classes: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for run in runs:
        if run.metrics is not None:
            by_classes[tuple(run.metrics["class_names"])].append(run.name)
    if len(by_classes) > 1:
        parts = "; ".join(f"{join_truncated(each)} of {join_truncated(of, limit=3)}" for each, of in by_classes.items())
        sentences.append(f"The runs have different classes, so their metrics cannot be compared: {parts}.")
    sentences += dict.fromkeys(cases_text(run) for run in runs if run.metrics is not None)
    return sentences


def page_sections(folder: Path, runs: Sequence[Run]) -> Iterator[Section]:
    """Yield the sections of the page; `folder` is where it lies."""
    with_result = [run for run in runs if run.metrics is not None]
    groups = over_folds(runs)
    if groups:
        yield _fold_section(groups)
    if with_result:
        yield _result_section(folder, with_result)
        pictures = list(_pictures(with_result))
        if pictures:
            yield Section("curves", "Curves", pictures=pictures)
        differences = _difference_section(with_result)
        if differences is not None:
            yield differences
        comparable = [run for run in with_result if run.is_on_otto2022_split]
        if comparable:
            yield _published_section(comparable)
        yield _class_section(with_result)
        yield _cost_section(with_result)
    failed = [run for run in runs if run.status != "finished" or run.metrics is None]
    if failed:
        rows = [
            [
                run.name,
                "running, or killed" if run.status == "running" else run.status,
                run.folder.name,
                (run.error or "no reason given").splitlines()[0][:300],
            ]
            for run in failed
        ]
        headings = ["Run", "Status", "Folder", "Reason"]
        table = Table("Runs that did not finish, or have no result", headings, rows, texts=headings)
        yield Section("failures", "Runs without a result", tables=[table])


def _fold_section(groups: Sequence[Repeats]) -> Section:
    metrics = shown("folds")
    published = [result for result in PUBLISHED if result.over_folds and any(map(_has_published_folds, groups))]
    headings = ["Configuration", *(metric.title for metric in metrics), "Folds"]
    rows: list[list[Cell]] = []
    for group in groups:
        spreads = [None if (found := group.over_folds(metric.name)) is None else str(found) for metric in metrics]
        rows.append([f"{group.name}{group.remark}", *spreads, str(len(group.folds))])
    for result in published:
        values = (result.over_folds.get(metric.name) for metric in metrics)
        cells = [None if value is None else str(Spread(*value)) for value in values]
        rows.append([f"{result.method} ({result.source})", *cells, str(len(FOLDS))])
    tables = [Table("Mean ± standard deviation over folds", headings, rows)]
    for group in groups:
        sizes = [group.of_fold(fold)[0].metrics or {} for fold in group.folds]
        by_fold: list[list[Cell]] = [
            [
                metric.title,
                *(group.on_fold(fold, metric.name) for fold in group.folds),
                three_digits(group.seed_deviation(metric.name)),
            ]
            for metric in metrics
        ]
        by_fold.append(["test images, cases", *(f"{size['n_images']:,}, {size['n_cases']}" for size in sizes), None])
        headings = ["Metric", *(f"Fold {fold}" for fold in group.folds), "SD over seeds"]
        tables.append(Table(f"{group.name} by fold", headings, by_fold))
    pairs = compare_configurations(groups)
    points = [*_lacks(groups), *conclusions(pairs)]
    table = pair_table(pairs, "Configurations over the folds that both have, first minus second, with the case as unit")
    if table is not None:
        tables.append(table)
    n_tests = [sum(s is Subset.TEST for s in patient.subsets.values()) for patient in official_patients().values()]
    are_official = all(group.runs[0].is_of_breakhis for group in groups)
    notes = [
        "The standard deviation over folds is not a standard error: the test sets of the five folds overlap "
        f"({sum(n > 0 for n in n_tests)} of {len(n_tests)} patients are tested, {sum(n_tests):,} times in all)."
    ]
    if not are_official:
        notes = ["The standard deviation over folds is not a standard error: the networks share train images."]
    if len(groups) > MAX_RUNS_IN_PAIRS:
        notes.append(f"Of more than {MAX_RUNS_IN_PAIRS} configurations, each is compared with the first one only.")
    if table is not None:
        notes.append(
            "The paired test pools the folds: a case that is tested in several folds counts once. It says how the "
            "configurations differ on these cases, for these trained networks; other seeds are not part of it. AUROC "
            "is left out: probabilities of networks trained on different folds are not on one scale."
        )
    heading = "Over the authors' folds" if are_official else "Over the folds"
    return Section("folds", heading, points, tables=tables, notes=notes)


def _has_published_folds(group: Repeats) -> bool:
    """Whether a configuration was tested on all images of the five folds at 200X."""
    is_complete = all(not run.is_incomplete and not run.is_synthetic for run in group.runs)
    return (
        group.folds == FOLDS
        and is_complete
        and group.runs[0].is_of_breakhis
        and group.runs[0].magnifications[1] == (MAGNIFICATION,)
    )


def _lacks(groups: Sequence[Repeats]) -> Iterator[str]:
    """Name the folds and seeds that a configuration lacks."""
    for group in groups:
        expected = FOLDS if group.runs[0].is_of_breakhis else ()
        missing = [str(fold) for fold in expected if fold not in group.folds]
        parts = [f"no result on fold{'s' if len(missing) > 1 else ''} {', '.join(missing)}"] if missing else []
        for fold in group.folds:
            seeds = {run.seed for run in group.of_fold(fold)}
            parts += [f"fold {fold} without seed {seed}" for seed in group.seeds if seed not in seeds]
        if parts:
            yield f"{group.name} is incomplete: {'; '.join(parts)}."


def _result_section(folder: Path, runs: Sequence[Run]) -> Section:
    metrics = shown("comparison")
    headings = ["Run", *(metric.title for metric in metrics), "Test images", "Fold", "Seed"]
    rows: list[list[Cell]] = [
        [
            link(run.name, run.folder / REPORT_PAGE, folder),
            *(run.estimate(metric.name) for metric in metrics),
            f"{len(run.predictions or ()):,}",
            *(None if value is None else str(value) for value in (run.fold, run.seed)),
        ]
        for run in runs
    ]
    notes = ["In parentheses: 95% interval, cases resampled."]
    groups = [group for group in repeats(runs) if len(group.folds) < 2 and len(group.seeds) > 1]
    for group in groups:
        spreads = [None if (found := group.over_seeds(metric.name)) is None else str(found) for metric in metrics]
        name = f"{group.name}, {len(group.seeds)} seeds{group.remark}"
        rows.append([name, *spreads, None, None, None])
    if groups:
        notes.append("±: standard deviation over runs of different seeds, otherwise configured alike.")
    table = Table("Each run with its intervals", headings, rows)
    return Section("results", "Results on the test images", tables=[table], notes=notes)


def _first(runs: Sequence[Run]) -> str:
    return f" The first {MAX_DRAWN} of {len(runs)} runs." if len(runs) > MAX_DRAWN else ""


def _note(runs: Sequence[Run]) -> str | None:
    """Return the warnings that a figure of these runs must carry."""
    by_note: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        if run.note is not None:
            by_note[run.note].append(run.name)
    lines = [note if len(names) == len(runs) else f"{note}: {join_truncated(names)}" for note, names in by_note.items()]
    return "; ".join(lines) or None


def _pictures(runs: Sequence[Run]) -> Iterator[tuple[Picture, str]]:
    """Yield curves and ROC of the first runs together."""
    drawn = [run for run in runs if {"train_loss", "test_loss"} <= set(run.history)][:MAX_DRAWN]
    if len(drawn) > 1:
        names, histories = ", ".join(run.name for run in drawn), {run.name: run.history for run in drawn}
        caption = f"Dotted lines, crosses: train; solid lines, circles: test.{_first(runs)}"
        for quantity in QUANTITIES:
            title = quantity.capitalize()
            figure = overlay_figure(histories, quantity=quantity, title=title, note=_note(drawn))
            yield picture_of(figure, alt=f"{title} by epoch of {names}."), caption
    curves = {
        f"{run.name}: {auroc['value']:.3f}": curve
        for run in runs[:MAX_DRAWN]
        if run.predictions is not None
        and run.predictions.n_classes == 2
        and (auroc := run.estimate("auroc")) is not None
        and (curve := roc_curve(run.predictions, with_band=False)) is not None
    }
    if len(curves) > 1:
        figure = roc_figure(curves, title="ROC curves", note=_note(runs[:MAX_DRAWN]))
        others = " They are of different test images." if len(group_by_images(runs)) > 1 else ""
        caption = f"ROC curves with AUROC; diamonds: predicted classes.{_first(runs)}{others}"
        yield picture_of(figure, alt=f"ROC curves; AUROC of {', '.join(curves)}."), caption


def _difference_section(runs: Sequence[Run]) -> Section | None:
    pairs = compare_runs(runs)
    if not pairs:
        points = ["No two of these runs have the same test images."]
        return Section("differences", "Differences", points) if len(runs) > 1 else None
    table = pair_table(pairs, "First run minus second, on the same test images")
    notes = list(_DIFFERENCE_NOTES) if table else []
    if max(map(len, group_by_images(runs).values())) > MAX_RUNS_IN_PAIRS:
        text = f"Of more than {MAX_RUNS_IN_PAIRS} runs on the same images, each is compared with the first one only."
        notes.insert(0, text)
    return Section("differences", "Differences", conclusions(pairs), tables=[table] if table else [], notes=notes)


def _published_section(runs: Sequence[Run]) -> Section:
    notes = ["Otto et al. 2022 print counts, not a prediction per image, so no paired test is possible."]
    points = published_sentences(runs)
    return Section("published", "Published results", points, tables=[published_table(runs)], notes=notes)


def _class_section(runs: Sequence[Run]) -> Section:
    metrics = [metric for metric in METRICS.values() if metric.per_class]
    rows: list[list[Cell]] = [
        [run.name, name, *(run.metrics["per_class"][name][metric.name] for metric in metrics)]
        for name in class_names(runs)
        for run in runs
        if run.metrics is not None and name in run.metrics["class_names"]
    ]
    headings = ["Run", "Class", *(metric.title for metric in metrics)]
    table = Table("Metrics of each class", headings, rows, texts={"Class"})
    return Section("classes", "By class", tables=[table])


def _cost_section(runs: Sequence[Run]) -> Section:
    columns = {
        "parameters": ("Parameters", "{:,}"),
        "train_accuracy": ("Train accuracy", "{:.3f}"),
        "test_accuracy": ("Test accuracy", "{:.3f}"),
        "train_minus_test_accuracy": ("Train minus test", "{:+.3f}"),
        "seconds": ("Training (s)", "{:,.1f}"),
        "seconds_total": ("Total (s)", "{:,.1f}"),
        "images_per_second": ("Images/s", "{:,.0f}"),
    }
    rows: list[list[Cell]] = []
    for run in runs:
        costs = run.costs
        cells = (None if costs[key] is None else form.format(costs[key]) for key, (_, form) in columns.items())
        rows.append([run.name, *cells])
    headings = ["Run", *(title for title, _ in columns.values())]
    table = Table("Accuracy of the evaluated epoch, size and time", headings, rows)
    notes = ["Train accuracy is measured during the epoch, on augmented images.", *_overfitting_sentence(runs)]
    return Section("overfitting", "Size, overfitting, time", tables=[table], notes=notes)


def _overfitting_sentence(runs: Sequence[Run]) -> list[str]:
    """State what the runs say about the claim of Otto et al. 2022; networks that predict one class say nothing."""
    gaps: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        model = run.model or ""
        if model in OTTO2022 and run.overfitting is not None and run.one_class is None and not run.is_synthetic:
            gaps[model].append(run.overfitting)
    means = {model: sum(values) / len(values) for model, values in gaps.items()}
    if "resnet18" not in means or len(means) < 2:
        return []
    values = ", ".join(f"{mean:+.3f} for {OTTO2022[model].network}" for model, mean in means.items())
    wider = [OTTO2022[model].network for model, mean in means.items() if mean > max(0, means["resnet18"])]
    larger = (
        f"larger than that of ResNet-18 for {' and '.join(wider)}" if wider else "largest for ResNet-18, or below 0"
    )
    return [
        "Otto et al. 2022 claim that the two larger networks overfit. Here, train minus test accuracy is "
        f"{values}: {larger}."
    ]
