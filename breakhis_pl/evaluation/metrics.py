"""Everything that metrics.json holds, from a table of predictions.

The formulas are in `confusion` and `scores`, the intervals in `intervals`; here they are put together.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from breakhis_pl.data.breakhis import CLASS_NAMES, SUBTYPES
from breakhis_pl.errors import PredictionsError
from breakhis_pl.evaluation import confusion as of_confusion
from breakhis_pl.evaluation import scores
from breakhis_pl.evaluation.intervals import INTERVAL_METHOD, N_DRAWS, CaseIntervals, case_intervals
from breakhis_pl.evaluation.predictions import Predictions, index_of
from breakhis_pl.run_folder import write_text

PER_CLASS_METRICS = ("precision", "recall", "f1")

SIGNIFICANT_DIGITS = 12


def evaluate(
    predictions: Predictions,
    *,
    subset: str = "test",
    with_intervals: bool = True,
    seed: int = 0,
    n_draws: int = N_DRAWS,
    siblings: Collection[str] = (),
) -> dict[str, Any]:
    """What metrics.json holds: every metric as `{"value": v, "ci95": [lo, hi]}`, counts, tables by subtype.

    A value is None where it is not defined (the recall of a class without images), and "reason" beside it says why. An
    interval is None where there is none: a single case, no value, or `with_intervals` false.

    Args:
        predictions: One row per image, at least one.
        subset: Name of the subset that the images belong to.
        with_intervals: Whether to compute the 95 % intervals, which resample cases.
        seed: Of the draws.
        n_draws: Number of draws.
        siblings: Names of images of which a slide of the same case was trained on. If the table holds some of them,
            "without_siblings" holds the same metrics of the other images, None if there are none.

    Raises:
        PredictionsError: If there is no row.
        ConfigurationError: If there are too few draws for intervals, or the seed is negative.

    Source:
        The formulas: `breakhis_pl.evaluation.confusion` and `breakhis_pl.evaluation.scores`.
    """
    if len(predictions) == 0:
        raise PredictionsError("a table of predictions without rows has no metrics; expected one row per image")
    trained_on = frozenset(siblings)
    is_other = np.array([image not in trained_on for image in predictions.image])

    def summary(part: Predictions) -> dict[str, Any]:
        return _summary(part, case_intervals(part, seed=seed, n_draws=n_draws) if with_intervals else None)

    metrics = {"subset": subset, **summary(predictions)}
    metrics |= {"per_magnification": _per_magnification(predictions), "per_subtype": _per_subtype(predictions)}
    if not is_other.all():
        metrics["without_siblings"] = summary(predictions.select(is_other)) if is_other.any() else None
    return metrics


def point_values(predictions: Predictions) -> dict[str, float | None]:
    """Value of every metric that carries an interval, by its name; those of a class end in "_benign", "_malignant".

    Where a class has no image, its recall and F1 are None, their means over the classes, and what ranks one class
    against the other; what is weighted by the images is defined, as the class then weighs nothing.

    Args:
        predictions: One row per image, at least one.
    """
    target, prob_malignant = predictions.target, predictions.prob_malignant
    confusion = of_confusion.confusion_matrix(target, predictions.predicted)
    by_class = {
        "precision": of_confusion.precision(confusion),
        "recall": of_confusion.recall(confusion),
        "f1": of_confusion.f1(confusion),
    }
    values: dict[str, float | None] = {
        "accuracy": float(of_confusion.accuracy(confusion)),
        "balanced_accuracy": float(of_confusion.balanced_accuracy(confusion)),
    }
    values |= {f"weighted_{name}": float(of_confusion.weighted(of, confusion)) for name, of in by_class.items()}
    values |= {f"macro_{name}": float(of_confusion.macro(of)) for name, of in by_class.items()}
    values |= {
        "mcc": float(of_confusion.matthews_correlation(confusion)),
        "auroc": scores.roc_auc(target, prob_malignant),
        "average_precision": scores.average_precision(target, prob_malignant),
        "brier": scores.brier_score(target, prob_malignant),
        "log_loss": scores.log_loss(target, predictions.probabilities),
        "ece": scores.expected_calibration_error(target, prob_malignant),
        "patient_recognition_rate": scores.patient_recognition_rate(predictions.correct, index_of(predictions.patient)),
        "case_accuracy": scores.case_accuracy(target, prob_malignant, index_of(predictions.case)),
    }
    has_images = confusion.sum(1) > 0
    for name, of in by_class.items():
        needs_images = name != "precision"
        if needs_images and not has_images.all():
            values[f"macro_{name}"] = None
        values |= {
            f"{name}_{class_name}": None if needs_images and not has_images[i] else float(of[i])
            for i, class_name in enumerate(CLASS_NAMES)
        }
    return values


def _summary(predictions: Predictions, intervals: CaseIntervals | None) -> dict[str, Any]:
    confusion = of_confusion.confusion_matrix(predictions.target, predictions.predicted)
    estimates: dict[str, Any] = {
        name: {"value": _rounded(value), "ci95": _limits(intervals, name)}
        | ({"reason": _reason(name)} if value is None else {})
        for name, value in point_values(predictions).items()
    }
    per_class: dict[str, dict[str, Any]] = {}
    for i, class_name in enumerate(CLASS_NAMES):
        per_class[class_name] = {name: estimates.pop(f"{name}_{class_name}") for name in PER_CLASS_METRICS}
        per_class[class_name]["support"] = int(confusion[i].sum())
    benign, malignant = CLASS_NAMES
    return {
        **_counts(predictions),
        "class_names": list(CLASS_NAMES),
        "confusion_matrix": confusion.tolist(),
        "per_class": per_class,
        **estimates,
        "sensitivity": per_class[malignant]["recall"],
        "specificity": per_class[benign]["recall"],
        "interval_method": None if intervals is None else INTERVAL_METHOD,
        "n_draws": None if intervals is None else intervals.n_draws,
        "seed": None if intervals is None else intervals.seed,
        "draws_lacking_a_class": None if intervals is None else intervals.draws_lacking_a_class,
    }


def _reason(name: str) -> str:
    """Why a metric has no value."""
    is_of_class = name.endswith(tuple(f"_{class_name}" for class_name in CLASS_NAMES))
    return "no images" if is_of_class else "a class has no images"


def _limits(intervals: CaseIntervals | None, name: str) -> list[float | None] | None:
    limits = None if intervals is None else intervals.ci95[name]
    return None if limits is None else [_rounded(limit) for limit in limits]


def _counts(predictions: Predictions) -> dict[str, int]:
    return {
        "n_images": len(predictions),
        "n_patients": len(set(predictions.patient)),
        "n_cases": len(set(predictions.case)),
    }


def _per_magnification(predictions: Predictions) -> dict[str, dict[str, Any]]:
    """Figures by magnification, "200"; recall of a class is None where it has no image."""
    table = {}
    for magnification in np.unique(predictions.magnification):
        part = predictions.select(predictions.magnification == magnification)
        confusion = of_confusion.confusion_matrix(part.target, part.predicted)
        recall = [
            _rounded(float(of)) if support else None
            for of, support in zip(of_confusion.recall(confusion), confusion.sum(1), strict=True)
        ]
        table[str(magnification)] = {
            **_counts(part),
            "accuracy": _rounded(float(of_confusion.accuracy(confusion))),
            "weighted_f1": _rounded(float(of_confusion.weighted(of_confusion.f1(confusion), confusion))),
            "recall": dict(zip(CLASS_NAMES, recall, strict=True)),
        }
    return table


def _per_subtype(predictions: Predictions) -> dict[str, dict[str, Any]]:
    """Share of images that are right by tumor type, in the order of `SUBTYPES`; others are left out."""
    of_image = np.array(predictions.subtype, dtype=object)
    table = {}
    for code, subtype in SUBTYPES.items():
        if not (of_image == code).any():
            continue
        part = predictions.select(of_image == code)
        table[code] = {
            **_counts(part),
            "name": subtype.name,
            "class_name": subtype.class_name,
            "recall": _rounded(float(part.correct.mean())),
        }
    return table


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def classification_report(metrics: dict[str, Any]) -> str:
    """Precision, recall, F1 and support as text, as in the report's tables 3 to 5, the confusion matrix below.

    Args:
        metrics: What `evaluate` returns.
    """
    row = "{:>12}  {:>9}  {:>9}  {:>9}  {:>9}".format
    n_images = metrics["n_images"]
    lines = [row("", *PER_CLASS_METRICS, "support"), ""]
    for name, of_class in metrics["per_class"].items():
        lines.append(row(name, *(_two(of_class[metric]) for metric in PER_CLASS_METRICS), of_class["support"]))
    weighted = (_two(metrics[f"weighted_{metric}"]) for metric in PER_CLASS_METRICS)
    lines += [
        "",
        row("weighted avg", *weighted, n_images),
        row("accuracy", "", "", _two(metrics["accuracy"]), n_images),
    ]
    names = metrics["class_names"]
    lines += ["", "confusion matrix (rows: truth, columns: prediction)", "", row("", *names, "", "").rstrip()]
    for name, counts in zip(names, metrics["confusion_matrix"], strict=True):
        lines.append(row(name, *counts, "", "").rstrip())
    return "\n".join(lines)


def _two(estimate: dict[str, Any]) -> str:
    return "-" if estimate["value"] is None else f"{estimate['value']:.2f}"


def write_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """Write metrics as JSON; the file appears under its name only when it is complete.

    Args:
        path: The file to write; its folder exists.
        metrics: What `evaluate` returns.
    """
    write_text(path, json.dumps(metrics, indent=2, allow_nan=False) + "\n")
