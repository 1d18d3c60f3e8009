"""Results and report.html of a run."""

from pathlib import Path

import numpy as np
import pytest

from breakhis_pl.errors import RunFolderError
from breakhis_pl.metrics.evaluation import evaluate
from breakhis_pl.metrics.predictions import read_predictions, write_predictions
from breakhis_pl.reporting.results import SUBTYPE_FILES, write_results
from breakhis_pl.reporting.run_report import write_report
from breakhis_pl.reporting.run_tables import shared_case_table
from breakhis_pl.reporting.runs import read_run
from tests.unit.metrics.tables import random_table
from tests.unit.reporting.conftest import (
    HISTORY,
    ParsedPage,
    add_calibration,
    add_gallery,
    make_table,
    metrics_of,
    subtype_table,
    write_run,
)


@pytest.fixture(scope="module")
def page(full_run: Path) -> ParsedPage:
    return ParsedPage(full_run / "report.html")


def test_results_are_a_table_its_metrics_and_a_figure(tmp_path: Path) -> None:
    metrics = write_results(tmp_path / "test", make_table(), title="title", note="note")
    names = {path.name for path in (tmp_path / "test").iterdir()}
    assert names == {"predictions.csv", "metrics.json", "confusion_matrix.png"}
    written = read_predictions(tmp_path / "test/predictions.csv")
    np.testing.assert_allclose(written.probabilities, make_table().probabilities, atol=1e-8)
    assert metrics_of(tmp_path) == metrics


def test_shared_cases_of_more_than_two_classes_have_a_table() -> None:
    rows = random_table(0, n_classes=3)
    found = shared_case_table(evaluate(rows, n_draws=100, shared=rows.image[:9]))
    assert found is not None
    assert [row[0] for row in found.rows][:2] == ["Weighted F1", "Accuracy"]


def test_the_page_is_one_file_without_scripts_and_requests(page: ParsedPage, full_run: Path) -> None:
    assert (full_run / "report.html").stat().st_size < 5_000_000
    assert not page.tags.keys() & {"script", "iframe", "object", "embed", "form", "base", "video", "audio"}
    assert [attributes for tag, attributes in page.elements if tag == "link"] == [{"rel": "icon", "href": "data:,"}]
    assert all(source.startswith("data:image/") for source in page.attributes("src"))
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    text = (full_run / "report.html").read_text(encoding="utf-8")
    assert "@import" not in text
    assert "url(" not in text


def test_the_page_is_well_formed_and_its_contents_lead_to_the_sections(page: ParsedPage) -> None:
    ids = page.attributes("id")
    assert len(set(ids)) == len(ids)
    links = {link[1:] for link in page.attributes("href") if link.startswith("#")}
    assert links == page.sections | {"content"}
    for rows in page.tables.values():
        assert len({len(row) for row in rows}) == 1
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(images) == 6 + 1 + page.tags["input"]  # figures, tumor types, gallery
    assert page.tags["input"] == 24
    assert all({"width", "height", "alt"} <= set(attributes) for attributes in images)


def test_numbers_of_the_page_are_those_of_metrics_json(page: ParsedPage, full_run: Path) -> None:
    metrics = metrics_of(full_run)
    for name in ("accuracy", "weighted_f1", "auroc", "sensitivity", "specificity"):
        assert f"{metrics[name]['value']:.3f}" in page.text
    rows = [row for table in page.tables.values() for row in table]
    accuracy = next(row for row in rows if row[0] == "Accuracy")
    value, limits = metrics["accuracy"]["value"], metrics["accuracy"]["ci95"]
    assert accuracy[1].startswith(f"{value:.3f}")
    assert accuracy[1].endswith(f"({limits[0]:.2f} to {limits[1]:.2f})")
    table = read_predictions(full_run / "test/predictions.csv")
    patients = next(rows for rows in page.tables.values() if rows[0][0] == "Patient")[1:]
    assert {row[0] for row in patients} == set(table.patient)
    fractions = [float(row[2].removesuffix("%")) for row in patients]
    assert fractions == sorted(fractions)
    assert np.mean(fractions) == pytest.approx(100 * metrics["patient_recognition_rate"]["value"], abs=0.05)


def test_the_same_files_give_the_same_bytes(full_run: Path) -> None:
    path, files = full_run / "report.html", set(full_run.rglob("*"))
    content = path.read_bytes()
    path.write_text("an older page")
    write_report(full_run)
    assert path.read_bytes() == content
    assert set(full_run.rglob("*")) == files


