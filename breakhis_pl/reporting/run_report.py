"""Results of a run: its files, and report.html from them."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from breakhis_pl.config import flatten
from breakhis_pl.data.breakhis import CLASS_NAMES, SUBTYPES, tumor_type
from breakhis_pl.errors import RunFolderError
from breakhis_pl.metrics.calibration import TEMPERATURES
from breakhis_pl.metrics.evaluation import METRICS_JSON, evaluate_table, format_estimate, write_metrics
from breakhis_pl.metrics.predictions import PREDICTIONS_CSV, Predictions, shared_case_images, write_predictions
from breakhis_pl.metrics.registry import METRICS, shown
from breakhis_pl.reporting.checks import Check, documentation_link, run_checks
from breakhis_pl.reporting.curves import Curve, precision_recall_curve, reliability_bins, roc_curve
from breakhis_pl.reporting.figures import (
    QUANTITIES,
    confusion_matrix_figure,
    curves_figure,
    figure_pixels,
    precision_recall_figure,
    reliability_figure,
    roc_figure,
    save_figure,
)
from breakhis_pl.reporting.gallery import CORRECT, HARD_PATIENT, MISTAKE, GalleryEntry, read_gallery
from breakhis_pl.reporting.pages import Cell, Picture, Table, data_uri, picture_of, render, three_digits
from breakhis_pl.reporting.published import published_sentences, published_table
from breakhis_pl.reporting.runs import Run, network_title, read_run
from breakhis_pl.run_folder import REPORT_PAGE, write_text

SUBTYPE_FILES = ("subtypes.csv", "subtype_metrics.json", "subtype_confusion_matrix.png")
RESULT_FILES = (PREDICTIONS_CSV, METRICS_JSON, "confusion_matrix.png")
GALLERY_HEADINGS = {MISTAKE: "Most confident mistakes", HARD_PATIENT: "Hardest patients", CORRECT: "Correct, by class"}


CASES = (
    "The authors of BreakHis count every slide as a patient; slides whose names share a number form a case. Images of "
    "a case resemble each other, so intervals and tests resample cases, not images."
)
CASES_OF_A_TABLE = (
    "Images of a case resemble each other, so intervals and tests resample cases, not images. Without a column case, a "
    "patient is a case."
)
INDEPENDENT = (
    "Neither patients nor cases are known, so images are taken as independent. If several are of one patient, the "
    "intervals are too narrow, and images of one patient may be in train and test."
)


@dataclass(frozen=True)
class Result:
    """Metrics of a subset, and the pixels of its confusion matrix; uint8, (height, width, 3), RGB."""

    metrics: dict[str, Any]
    confusion_matrix: npt.NDArray[np.uint8]


def write_results(
    folder: Path, predictions: Predictions, *, title: str, note: str | None, files: tuple[str, str, str] = RESULT_FILES
) -> Result:
    """Write table, metrics and confusion matrix of a subset.

    Args:
        folder: Folder of the subset in the run folder.
        predictions: The rows.
        title: Network and split, for the figure.
        note: Warning about the data.
        files: Names of the three files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table, metrics_json, picture = (folder / name for name in files)
    write_predictions(table, predictions)
    metrics = evaluate_table(table)
    write_metrics(metrics_json, metrics)
    figure = confusion_matrix_figure(metrics["confusion_matrix"], predictions.classes, title=title, note=note)
    save_figure(figure, picture)
    return Result(metrics, figure_pixels(figure))


def write_report(folder: Path) -> tuple[Path, list[Check]]:
    """Write report.html of a run; the same files give the same page.

    Returns:
        Its path, and the checks that the run did not pass.

    Raises:
        RunFolderError: If the run has no result, or its table is not consistent.
    """
    run = read_run(folder)
    if run.predictions is None or run.metrics is None or run.record is None:
        raise RunFolderError(f"{folder}: {run.error}; let the run finish, or run evaluate.py run={folder}")
    checks = run_checks(run)
    page = folder / REPORT_PAGE
    write_text(page, _render(run, run.predictions, run.metrics, checks))
    return page, checks


