"""Comparison of runs: comparison.csv with all digits, comparison.md and comparison.html to read."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from breakhis_pl.data.breakhis import FOLDS, official_patients
from breakhis_pl.data.dataset import Subset
from breakhis_pl.errors import PredictionsError, join_truncated
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
from breakhis_pl.reporting.checks import Check, documentation_link, run_checks
from breakhis_pl.reporting.curves import roc_curve
from breakhis_pl.reporting.figures import overlay_figure, roc_figure
from breakhis_pl.reporting.pages import (
    Cell,
    Link,
    Picture,
    Section,
    Table,
    picture_of,
    render,
    table_to_markdown,
    three_digits,
    to_markdown,
)
from breakhis_pl.reporting.reference_results import MAGNIFICATION, OTTO2022, PUBLISHED
from breakhis_pl.reporting.repeats import Repeats, Spread, repeats
from breakhis_pl.reporting.run_report import (
    magnification_text,
    metric_title,
    published_sentences,
    published_table,
    source_text,
)
from breakhis_pl.reporting.runs import Run, distinct_names, find_runs, read_run
from breakhis_pl.run_folder import REPORT_PAGE, write_text

MAX_RUNS_IN_PAIRS = 8
"""Of more runs on the same images, each is compared with the first one only."""

MAX_DRAWN = 8
"""Runs in one figure."""

SIGNIFICANCE = 0.05
"""P-value after correction below which a difference is shown."""


@dataclass(frozen=True)
class Pair:
    """Comparison of two runs, or of two configurations over folds, on the same images.

    Attributes:
        first: Name of one.
        second: Name of the other.
        differences: First minus second, by metric.
        p_holm: p-values corrected for the number of pairs, by metric.
        mcnemar_p: p-value of McNemar's test; None for configurations.
        learned: Whether both predict more than one class.
        reason: Why they are not compared; None if they are.
    """

    first: str
    second: str
    differences: dict[str, Difference]
    p_holm: dict[str, float]
    mcnemar_p: float | None = None
    learned: bool = True
    reason: str | None = None


def write_comparison(folder: Path, runs: Sequence[Path] | None = None) -> tuple[Path, list[Check]]:
    """Write comparison.csv, comparison.md and comparison.html into a folder; older ones are replaced.

    Args:
        folder: Folder of a sweep; with `runs`, any folder.
        runs: Run folders, or folders of sweeps; None: the runs of the sweep.

    Returns:
        Path of comparison.md, and the checks that runs did not pass.

    Raises:
        RunFolderError: If a folder does not exist or holds no run.
        PredictionsError: If a run is given twice.
    """
    found = find_runs([folder] if runs is None else runs)
    names = [path.name for path in found] if runs is None else distinct_names(found)
    return write_runs(folder, [read_run(path, name=name) for path, name in zip(found, names, strict=True)])


def write_runs(folder: Path, runs: Sequence[Run], *, lead: str | None = None) -> tuple[Path, list[Check]]:
    """Write the comparison of runs that have been read, each with a name of its own.

    Args:
        folder: Where to write.
        runs: The runs.
        lead: A further sentence on what is compared.
    """
    folder.mkdir(parents=True, exist_ok=True)
    title, checks = "/".join(folder.resolve().parts[-2:]), _checks(runs)
    sentences, sections = [*_data_sentences(runs), *([lead] if lead else [])], list(_sections(folder, runs))
    write_text(folder / "comparison.csv", comparison_table(runs).to_csv(index=False))
    page = render(
        "comparison.html.j2",
        title=title,
        lead=sentences,
        checks=checks,
        documentation=documentation_link(folder),
        sections=sections,
        toc=[(section.key, section.heading) for section in sections],
    )
    write_text(folder / "comparison.html", page)
    path = folder / "comparison.md"
    write_text(path, _markdown(sentences, checks, sections))
    return path, checks


def comparison_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Return a row per run, then mean and standard deviation over folds of each configuration."""
    names = [
        *(metric.name for metric in METRICS.values() if not metric.per_class),
        *(f"{metric.name}_{name}" for name in _classes(runs) for metric in METRICS.values() if metric.per_class),
    ]
    rows: list[dict[str, Any]] = []
    for run in runs:
        facts = {"run": run.name, "status": run.status, "model": run.model, "fold": run.fold, "seed": run.seed}
        estimates = {name: run.estimate(name) for name in names}
        rows.append(
            facts
            | {"n_test_images": None if run.metrics is None else run.metrics["n_images"]}
            | {name: estimate and estimate["value"] for name, estimate in estimates.items()}
            | _costs(run)
        )
    for group in _over_folds(runs):
        spreads = {name: found for name in names if (found := group.over_folds(name)) is not None}
        facts = {
            "run": group.name,
            "model": group.runs[0].model,
            "fold": " ".join(map(str, group.folds)),
            "seed": " ".join(map(str, group.seeds)),
        }
        for status, place in (("mean over folds", 0), ("standard deviation over folds", 1)):
            rows.append(facts | {"status": status} | {name: found[place] for name, found in spreads.items()})
    table = pd.DataFrame(rows)
    return table.astype(dict.fromkeys(("n_test_images", "parameters"), "Int64"))


