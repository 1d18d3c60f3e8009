import json

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from breakhis_pl.data.breakhis import CLASS_NAMES
from breakhis_pl.errors import ConfigurationError, PredictionsError, ShapeError
from breakhis_pl.evaluation import confusion as of_confusion
from breakhis_pl.evaluation import published, scores
from breakhis_pl.evaluation.metrics import classification_report, evaluate, point_values, write_metrics
from breakhis_pl.evaluation.predictions import Predictions

BENIGN, MALIGNANT = (
    ("SOB_B_TA-14-4659", "SOB_B_A-14-22549AB", "SOB_B_A-14-22549G"),
    ("SOB_M_DC-14-2523", "SOB_M_LC-14-13412"),
)
CASE = {
    "SOB_B_TA-14-4659": "14-4659",
    "SOB_B_A-14-22549AB": "14-22549",
    "SOB_B_A-14-22549G": "14-22549",
    "SOB_M_DC-14-2523": "14-2523",
    "SOB_M_LC-14-13412": "14-13412",
}


def table(target, prob_malignant, predicted=None, *, patient=None, magnification=200):
    target, prob_malignant = np.asarray(target, dtype=np.int64), np.asarray(prob_malignant, dtype=np.float64)
    n = len(target)
    if patient is None:
        patient = [(MALIGNANT[i % 2] if target[i] else BENIGN[i % 3]) for i in range(n)]
    return Predictions(
        image=tuple(f"{i}.png" for i in range(n)),
        patient=tuple(patient),
        case=tuple(CASE.get(each, each) for each in patient),
        magnification=np.broadcast_to(magnification, n).astype(np.int64),
        target=target,
        probabilities=np.stack([1 - prob_malignant, prob_malignant], axis=1),
        predicted=(prob_malignant > 0.5).astype(np.int64) if predicted is None else np.asarray(predicted),
    )


