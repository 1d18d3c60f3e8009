"""Tables and records from other hands, as those who evaluate, read a page or compare runs meet them."""

import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from breakhis_pl.errors import PredictionsError, RunFolderError
from breakhis_pl.evaluation import comparison
from breakhis_pl.evaluation.comparison import write_comparison
from breakhis_pl.evaluation.gallery import GALLERY
from breakhis_pl.evaluation.intervals import MOST_CASES, case_intervals
from breakhis_pl.evaluation.metrics import write_metrics
from breakhis_pl.evaluation.predictions import Predictions, read_predictions, table_checksum, write_predictions
from breakhis_pl.evaluation.report import write_report
from breakhis_pl.evaluation.run_metrics import evaluate_table
from tests.evaluation.page_outline import Outline, outline_of
from tests.evaluation.run_folders import run_document, table
from tests.evaluation.run_folders import write_run as write_small_run
from tests.evaluation.written_runs import add_gallery, drawn_predictions, write_run
from tests.programs import run_program

DAMAGED_HISTORIES = {
    "text for numbers": b"epoch,train_loss\nx,nan\n",
    "binary": bytes(range(256)) * 4,
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "empty": b"",
    "a gap": b"epoch,train_loss,train_accuracy,test_loss,test_accuracy\n1,1,1,1,1\n3,1,1,1,1\n",
    "an open quote": b'epoch,"train_loss\n',
}
ODD = "\u202e<i>&\"'|`\r\n,=cmd\x07\x1b[31m\u200b"


def report_of(folder: Path) -> Outline:
    return outline_of(write_report(folder).read_text(encoding="utf-8"))


def replaced(predictions: Predictions, **columns: Any) -> Predictions:
    return Predictions(**{name: getattr(predictions, name) for name in predictions.__slots__} | columns)


def evaluated(folder: Path) -> Path:
    """The run with a metrics.json as evaluate.py writes it."""
    write_metrics(folder / "test/metrics.json", evaluate_table(folder / "test/predictions.csv", n_draws=100))
    return folder


def exchange_probabilities(folder: Path) -> None:
    """Another table of the same images with the same decisions: counts and confusion matrix stay."""
    path = folder / "test/predictions.csv"
    rows = read_predictions(path)
    malignant = np.where(rows.predicted == 1, 0.6, 0.4)
    write_predictions(path, replaced(rows, probabilities=np.column_stack([1 - malignant, malignant])))


def unseen(text: str) -> set[str]:
    return {character for character in text if not character.isprintable() and character != "\n"}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("content", DAMAGED_HISTORIES.values(), ids=DAMAGED_HISTORIES)
def test_a_report_says_that_the_history_cannot_be_read_and_shows_the_rest(tmp_path: Path, content: bytes) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "history.csv").write_bytes(content)
    page = report_of(folder)

    training = page.text().split("history.csv could not be read: ")[1]
    assert "the result above does not rest on them" in training
    assert "Training" in [element.text for element in page.all("h2")]
    assert "ROC curve with area" in str([element.attributes["alt"] for element in page.all("img")])


@pytest.mark.parametrize("content", DAMAGED_HISTORIES.values(), ids=DAMAGED_HISTORIES)
def test_a_comparison_names_the_run_whose_history_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    write_small_run(tmp_path, "whole", predictions=table())
    (write_small_run(tmp_path, "torn", predictions=table((1,))) / "history.csv").write_bytes(content)
    page = write_comparison(tmp_path).read_text(encoding="utf-8")

    (row,) = [line for line in page.splitlines() if line.startswith("| torn | finished |") and "damaged" in line]
    assert "history.csv is damaged: " in row
    assert "torn and whole: no difference" in page


def test_damage_is_named_beside_the_error_of_a_failed_run(tmp_path: Path) -> None:
    failed = run_document() | {"status": "failed", "error": "disk full\nTraceback"}
    (write_small_run(tmp_path, "a", failed) / "history.csv").write_text("epoch\n")

    assert (
        "| a | failed | resnet18 | disk full; history.csv is damaged: column" in write_comparison(tmp_path).read_text()
    )


def test_metrics_keep_the_checksum_of_the_table_they_were_computed_from(tmp_path: Path) -> None:
    folder = evaluated(write_run(tmp_path / "run"))
    metrics = json.loads((folder / "test/metrics.json").read_text())

    assert metrics["predictions_checksum"] == table_checksum(folder / "test/predictions.csv")
    assert metrics["predictions_checksum"].startswith("sha256:")
    with pytest.raises(PredictionsError, match=r"nothing\.csv cannot be read"):
        table_checksum(tmp_path / "nothing.csv")