def _costs(run: Run) -> dict[str, float | None]:
    """Return size, accuracies of the evaluated epoch, and time of a run."""
    row, record = run.final_row, run.record
    seconds = {} if record is None else record.seconds or {}
    rates = run.history.get("images_per_second", pd.Series(dtype=float)).dropna()
    return {
        "parameters": None if record is None else record.model.get("n_parameters"),
        "train_accuracy": row.get("train_accuracy"),
        "test_accuracy": row.get("test_accuracy"),
        "train_minus_test_accuracy": run.overfitting,
        "seconds": seconds.get("training"),
        "seconds_total": seconds.get("total"),
        "images_per_second": float(len(rates) / (1 / rates).sum()) if len(rates) else None,  # all images over all time
    }


def _classes(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(name for run in runs if run.metrics for name in run.metrics["class_names"]))


def _over_folds(runs: Sequence[Run]) -> list[Repeats]:
    """Return the configurations, if one of them has results on two folds."""
    found = [group for group in repeats(runs) if group.folds]
    return found if any(len(group.folds) > 1 for group in found) else []


def _checks(runs: Sequence[Run]) -> list[Check]:
    """Merge the checks of the runs: one line for each code."""
    by_code: dict[str, list[tuple[Run, Check]]] = defaultdict(list)
    with_result = [run for run in runs if run.metrics is not None]
    for run in with_result:
        for check in run_checks(run):
            by_code[check.code].append((run, check))
    merged = []
    for code, found in sorted(by_code.items()):
        check, n_runs = found[0][1], len(with_result)
        texts = {check.text for _, check in found}
        everybody = "both runs" if n_runs == 2 else f"all {n_runs} runs"
        names = everybody if len(found) == n_runs > 1 else join_truncated(run.name for run, _ in found)
        merged.append(Check(code, check.title, f"{names}: {check.text}" if len(texts) == 1 else f"{names}."))
    return merged


def _data_sentences(runs: Sequence[Run]) -> list[str]:
    kinds: dict[tuple[str, str, str], list[Run]] = defaultdict(list)
    for run in runs:
        if run.data_config:
            split = "" if run.fold is not None else f"splits by {run.data_config.get('group', 'case')}"
            kinds[source_text(run), magnification_text(run), split].append(run)
    sentences = []
    for (source, magnification, split), group in kinds.items():
        folds = sorted({run.fold for run in group if run.fold is not None})
        where = f"the authors' fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}" if folds else split
        sizes = [
            " to ".join(f"{n:,}" for n in dict.fromkeys((min(counts), max(counts))))
            for subset in ("train", "test")
            if (counts := [sum(run.data.get("n_images", {}).get(subset, {}).values()) for run in group])
        ]
        sentences.append(
            f"{source[0].upper()}{source[1:]} at {magnification}, {where}: {sizes[0]} train and {sizes[1]} test images."
        )
    n_with_result = sum(run.metrics is not None for run in runs)
    sentences.append(f"{n_with_result} of {len(runs)} run{'' if len(runs) == 1 else 's'} with a result.")
    sentences.append(
        "A patient is the authors' unit, one slide; a case has the slides of one accession number. Images of one case "
        "resemble each other, so intervals and tests resample cases."
    )
    return sentences


