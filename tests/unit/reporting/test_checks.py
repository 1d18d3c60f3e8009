"""Checks of a run."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from breakhis_pl.metrics.calibration import read_calibration
from breakhis_pl.metrics.evaluation import evaluate
from breakhis_pl.metrics.predictions import Predictions
from breakhis_pl.reporting import checks
from breakhis_pl.reporting.checks import DOCUMENTATION, documentation_link, run_checks
from breakhis_pl.reporting.runs import Run, read_run
from tests.unit.reporting.conftest import HISTORY, add_calibration, constant_table, make_table, write_run

MANY_CASES: dict[str, Any] = {"n_patients": 24, "n_cases": 24, "n_images": 4}


def good_table() -> Predictions:
    """Make predictions that pass every check."""
    return make_table(skill=4, **MANY_CASES)


def few_benign() -> Predictions:
    """Leave one of four benign images."""
    table = good_table()
    return table.take((table.target == 1) | (np.arange(len(table)) % 4 == 0))


def overconfident() -> Predictions:
    """Give decisions that are little better than chance a probability of 0.999."""
    table = make_table(skill=0.3, **MANY_CASES)
    return replace(table, probabilities=np.where(np.eye(2)[table.predicted] > 0, 0.999, 0.001))


def with_threshold(threshold: float) -> Predictions:
    """Predict images as malignant from another threshold than 0.5 on."""
    table = good_table()
    return replace(table, predicted=(table.prob_positive >= threshold).astype(np.int64))


def wrong_patient() -> Predictions:
    """Make all images of one patient wrong."""
    table = good_table()
    is_wrong = table.patient == table.patient[0]
    probabilities = np.where(is_wrong[:, None], table.probabilities[:, ::-1], table.probabilities)
    return replace(table, probabilities=probabilities, predicted=probabilities.argmax(axis=1))


def codes_of(folder: Path) -> list[str]:
    return [check.code for check in run_checks(read_run(folder))]


FAULTS: dict[str, tuple[Callable[[], Predictions], tuple[str, ...], dict[str, Any]]] = {
    "C01": (lambda: constant_table(**MANY_CASES), (), {}),
    "C02": (good_table, (), {"data": {"synthetic": True}}),
    "C03": (good_table, (), {"status": "failed", "error": "out of memory"}),
    "C04": (good_table, (), {"data": {"complete": False}}),
    "C05": (good_table, (), {"trained_on": [("train.png", "14-1000")]}),
    "C06": (lambda: make_table(skill=4), (), {}),
    "C07": (good_table, (), {"with_val": False}),
    "C08": (good_table, (), {"history": HISTORY.assign(train_accuracy=0.99)}),
    "C09": (few_benign, (), {}),
    "C10": (overconfident, (), {}),
    "C11": (wrong_patient, (), {}),
    "C12": (good_table, ("trainer.limit_train_batches=2",), {}),
    "C13": (lambda: with_threshold(0.9), (), {}),
    "C14": (good_table, (), {"missing": ["gone.png"]}),
    "C15": (lambda: replace(good_table(), case=good_table().image, patient=good_table().image), (), {}),
    "C16": (good_table, (), {"is_calibrated": True}),
}


def test_a_good_run_passes_every_check(tmp_path: Path) -> None:
    assert codes_of(write_run(tmp_path / "run", good_table())) == []


@pytest.mark.parametrize("code", FAULTS)
def test_a_run_with_one_fault_fails_its_check_alone(tmp_path: Path, code: str) -> None:
    table, overrides, facts = FAULTS[code]
    assert codes_of(write_run(tmp_path / "run", table(), *overrides, **facts)) == [code]


def test_a_network_that_predicts_almost_one_class_is_reported(tmp_path: Path) -> None:
    table = constant_table(**MANY_CASES)
    table.predicted[:2], table.probabilities[:2] = 0, (0.6, 0.4)
    (check,) = run_checks(read_run(write_run(tmp_path / "run", table)))
    assert check.code == "C01"
    assert "94 of 96" in check.text
    perfect = make_table(skill=9, **MANY_CASES)
    rare = perfect.take((perfect.target == 1) | (np.arange(len(perfect)) < 2))
    assert "C01" not in codes_of(write_run(tmp_path / "rare", rare))


def test_a_table_without_a_run_has_the_checks_of_its_predictions_alone() -> None:
    table = constant_table(**MANY_CASES)
    run = Run("table", Path(), None, "finished", metrics=evaluate(table, n_draws=200), predictions=table)
    assert [check.code for check in run_checks(run)] == ["C01"]


def test_overfitting_is_reported_beyond_its_limit_only(tmp_path: Path) -> None:
    for accuracy, codes in ((0.9499, []), (0.9501, ["C08"])):
        history = HISTORY.assign(train_accuracy=accuracy, test_accuracy=0.85)
        assert codes_of(write_run(tmp_path / str(accuracy), good_table(), history=history)) == codes


@pytest.mark.parametrize(
    ("sensitivity", "n_cases", "specificity", "codes"),
    [(0.95, 20, 0.1, []), (0.95, 19, 0.1, ["C16"]), (0.99, 99, 0.1, ["C16"]), (0.95, 20, 0.0, ["C16"])],
)
def test_a_threshold_needs_cases_and_a_specificity_above_0(
    tmp_path: Path, sensitivity: float, n_cases: int, specificity: float, codes: list[str]
) -> None:
    folder = write_run(tmp_path / "run", good_table(), is_calibrated=True)
    fitted = read_calibration(folder / "calibration.json")
    changes = {"sensitivity": sensitivity, "n_positive_cases": n_cases, "specificity_reached": specificity}
    add_calibration(folder, replace(fitted, **changes))
    assert codes_of(folder) == codes


def test_codes_are_reported_once_and_in_order(tmp_path: Path) -> None:
    facts = {"data": {"complete": False}, "with_val": False, "status": "failed"}
    found = codes_of(write_run(tmp_path / "run", few_benign(), "trainer.limit_train_batches=2", **facts))
    assert found == ["C03", "C04", "C07", "C09", "C12"]


def test_every_code_has_an_anchor_in_the_documentation_and_the_link_leads_there(tmp_path: Path) -> None:
    text = DOCUMENTATION.read_text(encoding="utf-8")
    assert sorted(re.findall(r'<a id="(\w+)"></a>', text)) == [code.lower() for code in sorted(FAULTS)]
    assert set(FAULTS) == set(re.findall(r'"(C\d+)"', Path(checks.__file__).read_text(encoding="utf-8")))
    link = documentation_link(tmp_path / "run")
    assert (tmp_path / "run" / link).resolve() == DOCUMENTATION


@pytest.mark.parametrize(
    ("code", "n", "is_reported"), [("C06", 9, True), ("C06", 10, False), ("C09", 31, True), ("C09", 33, False)]
)
def test_a_limit_is_the_documented_one(tmp_path: Path, code: str, n: int, is_reported: bool) -> None:
    """Fewer than 10 cases of a class; less than a third of the images."""
    table = make_table(skill=9, n_patients=40, n_cases=40, n_images=4)
    benign, malignant = (np.flatnonzero(table.target == target) for target in (0, 1))
    kept = [*benign[: 4 * n], *malignant] if code == "C06" else [*benign[:n], *malignant[: 98 - n]]
    codes = codes_of(write_run(tmp_path / "run", table.take(np.array(kept)), history=None))
    assert (code in codes) is is_reported


def test_predictions_have_the_documented_checks() -> None:
    (listed,) = re.findall(r"predictions.html lists\n(.*) of the run", DOCUMENTATION.read_text(encoding="utf-8"))
    assert tuple(re.findall(r"C\d+", listed)) == checks.FOR_PREDICTIONS
