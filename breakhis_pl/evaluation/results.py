"""From rows to the files of a result: predictions.csv, metrics.json, the confusion matrix (no torch)."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from breakhis_pl.data.breakhis import CLASS_NAMES
from breakhis_pl.evaluation.figures import confusion_matrix_figure, figure_pixels, save_figure
from breakhis_pl.evaluation.metrics import evaluate
from breakhis_pl.evaluation.predictions import Predictions, read_predictions, write_predictions
from breakhis_pl.files import write_text


@dataclass(frozen=True, slots=True)
class Result:
    """What was computed from the rows of a subset.

    Attributes:
        metrics: The content of metrics.json.
        confusion_matrix: The figure; uint8, (height, width, 3).
    """

    metrics: dict[str, Any]
    confusion_matrix: npt.NDArray[np.uint8]


def write_results(
    folder: Path,
    predictions: Predictions,
    *,
    subset: str,
    title: str,
    note: str | None = None,
    siblings: Collection[str] = (),
) -> Result:
    """Writes predictions.csv, and from its rows metrics.json and confusion_matrix.png.

    Args:
        folder: Made if need be.
        predictions: The rows.
        subset: Name of the subset they are of.
        title: What was evaluated, for the figure.
        note: Put on the figure, as for synthetic images.
        siblings: Names of images whose case has a slide in train.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "predictions.csv"
    write_predictions(table, predictions)
    metrics = evaluate(read_predictions(table), subset=subset, siblings=siblings)
    write_text(folder / "metrics.json", json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    figure = confusion_matrix_figure(
        metrics["confusion_matrix"], CLASS_NAMES, title=f"{title}: {subset} images", note=note
    )
    save_figure(figure, folder / "confusion_matrix.png")
    return Result(metrics=metrics, confusion_matrix=figure_pixels(figure))
