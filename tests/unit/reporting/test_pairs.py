"""What is said of a difference."""

import pytest

from breakhis_pl.metrics.paired import Difference
from breakhis_pl.reporting.pairs import Pair, conclusions, pair_table


def pair(
    value: float | None,
    ci95: tuple[float, float] | None = None,
    p: float | None = None,
    *,
    holm: float = 0.5,
    n: int = 9,
) -> Pair:
    p_holm = {} if p is None else {"weighted_f1": holm}
    return Pair("a", "b", {"weighted_f1": Difference("weighted_f1", value, ci95, p, n)}, p_holm)


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (
            pair(0.1, (0.02, 0.18), 0.02, holm=0.02),
            "On these images, a has a higher weighted F1 than b: by 0.100 (0.020 to 0.180), p = 0.020.",
        ),
        (
            pair(-0.1, (-0.18, -0.02), 0.0004, holm=0.0004),
            "On these images, b has a higher weighted F1 than a: by 0.100 (0.020 to 0.180), p < 0.001.",
        ),
        (
            pair(-0.1, (-0.3, 0.1), 0.3),
            "a and b: no difference shown; weighted F1 -0.100 (-0.300 to +0.100), p = 0.30.",
        ),
        (pair(0.2, n=1), "a and b: weighted F1 differs by +0.200, from one case only."),
        (pair(1.0, n=3), "a and b: weighted F1 differs by +1.000, in every draw of cases, so there is no interval."),
        (pair(0.0), "a and b: weighted F1 is the same."),
        (pair(None), "a and b: weighted F1 is not defined for both."),
        (Pair("a", "b", reason="other classes", basis=" (folds 1, 2)"), "a and b (folds 1, 2): other classes."),
    ],
)
def test_a_pair_has_a_sentence(found: Pair, sentence: str) -> None:
    assert conclusions([found]) == [sentence]


def test_of_several_tests_the_corrected_p_value_decides() -> None:
    first, second = conclusions([pair(0.1, (0.02, 0.18), 0.03, holm=0.06), pair(0.2, (0.1, 0.3), 0.01, holm=0.02)])
    assert first.startswith("a and b: no difference shown")
    assert "p = 0.030, 0.060 after Holm's correction for 2 tests" in first
    assert second.startswith("On these images, a has a higher")


def test_the_table_has_a_row_per_metric_and_mcnemar_beside_accuracy_alone() -> None:
    differences = {name: Difference(name, 0.1, (-0.05, 0.25), 0.2, 9) for name in ("weighted_f1", "accuracy")}
    p_holm = {"weighted_f1": 0.4, "accuracy": 0.6}
    table = pair_table([Pair("a", "b", differences, p_holm, mcnemar_p=0.0001)], "Pairs")
    assert table is not None
    assert table.rows == [
        ["a minus b", "Weighted F1", "+0.100", "-0.050 to +0.250", "9", "0.20", "0.40", None],
        ["a minus b", "Accuracy", "+0.100", "-0.050 to +0.250", "9", "0.20", "0.60", "< 0.001"],
    ]
    without = pair_table([Pair("a", "b", differences, p_holm), Pair("a", "c", reason="other classes")], "Pairs")
    assert without is not None
    assert [len(row) for row in without.rows] == [7, 7]
    assert "McNemar p" not in without.headings
    assert pair_table([Pair("a", "c", reason="other classes")], "Pairs") is None
