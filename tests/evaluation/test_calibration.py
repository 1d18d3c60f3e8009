import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from breakhis_pl.errors import PredictionsError, RunFolderError
from breakhis_pl.evaluation.calibration import (
    TEMPERATURES,
    best_temperature,
    calibrated,
    calibration_summary,
    fit_calibration,
    log_odds,
    read_calibration,
    write_calibration,
)
from breakhis_pl.evaluation.intervals import case_intervals
from breakhis_pl.evaluation.metrics import evaluate, point_values
from breakhis_pl.evaluation.predictions import Predictions


def table(target, prob_malignant):
    target, prob = np.asarray(target, dtype=np.int64), np.asarray(prob_malignant, dtype=np.float64)
    return Predictions(
        image=tuple(f"{i}.png" for i in range(len(target))),
        patient=tuple(f"patient {i // 5}" for i in range(len(target))),
        case=tuple(f"case {i // 5}" for i in range(len(target))),
        magnification=np.full(len(target), 200),
        target=target,
        probabilities=np.stack([1 - prob, prob], axis=1),
        predicted=(prob > 0.5).astype(np.int64),
    )


def table_of_logits(logit, *, seed, factor=1.0):
    """Truth drawn with the probabilities of the logits; a network that reports logits times a factor."""
    rng = np.random.default_rng(seed)
    target = rng.random(len(logit)) < 1 / (1 + np.exp(-logit))
    return table(target, 1 / (1 + np.exp(-factor * logit)))


def random_table(seed, *, n=60):
    rng = np.random.default_rng(seed)
    target = rng.permutation(np.arange(n) % 3 > 0)
    return table(target, 1 / (1 + np.exp(-rng.normal(0, 3, n) - 2 * target + 1)))


@pytest.mark.parametrize("seed", range(10))
def test_the_temperature_is_the_one_that_scipy_finds(seed):
    rows = random_table(seed)
    logit = np.log(rows.probabilities[:, 1]) - np.log(rows.probabilities[:, 0])
    sign = 2 * rows.target - 1

    def loss_reference_scipy(temperature):
        return np.logaddexp(0, -sign * logit / temperature).mean()

    expected = minimize_scalar(loss_reference_scipy, bounds=TEMPERATURES, method="bounded", options={"xatol": 1e-9})
    fitted = fit_calibration(rows)

    assert fitted.temperature == pytest.approx(expected.x, rel=1e-5)
    assert fitted.log_loss_after == pytest.approx(expected.fun)
    assert fitted.log_loss_before == pytest.approx(loss_reference_scipy(1))


def test_probabilities_that_are_right_already_are_left_nearly_as_they_are():
    logit = np.random.default_rng(0).normal(0.5, 2, 40_000)

    assert fit_calibration(table_of_logits(logit, seed=1)).temperature == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("factor", [0.5, 2, 5])
def test_overconfidence_by_a_factor_is_undone_by_a_temperature_of_that_size(factor):
    logit = np.random.default_rng(0).normal(0.5, 2, 40_000)
    rows = table_of_logits(logit, seed=1, factor=factor)

    fitted = fit_calibration(rows)

    assert fitted.temperature == pytest.approx(factor, rel=0.03)
    assert fitted.log_loss_after < fitted.log_loss_before
    assert point_values(calibrated(rows, fitted))["ece"] < 0.01


def test_rows_without_a_mistake_and_rows_that_are_all_wrong_end_at_the_bounds():
    right = table([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9])
    wrong = table([1, 1, 0, 0], [0.1, 0.2, 0.8, 0.9])

    assert fit_calibration(right).temperature == TEMPERATURES[0]
    assert fit_calibration(wrong).temperature == TEMPERATURES[1]


def test_a_network_that_says_one_half_of_everything_is_left_alone():
    rows = table([0, 1, 1], [0.5, 0.5, 0.5])

    fitted = fit_calibration(rows)

    assert (fitted.temperature, fitted.threshold) == (1, 0.5)
    assert (fitted.sensitivity_reached, fitted.specificity_reached) == (1, 0)


