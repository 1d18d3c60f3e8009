import csv
from pathlib import Path

import numpy as np
import pytest

from breakhis_pl.errors import PredictionsError, ShapeError
from breakhis_pl.evaluation.predictions import COLUMNS, Predictions, read_predictions, write_predictions

HEADER = ",".join(COLUMNS)
ROW = "a.png,SOB_B_TA-14-4659,14-4659,200,benign,0.75,0.25,benign"


def some_predictions(images=("a.png", "b.png", "c.png")):
    n = len(images)
    prob_malignant = np.linspace(0.1, 0.9, n)
    return Predictions(
        image=tuple(images),
        patient=("SOB_B_TA-14-4659",) * n,
        case=("14-4659",) * n,
        magnification=np.full(n, 200),
        target=np.arange(n) % 2,
        probabilities=np.stack([1 - prob_malignant, prob_malignant], axis=1),
        predicted=(prob_malignant > 0.5).astype(np.int64),
    )


def write_rows(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "predictions.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def assert_same(read: Predictions, written: Predictions) -> None:
    assert (read.image, read.patient, read.case) == (written.image, written.patient, written.case)
    for column in ("magnification", "target", "predicted"):
        np.testing.assert_array_equal(getattr(read, column), getattr(written, column))
        assert getattr(read, column).dtype == np.int64
    np.testing.assert_allclose(read.probabilities, written.probabilities, rtol=5e-9)


def test_what_is_written_is_read_again(tmp_path):
    written = some_predictions()

    write_predictions(tmp_path / "predictions.csv", written)

    assert_same(read_predictions(tmp_path / "predictions.csv"), written)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.csv"]


def test_the_file_is_plain_csv_with_class_names_and_nine_digits(tmp_path):
    written = some_predictions(("a.png",))
    thirds = Predictions(
        written.image, written.patient, written.case, written.magnification, written.target,
        np.array([[2 / 3, 1 / 3]]), written.predicted,
    )  # fmt: skip

    write_predictions(tmp_path / "predictions.csv", thirds)

    text = (tmp_path / "predictions.csv").read_bytes().decode()
    assert text == f"{HEADER}\na.png,SOB_B_TA-14-4659,14-4659,200,benign,0.666666667,0.333333333,benign\n"


def test_any_file_name_survives(tmp_path):
    names = (
        'say "a", b.png',
        "line\nbreak.png",
        "carriage\rreturn.png",
        "Übersicht 图.png",
        " a .png",
    )
    written = some_predictions(names)

    write_predictions(tmp_path / "predictions.csv", written)

    assert read_predictions(tmp_path / "predictions.csv").image == names


def test_float32_probabilities_survive_exactly(tmp_path):
    prob = np.random.default_rng(0).random(200, dtype=np.float32)
    rows = some_predictions(tuple(map(str, range(200))))
    written = Predictions(
        rows.image, rows.patient, rows.case, rows.magnification, rows.target,
        np.stack([1 - prob, prob], axis=1).astype(np.float64), rows.predicted,
    )  # fmt: skip

    write_predictions(tmp_path / "predictions.csv", written)

    read = read_predictions(tmp_path / "predictions.csv").probabilities
    np.testing.assert_array_equal(read.astype(np.float32), written.probabilities.astype(np.float32))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "predictions.csv"
    path.write_text("old")
    broken = some_predictions()
    broken.predicted[2] = 7

    with pytest.raises(IndexError):
        write_predictions(path, broken)

    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["predictions.csv"]


def test_columns_may_come_in_any_order_and_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "predictions.csv"
    cells = dict(zip(COLUMNS, ROW.split(","), strict=True))
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(reversed(COLUMNS)))
        writer.writeheader()
        writer.writerow(cells)

    assert read_predictions(path).probabilities.tolist() == [[0.75, 0.25]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ROW.replace("0.75", "much"), "line 2, column prob_benign: 'much' is no number"),
        (ROW.replace("0.75", ""), "line 2, column prob_benign: '' is no number"),
        (ROW.replace("0.25", "nan"), "line 2, column prob_malignant: nan is not between 0 and 1"),
        (ROW.replace("0.25", "-0.25"), "line 2, column prob_malignant: -0.25 is not between 0 and 1"),
        (ROW.replace("0.75", "1.25"), "line 2, column prob_benign: 1.25 is not between 0 and 1"),
        (ROW.replace("0.75", "inf"), "line 2, column prob_benign: inf is not between 0 and 1"),
        (ROW.replace("0.75", "0.74"), "line 2, column prob_benign and prob_malignant: 0.74 and 0.25 do not sum to 1"),
        (ROW.replace("200,benign", "200,healthy"), "line 2, column target: 'healthy' is no class, expected benign or"),
        (ROW.replace("0.25,benign", "0.25,1"), "line 2, column predicted: '1' is no class"),
        (ROW.replace("200", "200X"), "line 2, column magnification: '200X' is no integer"),
        (ROW.replace("200", "200.0"), "line 2, column magnification: '200.0' is no integer"),
        (ROW + ",more", "line 2: 9 values, not 8"),
        ("a.png,benign", "line 2: 2 values, not 8"),
    ],
)
def test_a_wrong_value_is_named_with_its_line_and_column(tmp_path, row, message):
    path = write_rows(tmp_path, row)

    with pytest.raises(PredictionsError, match=message) as caught:
        read_predictions(path)

    assert str(path) in str(caught.value)


def test_sums_within_nine_digits_and_float32_pass(tmp_path):
    path = write_rows(tmp_path, ROW.replace("0.75", "0.750000119").replace("0.25", "0.249999999"))

    assert len(read_predictions(path)) == 1


