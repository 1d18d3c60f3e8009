"""From a table of predictions to metrics.json."""

import json
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from breakhis_pl.data.breakhis import CLASS_NAMES, SUBTYPES, tumor_type
from breakhis_pl.metrics.calibration import calibrated, read_calibration
from breakhis_pl.metrics.cases import N_DRAWS, CaseTable, Draws, draw_cases
from breakhis_pl.metrics.intervals import INTERVAL_METHOD, Limits, case_intervals, missing_interval_reason
from breakhis_pl.metrics.predictions import Predictions, read_predictions, shared_case_images, table_checksum
from breakhis_pl.metrics.registry import METRICS, shown
from breakhis_pl.run_folder import RunFolder, write_text

METRICS_JSON = "metrics.json"
ENSEMBLE_JSON = "ensemble.json"
SUBSETS = ("train", "val", "test")
SIGNIFICANT_DIGITS = 12


def evaluate(
    predictions: Predictions,
    *,
    subset: str = "test",
    seed: int = 0,
    n_draws: int = N_DRAWS,
    shared: Collection[str] = (),
) -> dict[str, Any]:
    """Compute the content of metrics.json: every metric as `{"value": v, "ci95": [low, high]}`, and counts.

    Args:
        predictions: One row per image.
        subset: Name of the images' subset.
        seed: Seed of the draws of cases.
        n_draws: Number of draws.
        shared: Images of cases that also have images in train or val; "without_shared_cases" has the metrics of the
            others.

    Returns:
        A value is None if it is not defined, an interval if there is none, with "reason" beside it.
    """
    summarize = partial(_summary, seed=seed, n_draws=n_draws)
    metrics = {"subset": subset, **summarize(predictions)}
    parts = {"per_magnification": _by_magnification(predictions), "per_subtype": _by_tumor_type(predictions)}
    metrics |= {name: part for name, part in parts.items() if part}
    is_other = ~np.isin(predictions.image, list(shared))
    if not is_other.all():
        metrics["without_shared_cases"] = summarize(predictions.take(is_other)) if is_other.any() else None
    return metrics


def evaluate_table(path: Path, **options: Any) -> dict[str, Any]:
    """Compute the content of metrics.json for a predictions.csv.

    In a run folder, its subset is the beginning of its folder's name, and split.csv says which cases are shared (for an
    ensemble, ensemble.json does); the run's own test table is also evaluated with the calibration fitted for it.

    Args:
        path: The table.
        **options: Of `evaluate`.

    Raises:
        PredictionsError: If the table is not consistent.
    """
    predictions, folder = read_predictions(path), path.resolve().parent
    run = RunFolder(folder.parent)
    place = folder.name.partition("_")[0]  # val_flips/ has rows of val
    subset = place if run.split_csv.is_file() and place in SUBSETS else "test"
    ensemble = folder / ENSEMBLE_JSON
    shared: Collection[str] = ()
    if ensemble.is_file():
        shared = json.loads(ensemble.read_text(encoding="utf-8"))["shared_case_images"]
    elif run.split_csv.is_file():
        shared = shared_case_images(pd.read_csv(run.split_csv, dtype=str))
    metrics = evaluate(predictions, subset=subset, **{"shared": shared, **options})
    if folder.name == "test" and run.calibration_json.is_file() and predictions.n_classes == 2:
        fitted = read_calibration(run.calibration_json)
        summary = evaluate(calibrated(predictions, fitted), **options)
        metrics["calibrated"] = {
            "temperature": fitted.temperature,
            "threshold": fitted.threshold,
            "wanted_sensitivity": fitted.sensitivity,
            "fitted_on": {
                "subset": "val",
                "n_images": fitted.n_images,
                "n_cases": fitted.n_cases,
                "n_positive_cases": fitted.n_positive_cases,
                "specificity": fitted.specificity_reached,
            },
            **{metric.name: summary[metric.name] for metric in shown("calibration")},
            "confusion_matrix": summary["confusion_matrix"],
        }
    return {"predictions_checksum": table_checksum(path), **metrics}


def _summary(predictions: Predictions, *, seed: int, n_draws: int) -> dict[str, Any]:
    table = CaseTable(predictions)
    weights = draw_cases(table.n_groups, seed=seed, n_draws=n_draws)
    once, intervals = Draws(table), case_intervals(table, weights)
    per_class: dict[str, dict[str, Any]] = {name: {} for name in predictions.classes}
    estimates = {}
    for name, metric in METRICS.items():
        if not metric.is_for(table.n_classes) or (metric.is_of_groups and predictions.are_independent):
            continue
        values = metric.values(once).reshape(-1)
        if metric.basis == "prediction":  # as in scikit-learn: 0 for a class that is never predicted
            values = np.nan_to_num(values)
        found = [_estimate(*pair) for pair in zip(values, intervals[name], strict=True)]
        for index, estimate in enumerate(found):
            if estimate["ci95"] is None:
                estimate.setdefault("reason", missing_interval_reason(metric, table, index))
        if metric.per_class:
            for class_name, estimate in zip(predictions.classes, found, strict=True):
                per_class[class_name][name] = estimate
        else:
            estimates[name] = found[0]
    for index, class_name in enumerate(predictions.classes):
        per_class[class_name]["support"] = int(once.support[0, index])
        per_class[class_name]["n_cases"] = int(table.cases_of_class[index])
    return {
        **_counts(predictions),
        "class_names": list(predictions.classes),
        "confusion_matrix": once.confusion[0].astype(int).tolist(),
        "per_class": per_class,
        **estimates,
        "interval_method": INTERVAL_METHOD,
        "n_draws": n_draws,
        "seed": seed,
        "draws_lacking_a_class": int((weights @ (table.confusion.sum(2)[:, table.present] > 0) == 0).any(1).sum()),
    }


