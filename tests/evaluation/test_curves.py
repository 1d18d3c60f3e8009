import math
import time
from statistics import NormalDist

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve, roc_curve

from breakhis_pl.errors import ConfigurationError, PredictionsError
from breakhis_pl.evaluation import scores
from breakhis_pl.evaluation.curves import GRID, precision_recall_points, reliability_bins, roc_points
from breakhis_pl.evaluation.patients import patient_rows
from breakhis_pl.evaluation.predictions import Predictions, index_of
from breakhis_pl.evaluation.student import quantile_95
from tests.evaluation.written_runs import drawn_predictions


def table(target: list[int], prob_malignant: list[float], case: list[str] | None = None) -> Predictions:
    malignant = np.array(prob_malignant, dtype=np.float64)
    names = tuple(case or [f"case {row}" for row in range(len(target))])
    return Predictions(
        image=tuple(f"{row}.png" for row in range(len(target))),
        patient=names,
        case=names,
        magnification=np.full(len(target), 200),
        target=np.array(target, dtype=np.int64),
        probabilities=np.column_stack([1 - malignant, malignant]),
        predicted=(malignant > 0.5).astype(np.int64),
    )


def tied_predictions(seed: int) -> Predictions:
    """Probabilities of one decimal, so that images of both classes tie."""
    drawn = drawn_predictions(seed=seed, skill=0.5)
    return table(drawn.target.tolist(), np.round(drawn.prob_malignant, 1).tolist(), list(drawn.case))


