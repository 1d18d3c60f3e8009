"""The table predictions.csv: one row per image, the border between networks and everything that is reported."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from breakhis_pl.data.breakhis import CLASS_NAMES
from breakhis_pl.errors import PredictionsError, ShapeError, join_truncated
from breakhis_pl.run_folder import write_text

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]
BoolArray: TypeAlias = NDArray[np.bool_]
NameArray: TypeAlias = NDArray[np.object_]

PREDICTIONS_CSV = "predictions.csv"
NAME_COLUMNS = ("image", "patient", "case")
COLUMNS = (*NAME_COLUMNS, "magnification", "target", "predicted")
"""Columns beside the probabilities, `prob_<class>` for every class; magnification only where it is known."""

SUM_TOLERANCE = 1e-6
"""Largest distance of the sum of a row's probabilities from 1: nine digits are written."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of a network beside the truth.

    Attributes:
        classes: Names of the classes; of two, the second one is the positive class.
        image: Name of each image, unique; (n,).
        patient: Patient of each image; (n,).
        case: Case of each image, the unit that intervals resample; (n,).
        magnification: int64, (n,); None if it is not known of all images.
        target: Index of the true class; int64, (n,).
        probabilities: float64, (n, n_classes), 0 to 1, rows sum to 1.
        predicted: Index of the predicted class; int64, (n,).

    Raises:
        ShapeError: If there are no images, or the arrays differ in length.
    """

    classes: tuple[str, ...]
    image: NameArray
    patient: NameArray
    case: NameArray
    magnification: IntArray | None
    target: IntArray
    probabilities: FloatArray
    predicted: IntArray

    def __post_init__(self) -> None:
        n = len(self.image)
        arrays = [self.patient, self.case, self.target, self.predicted]
        arrays += [] if self.magnification is None else [self.magnification]
        if n == 0 or any(array.shape != (n,) for array in arrays) or self.probabilities.shape != (n, self.n_classes):
            shapes = [array.shape for array in (*arrays, self.probabilities)]
            raise ShapeError(f"{n} images with arrays of shapes {shapes}; expected one row per image, at least one")

    def __len__(self) -> int:
        return len(self.image)

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def are_independent(self) -> bool:
        """Whether images are taken as independent, because neither patients nor cases are known."""
        return bool((self.case == self.image).all())

    @property
    def correct(self) -> BoolArray:
        """Whether each image is classified correctly; bool, (n,)."""
        return np.equal(self.predicted, self.target)

    @property
    def prob_positive(self) -> FloatArray:
        """Probability of the positive class, which is the last one; float64, (n,)."""
        return self.probabilities[:, -1]

    @cached_property
    def case_index(self) -> IntArray:
        """Index of each image's case among the sorted cases; int64, (n,)."""
        return np.unique(self.case, return_inverse=True)[1].astype(np.int64)

    def take(self, rows: NDArray[np.generic]) -> "Predictions":
        """Return the rows of an index or mask, in its order."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "classes"}
        taken: dict[str, Any] = {name: None if array is None else array[rows] for name, array in arrays.items()}
        return replace(self, **taken)

    def to_frame(self) -> pd.DataFrame:
        """Return the table as it is written."""
        names = np.array(self.classes, dtype=object)
        columns = {
            "image": self.image,
            "patient": self.patient,
            "case": self.case,
            **({} if self.magnification is None else {"magnification": self.magnification}),
            "target": names[self.target],
            **{f"prob_{name}": self.probabilities[:, index] for index, name in enumerate(self.classes)},
            "predicted": names[self.predicted],
        }
        return pd.DataFrame(columns)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write a table; probabilities have nine digits, which hold a float32 exactly."""
    write_text(path, predictions.to_frame().to_csv(index=False, float_format="%.9g"))


def read_predictions(path: Path) -> Predictions:
    """Read a table, which may come from anywhere, and check it.

    Raises:
        PredictionsError: If it cannot be read or is not consistent, with file, line, column and rule of each fault.
    """
    table = _read(path)
    classes = tuple(name.removeprefix("prob_") for name in table.columns if name.startswith("prob_"))
    classes = CLASS_NAMES if set(classes) == set(CLASS_NAMES) else classes  # malignant is positive in any order
    faults = [f"column {name} is missing" for name in COLUMNS if name not in table and name != "magnification"]
    faults += [f"column {name} is unknown" for name in table if name not in COLUMNS and not name.startswith("prob_")]
    faults += [f"column {name} is there twice" for name in table.columns[table.columns.duplicated()]]
    if "" in classes:
        faults.append("column prob_ names no class")
    if len(classes) < 2:
        faults.append("columns prob_<class> are missing; there must be two or more")
    if faults:
        raise PredictionsError(f"{path}: line 1: {join_truncated(faults)}")
    if table.empty:
        raise PredictionsError(f"{path}: has no rows; expected one per image")
    probabilities = table[[f"prob_{name}" for name in classes]].apply(pd.to_numeric, errors="coerce")
    faults = [f"line {line}: {rule}" for line, rule in sorted(_faults(table, classes, probabilities))]
    if faults:
        raise PredictionsError(f"{path}: {join_truncated(faults)}")
    index = {name: number for number, name in enumerate(classes)}
    return Predictions(
        classes=classes,
        **{name: table[name].to_numpy(dtype=object) for name in NAME_COLUMNS},
        magnification=table["magnification"].astype(np.int64).to_numpy() if "magnification" in table else None,
        target=table["target"].map(index).to_numpy(dtype=np.int64),
        probabilities=probabilities.to_numpy(dtype=np.float64),
        predicted=table["predicted"].map(index).to_numpy(dtype=np.int64),
    )


