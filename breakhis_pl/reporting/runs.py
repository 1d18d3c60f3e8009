"""Runs and ensembles, read from their folders."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from breakhis_pl.data.dataset import INCOMPLETE_NOTE, INDEPENDENT_NOTE, SYNTHETIC_NOTE
from breakhis_pl.errors import BreakHisError, PredictionsError, RunFolderError, join_truncated
from breakhis_pl.metrics.evaluation import ENSEMBLE_JSON, METRICS_JSON, evaluate_table
from breakhis_pl.metrics.predictions import PREDICTIONS_CSV, Predictions, read_predictions, table_checksum
from breakhis_pl.reporting.pages import Estimate
from breakhis_pl.reporting.reference_results import FOLD, MAGNIFICATION, N_TEST_IMAGES, OTTO2022
from breakhis_pl.run_folder import RUN_JSON, RunFolder, RunRecord

log = logging.getLogger(__name__)

ALMOST_ALL = 0.95
"""Fraction of images of one predicted class above which a network has learned next to nothing."""


@dataclass(frozen=True, eq=False)
class Run:
    """A run, or an ensemble of runs.

    Attributes:
        name: Its name among the runs that are compared.
        folder: Its folder.
        record: Content of run.json; None for an ensemble, or a run that could not be read.
        status: "running", "finished", "failed", "pruned", "refused" (ended before it began) or "unreadable".
        error: Why there is no result; None if there is one.
        model: Backbone, with what differs from the network of Otto et al. 2022 in parentheses.
        metrics: Content of metrics.json; None without a result.
        predictions: Rows of predictions.csv; None without a result.
        history: Rows of history.csv.
    """

    name: str
    folder: Path
    record: RunRecord | None
    status: str
    error: str | None = None
    model: str | None = None
    metrics: Mapping[str, Any] | None = None
    predictions: Predictions | None = None
    history: pd.DataFrame = field(default_factory=pd.DataFrame)
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> Mapping[str, Any]:
        """Configuration of the run."""
        return {} if self.record is None else self.record.config

    @property
    def data_config(self) -> Mapping[str, Any]:
        """Group `data` of the configuration; of an ensemble, what its members share."""
        found: Mapping[str, Any] = self.config.get("data") or self.data.get("config") or {}
        return found

    @property
    def is_of_breakhis(self) -> bool:
        """Whether the images have BreakHis names."""
        return self.data_config.get("source", "breakhis") in ("breakhis", "synthetic")

    @property
    def fold(self) -> int | str | None:
        """Fold of the data set that was tested; None for another split."""
        return None if self.data_config.get("split") == "ratio" else self.data_config.get("fold")

    @property
    def seed(self) -> int | None:
        """Seed of the run."""
        return self.config.get("seed")

    @property
    def magnifications(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Magnifications of train and of test images."""
        train, test = (self.data_config.get(key) for key in ("magnification", "test_magnification"))
        trained = tuple(train) if isinstance(train, list | tuple) else () if train is None else (train,)
        return trained, tuple(test) if isinstance(test, list | tuple) else trained if test is None else (test,)

    @property
    def is_synthetic(self) -> bool:
        """Whether the images are generated."""
        return bool(self.data.get("synthetic"))

    @property
    def is_incomplete(self) -> bool:
        """Whether published images are missing."""
        return self.data.get("complete") is False and not self.is_synthetic

    @property
    def note(self) -> str | None:
        """What every figure of the run must say about its images."""
        if self.is_synthetic:
            return SYNTHETIC_NOTE
        if self.are_independent:
            return INDEPENDENT_NOTE
        return INCOMPLETE_NOTE if self.is_incomplete else None

    @property
    def are_independent(self) -> bool:
        """Whether images are taken as independent, because neither patients nor cases are known."""
        return self.predictions is not None and self.predictions.are_independent

    @property
    def is_on_otto2022_split(self) -> bool:
        """Whether the split is that of Otto et al. 2022, with or without all images."""
        is_there = self.fold == FOLD and self.magnifications == ((MAGNIFICATION,),) * 2
        return is_there and self.is_of_breakhis and not self.is_synthetic

    @property
    def has_otto2022_images(self) -> bool:
        """Whether it was tested on exactly the images of Otto et al. 2022."""
        n_images = None if self.metrics is None else self.metrics["n_images"]
        return self.is_on_otto2022_split and not self.is_incomplete and n_images == N_TEST_IMAGES

    @property
    def one_class(self) -> str | None:
        """Class that all images are predicted as, or almost all though clearly fewer are of it; None if none."""
        if self.predictions is None or len(set(self.predictions.target.tolist())) == 1:
            return None
        predicted, target = (
            np.bincount(each, minlength=self.predictions.n_classes) / len(self.predictions)
            for each in (self.predictions.predicted, self.predictions.target)
        )
        index = int(predicted.argmax())
        is_alone = predicted[index] == 1 or (predicted[index] >= ALMOST_ALL and target[index] < predicted[index] - 0.05)
        return self.predictions.classes[index] if is_alone else None

    @property
    def selected_epoch(self) -> int | None:
        """Epoch that a validation metric selected; None if the last one is evaluated."""
        return self.record.selection["best_epoch"] if self.record is not None and self.record.selection else None

    @property
    def final_row(self) -> Mapping[str, float]:
        """Row of history.csv of the epoch that is evaluated; empty without a history."""
        if self.history.empty:
            return {}
        row: dict[str, float] = self.history.iloc[(self.selected_epoch or len(self.history)) - 1].to_dict()
        return row

    @property
    def overfitting(self) -> float | None:
        """Train accuracy minus test accuracy of the evaluated epoch; None if one is missing."""
        row = self.final_row
        return row["train_accuracy"] - row["test_accuracy"] if {"train_accuracy", "test_accuracy"} <= set(row) else None

    @property
    def costs(self) -> dict[str, float | None]:
        """Size, accuracies of the evaluated epoch, and time."""
        row, record = self.final_row, self.record
        seconds = {} if record is None else record.seconds or {}
        rates = self.history.get("images_per_second", pd.Series(dtype=float)).dropna()
        return {
            "parameters": None if record is None else record.model.get("n_parameters"),
            "train_accuracy": row.get("train_accuracy"),
            "test_accuracy": row.get("test_accuracy"),
            "train_minus_test_accuracy": self.overfitting,
            "seconds": seconds.get("training"),
            "seconds_total": seconds.get("total"),
            # all images over all time
            "images_per_second": float(len(rates) / (1 / rates).sum()) if len(rates) else None,
        }

    def estimate(self, name: str) -> Estimate | None:
        """Return a metric; "f1_benign" is the F1 of a class. None if it is not defined."""
        if self.metrics is None:
            return None
        found: Estimate | None = self.metrics.get(name)
        for class_name, of_class in self.metrics["per_class"].items():
            metric = name.removesuffix(f"_{class_name}")
            if metric != name and metric in of_class:
                found = of_class[metric]
        return None if found is None or found["value"] is None else found