@pytest.mark.usefixtures("undrawn")
def test_a_table_exchanged_under_its_metrics_is_noticed_and_computing_them_again_mends_it(tmp_path: Path) -> None:
    folder = evaluated(write_run(tmp_path / "my run"))
    exchange_probabilities(folder)

    with pytest.raises(RunFolderError, match=r"predictions\.csv.*`uv run evaluate\.py predictions="):
        write_report(folder)
    assert not (folder / "report.html").exists()

    assert report_of(evaluated(folder))


def test_a_comparison_shows_no_number_of_a_run_whose_files_do_not_belong_together(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1), ("c", 2)):
        evaluated(write_run(tmp_path / name, drawn_predictions(seed=seed)))
    exchange_probabilities(tmp_path / "b")
    page = write_comparison(tmp_path).read_text(encoding="utf-8")

    assert "2 of 3 runs with a result." in page
    (row,) = [line for line in page.splitlines() if line.startswith("| b |")]
    assert "test: metrics.json was computed from another predictions.csv" in row
    assert "uv run evaluate.py predictions=" in row
    assert "a and c:" in page
    assert "a and b" not in page


@pytest.mark.usefixtures("undrawn")
def test_older_metrics_without_a_checksum_are_told_by_counts_and_confusion_matrix(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    metrics = json.loads((folder / "test/metrics.json").read_text())
    assert "predictions_checksum" not in metrics
    assert report_of(folder)

    rows = read_predictions(folder / "test/predictions.csv")
    first = np.arange(len(rows)) == 0
    write_predictions(
        folder / "test/predictions.csv", replaced(rows, predicted=np.where(first, 1 - rows.predicted, rows.predicted))
    )

    with pytest.raises(RunFolderError, match=r"metrics\.json has the confusion matrix .*anew with `uv run"):
        write_report(folder)


def test_metrics_changed_by_hand_are_noticed(tmp_path: Path) -> None:
    folder = evaluated(write_run(tmp_path / "run"))
    path = folder / "test/metrics.json"
    metrics = json.loads(path.read_text())
    path.write_text(json.dumps(metrics | {"confusion_matrix": [[45, 0], [0, 95]]}))

    with pytest.raises(RunFolderError, match="confusion matrix"):
        write_report(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weighted_f1": {"value": "high"}}, "weighted_f1.value is 'high'; expected a number"),
        ({"weighted_f1": {"value": 10**400}}, "weighted_f1.value is 1000"),
        ({"ece": {"value": 0.1, "ci95": [0, float("nan")]}}, "ece.ci95 is .*expected two numbers or null"),
        ({"per_class": {"benign": {"support": 1.5}}}, "per_class.benign.support is 1.5"),
        ({"per_class": []}, "per_class is ..; expected an object"),
        ({"without_siblings": {}}, "without_siblings.n_images is missing"),
        ({"without_siblings": {"n_images": 3, "accuracy": "x"}}, "without_siblings.accuracy is 'x'"),
        ({"per_subtype": {"XX": {}}}, "per_subtype names 'XX'; expected one of A, F"),
        ({"per_subtype": {"A": {}}}, "per_subtype.A.n_images is missing"),
        ({"per_magnification": {"40": {"n_images": 3}}}, "per_magnification.40.accuracy is missing"),
        ({"per_magnification": {"<b>": {}}}, "per_magnification names '<b>'; expected numbers"),
        ({"calibrated": {"temperature": "warm"}}, "calibrated.temperature is 'warm'"),
        ({"confusion_matrix": [[1, 2], [3, -4]]}, "confusion_matrix is .*expected rows of counts"),
        ({"predictions_checksum": 3}, "predictions_checksum is 3; expected a text"),
        ({"n_draws": -1}, "n_draws is -1"),
    ],
)
def test_what_a_page_cannot_show_of_metrics_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = write_run(tmp_path / "run", drawn_predictions(images_per_patient=1))
    path = folder / "test/metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))

    with pytest.raises(RunFolderError, match=rf"metrics\.json is damaged .{message}.*write it anew with `uv run"):
        write_report(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"versions": ["torch"]}, "versions is .*expected an object"),
        ({"data": {"n_images": {"val": {"benign": "x"}}}}, "benign is 'x'; expected a number"),
        ({"config": {"data": {"magnification": [-40]}}}, "config.data.magnification is"),
        ({"config": {"seed": 10**400}}, "config.seed is 1000"),
        ({"config": []}, "config is ..; expected an object"),
        ({"status": "x" * 5000}, "expected one of running, finished, failed"),
    ],
)
def test_what_a_page_cannot_show_of_a_run_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = write_run(tmp_path / "run", drawn_predictions(images_per_patient=1), facts=change)
    if "config" in change:
        path = folder / "run.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    with pytest.raises(RunFolderError, match=f"run.json is damaged: .*{message}") as caught:
        write_report(folder)
    assert len(str(caught.value)) < 600


