"""The metrics of a table of predictions in its run folder: the one way to them, wherever it is asked from."""

from pathlib import Path
from typing import Any

from breakhis_pl.data.breakhis import Subset
from breakhis_pl.evaluation.calibration import CALIBRATION_JSON, calibration_summary, read_calibration
from breakhis_pl.evaluation.intervals import N_DRAWS
from breakhis_pl.evaluation.metrics import evaluate
from breakhis_pl.evaluation.predictions import read_predictions, table_checksum
from breakhis_pl.evaluation.siblings import siblings_from_split


def evaluate_table(
    table: Path,
    *,
    subset: str | None = None,
    with_intervals: bool = True,
    seed: int = 0,
    n_draws: int = N_DRAWS,
) -> dict[str, Any]:
    """What metrics.json holds for a table of predictions, and the checksum that tells the table from others.

    In a run folder the table's subset is the name of its folder; split.csv says which test images have siblings in
    train or validation. Only the run's own test table is calibrated: calibration.json was fitted for its network.

    Args:
        table: A predictions.csv.
        subset: What the rows are of; None takes the name of the folder, and test where that is none.
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
    if subset is None:
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
    if name == Subset.TEST and calibration.is_file():
        metrics["calibrated"] = calibration_summary(
            predictions, read_calibration(calibration), seed=seed, n_draws=n_draws
        )
    return {"predictions_checksum": table_checksum(table), **metrics}
