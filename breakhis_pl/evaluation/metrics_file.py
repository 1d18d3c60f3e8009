"""The metrics.json of a run, checked before it is shown, and whether it was computed from the table beside it."""

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from breakhis_pl.data.breakhis import CLASS_NAMES, SUBTYPES
from breakhis_pl.evaluation.confusion import confusion_matrix
from breakhis_pl.evaluation.file_texts import DamagedFileError
from breakhis_pl.evaluation.json_values import (
    LARGEST_COUNT,
    count_at,
    counts_at,
    is_number,
    json_object,
    number_at,
    object_at,
    text_at,
    value_at,
)
from breakhis_pl.evaluation.predictions import Predictions, table_checksum
from breakhis_pl.evaluation.texts import quoted

_COUNTS = ("n_images", "n_patients", "n_cases", "n_draws", "seed", "draws_lacking_a_class")
_PER_CLASS = ("precision", "recall", "f1")
_ESTIMATES = (
    *("accuracy", "balanced_accuracy", "mcc", "auroc", "average_precision", "brier", "log_loss", "ece"),
    *(f"{mean}_{metric}" for mean in ("weighted", "macro") for metric in _PER_CLASS),
    *("patient_recognition_rate", "case_accuracy", "sensitivity", "specificity"),
)


def read_metrics(path: Path) -> Mapping[str, Any]:
    """The content of a metrics.json, in which whatever a page shows is what it should be.

    Args:
        path: The file.

    Raises:
        DamagedFileError: If it cannot be read, or something is not what it should be.
    """
    document = json_object(path)
    text_at(document, "predictions_checksum")
    _check_summary(document)
    for key in ("without_siblings", "calibrated"):
        part = object_at(document, key)
        if part is not None:
            _check_summary(part, key)
    if object_at(document, "without_siblings") is not None:
        _need_numbers(document, ("n_images",), "without_siblings")
    for name in ("temperature", "threshold", "wanted_sensitivity"):
        number_at(document, "calibrated", name)
    for name in ("n_images", "n_cases"):
        count_at(document, "calibrated", "fitted_on", name)
    for code in object_at(document, "per_subtype") or ():
        _check_subtype(document, code)
    for magnification in object_at(document, "per_magnification") or ():
        _check_magnification(document, magnification)
    return document


def fault_of_pair(metrics: Mapping[str, Any], predictions: Predictions, table: Path) -> str | None:
    """What shows that metrics were not computed from a table; None where nothing does.

    Files without a checksum, written before there was one, are told by their counts and their confusion matrix.

    Args:
        metrics: From `read_metrics`.
        predictions: The rows of the table.
        table: The table's file.

    Raises:
        PredictionsError: If the table cannot be read.
    """
    counts = confusion_matrix(predictions.target, predictions.predicted).tolist()
    matrix = counts_at(metrics, "confusion_matrix")
    checksum = text_at(metrics, "predictions_checksum")
    n_images, n_rows = count_at(metrics, "n_images"), len(predictions)
    fault = None
    if n_images != n_rows:
        fault = f"metrics.json is of {n_images} images, {table.name} of {n_rows}"
    elif matrix is None or np.array(matrix).tolist() != counts:
        fault = f"metrics.json has the confusion matrix {quoted(matrix)}, {table.name} {counts}"
    elif checksum is not None and checksum != table_checksum(table):
        fault = f"metrics.json was computed from another {table.name}: its checksum is not {quoted(checksum)}"
    if fault is None:
        return None
    return f"{fault}; write metrics.json anew with `{command_for(table)}`"


def command_for(table: Path) -> str:
    """The command that writes the metrics.json of a table.

    Example:
        >>> command_for(Path("a run/test/predictions.csv"))
        "uv run evaluate.py predictions='a run/test/predictions.csv'"
    """
    return f"uv run evaluate.py predictions={shlex.quote(str(table))}"


def _check_summary(document: Mapping[str, Any], *place: str) -> None:
    try:
        for name in _COUNTS:
            count_at(document, name)
        for name in _ESTIMATES:
            _check_estimate(document, name)
        for class_name in object_at(document, "per_class") or ():
            for name in _PER_CLASS:
                _check_estimate(document, "per_class", class_name, name)
            count_at(document, "per_class", class_name, "support")
        counts_at(document, "confusion_matrix")
        text_at(document, "interval_method")
    except DamagedFileError as damage:
        raise DamagedFileError(".".join((*place, str(damage)))) from damage


def _check_estimate(document: Mapping[str, Any], *keys: str) -> None:
    """A metric is null, a number, or an object with a value and an interval."""
    if not isinstance(value_at(document, *keys), Mapping):
        number_at(document, *keys)
        return
    number_at(document, *keys, "value")
    match value_at(document, *keys, "ci95"):
        case None:
            return
        case [low, high] if is_number(low) and is_number(high) and math.isfinite(low) and math.isfinite(high):
            return
        case interval:
            raise DamagedFileError(f"{'.'.join(keys)}.ci95 is {quoted(interval)}; expected two numbers or null")


def _check_subtype(document: Mapping[str, Any], code: str) -> None:
    if code not in SUBTYPES:
        raise DamagedFileError(f"per_subtype names {quoted(code)}; expected one of {', '.join(SUBTYPES)}")
    _need_numbers(document, ("n_images", "n_patients", "n_cases", "recall"), "per_subtype", code)
    for name in ("name", "class_name"):
        if text_at(document, "per_subtype", code, name) is None:
            raise DamagedFileError(f"per_subtype.{code}.{name} is missing; expected a text")


def _check_magnification(document: Mapping[str, Any], magnification: str) -> None:
    place = "per_magnification", magnification
    if not (magnification.isascii() and magnification.isdigit() and len(magnification) <= len(str(LARGEST_COUNT))):
        raise DamagedFileError(f"per_magnification names {quoted(magnification)}; expected numbers")
    _need_numbers(document, ("n_images", "accuracy", "weighted_f1"), *place)
    for class_name in CLASS_NAMES:
        number_at(document, *place, "recall", class_name)


def _need_numbers(document: Mapping[str, Any], names: tuple[str, ...], *place: str) -> None:
    for name in names:
        number = count_at(document, *place, name) if name.startswith("n_") else number_at(document, *place, name)
        if number is None:
            raise DamagedFileError(f"{'.'.join(place)}.{name} is missing; expected a number")
