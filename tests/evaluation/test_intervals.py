import math
from functools import cache

import numpy as np
import pytest

from breakhis_pl.data.breakhis import Subset, official_patients, parse_file_name
from breakhis_pl.errors import ConfigurationError, PredictionsError, ShapeError
from breakhis_pl.evaluation.case_table import tabulate_cases
from breakhis_pl.evaluation.differences import align, holm, mcnemar, paired_difference, paired_differences
from breakhis_pl.evaluation.intervals import case_intervals
from breakhis_pl.evaluation.metrics import point_values
from breakhis_pl.evaluation.predictions import Predictions
from breakhis_pl.evaluation.student import quantile_95, two_sided_p


def table(case, target, prob_malignant):
    case, target, prob = np.asarray(case), np.asarray(target), np.asarray(prob_malignant, dtype=np.float64)
    return Predictions(
        image=tuple(f"{i}.png" for i in range(len(case))),
        patient=tuple(f"patient {each}" for each in case),
        case=tuple(f"case {each}" for each in case),
        magnification=np.full(len(case), 200),
        target=target.astype(np.int64),
        probabilities=np.stack([1 - prob, prob], axis=1),
        predicted=(prob > 0.5).astype(np.int64),
    )


def random_table(seed, *, n_cases=12, n_images=100, digits=2):
    rng = np.random.default_rng(seed)
    case = np.concatenate([np.arange(n_cases), rng.integers(0, n_cases, n_images - n_cases)])
    target = (case % 3 > 0).astype(np.int64)
    prob = 1 / (1 + np.exp(-(2 * target - 1 + rng.normal(size=n_cases)[case] + rng.normal(size=n_images))))
    return table(case, target, np.round(prob, digits))


@cache
def fold_2():
    """Names of the 597 test images of fold 2 at 200X."""
    return [
        parse_file_name(f"{official.patient}-200-{number:03d}.png")
        for official in official_patients().values()
        if official.subsets[2] is Subset.TEST
        for number in range(1, official.n_images[200] + 1)
    ]


def on_fold_2(prob_malignant):
    names = fold_2()
    return Predictions(
        image=tuple(name.file_name for name in names),
        patient=tuple(name.patient for name in names),
        case=tuple(name.case for name in names),
        magnification=np.full(len(names), 200),
        target=np.array([name.target for name in names]),
        probabilities=np.stack([1 - prob_malignant, prob_malignant], axis=1),
        predicted=(prob_malignant > 0.5).astype(np.int64),
    )


def simulated_fold_2(rng, *, recall, correlation):
    """Each case has its own chance of being right, from a beta distribution around the recall of its class."""
    names = fold_2()
    target = np.array([name.target for name in names])
    cases, index = np.unique([name.case for name in names], return_inverse=True)
    mean = np.empty(len(cases))
    mean[index] = np.asarray(recall)[target]
    spread = 1 / correlation - 1
    is_right = rng.random(len(names)) < rng.beta(mean * spread, (1 - mean) * spread)[index]
    return on_fold_2(np.where(is_right == (target == 1), 0.9, 0.1))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("digits", [1, 6])
def test_weights_of_a_draw_act_like_repeated_cases(seed, digits):
    rows = random_table(seed, digits=digits)
    cases = sorted(set(rows.case))
    weights = np.random.default_rng(seed).multinomial(len(cases), np.full(len(cases), 1 / len(cases)))
    repeated = [
        rows.select(np.array([each == case for each in rows.case]))
        for case, weight in zip(cases, weights, strict=True)
        for _ in range(weight)
    ]
    copies = Predictions(
        image=tuple(f"{i}/{image}" for i, part in enumerate(repeated) for image in part.image),
        patient=tuple(f"{i}/{patient}" for i, part in enumerate(repeated) for patient in part.patient),
        case=tuple(f"{i}/{case}" for i, part in enumerate(repeated) for case in part.case),
        magnification=np.concatenate([part.magnification for part in repeated]),
        target=np.concatenate([part.target for part in repeated]),
        probabilities=np.concatenate([part.probabilities for part in repeated]),
        predicted=np.concatenate([part.predicted for part in repeated]),
    )

    drawn = {name: values[0] for name, values in tabulate_cases(rows).metrics(weights[None]).items()}

    assert drawn == pytest.approx(point_values(copies), abs=1e-12)