def test_json_that_nests_without_end_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", drawn_predictions(images_per_patient=1))
    for depth in (100, 100_000):
        (folder / "run.json").write_text('{"status": "finished", "config": {"a": ' + "[" * depth + "]" * depth + "}}")

        with pytest.raises(RunFolderError, match=r"run\.json is damaged"):
            write_report(folder)


@pytest.mark.usefixtures("undrawn")
def test_a_record_without_commit_and_command_has_a_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", drawn_predictions(images_per_patient=1))
    (folder / "run.json").write_text('{"status": "finished", "command": "uv run train.py"}')

    assert "uv run train.py" in report_of(folder).text()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("content", [b"GIF89a", b"\xff\xd8\xff" + bytes(10), b"<svg onload=alert(1)>", b""])
def test_a_gallery_of_files_that_are_no_jpeg_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = write_run(tmp_path / "run", drawn_predictions(images_per_patient=1))
    add_gallery(folder, n_per_kind=1)
    (folder / "test" / GALLERY / "01.jpg").write_bytes(content)

    with pytest.raises(RunFolderError, match=r"01\.jpg is no picture of a gallery: it is no JPEG"):
        write_report(folder)


@pytest.mark.usefixtures("undrawn")
def test_a_gallery_of_a_huge_file_or_one_picture_many_times_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", drawn_predictions(images_per_patient=1))
    add_gallery(folder, n_per_kind=1)
    gallery = folder / "test" / GALLERY
    entries = json.loads((gallery / "gallery.json").read_text())
    with (gallery / "01.jpg").open("ab") as file:
        file.write(bytes(3 * 1024**2))
    with pytest.raises(RunFolderError, match=r"01\.jpg is no picture of a gallery: 2,097,153 bytes or more"):
        write_report(folder)
    (gallery / "gallery.json").write_text(json.dumps(entries[:1] * 2))
    with pytest.raises(RunFolderError, match=r"gallery/01\.jpg is there more than once"):
        write_report(folder)
    (gallery / "gallery.json").write_text(json.dumps([1] * 3001))
    with pytest.raises(RunFolderError, match="3,001 entries; expected at most 3,000"):
        write_report(folder)


def test_unseen_characters_of_names_are_written_out_on_every_page(tmp_path: Path) -> None:
    drawn = drawn_predictions(images_per_patient=1)
    predictions = replaced(
        drawn,
        image=tuple(f"{ODD}{name}" for name in drawn.image),
        patient=tuple(f"{ODD}{name}" for name in drawn.patient),
        case=tuple(f"{ODD}{name}" for name in drawn.case),
    )
    for name in ("a", ODD.replace("/", "")):
        write_run(tmp_path / name, predictions, facts={"status": "failed", "error": ODD, "command": ODD})
    add_gallery(tmp_path / "a", n_per_kind=1)
    report = report_of(tmp_path / "a")
    markdown = write_comparison(tmp_path).read_text(encoding="utf-8")
    html = outline_of((tmp_path / "comparison.html").read_text(encoding="utf-8"))

    for page in (report, html):
        assert not page.all("i")
        assert not unseen(page.text())
        assert not unseen("".join(str(value) for each in page.elements for value in each.attributes.values()))
        assert "\\u202e<i>&\"'|`\\r" in page.text()
    assert not unseen(markdown)
    assert len({line.count(" | ") for line in markdown.splitlines() if line.startswith("| a |")}) <= 5
    with (tmp_path / "comparison.csv").open(encoding="utf-8", newline="") as file:
        assert {row["run"] for row in csv.DictReader(file)} == {"a", ODD}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no file names that are not text")
