"""The files of a finished run, read and checked together, for its page."""

import csv
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from breakhis_pl.errors import RunFolderError
from breakhis_pl.evaluation.calibration import CALIBRATION_JSON
from breakhis_pl.evaluation.gallery import GalleryEntry, read_gallery
from breakhis_pl.evaluation.json_values import DamagedFileError, json_object, value_at
from breakhis_pl.evaluation.predictions import Predictions, read_predictions
from breakhis_pl.evaluation.published import REPORT_RESULTS
from breakhis_pl.evaluation.run_summary import Estimate, RunSummary, is_run_folder, summarize_run
from breakhis_pl.evaluation.siblings import siblings_from_split


@dataclass(frozen=True, slots=True)
class SubsetSize:
    """How much a subset of a run holds."""

    n_images: int
    n_patients: int
    n_cases: int


@dataclass(frozen=True, slots=True, eq=False)
class RunFiles:
    """What the folder of a run holds about its result.

    Attributes:
        folder: The run folder.
        record: Content of run.json.
        summary: The same and more, checked.
        metrics: Content of test/metrics.json.
        predictions: Rows of test/predictions.csv.
        history: Rows of history.csv; empty where there is none.
        sizes: By subset; empty where there is no split.csv.
        siblings: Test images of which a slide of the same case was trained on.
        calibration: Content of calibration.json; None where there is none.
        gallery: Images worth a look; empty where there is none.
    """

    folder: Path
    record: Mapping[str, Any]
    summary: RunSummary
    metrics: Mapping[str, Any]
    predictions: Predictions
    history: tuple[Mapping[str, str], ...]
    sizes: Mapping[str, SubsetSize]
    siblings: frozenset[str]
    calibration: Mapping[str, Any] | None
    gallery: tuple[GalleryEntry, ...]

    @property
    def network(self) -> str:
        """Name of the network, as the report spells it where it has it."""
        model = self.summary.model or "unknown network"
        return REPORT_RESULTS[model].network if model in REPORT_RESULTS else model

    @property
    def source(self) -> str:
        """What kind of images these are, in a few words."""
        match self.summary.is_synthetic:
            case True:
                return "synthetic images"
            case False:
                return "BreakHis"
            case None:
                return "images of unknown origin"

    @property
    def magnifications(self) -> str:
        """What was trained on, "200X" or "40X and 100X"."""
        names = [f"{magnification}X" for magnification in self.summary.magnification]
        return joined(names) if names else "unknown magnification"

    @property
    def split(self) -> str:
        """How train and test were told apart, in a few words."""
        match self.summary.split:
            case "official":
                return f"the authors' fold {self.summary.fold}"
            case "ratio":
                return f"a split by case (seed {self.summary.seed})"
            case other:
                return f"a split named {other}" if other else "an unknown split"

    def estimate(self, *keys: str) -> Estimate | None:
        """A metric with its interval by its place in metrics.json; None where it is not defined or not there."""
        return estimate_at(self.metrics, *keys)

    def fact(self, *keys: str) -> Any:
        """A value of run.json by its place; None where it is not there."""
        return value_at(self.record, *keys)


def read_run_files(folder: Path) -> RunFiles:
    """Everything that a run's page needs from the files of its folder.

    Raises:
        RunFolderError: If the folder is no run folder, has no result yet, or a file is damaged.
        PredictionsError: If test/predictions.csv or split.csv is malformed.
    """
    if not is_run_folder(folder):
        raise RunFolderError(
            f"{folder} is no run folder: it holds no run.json; expected a folder that train.py made, below outputs/"
        )
    missing = [name for name in ("run.json", "test/metrics.json", "test/predictions.csv") if not _exists(folder, name)]
    if missing:
        raise RunFolderError(
            f"{folder} has no result yet: {joined(missing)} missing; let the run finish, or write its result with "
            f"`python evaluate.py run={folder}`"
        )
    summary = summarize_run(folder)
    if summary.status == "unreadable":
        raise RunFolderError(f"{folder}: {summary.error}; evaluate another run")
    metrics = _checked_object(folder / "test/metrics.json")
    predictions = read_predictions(folder / "test/predictions.csv")
    _check_counts(folder, metrics, predictions)
    split = _csv_rows(folder / "split.csv")
    return RunFiles(
        folder=folder,
        record=_checked_object(folder / "run.json"),
        summary=summary,
        metrics=metrics,
        predictions=predictions,
        history=_csv_rows(folder / "history.csv"),
        sizes=_sizes(folder, split),
        siblings=siblings_from_split(folder / "split.csv") if split else frozenset(),
        calibration=_checked_object(folder / CALIBRATION_JSON) if _exists(folder, CALIBRATION_JSON) else None,
        gallery=tuple(read_gallery(folder / "test")),
    )


def estimate_at(document: Mapping[str, Any], *keys: str) -> Estimate | None:
    """A metric with its interval; None where there is no number at this place.

    Example:
        >>> estimate_at({"auroc": {"value": 0.9, "ci95": [0.8, 1.0]}}, "auroc")
        Estimate(value=0.9, interval=(0.8, 1.0))
    """
    found = value_at(document, *keys)
    value, interval = (found.get("value"), found.get("ci95")) if isinstance(found, Mapping) else (found, None)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    match interval:
        case [int() | float() as low, int() | float() as high]:
            return Estimate(float(value), (float(low), float(high)))
        case _:
            return Estimate(float(value))


def joined(names: list[str]) -> str:
    """Names as in a sentence.

    Example:
        >>> joined(["a", "b", "c"])
        'a, b and c'
    """
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else ""


def _exists(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def _checked_object(path: Path) -> Mapping[str, Any]:
    try:
        return json_object(path)
    except DamagedFileError as damage:
        raise RunFolderError(f"{path} is damaged ({damage}); write it again, with evaluate.py or a new run") from damage


def _csv_rows(path: Path) -> tuple[Mapping[str, str], ...]:
    """Rows of a table by column; none where there is no such file."""
    if not path.is_file():
        return ()
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = tuple(csv.DictReader(file, strict=True))
    except (OSError, csv.Error) as error:
        raise RunFolderError(f"{path} is damaged ({error}); expected a table in CSV format") from error
    if any(None in row or None in row.values() for row in rows):
        raise RunFolderError(f"{path} is damaged (a row has more or fewer values than there are columns)")
    return rows


def _check_counts(folder: Path, metrics: Mapping[str, Any], predictions: Predictions) -> None:
    """Both files come from one evaluation."""
    if metrics.get("n_images") != len(predictions):
        raise RunFolderError(
            f"{folder}/test: metrics.json is of {metrics.get('n_images')} images, predictions.csv of "
            f"{len(predictions)}; write both again with `python evaluate.py run={folder}`"
        )


def _sizes(folder: Path, split: tuple[Mapping[str, str], ...]) -> dict[str, SubsetSize]:
    missing = [column for column in ("image", "patient", "case", "subset") if split and column not in split[0]]
    if missing:
        raise RunFolderError(f"{folder}/split.csv lacks the column {joined(missing)}; expected the split.csv of a run")
    n_images = Counter(row["subset"] for row in split)
    return {
        subset: SubsetSize(
            n_images=count,
            n_patients=len({row["patient"] for row in split if row["subset"] == subset}),
            n_cases=len({row["case"] for row in split if row["subset"] == subset}),
        )
        for subset, count in n_images.items()
    }
