"""From rows to the files of a result: predictions.csv, metrics.json, the confusion matrix (no torch)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from breakhis_pl.data.breakhis import CLASS_NAMES, Subset
from breakhis_pl.evaluation.calibration import calibration_summary, read_calibration
from breakhis_pl.evaluation.figures import confusion_matrix_figure, figure_pixels, save_figure
from breakhis_pl.evaluation.intervals import N_DRAWS
from breakhis_pl.evaluation.metrics import evaluate, write_metrics
from breakhis_pl.evaluation.predictions import Predictions, read_predictions, write_predictions
from breakhis_pl.evaluation.siblings import siblings_from_split

PREDICTIONS_CSV = "predictions.csv"
CALIBRATION_JSON = "calibration.json"


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
    metrics = evaluate_table(table)
    write_metrics(folder / "metrics.json", metrics)
    figure = confusion_matrix_figure(
        metrics["confusion_matrix"], CLASS_NAMES, title=f"{title}: {subset} images", note=note
    )
    save_figure(figure, folder / "confusion_matrix.png")
    return Result(metrics=metrics, confusion_matrix=figure_pixels(figure))


def evaluate_table(
    table: Path, *, with_intervals: bool = True, seed: int = 0, n_draws: int = N_DRAWS
) -> dict[str, Any]:
    """The metrics of a table of predictions; the one way to them, wherever it is asked from.

    In a run folder the table's subset is the name of its folder; split.csv says which test images have siblings in
    train, calibration.json how to calibrate.

    Args:
        table: A predictions.csv.
        with_intervals: Whether to compute the 95 % intervals.
        seed: Of the draws.
        n_draws: Number of draws.

    Raises:
        PredictionsError: If the table or the run's split.csv is malformed.
        RunFolderError: If the run's calibration.json is.
    """
    predictions = read_predictions(table)
    run_folder = table.resolve().parent.parent
    name = table.resolve().parent.name
    subset = name if name in tuple(Subset) else Subset.TEST.value
    split, calibration = run_folder / "split.csv", run_folder / CALIBRATION_JSON
    metrics = evaluate(
        predictions,
        subset=subset,
        with_intervals=with_intervals,
        seed=seed,
        n_draws=n_draws,
        siblings=siblings_from_split(split) if split.is_file() else (),
    )
    if subset == Subset.TEST and calibration.is_file():
        summary = calibration_summary(predictions, read_calibration(calibration), seed=seed, n_draws=n_draws)
        metrics["calibrated"] = summary
    return metrics