def test_runs_in_folders_whose_names_are_no_text_are_compared(tmp_path: Path) -> None:
    folders = [tmp_path / os.fsdecode(name) for name in (b"caf\xe9", b"\xff\xfe")]
    for wrong, folder in enumerate(folders):
        write_small_run(tmp_path, folder.name, predictions=table((wrong,)))
    page = write_comparison(tmp_path).read_text(encoding="utf-8")

    assert (tmp_path / "forest.png").exists()
    assert "no difference in weighted F1" in page


def test_a_formula_stays_text_and_breaks_nothing(tmp_path: Path) -> None:
    formula = "=cmd|' /C calc'!A0"
    drawn = drawn_predictions(images_per_patient=1)
    folder = evaluated(write_run(tmp_path / formula.replace("/", ""), replaced(drawn, case=(formula, *drawn.case[1:]))))

    assert read_predictions(folder / "test/predictions.csv").case[0] == formula
    write_comparison(tmp_path)
    with (tmp_path / "comparison.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["run"] == formula.replace("/", "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,patient\n".encode("utf-16"), "it is in UTF-16; expected text in UTF-8"),
        (b"\x89PNG\r\n\x1a\n" + os.urandom(100_000), "it is a PNG picture; expected text in UTF-8"),
        (b"a" * 100_000 + b"," + b"b" * 100_000, "column image is missing"),
    ],
    ids=["UTF-16", "PNG", "long header"],
)
def test_a_file_that_is_no_table_is_refused_in_a_few_words(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "predictions.csv"
    path.write_bytes(content)

    with pytest.raises(PredictionsError, match=message) as caught:
        evaluate_table(path)
    assert len(str(caught.value)) < len(str(path)) + 700


def test_a_figure_of_synthetic_and_real_runs_names_the_synthetic_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    draw = comparison.figure_png
    monkeypatch.setattr(comparison, "figure_png", lambda figure: figures.append(figure) or draw(figure))
    for name in ("real1", "real2"):
        write_small_run(tmp_path, name, predictions=table((int(name[-1]),)))
    for name in ("drawn1", "drawn2"):
        rows = table((int(name[-1]),), first=100)
        write_small_run(tmp_path, name, run_document(synthetic=True), predictions=rows)
    page = write_comparison(tmp_path).read_text(encoding="utf-8")

    assert "synthetic images, no tissue: drawn1, drawn2" in [text.get_text() for text in figures[0].findobj(Text)]
    warning = "**Warning. Synthetic images, no tissue.** The numbers of drawn1, drawn2 say nothing about pathology."
    assert warning in page


def test_a_figure_that_holds_no_synthetic_run_carries_no_warning_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    draw = comparison.figure_png
    monkeypatch.setattr(comparison, "figure_png", lambda figure: figures.append(figure) or draw(figure))
    for name in ("real1", "real2"):
        write_small_run(tmp_path, name, predictions=table((int(name[-1]),)))
    write_small_run(tmp_path, "drawn", run_document(synthetic=True), predictions=table(first=100))
    write_comparison(tmp_path)

    assert not [text for text in figures[0].findobj(Text) if "synthetic" in text.get_text().lower()]


def test_more_cases_than_memory_holds_are_refused_and_can_be_evaluated_without_intervals(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    write_predictions(path, table(n_cases=MOST_CASES + 1, n_images=1))

    with pytest.raises(PredictionsError, match="2,001 cases"):
        evaluate_table(path)
    assert evaluate_table(path, with_intervals=False)["n_images"] == MOST_CASES + 1
    with pytest.raises(PredictionsError, match="2,001 cases"):
        case_intervals(read_predictions(path))


def test_a_comparison_by_the_program_names_what_is_damaged_and_goes_on(tmp_path: Path) -> None:
    write_small_run(tmp_path / "sweep", "whole", predictions=table())
    torn = write_small_run(tmp_path / "sweep", "torn", predictions=table((1,)))
    (torn / "history.csv").write_bytes(b"\x89PNG\r\n\x1a\n")
    (torn / "test/predictions.csv").write_bytes("image".encode("utf-16"))
    outcome = run_program("evaluate", "runs=sweep", cwd=tmp_path)

    assert outcome.status == 0
    page = (tmp_path / "sweep" / "comparison.md").read_text(encoding="utf-8")
    assert (
        "predictions.csv is damaged: predictions.csv: it is in UTF-16; expected text in UTF-8; history.csv is" in page
    )