def test_metrics_of_a_draw_without_a_class_are_not_numbers_where_they_need_it():
    rows = table([0, 0, 1], [0, 0, 1], [0.2, 0.6, 0.9])

    drawn = tabulate_cases(rows).metrics(np.array([[2, 0], [0, 2], [1, 1]]))

    for name in ("auroc", "average_precision", "balanced_accuracy", "mcc", "macro_f1"):
        assert np.isnan(drawn[name]).tolist() == [True, True, False], name
    assert np.isnan(drawn["recall_benign"]).tolist() == [False, True, False]
    assert np.isnan(drawn["precision_benign"]).tolist() == [False, True, False]
    assert drawn["accuracy"].tolist() == [0.5, 1.0, 2 / 3]


def test_draws_that_lack_a_class_are_counted():
    rows = table([0, 1, 1, 2], [0, 1, 1, 1], [0.2, 0.9, 0.4, 0.8])

    intervals = case_intervals(rows, n_draws=20_000)

    expected = 20_000 * ((2 / 3) ** 3 + (1 / 3) ** 3)  # no benign case, or no malignant one
    assert intervals.draws_lacking_a_class == pytest.approx(expected, rel=0.05)


def test_limits_enclose_the_value_and_stay_in_range():
    for seed in range(10):
        rows = random_table(seed)
        values = point_values(rows)
        for name, limits in case_intervals(rows, n_draws=500).ci95.items():
            low, high = limits
            assert low <= values[name] <= high, name
            assert low >= (-1 if name == "mcc" else 0), name
            assert name == "log_loss" or high <= 1, name


def test_the_same_seed_gives_the_same_limits_and_row_order_does_not_matter():
    rows = random_table(0)
    shuffled = rows.take(np.random.default_rng(0).permutation(len(rows)))

    first, again, other = (case_intervals(each, seed=s, n_draws=500) for each, s in ((rows, 0), (rows, 0), (rows, 1)))

    assert first == again
    assert first.ci95["accuracy"] != other.ci95["accuracy"]
    for name, limits in case_intervals(shuffled, n_draws=500).ci95.items():
        assert limits == pytest.approx(first.ci95[name])


def test_images_of_one_case_count_less_than_images_of_many():
    is_right = np.array([True] * 15 + [False] * 5).repeat(10)
    together = table(np.arange(20).repeat(10), [1] * 200, np.where(is_right, 0.9, 0.1))
    apart = table(np.arange(200), [1] * 200, np.where(is_right, 0.9, 0.1))

    (low, high), (low_apart, high_apart) = (case_intervals(each).ci95["accuracy"] for each in (together, apart))

    assert high - low > 2.5 * (high_apart - low_apart)


def test_one_case_has_no_interval():
    assert set(case_intervals(table([0, 0], [1, 1], [0.4, 0.7]), n_draws=100).ci95.values()) == {None}


def test_a_class_of_one_case_has_no_interval_of_its_recall():
    intervals = case_intervals(table([0, 0, 1, 2], [0, 0, 1, 1], [0.2, 0.6, 0.9, 0.4]), n_draws=200).ci95

    assert intervals["recall_benign"] is None
    assert intervals["auroc"] is None
    assert intervals["recall_malignant"] is not None


def test_a_metric_without_a_value_has_no_interval():
    intervals = case_intervals(table([0, 1], [1, 1], [0.4, 0.7]), n_draws=200).ci95

    assert intervals["auroc"] is intervals["recall_benign"] is None


def test_perfect_results_get_wilsons_limit_of_that_many_cases():
    rows = table(np.arange(27).repeat(3), [1] * 81, [0.9] * 81)

    low, high = case_intervals(rows, n_draws=200).ci95["accuracy"]

    assert high == 1
    assert low == pytest.approx(27 / (27 + 2.0555**2), abs=1e-4)


def test_utterly_wrong_results_get_wilsons_upper_limit():
    rows = table(np.arange(10), [1] * 10, [0.1] * 10)

    assert case_intervals(rows, n_draws=200).ci95["accuracy"] == (0, pytest.approx(0.3385, abs=1e-4))


