"""Which of the eight tumor types a network says: rows, metrics and confusion matrix of task=subtype (no torch).

Beside predictions.csv, where the probabilities of the types are summed to benign and malignant, a subset has
`subtypes.csv`, a row per image with a probability per type, and `subtype_metrics.json`, computed from those rows.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from breakhis_pl.data.breakhis import SUBTYPES
from breakhis_pl.errors import PredictionsError, ShapeError
from breakhis_pl.evaluation import confusion as of_confusion
from breakhis_pl.evaluation.confusion_figure import confusion_matrix_figure
from breakhis_pl.evaluation.csv_tables import csv_text, read_columns
from breakhis_pl.evaluation.figures import save_figure
from breakhis_pl.evaluation.file_texts import DamagedFileError
from breakhis_pl.evaluation.intervals import case_level_interval, draw_cases
from breakhis_pl.evaluation.predictions import index_of
from breakhis_pl.evaluation.texts import quoted
from breakhis_pl.run_folder import write_text

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

SUBTYPES_CSV = "subtypes.csv"
SUBTYPE_METRICS_JSON = "subtype_metrics.json"
CODES = tuple(SUBTYPES)
"""The types in the order of their index everywhere: logits, columns, rows of the confusion matrix."""

PROBABILITY_COLUMNS = tuple(f"prob_{code}" for code in CODES)
COLUMNS = ("image", "patient", "case", "target", *PROBABILITY_COLUMNS, "predicted")
N_DRAWS = 10_000
SUM_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class SubtypePredictions:
    """Rows of subtypes.csv.

    Attributes:
        image: File name of each image.
        patient: Patient of each image.
        case: Case of each image.
        target: Index of the true type in `CODES`; int64, (n,).
        probabilities: float64, (n, 8), rows sum to 1.
        predicted: Index of the type with the highest probability; int64, (n,).

    Raises:
        ShapeError: If there are no rows, or the arrays differ in length.
    """

    image: tuple[str, ...]
    patient: tuple[str, ...]
    case: tuple[str, ...]
    target: IntArray
    probabilities: FloatArray
    predicted: IntArray

    def __post_init__(self) -> None:
        n = len(self.image)
        shapes = (self.target.shape, self.predicted.shape, self.probabilities.shape)
        if n == 0 or shapes != ((n,), (n,), (n, len(CODES))) or {len(self.patient), len(self.case)} != {n}:
            raise ShapeError(
                f"{n} images with arrays of shapes {shapes}; expected a row of each per image, one at least"
            )


def subtype_metrics(predictions: SubtypePredictions, *, n_draws: int = N_DRAWS, seed: int = 0) -> dict[str, Any]:
    """Metrics over the eight types, in the form of metrics.json.

    Accuracy and weighted F1 have intervals over cases, by the method of metrics.json. Most types have one to five
    cases in a test set; the others are given without, as nothing can be said on how far they vary.

    Args:
        predictions: One row per image.
        n_draws: Draws of cases behind an interval.
        seed: Of the draws.
    """
    n_classes = len(CODES)
    of_case = index_of(predictions.case)
    n_cases = int(of_case.max()) + 1
    by_case = np.zeros((n_cases, n_classes, n_classes))
    np.add.at(by_case, (of_case, predictions.target, predictions.predicted), 1)
    confusion = by_case.sum(0).astype(np.int64)
    draws = (draw_cases(n_cases, seed=seed, n_draws=n_draws) @ by_case.reshape(n_cases, -1)).reshape(
        n_draws, n_classes, n_classes
    )
    support = confusion.sum(1)
    by_class = {
        "precision": of_confusion.precision(confusion),
        "recall": of_confusion.recall(confusion),
        "f1": of_confusion.f1(confusion),
    }
    return {
        "n_images": len(predictions.image),
        "n_patients": len(set(predictions.patient)),
        "n_cases": n_cases,
        "class_names": list(CODES),
        "confusion_matrix": confusion.tolist(),
        "per_class": {
            code: {
                "name": SUBTYPES[code].name,
                **{name: _rounded(float(of[i])) if support[i] else None for name, of in by_class.items()},
                "support": int(support[i]),
                "n_cases": int((by_case[:, i].sum(1) > 0).sum()),
            }
            for i, code in enumerate(CODES)
        },
        "accuracy": _estimate(of_confusion.accuracy(confusion), of_confusion.accuracy(draws), n_cases),
        "weighted_f1": _estimate(_weighted_f1(confusion), _weighted_f1(draws), n_cases),
        "balanced_accuracy": {"value": _rounded(float(of_confusion.balanced_accuracy(confusion))), "ci95": None},
        "macro_f1": {"value": _rounded(float(by_class["f1"][support > 0].mean())), "ci95": None},
        "n_draws": n_draws,
        "seed": seed,
    }


def write_subtype_results(
    folder: Path, predictions: SubtypePredictions, *, title: str, note: str | None = None
) -> dict[str, Any]:
    """Writes subtypes.csv, and from its rows subtype_metrics.json and subtype_confusion_matrix.png.

    Args:
        folder: The run folder's folder of the subset.
        predictions: The rows.
        title: What was evaluated, for the figure.
        note: Put on the figure, as for synthetic images.

    Returns:
        The content of subtype_metrics.json.
    """
    write_subtypes(folder / SUBTYPES_CSV, predictions)
    metrics = subtype_metrics(read_subtypes(folder / SUBTYPES_CSV))
    write_text(folder / SUBTYPE_METRICS_JSON, json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    figure = confusion_matrix_figure(metrics["confusion_matrix"], CODES, title=title, note=note)
    save_figure(figure, folder / "subtype_confusion_matrix.png")
    return metrics


def write_subtypes(path: Path, predictions: SubtypePredictions) -> None:
    """Writes the rows, sorted by image; probabilities with nine digits."""
    rows = sorted(
        (
            image,
            patient,
            case,
            CODES[target],
            *(f"{value:.9g}" for value in probabilities),
            CODES[predicted],
        )
        for image, patient, case, target, probabilities, predicted in zip(
            predictions.image,
            predictions.patient,
            predictions.case,
            predictions.target.tolist(),
            predictions.probabilities.tolist(),
            predictions.predicted.tolist(),
            strict=True,
        )
    )
    write_text(path, csv_text(COLUMNS, rows))


def read_subtypes(path: Path) -> SubtypePredictions:
    """The rows of a subtypes.csv, from anyone.

    Raises:
        PredictionsError: If the file cannot be read, or a row is not possible, naming its line.
    """
    try:
        rows = list(read_columns(path, COLUMNS))
        if not rows:
            raise DamagedFileError("it has no rows")
        return SubtypePredictions(
            image=tuple(row["image"] for _, row in rows),
            patient=tuple(row["patient"] for _, row in rows),
            case=tuple(row["case"] for _, row in rows),
            target=np.array([_index(line, "target", row) for line, row in rows], dtype=np.int64),
            probabilities=np.array([_probabilities(line, row) for line, row in rows], dtype=np.float64),
            predicted=np.array([_index(line, "predicted", row) for line, row in rows], dtype=np.int64),
        )
    except (OSError, DamagedFileError) as error:
        raise PredictionsError(f"{path}: {error}; write it anew with evaluate.py") from error


def _index(line: int, column: str, row: Mapping[str, str]) -> int:
    if row[column] not in CODES:
        raise DamagedFileError(
            f"line {line}, column {column}: {quoted(row[column])} is no tumor type, {', '.join(CODES)}"
        )
    return CODES.index(row[column])


def _probabilities(line: int, row: Mapping[str, str]) -> Sequence[float]:
    texts = [row[column] for column in PROBABILITY_COLUMNS]
    try:
        values = [float(text) for text in texts]
    except ValueError:
        values = [math.nan]
    if not all(0 <= value <= 1 for value in values) or abs(sum(values) - 1) > SUM_TOLERANCE:
        raise DamagedFileError(f"line {line}: {quoted(', '.join(texts))} are no eight probabilities that sum to 1")
    return values


def _weighted_f1(confusion: FloatArray | IntArray) -> FloatArray:
    return of_confusion.weighted(of_confusion.f1(confusion), confusion)


def _estimate(value: FloatArray, draws: FloatArray, n_cases: int) -> dict[str, Any]:
    limits = case_level_interval(float(value), draws, n_cases=n_cases, coin=1 / len(CODES))
    return {"value": _rounded(float(value)), "ci95": None if limits is None else [_rounded(each) for each in limits]}


def _rounded(value: float) -> float:
    return float(f"{value:.9g}")
