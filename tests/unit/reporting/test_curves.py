"""ROC and precision-recall curves, their bands, and bins of calibration."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics
from sklearn.calibration import calibration_curve

from breakhis_pl.metrics.cases import draw_cases
from breakhis_pl.metrics.evaluation import evaluate
from breakhis_pl.metrics.predictions import Predictions
from breakhis_pl.reporting import curves
from breakhis_pl.reporting.curves import GRID, precision_recall_curve, reliability_bins, roc_curve
from tests.unit.reporting.conftest import constant_table, make_table


def tied_table(seed: int) -> Predictions:
    """Round probabilities to one decimal, so that images of both classes tie."""
    table = make_table(seed=seed, skill=0.5)
    return replace(table, probabilities=table.probabilities.round(1))


@pytest.mark.parametrize("seed", range(3))
def test_curves_pass_through_the_points_of_scikit_learn(seed: int) -> None:
    table = tied_table(seed)
    roc, precision_recall = roc_curve(table), precision_recall_curve(table)
    x, y, _ = sklearn_metrics.roc_curve(table.target, table.prob_positive, drop_intermediate=False)
    np.testing.assert_allclose([roc.x, roc.y], [x, y])
    assert np.trapezoid(roc.y, roc.x) == pytest.approx(evaluate(table, n_draws=100)["auroc"]["value"])
    precision, recall, _ = sklearn_metrics.precision_recall_curve(table.target, table.prob_positive)
    np.testing.assert_allclose(precision_recall.x, recall)
    np.testing.assert_allclose(precision_recall.y[:-1], precision[:-1])
    assert precision_recall.y[-1] == precision[-2]


def test_the_points_of_the_decisions_are_those_of_the_confusion_matrix() -> None:
    table = make_table(skill=0.5)
    metrics = evaluate(table, n_draws=100)
    roc, precision_recall = roc_curve(table, with_band=False), precision_recall_curve(table)
    assert roc.band is None
    assert roc.point == pytest.approx((1 - metrics["specificity"]["value"], metrics["sensitivity"]["value"]))
    malignant = metrics["per_class"]["malignant"]
    assert precision_recall.point == pytest.approx((malignant["recall"]["value"], malignant["precision"]["value"]))
    assert precision_recall_curve(replace(table, predicted=0 * table.target)).point is None


@pytest.mark.parametrize("only", [0, 1])
def test_images_of_one_class_have_no_curve(only: int) -> None:
    table = make_table()
    table = table.take(table.target == only)
    assert roc_curve(table) is None
    assert precision_recall_curve(table) is None


def test_a_single_case_of_a_class_gives_no_band() -> None:
    table = make_table()
    table = table.take((table.target == 0) | (table.case == "14-1001"))
    assert roc_curve(table).band is None
    assert precision_recall_curve(table).band is None


def test_bands_are_quantiles_of_scikit_learns_curves_of_drawn_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "N_BAND_DRAWS", 300)
    table = tied_table(0)
    roc, precision_recall = roc_curve(table), precision_recall_curve(table)
    rates, precisions = [], []
    for draw in draw_cases(6, seed=0, n_draws=300):
        rows = np.repeat(np.arange(len(table)), draw[table.case_index])
        target, probability = table.target[rows], table.prob_positive[rows]
        if len(set(target)) == 2:
            x, y, _ = sklearn_metrics.roc_curve(target, probability, drop_intermediate=False)
            rates.append([y[x == at].max() if at in x else np.interp(at, x, y) for at in GRID])
            precision, recall, _ = sklearn_metrics.precision_recall_curve(target, probability)
            precisions.append([precision[:-1][recall[:-1] >= max(at, 1e-8) - 1e-9][-1] for at in GRID])
    tail = stats.norm.cdf(-np.sqrt(3 / 2) * stats.t.ppf(0.975, 2))  # three cases of each class
    for curve, drawn in ((roc, rates), (precision_recall, precisions)):
        np.testing.assert_allclose(curve.band[1:], np.quantile(drawn, [tail, 1 - tail], axis=0), atol=1e-9)


@pytest.mark.parametrize("table", [make_table(), constant_table(), make_table(skill=30, n_patients=2, n_cases=2)])
def test_reliability_bins_count_every_image_once(table: Predictions) -> None:
    bins = reliability_bins(table)
    assert bins.counts.sum() == len(table)
    assert np.array_equal(np.isnan(bins.predicted), bins.counts == 0)
    assert np.array_equal(np.isnan(bins.observed), bins.counts == 0)
    is_used = bins.counts > 0
    observed, predicted = calibration_curve(table.target, table.prob_positive, n_bins=10)
    np.testing.assert_allclose(bins.observed[is_used], observed)
    np.testing.assert_allclose(bins.predicted[is_used], predicted)
    error = bins.counts[is_used] @ np.abs(bins.observed - bins.predicted)[is_used] / len(table)
    assert error == pytest.approx(evaluate(table, n_draws=100)["ece"]["value"])