def is_run_folder(folder: Path) -> bool:
    """Whether a folder is that of a run, finished or refused, or of an ensemble."""
    return any((folder / name).exists() for name in (RUN_JSON, ENSEMBLE_JSON, ".hydra"))


def read_run(folder: Path, *, name: str | None = None, place: str = "test") -> Run:
    """Read a run; files that are missing or damaged are named in `error`.

    Args:
        folder: The run folder, or that of an ensemble.
        name: Its name; None: that of the folder.
        place: Folder of the result inside it.
    """
    name = folder.name if name is None else name
    record: RunRecord | None = None
    facts: dict[str, Any] = {}
    try:
        if (folder / ENSEMBLE_JSON).is_file():
            ensemble = _read_json(folder / ENSEMBLE_JSON)
            facts = {"model": f"ensemble of {len(ensemble['members'])}", "data": ensemble}
            return Run(name, folder, None, "finished", **facts, **_read_result(folder))
        if not (folder / RUN_JSON).is_file():
            return Run(name, folder, None, "refused", error=_reason_of_refusal(folder))
        record = RunFolder(folder).read()
        facts = {"model": model_name(record.config), "data": record.data}
        result = _read_result(folder / place)
        history = RunFolder(folder).history_csv
        if history.is_file():
            facts["history"] = _read_history(history)
    except BreakHisError as error:
        status = "unreadable" if record is None else record.status
        return Run(name, folder, record, status, error=str(error), **facts)
    reason = record.error if record.error or result else f"no {place}/{PREDICTIONS_CSV}"
    return Run(name, folder, record, record.status, error=reason, **facts, **result)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunFolderError(f"{path}: is damaged ({error}); delete it and run evaluate.py again") from error
    return content


