"""Several runs as one: the mean of their probabilities for the same images, from their tables alone."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from breakhis_pl.errors import PredictionsError, RunFolderError, join_truncated
from breakhis_pl.metrics.evaluation import ENSEMBLE_JSON
from breakhis_pl.metrics.predictions import PREDICTIONS_CSV, Predictions, align, shared_case_images, table_checksum
from breakhis_pl.reporting.checks import Check
from breakhis_pl.reporting.comparison import write_runs
from breakhis_pl.reporting.results import write_results
from breakhis_pl.reporting.run_report import images_text
from breakhis_pl.reporting.runs import Run, distinct_names, find_runs, read_run
from breakhis_pl.run_folder import RunFolder, write_text

NAME = "ensemble"


def write_ensemble(out: Path, folders: Sequence[Path], *, tta: str = "none") -> tuple[Path, list[Check]]:
    """Average the probabilities of runs, and compare the ensemble with them.

    Writes ensemble.json, predictions.csv, metrics.json, confusion_matrix.png and the files of a comparison.

    Args:
        out: Where to write: a new folder, or that of an earlier ensemble.
        folders: Run folders, or folders of sweeps; ensembles among them are left out.
        tta: "none" takes the runs' test/ tables, others those of test_<tta>/.

    Returns:
        Path of comparison.md, and the checks that were not passed.

    Raises:
        RunFolderError: If a run has no result, or `out` holds something else.
        PredictionsError: If the runs cannot be averaged.
    """
    place = "test" if tta == "none" else f"test_{tta}"
    found = find_runs(folders)
    paths = [path for path in found if not (path / ENSEMBLE_JSON).is_file()]
    if len(paths) < 2:
        raise PredictionsError(
            "ensemble=true: needs two runs or more that are no ensembles, runs=[<run folder>,<run folder>]"
        )
    names = distinct_names(paths)
    runs = [read_run(path, name=name, place=place) for path, name in zip(paths, names, strict=True)]
    tables = [_table(run, place) for run in runs]
    folds = dict.fromkeys(str(run.fold) for run in runs)
    if len(folds) > 1:
        raise PredictionsError(
            f"ensemble=true: folds {', '.join(folds)} have other test images; average runs of one fold"
        )
    _check_same_data(runs, place)
    if out.exists() and not (out / ENSEMBLE_JSON).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise RunFolderError(f"out={out}: holds other files; name a new folder")
    for name, table in zip(names, tables, strict=True):
        try:
            align(table, tables[0])
        except PredictionsError as error:
            raise PredictionsError(f"{name}: {error}") from error
    mean = average(tables)
    splits = [pd.read_csv(RunFolder(run.folder).split_csv, dtype=str) for run in runs]
    _check_not_trained_on(runs, splits, mean)
    shared = frozenset[str]().union(*map(shared_case_images, splits))
    keys = ("source", "group", "magnification", "split", "fold")
    ensemble = {
        "table": f"{place}/{PREDICTIONS_CSV}",
        "members": [
            {
                "name": run.name,
                "folder": str(run.folder),
                "model": run.model,
                "seed": run.seed,
                "predictions_checksum": table_checksum(run.folder / place / PREDICTIONS_CSV),
            }
            for run in runs
        ],
        "synthetic": runs[0].is_synthetic,
        "complete": not any(run.is_incomplete for run in runs),
        "name": runs[0].data.get("name"),
        "config": {key: runs[0].data_config.get(key) for key in keys},
        "shared_case_images": sorted(shared),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / ENSEMBLE_JSON, json.dumps(ensemble, indent=2) + "\n")
    title = f"Ensemble of {len(runs)}, {images_text(runs[0])}"
    write_results(out, mean, title=title, note=runs[0].note)
    lead = f"{NAME}: the mean of the probabilities of {join_truncated(names)}, from their {place}/{PREDICTIONS_CSV}."
    if len(paths) < len(found):
        lead += " Ensembles among the runs are left out."
    return write_runs(out, [read_run(out, name=NAME), *runs], lead=lead)


def average(tables: Sequence[Predictions]) -> Predictions:
    """Return the mean of the probabilities of tables of the same images, in the order of the first.

    Raises:
        PredictionsError: If images, classes or cases differ.
    """
    probabilities = np.mean([align(table, tables[0]).probabilities for table in tables], axis=0)
    return replace(tables[0], probabilities=probabilities, predicted=probabilities.argmax(axis=1).astype(np.int64))


def _table(run: Run, place: str) -> Predictions:
    if run.predictions is None:
        command = f"uv run evaluate.py run={run.folder}" + ("" if place == "test" else f" tta={place[5:]}")
        raise RunFolderError(f"{run.folder}: {run.error}; write its {place}/{PREDICTIONS_CSV} with `{command}`")
    return run.predictions


def _check_same_data(runs: Sequence[Run], place: str) -> None:
    if len({run.is_synthetic for run in runs}) > 1:
        raise PredictionsError("ensemble=true: some runs have synthetic images; average runs on the same images")
    by_checksum: dict[str, list[str]] = {}
    for run in runs:
        by_checksum.setdefault(table_checksum(run.folder / place / PREDICTIONS_CSV), []).append(run.name)
    same = [names for names in by_checksum.values() if len(names) > 1]
    if same:
        raise PredictionsError(f"{join_truncated(same[0])}: have the same {PREDICTIONS_CSV}; name each network once")


def _check_not_trained_on(runs: Sequence[Run], splits: Sequence[pd.DataFrame], mean: Predictions) -> None:
    for run, split in zip(runs, splits, strict=True):
        seen = set(split["image"][split["subset"] != "test"]) & set(mean.image)
        if seen:
            raise PredictionsError(f"{run.name}: was trained on {join_truncated(sorted(seen))}; leave it out")