def test_probabilities_of_0_and_1_have_a_finite_logit_even_where_they_are_wrong():
    rows = table([0, 1, 1, 0, 1, 0], [0, 1, 0, 1, 1, 0])

    fitted = fit_calibration(rows)

    assert np.isfinite(list(asdict(fitted).values())).all()
    assert np.abs(log_odds(rows.probabilities)).max() == pytest.approx(36.04, abs=0.01)
    assert fitted.temperature == TEMPERATURES[1]


def test_the_logit_is_taken_from_both_columns_so_that_a_tiny_probability_counts():
    probabilities = np.array([[1e-13, 1.0], [1.0, 1e-13]])

    assert log_odds(probabilities).tolist() == pytest.approx([29.934, -29.934], abs=1e-3)


@given(seed=st.integers(0, 10_000), sensitivity=st.floats(0.01, 0.99), digits=st.sampled_from([1, 2, 9]))
def test_the_threshold_is_the_largest_that_finds_as_many_malignant_images_as_wanted(seed, sensitivity, digits):
    rows = random_table(seed, n=30)
    rows = table(rows.target, np.round(rows.prob_malignant, digits))

    fitted = fit_calibration(rows, sensitivity=sensitivity)
    prob = calibrated(rows, fitted).prob_malignant
    malignant = prob[rows.target == 1]

    assert fitted.sensitivity_reached == (malignant >= fitted.threshold).mean() >= sensitivity - 1e-9
    assert fitted.specificity_reached == (prob[rows.target == 0] < fitted.threshold).mean()
    higher = malignant[malignant > fitted.threshold]
    assert len(higher) / len(malignant) < sensitivity
    assert fitted.log_loss_after <= fitted.log_loss_before + 1e-12


@pytest.mark.parametrize(("sensitivity", "n_found"), [(0.7, 7), (0.95, 10), (0.9, 9), (0.05, 1)])
def test_a_wanted_share_that_is_a_whole_number_of_images_needs_no_more(sensitivity, n_found):
    rows = table([1] * 10 + [0], [*np.linspace(0.1, 0.9, 10), 0.2])

    fitted = fit_calibration(rows, sensitivity=sensitivity)

    assert fitted.sensitivity_reached == n_found / 10


def test_images_with_the_same_probability_are_called_alike():
    rows = table([1, 1, 1, 1, 0, 0], [0.9, 0.6, 0.6, 0.6, 0.6, 0.1])

    fitted = fit_calibration(rows, sensitivity=0.5)

    assert (fitted.sensitivity_reached, fitted.specificity_reached) == (1, 0.5)
    assert calibrated(rows, fitted).predicted.tolist() == [1, 1, 1, 1, 1, 0]


def test_calibration_keeps_the_order_of_images_and_everything_but_probability_and_decision():
    rows = random_table(3)

    after = calibrated(rows, fit_calibration(rows))

    assert np.argsort(after.prob_malignant, kind="stable").tolist() == rows.prob_malignant.argsort().tolist()
    assert after.probabilities.sum(1) == pytest.approx(np.ones(len(rows)))
    assert point_values(after)["auroc"] == point_values(rows)["auroc"]
    assert (after.image, after.case) == (rows.image, rows.case)
    assert after.target is rows.target


def test_the_size_of_the_validation_set_is_kept():
    fitted = fit_calibration(random_table(0, n=60), sensitivity=0.9)

    assert (fitted.n_images, fitted.n_cases, fitted.sensitivity) == (60, 12, 0.9)


@pytest.mark.parametrize(("target", "name"), [([0, 0], "malignant"), ([1, 1], "benign")])
def test_rows_of_one_class_are_refused(target, name):
    with pytest.raises(PredictionsError, match=rf"none of the 2 validation images is {name}.*data\.val_fraction"):
        fit_calibration(table(target, [0.2, 0.7]))


