"""Runs of a sweep side by side: comparison.csv with all digits, comparison.md to read.

Both are written from the files of the run folders alone, as often as one likes: after every run of a sweep, or months
later.
"""

import csv
import io
from pathlib import Path

from breakhis_pl.errors import RunFolderError
from breakhis_pl.evaluation.comparison_tables import comparison_markdown
from breakhis_pl.evaluation.run_summary import METRIC_KEYS, RunSummary, is_run_folder, summarize_run
from breakhis_pl.files import write_text

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


def collect_runs(folder: Path) -> list[RunSummary]:
    """The runs in the folders directly below a folder, sorted by name; those that failed or are not finished, too.

    Args:
        folder: Folder of a sweep.

    Raises:
        RunFolderError: If the folder does not exist or holds no run.
    """
    if not folder.is_dir():
        raise RunFolderError(
            f"{folder} is no folder; expected the folder of a sweep, such as outputs/sweeps/<date>/<time>"
        )
    runs = [summarize_run(entry) for entry in sorted(folder.iterdir()) if entry.is_dir() and is_run_folder(entry)]
    if runs:
        return runs
    if is_run_folder(folder):
        raise RunFolderError(f"{folder} is the folder of one run; a comparison needs the folder above it")
    raise RunFolderError(
        f"no run in {folder}; expected the folder of a sweep, with one folder per run that holds run.json"
    )


def write_comparison(folder: Path) -> Path:
    """Write comparison.csv and comparison.md into the folder of a sweep; older ones are replaced.

    Args:
        folder: Folder of a sweep.

    Returns:
        Path of comparison.md.

    Raises:
        RunFolderError: If the folder does not exist or holds no run.
    """
    runs = collect_runs(folder)
    # names of folders need not be text
    write_text(folder / "comparison.csv", comparison_csv(runs), errors="replace")
    page = folder / "comparison.md"
    write_text(page, comparison_markdown(runs), errors="replace")
    return page


def comparison_csv(runs: list[RunSummary]) -> str:
    """One row per run, numbers with all their digits, empty where a run has none."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_row(run) for run in runs)
    return buffer.getvalue()


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
