"""report.html of a run, from its files."""

import json
import math
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from breakhis_pl.config import flatten
from breakhis_pl.errors import RunFolderError
from breakhis_pl.metrics.calibration import TEMPERATURES
from breakhis_pl.metrics.evaluation import format_estimate
from breakhis_pl.metrics.predictions import Predictions, shared_case_images
from breakhis_pl.metrics.registry import shown
from breakhis_pl.reporting import run_tables
from breakhis_pl.reporting.checks import Check, documentation_link, run_checks
from breakhis_pl.reporting.curves import precision_recall_curve, reliability_bins, roc_curve
from breakhis_pl.reporting.figures import (
    QUANTITIES,
    confusion_matrix_figure,
    curves_figure,
    precision_recall_figure,
    reliability_figure,
    roc_figure,
)
from breakhis_pl.reporting.gallery import CORRECT, HARD_PATIENT, MISTAKE, GalleryEntry, read_gallery
from breakhis_pl.reporting.pages import Picture, data_uri, picture_of, render
from breakhis_pl.reporting.published import published_sentences, published_table
from breakhis_pl.reporting.results import SUBTYPE_FILES
from breakhis_pl.reporting.runs import Run, network_title, read_run
from breakhis_pl.run_folder import REPORT_PAGE, RunFolder, RunRecord, write_text

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
    write_text(page, _render(run, run.record, run.predictions, run.metrics, checks))
    return page, checks


def _render(
    run: Run, record: RunRecord, predictions: Predictions, metrics: Mapping[str, Any], checks: list[Check]
) -> str:
    title = f"{network_title(run)}, {images_text(run)}, {len(predictions):,} test images"
    split = pd.read_csv(RunFolder(run.folder).split_csv, dtype=str)
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
        confusion=_confusion_picture(metrics, title, run.note),
        classes=run_tables.class_table(metrics),
        metrics_table=run_tables.metrics_table(metrics),
        metrics=metrics,
        unit=run_tables.unit_text(metrics),
        shared_cases=run_tables.shared_case_table(metrics),
        magnifications=run_tables.magnification_table(metrics),
        published=published_table([run]) if run.is_on_otto2022_split else None,
        published_sentence=" ".join(published_sentences([run])),
        curves=_history_pictures(run, title),
        history_sentence=_history_sentence(record, len(run.history)),
        figures=list(_ranking_pictures(run, predictions, metrics, title)),
        calibration=run_tables.calibration_table(metrics),
        calibration_sentence=_calibration_sentence(metrics),
        patients=None if run.are_independent else run_tables.patient_table(predictions, shared_case_images(split)),
        tumor_types=run_tables.tumor_type_table(metrics),
        types=None if types is None else run_tables.class_table(types),
        types_sentence=None if types is None else _types_sentence(types),
        types_picture=None if types is None else _confusion_picture(types, f"Tumor types: {title}", run.note),
        gallery=_gallery(run.folder / "test"),
        configuration=_configuration(run.config, is_binary=predictions.n_classes == 2),
        facts=_facts(record),
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


def _confusion_picture(metrics: Mapping[str, Any], title: str, note: str | None) -> Picture:
    matrix, classes = metrics["confusion_matrix"], metrics["class_names"]
    correct = [f"{row[i]:,} of {sum(row):,} {classes[i]}" for i, row in enumerate(matrix)]
    figure = confusion_matrix_figure(matrix, classes, title=title, note=note)
    return picture_of(figure, alt=f"Confusion matrix; correct are {', '.join(correct)}.")


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


def _history_sentence(record: RunRecord, n_epochs: int) -> str:
    selection = record.selection
    if selection is None:
        return f"The last of {n_epochs} epochs is evaluated. Test images are not used to select an epoch."
    return (
        f"Epoch {selection['best_epoch']} of {n_epochs} is evaluated, the best by {selection['monitor']}. Test "
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
        reached = [f"{roc.y[roc.x <= rate].max():.0%} at {rate:.0%}" for rate in (0.05, 0.1, 0.2)]
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


def _facts(record: RunRecord) -> list[tuple[str, str]]:
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
        "Seed": record.config["seed"],
        "Images": record.data.get("description"),
        "Split checksum": record.data.get("split_checksum"),
        "Parameters": None if n_parameters is None else f"{n_parameters:,}",
        "Started": record.started,
        "Finished": record.finished,
        "Duration": None if seconds is None else f"{seconds / 60:,.1f} minutes with imports and evaluation",
    }
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]
