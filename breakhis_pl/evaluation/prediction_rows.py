"""Rows of a predictions.csv, checked cell by cell: every fault by line and column."""

import math
from collections.abc import Mapping, Sequence

from breakhis_pl.data.breakhis import CLASS_NAMES
from breakhis_pl.evaluation.texts import named, quoted

LONGEST_INTEGER = 9
"""Digits of an integer that can be meant."""

LONGEST_NUMBER = 40
"""Characters of a probability that can be meant."""

SUM_TOLERANCE = 1e-6
"""How far two probabilities may miss a sum of 1: softmax in float32 errs by 1e-7, nine digits by 1e-9."""

MOST_FAULTS = 10
"""That are spelled out; a file that is something else has one in every cell."""


class RowParser:
    """Collects the values of rows, and every fault with its line and column.

    Args:
        header: Names of the columns, in the order of the cells.

    Attributes:
        image: Name of each image; n_rows of them, as of all that follow, where there is no fault.
        patient: Patient of each image.
        case: Case of each image.
        magnification: Of each image.
        target: Index of the true class.
        probabilities: Of benign and malignant.
        predicted: Index of the predicted class.
        n_rows: Rows so far.
        n_faults: Faults so far.
    """

    def __init__(self, header: Sequence[str]) -> None:
        self.header = header
        self.image: list[str] = []
        self.patient: list[str] = []
        self.case: list[str] = []
        self.magnification: list[int] = []
        self.target: list[int] = []
        self.probabilities: list[tuple[float, float]] = []
        self.predicted: list[int] = []
        self.n_rows = 0
        self.n_faults = 0
        self._faults: list[str] = []
        self._line_of_image: dict[str, int] = {}
        self._case_of_patient: dict[str, str] = {}

    def parse(self, line: int, cells: Sequence[str]) -> None:
        """Takes the values of a row, or notes its faults.

        Args:
            line: Number of the line it begins on.
            cells: Its values.
        """
        self.n_rows += 1
        if len(cells) != len(self.header):
            self._note(f"line {line}: {len(cells)} values, not {len(self.header)}")
            return
        row = dict(zip(self.header, cells, strict=True))
        self.image.append(self._image(line, self._name(line, "image", row)))
        self.patient.append(self._name(line, "patient", row))
        self.case.append(self._case(line, row))
        self.magnification.append(self._integer(line, "magnification", row["magnification"]))
        self.target.append(self._class_index(line, "target", row["target"]))
        self.predicted.append(self._class_index(line, "predicted", row["predicted"]))
        self.probabilities.append(self._pair(line, row["prob_benign"], row["prob_malignant"]))

    def fault_text(self) -> str:
        """The first faults, then how many more there are."""
        n_more = self.n_faults - len(self._faults)
        return ", ".join(self._faults) + (f" and {n_more:,} more" if n_more else "")

    def _note(self, fault: str) -> None:
        self.n_faults += 1
        if len(self._faults) < MOST_FAULTS:
            self._faults.append(fault)

    def _fault(self, line: int, column: str, text: str) -> None:
        self._note(f"line {line}, column {column}: {text}")

    def _name(self, line: int, column: str, row: Mapping[str, str]) -> str:
        text = row[column]
        if not text.strip():
            self._fault(line, column, f"{quoted(text)} is no name")
        return text

    def _image(self, line: int, text: str) -> str:
        first = self._line_of_image.setdefault(text, line)
        if first != line and text.strip():
            self._fault(line, "image", f"{quoted(text)} is on line {first} already")
        return text

    def _case(self, line: int, row: Mapping[str, str]) -> str:
        patient, case = row["patient"], self._name(line, "case", row)
        first = self._case_of_patient.setdefault(patient, case)
        if first != case and patient.strip() and case.strip():
            text = f"{quoted(case)}, but an earlier row has patient {named(patient)} in case {quoted(first)}"
            self._fault(line, "case", text)
        return case

    def _integer(self, line: int, column: str, text: str) -> int:
        if text.isascii() and text.isdigit() and len(text) <= LONGEST_INTEGER:
            return int(text)
        self._fault(line, column, f"{quoted(text)} is no integer")
        return 0

    def _class_index(self, line: int, column: str, text: str) -> int:
        if text not in CLASS_NAMES:
            self._fault(line, column, f"{quoted(text)} is no class, expected {' or '.join(CLASS_NAMES)}")
            return 0
        return CLASS_NAMES.index(text)

    def _pair(self, line: int, benign: str, malignant: str) -> tuple[float, float]:
        before = self.n_faults
        pair = self._probability(line, "prob_benign", benign), self._probability(line, "prob_malignant", malignant)
        if self.n_faults == before and abs(sum(pair) - 1) > SUM_TOLERANCE:
            self._fault(line, "prob_benign and prob_malignant", f"{benign} and {malignant} do not sum to 1")
        return pair

    def _probability(self, line: int, column: str, text: str) -> float:
        text = text.strip()
        try:
            # float takes digits of any script, and 0_5 for 05
            value = float(text) if text.isascii() and "_" not in text and len(text) <= LONGEST_NUMBER else None
        except ValueError:
            value = None
        if value is None:
            self._fault(line, column, f"{quoted(text)} is no number")
            return math.nan
        if not 0 <= value <= 1:
            self._fault(line, column, f"{text} is not between 0 and 1")
        return value