def _render(run: Run, predictions: Predictions, metrics: Mapping[str, Any], checks: list[Check]) -> str:
    title = f"{network_title(run)}, {images_text(run)}, {len(predictions):,} test images"
    split = pd.read_csv(run.folder / "split.csv", dtype=str)
    record = run.record
    if record is None:
        raise ValueError(f"{run.name} has no run.json")
    subtypes = run.folder / "test" / SUBTYPE_FILES[1]
    types = json.loads(subtypes.read_text(encoding="utf-8")) if subtypes.is_file() else None
    return render(
        "report.html.j2",
        run=run,
        record=record,
        run_name=run.folder.resolve().name,
        title=f"{network_title(run)} on {images_text(run)}, {split_text(run)}",
        lead=_data_sentence(run, split),
        checks=checks,
        documentation=documentation_link(run.folder),
        key_numbers=[
            (metric.title, metrics[metric.name], metric.meaning)
            for metric in shown("key", predictions.n_classes)
            if metric.name in metrics
        ],
        sentence=_result_sentence(predictions, metrics),
        confusion=_confusion_picture(metrics, predictions.classes, f"Confusion matrix: {title}", run.note),
        classes=_class_table(metrics),
        metrics_table=_metrics_table(metrics),
        metrics=metrics,
        unit=unit_text(metrics),
        shared_cases=_shared_case_table(metrics),
        magnifications=_magnification_table(metrics),
        published=published_table([run]) if run.is_on_otto2022_split else None,
        published_sentence=" ".join(published_sentences([run])),
        curves=_history_pictures(run, title),
        history_sentence=_history_sentence(run),
        figures=list(_ranking_pictures(run, predictions, metrics, title)),
        calibration=_calibration_table(metrics),
        calibration_sentence=_calibration_sentence(metrics),
        patients=None if run.are_independent else _patients(predictions, shared_case_images(split)),
        tumor_types=_tumor_type_table(metrics),
        types=None if types is None else _class_table(types),
        types_sentence=None if types is None else _types_sentence(types),
        types_picture=None
        if types is None
        else _confusion_picture(types, types["class_names"], f"Tumor types: {title}", run.note),
        gallery=_gallery(run.folder / "test"),
        configuration=_configuration(run.config, is_binary=predictions.n_classes == 2),
        facts=_facts(run),
    )


def images_text(run: Run) -> str:
    """Return "BreakHis at 200X", "BreakHis at 40X and 100X, tested at 200X" or "images.csv"."""
    name = str(run.data.get("name") or ("synthetic images" if run.is_synthetic else "BreakHis"))
    train, test = (" and ".join(f"{each}X" for each in part) for part in run.magnifications)
    if not train:
        return name
    return f"{name} at {train}" if train == test else f"{name} at {train}, tested at {test}"


def split_text(run: Run) -> str:
    """Return the split in a few words."""
    if run.fold is not None:
        return f"the authors' fold {run.fold}" if run.is_of_breakhis else f"fold {run.fold}"
    if run.data.get("split") == "official":
        return "the split of the table"
    group = "image" if run.are_independent else run.data_config.get("group", "case")
    return f"a split by {group} (seed {run.seed})"


def cases_text(run: Run) -> str:
    """Explain the unit that is resampled."""
    return INDEPENDENT if run.are_independent else CASES if run.is_of_breakhis else CASES_OF_A_TABLE


def _data_sentence(run: Run, split: pd.DataFrame) -> str:
    uses = [] if run.selected_epoch is None else ["selected"]
    uses += ["calibrated"] if len(run.data["n_images"]["train"]) == 2 else []
    verbs = {"train": "Trained on", "val": f"{' and '.join(uses) or 'validated'} on", "test": "tested on"}
    parts = []
    for subset, verb in verbs.items():
        rows = split[split["subset"] == subset]
        if len(rows):
            n_patients, n_cases = rows["patient"].nunique(), rows["case"].nunique()
            counts = ", ".join(f"{n:,} {name}" for name, n in run.data["n_images"][subset].items())
            groups = "" if run.are_independent else f" of {n_patients:,} patients in {n_cases:,} cases"
            parts.append(f"{verb} {len(rows):,} images ({counts}){groups}")
    return f"{', '.join(parts)}. {cases_text(run)}"


def _result_sentence(predictions: Predictions, metrics: Mapping[str, Any]) -> str:
    sentence = f"{predictions.correct.sum():,} of {len(predictions):,} images are correct."
    if predictions.n_classes == 2:
        for index, name in ((1, "sensitivity"), (0, "specificity")):
            is_class = predictions.target == index
            n_missed = int((~predictions.correct[is_class]).sum())
            this, other = predictions.classes[index], predictions.classes[1 - index]
            sentence += (
                f" Of {is_class.sum():,} {this} images, {n_missed:,} are predicted as {other}: {name} "
                f"{format_estimate(metrics[name])}."
            )
    return sentence