def _sections(folder: Path, runs: Sequence[Run]) -> Iterator[Section]:
    with_result = [run for run in runs if run.metrics is not None]
    groups = _over_folds(runs)
    if groups:
        yield _fold_section(groups)
    if with_result:
        yield _result_section(folder, with_result)
        pictures = list(_pictures(with_result))
        if pictures:
            yield Section("curves", "Curves", pictures=pictures)
        pairs = compare_runs(with_result)
        if pairs:
            yield _difference_section(pairs, "differences", "Differences", _DIFFERENCE_NOTES)
        comparable = [run for run in with_result if run.is_on_otto2022_split]
        if comparable:
            yield _published_section(comparable)
        yield _class_section(with_result)
        yield _cost_section(with_result)
    failed = [run for run in runs if run.status != "finished" or run.metrics is None]
    if failed:
        rows = [
            [run.name, run.status, run.model, (run.error or "no reason given").splitlines()[0][:300]] for run in failed
        ]
        headings = ["Run", "Status", "Model", "Reason"]
        table = Table("Runs that did not finish, or have no result", headings, rows, texts=headings)
        yield Section("failures", "Runs without a result", tables=[table])


def _fold_section(groups: Sequence[Repeats]) -> Section:
    metrics = shown("folds")
    published = [result for result in PUBLISHED if result.over_folds and any(map(_has_published_folds, groups))]
    headings = ["Configuration", *(metric.title for metric in metrics), "Folds"]
    rows: list[list[Cell]] = [
        [group.name, *(_spread_text(group.over_folds(metric.name)) for metric in metrics), str(len(group.folds))]
        for group in groups
    ]
    for result in published:
        values = (result.over_folds.get(metric.name) for metric in metrics)
        cells = [None if value is None else str(Spread(*value, len(FOLDS))) for value in values]
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
    points = [*_lacks(groups), *(_conclusion(pair, len(pairs)) for pair in pairs)]
    if pairs:
        tables.append(_pair_table(pairs, "Configurations over all folds, first minus second, with the case as unit"))
    tests = [subset is Subset.TEST for patient in official_patients().values() for subset in patient.subsets.values()]
    notes = [
        "The standard deviation over folds is no standard error: the five test sets overlap "
        f"({sum(tests):,} test places for {len(official_patients())} patients)."
    ]
    if pairs:
        notes.append(
            "The paired test pools the folds: a case that is tested in several folds counts once. It says how the "
            "configurations differ on these cases, for networks trained on these folds; ranks of different networks "
            "cannot be pooled, so there is none for AUROC."
        )
    return Section("folds", "Over the authors' folds", points, tables=tables, notes=notes)


def _has_published_folds(group: Repeats) -> bool:
    """Whether a configuration was tested on all images of the five folds at 200X."""
    is_complete = all(not run.is_incomplete and not run.is_synthetic for run in group.runs)
    return group.folds == FOLDS and is_complete and group.runs[0].magnifications[1] == (MAGNIFICATION,)


def _lacks(groups: Sequence[Repeats]) -> Iterator[str]:
    """Name the folds and seeds that a configuration lacks."""
    for group in groups:
        missing = [str(fold) for fold in FOLDS if fold not in group.folds]
        parts = [f"no result on fold {', '.join(missing)}"] if missing else []
        for fold in group.folds:
            seeds = {run.seed for run in group.of_fold(fold)}
            parts += [f"fold {fold} without seed {seed}" for seed in group.seeds if seed not in seeds]
        if parts:
            yield f"{group.name} is incomplete: {'; '.join(parts)}."


def _spread_text(found: Spread | None) -> str | None:
    return None if found is None else str(found)


