"""Intervals over cases: golden numbers, limits, what has none, and how often they cover the truth."""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from scipy import stats

from breakhis_pl.metrics.cases import MAX_GROUPS, CaseTable, Draws, draw_cases
from breakhis_pl.metrics.intervals import Limits, case_intervals
from breakhis_pl.metrics.predictions import Predictions, read_predictions
from breakhis_pl.metrics.registry import METRICS
from tests.conftest import REPOSITORY
from tests.unit.metrics.tables import fold_2, random_table, simulate_fold_2, table


def intervals(
    predictions: Predictions, names: Sequence[str] = tuple(METRICS), *, seed: int = 0, n_draws: int = 500
) -> dict[str, list[Limits]]:
    cases = CaseTable(predictions)
    weights = draw_cases(cases.n_groups, seed=seed, n_draws=n_draws)
    return case_intervals(cases, weights, {name: METRICS[name] for name in names})


def interval(predictions: Predictions, name: str, **options: int) -> Limits:
    return intervals(predictions, [name], **options)[name][0]


@cache
def published() -> Predictions:
    return read_predictions(REPOSITORY / "results" / "839_images" / "resnet18_seed0" / "test" / "predictions.csv")


@pytest.mark.parametrize(
    ("name", "value", "limits"),
    [
        ("accuracy", 0.8765823, (0.680, 0.957)),
        ("weighted_f1", 0.8764596, (0.676, 0.957)),
        ("balanced_accuracy", 0.8647064, (0.612, 0.960)),
        ("auroc", 0.9503030, (0.817, 0.985)),
        ("log_loss", 0.4655842, (0.187, 1.173)),
        ("ece", 0.1083591, (0.0, 0.217)),
        ("case_accuracy", 0.8947368, (0.686, 0.971)),
    ],
)
def test_values_and_limits_of_a_published_table_stay(name: str, value: float, limits: tuple[float, float]) -> None:
    assert METRICS[name].values(Draws(CaseTable(published())))[0] == pytest.approx(value, abs=1e-6)
    assert interval(published(), name, n_draws=10_000) == pytest.approx(limits, abs=6e-4)


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("ece", (0.0374, 0.1304)),
        ("mcc", (0.6058, 0.8234)),
        ("brier", (0.0842, 0.1268)),
        ("patient_recognition_rate", (0.8173, 0.9286)),
    ],
)
def test_limits_of_a_table_of_few_cases_stay(name: str, limits: tuple[float, float]) -> None:
    assert interval(random_table(0), name) == pytest.approx(limits, abs=6e-5)


