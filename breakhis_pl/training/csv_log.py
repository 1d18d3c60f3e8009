"""logger=csv: one long table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from breakhis_pl.evaluation.csv_tables import csv_text, read_columns
from breakhis_pl.evaluation.file_texts import DamagedFileError
from breakhis_pl.files import write_text
from breakhis_pl.training.loggers import result_values

COLUMNS = ("epoch", "name", "value")


class CsvLog:
    """Rows of epoch, name and value, written anew after every epoch.

    Args:
        path: The table.
        first_epoch: Rows from this epoch on that are there already are taken back.
    """

    def __init__(self, path: Path, *, first_epoch: int = 1) -> None:
        self.path = path
        self._rows = [row for row in _rows_of(path) if int(row[0]) < first_epoch] if first_epoch > 1 else []

    def add_scalar(self, subset: str, quantity: str, value: float, *, epoch: int) -> None:
        """Adds a row."""
        self._rows.append((str(epoch), f"{subset}/{quantity}", f"{value:.9g}"))

    def add_image(self, subset: str, name: str, pixels: npt.NDArray[np.uint8], *, epoch: int) -> None:
        """Nothing: a table holds no pictures."""

    def add_text(self, subset: str, name: str, text: str) -> None:
        """Nothing: run.json has the configuration, metrics.json the report."""

    def add_results(self, subset: str, metrics: Mapping[str, Any], *, epoch: int) -> None:
        """Adds a row for each metric."""
        for name, value in result_values(metrics).items():
            self.add_scalar(subset, name, value, epoch=epoch)
        self.flush()

    def flush(self) -> None:
        """Writes the table."""
        write_text(self.path, csv_text(COLUMNS, self._rows))

    def close(self) -> None:
        """Nothing is left open."""


def _rows_of(path: Path) -> list[tuple[str, str, str]]:
    """Rows of a table of before; none of one that is missing or damaged: history.csv holds the curves."""
    try:
        rows = [(row["epoch"], row["name"], row["value"]) for _, row in read_columns(path, COLUMNS)]
    except (OSError, DamagedFileError):
        return []
    return [row for row in rows if row[0].isascii() and row[0].isdigit()]
