"""The split.csv of a run, and the test images of which the network has seen another slide of the same case."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from breakhis_pl.data.dataset import Subset
from breakhis_pl.errors import PredictionsError, join_truncated
from breakhis_pl.evaluation.csv_tables import read_columns
from breakhis_pl.evaluation.file_texts import DamagedFileError
from breakhis_pl.evaluation.texts import quoted

_COLUMNS = ("image", "patient", "case", "subset")


@dataclass(frozen=True, slots=True)
class SplitRow:
    """An image of a split."""

    image: str
    patient: str
    case: str
    subset: Subset


def read_split(path: Path) -> tuple[SplitRow, ...]:
    """The rows of a split.csv.

    Args:
        path: The split.csv of a run, with at least the columns image, patient, case and subset.

    Raises:
        PredictionsError: If the file cannot be read, or is no split.
    """
    try:
        return tuple(_row(line, row) for line, row in read_columns(path, _COLUMNS))
    except OSError as error:
        raise PredictionsError(f"{path} cannot be read ({error.strerror}); expected the split.csv of a run") from error
    except DamagedFileError as damage:
        raise PredictionsError(f"{path} is damaged: {damage}; expected the split.csv of a run") from damage


def siblings(split: Iterable[SplitRow]) -> frozenset[str]:
    """Names of the test images whose case also occurs in train or val."""
    rows = tuple(split)
    seen = {row.case for row in rows if row.subset is not Subset.TEST}
    return frozenset(row.image for row in rows if row.subset is Subset.TEST and row.case in seen)


def siblings_from_split(path: Path) -> frozenset[str]:
    """Names of the test images whose case also occurs in train or val.

    Args:
        path: The split.csv of a run.

    Raises:
        PredictionsError: If the file cannot be read, or is no split.
    """
    return siblings(read_split(path))


def _row(line: int, row: dict[str, str]) -> SplitRow:
    empty = [column for column in _COLUMNS if not row[column].strip()]
    if empty:
        raise DamagedFileError(f"line {line}, column {empty[0]}: {quoted(row[empty[0]])} is no name")
    if row["subset"] not in tuple(Subset):
        raise DamagedFileError(
            f"line {line}, column subset: {quoted(row['subset'])} is none of {join_truncated(Subset)}"
        )
    return SplitRow(image=row["image"], patient=row["patient"], case=row["case"], subset=Subset(row["subset"]))
