"""Runs side by side: comparison.csv with all digits, comparison.md and comparison.html to read, forest.png.

All are written from the files of the run folders alone, as often as one likes: after every run of a sweep, or months
later.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from breakhis_pl.errors import RunFolderError
from breakhis_pl.evaluation.comparison_markdown import comparison_markdown
from breakhis_pl.evaluation.comparison_page import comparison_html, picture_of_png
from breakhis_pl.evaluation.comparison_tables import comparison_page, figure_warning
from breakhis_pl.evaluation.csv_tables import csv_text
from breakhis_pl.evaluation.difference_tables import difference_figure, difference_figure_text, drawn_runs
from breakhis_pl.evaluation.figures import figure_png
from breakhis_pl.evaluation.pages import Picture
from breakhis_pl.evaluation.paired import PairedComparison, compare_runs, distinct_names
from breakhis_pl.evaluation.repetitions import Repetitions, over_folds
from breakhis_pl.evaluation.run_summary import METRIC_KEYS, RunSummary, is_run_folder, summarize_run
from breakhis_pl.run_folder import atomic_write, write_text

FOREST = "forest.png"

COLUMNS = (
    "run",
    "status",
    "model",
    "fold",
    "seed",
    "n_test_images",
    *METRIC_KEYS,
    "parameters",
    "train_accuracy",
    "test_accuracy",
    "train_minus_test_accuracy",
    "seconds",
    "seconds_total",
    "images_per_second",
)
"""Columns of comparison.csv."""

MEAN = "mean over folds"
DEVIATION = "standard deviation over folds"
"""Status of the rows of comparison.csv that are no run."""


def collect_runs(folder: Path) -> list[RunSummary]:
    """The runs in the folders directly below a folder, sorted by name; those that failed or are not finished, too.

    Args:
        folder: Folder of a sweep.

    Raises:
        RunFolderError: If the folder does not exist or holds no run.
    """
    return [summarize_run(run) for run in _run_folders(folder)]


def summarize_runs(folders: Sequence[Path]) -> list[RunSummary]:
    """The runs in these folders, in their order, each named by what tells its path from the others'.

    Args:
        folders: Folders of runs, or of sweeps, which stand for their runs.

    Raises:
        RunFolderError: If there is none, or one does not exist or holds no run.
        PredictionsError: If one is given twice.
    """
    runs = run_folders(folders)
    return [summarize_run(run, name=name) for run, name in zip(runs, distinct_names(runs), strict=True)]


def run_folders(folders: Sequence[Path]) -> list[Path]:
    """The folders of the runs in these folders, in their order.

    Args:
        folders: Folders of runs, or of sweeps, which stand for their runs.

    Raises:
        RunFolderError: If there is none, or one does not exist or holds no run.
    """
    if not folders:
        raise RunFolderError("no run is named; expected folders of runs, such as runs=[outputs/a,outputs/b]")
    return [run for folder in folders for run in ([folder] if is_run_folder(folder) else _run_folders(folder))]


def write_comparison(folder: Path, runs: Sequence[Path] | None = None) -> Path:
    """Write comparison.csv, comparison.md, comparison.html and forest.png into a folder; older ones are replaced.

    forest.png is there only where two runs have results on the same images.

    Args:
        folder: Folder of a sweep; with `runs` any folder, made if need be.
        runs: Folders of the runs to compare; by default those of the sweep.

    Returns:
        Path of comparison.md.

    Raises:
        RunFolderError: If a folder of a sweep or of a run does not exist or holds no run.
        PredictionsError: If a run is given twice.
    """
    return write_summaries(folder, collect_runs(folder) if runs is None else summarize_runs(runs))


def write_summaries(folder: Path, summaries: Sequence[RunSummary], *, lead: str | None = None) -> Path:
    """As `write_comparison`, of runs that are read already.

    Args:
        folder: Any folder, made if need be.
        summaries: The runs, each of a name of its own.
        lead: A sentence more on what is compared.

    Returns:
        Path of comparison.md.

    Raises:
        PredictionsError: If two runs have the same name.
    """
    comparisons = compare_runs(summaries)
    folder.mkdir(parents=True, exist_ok=True)
    content = comparison_page(summaries, comparisons, _write_forest(folder / FOREST, summaries, comparisons))
    if lead is not None:
        content = replace(content, lead=[*content.lead, lead])
    # names of folders need not be text
    write_text(folder / "comparison.csv", comparison_csv(summaries))
    html = comparison_html(content, title="/".join(folder.resolve().parts[-2:]))
    write_text(folder / "comparison.html", html)
    page = folder / "comparison.md"
    write_text(page, comparison_markdown(content, picture=FOREST))
    return page


def comparison_csv(runs: Sequence[RunSummary]) -> str:
    """One row per run, numbers with all their digits, empty where a run has none; then two per group of folds.

    In the latter, "status" is `MEAN` or `DEVIATION`, and "run" is the configuration.
    """
    rows = [*map(_row, runs), *(row for group in over_folds(runs) for row in _fold_rows(group))]
    return csv_text(COLUMNS, ([row.get(column) for column in COLUMNS] for row in rows))


def _fold_rows(group: Repetitions) -> Iterator[dict[str, object]]:
    """Mean and standard deviation over folds; none of a single fold."""
    spreads = {metric: found for metric in METRIC_KEYS if (found := group.over_folds(metric)) is not None}
    if not spreads:
        return
    same = {
        "run": group.name,
        "model": group.runs[0].model,
        "fold": " ".join(map(str, group.folds)),
        "seed": " ".join(map(str, group.seeds)),
    }
    yield same | {"status": MEAN} | {metric: found.mean for metric, found in spreads.items()}
    yield same | {"status": DEVIATION} | {metric: found.deviation for metric, found in spreads.items()}


def _row(run: RunSummary) -> dict[str, object]:
    return {
        "run": run.name,
        "status": run.status,
        "model": run.model,
        "fold": run.fold,
        "seed": run.seed,
        "n_test_images": run.n_test_images,
        **{name: estimate.value for name, estimate in run.metrics.items()},
        "parameters": run.n_parameters,
        "train_accuracy": run.train_accuracy,
        "test_accuracy": run.test_accuracy,
        "train_minus_test_accuracy": run.train_minus_test_accuracy,
        "seconds": run.seconds,
        "seconds_total": run.seconds_total,
        "images_per_second": run.images_per_second,
    }


def _run_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise RunFolderError(
            f"{folder} is no folder; expected that of a sweep, such as outputs/sweeps/<date>/<time>, or of a run"
        )
    runs = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and is_run_folder(entry)]
    if runs:
        return runs
    if is_run_folder(folder):
        raise RunFolderError(f"{folder} is the folder of one run; a comparison needs the folder above it")
    raise RunFolderError(
        f"no run in {folder}; expected the folder of a sweep, with one folder per run that holds run.json"
    )


def _write_forest(path: Path, runs: Sequence[RunSummary], comparisons: Sequence[PairedComparison]) -> Picture | None:
    drawn = drawn_runs(comparisons)
    figure = difference_figure(comparisons, note=figure_warning([run for run in runs if run.name in drawn]))
    if figure is None:
        path.unlink(missing_ok=True)
        return None
    png = figure_png(figure)
    with atomic_write(path) as aside:
        aside.write_bytes(png)
    return picture_of_png(png, figure, alt=difference_figure_text(comparisons))
