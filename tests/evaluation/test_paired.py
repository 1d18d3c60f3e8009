from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from breakhis_pl.errors import ConfigurationError, PredictionsError
from breakhis_pl.evaluation.differences import holm, paired_differences
from breakhis_pl.evaluation.paired import (
    METRICS,
    MOST_RUNS_IN_ALL_PAIRS,
    PUBLISHED_METRICS,
    PairedComparison,
    against_published,
    compare_runs,
    distinct_names,
)
from breakhis_pl.evaluation.predictions import Predictions
from breakhis_pl.evaluation.run_summary import Estimate, RunSummary
from tests.evaluation.run_folders import table

SOME_WRONG = (0, 3, 4, 11, 14)
OTHERS_WRONG = (0, 1, 2, 6, 7, 9, 12, 13, 18)


def by_metric(comparisons: list[PairedComparison]) -> dict[str, PairedComparison]:
    assert [each.metric for each in comparisons] == list(METRICS)
    return {each.metric: each for each in comparisons}


def of_report(model: str = "resnet18", **changes: object) -> RunSummary:
    facts: dict[str, object] = {
        "name": "mine",
        "status": "finished",
        "model": model,
        "split": "official",
        "fold": 2,
        "magnification": (200,),
        "test_magnification": (200,),
        "is_synthetic": False,
        "is_complete": True,
        "n_test_images": 597,
        "metrics": {
            "accuracy": Estimate(0.93, (0.88, 0.96)),
            "weighted_f1": Estimate(0.91, (0.82, 0.96)),
            "f1_benign": Estimate(0.80),
        },
    }
    return RunSummary(**{**facts, **changes})  # type: ignore[arg-type]


def test_a_difference_of_cases_of_equal_size_is_that_of_the_paired_t_test() -> None:
    a, b = table(), table(SOME_WRONG)

    accuracy = by_metric(compare_runs([("a", a), ("b", b)]))["accuracy"]

    of_case = (a.correct.astype(float) - b.correct).reshape(10, 2).mean(1)
    test = stats.ttest_1samp(of_case, 0)
    assert accuracy.difference == pytest.approx(0.25)
    assert accuracy.ci95 == pytest.approx(tuple(test.confidence_interval()), abs=0.005)
    assert accuracy.p == pytest.approx(test.pvalue, rel=0.05)
    assert accuracy.mcnemar_p == pytest.approx(stats.binomtest(0, len(SOME_WRONG)).pvalue)
    assert (accuracy.n_images, accuracy.n_cases, accuracy.reason) == (20, 10, None)


def test_equal_predictions_differ_by_nothing() -> None:
    for comparison in compare_runs([("a", table(SOME_WRONG)), ("b", table(SOME_WRONG))]):
        assert (comparison.difference, comparison.ci95) == (0, (0, 0))
        assert (comparison.p, comparison.p_holm, comparison.mcnemar_p) == (1, 1, 1)


def test_the_second_minus_the_first_is_the_same_with_the_other_sign() -> None:
    one, two = ("a", table(SOME_WRONG)), ("b", table(OTHERS_WRONG))

    for forth, back in zip(compare_runs([one, two]), compare_runs([two, one]), strict=True):
        assert (forth.first, forth.second) == (back.second, back.first) == ("a", "b")
        assert forth.difference == pytest.approx(-back.difference)
        assert forth.ci95 == pytest.approx((-back.ci95[1], -back.ci95[0]))
        assert forth.p == pytest.approx(back.p)


def test_the_order_of_rows_does_not_matter() -> None:
    a, b = table(SOME_WRONG), table(OTHERS_WRONG)
    turned = b.take(np.arange(len(b))[::-1])

    assert compare_runs([("a", a), ("b", turned)]) == compare_runs([("a", a), ("b", b)])