def test_limits_follow_the_documented_formula():
    from scipy.stats import t

    rows = random_table(3)
    case_table = tabulate_cases(rows)
    draws = case_table.metrics(np.random.default_rng(5).multinomial(12, np.full(12, 1 / 12), size=1000))
    intervals = case_intervals(rows, seed=5, n_draws=1000).ci95

    # 12 cases, 4 of them benign; for the AUROC 4 / (1 / 4 + 1 / 8) = 10.67
    for name, n, df in (("accuracy", 12, 11), ("recall_benign", 4, 3), ("auroc", 32 / 3, 9)):
        value, s = point_values(rows)[name], np.nanstd(draws[name])
        u = (n * value + 0.2 * 0.5) / (n + 0.2)
        error = math.sqrt(s**2 * n / (n + 0.2) + 0.2 * ((0.5 - u) / (n + 0.2)) ** 2)
        logits = math.log(u / (1 - u)) + np.array([-1, 1]) * t.ppf(0.975, df) * error / (u * (1 - u))
        assert intervals[name] == pytest.approx(1 / (1 + np.exp(-logits))), name


def test_limits_reach_no_further_than_if_every_case_were_one_image():
    from scipy.stats import t

    rng = np.random.default_rng(0)
    for n_wrong in (0, 1, 3):
        rows = table(np.arange(9).repeat(20), [1] * 180, np.where(rng.permutation(180) < n_wrong, 0.1, 0.9))
        share, quantile = 1 - n_wrong / 180, t.ppf(0.975, 8) ** 2
        half_width = math.sqrt(quantile) * math.sqrt(share * (1 - share) / 9 + quantile / 4 / 9**2)
        expected = (share + quantile / 18 - half_width) / (1 + quantile / 9)

        assert case_intervals(rows, n_draws=200).ci95["accuracy"][0] >= expected - 1e-9


def test_a_single_hard_case_does_not_make_an_auroc_of_095_look_like_chance():
    # as fold 2 is: one benign case of six and one malignant case of thirteen hold nearly all mistakes
    rng = np.random.default_rng(0)
    case, target = np.arange(19).repeat(16), (np.arange(19) >= 6).repeat(16)
    logit = np.where(target, 7.0, -6.0) + rng.normal(0, 2, case.size)
    logit[case == 0] = rng.normal(2, 2, 16)
    logit[case == 6] = rng.normal(-2, 2, 16)
    rows = table(case, target, 1 / (1 + np.exp(-logit)))

    low, high = case_intervals(rows).ci95["auroc"]

    assert 0.92 < point_values(rows)["auroc"] < 0.98
    assert 0.75 < low < 0.85
    assert high < 0.999


def test_the_case_accuracy_gets_wilsons_interval():
    from scipy.stats import binomtest

    rows = table(np.arange(27).repeat(2), [1] * 54, [0.9] * 52 + [0.1] * 2)

    expected = binomtest(26, 27).proportion_ci(method="wilson")
    assert case_intervals(rows, n_draws=200).ci95["case_accuracy"] == pytest.approx((expected.low, expected.high))


def test_the_calibration_error_of_a_calibrated_model_may_be_zero_by_its_interval():
    n_covered = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        prob = rng.random(600)
        rows = table(np.arange(60).repeat(10), rng.random(600) < prob, prob)
        low, high = case_intervals(rows, n_draws=200).ci95["ece"]
        n_covered += low == 0
        assert high > point_values(rows)["ece"] - 1e-12

    assert n_covered >= 15