def _confusion_picture(
    metrics: Mapping[str, Any], classes: list[str] | tuple[str, ...], title: str, note: str | None
) -> Picture:
    matrix = metrics["confusion_matrix"]
    correct = [f"{row[i]:,} of {sum(row):,} {classes[i]}" for i, row in enumerate(matrix)]
    figure = confusion_matrix_figure(matrix, classes, title=title, note=note)
    return picture_of(figure, alt=f"Confusion matrix; correct are {', '.join(correct)}.")


def _class_table(metrics: Mapping[str, Any]) -> Table:
    names = [metric.name for metric in METRICS.values() if metric.per_class]
    labels = dict.fromkeys(metrics["class_names"], "")
    if len(labels) == 2:
        labels = dict(zip(labels, (" (recall: specificity)", " (recall: sensitivity)"), strict=True))
    counts = {"support": "Images", "n_cases": "Cases"} if unit_text(metrics) == "cases" else {"support": "Images"}
    rows: list[list[Cell]] = [
        [f"{name}{labels[name]}", *(of[each] for each in names), *(f"{of[each]:,}" for each in counts)]
        for name, of in metrics["per_class"].items()
    ]
    total = [f"{metrics['n_images']:,}", f"{metrics['n_cases']:,}"][: len(counts)]
    rows += [
        [heading, *(metrics[f"{kind}_{each}"] for each in names), *total]
        for kind, heading in (("weighted", "weighted average"), ("macro", "macro average"))
    ]
    headings = ["Class", *(METRICS[name].title for name in names), *counts.values()]
    columns = zip(labels, zip(*metrics["confusion_matrix"], strict=True), strict=True)
    never = [name for name, counts in columns if sum(counts) == 0]
    note = f"Never predicted, so that precision counts as 0: {', '.join(never)}." if never else None
    return Table(
        f"By class, with 95% intervals over {unit_text(metrics)}", headings, rows, emphasized={len(labels)}, note=note
    )


def _metrics_table(metrics: Mapping[str, Any]) -> Table:
    rows = [
        [
            metric.title,
            metrics[metric.name],
            "; ".join(filter(None, (metric.meaning, metrics[metric.name].get("reason")))),
        ]
        for metric in shown("report", len(metrics["class_names"]))
        if metric.name in metrics
    ]
    caption = f"Other metrics, with 95% intervals over {unit_text(metrics)}"
    return Table(caption, ["Metric", "Value", "Meaning"], rows, texts={"Meaning"})


def unit_text(metrics: Mapping[str, Any]) -> str:
    """Return the unit that is resampled: "cases", or "images" if every image is a case."""
    return "images" if metrics["n_cases"] == metrics["n_images"] else "cases"


def _shared_case_table(metrics: Mapping[str, Any]) -> Table | None:
    without = metrics.get("without_shared_cases")
    if without is None:
        return None
    rows = [[metric.title, metrics[metric.name], without[metric.name]] for metric in shown("shared_cases")]
    headings = ["Metric", f"All {metrics['n_images']:,} images", f"{without['n_images']:,} images without shared cases"]
    return Table("Without test images whose case has images in train or validation", headings, rows)


def _magnification_table(metrics: Mapping[str, Any]) -> Table | None:
    table, classes = metrics.get("per_magnification", {}), metrics["class_names"]
    if len(table) < 2:
        return None
    rows = [
        [
            f"{name}X",
            f"{of['n_images']:,}",
            *(three_digits(of[key]) for key in ("accuracy", "weighted_f1")),
            *(three_digits(of["recall"][each]) for each in classes),
        ]
        for name, of in table.items()
    ]
    headings = ["Magnification", "Images", "Accuracy", "Weighted F1", *(f"Recall of {name}" for name in classes)]
    return Table("By magnification", headings, rows)


def _history_pictures(run: Run, title: str) -> list[Picture] | None:
    """Draw loss and accuracy, a picture each, so that they stand below each other on narrow screens."""
    if run.history.empty:
        return None
    pictures, row = [], run.final_row
    for quantity in QUANTITIES:
        figure = curves_figure(
            run.history,
            title=f"{quantity.capitalize()}: {title}",
            note=run.note,
            selected_epoch=run.selected_epoch,
            quantities=(quantity,),
        )
        last = [f"{name} {row[name]:.3f}" for name in row if name.endswith(f"_{quantity}")]
        alt = f"{quantity.capitalize()} over {len(run.history)} epochs; in the evaluated one: {', '.join(last)}."
        pictures.append(picture_of(figure, alt=alt.replace("_", " ")))
    return pictures