@pytest.mark.usefixtures("undrawn")
def test_names_are_text_on_the_page(tmp_path: Path) -> None:
    hostile, name = "<img src=x onerror=alert(1)>", "a \"quoted\" 'run' \u202egnp.exe & <b>"
    table = make_table(skill=0.2)
    table.patient[table.patient == table.patient[0]] = hostile
    table.image[:] = [f'{image}"><script>alert(2)</script>' for image in table.image]
    folder = write_run(tmp_path / name, table, "model.backbone=<i>net</i>", command="uv run train.py </code><script>")
    add_gallery(folder, table, n_per_kind=2)
    write_report(folder)
    page = ParsedPage(folder / "report.html")
    assert not page.tags.keys() & {"script", "b", "i"}
    assert all(source.startswith("data:image/") for source in page.attributes("src"))
    assert not page.attributes("onerror")
    assert "\u202e" not in (folder / "report.html").read_text(encoding="utf-8")
    assert hostile in page.text
    assert name.replace("\u202e", "\\u202e") in page.text
    assert any(row[0] == hostile for rows in page.tables.values() for row in rows)


@pytest.mark.usefixtures("undrawn")
def test_a_value_without_an_interval_has_a_reason_beside_it(tmp_path: Path) -> None:
    table = make_table()
    folder = write_run(tmp_path / "run", table.take((table.target == 1) | (table.case == table.case[0])))
    auroc = metrics_of(folder)["auroc"]
    assert auroc["ci95"] is None
    page = ParsedPage(write_report(folder)[0])
    assert page.text.count(auroc["reason"]) >= 2  # first numbers and table of metrics


PARTS = {
    "published": "#published",
    "training": "#training",
    "types": "#types",
    "images": "#images",
    "calibration": "Calibration and threshold",
    "shared cases": "Shared cases",
    "magnifications": "Magnifications",
    "subtypes": "As classes of the network",
}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("part", ["none", *PARTS])
def test_a_part_of_the_page_is_there_exactly_if_its_files_are(tmp_path: Path, part: str) -> None:
    table = make_table(magnifications=(100, 200) if part == "magnifications" else (200,))
    if part not in ("types", "subtypes"):
        table.patient[:] = [f"patient of {case}" for case in table.case]  # a name without a tumor type
    folder = write_run(
        tmp_path / "run",
        table,
        f"data.fold={2 if part == 'published' else 3}",
        history=HISTORY if part == "training" else None,
        trained_on=[("train.png", "14-1000")] if part == "shared cases" else (),
    )
    if part == "images":
        add_gallery(folder, table, n_per_kind=1, has_heat=False)
    if part == "calibration":
        add_calibration(folder)
    if part == "subtypes":
        write_results(folder / "test", subtype_table(), title="types", note=None, files=SUBTYPE_FILES)
    page = ParsedPage(write_report(folder)[0])
    found = {f"#{section}" for section in page.sections} | page.headings
    expected = {"none": set(), "subtypes": {"types", "subtypes"}}.get(part, {part})
    assert {name for name, mark in PARTS.items() if mark in found} == expected


@pytest.mark.parametrize(
    "override", ["data.split=ratio", "data.fold=1", "data.magnification=[100]", "data.test_magnification=[40]"]
)
def test_runs_on_other_images_are_not_compared_with_published_results(tmp_path: Path, override: str) -> None:
    assert not read_run(write_run(tmp_path / "run", make_table(), override)).is_on_otto2022_split
    assert not read_run(write_run(tmp_path / "drawn", make_table(), data={"synthetic": True})).is_on_otto2022_split
    assert read_run(write_run(tmp_path / "same", make_table())).is_on_otto2022_split


def test_a_run_without_a_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="nothing"):
        write_report(tmp_path / "nothing")
    failed = write_run(tmp_path / "failed", status="failed", error="out of memory")
    with pytest.raises(RunFolderError, match="failed"):
        write_report(failed)
    damaged = write_run(tmp_path / "damaged", make_table())
    (damaged / "test/predictions.csv").write_text("image,patient\n")
    with pytest.raises(RunFolderError, match="damaged"):
        write_report(damaged)
    assert not list(tmp_path.rglob("report.html"))


def test_metrics_of_another_table_are_computed_again(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", make_table())
    write_predictions(folder / "test/predictions.csv", make_table(seed=1, skill=0.3))
    metrics = read_run(folder).metrics
    assert metrics["accuracy"]["value"] == make_table(seed=1, skill=0.3).correct.mean()
    assert metrics["accuracy"] != metrics_of(folder)["accuracy"]