def test_differences_are_those_of_the_intervals_module_and_follow_seed_and_draws() -> None:
    a, b = table(SOME_WRONG), table(OTHERS_WRONG)

    comparisons = compare_runs([("a", a), ("b", b)], seed=3, n_draws=200)

    differences = paired_differences(a, b, metrics=METRICS, seed=3, n_draws=200)
    assert [(each.difference, each.ci95, each.p) for each in comparisons] == [
        (each.difference, each.ci95, each.p_value) for each in differences
    ]
    assert comparisons != compare_runs([("a", a), ("b", b)], seed=4, n_draws=200)


def test_runs_on_other_images_are_not_compared_and_the_counts_are_given() -> None:
    for comparison in compare_runs([("a", table()), ("b", table(n_cases=9, first=4))]):
        assert comparison.reason == "the test images differ: 4 only in a, 2 only in b"
        assert (comparison.difference, comparison.ci95, comparison.p, comparison.p_holm) == (None,) * 4
        assert (comparison.mcnemar_p, comparison.n_images, comparison.n_cases) == (None, 0, 0)


def test_images_of_another_truth_are_named() -> None:
    a = table()
    b = Predictions(**{name: getattr(a, name) for name in a.__slots__} | {"target": 1 - a.target})

    reason = compare_runs([("a", a), ("b", b)])[0].reason

    assert reason is not None
    assert reason.startswith("0.png, 1.png")
    assert "of another class or case in the other table" in reason


def test_a_metric_that_needs_both_classes_has_a_reason_where_one_is_missing() -> None:
    malignant = [each.select(each.target == 1) for each in (table(SOME_WRONG), table(OTHERS_WRONG))]

    found = by_metric(compare_runs([("a", malignant[0]), ("b", malignant[1])]))

    assert found["auroc"].difference is None
    assert found["auroc"].reason == "not defined, as the test images are all of one class"
    assert found["auroc"].mcnemar_p is None
    assert found["accuracy"].ci95 is not None
    assert found["accuracy"].p_holm == found["accuracy"].p


def test_a_single_case_has_a_difference_and_no_interval() -> None:
    one_case = [table(wrong, n_cases=1, n_images=4) for wrong in ((), (0,))]

    accuracy = by_metric(compare_runs([("a", one_case[0]), ("b", one_case[1])]))["accuracy"]

    assert accuracy.difference == pytest.approx(0.25)
    assert (accuracy.ci95, accuracy.p, accuracy.p_holm) == (None, None, None)
    assert accuracy.reason == "no interval, as it rests on 1 case; at least 2 are needed"


def test_a_difference_that_every_draw_shares_has_no_interval() -> None:
    always = [table(wrong, n_cases=4) for wrong in ((), (0, 2, 4, 6))]

    accuracy = by_metric(compare_runs([("a", always[0]), ("b", always[1])]))["accuracy"]

    assert accuracy.difference == 0.5
    assert accuracy.reason == "no interval, as every draw of cases gives the same difference"


def test_p_values_are_corrected_over_the_pairs_of_each_metric() -> None:
    tables = [("a", table()), ("b", table(SOME_WRONG)), ("c", table(OTHERS_WRONG))]

    comparisons = compare_runs(tables)

    assert [(each.first, each.second) for each in comparisons[:: len(METRICS)]] == [("a", "b"), ("a", "c"), ("b", "c")]
    for k in range(len(METRICS)):
        of_metric = comparisons[k :: len(METRICS)]
        assert [each.p_holm for each in of_metric] == holm([each.p for each in of_metric])
    smallest = min(comparisons[:: len(METRICS)], key=lambda each: each.p)
    assert smallest.p_holm == pytest.approx(3 * smallest.p)


def test_a_pair_on_other_images_does_not_weaken_the_tests_of_the_others() -> None:
    tables = [("a", table()), ("b", table(SOME_WRONG)), ("elsewhere", table(first=100))]

    alone, _, _ = (compare_runs(tables)[k :: len(METRICS)][0] for k in (0, 1, 2))

    assert alone.p_holm == alone.p