def _result_section(folder: Path, runs: Sequence[Run]) -> Section:
    metrics = shown("comparison")
    headings = ["Run", "Model", *(metric.title for metric in metrics), "Test images", "Fold", "Seed"]
    rows: list[list[Cell]] = [
        [
            _link(folder, run),
            run.model,
            *(run.estimate(metric.name) for metric in metrics),
            f"{len(run.predictions or ()):,}",
            *(None if value is None else str(value) for value in (run.fold, run.seed)),
        ]
        for run in runs
    ]
    notes = ["In parentheses: 95 % interval, cases resampled."]
    groups = [group for group in repeats(runs) if len(group.folds) < 2 and len(group.runs) > 1]
    for group in groups:
        spreads = (_spread_text(group.over_seeds(metric.name)) for metric in metrics)
        rows.append([f"{group.name}, {len(group.runs)} seeds", group.runs[0].model, *spreads, None, None, None])
    if groups:
        notes.append("±: standard deviation over runs that differ in their seed only.")
    table = Table("Each run with its intervals", headings, rows, texts={"Model"})
    return Section("results", "Results on the test images", tables=[table], notes=notes)


def _link(folder: Path, run: Run) -> Cell:
    page = run.folder / REPORT_PAGE
    if not page.is_file():
        return run.name
    try:
        return Link(run.name, Path(os.path.relpath(page.resolve(), folder.resolve())).as_posix())
    except ValueError:  # on another drive of Windows
        return Link(run.name, page.resolve().as_uri())


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
        figure = overlay_figure({run.name: run.history for run in drawn}, title="Loss and accuracy", note=_note(drawn))
        names = ", ".join(run.name for run in drawn)
        yield picture_of(figure, alt=f"Loss and accuracy by epoch of {names}."), "Dotted: train; solid: test."
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
        caption = "ROC curves with AUROC; diamonds: decisions."
        yield picture_of(figure, alt=f"ROC curves; AUROC of {', '.join(curves)}."), caption


def compare_runs(runs: Sequence[Run]) -> list[Pair]:
    """Compare every two runs with the same test images; runs of different folds make no pair.

    Of more than `MAX_RUNS_IN_PAIRS` runs on the same images, each is compared with the first one.
    """
    pairs = []
    for first, second in _pairs(runs):
        a, b = first.predictions, second.predictions
        if a is None or b is None:
            continue
        learned = not first.predicts_one_class and not second.predicts_one_class
        pair = Pair(first.name, second.name, {}, {}, learned=learned)
        try:
            aligned = align(b, a)
            differences = paired_differences(a, b, shown("paired", a.n_classes))
        except PredictionsError as error:
            pairs.append(replace(pair, reason=str(error)))
            continue
        found = {difference.metric: difference for difference in differences}
        pairs.append(replace(pair, differences=found, mcnemar_p=mcnemar(a.correct, aligned.correct)))
    return _correct(pairs)


def _pairs(runs: Sequence[Run]) -> Iterator[tuple[Run, Run]]:
    groups: dict[object, list[Run]] = defaultdict(list)
    for run in runs:
        if run.predictions is not None:
            groups[run.fold if run.fold is not None else frozenset(run.predictions.image)].append(run)
    if len(groups) > 1 and len(runs) <= MAX_RUNS_IN_PAIRS and not all(run.fold for run in runs):
        groups = {"all": list(runs)}  # few runs: name the pairs whose images differ
    for group in groups.values():
        if len(group) <= MAX_RUNS_IN_PAIRS:
            yield from combinations(group, 2)
        else:
            yield from ((group[0], other) for other in group[1:])


def compare_configurations(groups: Sequence[Repeats]) -> list[Pair]:
    """Compare every two configurations over the folds and seeds that both have, with the case as unit."""
    pairs = []
    for first, second in combinations(groups[:MAX_RUNS_IN_PAIRS], 2):
        by_key = [{(run.fold, run.seed): run for run in group.runs} for group in (first, second)]
        keys = sorted(by_key[0].keys() & by_key[1].keys(), key=str)
        if len({fold for fold, _ in keys}) < 2:
            continue
        matched = [(by_key[0][key], by_key[1][key]) for key in keys]
        tables = [(a.predictions, b.predictions) for a, b in matched if a.predictions and b.predictions]
        learned = not any(run.predicts_one_class for pair in matched for run in pair)
        pair = Pair(first.name, second.name, {}, {}, learned=learned)
        try:
            found = pooled_differences(tables, decision_metrics())
        except PredictionsError as error:
            pairs.append(replace(pair, reason=str(error)))
            continue
        pairs.append(replace(pair, differences={difference.metric: difference for difference in found}))
    return _correct(pairs)


