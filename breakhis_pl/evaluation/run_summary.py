"""What a run folder says about its run, read from its files alone."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from breakhis_pl.data.breakhis import CLASS_NAMES
from breakhis_pl.errors import PredictionsError, join_truncated
from breakhis_pl.evaluation.ensemble_file import ENSEMBLE_JSON, read_ensemble_json
from breakhis_pl.evaluation.file_texts import DamagedFileError
from breakhis_pl.evaluation.history_table import HISTORY_CSV, read_history
from breakhis_pl.evaluation.json_values import (
    count_at,
    counts_at,
    flag_at,
    json_object,
    number_at,
    object_at,
    text_at,
    value_at,
)
from breakhis_pl.evaluation.metrics_file import fault_of_pair, read_metrics
from breakhis_pl.evaluation.predictions import Predictions, read_predictions
from breakhis_pl.evaluation.refusal import refusal
from breakhis_pl.evaluation.texts import quoted

METRIC_KEYS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "accuracy": ("accuracy",),
        "balanced_accuracy": ("balanced_accuracy",),
        **{
            f"{metric}_{class_name}": ("per_class", class_name, metric)
            for class_name in CLASS_NAMES
            for metric in ("precision", "recall", "f1")
        },
        "weighted_f1": ("weighted_f1",),
        "auroc": ("auroc",),
        "mcc": ("mcc",),
        "patient_recognition_rate": ("patient_recognition_rate",),
        "case_accuracy": ("case_accuracy",),
    }
)
"""The metrics that runs are compared by, and where metrics.json holds them."""


STATUSES = ("running", "finished", "failed", "pruned")
"""What run.json may say of a run."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric of one run.

    Attributes:
        value: As metrics.json holds it.
        interval: Ends of its 95 % interval; None where there is none.
    """

    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run of a sweep; None where its folder does not say.

    Attributes:
        name: Name of the folder, or what tells it from others.
        status: "running", "finished", "failed" or "pruned" as in run.json; "refused" where a run ended before it began;
            "unreadable" where run.json is damaged.
        error: Why there is no result; may have several lines.
        damage: Which files are damaged or do not belong together, and how; what they hold is left out.
        config: The resolved configuration; empty where run.json has none.
        model: Backbone, such as "resnet18".
        seed: Seed of the run.
        split: "official" or "ratio".
        fold: The authors' fold; None where the split is another one.
        magnification: Magnifications trained on.
        test_magnification: Those tested on; as trained on, unless the run says otherwise.
        group: What a ratio split keeps together: "case" or "patient".
        best_epoch: The epoch that a validation value chose; None where the last one counts.
        monitor: That value, such as "val_loss".
        is_synthetic: Whether the images are drawn.
        is_complete: Whether the images are exactly the published ones.
        split_checksum: Runs of equal checksum have equal subsets.
        n_train_images: Number of train images.
        n_test_images: Number of test images.
        metrics: By the names of `METRIC_KEYS`; those that are not defined are absent.
        predictions: Of the test images, one row per image; None without a usable test/predictions.csv.
        confusion_matrix: Of the test images; rows are the truth.
        n_parameters: Number of parameters of the network.
        train_accuracy: Of the epoch that counts, in [0, 1].
        test_accuracy: Of the epoch that counts, in [0, 1].
        images_per_second: Train images over train time, over all epochs.
        seconds: Time of the training.
        seconds_total: Time of the whole run.
    """

    name: str
    status: str
    error: str | None = None
    damage: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    seed: int | None = None
    split: str | None = None
    fold: int | None = None
    magnification: tuple[int, ...] = ()
    test_magnification: tuple[int, ...] = ()
    group: str | None = None
    best_epoch: int | None = None
    monitor: str | None = None
    is_synthetic: bool | None = None
    is_complete: bool | None = None
    split_checksum: str | None = None
    n_train_images: int | None = None
    n_test_images: int | None = None
    metrics: Mapping[str, Estimate] = field(default_factory=dict)
    predictions: Predictions | None = field(default=None, repr=False, compare=False)
    confusion_matrix: tuple[tuple[int, ...], ...] | None = None
    n_parameters: int | None = None
    train_accuracy: float | None = None
    test_accuracy: float | None = None
    images_per_second: float | None = None
    seconds: float | None = None
    seconds_total: float | None = None

    @property
    def train_minus_test_accuracy(self) -> float | None:
        """How much better train is than test in the epoch that counts; None where one of them is missing."""
        if self.train_accuracy is None or self.test_accuracy is None:
            return None
        return self.train_accuracy - self.test_accuracy


