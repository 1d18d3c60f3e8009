"""Files of an evaluated subset: its table, metrics.json and confusion matrix."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from breakhis_pl.metrics.evaluation import METRICS_JSON, evaluate_table, write_metrics
from breakhis_pl.metrics.predictions import PREDICTIONS_CSV, Predictions, write_predictions
from breakhis_pl.reporting.figures import confusion_matrix_figure, figure_pixels, save_figure

SUBTYPE_FILES = ("subtypes.csv", "subtype_metrics.json", "subtype_confusion_matrix.png")
RESULT_FILES = (PREDICTIONS_CSV, METRICS_JSON, "confusion_matrix.png")


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
