"""Temperature and threshold, fitted on validation rows."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, log_expit, logit
from sklearn import metrics as sk

from breakhis_pl.errors import PredictionsError, RunFolderError
from breakhis_pl.metrics import calibration
from breakhis_pl.metrics.predictions import Predictions
from tests.unit.metrics.tables import CALIBRATION, table


def random_rows(seed: int, *, n: int = 60, digits: int = 9) -> Predictions:
    rng = np.random.default_rng(seed)
    target = rng.permutation(np.arange(n) % 3 > 0)
    return table(np.arange(n) // 5, target, np.round(expit(rng.normal(0, 3, n) + 2 * target - 1), digits))


@pytest.mark.parametrize("seed", range(5))
def test_the_temperature_has_the_smallest_log_loss_of_a_grid(seed: int) -> None:
    rows = random_rows(seed)
    logit_of_truth = np.where(rows.target == 1, 1, -1) * logit(rows.prob_positive)
    grid = np.geomspace(*calibration.TEMPERATURES, 4000)
    losses = -log_expit(logit_of_truth / grid[:, None]).mean(1)
    fitted = calibration.fit_calibration(rows)
    assert fitted.temperature == pytest.approx(grid[losses.argmin()], rel=0.002)
    assert fitted.log_loss_after == pytest.approx(losses.min(), abs=1e-6)
    assert (fitted.n_images, fitted.n_cases, fitted.sensitivity) == (60, 12, 0.95)
    assert fitted.log_loss_before == pytest.approx(sk.log_loss(rows.target, rows.prob_positive))


def test_positive_cases_are_those_with_positive_images() -> None:
    fitted = calibration.fit_calibration(table([0, 0, 1, 1, 2, 3], [0, 1, 1, 1, 0, 0], [0.2, 0.9, 0.6, 0.8, 0.4, 0.1]))
    assert (fitted.n_cases, fitted.n_positive_cases) == (4, 2)


def test_rows_without_a_mistake_and_all_wrong_rows_end_at_the_bounds_and_rows_of_one_half_stay() -> None:
    probability = [0.1, 0.2, 0.8, 0.9]
    assert (
        calibration.fit_calibration(table(range(4), [0, 0, 1, 1], probability)).temperature
        == calibration.TEMPERATURES[0]
    )
    assert (
        calibration.fit_calibration(table(range(4), [1, 1, 0, 0], probability)).temperature
        == calibration.TEMPERATURES[1]
    )
    assert calibration.fit_calibration(table(range(4), [1, 1, 0, 0], [0.5] * 4)).temperature == 1


@pytest.mark.parametrize("digits", [1, 2, 9])
@pytest.mark.parametrize("sensitivity", [0.02, 0.5, 0.56, 0.9, 0.95, 0.99])
def test_the_threshold_is_the_largest_that_reaches_the_wanted_sensitivity(sensitivity: float, digits: int) -> None:
    for seed in range(5):
        rows = random_rows(seed, n=(38, 60)[seed % 2], digits=digits)  # 0.56 * 25 is a little above 14
        fitted = calibration.fit_calibration(rows, sensitivity=sensitivity)
        after = calibration.calibrated(rows, fitted)
        positive = after.prob_positive[rows.target == 1]
        assert sk.recall_score(rows.target, after.predicted) == pytest.approx(fitted.sensitivity_reached)
        assert sk.recall_score(rows.target, after.predicted, pos_label=0) == pytest.approx(fitted.specificity_reached)
        assert fitted.sensitivity_reached >= sensitivity
        assert (positive > fitted.threshold).mean() < sensitivity  # reached by the next larger probability


def test_calibration_changes_probabilities_and_decisions_and_keeps_the_ranking() -> None:
    rows = random_rows(3)
    after = calibration.calibrated(rows, calibration.fit_calibration(rows))
    assert sk.roc_auc_score(rows.target, after.prob_positive) == sk.roc_auc_score(rows.target, rows.prob_positive)
    assert after.probabilities.sum(1) == pytest.approx(np.ones(len(rows)))
    assert not np.allclose(after.probabilities, rows.probabilities)
    for name in ("image", "patient", "case", "target"):
        assert getattr(after, name) is getattr(rows, name)


@pytest.mark.parametrize(("target", "name"), [([0, 0], "malignant"), ([1, 1], "benign")])
def test_rows_of_one_class_are_refused(target: list[int], name: str) -> None:
    with pytest.raises(PredictionsError, match=name):
        calibration.fit_calibration(table([0, 1], target, [0.2, 0.7]))


def test_a_calibration_is_read_as_it_was_written(tmp_path: Path) -> None:
    for seed, written in enumerate((CALIBRATION, calibration.fit_calibration(random_rows(0)))):
        calibration.write_calibration(tmp_path / f"{seed}.json", written)
        assert calibration.read_calibration(tmp_path / f"{seed}.json") == written


VALID = json.dumps(asdict(CALIBRATION))
DAMAGED = [VALID.replace('"temperature": 2.0', f'"temperature": {value}') for value in ("0", "NaN", "null", '"warm"')]
DAMAGED += [VALID.replace('"n_cases": 12', '"n_cases": 2.5'), VALID[:-1], "", "[1]", "{}", "null", None]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_or_missing_calibration_is_refused_with_its_file(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "calibration.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RunFolderError, match=path.stem):
        calibration.read_calibration(path)