def is_run_folder(folder: Path) -> bool:
    """Whether a folder is that of a run, be it one that was refused before it began, or of an ensemble of runs."""
    return (folder / "run.json").is_file() or (folder / ".hydra").is_dir() or is_ensemble_folder(folder)


def is_ensemble_folder(folder: Path) -> bool:
    """Whether a folder is that of an ensemble."""
    return (folder / ENSEMBLE_JSON).is_file()


def summarize_run(folder: Path, *, name: str | None = None, place: str = "test") -> RunSummary:
    """What the files of a run folder say; a damaged file is named in `damage`, the rest is read.

    Args:
        folder: Of the run, or of an ensemble.
        name: What to call it; by default the folder's name.
        place: Folder of the result inside a run folder.
    """
    name = folder.name if name is None else name
    if is_ensemble_folder(folder):
        return _ensemble_summary(folder, name)
    if not (folder / "run.json").is_file():
        return RunSummary(name=name, status="refused", error=refusal(folder))
    try:
        facts = _run_facts(json_object(folder / "run.json"))
    except DamagedFileError as damage:
        return RunSummary(name=name, status="unreadable", error=f"run.json is damaged: {damage}")
    found, damages = _result_facts(folder / place, prefix=f"{place}/")
    try:
        if (folder / HISTORY_CSV).is_file():
            found |= _history_facts(folder / HISTORY_CSV, counted=facts["best_epoch"])
    except DamagedFileError as damage:
        damages.append(f"{HISTORY_CSV} is damaged: {damage}")
    return RunSummary(name=name, **{**facts, **found, "damage": tuple(damages)})


def _ensemble_summary(folder: Path, name: str) -> RunSummary:
    """An ensemble as one more run, with what its members share."""
    try:
        ensemble = read_ensemble_json(folder)
    except DamagedFileError as damage:
        return RunSummary(name=name, status="unreadable", error=f"{ENSEMBLE_JSON} is damaged: {damage}")
    found, damages = _result_facts(folder, prefix="")
    return RunSummary(
        name=name,
        status="finished",
        damage=tuple(damages),
        model=f"ensemble of {len(ensemble.members)}",
        split=ensemble.split,
        fold=ensemble.fold,
        magnification=ensemble.magnification,
        is_synthetic=ensemble.synthetic,
        is_complete=ensemble.complete,
        **found,
    )


def _result_facts(folder: Path, *, prefix: str) -> tuple[dict[str, Any], list[str]]:
    """What metrics and rows say, and what is wrong with them; neither counts where they do not belong together.

    Args:
        folder: Of both files.
        prefix: What its path is called before the names of files.
    """
    metrics_path, table = folder / "metrics.json", folder / "predictions.csv"
    metrics: Mapping[str, Any] | None = None
    predictions: Predictions | None = None
    facts: dict[str, Any] = {}
    damages: list[str] = []
    try:
        metrics = read_metrics(metrics_path) if metrics_path.is_file() else None
        facts |= {} if metrics is None else _metric_facts(metrics)
    except DamagedFileError as damage:
        damages.append(f"{prefix}metrics.json is damaged: {damage}")
    try:
        predictions = read_predictions(table) if table.is_file() else None
    except PredictionsError as error:
        damages.append(f"{prefix}predictions.csv is damaged: {str(error).replace(str(table), table.name)}")
    if predictions is None:
        return facts, damages
    fault = None if metrics is None else fault_of_pair(metrics, predictions, table)
    if fault is not None:
        return {}, [*damages, f"{prefix.rstrip('/')}: {fault}" if prefix else fault]
    return {**facts, "predictions": predictions}, damages