def _history_sentence(run: Run) -> str:
    selection = None if run.record is None else run.record.selection
    if selection is None:
        return f"The last of {len(run.history)} epochs is evaluated. Test images are not used to select an epoch."
    return (
        f"Epoch {selection['best_epoch']} of {len(run.history)} is evaluated, the best by {selection['monitor']}. Test "
        "images are not used to select it."
    )


def _ranking_pictures(
    run: Run, predictions: Predictions, metrics: Mapping[str, Any], title: str
) -> Iterator[tuple[Picture, str]]:
    """Yield ROC, precision-recall and reliability figures with their captions."""
    if predictions.n_classes != 2:
        return
    positive, note = predictions.classes[1], run.note
    roc, precision_recall = roc_curve(predictions), precision_recall_curve(predictions)
    if roc is not None and precision_recall is not None:
        area = f"AUROC {format_estimate(metrics['auroc'])}"
        figure = roc_figure({area: roc}, title=f"ROC curve: {title}", note=note)
        reached = [f"{_highest(roc, rate):.0%} at {rate:.0%}" for rate in (0.05, 0.1, 0.2)]
        alt = f"ROC curve, {area}. True positive rate by false positive rate: {', '.join(reached)}."
        caption = (
            "ROC curve. The band is the 95% interval of the true positive rate at each false positive rate, not of "
            "the whole curve (2,000 draws of cases)."
        )
        yield picture_of(figure, alt=alt), caption
        area = f"average precision {format_estimate(metrics['average_precision'])}"
        figure = precision_recall_figure(
            precision_recall,
            label=area,
            positive=positive,
            prevalence=float((predictions.target == 1).mean()),
            title=f"Precision and recall: {title}",
            note=note,
        )
        yield (
            picture_of(figure, alt=f"Precision over recall, {area}."),
            "Precision by recall; the band is the 95% interval of the precision at each recall.",
        )
    error = f"calibration error {format_estimate(metrics['ece'])}"
    bins = reliability_bins(predictions)
    figure = reliability_figure(bins, label=error, positive=positive, title=f"Reliability: {title}", note=note)
    caption = (
        f"Reliability: the fraction of {positive} images by predicted probability. On the dotted line they are equal."
    )
    yield picture_of(figure, alt=f"Reliability diagram, {error}."), caption


def _highest(curve: Curve, x: float) -> float:
    return float(curve.y[curve.x <= x].max())


def _calibration_table(metrics: Mapping[str, Any]) -> Table | None:
    calibrated = metrics.get("calibrated")
    if calibrated is None:
        return None
    rows = [
        [metric.title, metrics[metric.name], calibrated[metric.name]]
        for metric in shown("calibration")
        if metric.name in metrics
    ]
    headings = ["Metric", "As trained, threshold 0.5", "Calibrated, chosen threshold"]
    return Table(f"On the test images, with 95% intervals over {unit_text(metrics)}", headings, rows)


def _calibration_sentence(metrics: Mapping[str, Any]) -> str:
    calibrated = metrics.get("calibrated")
    if calibrated is None:
        return ""
    fitted_on, positive = calibrated["fitted_on"], metrics["class_names"][-1]
    is_limit = any(math.isclose(calibrated["temperature"], limit, rel_tol=1e-3) for limit in TEMPERATURES)
    limit = " (the limit of the search)" if is_limit else ""
    return (
        f"Temperature {calibrated['temperature']:.3f}{limit} and threshold {calibrated['threshold']:.3f} were fitted "
        f"on {fitted_on['n_images']:,} validation images of {fitted_on['n_cases']:,} cases, never on test images. "
        f"Images with a calibrated probability of at least the threshold are predicted as {positive}; on validation "
        f"images, this gives a sensitivity of {calibrated['wanted_sensitivity']:g} or more."
    )