def random_table(seed):
    """Ties, zeros and ones among the probabilities; predictions that are not their argmax."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 200))
    prob = np.round(rng.random(n), int(rng.integers(1, 4)))
    return table(rng.integers(0, 2, n), prob, (prob > rng.random()).astype(np.int64))


def confusion_table(matrix, *, image_probability=0.9):
    target, predicted = [], []
    for truth in (0, 1):
        for called in (0, 1):
            target += [truth] * matrix[truth][called]
            predicted += [called] * matrix[truth][called]
    prob = np.where(np.array(predicted) == 1, image_probability, 1 - image_probability)
    return table(target, prob, predicted)


DEGENERATE = {
    "all benign": table([0, 0, 0], [0.1, 0.6, 0.2]),
    "all malignant": table([1, 1, 1], [0.1, 0.6, 0.2]),
    "one image": table([1], [0.3]),
    "one patient": table([0, 0], [0.3, 0.7], patient=["SOB_B_TA-14-4659"] * 2),
    "all tied": table([0, 1, 1, 0], [0.5] * 4),
    "certain and right": table([0, 1, 1], [0.0, 1.0, 1.0]),
    "certain and wrong": table([0, 1, 1], [1.0, 0.0, 0.0]),
    "malignant never predicted": table([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4]),
    "benign never predicted": table([0, 1, 0, 1], [0.6, 0.7, 0.8, 0.9]),
}
TABLES = [pytest.param(each, id=name) for name, each in DEGENERATE.items()]
TABLES += [pytest.param(random_table(seed), id=f"random {seed}") for seed in range(40)]


def reference_calibration_error(target, prob):
    observed, predicted = calibration_curve(target, prob, n_bins=10, strategy="uniform")
    sizes = np.bincount(np.searchsorted(np.linspace(0, 1, 11)[1:-1], prob), minlength=10)
    return float((np.abs(observed - predicted) * sizes[sizes > 0]).sum() / len(prob))


def reference_recognition_rate(table):
    by_patient = {}
    for patient, is_right in zip(table.patient, table.correct, strict=True):
        by_patient.setdefault(patient, []).append(is_right)
    return float(np.mean([np.mean(each) for each in by_patient.values()]))


def reference_case_accuracy(table):
    by_case = {}
    for case, target, prob in zip(table.case, table.target, table.prob_malignant, strict=True):
        by_case.setdefault((case, target), []).append(prob)
    return float(np.mean([(np.mean(each) > 0.5) == target for (_, target), each in by_case.items()]))


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true:UserWarning")  # sklearn, one class in truth
@pytest.mark.filterwarnings("ignore:A single label was found:UserWarning")
@pytest.mark.parametrize("table", TABLES)
def test_metrics_agree_with_scikit_learn(table):
    target, predicted, prob = table.target, table.predicted, table.prob_malignant
    both = len(set(target)) == 2
    expected = {
        "accuracy": sk.accuracy_score(target, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(target, predicted),
        "mcc": sk.matthews_corrcoef(target, predicted),
        "auroc": sk.roc_auc_score(target, prob) if both else None,
        "average_precision": sk.average_precision_score(target, prob) if both else None,
        "brier": sk.brier_score_loss(target, prob, labels=[0, 1], pos_label=1),
        "log_loss": sk.log_loss(target, table.probabilities, labels=[0, 1]),
        "ece": reference_calibration_error(target, prob),
        "patient_recognition_rate": reference_recognition_rate(table),
        "case_accuracy": reference_case_accuracy(table),
    }
    for average in ("weighted", "macro", None):
        precision, recall, f1, _ = sk.precision_recall_fscore_support(
            target, predicted, labels=[0, 1], average=average, zero_division=0
        )
        for name, value in (("precision", precision), ("recall", recall), ("f1", f1)):
            if average is None:
                expected |= {f"{name}_{CLASS_NAMES[i]}": value[i] for i in (0, 1)}
            else:
                expected[f"{average}_{name}"] = value

    # scikit-learn counts 0 / 0 as 0 (zero_division); the recall of a class without images has no value
    absent = {name for index, name in enumerate(CLASS_NAMES) if not (target == index).any()}
    undefined = {f"{metric}_{name}" for metric in ("recall", "f1") for name in absent}
    undefined |= set() if both else {"macro_recall", "macro_f1", "auroc", "average_precision"}
    actual = point_values(table)
    assert {name for name, value in actual.items() if value is None} == undefined
    assert {name: value for name, value in actual.items() if value is not None} == pytest.approx(
        {name: value for name, value in expected.items() if name not in undefined}, abs=1e-12, rel=1e-9
    )


@pytest.mark.parametrize("table", TABLES)
def test_the_confusion_matrix_is_that_of_scikit_learn(table):
    matrix = of_confusion.confusion_matrix(table.target, table.predicted)

    assert matrix.tolist() == sk.confusion_matrix(table.target, table.predicted, labels=[0, 1]).tolist()


def test_functions_of_a_confusion_matrix_take_many_at_once():
    matrices = np.random.default_rng(0).integers(0, 9, (5, 3, 2, 2))

    for function in (of_confusion.accuracy, of_confusion.f1, of_confusion.matthews_correlation):
        together = function(matrices)
        assert together[4, 2].tolist() == function(matrices[4, 2]).tolist()


@pytest.mark.parametrize("model", published.REPORT_RESULTS)
def test_the_reports_matrices_give_the_reports_averages(model):
    result = published.REPORT_RESULTS[model]
    values = point_values(confusion_table(result.confusion_matrix))

    assert published.REPORT_CONFUSION_MATRICES[model] == result.confusion_matrix
    assert np.sum(result.confusion_matrix, axis=1).tolist() == [168, 429]
    for name in ("weighted_precision", "weighted_recall", "weighted_f1"):
        assert values[name] == pytest.approx(getattr(result, name), abs=0.0051)


def test_always_malignant_gives_the_accuracy_of_the_literature_table():
    assert published.LITERATURE_RESULTS[0].accuracy == round(429 / 597, 3)


def test_metrics_json_has_the_agreed_schema_and_is_valid_json():
    table = confusion_table(published.REPORT_CONFUSION_MATRICES["resnet18"])

    metrics = json.loads(json.dumps(evaluate(table, n_draws=200), allow_nan=False))

    assert metrics["subset"] == "test"
    assert (metrics["n_images"], metrics["n_patients"], metrics["n_cases"]) == (597, 5, 4)
    assert metrics["class_names"] == ["benign", "malignant"]
    assert metrics["confusion_matrix"] == [[119, 49], [25, 404]]
    assert metrics["per_class"]["benign"]["support"] == 168
    assert metrics["sensitivity"] == metrics["per_class"]["malignant"]["recall"]
    assert metrics["specificity"] == metrics["per_class"]["benign"]["recall"]
    estimates = [
        metrics[name]
        for name in (
            *("accuracy", "balanced_accuracy", "weighted_precision", "weighted_recall", "weighted_f1", "macro_f1"),
            *("mcc", "auroc", "average_precision", "brier", "log_loss", "ece"),
            *("patient_recognition_rate", "case_accuracy"),
        )
    ]
    estimates += [metrics["per_class"][name][of] for name in CLASS_NAMES for of in ("precision", "recall", "f1")]
    for estimate in estimates:
        low, high = estimate["ci95"]
        assert low <= estimate["value"] <= high
    assert (metrics["n_draws"], metrics["seed"]) == (200, 0)
    assert metrics["draws_lacking_a_class"] > 0
    assert "without_siblings" not in metrics


@pytest.mark.parametrize("table", TABLES[: len(DEGENERATE)])
def test_degenerate_tables_give_valid_json_with_null_for_what_is_not_defined(table):
    metrics = evaluate(table, n_draws=100)

    text = json.dumps(metrics, allow_nan=False)

    both = len(set(table.target)) == 2
    assert (metrics["auroc"]["value"] is None) == (not both)
    assert metrics["auroc"].get("reason") == (None if both else "a class has no images")
    for index, name in enumerate(CLASS_NAMES):
        for metric in ("recall", "f1"):
            estimate = metrics["per_class"][name][metric]
            if (table.target == index).any():
                assert estimate["value"] is not None
                assert "reason" not in estimate
            else:
                assert estimate == {"value": None, "ci95": None, "reason": "no images"}
    for name in ("weighted_precision", "weighted_recall", "weighted_f1", "macro_precision"):
        assert metrics[name]["value"] is not None
    assert metrics["sensitivity"] == metrics["per_class"]["malignant"]["recall"]
    if metrics["n_cases"] == 1:
        assert metrics["accuracy"]["ci95"] is None
    assert json.loads(text) == metrics


def test_without_intervals_the_values_are_the_same_and_limits_null():
    table = random_table(3)

    plain, full = evaluate(table, with_intervals=False), evaluate(table, n_draws=100)

    assert plain["mcc"] == {"value": full["mcc"]["value"], "ci95": None}
    assert plain["interval_method"] is None
    assert plain.keys() == full.keys()


def test_figures_have_at_most_twelve_digits():
    assert evaluate(table([0, 0, 1], [0.1, 0.7, 0.8]), with_intervals=False)["accuracy"]["value"] == 0.666666666667


def test_siblings_are_left_out_of_a_second_set_of_metrics():
    rows = table([0, 0, 1, 1], [0.9, 0.1, 0.8, 0.7])

    metrics = evaluate(rows, siblings=["0.png", "not in the table.png"], n_draws=100)

    assert metrics["accuracy"]["value"] == 0.75
    assert metrics["without_siblings"]["accuracy"]["value"] == 1.0
    assert metrics["without_siblings"]["n_images"] == 3


def test_where_all_images_are_siblings_the_rest_is_null():
    rows = table([0, 1], [0.9, 0.1])

    assert evaluate(rows, siblings=rows.image, with_intervals=False)["without_siblings"] is None


def test_tables_by_subtype_and_magnification():
    rows = table(
        [0, 0, 0, 1],
        [0.1, 0.9, 0.1, 0.8],
        patient=["SOB_B_TA-14-4659", "SOB_B_TA-14-4659", "SOB_B_A-14-22549AB", "someone else"],
        magnification=[40, 40, 200, 200],
    )

    metrics = evaluate(rows, with_intervals=False)

    assert list(metrics["per_subtype"]) == ["A", "TA"]
    assert metrics["per_subtype"]["TA"]["recall"] == 0.5
    assert metrics["per_subtype"]["TA"]["n_images"] == 2
    assert list(metrics["per_magnification"]) == ["40", "200"]
    assert metrics["per_magnification"]["40"]["accuracy"] == 0.5
    assert metrics["per_magnification"]["40"]["recall"] == {"benign": 0.5, "malignant": None}
    assert metrics["per_magnification"]["200"]["recall"] == {"benign": 1.0, "malignant": 1.0}


def test_a_case_of_both_classes_counts_once_per_class():
    rows = table([0, 0, 1], [0.2, 0.4, 0.3], patient=["x", "x", "x"])

    assert point_values(rows)["case_accuracy"] == 0.5


def test_the_classification_report_prints_the_reports_figures():
    table = confusion_table(published.REPORT_CONFUSION_MATRICES["resnet18"])

    text = classification_report(evaluate(table, with_intervals=False))

    assert [line.split() for line in text.splitlines() if line] == [
        ["precision", "recall", "f1", "support"],
        ["benign", "0.83", "0.71", "0.76", "168"],
        ["malignant", "0.89", "0.94", "0.92", "429"],
        ["weighted", "avg", "0.87", "0.88", "0.87", "597"],
        ["accuracy", "0.88", "597"],
        ["confusion", "matrix", "(rows:", "truth,", "columns:", "prediction)"],
        ["benign", "malignant"],
        ["benign", "119", "49"],
        ["malignant", "25", "404"],
    ]


def test_metrics_are_written_as_json_and_nothing_else_is_left(tmp_path):
    metrics = evaluate(random_table(1), with_intervals=False)

    write_metrics(tmp_path / "metrics.json", metrics)

    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_what_is_no_json_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_metrics(tmp_path / "metrics.json", {"accuracy": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_no_rows_few_draws_and_negative_seeds_are_refused():
    rows = random_table(0)

    with pytest.raises(PredictionsError, match="without rows"):
        evaluate(rows.select(np.zeros(len(rows), dtype=bool)))
    with pytest.raises(ConfigurationError, match="10 draws; expected at least 100"):
        evaluate(rows, n_draws=10)
    with pytest.raises(ConfigurationError, match="seed -1 is negative"):
        evaluate(rows, seed=-1)


@pytest.mark.parametrize(
    "function",
    [
        of_confusion.confusion_matrix,
        scores.roc_auc,
        scores.average_precision,
        scores.brier_score,
        scores.expected_calibration_error,
        scores.patient_recognition_rate,
    ],
)
def test_empty_arrays_and_different_lengths_are_refused(function):
    with pytest.raises(ShapeError, match=r"2 and 1 images|\(2,\), predicted \(1,\)"):
        function(np.array([0, 1]), np.array([1]))
    with pytest.raises(ShapeError, match=r"0 and 0 images|\(0,\)"):
        function(np.array([], dtype=int), np.array([], dtype=int))


def test_log_loss_and_case_accuracy_refuse_different_lengths():
    with pytest.raises(ShapeError, match="2 and 1 images"):
        scores.log_loss(np.array([0, 1]), np.array([[0.5, 0.5]]))
    with pytest.raises(ShapeError, match="2 and 1 images"):
        scores.case_accuracy(np.array([0, 1]), np.array([0.5, 0.5]), np.array([0]))