def _estimate(value: float, limits: Limits) -> dict[str, Any]:
    if np.isnan(value):
        return {"value": None, "ci95": None, "reason": "a class has no images"}
    return {"value": _rounded(value), "ci95": None if limits is None else [_rounded(limit) for limit in limits]}


def _rounded(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def _counts(predictions: Predictions) -> dict[str, int]:
    names = {"n_images": predictions.image, "n_patients": predictions.patient, "n_cases": predictions.case}
    return {name: len(set(values)) for name, values in names.items()}


def _by_magnification(predictions: Predictions) -> dict[str, dict[str, Any]]:
    if predictions.magnification is None:
        return {}
    table = {}
    for magnification in np.unique(predictions.magnification):
        part = predictions.take(predictions.magnification == magnification)
        draws = Draws(CaseTable(part))
        recall = METRICS["recall"].values(draws)[0]
        table[str(magnification)] = {
            **_counts(part),
            **{name: _rounded(METRICS[name].values(draws)[0]) for name in ("accuracy", "weighted_f1")},
            "recall": {
                name: None if np.isnan(value) else _rounded(value)
                for name, value in zip(part.classes, recall, strict=True)
            },
        }
    return table


def _by_tumor_type(predictions: Predictions) -> dict[str, dict[str, Any]]:
    """Fraction of correct images by tumor type, for classes and patients of BreakHis."""
    if not {*CLASS_NAMES, *SUBTYPES}.issuperset(predictions.classes):
        return {}
    patients = pd.Series(predictions.patient)
    codes = patients.map({patient: tumor_type(patient) for patient in patients.unique()})
    table = {}
    for code, subtype in SUBTYPES.items():
        if (codes == code).any():
            part = predictions.take((codes == code).to_numpy())
            names = {"name": subtype.name, "class_name": subtype.class_name}
            table[code] = {**_counts(part), **names, "recall": _rounded(part.correct.mean())}
    return table


def write_metrics(path: Path, metrics: Mapping[str, Any]) -> None:
    """Write metrics.json."""
    write_text(path, json.dumps(metrics, indent=2, allow_nan=False) + "\n")


def classification_report(metrics: Mapping[str, Any]) -> str:
    """Format metrics for a terminal: by class as in tables 3 to 5 of Otto et al. 2022, confusion matrix, all others."""
    names = metrics["class_names"]
    width = max(10, *(len(name) + 3 for name in names))
    by_class = [metric.name for metric in METRICS.values() if metric.per_class]
    rows = [["", *by_class, "support"]]
    for name in names:
        of_class = metrics["per_class"][name]
        rows.append([name, *(_two_digits(of_class[each]) for each in by_class), str(of_class["support"])])
    weighted = (_two_digits(metrics[f"weighted_{each}"]) for each in by_class)
    rows.append(["weighted", *weighted, str(metrics["n_images"])])
    rows += [[""], ["true class", *(f"as {name}" for name in names)]]
    rows += [[name, *map(str, counts)] for name, counts in zip(names, metrics["confusion_matrix"], strict=True)]
    first = max(12, *map(len, names))
    lines = [" ".join((f"{row[0]:<{first}}", *(f"{cell:>{width}}" for cell in row[1:]))).rstrip() for row in rows]
    for metric in METRICS.values():
        if metric.name in metrics and metric.shown:
            of_class = f" ({names[metric.class_index]})" if metric.basis in ("positive", "negative") else ""
            estimate = metrics[metric.name]
            reason = f" ({estimate['reason']})" if "reason" in estimate else ""
            lines.append(f"{metric.title + of_class:<28} {format_estimate(estimate)}{reason}")
    if "calibrated" in metrics:
        at_threshold = metrics["calibrated"]
        estimates = (f"{name} {format_estimate(at_threshold[name])}" for name in ("sensitivity", "specificity"))
        lines.append(f"Calibrated, at threshold {at_threshold['threshold']:.3f}: {', '.join(estimates)}")
    return "\n".join(lines)


def _two_digits(estimate: Mapping[str, Any]) -> str:
    return "-" if estimate["value"] is None else f"{estimate['value']:.2f}"


def format_estimate(estimate: Mapping[str, Any] | None) -> str:
    """Format a value with its interval.

    Example:
        >>> format_estimate({"value": 0.8934, "ci95": [0.8213, 0.9567]})
        '0.893 (0.82 to 0.96)'
    """
    if estimate is None or estimate["value"] is None:
        return "not defined"
    limits = estimate["ci95"]
    return f"{estimate['value']:.3f}" + ("" if limits is None else f" ({limits[0]:.2f} to {limits[1]:.2f})")