def _run_facts(run: Mapping[str, Any]) -> dict[str, Any]:
    for subset in object_at(run, "data", "n_images") or ():
        _sum_of_classes(run, "data", "n_images", subset)
    object_at(run, "versions")
    status = text_at(run, "status")
    if status not in STATUSES:
        raise DamagedFileError(f"status is {quoted(status)}; expected one of {join_truncated(STATUSES)}")
    split = text_at(run, "config", "data", "split")
    magnification = _magnification(value_at(run, "config", "data", "magnification"), "magnification")
    tested = _magnification(value_at(run, "config", "data", "test_magnification"), "test_magnification")
    return {
        "status": status,
        "error": text_at(run, "error"),
        "config": object_at(run, "config") or {},
        "model": _model(run),
        "seed": count_at(run, "config", "seed"),
        "split": split,
        "fold": count_at(run, "config", "data", "fold") if split == "official" else None,
        "magnification": magnification,
        "test_magnification": tested or magnification,
        "group": text_at(run, "config", "data", "group"),
        "best_epoch": count_at(run, "selection", "best_epoch"),
        "monitor": text_at(run, "selection", "monitor"),
        "is_synthetic": flag_at(run, "data", "synthetic"),
        "is_complete": flag_at(run, "data", "complete"),
        "split_checksum": text_at(run, "data", "split_checksum"),
        "n_train_images": _sum_of_classes(run, "data", "n_images", "train"),
        "n_test_images": _sum_of_classes(run, "data", "n_images", "test"),
        "n_parameters": count_at(run, "model", "n_parameters"),
        "seconds": number_at(run, "seconds", "training"),
        "seconds_total": number_at(run, "seconds", "total"),
    }


def _model(run: Mapping[str, Any]) -> str | None:
    """Return the backbone, and in parentheses what differs from the network of Otto et al. 2022 of that name."""
    backbone = text_at(run, "config", "model", "backbone") or text_at(run, "model", "backbone")
    library, head = (text_at(run, "config", "model", name) for name in ("library", "head"))
    task = text_at(run, "config", "task")
    marks = [
        library if library == "timm" else None,
        "frozen" if flag_at(run, "config", "model", "freeze") else None,
        head if head not in ("mlp", "report") else None,
        task if task != "binary" else None,
    ]
    what = ", ".join(mark for mark in marks if mark)
    return f"{backbone} ({what})" if backbone and what else backbone


def _metric_facts(document: Mapping[str, Any]) -> dict[str, Any]:
    estimates = {name: estimate_at(document, *keys) for name, keys in METRIC_KEYS.items()}
    facts: dict[str, Any] = {"metrics": {name: found for name, found in estimates.items() if found is not None}}
    n_images, matrix = count_at(document, "n_images"), counts_at(document, "confusion_matrix")
    if n_images is not None:
        facts["n_test_images"] = n_images
    if matrix is not None:
        facts["confusion_matrix"] = matrix
    return facts


def _history_facts(path: Path, *, counted: int | None) -> dict[str, Any]:
    rows = read_history(path)
    if not rows:
        return {}
    row = rows[-1] if counted is None or not 0 < counted <= len(rows) else rows[counted - 1]
    speeds = [speed for row in rows if (speed := row.get("images_per_second")) is not None and speed > 0]
    return {
        "train_accuracy": row["train_accuracy"],
        "test_accuracy": row.get("test_accuracy"),
        # every epoch has the same images, so all images over all time is the harmonic mean
        "images_per_second": statistics.harmonic_mean(speeds) if speeds else None,
    }


def _magnification(value: object, key: str) -> tuple[int, ...]:
    found = tuple(value) if isinstance(value, list) else () if value is None else (value,)
    if not all(isinstance(part, int) and not isinstance(part, bool) and 0 < part < 10_000 for part in found):
        raise DamagedFileError(f"config.data.{key} is {quoted(value)}; expected numbers")
    return found


def _sum_of_classes(document: Mapping[str, Any], *keys: str) -> int | None:
    counts = value_at(document, *keys)
    if not isinstance(counts, Mapping):
        return count_at(document, *keys)
    return sum(count_at(counts, class_name) or 0 for class_name in counts)


def estimate_at(document: Mapping[str, Any], *keys: str) -> Estimate | None:
    """A metric of a checked metrics.json with its interval; None where there is no number at this place.

    Example:
        >>> estimate_at({"auroc": {"value": 0.9, "ci95": [0.8, 1.0]}}, "auroc")
        Estimate(value=0.9, interval=(0.8, 1.0))
    """
    found = value_at(document, *keys)
    value = number_at(document, *keys, "value") if isinstance(found, Mapping) else number_at(document, *keys)
    if value is None:
        return None
    match found:
        case {"ci95": [low, high]}:
            return Estimate(value, (float(low), float(high)))
        case _:
            return Estimate(value)
