"""What a run folder says about its run, read from its files alone."""

import csv
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from breakhis_pl.data.breakhis import CLASS_NAMES
from breakhis_pl.errors import PredictionsError, listed
from breakhis_pl.evaluation.json_values import (
    DamagedFileError,
    count_at,
    flag_at,
    json_object,
    number_at,
    text_at,
    value_at,
)
from breakhis_pl.evaluation.predictions import Predictions, read_predictions

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
    }
)
"""The metrics that runs are compared by, and where metrics.json holds them."""


STATUSES = ("running", "finished", "failed")
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
        status: "running", "finished" or "failed" as in run.json; "refused" where a run ended before it began;
            "unreadable" where run.json is damaged.
        error: Why there is no result, or which file is damaged; may have several lines.
        config: The resolved configuration; empty where run.json has none.
        model: Backbone, such as "resnet18".
        seed: Seed of the run.
        split: "official" or "ratio".
        fold: The authors' fold; None where the split is another one.
        magnification: Magnifications trained on.
        is_synthetic: Whether the images are drawn.
        is_complete: Whether the images are exactly the published ones.
        split_checksum: Runs of equal checksum have equal subsets.
        n_train_images: Number of train images.
        n_test_images: Number of test images.
        metrics: By the names of `METRIC_KEYS`; those that are not defined are absent.
        predictions: Of the test images, one row per image; None without a usable test/predictions.csv.
        confusion_matrix: Of the test images; rows are the truth.
        n_parameters: Number of parameters of the network.
        train_accuracy: Of the last epoch, in [0, 1].
        test_accuracy: Of the last epoch, in [0, 1].
        images_per_second: Train images over train time, over all epochs.
        seconds: Time of the training.
        seconds_total: Time of the whole run.
    """

    name: str
    status: str
    error: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    seed: int | None = None
    split: str | None = None
    fold: int | None = None
    magnification: tuple[int, ...] = ()
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
        """How much better train is than test in the last epoch; None where one of them is missing."""
        if self.train_accuracy is None or self.test_accuracy is None:
            return None
        return self.train_accuracy - self.test_accuracy


def is_run_folder(folder: Path) -> bool:
    """Whether a folder is that of a run, be it one that was refused before it began."""
    return (folder / "run.json").is_file() or (folder / ".hydra").is_dir()


def summarize_run(folder: Path, *, name: str | None = None) -> RunSummary:
    """What the files of a run folder say; a damaged file is named in `error`, the rest is read.

    Args:
        folder: Of the run.
        name: What to call it; by default the folder's name.
    """
    name = folder.name if name is None else name
    if not (folder / "run.json").is_file():
        return RunSummary(name=name, status="refused", error=_refusal(folder))
    try:
        facts = _run_facts(json_object(folder / "run.json"))
    except DamagedFileError as damage:
        return RunSummary(name=name, status="unreadable", error=f"run.json is damaged: {damage}")
    faults = [facts.pop("error")] if facts.get("error") else []
    for file_name, read in _READERS:
        path = folder / file_name
        try:
            facts |= read(path) if path.is_file() else {}
        except DamagedFileError as damage:
            faults.append(f"{file_name} is damaged: {damage}")
    return RunSummary(name=name, **{**facts, "error": "\n".join(faults) or None})


_LOG_MARK = "[ERROR] - "
"""Before the text of an error in Hydra's log."""


def _refusal(folder: Path) -> str:
    """The last error in the run's log, which is all that a refused run leaves."""
    for path in sorted(folder.glob("*.log")):
        _, mark, reason = path.read_text(encoding="utf-8", errors="replace").rpartition(_LOG_MARK)
        if mark and reason.strip():
            return reason.strip()
    return "refused before it began"


