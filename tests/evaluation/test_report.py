import base64
import io
import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from breakhis_pl.errors import PredictionsError, RunFolderError, ShapeError
from breakhis_pl.evaluation.pages import Column, Table, environment, picture_of, render
from breakhis_pl.evaluation.predictions import Predictions
from breakhis_pl.evaluation.report import write_report
from breakhis_pl.evaluation.report_figures import phrase
from breakhis_pl.evaluation.run_summary import Estimate
from tests.conftest import REPOSITORY
from tests.evaluation.page_outline import Outline, outline_of
from tests.evaluation.written_runs import CONFIG, add_gallery, drawn_predictions, write_run

NASTY = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;\r\n{{ 7 * 7 }}"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a gallery of 24 pictures; not to be changed."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "resnet18")
    add_gallery(folder)
    return folder


@pytest.fixture(scope="module")
def html(run_folder: Path) -> str:
    return write_report(run_folder).read_text(encoding="utf-8")


def page_of(folder: Path) -> Outline:
    return outline_of(write_report(folder).read_text(encoding="utf-8"))


def metrics_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "test/metrics.json").read_text())
    return content


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def replaced(predictions: Predictions, **columns: Any) -> Predictions:
    names = ("image", "patient", "case", "magnification", "target", "probabilities", "predicted")
    return Predictions(**{name: columns.get(name, getattr(predictions, name)) for name in names})


def headings(page: Outline) -> list[str]:
    return [element.text for element in page.all("h2")]


def test_the_result_stands_first_with_its_intervals(run_folder: Path, html: str) -> None:
    metrics = metrics_of(run_folder)
    page = outline_of(html)
    numbers = " ".join(page.all("dl")[0].text.split())

    for key in ("weighted_f1", "accuracy", "auroc", "patient_recognition_rate"):
        low, high = metrics[key]["ci95"]
        assert f"{metrics[key]['value']:.3f} {low:.2f} to {high:.2f}" in numbers
    assert headings(page)[0] == "Result"
    assert "ResNet-18 on BreakHis at 200X, the authors' fold 2" in page.all("h1")[0].text


def test_the_page_says_what_was_trained_and_tested_on(html: str) -> None:
    text = outline_of(html).text()

    assert "tested on 140 images of 28 patients in 27 cases (45 benign, 95 malignant)" in text
    assert re.search(r"Trained on 54 images of 54 patients in \d+ cases \(455 benign, 961 malignant\)", text)


def test_numbers_in_tables_are_those_of_the_metrics(run_folder: Path, html: str) -> None:
    text, metrics = outline_of(html).text(), metrics_of(run_folder)

    for of_class in metrics["per_class"].values():
        for metric in ("precision", "recall", "f1"):
            estimate = of_class[metric]
            low, high = estimate["ci95"]
            assert f"{estimate['value']:.3f} ({low:.2f} to {high:.2f})" in text
    for metric in ("mcc", "brier", "log_loss", "ece", "average_precision", "case_accuracy"):
        assert f"{metrics[metric]['value']:.3f} (" in text


def test_pictures_say_their_numbers_in_words(run_folder: Path, html: str) -> None:
    (right_benign, wrong_benign), (wrong_malignant, right_malignant) = metrics_of(run_folder)["confusion_matrix"]
    alternatives = [element.attributes["alt"] for element in outline_of(html).all("img")]

    assert alternatives[0] == (
        f"Confusion matrix: of 45 benign images {right_benign} are called benign and {wrong_benign} are called "
        f"malignant; of 95 malignant images {wrong_malignant} are called benign and {right_malignant} are called "
        "malignant."
    )
    assert "train: loss from 0.500 to 0.250, accuracy from 75.0% to 90.0%" in str(alternatives[1])
    for alternative, beginning in zip(
        alternatives[2:6], ("ROC curve with area 0.", "Precision over recall with", "Reliability diagram", "Share of"),
        strict=True,
    ):  # fmt: skip
        assert str(alternative).startswith(beginning)
        assert re.search(r"\d", str(alternative))