@pytest.mark.parametrize("seed", range(5))
def test_the_roc_curve_passes_through_scikit_learns_points(seed: int) -> None:
    predictions = tied_predictions(seed)
    curve = roc_points(predictions, n_draws=100)
    x, y, _ = roc_curve(predictions.target, predictions.prob_malignant, drop_intermediate=False)

    assert curve is not None
    np.testing.assert_allclose(curve.x, x)
    np.testing.assert_allclose(curve.y, y)
    assert np.trapezoid(curve.y, curve.x) == pytest.approx(
        scores.roc_auc(predictions.target, predictions.prob_malignant)
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_precision_recall_curve_passes_through_scikit_learns_points(seed: int) -> None:
    predictions = tied_predictions(seed)
    curve = precision_recall_points(predictions, n_draws=100)
    precision, recall, _ = precision_recall_curve(predictions.target, predictions.prob_malignant)

    assert curve is not None
    np.testing.assert_allclose(curve.x, recall)
    np.testing.assert_allclose(curve.y[:-1], precision[:-1])  # scikit-learn ends in precision 1, by convention
    steps = -np.diff(curve.x) * curve.y[:-1]
    assert steps.sum() == pytest.approx(scores.average_precision(predictions.target, predictions.prob_malignant))


def test_the_points_of_the_decisions_are_those_of_the_confusion_matrix() -> None:
    predictions = table([0, 0, 0, 0, 1, 1], [0.1, 0.2, 0.3, 0.9, 0.8, 0.4])
    roc, precision_recall = roc_points(predictions), precision_recall_points(predictions)

    assert roc is not None
    assert precision_recall is not None
    assert roc.point == (0.25, 0.5)
    assert precision_recall.point == (0.5, 0.5)


def test_without_an_image_called_malignant_precision_has_no_point() -> None:
    curve = precision_recall_points(table([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4]))

    assert curve is not None
    assert curve.point is None


@pytest.mark.parametrize("target", [[0, 0, 0], [1, 1, 1]])
def test_images_of_one_class_have_no_curve(target: list[int]) -> None:
    predictions = table(target, [0.2, 0.6, 0.7])

    assert roc_points(predictions) is None
    assert precision_recall_points(predictions) is None


def test_one_case_of_a_class_has_a_curve_without_a_band() -> None:
    predictions = table([0, 0, 1, 1], [0.1, 0.2, 0.7, 0.4], ["a", "a", "b", "c"])
    roc, precision_recall = roc_points(predictions), precision_recall_points(predictions)

    assert roc is not None
    assert precision_recall is not None
    assert roc.band is None
    assert precision_recall.band is None


def _reference_bands(predictions: Predictions, *, seed: int, n_draws: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The bands draw by draw, image by image: copies of the drawn cases' images, scikit-learn's curves."""
    case = index_of(predictions.case)
    n_cases = int(case.max()) + 1
    draws = np.random.default_rng(seed).multinomial(n_cases, np.full(n_cases, 1 / n_cases), size=n_draws)
    sensitivities, precisions = [], []
    for draw in draws:
        rows = np.repeat(np.arange(len(predictions)), draw[case])
        target, probability = predictions.target[rows], predictions.prob_malignant[rows]
        if len(set(target)) < 2:
            continue
        x, y, _ = roc_curve(target, probability, drop_intermediate=False)
        sensitivities.append([np.interp(at, x, y) if at not in x else y[x == at].max() for at in GRID])
        precision, recall, _ = precision_recall_curve(target, probability)
        precision, recall = precision[:-1], recall[:-1]
        precisions.append([precision[recall >= max(at, 1e-8) - 1e-9][-1] for at in GRID])
    behind = min(len(set(case[predictions.target == of])) for of in (0, 1))
    tail = NormalDist().cdf(-math.sqrt(behind / (behind - 1)) * quantile_95(behind - 1))
    return [
        [np.quantile(np.array(curves), level, axis=0) for level in (tail, 1 - tail)]
        for curves in (sensitivities, precisions)
    ]


@pytest.mark.parametrize("seed", [0, 1])
def test_bands_are_those_of_drawing_cases_one_by_one(seed: int) -> None:
    predictions = tied_predictions(seed)
    roc = roc_points(predictions, seed=seed, n_draws=300)
    precision_recall = precision_recall_points(predictions, seed=seed, n_draws=300)
    expected = _reference_bands(predictions, seed=seed, n_draws=300)

    for curve, (lower, upper) in zip((roc, precision_recall), expected, strict=True):
        assert curve is not None
        assert curve.band is not None
        np.testing.assert_allclose(curve.band.lower, lower, atol=1e-9)
        np.testing.assert_allclose(curve.band.upper, upper, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_a_band_holds_its_curve(seed: int) -> None:
    predictions = drawn_predictions(seed=seed)
    curve = roc_points(predictions, seed=seed)

    assert curve is not None
    assert curve.band is not None
    at_grid = np.interp(GRID, curve.x, curve.y)
    assert (np.asarray(curve.band.lower) <= at_grid + 1e-9).all()
    assert (np.asarray(curve.band.upper) >= at_grid - 1e-9).all()


def test_a_perfect_ranking_has_a_band_without_width() -> None:
    curve = roc_points(table([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9]))

    assert curve is not None
    assert curve.band is not None
    assert (np.asarray(curve.band.lower) == 1).all()


def test_the_same_seed_gives_the_same_band() -> None:
    predictions = drawn_predictions()
    first, again, other = (roc_points(predictions, seed=seed, n_draws=200) for seed in (3, 3, 4))

    assert first is not None and again is not None and other is not None  # noqa: PT018
    assert first.band is not None and again.band is not None and other.band is not None  # noqa: PT018
    np.testing.assert_array_equal(first.band.lower, again.band.lower)
    assert (np.asarray(first.band.lower) != np.asarray(other.band.lower)).any()


@pytest.mark.parametrize("points", [roc_points, precision_recall_points])
def test_impossible_draws_are_refused_by_value(points) -> None:  # type: ignore[no-untyped-def]
    predictions = drawn_predictions()

    with pytest.raises(ConfigurationError, match="99 draws; expected at least 100"):
        points(predictions, n_draws=99)
    with pytest.raises(ConfigurationError, match="seed -1 is negative"):
        points(predictions, seed=-1)
    with pytest.raises(PredictionsError, match="without rows has no curve"):
        points(predictions.select(np.zeros(len(predictions), dtype=np.bool_)))


def test_bands_of_all_images_of_breakhis_take_seconds() -> None:
    random = np.random.default_rng(0)
    case = np.sort(random.integers(0, 70, 7909))
    predictions = table((case % 3 > 0).astype(int).tolist(), random.random(7909).tolist(), [f"c{of}" for of in case])
    began = time.process_time()
    roc_points(predictions)

    assert time.process_time() - began < 6  # 1.2 on the machine this was written on


@pytest.mark.parametrize("seed", range(5))
def test_reliability_bins_are_those_of_the_calibration_error(seed: int) -> None:
    predictions = tied_predictions(seed)
    bins = reliability_bins(predictions)
    gaps = np.abs(np.nan_to_num(bins.observed - bins.predicted))

    assert bins.counts.sum() == len(predictions)
    assert (bins.counts * gaps).sum() / len(predictions) == pytest.approx(
        scores.expected_calibration_error(predictions.target, predictions.prob_malignant)
    )
    full = bins.counts > 0
    assert (bins.predicted[full] >= bins.edges[:-1][full] - 1e-12).all()
    assert (bins.predicted[full] <= bins.edges[1:][full] + 1e-12).all()
    assert np.isnan(bins.observed[~full]).all()


def test_patients_come_worst_first_and_ties_by_name() -> None:
    drawn = table([0, 0, 1, 1, 0], [0.1, 0.9, 0.8, 0.6, 0.7], ["b", "b", "c", "a", "d"])
    rows = patient_rows(drawn)

    assert [(row.patient, row.n_correct, row.n_images) for row in rows] == [
        ("d", 0, 1), ("b", 1, 2), ("a", 1, 1), ("c", 1, 1),
    ]  # fmt: skip
    assert rows[1].mean_prob_malignant == pytest.approx(0.5)
    assert rows[1].subtype is None


def test_the_mean_share_of_patients_is_the_patient_recognition_rate() -> None:
    predictions = drawn_predictions()
    rows = patient_rows(predictions)

    assert len(rows) == 28
    assert {row.subtype for row in rows} <= {"A", "F", "PT", "TA", "DC", "LC", "MC", "PC"}
    assert np.mean([row.share for row in rows]) == pytest.approx(
        scores.patient_recognition_rate(predictions.correct, index_of(predictions.patient))
    )


def test_a_patient_with_images_of_both_classes_has_a_row_of_each() -> None:
    rows = patient_rows(table([0, 1], [0.1, 0.9], ["a", "a"]))

    assert [(row.patient, row.target) for row in rows] == [("a", 0), ("a", 1)]
