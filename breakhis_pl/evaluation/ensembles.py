"""Several runs as one: the mean of their probabilities for the same images, from their tables alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from breakhis_pl.data.breakhis import CLASS_NAMES
from breakhis_pl.data.dataset import Subset
from breakhis_pl.errors import PredictionsError, RunFolderError, join_truncated
from breakhis_pl.evaluation.comparison import run_folders, write_summaries
from breakhis_pl.evaluation.comparison_tables import figure_warning
from breakhis_pl.evaluation.differences import align
from breakhis_pl.evaluation.ensemble_file import ENSEMBLE_JSON, Ensemble, EnsembleMember, write_ensemble_json
from breakhis_pl.evaluation.file_texts import DamagedFileError
from breakhis_pl.evaluation.json_values import json_object, value_at
from breakhis_pl.evaluation.metrics_file import command_for
from breakhis_pl.evaluation.paired import distinct_names
from breakhis_pl.evaluation.predictions import Predictions, table_checksum
from breakhis_pl.evaluation.results import PREDICTIONS_CSV, write_results
from breakhis_pl.evaluation.run_summary import RunSummary, is_ensemble_folder, summarize_run
from breakhis_pl.evaluation.siblings import SplitRow, read_split, siblings
from breakhis_pl.evaluation.texts import named, quoted

T = TypeVar("T")

NAME = "ensemble"
"""Of the ensemble among its members."""


@dataclass(frozen=True, slots=True)
class Member:
    """A run that may be averaged with others: its table is whole and of test images.

    Attributes:
        folder: Its run folder.
        summary: What its files say.
        predictions: Its rows.
        checksum: Of its table.
        split: Rows of its split.csv.
    """

    folder: Path
    summary: RunSummary
    predictions: Predictions
    checksum: str
    split: tuple[SplitRow, ...]


def write_ensemble(out: Path, folders: Sequence[Path], *, tta: str = "none") -> Path:
    """Averages the probabilities of runs, and compares the result with them.

    Writes ensemble.json, predictions.csv, metrics.json, confusion_matrix.png, and the files of a comparison.

    Args:
        out: Where to; new, empty, or the folder of an earlier ensemble, whose files are replaced.
        folders: Folders of runs, or of sweeps, which stand for their runs.
        tta: "none" takes the runs' test/ tables, another kind those of test_<kind>/.

    Returns:
        Path of comparison.md.

    Raises:
        RunFolderError: If a run or its result is missing or damaged, or `out` holds something else.
        PredictionsError: If the runs cannot be averaged: fewer than two, one of them twice, other images or classes.
    """
    place = table_folder(tta)
    members = read_members(folders, tta=tta)
    _check_out(out)
    rows = average([member.predictions for member in members])
    ensemble = _ensemble(members, rows, place)
    summaries = [member.summary for member in members]
    out.mkdir(parents=True, exist_ok=True)
    write_ensemble_json(out, ensemble)
    write_results(out, rows, subset=Subset.TEST.value, title=_title(ensemble), note=figure_warning(summaries))
    names = join_truncated(named(each.name) for each in summaries)
    lead = f"{NAME}: the mean of the probabilities of {names}, from their {place}/{PREDICTIONS_CSV}."
    return write_summaries(out, [summarize_run(out, name=NAME), *summaries], lead=lead)


def table_folder(tta: str) -> str:
    """Folder of the test table of a run.

    Example:
        >>> table_folder("none"), table_folder("flips")
        ('test', 'test_flips')
    """
    return Subset.TEST.value if tta == "none" else f"{Subset.TEST.value}_{tta}"


def average(tables: Sequence[Predictions]) -> Predictions:
    """The mean of the probabilities of several tables, in the order of the first; the larger one decides.

    Args:
        tables: Of the same images, in any order; at least one.

    Raises:
        PredictionsError: If the images, their classes or their cases differ.
    """
    first = tables[0]
    aligned = [align(table, first) for table in tables]
    probabilities = np.mean([table.probabilities for table in aligned], axis=0)
    return Predictions(
        image=first.image,
        patient=first.patient,
        case=first.case,
        magnification=first.magnification,
        target=first.target,
        probabilities=probabilities,
        predicted=probabilities.argmax(axis=1).astype(np.int64),
    )


def read_members(folders: Sequence[Path], *, tta: str = "none") -> list[Member]:
    """The runs in these folders, after it is sure that they may be averaged.

    Args:
        folders: Folders of runs, or of sweeps, which stand for their runs; ensembles in a sweep are left out.
        tta: As in `write_ensemble`.

    Raises:
        RunFolderError: If a run or its result is missing or damaged.
        PredictionsError: If they cannot be averaged.
    """
    ensembles = [folder for folder in folders if is_ensemble_folder(folder)]
    if ensembles:
        raise PredictionsError(f"{join_truncated(ensembles)} is an ensemble itself; name its members")
    runs = [run for run in run_folders(folders) if not is_ensemble_folder(run)]
    if len(runs) < 2:
        raise PredictionsError(
            f"{join_truncated(runs)} is one run; an ensemble needs two or more: 'runs=[<run folder>,<run folder>]'"
        )
    names = distinct_names(runs)
    lacking = [run for run in runs if not (run / table_folder(tta) / PREDICTIONS_CSV).is_file()]
    if lacking:
        command = f"uv run evaluate.py run={lacking[0]}" + ("" if tta == "none" else f" tta={tta}")
        raise RunFolderError(
            f"no {table_folder(tta)}/{PREDICTIONS_CSV} in {join_truncated(lacking)}; write it with `{command}`, "
            "or leave the run out: 'runs=[<run folder>,<run folder>]'"
        )
    members = {name: _member(name, run, table_folder(tta)) for name, run in zip(names, runs, strict=True)}
    _check_together(members)
    return list(members.values())


def _member(name: str, folder: Path, place: str) -> Member:
    """A run and its table.

    Raises:
        RunFolderError: If a file of it is damaged, or the table is no result of test images.
        PredictionsError: If split.csv cannot be read.
    """
    summary = summarize_run(folder, name=name, place=place)
    if summary.status in ("refused", "unreadable"):
        raise RunFolderError(f"{folder}: {summary.error}; leave the run out")
    table = folder / place / PREDICTIONS_CSV
    if summary.predictions is None:
        raise RunFolderError(f"{folder}: {join_truncated(summary.damage)}")
    if not summary.metrics:
        raise RunFolderError(f"no metrics.json in {folder / place}; write it with `{command_for(table)}`")
    try:
        metrics = json_object(folder / place / "metrics.json")
    except DamagedFileError as damage:  # pragma: no cover - summarize_run has read it just now
        raise RunFolderError(f"{folder / place}/metrics.json is damaged: {damage}") from damage
    subset, class_names = value_at(metrics, "subset"), value_at(metrics, "class_names")
    if subset != Subset.TEST:
        raise RunFolderError(f"{table} is of the subset {quoted(subset)}; expected {Subset.TEST}")
    if class_names not in (None, list(CLASS_NAMES)):
        raise RunFolderError(f"{table} is of the classes {quoted(class_names)}; expected {', '.join(CLASS_NAMES)}")
    return Member(folder, summary, summary.predictions, table_checksum(table), read_split(folder / "split.csv"))


def _check_together(members: Mapping[str, Member]) -> None:
    """Makes sure that the members' tables are of the same images, which no member was trained on.

    Raises:
        PredictionsError: If they are not.
    """
    (first, reference), *others = members.items()
    names_of: dict[str, list[str]] = {}
    for name, member in members.items():
        names_of.setdefault(member.checksum, []).append(name)
    twice = next((names for names in names_of.values() if len(names) > 1), None)
    if twice is not None:
        raise PredictionsError(
            f"{join_truncated(twice)} have the same {PREDICTIONS_CSV}, byte by byte; name each network once"
        )
    kinds = {name: member.summary.is_synthetic for name, member in members.items()}
    if len(set(kinds.values())) > 1:
        drawn = join_truncated(name for name, kind in kinds.items() if kind)
        raise PredictionsError(f"the images of {drawn} are drawn, the others' are not; average runs on the same images")
    for name, member in others:
        _check_same_images(first, reference.predictions, name, member.predictions)
    tested = frozenset(reference.predictions.image)
    for name, member in members.items():
        seen = sorted(row.image for row in member.split if row.subset is not Subset.TEST and row.image in tested)
        if seen:
            raise PredictionsError(
                f"by its split.csv, {name} was trained or validated on {join_truncated(map(named, seen))}, "
                "which are among the test images; leave it out"
            )


def _check_same_images(first: str, a: Predictions, second: str, b: Predictions) -> None:
    only_a, only_b = (sorted(set(x.image) - set(y.image)) for x, y in ((a, b), (b, a)))
    if only_a or only_b:
        examples = join_truncated(map(named, [*only_a[:2], *only_b[:2]]))
        raise PredictionsError(
            f"the test images differ: {len(only_a):,} only in {first}, {len(only_b):,} only in {second} "
            f"(such as {examples}); average runs on the same images, those of one fold"
        )
    try:
        align(b, a)
    except PredictionsError as error:
        raise PredictionsError(f"{first} and {second}: {error}") from error


def _check_out(out: Path) -> None:
    """Makes sure that nothing else is in the folder.

    Raises:
        RunFolderError: If something is.
    """
    if out.exists() and not out.is_dir():
        raise RunFolderError(f"out={out} is no folder; name a new one")
    if out.is_dir() and not is_ensemble_folder(out) and any(out.iterdir()):
        raise RunFolderError(f"out={out} holds other files and no {ENSEMBLE_JSON}; name a new folder")


def _ensemble(members: Sequence[Member], rows: Predictions, place: str) -> Ensemble:
    summaries = [member.summary for member in members]
    completeness = {summary.is_complete for summary in summaries}
    return Ensemble(
        table=f"{place}/{PREDICTIONS_CSV}",
        members=tuple(
            EnsembleMember(
                name=member.summary.name,
                folder=str(member.folder),
                predictions_checksum=member.checksum,
                model=member.summary.model,
                seed=member.summary.seed,
                split_checksum=member.summary.split_checksum,
            )
            for member in members
        ),
        split=_shared([summary.split for summary in summaries]),
        fold=_shared([summary.fold for summary in summaries]),
        magnification=tuple(sorted({int(magnification) for magnification in rows.magnification})),
        synthetic=summaries[0].is_synthetic,
        complete=False if False in completeness else True if completeness == {True} else None,
        siblings=tuple(sorted(frozenset[str]().union(*(siblings(member.split) for member in members)))),
    )


def _shared(values: Sequence[T | None]) -> T | None:
    return values[0] if len(set(values)) == 1 else None


def _title(ensemble: Ensemble) -> str:
    where = "+".join(f"{magnification}X" for magnification in ensemble.magnification)
    fold = "" if ensemble.fold is None else f", fold {ensemble.fold}"
    return f"Ensemble of {len(ensemble.members)}, {where}{fold}"