def test_every_picture_lies_inside_the_page_with_its_size(html: str) -> None:
    pictures = outline_of(html).all("img")

    assert len(pictures) == 6 + 24
    for picture in pictures:
        kind, content = str(picture.attributes["src"]).split(";base64,")
        with Image.open(io.BytesIO(base64.b64decode(content))) as image:
            shown = int(str(picture.attributes["width"])) / int(str(picture.attributes["height"]))
            assert image.width / image.height == pytest.approx(shown, rel=0.02)
        assert kind in {"data:image/png", "data:image/jpeg"}
        assert picture.attributes["alt"]


def test_the_page_asks_for_nothing_and_runs_nothing(html: str) -> None:
    page = outline_of(html)
    policy = next(
        element for element in page.all("meta") if element.attributes.get("http-equiv") == "Content-Security-Policy"
    )

    assert not page.all("script", "iframe", "object", "embed", "form", "base", "video", "audio")
    assert "default-src 'none'" in str(policy.attributes["content"])
    for element in page.elements:
        assert not [name for name in element.attributes if name.startswith("on")]
        assert str(element.attributes.get("src", "data:")).startswith("data:")
        if element.name == "link":
            assert str(element.attributes["href"]).startswith("data:")
    assert not re.search(r"@import|url\(", page.all("style")[0].text)


def test_the_page_is_well_formed_and_in_order(html: str) -> None:
    page = outline_of(html)
    levels = [int(element.name[1]) for element in page.all("h1", "h2", "h3", "h4")]
    ids = [element.attributes["id"] for element in page.elements if "id" in element.attributes]
    links = [str(element.attributes["href"]) for element in page.all("a")]

    assert html.startswith("<!DOCTYPE html>")
    assert page.all("html")[0].attributes["lang"] == "en"
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert all(link.startswith(("#", "https://doi.org/", "https://creativecommons.org/")) for link in links)
    assert len(page.all("main")) == 1


def test_tables_have_captions_and_headings_of_rows_and_columns(html: str) -> None:
    page = outline_of(html)

    assert len(page.all("table")) == len(page.all("caption")) == 6
    assert {element.attributes.get("scope") for element in page.all("th")} == {"row", "col"}
    assert all(element.text.strip() for element in page.all("th", "caption"))
    n_rows = len([element for element in page.all("tr") if "tbody" in element.parents])
    assert len([element for element in page.all("th") if element.attributes["scope"] == "row"]) == n_rows


def test_a_page_with_24_pictures_of_noise_is_small(html: str) -> None:
    assert len(html.encode()) < 5_000_000


def test_the_same_files_give_the_same_page(run_folder: Path, html: str) -> None:
    assert write_report(run_folder).read_text(encoding="utf-8") == html


@pytest.mark.usefixtures("undrawn")
def test_an_older_page_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    before = {path.name for path in folder.iterdir()}
    (folder / "report.html").write_text("old")
    path = write_report(folder)

    assert path == folder / "report.html"
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert {entry.name for entry in folder.iterdir()} == before | {"report.html"}