def _run_facts(run: Mapping[str, Any]) -> dict[str, Any]:
    config = value_at(run, "config")
    status = text_at(run, "status")
    if status not in STATUSES:
        raise DamagedFileError(f"status is {status!r}; expected one of {listed(STATUSES)}")
    split = text_at(run, "config", "data", "split")
    return {
        "status": status,
        "error": text_at(run, "error"),
        "config": config if isinstance(config, Mapping) else {},
        "model": text_at(run, "config", "model", "backbone") or text_at(run, "model", "backbone"),
        "seed": count_at(run, "config", "seed"),
        "split": split,
        "fold": count_at(run, "config", "data", "fold") if split == "official" else None,
        "magnification": _magnification(value_at(run, "config", "data", "magnification")),
        "is_synthetic": flag_at(run, "data", "synthetic"),
        "is_complete": flag_at(run, "data", "complete"),
        "split_checksum": text_at(run, "data", "split_checksum"),
        "n_train_images": _sum_of_classes(run, "data", "n_images", "train"),
        "n_test_images": _sum_of_classes(run, "data", "n_images", "test"),
        "n_parameters": count_at(run, "model", "n_parameters"),
        "seconds": number_at(run, "seconds", "training"),
        "seconds_total": number_at(run, "seconds", "total"),
    }


def _metric_facts(path: Path) -> dict[str, Any]:
    document = json_object(path)
    estimates = {name: _estimate(document, *keys) for name, keys in METRIC_KEYS.items()}
    facts: dict[str, Any] = {"metrics": {name: found for name, found in estimates.items() if found is not None}}
    n_images = count_at(document, "n_images")
    if n_images is not None:
        facts["n_test_images"] = n_images
    matrix = value_at(document, "confusion_matrix")
    if matrix is not None:
        try:
            facts["confusion_matrix"] = tuple(tuple(int(count) for count in row) for row in matrix)
        except (TypeError, ValueError):
            raise DamagedFileError(f"confusion_matrix is {matrix!r}; expected rows of counts") from None
    return facts


def _prediction_facts(path: Path) -> dict[str, Any]:
    try:
        return {"predictions": read_predictions(path)}
    except PredictionsError as error:
        raise DamagedFileError(str(error).replace(str(path), path.name)) from error


def _history_facts(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            table = list(csv.DictReader(file))
        if any(None in row or None in row.values() for row in table):
            raise DamagedFileError("a row has more or fewer values than there are columns")
        rows = [{name: float(text) if text else None for name, text in row.items()} for row in table]
    except (OSError, ValueError, csv.Error) as error:
        raise DamagedFileError(str(error)) from error
    if not rows:
        return {}
    speeds = [speed for row in rows if (speed := number_at(row, "images_per_second")) is not None and speed > 0]
    return {
        "train_accuracy": number_at(rows[-1], "train_accuracy"),
        "test_accuracy": number_at(rows[-1], "test_accuracy"),
        # every epoch has the same images, so all images over all time is the harmonic mean
        "images_per_second": statistics.harmonic_mean(speeds) if speeds else None,
    }


_READERS = (
    ("test/metrics.json", _metric_facts),
    ("test/predictions.csv", _prediction_facts),
    ("history.csv", _history_facts),
)


def _magnification(value: object) -> tuple[int, ...]:
    found = tuple(value) if isinstance(value, list) else () if value is None else (value,)
    if not all(isinstance(part, int) and not isinstance(part, bool) for part in found):
        raise DamagedFileError(f"config.data.magnification is {value!r}; expected numbers")
    return found


def _sum_of_classes(document: Mapping[str, Any], *keys: str) -> int | None:
    counts = value_at(document, *keys)
    if not isinstance(counts, Mapping):
        return count_at(document, *keys)
    return sum(count_at(counts, class_name) or 0 for class_name in counts)


def _estimate(document: Mapping[str, Any], *keys: str) -> Estimate | None:
    if not isinstance(value_at(document, *keys), Mapping):
        value, interval = number_at(document, *keys), None
    else:
        value, interval = number_at(document, *keys, "value"), value_at(document, *keys, "ci95")
    if value is None:
        return None
    match interval:
        case None:
            return Estimate(value)
        case [int() | float() as low, int() | float() as high]:
            return Estimate(value, (float(low), float(high)))
        case _:
            raise DamagedFileError(f"{'.'.join(keys)}.ci95 is {interval!r}; expected two numbers or null")
