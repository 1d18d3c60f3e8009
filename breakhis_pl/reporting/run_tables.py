"""Tables of report.html, from metrics.json and predictions.csv."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from breakhis_pl.data.breakhis import CLASS_NAMES, SUBTYPES, tumor_type
from breakhis_pl.metrics.predictions import Predictions
from breakhis_pl.metrics.registry import METRICS, shown
from breakhis_pl.reporting.pages import Cell, Table, three_digits


def class_table(metrics: Mapping[str, Any]) -> Table:
    """Build the table of precision, recall and F1 by class."""
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


def metrics_table(metrics: Mapping[str, Any]) -> Table:
    """Build the table of the other metrics with their meaning."""
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


def shared_case_table(metrics: Mapping[str, Any]) -> Table | None:
    """Set all test images beside those without shared cases; None if no case is shared, or all are."""
    without = metrics.get("without_shared_cases")
    if without is None:
        return None
    listed = shown("shared_cases", len(metrics["class_names"]))
    rows = [[metric.title, metrics[metric.name], without[metric.name]] for metric in listed]
    headings = ["Metric", f"All {metrics['n_images']:,} images", f"{without['n_images']:,} images without shared cases"]
    return Table("Without test images whose case has images in train or validation", headings, rows)


def magnification_table(metrics: Mapping[str, Any]) -> Table | None:
    """Build the table of magnifications; None for a single one."""
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


def calibration_table(metrics: Mapping[str, Any]) -> Table | None:
    """Set metrics as trained beside calibrated ones; None without a calibration."""
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


def patient_table(predictions: Predictions, shared: frozenset[str]) -> Table:
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


def tumor_type_table(metrics: Mapping[str, Any]) -> Table | None:
    """Build the table of the tumor types of BreakHis; None if the images are of others."""
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