@pytest.mark.parametrize("sensitivity", [0.0, 1.0, -0.1, 95, float("nan")])
def test_a_sensitivity_outside_0_and_1_is_refused(sensitivity):
    with pytest.raises(PredictionsError, match=f"sensitivity {sensitivity} cannot be aimed at"):
        fit_calibration(random_table(0), sensitivity=sensitivity)


def test_the_best_temperature_of_a_table_worked_by_hand():
    # four images at odds of 9, three of them right: odds of 3 fit best, and 9 = 3 squared
    assert best_temperature(np.full(4, np.log(9)), np.array([1, 1, 1, 0])) == pytest.approx(2)


def test_the_summary_holds_the_fit_and_what_it_reaches_on_test_rows_with_intervals():
    fitted = fit_calibration(random_table(0))
    test = random_table(1)

    summary = calibration_summary(test, fitted, seed=3, n_draws=200)

    after = calibrated(test, fitted)
    limits = case_intervals(after, seed=3, n_draws=200).ci95
    assert summary["temperature"] == fitted.temperature
    assert summary["threshold"] == fitted.threshold
    assert summary["wanted_sensitivity"] == 0.95
    assert summary["fitted_on"] == {"subset": "val", "n_images": 60, "n_cases": 12}
    for name, metric in {"brier": "brier", "sensitivity": "recall_malignant", "specificity": "recall_benign"}.items():
        assert summary[name]["value"] == pytest.approx(point_values(after)[metric])
        assert summary[name]["ci95"] == pytest.approx(limits[metric])
    assert summary["confusion_matrix"] == evaluate(after, with_intervals=False)["confusion_matrix"]
    assert summary.keys() == {
        *("temperature", "threshold", "wanted_sensitivity", "fitted_on", "log_loss", "brier", "ece", "accuracy"),
        *("sensitivity", "specificity", "weighted_f1", "confusion_matrix"),
    }
    json.dumps(summary, allow_nan=False)


def test_a_calibration_is_read_as_it_was_written(tmp_path):
    fitted = fit_calibration(random_table(0))

    write_calibration(tmp_path / "calibration.json", fitted)

    assert read_calibration(tmp_path / "calibration.json") == fitted
    assert [path.name for path in tmp_path.iterdir()] == ["calibration.json"]


def test_a_missing_calibration_says_what_it_takes(tmp_path):
    with pytest.raises(
        RunFolderError, match=r"calibration\.json does not exist.*data\.val_fraction above 0.*nothing is"
    ):
        read_calibration(tmp_path / "calibration.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": "warm"}, "temperature is 'warm', not a number"),
        ({"temperature": 0}, r"temperature 0; expected 0\.25 to 20"),
        ({"temperature": 1e-320}, r"expected 0\.25 to 20"),
        ({"n_images": 10**400}, "n_images is 1000.*, not a whole number"),
        ({"threshold": 1.5}, r"threshold 1\.5"),
        ({"threshold": None}, "threshold is None"),
        ({"sensitivity": True}, "sensitivity is True"),
        ({"n_cases": 2.5}, r"n_cases is 2\.5, not a whole number"),
        ({"surplus": 1}, "expected an object with temperature, threshold"),
    ],
)
def test_a_damaged_calibration_is_named_with_its_fault(tmp_path, change, message):
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(asdict(fit_calibration(random_table(0))) | change))

    with pytest.raises(RunFolderError, match=rf"calibration\.json is damaged: .*{message}.*data\.val_fraction above 0"):
        read_calibration(path)


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"temperature": NaN}', "\x00"])
def test_a_file_that_is_no_calibration_is_refused(tmp_path, content):
    path = tmp_path / "calibration.json"
    path.write_text(content)

    with pytest.raises(RunFolderError, match="is damaged"):
        read_calibration(path)


def test_infinite_numbers_are_refused(tmp_path):
    path = tmp_path / "calibration.json"
    fitted = replace(fit_calibration(random_table(0)), temperature=float("inf"))
    path.write_text(json.dumps(asdict(fitted)))

    with pytest.raises(RunFolderError, match="temperature is inf"):
        read_calibration(path)
