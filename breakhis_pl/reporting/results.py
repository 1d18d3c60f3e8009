"""Files of an evaluated subset: its table, metrics.json and confusion matrix."""

from pathlib import Path
from typing import Any

from breakhis_pl.metrics.evaluation import METRICS_JSON, evaluate_table, write_metrics
from breakhis_pl.metrics.predictions import PREDICTIONS_CSV, Predictions, write_predictions
from breakhis_pl.reporting.figures import confusion_matrix_figure, save_figure

SUBTYPE_FILES = ("subtypes.csv", "subtype_metrics.json", "subtype_confusion_matrix.png")
RESULT_FILES = (PREDICTIONS_CSV, METRICS_JSON, "confusion_matrix.png")


def write_results(
    folder: Path, predictions: Predictions, *, title: str, note: str | None, files: tuple[str, str, str] = RESULT_FILES
) -> dict[str, Any]:
    """Write table, metrics and confusion matrix of a subset; return the metrics.

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
    matrix = metrics["confusion_matrix"]
    save_figure(confusion_matrix_figure(matrix, predictions.classes, title=title, note=note), picture)
    return metrics