def test_names_from_outside_are_shown_as_text(tmp_path: Path) -> None:
    drawn = drawn_predictions()
    predictions = replaced(
        drawn,
        image=tuple(f"{NASTY}{row}" for row in range(len(drawn))),
        patient=tuple(f"{NASTY}{name}" for name in drawn.patient),
        case=tuple(f"{NASTY}{name}" for name in drawn.case),
    )
    folder = write_run(
        tmp_path / "<b>run & more",
        predictions,
        facts={
            "command": NASTY,
            "commit": NASTY,
            "package_version": NASTY,
            "versions": {NASTY: NASTY},
            "device": NASTY,
            "precision": NASTY,
            "finished": NASTY,
            "model": {"backbone": NASTY, "n_parameters": 1},
            "status": "failed",
            "error": NASTY,
        },
        config={"model": {"backbone": NASTY, NASTY: NASTY}, NASTY: {NASTY: [NASTY, None, True, 1e-4]}},
    )
    add_gallery(folder, n_per_kind=1)
    page = page_of(folder)

    assert not page.all("script", "b")
    assert all(str(element.attributes["src"]).startswith("data:image/") for element in page.all("img"))
    assert not [name for element in page.elements for name in element.attributes if name.startswith("on")]
    assert page.text().count("<script>alert(1)</script>") > 20
    assert "{{ 7 * 7 }}" in page.text()
    assert "49" not in page.all("h1")[0].text
    assert "<b>run & more" in page.all("title")[0].text


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("facts", "config", "expected"),
    [
        (
            {"data": {"synthetic": True, "complete": False}},
            {},
            "Synthetic images, no tissue. These numbers show that the software runs",
        ),
        (
            {"data": {"synthetic": False, "complete": False, "description": "839 of 2,013 images at 200X"}},
            {},
            "Incomplete archive. 839 of 2,013 images at 200X. Tested on 140 of 597 published test images.",
        ),
        ({"status": "failed", "error": "disk full"}, {}, "The run is not finished. run.json says failed: disk full."),
        ({}, {"trainer": {"limit_train_batches": 3}}, "Cut epochs. Only 3 batches of each epoch were trained on"),
        ({}, {}, "No validation set. Nothing was chosen or calibrated"),
        ({}, {}, "Siblings across subsets. 30 of 140 test images come from a case with another slide in train"),
        ({}, {}, "Few cases. The test images are of 8 benign cases"),
    ],
)
def test_a_warning_stands_on_the_first_screen(
    tmp_path: Path, facts: dict[str, Any], config: dict[str, Any], expected: str
) -> None:
    page = page_of(write_run(tmp_path / "run", facts=facts, config=config))
    warnings = " ".join(page.all("aside")[0].text.split())

    assert expected in warnings


def test_the_sibling_warning_gives_the_result_without_them(run_folder: Path, html: str) -> None:
    without = metrics_of(run_folder)["without_siblings"]
    warnings = " ".join(outline_of(html).all("aside")[0].text.split())

    assert without["n_images"] == 110
    low, high = without["weighted_f1"]["ci95"]
    assert f"Without them: weighted F1 {without['weighted_f1']['value']:.3f} ({low:.2f} to {high:.2f})" in warnings