def test_all_faults_are_in_one_message_the_first_ten_by_name(tmp_path):
    path = write_rows(tmp_path, *(ROW.replace("a.png", f"{i}.png").replace("0.75", "x") for i in range(13)))

    with pytest.raises(PredictionsError, match=r"line 11, column prob_benign: 'x' is no number and 3 more"):
        read_predictions(path)


def test_an_image_on_two_lines_is_refused(tmp_path):
    path = write_rows(tmp_path, ROW, ROW)

    with pytest.raises(PredictionsError, match=r"line 3, column image: 'a.png' is on line 2 already"):
        read_predictions(path)


def test_a_patient_in_two_cases_is_refused(tmp_path):
    path = write_rows(tmp_path, ROW, ROW.replace("a.png", "b.png").replace(",14-4659", ",14-4660"))

    with pytest.raises(
        PredictionsError, match=r"line 3, column case: '14-4660', but .* SOB_B_TA-14-4659 in .*'14-4659'"
    ):
        read_predictions(path)


@pytest.mark.parametrize(("column", "cell"), [("image", "a.png"), ("patient", "SOB_B_TA-14-4659"), ("case", "14-4659")])
@pytest.mark.parametrize("blank", ["", " ", "\t"])
def test_an_empty_name_is_refused_by_line_number(tmp_path, column, cell, blank):
    cells = dict(zip(COLUMNS, ROW.split(","), strict=True)) | {"image": "b.png", column: blank}
    path = write_rows(tmp_path, ROW, ",".join(cells[name] for name in COLUMNS))

    with pytest.raises(PredictionsError, match=rf"line 3, column {column}: '(|[ ]|\\t)' is no name") as caught:
        read_predictions(path)
    assert cell not in str(caught.value)


@pytest.mark.parametrize("text", ["0_5", "\u0660.\u0665", "0x1", "1e", "0." + "5" * 100, "1,5"])
def test_what_only_python_takes_for_a_probability_is_refused(tmp_path, text):
    path = write_rows(tmp_path, ROW.replace("0.75", f'"{text}"'))

    with pytest.raises(PredictionsError, match=r"line 2, column prob_benign: .* is no number"):
        read_predictions(path)


def test_long_and_unseen_cells_make_short_messages_on_one_line(tmp_path):
    cells = [f'"{"x" * 100_000}"', '"\u202e\x1b[31m"', '"a\nb"']
    path = tmp_path / "predictions.csv"
    rows = "".join(
        ROW.replace("a.png", f"{i}.png").replace("200,benign", f"{cell},{cell}") + "\n" for i, cell in enumerate(cells)
    )
    path.write_text(f"{HEADER}\n{rows}", encoding="utf-8", newline="")

    with pytest.raises(PredictionsError, match="is no integer") as caught:
        read_predictions(path)
    assert len(str(caught.value)) < 1500
    assert str(caught.value).isprintable()


def test_a_line_number_counts_the_breaks_inside_file_names(tmp_path):
    path = write_rows(tmp_path, ROW.replace("a.png", '"a\nb.png"'), ROW.replace("200,benign", "200,none"))

    with pytest.raises(PredictionsError, match=r"line 4, column target: 'none'"):
        read_predictions(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (HEADER.replace(",case", ""), "line 1: column case is missing; expected exactly image,patient,"),
        (HEADER + ",logit", "column 'logit' is unknown"),
        (HEADER + ",image", "column image is there 2 times"),
    ],
)
def test_a_wrong_header_is_refused(tmp_path, header, message):
    with pytest.raises(PredictionsError, match=message):
        read_predictions(write_rows(tmp_path, ROW, header=header))


def test_a_table_without_rows_is_refused(tmp_path):
    with pytest.raises(PredictionsError, match="holds no row"):
        read_predictions(write_rows(tmp_path))


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "predictions.csv").touch()

    with pytest.raises(PredictionsError, match="column image is missing"):
        read_predictions(tmp_path / "predictions.csv")


def test_an_open_quote_is_refused(tmp_path):
    with pytest.raises(PredictionsError, match="line 2: unexpected end of data; expected a table in CSV format"):
        read_predictions(write_rows(tmp_path, '"a.png'))


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(PredictionsError, match=r"nothing.csv cannot be read \(No such file"):
        read_predictions(tmp_path / "nothing.csv")
    with pytest.raises(PredictionsError, match="cannot be read"):
        read_predictions(tmp_path)


def test_columns_of_different_length_are_refused():
    rows = some_predictions()

    with pytest.raises(ShapeError, match=r"3 images, but target has shape \(2,\), not \(3,\)"):
        Predictions(
            rows.image, rows.patient, rows.case, rows.magnification, rows.target[:2], rows.probabilities, rows.predicted
        )


def test_select_keeps_rows_in_order_and_wants_one_value_per_image():
    rows = some_predictions()

    assert rows.select(np.array([True, False, True])).image == ("a.png", "c.png")
    with pytest.raises(ShapeError, match=r"keep has shape \(2,\); expected \(3,\)"):
        rows.select(np.array([True, False]))


def test_the_subtype_follows_from_the_patient():
    rows = some_predictions(("a", "b"))
    mixed = Predictions(
        rows.image, ("SOB_M_PC-14-9146", "Ms. X"), ("14-9146", "x"), rows.magnification, rows.target,
        rows.probabilities, rows.predicted,
    )  # fmt: skip

    assert mixed.subtype == ("PC", None)


@pytest.mark.parametrize("text", ["99999999999999999999999", "-200", "2_00", "²"])
def test_a_magnification_that_cannot_be_meant_is_refused(text: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path, ROW.replace(",200,", f",{text},"))

    with pytest.raises(PredictionsError, match=rf"line 2.*magnification.*'{text}' is no integer"):
        read_predictions(path)
