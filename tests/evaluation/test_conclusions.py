import pytest

from breakhis_pl.evaluation.conclusions import conclusions, is_shown, published_conclusions
from breakhis_pl.evaluation.paired import PairedComparison, PublishedComparison


def pair(
    difference: float | None = 0.05,
    ci95: tuple[float, float] | None = (0.01, 0.09),
    p: float | None = 0.016,
    p_holm: float | None = 0.016,
    reason: str | None = None,
) -> PairedComparison:
    return PairedComparison("a", "b", "weighted_f1", difference, ci95, p, p_holm, 0.2, 597, 27, reason)


def test_a_shown_difference_names_the_better_run_first() -> None:
    better = "a is better than b: weighted F1 higher by 0.050 (0.010 to 0.090), p = 0.016."
    assert conclusions([pair()]) == [better]
    worse = "b is better than a: weighted F1 higher by 0.050 (0.010 to 0.090), p = 0.016."
    assert conclusions([pair(-0.05, (-0.09, -0.01))]) == [worse]


def test_after_the_correction_a_difference_may_not_be_shown() -> None:
    sentences = conclusions([pair(p_holm=0.048), pair(p=0.03, p_holm=0.06), pair(p=0.0004, p_holm=0.0008)])

    assert sentences[0].endswith("p = 0.016, after Holm's correction for 3 pairs p = 0.048.")
    assert sentences[0].startswith("a is better than b")
    assert sentences[1] == (
        "a and b: no difference in weighted F1 can be shown: +0.050 (+0.010 to +0.090), p = 0.030, "
        "after Holm's correction for 3 pairs p = 0.060."
    )
    assert sentences[2].endswith("p < 0.001, after Holm's correction for 3 pairs p < 0.001.")


def test_equal_runs_differ_by_0_without_a_sign() -> None:
    assert conclusions([pair(0.0, (0.0, 0.0), 1.0, 1.0)]) == [
        "a and b: no difference in weighted F1 can be shown: 0.000 (0.000 to 0.000), p = 1.00."
    ]


def test_a_reason_stands_in_for_what_is_missing() -> None:
    without_interval = pair(0.25, None, None, None, "no interval, as it rests on 1 case")
    not_compared = pair(None, None, None, None, "the test images differ: 4 only in a, 0 only in b")

    assert conclusions([without_interval, not_compared]) == [
        "a and b: weighted F1 differs by +0.250; no interval, as it rests on 1 case.",
        "a and b are not compared: the test images differ: 4 only in a, 0 only in b.",
    ]
    assert not is_shown(without_interval)


def test_only_the_main_metric_is_put_in_a_sentence() -> None:
    assert conclusions([PairedComparison("a", "b", "accuracy", 0.1)]) == []


@pytest.mark.parametrize(
    ("ci95", "is_inside", "end"),
    [
        ((0.82, 0.96), True, "0.910 (0.82 to 0.96); the 0.873 of the report's ResNet-18 lies inside the interval."),
        ((0.88, 0.96), False, "0.910 (0.88 to 0.96); the 0.873 of the report's ResNet-18 lies outside the interval."),
        (None, None, "0.910, without an interval; the 0.873 of the report's ResNet-18 cannot be judged by it."),
    ],
)
def test_the_reports_figure_is_inside_or_outside(
    ci95: tuple[float, float] | None, is_inside: bool | None, end: str
) -> None:
    published = PublishedComparison("mine", "ResNet-18", "weighted_f1", 0.91, ci95, 0.8734, is_inside, False)

    assert published_conclusions([published]) == [f"mine: weighted F1 {end}"]