@pytest.mark.usefixtures("undrawn")
def test_a_run_with_validation_images_is_not_said_to_lack_them(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", with_validation=True))

    assert "No validation set" not in page.text()
    assert "calibrated on 11 images of 11 patients" in page.text()


@pytest.mark.usefixtures("undrawn")
def test_synthetic_images_are_named_in_the_title_and_never_compared_with_published_results(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", facts={"data": {"synthetic": True, "complete": False}}))

    assert "on synthetic images at 200X" in page.all("h1")[0].text
    assert "Published results" not in headings(page)
    assert "Incomplete archive" not in page.text()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    "data", [{"split": "official", "fold": 1}, {"split": "ratio"}, {"magnification": [100]}], ids=str
)
def test_published_results_stand_beside_runs_on_their_split_alone(tmp_path: Path, data: dict[str, Any]) -> None:
    page = page_of(write_run(tmp_path / "run", config={"data": CONFIG["data"] | data}))

    assert "Published results" not in headings(page)


def test_published_results_stand_beside_ours(run_folder: Path, html: str) -> None:
    low, high = metrics_of(run_folder)["weighted_f1"]["ci95"]
    text = outline_of(html).text()
    side = "inside" if low <= 0.873 <= high else "outside"

    assert f"The report's weighted F1 of 0.873 for ResNet-18 lies {side} this run's 95 % interval" in text
    assert "The test images are 140, not the report's 597: the comparison is indicative only." in text
    assert "the report's ResNet-18 0.876 0.873 0.763 0.916" in text
    assert "0.908 0.910" in text


def test_the_gallery_is_grouped_and_says_what_its_colors_mean(html: str) -> None:
    page = outline_of(html)
    subheadings = [element.text for element in page.all("h3")]

    assert [text for text in subheadings if text in {"Surest mistakes", "Hardest patients", "Surely right"}] == [
        "Surest mistakes", "Hardest patients", "Surely right",
    ]  # fmt: skip
    assert "Grad-CAM" in page.text()
    assert "shows where and not why" in page.text()


@pytest.mark.usefixtures("undrawn")
def test_without_a_gallery_there_is_no_section_of_images(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run"))

    assert "Images" not in headings(page)
    assert "#images" not in [element.attributes["href"] for element in page.all("a")]


@pytest.mark.usefixtures("undrawn")
def test_a_run_without_history_or_split_still_has_a_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "history.csv").unlink()
    (folder / "split.csv").unlink()
    page = page_of(folder)

    assert "Training" not in headings(page)
    assert "Trained on 1,416 images and tested on 140 images" in page.text()


@pytest.mark.parametrize("is_one", [0, 1])
def test_images_of_one_class_have_a_page_without_curves(tmp_path: Path, is_one: int) -> None:
    drawn = drawn_predictions()
    page = page_of(write_run(tmp_path / "run", drawn.select(drawn.target == is_one)))

    assert "The test images are of one class: there is no curve." in page.text()
    assert "not defined" in page.text()
    assert ("no malignant cases", "no benign cases")[is_one] in page.text()


def test_one_image_has_a_page(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", drawn_predictions().take(np.array([0]))))

    assert "tested on 1 image of 1 patient in 1 case" in page.text()


def test_several_magnifications_have_a_table(tmp_path: Path) -> None:
    drawn = drawn_predictions()
    magnification = np.where(np.arange(len(drawn)) % 2, 200, 40)
    config = {"data": CONFIG["data"] | {"magnification": [40, 200]}}
    page = page_of(write_run(tmp_path / "run", replaced(drawn, magnification=magnification), config=config))

    assert "at 40X and 200X" in page.all("h1")[0].text
    assert "By magnification" in [element.text for element in page.all("caption")]


@pytest.mark.usefixtures("undrawn")
def test_an_unknown_network_keeps_its_name(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", config={"model": {"backbone": "my_net"}}))

    assert "my_net on BreakHis" in page.all("h1")[0].text
    assert "the report's" not in [element.text for element in page.all("th")]


def test_calibration_is_shown_where_it_was_fitted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", with_validation=True)
    (folder / "calibration.json").write_text(
        json.dumps(
            {
                **{"temperature": 1.75, "threshold": 0.231, "sensitivity": 0.95, "n_images": 300, "n_cases": 11},
                **{"log_loss_before": 0.4, "log_loss_after": 0.3},
                **{"sensitivity_reached": 0.96, "specificity_reached": 0.75},
            }
        )
    )
    before = page_of(folder)
    names = ("log_loss", "brier", "ece", "accuracy", "weighted_f1", "sensitivity", "specificity")
    change(
        folder / "test/metrics.json",
        calibrated={
            "temperature": 1.75, "threshold": 0.231, "wanted_sensitivity": 0.95,
            **{name: {"value": 0.4321, "ci95": [0.3, 0.5]} for name in names},
        },
    )  # fmt: skip
    after = page_of(folder)

    for page in (before, after):
        assert "Fitted on 300 validation images of 11 cases, never on test images: temperature 1.750" in page.text()
        assert "probability of 0.231 to reach a sensitivity of 0.95 there" in page.text()
        assert "The specificity there is 0.750." in page.text()
    assert "0.432 (0.30 to 0.50)" not in before.text()
    assert after.text().count("0.432 (0.30 to 0.50)") == len(names)


def test_how_to_repeat_names_command_commit_versions_seed_and_split(html: str) -> None:
    text = outline_of(html).text()

    assert "git checkout 0123456789abcdef0123456789abcdef01234567 uv run train.py model=resnet18" in text
    for fact in ("python 3.12.1, torch 2.11.0", "cpu, 2 cores", "Seed 0", "sha256:00ff", "11,333,742", "10.0 minutes"):
        assert fact in text
    assert "doi:10.1109/TBME.2015.2496264" in text
    assert "CC BY 4.0" in text
    assert "Research software, not a medical device" in text


@pytest.mark.usefixtures("undrawn")
def test_uncommitted_changes_are_admitted(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", facts={"uncommitted_changes": True}))

    assert "yes: the commit does not tell all" in page.text()


def test_the_configuration_is_written_as_its_files_write_it(html: str) -> None:
    text = outline_of(html).text()

    assert "magnification [200]" in text
    assert "limit_train_batches null" in text
    assert "deterministic false" in text


def test_a_folder_that_is_no_run_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=f"{tmp_path} is no run folder: it holds no run.json; expected a folder"):
        write_report(tmp_path)
    with pytest.raises(RunFolderError, match="nowhere is no run folder"):
        write_report(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["test/metrics.json", "test/predictions.csv"])
def test_a_run_without_a_result_is_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path / "run")
    (folder / name).unlink()

    with pytest.raises(RunFolderError, match=rf"has no result yet: {name} missing; .*evaluate\.py run="):
        write_report(folder)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("run.json", "{", "run.json is damaged"),
        ("run.json", '{"status": "strange"}', "status is 'strange'"),
        ("test/metrics.json", "[]", "metrics.json is damaged .it holds a list"),
        ("test/metrics.json", '{"n_images": 3}', "metrics.json is of 3 images, predictions.csv of 140"),
        ("calibration.json", "no", "calibration.json is damaged"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: str, expected: str) -> None:
    folder = write_run(tmp_path / "run")
    (folder / name).write_text(content)

    with pytest.raises(RunFolderError, match=expected):
        write_report(folder)


def test_malformed_predictions_are_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "test/predictions.csv").write_text("image\n")

    with pytest.raises(PredictionsError, match="column patient is missing"):
        write_report(folder)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("image,patient\na,b\n", "split.csv is damaged: column case, subset is missing"),
        ("image,patient,case,subset\na,b,c\n", "split.csv is damaged: line 2 has 3 values, not 4"),
        ("image,patient,case,subset\na,b,,test\n", "line 2, column case: '' is no name"),
        ("image,patient,case,subset\na,b,c,tset\n", "line 2, column subset: 'tset' is none of train, val, test"),
    ],
)
def test_a_malformed_split_is_named_by_line(tmp_path: Path, content: str, expected: str) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "split.csv").write_text(content)

    with pytest.raises(PredictionsError, match=expected):
        write_report(folder)