def test_ten_thousand_draws_of_the_papers_test_images_are_bounded_in_memory():
    import tracemalloc

    rng = np.random.default_rng(0)
    rows = on_fold_2(rng.random(597))

    tracemalloc.start()
    case_intervals(rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 300e6


@pytest.mark.parametrize(("n_draws", "seed", "message"), [(99, 0, "99 draws"), (100, -1, "seed -1 is negative")])
def test_few_draws_and_negative_seeds_are_refused(n_draws, seed, message):
    with pytest.raises(ConfigurationError, match=message):
        case_intervals(random_table(0), seed=seed, n_draws=n_draws)


@pytest.mark.slow
@pytest.mark.parametrize("correlation", [0.1, 0.2])
def test_intervals_cover_the_truth_as_often_as_they_say(correlation):
    recall = (0.8, 0.93)
    support = np.array([168, 429])
    right = np.array(recall) * support
    f1 = 2 * right / (right + right + (support - right) + (support - right)[::-1])
    truth = {
        "accuracy": right.sum() / support.sum(),
        "weighted_f1": (f1 * support).sum() / support.sum(),
        "recall_benign": recall[0],
        "recall_malignant": recall[1],
    }
    rng = np.random.default_rng(2022)
    n_trials = 500
    covered = dict.fromkeys(truth, 0)

    for trial in range(n_trials):
        rows = simulated_fold_2(rng, recall=recall, correlation=correlation)
        limits = case_intervals(rows, seed=trial, n_draws=1000).ci95
        for name, value in truth.items():
            covered[name] += limits[name][0] <= value <= limits[name][1]

    assert len(set(rows.case)) == 27
    assert len(rows) == 597
    for name, count in covered.items():
        assert 0.92 <= count / n_trials <= 0.98, (name, count / n_trials)


@pytest.mark.slow
@pytest.mark.parametrize("correlation", [0.2, 0.6])
def test_intervals_of_the_auroc_cover_the_truth_as_often_as_they_say(correlation):
    names = fold_2()
    target = np.array([name.target for name in names])
    cases, case = np.unique([name.case for name in names], return_inverse=True)
    shift = np.where(target == 1, 1.5, -0.8)  # scores of variance 1: the AUROC is that of means 2.3 apart
    truth = 0.5 * (1 + math.erf(2.3 / 2))
    rng = np.random.default_rng(2022)
    n_trials = 500
    n_covered = 0

    for trial in range(n_trials):
        effect = rng.normal(0, math.sqrt(correlation), len(cases))[case]
        score = shift + effect + rng.normal(0, math.sqrt(1 - correlation), len(names))
        low, high = case_intervals(on_fold_2(1 / (1 + np.exp(-score))), seed=trial, n_draws=1000).ci95["auroc"]
        n_covered += low <= truth <= high

    assert 0.92 <= n_covered / n_trials <= 0.98, n_covered / n_trials


@pytest.mark.slow
def test_equal_models_differ_significantly_in_about_one_of_twenty_trials():
    rng = np.random.default_rng(7)
    n_trials = 500
    n_significant = 0

    for trial in range(n_trials):
        a, b = (simulated_fold_2(rng, recall=(0.8, 0.93), correlation=0.2) for _ in range(2))
        n_significant += paired_difference(a, b, seed=trial, n_draws=500).p_value < 0.05

    assert 0.02 <= n_significant / n_trials <= 0.08


def test_a_paired_difference_has_the_sign_of_a_minus_b_and_its_p_value_fits_its_interval():
    for seed in range(10):
        a, b = random_table(seed), random_table(seed + 100)
        b = Predictions(a.image, a.patient, a.case, a.magnification, a.target, b.probabilities, b.predicted)

        forth, back = (paired_difference(x, y, metric="weighted_f1", n_draws=1000) for x, y in ((a, b), (b, a)))

        assert forth.difference == pytest.approx(point_values(a)["weighted_f1"] - point_values(b)["weighted_f1"])
        assert back.difference == pytest.approx(-forth.difference)
        assert back.p_value == pytest.approx(forth.p_value)
        assert (forth.p_value < 0.05) == (not forth.ci95[0] <= 0 <= forth.ci95[1])


def test_pairing_narrows_the_interval_of_similar_models():
    a = random_table(0, digits=6)
    flatter = a.probabilities**0.9
    flatter /= flatter.sum(1, keepdims=True)
    b = Predictions(a.image, a.patient, a.case, a.magnification, a.target, flatter, a.predicted)

    low, high = paired_difference(a, b, metric="brier", n_draws=1000).ci95
    own_low, own_high = case_intervals(a, n_draws=1000).ci95["brier"]

    assert high - low < 0.5 * (own_high - own_low)


def test_rows_in_another_order_are_aligned():
    a = random_table(0)
    b = a.take(np.arange(len(a))[::-1])

    difference = paired_difference(a, b, metric="auroc", n_draws=100)

    assert (difference.difference, difference.ci95, difference.p_value) == (0, (0, 0), 1)
    assert align(b, a).image == a.image


def test_a_difference_that_is_the_same_in_every_draw_has_neither_interval_nor_p_value():
    right, wrong = (table([0, 1, 2], [1, 1, 1], [prob] * 3) for prob in (0.9, 0.1))

    difference = paired_difference(right, wrong, n_draws=100)

    assert (difference.difference, difference.ci95, difference.p_value) == (1, None, None)


def test_one_case_has_no_interval_of_a_difference():
    rows = table([0, 0], [1, 1], [0.4, 0.7])

    assert paired_difference(rows, rows, n_draws=100).ci95 is None


def test_several_metrics_at_once_equal_one_at_a_time():
    a = random_table(0)
    b = Predictions(a.image, a.patient, a.case, a.magnification, a.target, a.probabilities[:, ::-1], 1 - a.predicted)
    names = ("accuracy", "auroc")

    together = paired_differences(a, b, metrics=names, n_draws=200)

    assert together == [paired_difference(a, b, metric=name, n_draws=200) for name in names]


def test_tables_of_other_images_or_another_truth_are_not_compared():
    a = random_table(0)
    with pytest.raises(PredictionsError, match=r"0.png: in one table only"):
        paired_difference(a, a.take(np.arange(1, len(a))))
    other = Predictions(a.image, a.patient, a.case, a.magnification, 1 - a.target, a.probabilities, a.predicted)
    with pytest.raises(PredictionsError, match=r"0.png, .* and 90 more: of another class or case"):
        paired_difference(a, other)


def test_unknown_and_undefined_metrics_are_refused():
    rows = table([0, 1], [1, 1], [0.4, 0.7])

    with pytest.raises(ConfigurationError, match=r"metric auc does not exist; expected one of accuracy, .*auroc"):
        paired_difference(rows, rows, metric="auc")
    with pytest.raises(PredictionsError, match="auroc is not defined for these images"):
        paired_difference(rows, rows, metric="auroc")


def test_mcnemar_agrees_with_a_worked_example():
    # 6 images right by the first alone, 15 by the second alone: twice the chance of at most 6 heads in 21 throws
    a = np.array([True] * 6 + [False] * 15 + [True] * 40 + [False] * 8)
    b = np.array([False] * 6 + [True] * 15 + [True] * 40 + [False] * 8)

    assert mcnemar(a, b) == pytest.approx(2 * sum(math.comb(21, k) for k in range(7)) / 2**21)
    assert mcnemar(a, b) == pytest.approx(0.0784, abs=5e-5)


def test_mcnemar_agrees_with_the_binomial_test_of_scipy():
    from scipy.stats import binomtest

    rng = np.random.default_rng(0)
    for n in (1, 5, 60, 2000):
        a, b = rng.random((2, n)) < [[0.7], [0.6]]
        a_alone, b_alone = int((a & ~b).sum()), int((b & ~a).sum())
        expected = binomtest(a_alone, a_alone + b_alone).pvalue if a_alone + b_alone else 1.0
        assert mcnemar(a, b) == pytest.approx(expected)


def test_mcnemar_is_1_where_models_never_differ_and_refuses_what_does_not_match():
    assert mcnemar(np.array([True, False]), np.array([True, False])) == 1.0
    with pytest.raises(ShapeError, match=r"\(2,\) and \(1,\)"):
        mcnemar(np.array([True, False]), np.array([True]))
    with pytest.raises(ShapeError, match=r"\(0,\) and \(0,\)"):
        mcnemar(np.array([], dtype=bool), np.array([], dtype=bool))


def test_holm_multiplies_the_smallest_most_and_keeps_the_order():
    assert holm([0.02, 0.01, 0.04, 0.5]) == pytest.approx([0.06, 0.04, 0.08, 0.5])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(ConfigurationError, match=r"1.5 is no p-value"):
        holm([0.1, 1.5])
    with pytest.raises(ConfigurationError, match=r"nan is no p-value"):
        holm([math.nan])


def test_students_t_agrees_with_scipy():
    from scipy.stats import t

    for df in (*range(1, 31), 69, 70, 7908):
        assert quantile_95(df) == pytest.approx(t.ppf(0.975, df), abs=1e-9)
        for value in (0.0, -0.7, 2.1, 30.0):
            assert two_sided_p(value, df=df) == pytest.approx(2 * t.sf(abs(value), df), abs=1e-12)
    with pytest.raises(ShapeError, match="0 degrees of freedom"):
        two_sided_p(1.0, df=0)
    with pytest.raises(ShapeError, match="0 degrees of freedom"):
        quantile_95(0)