def test_summaries_without_a_result_are_passed_over_and_without_a_table_named() -> None:
    accuracy = {"accuracy": Estimate(0.9)}
    runs = [
        RunSummary("failed", "failed"),
        RunSummary("old", "finished", metrics=accuracy),
        RunSummary("new", "finished", metrics=accuracy, predictions=table()),
    ]

    comparisons = compare_runs(runs)

    assert {(each.first, each.second) for each in comparisons} == {("old", "new")}
    assert comparisons[0].reason == "no usable test/predictions.csv in old"
    assert compare_runs(runs[:2]) == compare_runs([]) == []


def test_of_many_runs_each_is_compared_with_the_first_on_the_same_images() -> None:
    n = MOST_RUNS_IN_ALL_PAIRS + 1
    runs = [(f"run {i}", table((i,))) for i in range(n)] + [(f"far {i}", table((i,), first=100)) for i in range(3)]

    pairs = [(each.first, each.second) for each in compare_runs(runs, n_draws=100)[:: len(METRICS)]]

    assert pairs == [("run 0", f"run {i}") for i in range(1, n)] + [
        ("far 0", "far 1"),
        ("far 0", "far 2"),
        ("far 1", "far 2"),
    ]


def test_names_and_draws_are_checked() -> None:
    with pytest.raises(PredictionsError, match="two runs are named 'a'; expected a name of its own"):
        compare_runs([("a", table()), ("a", table())])
    with pytest.raises(ConfigurationError, match="3 draws; expected at least 100"):
        compare_runs([("a", table()), ("b", table())], n_draws=3)


def test_a_run_on_the_reports_images_is_set_against_the_same_network() -> None:
    found = {each.metric: each for each in against_published([of_report()])}

    assert list(found) == ["accuracy", "weighted_f1", "f1_benign"]
    assert {each.network for each in found.values()} == {"ResNet-18"}
    assert not any(each.is_indicative for each in found.values())
    assert (round(found["accuracy"].theirs, 3), found["accuracy"].is_inside) == (0.876, False)
    assert (round(found["weighted_f1"].theirs, 3), found["weighted_f1"].is_inside) == (0.873, True)
    assert (round(found["f1_benign"].theirs, 3), found["f1_benign"].is_inside) == (0.763, None)
    assert set(found) < set(PUBLISHED_METRICS)


@pytest.mark.parametrize("changes", [{"is_complete": False}, {"n_test_images": 316}])
def test_a_run_on_some_of_the_reports_images_is_indicative(changes: dict[str, object]) -> None:
    assert all(each.is_indicative for each in against_published([of_report(**changes)]))


@pytest.mark.parametrize(
    "changes",
    [
        {"is_synthetic": True},
        {"is_synthetic": None},
        {"fold": 1},
        {"split": "ratio"},
        {"magnification": (40, 200)},
        {"model": "vgg"},
        {"model": None},
        {"metrics": {}},
    ],
)
def test_other_runs_are_not_set_against_the_report(changes: dict[str, object]) -> None:
    assert against_published([of_report(**changes)]) == []


def test_names_are_the_last_parts_that_tell_paths_apart(tmp_path: Path) -> None:
    for name in ("x.1/run", "y/run"):
        (tmp_path / name).mkdir(parents=True)

    assert distinct_names([tmp_path / "x.1", tmp_path / "y"]) == ["x.1", "y"]
    assert distinct_names([tmp_path / "x.1" / "run", tmp_path / "y" / "run"]) == ["x.1_run", "y_run"]
    assert distinct_names([Path("a/1.csv"), Path("a/2.csv")]) == ["1", "2"]
    assert distinct_names([]) == []
    with pytest.raises(PredictionsError, match=r"x\.1, .*run/\.\. is given more than once; name each once"):
        distinct_names([tmp_path / "x.1", tmp_path / "y", tmp_path / "x.1" / "run" / ".."])
    (tmp_path / "a.csv").touch()
    assert distinct_names([tmp_path / "a.csv", tmp_path / "a.txt"]) == ["a_1", "a_2"]
