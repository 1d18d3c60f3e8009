"""The files of a finished run, read and checked together, for its page."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from breakhis_pl.errors import RunFolderError
from breakhis_pl.evaluation.calibration import CALIBRATION_JSON, read_calibration
from breakhis_pl.evaluation.file_texts import DamagedFileError
from breakhis_pl.evaluation.gallery import GalleryEntry, read_gallery
from breakhis_pl.evaluation.history_table import HISTORY_CSV, HistoryRow, read_history
from breakhis_pl.evaluation.json_values import json_object, value_at
from breakhis_pl.evaluation.metrics_file import command_for, fault_of_pair, read_metrics
from breakhis_pl.evaluation.predictions import Predictions, read_predictions
from breakhis_pl.evaluation.published import REPORT_RESULTS
from breakhis_pl.evaluation.run_summary import Estimate, RunSummary, estimate_at, is_run_folder, summarize_run
from breakhis_pl.evaluation.siblings import SplitRow, read_split, siblings
from breakhis_pl.evaluation.subtypes import SUBTYPES_CSV, read_subtypes, subtype_metrics


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
        history: Rows of history.csv; empty where there is none, or none that can be read.
        history_fault: Why history.csv cannot be read; None where it can, or there is none.
        sizes: By subset; empty where there is no split.csv.
        siblings: Test images of which a slide of the same case was trained on.
        calibration: Content of calibration.json; None where there is none.
        gallery: Images worth a look; empty where there is none.
        subtypes: Metrics over the eight tumor types, of a network that tells them apart; None of others.
    """

    folder: Path
    record: Mapping[str, Any]
    summary: RunSummary
    metrics: Mapping[str, Any]
    predictions: Predictions
    history: tuple[HistoryRow, ...]
    history_fault: str | None
    sizes: Mapping[str, SubsetSize]
    siblings: frozenset[str]
    calibration: Mapping[str, Any] | None
    gallery: tuple[GalleryEntry, ...]
    subtypes: Mapping[str, Any] | None = None

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
        """What was trained and tested on, "200X" or "40X and 100X, tested at 200X"."""
        trained, tested = (
            joined([f"{magnification}X" for magnification in of])
            for of in (self.summary.magnification, self.summary.test_magnification)
        )
        if not trained:
            return "unknown magnification"
        return trained if tested == trained else f"{trained}, tested at {tested}"

    @property
    def split(self) -> str:
        """How train and test were told apart, in a few words."""
        match self.summary.split:
            case "official":
                return f"the authors' fold {self.summary.fold}"
            case "ratio":
                return f"a split by {self.summary.group or 'case'} (seed {self.summary.seed})"
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
            f"`uv run evaluate.py run={folder}`"
        )
    summary = summarize_run(folder)
    if summary.status == "unreadable":
        raise RunFolderError(f"{folder}: {summary.error}; evaluate another run")
    table = folder / "test/predictions.csv"
    try:
        metrics = read_metrics(folder / "test/metrics.json")
    except DamagedFileError as damage:
        raise RunFolderError(
            f"{folder}/test/metrics.json is damaged ({damage}); write it anew with `{command_for(table)}`"
        ) from damage
    predictions = read_predictions(table)
    fault = fault_of_pair(metrics, predictions, table)
    if fault is not None:
        raise RunFolderError(f"{folder}/test: {fault}, or both files with `uv run evaluate.py run={folder}`")
    history, history_fault = _history(folder / HISTORY_CSV)
    split = read_split(folder / "split.csv") if _exists(folder, "split.csv") else ()
    return RunFiles(
        folder=folder,
        record=json_object(folder / "run.json"),
        summary=summary,
        metrics=metrics,
        predictions=predictions,
        history=history,
        history_fault=history_fault,
        sizes=_sizes(split),
        siblings=siblings(split),
        calibration=(
            asdict(read_calibration(folder / CALIBRATION_JSON)) if _exists(folder, CALIBRATION_JSON) else None
        ),
        gallery=tuple(read_gallery(folder / "test")),
        subtypes=(
            subtype_metrics(read_subtypes(folder / "test" / SUBTYPES_CSV))
            if _exists(folder, f"test/{SUBTYPES_CSV}")
            else None
        ),
    )


def joined(names: list[str]) -> str:
    """Names as in a sentence.

    Example:
        >>> joined(["a", "b", "c"])
        'a, b and c'
    """
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else ""


def _exists(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def _history(path: Path) -> tuple[tuple[HistoryRow, ...], str | None]:
    """Rows of a history, or why there are none: the result does not rest on them."""
    if not path.is_file():
        return (), None
    try:
        return read_history(path), None
    except DamagedFileError as damage:
        return (), str(damage)


def _sizes(split: Iterable[SplitRow]) -> dict[str, SubsetSize]:
    rows_of: dict[str, list[SplitRow]] = {}
    for row in split:
        rows_of.setdefault(row.subset.value, []).append(row)
    return {
        subset: SubsetSize(
            n_images=len(rows), n_patients=len({row.patient for row in rows}), n_cases=len({row.case for row in rows})
        )
        for subset, rows in rows_of.items()
    }