def test_a_row_of_another_length_than_its_table_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"table 'c': rows of \[2\] cells; expected 1"):
        Table("c", [Column("a")], [["1", "2"]])


def test_a_template_that_is_given_too_little_fails() -> None:
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError, match="network"):
        render("report.html.j2")


def test_cells_are_escaped_and_numbers_carry_their_interval() -> None:
    template = environment().from_string('{% import "macros.html.j2" as m %}{{ m.table(table) }}')
    table = Table(
        "<i>caption</i>",
        [Column("<i>name</i>"), Column("value", is_number=True)],
        [["<i>a</i>", Estimate(0.5, (0.1, 0.9))], ["b", Estimate(0.25)], ["c", None]],
        note="<i>note</i>",
    )
    page = outline_of(template.render(table=table))

    assert not page.all("i")
    assert "0.500 (0.10 to 0.90)" in page.all("tr")[1].text
    assert page.all("tr")[2].text.split() == ["b", "0.250"]
    assert page.all("tr")[3].text.split() == ["c", "\N{EN DASH}"]


def test_a_figure_is_shown_at_the_size_it_was_drawn() -> None:
    from matplotlib.figure import Figure

    picture = picture_of(Figure(figsize=(5, 2.5)), alt="nothing")

    assert (picture.width, picture.height, picture.alt) == (480, 240, "nothing")


@pytest.mark.parametrize(
    ("estimate", "expected"),
    [(None, "not defined"), (Estimate(0.5), "0.500"), (Estimate(0.5, (0.2, 0.8)), "0.500 (0.20 to 0.80)")],
)
def test_an_estimate_is_put_in_words(estimate: Estimate | None, expected: str) -> None:
    assert phrase(estimate) == expected


def test_a_report_needs_no_torch_and_works_from_any_folder(run_folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from breakhis_pl.evaluation.report import write_report; "
        "write_report(Path(sys.argv[1])); sys.exit('torch' in sys.modules)"
    )
    environment_ = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-W", "error", "-c", code, str(run_folder)]

    assert subprocess.run(command, check=False, cwd=tmp_path, env=environment_).returncode == 0
