"""The history.csv of a run, checked before anything is drawn or computed from it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from breakhis_pl.evaluation.csv_tables import read_columns
from breakhis_pl.evaluation.file_texts import DamagedFileError
from breakhis_pl.evaluation.texts import quoted

HISTORY_CSV = "history.csv"
"""Inside the run folder."""

MOST_EPOCHS = 10_000

_COLUMNS = ("epoch", "train_loss", "train_accuracy")
"""Of every run; a trial of a study has none of test."""

HistoryRow: TypeAlias = Mapping[str, float | None]
"""Values of an epoch by column; None where there is none, or none that is finite."""


def read_history(path: Path) -> tuple[HistoryRow, ...]:
    """Rows of a history, one per epoch from 1 on; none where there is only a header yet.

    Args:
        path: The history.csv of a run.

    Raises:
        DamagedFileError: If the file cannot be read, a column is missing, a value is no number or not possible, or an
            epoch is missing.
    """
    rows: list[HistoryRow] = []
    try:
        for line, cells in read_columns(path, _COLUMNS):
            row = {column: _number(line, column, text) for column, text in cells.items()}
            if row["epoch"] != len(rows) + 1:
                raise DamagedFileError(f"line {line} is of epoch {quoted(cells['epoch'])}; expected {len(rows) + 1}")
            if len(rows) == MOST_EPOCHS:
                raise DamagedFileError(f"it has more than {MOST_EPOCHS:,} epochs")
            rows.append(row)
    except OSError as error:
        raise DamagedFileError(f"it cannot be read ({error.strerror})") from error
    return tuple(rows)


def _number(line: int, column: str, text: str) -> float | None:
    try:
        value = float(text) if text.strip() else math.nan
    except ValueError:
        raise DamagedFileError(f"line {line}, column {quoted(column)}: {quoted(text)} is no number") from None
    if not math.isfinite(value):
        return None
    if value < 0 or (column.endswith("_accuracy") and value > 1):
        raise DamagedFileError(f"line {line}, column {quoted(column)}: {quoted(text)} is not possible")
    return value
