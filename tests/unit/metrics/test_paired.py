"""Differences of two networks on the same images, and tests of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from breakhis_pl.errors import PredictionsError
from breakhis_pl.metrics import paired
from breakhis_pl.metrics.cases import CaseTable, Draws
from breakhis_pl.metrics.predictions import Predictions
from breakhis_pl.metrics.registry import METRICS, shown
from tests.unit.metrics.tables import random_table, simulate_fold_2, table

PAIRED = shown("paired")


def pair(seed: int, *, n_classes: int = 2) -> tuple[Predictions, Predictions]:
    """Two networks on the same images; the second one exchanges the probabilities of every other image."""
    first = random_table(seed, n_classes=n_classes)
    is_changed = np.random.default_rng(seed).random(len(first)) < 0.5
    probabilities = np.where(is_changed[:, None], first.probabilities[:, ::-1], first.probabilities)
    return first, replace(first, probabilities=probabilities, predicted=probabilities.argmax(1))


def value_of(predictions: Predictions, name: str) -> float:
    return float(METRICS[name].values(Draws(CaseTable(predictions)))[0])


def difference(first: Predictions, second: Predictions, name: str = "accuracy", *, seed: int = 0) -> paired.Difference:
    return paired.paired_differences(first, second, [METRICS[name]], seed=seed, n_draws=500)[0]


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_a_difference_is_first_minus_second_and_changes_sign_with_their_order(seed: int, n_classes: int) -> None:
    first, second = pair(seed, n_classes=n_classes)
    forth, back = (paired.paired_differences(*each, PAIRED, n_draws=500) for each in ((first, second), (second, first)))
    for metric, one, other in zip(PAIRED, forth, back, strict=True):
        assert one.value == pytest.approx(value_of(first, metric.name) - value_of(second, metric.name))
        assert one.ci95 is not None
        assert other.ci95 is not None
        assert other.value == pytest.approx(-one.value)
        assert other.ci95 == pytest.approx((-one.ci95[1], -one.ci95[0]))
        assert other.p == pytest.approx(one.p)
        assert one.ci95[0] <= one.value <= one.ci95[1]
        assert (one.p < 0.05) == (not one.ci95[0] <= 0 <= one.ci95[1])


@pytest.mark.parametrize("gains", [(4, 0), (4, 3, 0), (3, 1, 2, -1, 0, 4), (1, 2, 0, -1, 1, 3, 0, 2, 1, -2, 1, 1)])
def test_interval_and_p_value_of_cases_of_equal_size_are_those_of_the_paired_t_test(gains: tuple[int, ...]) -> None:
    # of four images of a case, both networks have two or fewer correct; one of them has `gain` more
    case = np.arange(len(gains)).repeat(4)
    n_correct = [(max(gain, 0), max(-gain, 0)) for gain in gains]
    first, second = (
        table(case, np.ones(len(case)), [0.9 if image < n[side] else 0.1 for n in n_correct for image in range(4)])
        for side in range(2)
    )
    (found,) = paired.paired_differences(first, second, [METRICS["accuracy"]], n_draws=20_000)
    expected = stats.ttest_1samp(np.array(gains) / 4, 0)
    limits = np.clip(expected.confidence_interval(0.95), -1, 1)
    assert found.value == pytest.approx(np.mean(gains) / 4)
    assert found.ci95 == pytest.approx(limits, abs=0.01)
    assert found.p == pytest.approx(expected.pvalue, rel=0.03)


def test_the_limits_of_a_difference_are_within_twice_the_range_of_the_metric() -> None:
    first, second = (table([0, 1, 2, 3], [0, 0, 1, 1], positive) for positive in ([0.1, 0.1, 0.9, 0.9], [0.9, 0.1] * 2))
    found = difference(first, second, "mcc")
    assert found.value == pytest.approx(1)
    assert found.ci95 is not None
    assert -2 <= found.ci95[0] < 0
    assert found.ci95[1] == 2


def test_equal_predictions_have_a_difference_of_zero_without_interval_and_p_value() -> None:
    rows = random_table(0)
    for found in paired.paired_differences(rows, rows.take(np.arange(len(rows))[::-1]), PAIRED, n_draws=200):
        assert found == paired.Difference(found.metric, pytest.approx(0, abs=1e-12), None, None, found.n_cases)


def test_rows_are_aligned_by_the_names_of_the_images() -> None:
    first, second = pair(2)
    shuffled = second.take(np.random.default_rng(0).permutation(len(second)))
    assert paired.paired_differences(first, shuffled, PAIRED, n_draws=200) == paired.paired_differences(
        first, second, PAIRED, n_draws=200
    )


def test_tables_of_other_images_or_another_truth_are_refused() -> None:
    first, second = pair(0)
    wrong_truth = np.where(np.arange(len(second)) == 3, 1 - second.target, second.target)
    with pytest.raises(PredictionsError, match=second.image[0]):
        difference(first, second.take(np.arange(1, len(second))))
    with pytest.raises(PredictionsError, match=second.image[3]):
        difference(first, replace(second, target=wrong_truth))


@pytest.mark.parametrize("n_folds", [1, 2, 3])
def test_cases_that_several_folds_test_alike_count_once(n_folds: int) -> None:
    first, second = pair(1)
    assert [metric.name for metric in paired.decision_metrics()] == ["weighted_f1", "accuracy"]
    pooled = paired.pooled_differences([(first, second)] * n_folds, paired.decision_metrics(), n_draws=500)
    for found, expected in zip(
        pooled, paired.paired_differences(first, second, paired.decision_metrics(), n_draws=500), strict=True
    ):
        assert found.value == pytest.approx(expected.value)
        assert found.ci95 == pytest.approx(expected.ci95)
        assert found.p == pytest.approx(expected.p)
        assert found.n_cases == expected.n_cases


def test_a_case_of_several_folds_weighs_as_much_as_one_of_a_single_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = pair(1)
    half = np.isin(first.case, np.unique(first.case)[::2])
    pairs = [(first, second), (first.take(np.flatnonzero(half)), second.take(np.flatnonzero(half)))]
    found = paired.pooled_differences(pairs, [METRICS["accuracy"]], n_draws=500)
    # the second fold adds nothing: it repeats the images of cases that then count half
    assert found == paired.paired_differences(first, second, [METRICS["accuracy"]], n_draws=500)
    monkeypatch.setattr(paired, "MAX_GROUPS", 5)
    with pytest.raises(PredictionsError, match="at most 5"):
        paired.pooled_differences(pairs, [METRICS["accuracy"]])


def test_a_difference_that_does_not_vary_or_rests_on_one_case_has_no_interval_and_no_p_value() -> None:
    for case in ([0, 1, 2], [0, 0, 0]):
        correct, wrong = (table(case, [1, 1, 1], [probability] * 3) for probability in (0.9, 0.1))
        assert difference(correct, wrong) == paired.Difference("accuracy", 1.0, None, None, len(set(case)))
        assert difference(correct, wrong, "auroc").value is None


@pytest.mark.parametrize("seed", range(8))
def test_without_a_draw_of_all_classes_there_is_no_interval_and_no_p_value(seed: int) -> None:
    first, second = (table([0, 1, 2, 3], [0, 0, 1, 1], each) for each in ([0.1, 0.2, 0.8, 0.9], [0.9, 0.2, 0.8, 0.1]))
    (found,) = paired.paired_differences(first, second, [METRICS["balanced_accuracy"]], seed=seed, n_draws=1)
    assert found == paired.Difference("balanced_accuracy", 0.5, None, None, 2)


@pytest.mark.parametrize("counts", [(6, 15), (15, 6), (0, 1), (0, 0), (3, 3), (0, 40), (500, 440)])
def test_mcnemar_is_the_binomial_test_of_the_images_that_one_network_alone_has_correct(counts: tuple[int, int]) -> None:
    outcomes = [(True, False)] * counts[0] + [(False, True)] * counts[1] + [(True, True)] * 20 + [(False, False)] * 7
    n, fewer = sum(counts), min(counts)
    expected = min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)
    assert paired.mcnemar(*np.array(outcomes).T) == pytest.approx(expected)


@pytest.mark.parametrize("n", [0, 1, 2, 5, 28])
def test_holm_is_the_largest_of_the_smaller_p_values_times_the_number_of_those_not_smaller(n: int) -> None:
    p_values = np.round(np.random.default_rng(n).random(n) ** 3, 1 if n == 28 else 3)
    expected = [min(1.0, max(q * (p_values >= q).sum() for q in p_values if q <= p)) for p in p_values]
    assert paired.holm(p_values.tolist()) == pytest.approx(expected)


@pytest.mark.slow
def test_equal_networks_differ_significantly_in_about_one_of_twenty_trials() -> None:
    rng = np.random.default_rng(7)
    n_significant = 0
    for trial in range(500):
        first, second = (simulate_fold_2(rng, recall=(0.8, 0.93), correlation=0.2) for _ in range(2))
        p = difference(first, second, "weighted_f1", seed=trial).p
        n_significant += p is not None and p < 0.05
    assert 0.02 <= n_significant / 500 <= 0.08