def _read_history(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except ValueError as error:
        log.warning("%s: is damaged (%s); the page has no curves", path, error)
        return pd.DataFrame()


def _read_result(folder: Path) -> dict[str, Any]:
    """Read table and metrics of a result; metrics of another table are computed again."""
    table, path = folder / PREDICTIONS_CSV, folder / METRICS_JSON
    if not table.is_file():
        return {}
    metrics = _read_json(path) if path.is_file() else {}
    if metrics.get("predictions_checksum") != table_checksum(table):
        metrics = evaluate_table(table)
    return {"metrics": metrics, "predictions": read_predictions(table)}


def _reason_of_refusal(folder: Path) -> str:
    """Return the last line of the log of a run that ended before it began."""
    logs = sorted(folder.glob("*.log"))
    lines = logs[-1].read_text(encoding="utf-8", errors="replace").split("\n") if logs else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "ended before its first step")


def model_name(config: Mapping[str, Any]) -> str:
    """Return the backbone, and in parentheses what differs from the network of Otto et al. 2022 of that name."""
    model = config["model"]
    marks = [
        "timm" if model.get("library") == "timm" else None,
        "frozen" if model.get("freeze") else None,
        model.get("head") if model.get("head") not in (None, "mlp") else None,
        config.get("task") if config.get("task") not in (None, "binary") else None,
    ]
    words = ", ".join(filter(None, marks))
    return f"{model['backbone']} ({words})" if words else str(model["backbone"])


def network_title(run: Run) -> str:
    """Return the network's name as Otto et al. 2022 write it, if they have it."""
    otto = OTTO2022.get(run.model or "")
    return otto.network if otto is not None else run.model or "unknown network"


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Return the run folders among some folders; a sweep stands for its runs.

    Raises:
        RunFolderError: If one does not exist or holds no run.
    """
    found: list[Path] = []
    if not folders:
        raise RunFolderError("runs=[]: names no run; name a sweep folder, or run folders")
    for folder in folders:
        inside = [folder] if is_run_folder(folder) else sorted(filter(is_run_folder, folder.glob("*/")))
        if not inside:
            raise RunFolderError(f"{folder}: holds no run; name a run folder, or the folder of a sweep")
        found += inside
    return found


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Name folders by the last parts of their paths that differ.

    Raises:
        PredictionsError: If one is given twice.

    Example:
        >>> distinct_names([Path("/runs/a/x"), Path("/runs/b/x")])
        ['a', 'b']
    """
    full = [path.resolve() for path in paths]
    twice = {str(path) for path in full if full.count(path) > 1}
    if twice:
        raise PredictionsError(f"runs={join_truncated(sorted(twice))}: is given twice; name each run once")
    for n_parts in range(1, max(len(path.parts) for path in full)):
        names = ["_".join(path.parts[-n_parts:]) for path in full]
        if len(set(names)) == len(names):
            return shorten(names)
    return [str(path) for path in full]


def shorten(names: Sequence[str]) -> list[str]:
    """Drop the words at the end that all names share.

    Example:
        >>> shorten(["resnet18_demo_epochs2", "wide_resnet50_2_demo_epochs2"])
        ['resnet18', 'wide_resnet50_2']
    """
    words = [name.split("_") for name in names]
    while len(words) > 1 and len({each[-1] for each in words}) == 1 and all(len(each) > 1 for each in words):
        words = [each[:-1] for each in words]
    return ["_".join(each) for each in words]
