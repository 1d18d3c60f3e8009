"""The table predictions.csv: one row per image, the border between the networks and everything reported."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from breakhis_pl.data.breakhis import CLASS_NAMES, parse_file_name
from breakhis_pl.errors import DataError, PredictionsError, ShapeError, join_truncated
from breakhis_pl.evaluation.csv_tables import csv_text, read_header_and_rows
from breakhis_pl.evaluation.file_texts import DamagedFileError
from breakhis_pl.evaluation.prediction_rows import RowParser
from breakhis_pl.evaluation.texts import quoted
from breakhis_pl.run_folder import write_text

COLUMNS = ("image", "patient", "case", "magnification", "target", "prob_benign", "prob_malignant", "predicted")

MOST_ROWS = 100_000
"""Of a table; BreakHis has 7,909 images."""


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """What a network says about images, beside the truth.

    Attributes:
        image: Name or path of each image, every one once.
        patient: The authors' unit of each image.
        case: Case of each image, the unit that intervals resample.
        magnification: int64, (n,).
        target: Index of the true class in `CLASS_NAMES`; int64, (n,).
        probabilities: Columns as in `CLASS_NAMES`; float64, (n, 2), 0..1, rows sum to 1.
        predicted: Index of the predicted class; int64, (n,).

    Raises:
        ShapeError: If the columns differ in length.
    """

    image: tuple[str, ...]
    patient: tuple[str, ...]
    case: tuple[str, ...]
    magnification: NDArray[np.int64]
    target: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    predicted: NDArray[np.int64]

    def __post_init__(self) -> None:
        n = len(self.image)
        expected = {
            "patient": (np.shape(self.patient)[:1], (n,)),
            "case": (np.shape(self.case)[:1], (n,)),
            "magnification": (self.magnification.shape, (n,)),
            "target": (self.target.shape, (n,)),
            "probabilities": (self.probabilities.shape, (n, len(CLASS_NAMES))),
            "predicted": (self.predicted.shape, (n,)),
        }
        wrong = [f"{name} has shape {is_}, not {should}" for name, (is_, should) in expected.items() if is_ != should]
        if wrong:
            raise ShapeError(f"{n} images, but {join_truncated(wrong)}; every column needs one value per image")

    def __len__(self) -> int:
        return len(self.image)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each image is classified correctly; bool, (n,)."""
        return np.equal(self.predicted, self.target)

    @property
    def prob_malignant(self) -> NDArray[np.float64]:
        """Predicted probability of the malignant class; float64, (n,)."""
        return self.probabilities[:, 1]

    @property
    def subtype(self) -> tuple[str | None, ...]:
        """Code of each image's tumor type, "TA"; None where the patient is no BreakHis patient."""
        code_of = {patient: subtype_of_patient(patient) for patient in set(self.patient)}
        return tuple(code_of[patient] for patient in self.patient)

    def select(self, keep: NDArray[np.bool_]) -> "Predictions":
        """The rows where `keep` is true, in their order.

        Args:
            keep: bool, (n,).

        Raises:
            ShapeError: If there is not one value per image.
        """
        if keep.shape != (len(self),):
            raise ShapeError(f"keep has shape {keep.shape}; expected ({len(self)},), one value per image")
        return self.take(np.flatnonzero(keep))

    def take(self, rows: NDArray[np.int64]) -> "Predictions":
        """The rows with these indices, in this order.

        Args:
            rows: int64, (m,), 0..n-1.
        """
        return Predictions(
            image=tuple(self.image[row] for row in rows),
            patient=tuple(self.patient[row] for row in rows),
            case=tuple(self.case[row] for row in rows),
            magnification=self.magnification[rows],
            target=self.target[rows],
            probabilities=self.probabilities[rows],
            predicted=self.predicted[rows],
        )


def index_of(names: Iterable[str]) -> NDArray[np.int64]:
    """Index of each name among the sorted distinct names; int64, (n,).

    Example:
        >>> index_of(["b", "a", "b"]).tolist()
        [1, 0, 1]
    """
    _, index = np.unique(np.array(list(names), dtype=object), return_inverse=True)
    return index.astype(np.int64)


def subtype_of_patient(patient: str) -> str | None:
    """Code of the tumor type in a BreakHis patient, or None if it is none.

    Example:
        >>> subtype_of_patient("SOB_B_TA-14-13200")
        'TA'
        >>> subtype_of_patient("patient 7") is None
        True
    """
    try:
        return parse_file_name(f"{patient}-40-001.png").subtype
    except DataError:
        return None


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write a table; it appears under its name only when it is complete.

    Args:
        path: The file to write; its folder exists.
        predictions: What to write. Probabilities are written with nine digits, which hold a float32 exactly.
    """
    write_text(path, csv_text(COLUMNS, _rows(predictions)))


def _rows(predictions: Predictions) -> Iterator[tuple[str, ...]]:
    for row in range(len(predictions)):
        yield (
            predictions.image[row],
            predictions.patient[row],
            predictions.case[row],
            str(predictions.magnification[row]),
            CLASS_NAMES[predictions.target[row]],
            f"{predictions.probabilities[row, 0]:.9g}",
            f"{predictions.probabilities[row, 1]:.9g}",
            CLASS_NAMES[predictions.predicted[row]],
        )


def read_predictions(path: Path) -> Predictions:
    """The table in a file, its columns in any order.

    Raises:
        PredictionsError: If there is no such file, or it is no complete and consistent table; names the line, the
            column and the value of each fault.
    """
    try:
        header, rows = read_header_and_rows(path)
        _check_header(path, header)
        parser = RowParser(header)
        for line, cells in rows:
            if parser.n_rows == MOST_ROWS:
                raise DamagedFileError(f"line {line}: more than {MOST_ROWS:,} rows; expected one per image")
            parser.parse(line, cells)
    except OSError as error:
        raise PredictionsError(
            f"{path} cannot be read ({error.strerror}); expected a predictions.csv, as a run writes it into test/"
        ) from error
    except DamagedFileError as damage:
        raise PredictionsError(f"{path}: {damage}") from damage
    if not parser.n_rows:
        raise PredictionsError(f"{path} holds no row; expected one per image below the header")
    if parser.n_faults:
        raise PredictionsError(f"{path}: {parser.fault_text()}; correct the table or write it again")
    return Predictions(
        image=tuple(parser.image),
        patient=tuple(parser.patient),
        case=tuple(parser.case),
        magnification=np.array(parser.magnification, dtype=np.int64),
        target=np.array(parser.target, dtype=np.int64),
        probabilities=np.array(parser.probabilities, dtype=np.float64),
        predicted=np.array(parser.predicted, dtype=np.int64),
    )


def table_checksum(path: Path) -> str:
    """Checksum of a table's bytes, "sha256:9f86…"; metrics.json names by it the table that it was computed from.

    Raises:
        PredictionsError: If the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as error:
        raise PredictionsError(f"{path} cannot be read ({error.strerror}); expected a predictions.csv") from error


def _check_header(path: Path, header: Sequence[str]) -> None:
    faults = [f"column {name} is missing" for name in COLUMNS if name not in header]
    faults += [f"column {quoted(name)} is unknown" for name in header if name not in COLUMNS]
    faults += [f"column {name} is there {header.count(name)} times" for name in COLUMNS if header.count(name) > 1]
    if faults:
        raise PredictionsError(f"{path}, line 1: {join_truncated(faults)}; expected exactly {','.join(COLUMNS)}")
