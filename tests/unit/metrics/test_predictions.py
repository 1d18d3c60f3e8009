"""The table predictions.csv, which may come from anywhere."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from breakhis_pl.errors import PredictionsError, ShapeError
from breakhis_pl.metrics.evaluation import evaluate
from breakhis_pl.metrics.paired import concatenate
from breakhis_pl.metrics.predictions import read_predictions, shared_case_images, write_predictions
from tests.unit.metrics.tables import random_table

HEADER = "image,patient,case,magnification,target,prob_benign,prob_malignant,predicted"
ROWS = (
    "a.png,P1,C1,40,benign,0.75,0.25,benign",
    "b.png,P2,C1,100,malignant,0.5,0.5,benign",
    "c.png,P1,C1,200,benign,1e-3,0.999,malignant",
)
"""Lines 2 to 4 of a table."""


def write(folder: Path, *lines: str) -> Path:
    path = folder / "other.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    """Return the message of the error that a table raises."""
    with pytest.raises(PredictionsError) as caught:
        read_predictions(path)
    return str(caught.value)


@pytest.mark.parametrize("n_classes", [2, 3, 8])
def test_a_table_is_read_as_it_was_written_to_nine_digits(tmp_path: Path, n_classes: int) -> None:
    rng = np.random.default_rng(n_classes)
    probabilities = rng.dirichlet(np.full(n_classes, 0.05), 120).astype(np.float32)
    written = replace(random_table(0, n_classes=n_classes), probabilities=probabilities.astype(np.float64))
    write_predictions(tmp_path / "first.csv", written)
    read = read_predictions(tmp_path / "first.csv")
    write_predictions(tmp_path / "second.csv", read)
    assert read.classes == written.classes
    for name in ("image", "patient", "case", "magnification", "target", "predicted"):
        assert getattr(read, name).tolist() == getattr(written, name).tolist(), name
    np.testing.assert_array_equal(read.probabilities.astype(np.float32), probabilities)
    assert (tmp_path / "first.csv").read_bytes() == (tmp_path / "second.csv").read_bytes()


def test_a_table_without_magnification_stays_without(tmp_path: Path) -> None:
    rows = replace(random_table(0), magnification=None)
    write_predictions(tmp_path / "table.csv", concatenate([rows.take(np.arange(60)), rows.take(np.arange(60, 120))]))
    read = read_predictions(tmp_path / "table.csv")
    assert read.magnification is None
    assert read.image.tolist() == rows.image.tolist()
    assert "per_magnification" not in evaluate(read, n_draws=100)


FAULTY_ROWS = [
    *(f"d.png,P1,C1,40,benign,{probabilities},benign" for probabilities in ("0.5,0.4", "0.6,0.6", "0.5,0.50001")),
    *(f"{row},{surplus}" for row in ROWS for surplus in ("", "surplus")),
    *("d.png,P1,C1,40,benign,0.75,0.25", "d.png"),
]


@pytest.mark.parametrize("line", [2, 4])
@pytest.mark.parametrize("row", FAULTY_ROWS)
def test_a_row_of_another_length_or_sum_is_refused_with_its_line(tmp_path: Path, line: int, row: str) -> None:
    rows = list(ROWS)
    rows[line - 2] = row
    message = refusal(write(tmp_path, HEADER, *rows))
    assert "other.csv" in message
    assert f"line {line}" in message


@pytest.mark.parametrize("column", [*HEADER.split(","), "stain", "Image"])
def test_a_column_that_is_missing_twice_or_unknown_is_refused_with_its_name(tmp_path: Path, column: str) -> None:
    frame = pd.read_csv(write(tmp_path, HEADER, *ROWS), dtype=str)
    surplus = write(tmp_path, f"{HEADER},{column}", *(f"{row},0" for row in ROWS))
    messages = {refusal(surplus): column}
    if column in frame and column != "magnification":
        missing = write(tmp_path, frame.drop(columns=column).to_csv(index=False))
        messages[refusal(missing)] = column.replace("_benign", "").replace("_malignant", "")
    for message, name in messages.items():
        for part in ("other.csv", "line 1", name):
            assert part in message


CELL_FAULTS = [
    *((name, blank) for name in ("image", "patient", "case") for blank in ("", "  ")),
    *((name, other) for name in ("target", "predicted") for other in ("", "Benign", "2", "lobular")),
    *(("prob_malignant", text) for text in ("", "nan", "inf", "-inf", "-0.5", "2.0", "1e400", "half", "0x1", "0,5")),
    *(("magnification", text) for text in ("", "200X", "40.5", "-40", "1e2", "9" * 10)),
    ("image", "a.png"),
    ("case", "C2"),
]


@pytest.mark.parametrize(("column", "text"), CELL_FAULTS)
def test_a_faulty_cell_is_refused_with_file_line_and_column(tmp_path: Path, column: str, text: str) -> None:
    cells = ROWS[2].split(",")
    cells[HEADER.split(",").index(column)] = f'"{text}"'
    message = refusal(write(tmp_path, HEADER, *ROWS[:2], ",".join(cells)))
    for part in ("other.csv", "line 4", column):
        assert part in message


@pytest.mark.parametrize(
    "content", [b"", b"\n", f"{HEADER}\n".encode(), HEADER.encode("utf-16"), f"{HEADER}\n\xfc.png".encode("latin-1")]
)
def test_a_file_without_rows_or_of_another_encoding_is_refused_with_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.csv"
    path.write_bytes(content)
    assert "other.csv" in refusal(path)
    assert "missing.csv" in refusal(tmp_path / "missing.csv")


def test_columns_may_come_in_any_order_and_rows_from_other_programs(tmp_path: Path) -> None:
    columns = HEADER.split(",")
    names = ['x, "y"/ä.png', "日本.png", "NA"]  # a patient of this name is no missing value
    frame = pd.DataFrame([row.split(",") for row in ROWS], columns=columns).assign(image=names, patient=names)
    text = frame[sorted(columns, reverse=True)].to_csv(index=False, lineterminator="\r\n") + "\r\n,,,,,,,\r\n\r\n"
    (tmp_path / "other.csv").write_bytes(text.encode("utf-8-sig"))
    found = read_predictions(tmp_path / "other.csv")
    assert found.classes == ("benign", "malignant")  # prob_malignant comes first here
    assert found.image.tolist() == found.patient.tolist() == names
    assert found.case.tolist() == ["C1"] * 3
    assert found.magnification.tolist() == [40, 100, 200]
    assert (found.target.tolist(), found.predicted.tolist()) == ([0, 1, 0], [0, 0, 1])
    assert found.probabilities.tolist() == [[0.75, 0.25], [0.5, 0.5], [0.001, 0.999]]


def test_arrays_of_different_length_and_empty_tables_are_refused() -> None:
    rows = random_table(0)
    with pytest.raises(ShapeError):
        replace(rows, target=rows.target[1:])
    with pytest.raises(ShapeError):
        replace(rows, probabilities=rows.probabilities[:, :1])
    with pytest.raises(ShapeError):
        rows.take(np.array([], dtype=np.int64))


def test_shared_images_are_the_test_images_of_cases_in_other_subsets() -> None:
    split = pd.DataFrame(
        [("a", "1", "train"), ("b", "1", "test"), ("c", "2", "test"), ("d", "3", "val"), ("e", "3", "test")],
        columns=["image", "case", "subset"],
    )
    assert shared_case_images(split) == {"b", "e"}
    assert shared_case_images(split[split["subset"] == "test"]) == frozenset()