def _correct(pairs: Sequence[Pair]) -> list[Pair]:
    """Correct the p-values of each metric for the number of pairs."""
    corrected: list[dict[str, float]] = [{} for _ in pairs]
    for metric in METRICS:
        tested = [i for i, pair in enumerate(pairs) if (d := pair.differences.get(metric)) and d.p is not None]
        p_values = [pairs[i].differences[metric].p or 0.0 for i in tested]
        for i, p in zip(tested, holm(p_values), strict=True):
            corrected[i][metric] = p
    return [replace(pair, p_holm=p_holm) for pair, p_holm in zip(pairs, corrected, strict=True)]


_DIFFERENCE_NOTES = (
    "Interval and p (two-sided) use the same draws of cases for both runs. Holm: corrected for the number of pairs, "
    "for each metric; intervals are not. McNemar's test counts the images that only one of the two classifies "
    "correctly; it takes images of a case as independent and claims too much.",
    "A run is one training: a difference holds for these two trained networks. Runs with other seeds show how much a "
    "seed changes.",
)


def _difference_section(pairs: Sequence[Pair], key: str, heading: str, notes: Sequence[str]) -> Section:
    compared = [pair for pair in pairs if pair.reason is None]
    points = [_conclusion(pair, len(compared)) for pair in pairs]
    if len(points) > 10:
        shown_pairs = [pair for pair in pairs if _is_shown(pair)]
        points = [_conclusion(pair, len(compared)) for pair in shown_pairs[:10]]
        points.append(f"{len(shown_pairs)} of {len(pairs)} pairs differ in {METRICS[MAIN_METRIC].title.lower()}.")
    tables = [_pair_table(compared, "First run minus second, on the same test images")] if compared else []
    return Section(key, heading, points, tables=tables, notes=notes if compared else ())


def _pair_table(pairs: Sequence[Pair], caption: str) -> Table:
    rows: list[list[Cell]] = []
    for metric in shown("paired"):
        for pair in pairs:
            found = pair.differences.get(metric.name)
            if found is None:
                continue
            has_mcnemar = metric.name == "accuracy" and pair.mcnemar_p is not None
            rows.append(
                [
                    f"{pair.first} minus {pair.second}",
                    metric.title,
                    None if found.value is None else _signed(found.value),
                    None if found.ci95 is None else f"{_signed(found.ci95[0])} to {_signed(found.ci95[1])}",
                    str(found.n_cases),
                    None if found.p is None else format_p(found.p),
                    format_p(pair.p_holm[metric.name]) if metric.name in pair.p_holm else None,
                    format_p(pair.mcnemar_p) if has_mcnemar and pair.mcnemar_p is not None else None,
                ]
            )
    headings = ["Pair", "Metric", "Difference", "95 % interval", "Cases", "p", "p (Holm)", "McNemar p"]
    if all(row[-1] is None for row in rows):
        headings, rows = headings[:-1], [row[:-1] for row in rows]
    return Table(caption, headings, rows, texts={"Metric"})


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def format_p(p: float) -> str:
    """Format a p-value.

    Example:
        >>> format_p(0.0004), format_p(0.0213), format_p(0.4)
        ('< 0.001', '0.021', '0.40')
    """
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _is_shown(pair: Pair) -> bool:
    return pair.learned and pair.p_holm.get(MAIN_METRIC, 1.0) < SIGNIFICANCE


def _conclusion(pair: Pair, n_pairs: int) -> str:
    """State what the main metric says about a pair."""
    name = METRICS[MAIN_METRIC].title[0].lower() + METRICS[MAIN_METRIC].title[1:]
    both = f"{pair.first} and {pair.second}"
    if pair.reason is not None:
        return f"{both} are not compared: {pair.reason}."
    if not pair.learned:
        return f"{both}: no conclusion, because one of them predicts one class only."
    found = pair.differences[MAIN_METRIC]
    if found.value is None or found.ci95 is None or found.p is None:
        return f"{both}: no difference in {name} varies over the cases."
    low, high = found.ci95
    p = f"p {format_p(found.p)}" if found.p < 0.001 else f"p = {format_p(found.p)}"
    if n_pairs > 1:
        p += f", after Holm's correction for {n_pairs} pairs {format_p(pair.p_holm[MAIN_METRIC])}"
    if not _is_shown(pair):
        interval = f"{_signed(found.value)} ({_signed(low)} to {_signed(high)})"
        return f"{both}: no difference in {name} is shown, {interval}, {p}."
    better, worse, sign = (pair.first, pair.second, 1) if found.value > 0 else (pair.second, pair.first, -1)
    ends = sorted((sign * low, sign * high))
    interval = f"{abs(found.value):.3f} ({ends[0]:.3f} to {ends[1]:.3f})"
    return f"{better} is better than {worse}: {name} higher by {interval}, {p}."


