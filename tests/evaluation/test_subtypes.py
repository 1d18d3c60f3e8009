"""Rows, metrics and page of a network that tells the eight tumor types apart."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score, precision_score

from breakhis_pl.data.breakhis import official_patients, parse_file_name
from breakhis_pl.errors import PredictionsError, ShapeError
from breakhis_pl.evaluation.report import write_report
from breakhis_pl.evaluation.subtypes import (
    CODES,
    SUBTYPES_CSV,
    SubtypePredictions,
    read_subtypes,
    subtype_metrics,
    write_subtype_results,
    write_subtypes,
)
from tests.evaluation.written_runs import write_run


def drawn_subtypes(*, seed: int = 0, skill: float = 2.0) -> SubtypePredictions:
    """Rows of the test patients of fold 2, five images each."""
    random = np.random.default_rng(seed)
    names = [
        parse_file_name(f"{patient}-200-{number:03}.png")
        for patient, official in official_patients().items()
        if official.subsets[2] == "test"
        for number in range(1, 6)
    ]
    target = np.array([CODES.index(name.subtype) for name in names])
    logits = random.normal(size=(len(names), len(CODES)))
    logits[np.arange(len(names)), target] += skill
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return SubtypePredictions(
        image=tuple(name.file_name for name in names),
        patient=tuple(name.patient for name in names),
        case=tuple(name.case for name in names),
        target=target,
        probabilities=probabilities,
        predicted=probabilities.argmax(1),
    )


def test_rows_that_were_written_are_read_again(tmp_path: Path) -> None:
    drawn = drawn_subtypes()
    write_subtypes(tmp_path / SUBTYPES_CSV, drawn)
    found = read_subtypes(tmp_path / SUBTYPES_CSV)
    order = sorted(range(len(drawn.image)), key=lambda index: drawn.image[index])
    assert found.image == tuple(drawn.image[index] for index in order)
    assert np.array_equal(found.target, drawn.target[order])
    assert np.array_equal(found.predicted, drawn.predicted[order])
    assert np.allclose(found.probabilities, drawn.probabilities[order], atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_metrics_are_those_of_scikit_learn(seed: int) -> None:
    rows = drawn_subtypes(seed=seed)
    metrics = subtype_metrics(rows, n_draws=200)
    there = sorted(set(rows.target.tolist()))
    assert metrics["confusion_matrix"] == confusion_matrix(rows.target, rows.predicted, labels=range(8)).tolist()
    assert metrics["accuracy"]["value"] == pytest.approx(accuracy_score(rows.target, rows.predicted))
    assert metrics["balanced_accuracy"]["value"] == pytest.approx(balanced_accuracy_score(rows.target, rows.predicted))
    weighted = f1_score(rows.target, rows.predicted, average="weighted", zero_division=0)
    assert metrics["weighted_f1"]["value"] == pytest.approx(weighted)
    macro = f1_score(rows.target, rows.predicted, average="macro", labels=there, zero_division=0)
    assert metrics["macro_f1"]["value"] == pytest.approx(macro)
    precision = precision_score(rows.target, rows.predicted, average=None, labels=range(8), zero_division=0)
    for index in there:
        assert metrics["per_class"][CODES[index]]["precision"] == pytest.approx(precision[index])


def test_intervals_hold_the_value_and_shrink_with_certainty() -> None:
    for skill in (0.5, 2.0, 9.0):
        metrics = subtype_metrics(drawn_subtypes(skill=skill), n_draws=500)
        low, high = metrics["accuracy"]["ci95"]
        assert 0 < low <= metrics["accuracy"]["value"] <= high <= 1
        assert high - low > 0.02


def test_a_type_without_images_has_no_values() -> None:
    rows = drawn_subtypes()
    keep = rows.target != CODES.index("PT")
    part = SubtypePredictions(
        image=tuple(np.array(rows.image)[keep]),
        patient=tuple(np.array(rows.patient)[keep]),
        case=tuple(np.array(rows.case)[keep]),
        target=rows.target[keep],
        probabilities=rows.probabilities[keep],
        predicted=rows.predicted[keep],
    )
    of_type = subtype_metrics(part, n_draws=200)["per_class"]["PT"]
    assert (of_type["recall"], of_type["support"], of_type["n_cases"]) == (None, 0, 0)


def test_a_single_case_has_no_interval() -> None:
    rows = drawn_subtypes()
    alone = replace(rows, case=("14-1",) * len(rows.case))
    assert subtype_metrics(alone, n_draws=200)["accuracy"]["ci95"] is None


def test_arrays_that_do_not_fit_are_refused() -> None:
    rows = drawn_subtypes()
    with pytest.raises(ShapeError, match="a row of each per image"):
        replace(rows, target=rows.target[:-1])


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("prob_PT", "prob_XX", "column prob_PT is missing"),
        (",PT,", ",QQ,", "'QQ' is no tumor type"),
        ("\n", "\nSOB_M_DC-14-2523-200-900.png,a,14-2523,DC,1,1,0,0,0,0,0,0,DC\n", "line 2: '1, 1, 0"),
        ("\n", "\nSOB_M_DC-14-2523-200-900.png,a,14-2523,DC,x,0,0,0,0,0,0,0,DC\n", "line 2: 'x, 0"),
    ],
)
def test_damaged_rows_are_named(before: str, after: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / SUBTYPES_CSV
    write_subtypes(path, drawn_subtypes())
    path.write_text(path.read_text().replace(before, after, 1))
    with pytest.raises(PredictionsError, match=message):
        read_subtypes(path)


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / SUBTYPES_CSV
    write_subtypes(path, drawn_subtypes())
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(PredictionsError, match="it has no rows"):
        read_subtypes(path)


def test_the_page_shows_the_types_where_they_were_told_apart(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    assert "Told apart by the network" not in write_report(folder).read_text(encoding="utf-8")
    metrics = write_subtype_results(folder / "test", drawn_subtypes(), title="Types")
    page = write_report(folder).read_text(encoding="utf-8")
    assert "Told apart by the network" in page
    assert f"{metrics['accuracy']['value']:.3f}" in page
    assert (folder / "test" / "subtype_confusion_matrix.png").stat().st_size > 10_000
