"""The metrics of a table of predictions in its run folder: the one way to them, wherever it is asked from."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from breakhis_pl.data.dataset import Subset
from breakhis_pl.errors import RunFolderError
from breakhis_pl.evaluation.calibration import CALIBRATION_JSON, calibration_summary, read_calibration
from breakhis_pl.evaluation.ensemble_file import ENSEMBLE_JSON, read_ensemble_json
from breakhis_pl.evaluation.file_texts import DamagedFileError
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
    train or validation; for the table of an ensemble, ensemble.json does. Only the run's own test table is calibrated:
    calibration.json was fitted for its network.

    Args:
        table: A predictions.csv.
        subset: What the rows are of; None takes the name of the folder up to "_", and test where that is none.
        with_intervals: Whether to compute the 95 % intervals.
        seed: Of the draws.
        n_draws: Number of draws.

    Raises:
        PredictionsError: If the table or the run's split.csv is malformed.
        RunFolderError: If the run's calibration.json, or the ensemble.json beside the table is.
    """
    predictions = read_predictions(table)
    run_folder = table.resolve().parent.parent
    name = table.resolve().parent.name
    if subset is None:
        start = name.partition("_")[0]  # val_flips/ has rows of val
        subset = start if start in tuple(Subset) else Subset.TEST.value
    calibration = run_folder / CALIBRATION_JSON
    metrics = evaluate(
        predictions,
        subset=subset,
        with_intervals=with_intervals,
        seed=seed,
        n_draws=n_draws,
        siblings=_siblings(table, run_folder),
    )
    if name == Subset.TEST and calibration.is_file():
        metrics["calibrated"] = calibration_summary(
            predictions, read_calibration(calibration), seed=seed, n_draws=n_draws
        )
    return {"predictions_checksum": table_checksum(table), **metrics}


def _siblings(table: Path, run_folder: Path) -> Collection[str]:
    ensemble, split = table.parent / ENSEMBLE_JSON, run_folder / "split.csv"
    if ensemble.is_file():
        try:
            return read_ensemble_json(table.parent).siblings
        except DamagedFileError as damage:
            raise RunFolderError(
                f"{ensemble} is damaged: {damage}; write the ensemble anew with "
                "`uv run evaluate.py 'runs=[<run folder>,<run folder>]' ensemble=true`"
            ) from damage
    return siblings_from_split(split) if split.is_file() else ()