def _read(path: Path) -> pd.DataFrame:
    """Read the cells of a CSV file as text; the index is the number of the line."""
    try:
        table = pd.read_csv(
            path, dtype=str, header=None, keep_default_na=False, skip_blank_lines=False, encoding="utf-8-sig"
        )
    except OSError as error:
        raise PredictionsError(f"{path}: cannot be read ({error.strerror}); name a predictions.csv") from error
    except ValueError as error:  # not UTF-8, not a table, more values than columns
        raise PredictionsError(f"{path}: is not a CSV table ({str(error).splitlines()[0]})") from error
    table.columns, table.index = table.iloc[0], table.index + 1  # here, because pandas renames a column that is twice
    return table[1:][(table[1:] != "").any(axis=1)]


def _faults(table: pd.DataFrame, classes: tuple[str, ...], probabilities: pd.DataFrame) -> Iterator[tuple[int, str]]:
    """Yield line and rule of every fault."""
    for name in NAME_COLUMNS:
        for line in table.index[table[name].str.strip() == ""]:
            yield line, f"column {name} is empty"
    for line, image in table["image"][table["image"].duplicated()].items():
        yield line, f"column image: {image!r} is there twice"
    first_case = table.groupby("patient")["case"].transform("first")
    for line in table.index[table["case"] != first_case]:
        yield line, f"column case: patient {table['patient'][line]!r} is in case {first_case[line]!r} on another line"
    if "magnification" in table:
        for line in table.index[~table["magnification"].str.fullmatch(r"[0-9]{1,9}")]:
            yield line, f"column magnification: {table['magnification'][line]!r} is not an integer"
    for name in ("target", "predicted"):
        for line in table.index[~table[name].isin(classes)]:
            yield line, f"column {name}: {table[name][line]!r} is not one of {join_truncated(classes)}"
    is_probability = probabilities.ge(0) & probabilities.le(1)
    for name in probabilities:
        for line in table.index[~is_probability[name]]:
            yield line, f"column {name}: {table[name][line]!r} is not a number between 0 and 1"
    is_off = (probabilities.sum(axis=1) - 1).abs() > SUM_TOLERANCE
    for line in table.index[is_off & is_probability.all(axis=1)]:
        yield line, f"probabilities sum to {probabilities.loc[line].sum():.9g}, not 1"


def table_checksum(path: Path) -> str:
    """Return the checksum of a file's bytes, "sha256:9f86…"; metrics.json names its table by it."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def align(predictions: Predictions, reference: Predictions) -> Predictions:
    """Return the rows of a table in the order of another table's images.

    Raises:
        PredictionsError: If images, classes, cases or truth differ.
    """
    order, reference_order = np.argsort(predictions.image), np.argsort(reference.image)
    if predictions.classes != reference.classes:
        raise PredictionsError(f"classes {predictions.classes} and {reference.classes}: expected the same")
    if not np.array_equal(predictions.image[order], reference.image[reference_order]):
        differing = sorted(set(predictions.image) ^ set(reference.image))
        raise PredictionsError(f"{join_truncated(differing)}: in one table only; expected the same images in both")
    rows = np.empty(len(order), dtype=np.int64)
    rows[reference_order] = order
    aligned = predictions.take(rows)
    is_other = (aligned.target != reference.target) | (aligned.case != reference.case)
    if is_other.any():
        names = join_truncated(reference.image[is_other])
        raise PredictionsError(f"{names}: of another class or case in the other table; expected the same truth")
    return aligned


def shared_case_images(split: pd.DataFrame) -> frozenset[str]:
    """Return the test images of cases that also have images in train or val.

    Args:
        split: A run's split.csv: image, patient, case, subset.
    """
    is_test = split["subset"] == "test"
    is_shared = is_test & split["case"].isin(split["case"][~is_test])
    return frozenset(split["image"][is_shared])