def _published_section(runs: Sequence[Run]) -> Section:
    notes = ["Otto et al. 2022 print counts, not a prediction per image, so no paired test is possible."]
    points = published_sentences(runs)
    return Section("published", "Published results", points, tables=[published_table(runs)], notes=notes)


def _class_section(runs: Sequence[Run]) -> Section:
    names = [f"{metric.name}_{name}" for name in _classes(runs) for metric in METRICS.values() if metric.per_class]
    rows: list[list[Cell]] = [[run.name, *(run.estimate(name) for name in names)] for run in runs]
    headings = ["Run", *map(metric_title, names)]
    return Section("classes", "By class", tables=[Table("Metrics of each class", headings, rows)])


def _cost_section(runs: Sequence[Run]) -> Section:
    forms = {
        "parameters": "{:,}",
        "train_accuracy": "{:.3f}",
        "test_accuracy": "{:.3f}",
        "train_minus_test_accuracy": "{:+.3f}",
        "seconds": "{:,.1f}",
        "seconds_total": "{:,.1f}",
        "images_per_second": "{:,.0f}",
    }
    titles = [
        "Parameters",
        "Train accuracy",
        "Test accuracy",
        "Train minus test",
        "Seconds of training",
        "Seconds in all",
    ]
    rows: list[list[Cell]] = []
    for run in runs:
        costs = _costs(run)
        cells = (None if costs[key] is None else form.format(costs[key]) for key, form in forms.items())
        rows.append([run.name, *cells])
    table = Table("Accuracy of the evaluated epoch, size and time", ["Run", *titles, "Images per second"], rows)
    notes = ["Train accuracy is measured during the epoch, on augmented images.", *_overfitting_sentence(runs)]
    return Section("overfitting", "Size, overfitting, time", tables=[table], notes=notes)


def _overfitting_sentence(runs: Sequence[Run]) -> list[str]:
    """State what the runs say about the claim of Otto et al. 2022; networks that predict one class say nothing."""
    gaps: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        model = run.model or ""
        if model in OTTO2022 and run.overfitting is not None and not run.predicts_one_class:
            gaps[model].append(run.overfitting)
    means = {model: sum(values) / len(values) for model, values in gaps.items()}
    if "resnet18" not in means or len(means) < 2:
        return []
    values = ", ".join(f"{mean:+.3f} for {OTTO2022[model].network}" for model, mean in means.items())
    wider = [OTTO2022[model].network for model, mean in means.items() if mean > max(0, means["resnet18"])]
    return [
        "Otto et al. 2022 claim that the two larger networks overfit. Here, train minus test accuracy is "
        f"{values}: larger than that of ResNet-18 for {' and '.join(wider) or 'none of them'}."
    ]


def _markdown(lead: Sequence[str], checks: Sequence[Check], sections: Sequence[Section]) -> str:
    blocks = ["# Comparison", "\n".join(map(to_markdown, lead))]
    blocks += [f"**{check.code} {to_markdown(check.title)}:** {to_markdown(check.text)}" for check in checks]
    for section in sections:
        if not section.tables and not section.points:
            continue  # figures are in the HTML page
        blocks.append(f"## {section.heading}")
        if section.points:
            blocks.append("\n".join(f"- {to_markdown(point)}" for point in section.points))
        for table in section.tables:
            blocks += [f"{to_markdown(table.caption)}:", table_to_markdown(table)]
        blocks += map(to_markdown, section.notes)
    return "\n\n".join(blocks) + "\n"