def test_a_value_rests_on_all_cases_at_most_also_if_they_have_images_of_several_classes() -> None:
    balanced = METRICS["balanced_accuracy"]
    of_both = table(np.arange(8) // 2, np.arange(8) % 2, np.linspace(0.1, 0.9, 8))
    assert balanced.n_effective_cases(CaseTable(of_both)) == 4
    of_one_each = table(np.arange(8), np.arange(8) % 2, np.linspace(0.1, 0.9, 8))
    assert balanced.n_effective_cases(CaseTable(of_one_each)) == 8
    of_few = table(np.arange(8), np.arange(8) > 1, np.linspace(0.1, 0.9, 8))
    assert balanced.n_effective_cases(CaseTable(of_few)) == pytest.approx(4 / (1 / 2 + 1 / 6))


@pytest.mark.parametrize("n_classes", [2, 3, 8])
@pytest.mark.parametrize("seed", range(4))
def test_limits_contain_the_value_and_stay_in_the_range_of_the_metric(n_classes: int, seed: int) -> None:
    predictions = random_table(seed, n_classes=n_classes, n_cases=20)
    once = Draws(CaseTable(predictions))
    for name, found in intervals(predictions).items():
        values = METRICS[name].values(once).reshape(-1)
        for value, limits in zip(values, found, strict=True):
            assert limits is None or METRICS[name].range[0] <= limits[0] <= value <= limits[1] <= METRICS[name].range[1]
    assert None not in [interval(predictions, name) for name in ("accuracy", "auroc", "log_loss", "ece", "brier")]


def test_limits_follow_from_the_seed_and_not_from_the_order_of_rows() -> None:
    predictions = random_table(0)
    shuffled = predictions.take(np.random.default_rng(0).permutation(len(predictions)))
    first = intervals(predictions)
    assert intervals(predictions) == first
    assert intervals(predictions, seed=1)["accuracy"] != first["accuracy"]
    for name, limits in intervals(shuffled).items():
        assert np.array(limits, dtype=float) == pytest.approx(np.array(first[name], dtype=float), nan_ok=True), name


def test_perfect_predictions_have_an_interval_that_ends_at_1() -> None:
    case = np.arange(27).repeat(3)
    found = intervals(table(case, case >= 9, np.where(case >= 9, 0.9, 0.1)))
    for name in ("accuracy", "weighted_f1", "balanced_accuracy", "auroc", "sensitivity", "specificity", "mcc"):
        (limits,) = found[name]
        assert limits is not None
        assert limits[0] < 1
        assert limits[1] == 1, name
    wilson = stats.binomtest(27, 27).proportion_ci(method="wilson")  # with a normal quantile: narrower than with t's
    assert found["accuracy"][0][0] < wilson.low
    assert found["case_accuracy"] == [pytest.approx((wilson.low, 1))]


def test_a_network_that_predicts_one_class_has_an_interval_of_its_accuracy_only() -> None:
    found = intervals(table(np.arange(30) // 2, np.arange(30) // 2 % 3 > 0, np.linspace(0.6, 0.9, 30)))
    assert [None] not in [found[name] for name in ("accuracy", "weighted_f1", "auroc", "log_loss", "brier")]
    for name in ("balanced_accuracy", "mcc", "sensitivity", "specificity", "macro_recall"):
        assert found[name] == [None], name
    assert found["recall"] == [None, None]


def test_a_single_case_and_a_class_of_a_single_case_have_no_interval() -> None:
    of_one_case = intervals(table([0, 0, 0], [0, 1, 1], [0.4, 0.7, 0.2]))
    found = intervals(table([0, 0, 1, 2], [0, 0, 1, 1], [0.2, 0.6, 0.9, 0.4]))
    assert found["recall"][0] is found["specificity"][0] is found["auroc"][0] is found["balanced_accuracy"][0] is None
    assert found["recall"][1] is not None
    assert found["accuracy"][0] is not None
    assert {limits for found in of_one_case.values() for limits in found} == {None}


def test_the_calibration_error_of_a_calibrated_network_may_be_zero_by_its_interval() -> None:
    rng = np.random.default_rng(0)
    tables = [table(np.arange(600) // 10, rng.random(600) < each, each) for each in rng.random((20, 600))]
    limits = [interval(rows, "ece", n_draws=200) for rows in tables]
    assert sum(each is not None and each[0] == 0 for each in limits) >= 15


def test_many_cases_are_resampled_in_groups_and_have_the_interval_of_independent_images() -> None:
    rng, n = np.random.default_rng(0), 3 * MAX_GROUPS
    target = rng.integers(0, 2, n)
    rows = table(np.arange(n), target, np.where(rng.random(n) < 0.8, target, 1 - target) * 0.8 + 0.1)
    values = {name: METRICS[name].values(Draws(CaseTable(rows)))[0] for name in ("accuracy", "case_accuracy", "auroc")}
    assert values["case_accuracy"] == pytest.approx(values["accuracy"])
    assert values["accuracy"] == pytest.approx(rows.correct.mean())
    for name in ("accuracy", "auroc"):
        limits = interval(rows, name)
        assert limits is not None
        assert limits[1] - limits[0] == pytest.approx(2 * 1.96 * math.sqrt(0.8 * 0.2 / n), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("correlation", [0.1, 0.2])
def test_intervals_cover_the_truth_as_often_as_they_say(correlation: float) -> None:
    recall, support = np.array([0.8, 0.93]), np.array([168, 429])
    correct = recall * support
    n_predicted = correct + (support - correct)[::-1]
    truth = {
        "accuracy": correct.sum() / 597,
        "weighted_f1": (2 * correct / (support + n_predicted) * support).sum() / 597,
        "specificity": recall[0],
        "sensitivity": recall[1],
    }
    rng = np.random.default_rng(2022)
    covered = dict.fromkeys(truth, 0)
    for trial in range(500):
        rows = simulate_fold_2(rng, recall=recall, correlation=correlation)
        found = intervals(rows, tuple(truth), seed=trial, n_draws=1000)
        for name, value in truth.items():
            (limits,) = found[name]
            covered[name] += limits is not None and limits[0] <= value <= limits[1]
    for name, count in covered.items():
        assert 0.92 <= count / 500 <= 0.98, (name, count / 500)


@pytest.mark.slow
@pytest.mark.parametrize("correlation", [0.2, 0.6])
def test_intervals_of_the_auroc_cover_the_truth_as_often_as_they_say(correlation: float) -> None:
    names, target = fold_2()
    case = np.unique(names, return_inverse=True)[1]
    shift = np.where(target == 1, 1.5, -0.8)  # scores of variance 1: the AUROC is that of means 2.3 apart
    truth = stats.norm.cdf(2.3 / math.sqrt(2))
    rng = np.random.default_rng(2022)
    n_covered = 0
    for trial in range(500):
        effect = rng.normal(0, math.sqrt(correlation), 27)[case]
        score = shift + effect + rng.normal(0, math.sqrt(1 - correlation), len(case))
        limits = interval(table(names, target, 1 / (1 + np.exp(-score))), "auroc", seed=trial, n_draws=1000)
        n_covered += limits is not None and limits[0] <= truth <= limits[1]
    assert 0.92 <= n_covered / 500 <= 0.98, n_covered / 500