def _patients(predictions: Predictions, shared: frozenset[str]) -> Table:
    """Build the table of patients, the lowest fraction of correct images first."""
    is_binary = predictions.n_classes == 2
    rows = predictions.to_frame().assign(
        correct=predictions.correct,
        probability=predictions.prob_positive
        if is_binary
        else predictions.probabilities[np.arange(len(predictions)), predictions.target],
        shared=np.isin(predictions.image, list(shared)),
    )
    has_types = predictions.classes == CLASS_NAMES
    by_patient = rows.groupby(["patient", "target"], as_index=False).agg(
        n_images=("image", "size"),
        n_correct=("correct", "sum"),
        fraction=("correct", "mean"),
        probability=("probability", "mean"),
        is_shared=("shared", "any"),
    )
    cells: list[list[Cell]] = [
        [
            row.patient,
            f"{row.target}, {SUBTYPES[code].name}" if has_types and (code := tumor_type(row.patient)) else row.target,
            {"value": row.fraction, "ci95": None, "bar": True},
            f"{row.n_correct} of {row.n_images}",
            f"{row.probability:.3f}",
            "yes" if row.is_shared else "no",
        ]
        for row in by_patient.sort_values(["fraction", "patient"]).itertuples()
    ]
    mean = f"Mean probability of {predictions.classes[-1] if is_binary else 'the true class'}"
    headings = ["Patient", "Class", "Fraction correct", "Images correct", mean, "Case in train or validation"]
    return Table("Patients, the lowest fraction of correct images first", headings, cells, texts={"Class"})


def _tumor_type_table(metrics: Mapping[str, Any]) -> Table | None:
    rows: list[list[Cell]] = [
        [
            f"{of['name']} ({code})",
            of["class_name"],
            *(f"{of[key]:,}" for key in ("n_cases", "n_patients", "n_images")),
            f"{of['recall']:.1%}",
        ]
        for code, of in metrics.get("per_subtype", {}).items()
    ]
    headings = ["Tumor type", "Class", "Cases", "Patients", "Images", "Correct"]
    note = "With so few patients, the fractions describe the patients tested, not the tumor type in general."
    return (
        Table("Fraction of correct images by tumor type", headings, rows, texts={"Class"}, note=note) if rows else None
    )


def _types_sentence(types: Mapping[str, Any]) -> str:
    return (
        "The network was trained on the eight tumor types; everything above uses the sums of their probabilities over "
        f"benign and malignant types. {format_estimate(types['accuracy'])} of the images are predicted as their own "
        f"type; weighted F1 {format_estimate(types['weighted_f1'])}. In the curves, the loss is that of the "
        "eight types; accuracy is that of benign or malignant. With so few cases, a row says little about others."
    )


def _gallery(folder: Path) -> list[tuple[str, list[tuple[GalleryEntry, Picture]]]]:
    pictures = [
        (entry, Picture(data_uri(content, "image/jpeg"), *size, alt=f"{entry.image}. {entry.caption}"))
        for entry, content, size in read_gallery(folder)
    ]
    return [(GALLERY_HEADINGS[kind], list(group)) for kind, group in groupby(pictures, key=lambda entry: entry[0].kind)]


def _configuration(config: Mapping[str, Any], *, is_binary: bool) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the configuration by group, then keys outside groups, `task` only of two classes."""
    groups = [
        (name, [(key, _yaml(each)) for key, each in flatten(value).items()])
        for name, value in config.items()
        if isinstance(value, Mapping) and value
    ]
    alone = [
        (name, _yaml(value))
        for name, value in config.items()
        if not isinstance(value, Mapping) and (name != "task" or is_binary)
    ]
    return [*groups, ("other keys", alone)]


def _yaml(value: object) -> str:
    return str(value) if isinstance(value, str) else json.dumps(value)


def _facts(run: Run) -> list[tuple[str, str]]:
    record = run.record
    if record is None:
        return []
    seconds = (record.seconds or {}).get("total")
    changes = {None: None, True: "yes: the code is not that of the commit", False: "none"}[record.uncommitted_changes]
    n_parameters = record.model.get("n_parameters")
    facts = {
        "Commit": record.commit,
        "Uncommitted changes": changes,
        "Package": record.package_version,
        "Versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
        "Device": record.device,
        "Precision": record.precision,
        "Threads": record.torch_threads,
        "Seed": run.seed,
        "Images": record.data.get("description"),
        "Split checksum": record.data.get("split_checksum"),
        "Parameters": None if n_parameters is None else f"{n_parameters:,}",
        "Started": record.started,
        "Finished": record.finished,
        "Duration": None if seconds is None else f"{seconds / 60:,.1f} minutes with imports and evaluation",
    }
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]
