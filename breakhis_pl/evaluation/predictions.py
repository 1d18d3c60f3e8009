"""The table predictions.csv: one row per image, the border between the networks and everything reported."""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from breakhis_pl.data.breakhis import CLASS_NAMES, parse_file_name
from breakhis_pl.errors import FileNameError, PredictionsError, ShapeError, listed
from breakhis_pl.files import write_text

COLUMNS = ("image", "patient", "case", "magnification", "target", "prob_benign", "prob_malignant", "predicted")

LONGEST_INTEGER = 9
"""Digits of an integer that can be meant."""

SUM_TOLERANCE = 1e-6
"""How far two probabilities may miss a sum of 1: softmax in float32 errs by 1e-7, nine digits by 1e-9."""


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
            raise ShapeError(f"{n} images, but {listed(wrong)}; every column needs one value per image")

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
    except FileNameError:
        return None


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write a table; it appears under its name only when it is complete.

    Args:
        path: The file to write; its folder exists.
        predictions: What to write. Probabilities are written with nine digits, which hold a float32 exactly.
    """
    table = io.StringIO(newline="")
    plain = csv.writer(table, lineterminator="\n")
    # before Python 3.13 a lone \r is not quoted, and then ends the row for every reader
    quoted = csv.writer(table, lineterminator="\n", quoting=csv.QUOTE_ALL)
    plain.writerow(COLUMNS)
    for row in _rows(predictions):
        (quoted if any("\r" in cell for cell in row) else plain).writerow(row)
    write_text(path, table.getvalue(), errors="surrogateescape")


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
    header, rows = _read_cells(path)
    _check_header(path, header)
    if not rows:
        raise PredictionsError(f"{path} holds no row; expected one per image below the header")
    parser = _RowParser(header)
    for line, cells in rows:
        parser.parse(line, cells)
    if parser.faults:
        raise PredictionsError(f"{path}: {listed(parser.faults)}; correct the table or write it again")
    return parser.predictions()


def _read_cells(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header, and the rows with the line that each begins on; empty lines are left out."""
    rows = []
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            begins = reader.line_num + 1
            for cells in reader:
                if cells:
                    rows.append((begins, cells))
                begins = reader.line_num + 1
    except OSError as error:
        raise PredictionsError(
            f"{path} cannot be read ({error.strerror}); expected a predictions.csv, as a run writes it into test/"
        ) from error
    except csv.Error as error:
        raise PredictionsError(f"{path}, line {reader.line_num}: {error}; expected a table in CSV format") from error
    return header, rows


def _check_header(path: Path, header: Sequence[str]) -> None:
    faults = [f"column {name} is missing" for name in COLUMNS if name not in header]
    faults += [f"column {name!r} is unknown" for name in header if name not in COLUMNS]
    faults += [f"column {name} is there {header.count(name)} times" for name in COLUMNS if header.count(name) > 1]
    if faults:
        raise PredictionsError(f"{path}, line 1: {listed(faults)}; expected exactly {','.join(COLUMNS)}")


class _RowParser:
    """Collects the values of rows, and every fault with its line and column."""

    def __init__(self, header: Sequence[str]) -> None:
        self.header = header
        self.faults: list[str] = []
        self._line_of_image: dict[str, int] = {}
        self._case_of_patient: dict[str, str] = {}
        self._texts: list[tuple[str, str, str]] = []
        self._magnification: list[int] = []
        self._target: list[int] = []
        self._probabilities: list[tuple[float, float]] = []
        self._predicted: list[int] = []

    def parse(self, line: int, cells: Sequence[str]) -> None:
        if len(cells) != len(self.header):
            self.faults.append(f"line {line}: {len(cells)} values, not {len(self.header)}")
            return
        row = dict(zip(self.header, cells, strict=True))
        self._texts.append((self._image(line, row["image"]), row["patient"], self._case(line, row)))
        self._magnification.append(self._integer(line, "magnification", row["magnification"]))
        self._target.append(self._class_index(line, "target", row["target"]))
        self._predicted.append(self._class_index(line, "predicted", row["predicted"]))
        self._probabilities.append(self._pair(line, row["prob_benign"], row["prob_malignant"]))

    def predictions(self) -> Predictions:
        image, patient, case = zip(*self._texts, strict=True)
        return Predictions(
            image=image,
            patient=patient,
            case=case,
            magnification=np.array(self._magnification, dtype=np.int64),
            target=np.array(self._target, dtype=np.int64),
            probabilities=np.array(self._probabilities, dtype=np.float64),
            predicted=np.array(self._predicted, dtype=np.int64),
        )

    def _fault(self, line: int, column: str, text: str) -> None:
        self.faults.append(f"line {line}, column {column}: {text}")

    def _image(self, line: int, text: str) -> str:
        first = self._line_of_image.setdefault(text, line)
        if first != line:
            self._fault(line, "image", f"{text!r} is on line {first} already")
        return text

    def _case(self, line: int, row: Mapping[str, str]) -> str:
        patient, case = row["patient"], row["case"]
        first = self._case_of_patient.setdefault(patient, case)
        if first != case:
            self._fault(line, "case", f"{case!r}, but an earlier row has patient {patient} in case {first!r}")
        return case

    def _integer(self, line: int, column: str, text: str) -> int:
        if text.isascii() and text.isdigit() and len(text) <= LONGEST_INTEGER:
            return int(text)
        self._fault(line, column, f"{text!r} is no integer")
        return 0

    def _class_index(self, line: int, column: str, text: str) -> int:
        if text not in CLASS_NAMES:
            self._fault(line, column, f"{text!r} is no class, expected {' or '.join(CLASS_NAMES)}")
            return 0
        return CLASS_NAMES.index(text)

    def _pair(self, line: int, benign: str, malignant: str) -> tuple[float, float]:
        before = len(self.faults)
        pair = self._probability(line, "prob_benign", benign), self._probability(line, "prob_malignant", malignant)
        if len(self.faults) == before and abs(sum(pair) - 1) > SUM_TOLERANCE:
            self._fault(line, "prob_benign and prob_malignant", f"{benign} and {malignant} do not sum to 1")
        return pair

    def _probability(self, line: int, column: str, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            self._fault(line, column, f"{text!r} is no number")
            return math.nan
        if not 0 <= value <= 1:
            self._fault(line, column, f"{text} is not between 0 and 1")
        return value
