import csv
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakhis_pl.evaluation.csv_tables import csv_text, read_columns, read_header_and_rows
from breakhis_pl.evaluation.file_texts import LARGEST_FILE, DamagedFileError
from breakhis_pl.evaluation.predictions import MOST_ROWS, Predictions, read_predictions, write_predictions

FILE_NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=40)
ODD_NAMES = FILE_NAMES | st.text(
    alphabet="\r\n\t,;'\"=+@<>&|`$\\ \u202e\u2066\u200b\ufeff\x07\x1b\x85\u2028ä名", min_size=1, max_size=12
)
NAMES = ODD_NAMES.filter(lambda name: bool(name.strip()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


@given(names=st.lists(NAMES, min_size=1, max_size=5, unique=True), patient=NAMES, case=NAMES)
def test_any_name_comes_back_from_a_table_as_it_was_written(
    folder: Path, names: list[str], patient: str, case: str
) -> None:
    n = len(names)
    written = Predictions(
        image=tuple(names),
        patient=(patient,) * n,
        case=(case,) * n,
        magnification=np.full(n, 200),
        target=np.zeros(n, dtype=np.int64),
        probabilities=np.tile([0.75, 0.25], (n, 1)),
        predicted=np.zeros(n, dtype=np.int64),
    )
    write_predictions(folder / "predictions.csv", written)
    read = read_predictions(folder / "predictions.csv")

    assert (read.image, read.patient, read.case) == (written.image, written.patient, written.case)


@given(rows=st.lists(st.tuples(ODD_NAMES, ODD_NAMES), max_size=6))
def test_any_cells_come_back_by_pythons_own_reader(rows: list[tuple[str, str]]) -> None:
    text = csv_text(("a", "b"), rows)

    assert list(csv.reader(io.StringIO(text, newline=""), strict=True)) == [["a", "b"], *map(list, rows)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,patient\n".encode("utf-16"), "it is in UTF-16; expected text in UTF-8"),
        ("image,patient\n".encode("utf-32"), "it is in UTF-32"),
        ("image,patient\n".encode("utf-16-le"), "it is no text, for it holds zero bytes"),
        (b"\x89PNG\r\n\x1a\n" + bytes(5000), "it is a PNG picture; expected text"),
        (b"\xff\xd8\xff\xe0" + bytes(5000), "it is a JPEG picture"),
        (b"PK\x03\x04" + bytes(5000), "it is a ZIP archive, as spreadsheets are"),
        (b"\x1f\x8b" + bytes(50), "it is compressed with gzip"),
        (b"%PDF-1.7", "it is a PDF file"),
        (b"," * 1000, "line 1 has 1,001 columns; expected at most 100"),
        (b'a,b\n"c', "line 2: unexpected end of data; expected a table in CSV format"),
        (b"a,b\n" + b"c" * 200_000 + b",d", "line 2: field larger than field limit"),
        (b"x" * (LARGEST_FILE + 1), "it has more than 16 MiB"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_table_is_named_in_a_few_words(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)

    with pytest.raises(DamagedFileError, match=message) as caught:
        list(read_header_and_rows(path)[1])
    assert len(str(caught.value)) < 200


def test_rows_carry_the_line_they_begin_on_and_empty_lines_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text('a,b\n\n"1\n",2\n3,4\n')

    assert [(line, row["b"]) for line, row in read_columns(tmp_path / "table.csv", ("b",))] == [(3, "2"), (5, "4")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,c\n1,2\n", "column b is missing"),
        ("", "column a, b is missing"),
        ("a,b,b\n1,2,3\n", "column 'b' is there 2 times"),
        ("a,b\n1,2\n1\n", "line 3 has 1 values, not 2"),
    ],
)
def test_a_table_without_its_columns_or_values_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "table.csv").write_text(text)

    with pytest.raises(DamagedFileError, match=message):
        list(read_columns(tmp_path / "table.csv", ("a", "b")))


def test_a_table_of_more_rows_than_can_be_meant_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    header = "image,patient,case,magnification,target,prob_benign,prob_malignant,predicted"
    rows = "".join(f"{i},p,c,40,benign,1,0,benign\n" for i in range(MOST_ROWS + 1))
    path.write_text(f"{header}\n{rows}")

    with pytest.raises(
        ValueError, match=r"predictions\.csv: line 100002: more than 100,000 rows; expected one per image"
    ):
        read_predictions(path)


@pytest.mark.parametrize("line", [b"\n", b"x\n", b'""\n', b",,,,,,,\n"])
def test_a_file_that_is_all_faults_takes_little_memory(tmp_path: Path, line: bytes) -> None:
    import tracemalloc

    path = tmp_path / "predictions.csv"
    header = b"image,patient,case,magnification,target,prob_benign,prob_malignant,predicted\n"
    path.write_bytes(header + line * (500_000 // len(line)))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"predictions\.csv"):
        read_predictions(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < LARGEST_FILE + 8 * 1024**2  # the buffer that is read into, and little more
