"""From rows to the files of a result: predictions.csv, metrics.json, the confusion matrix (no torch)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from breakhis_pl.data.breakhis import CLASS_NAMES
from breakhis_pl.evaluation.confusion_figure import confusion_matrix_figure
from breakhis_pl.evaluation.figures import figure_pixels, save_figure
from breakhis_pl.evaluation.metrics import write_metrics
from breakhis_pl.evaluation.predictions import Predictions, write_predictions
from breakhis_pl.evaluation.run_metrics import evaluate_table

PREDICTIONS_CSV = "predictions.csv"


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
    folder: Path, predictions: Predictions, *, subset: str, title: str, note: str | None = None
) -> Result:
    """Writes predictions.csv, and from its rows metrics.json and confusion_matrix.png.

    Args:
        folder: The run folder's folder of the subset; made if need be.
        predictions: The rows.
        subset: Name of the subset they are of.
        title: What was evaluated, for the figure.
        note: Put on the figure, as for synthetic images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / PREDICTIONS_CSV
    write_predictions(table, predictions)
    metrics = evaluate_table(table, subset=subset)
    write_metrics(folder / "metrics.json", metrics)
    figure = confusion_matrix_figure(
        metrics["confusion_matrix"], CLASS_NAMES, title=f"{title}: {subset} images", note=note
    )
    save_figure(figure, folder / "confusion_matrix.png")
    return Result(metrics=metrics, confusion_matrix=figure_pixels(figure))
