"""metrics.json: its content, and what a run folder adds to it."""

import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix

from breakhis_pl.metrics.calibration import calibrated, write_calibration
from breakhis_pl.metrics.evaluation import classification_report, evaluate, evaluate_table, format_estimate
from breakhis_pl.metrics.predictions import Predictions, write_predictions
from breakhis_pl.metrics.registry import METRICS, shown
from tests.unit.metrics.tables import CALIBRATION, random_table, table


def write_run(folder: Path, predictions: Predictions, *, place: str = "test") -> Path:
    """Write a run folder in which the first test image's case is shared, and return the path of its table."""
    (folder / place).mkdir(parents=True)
    write_predictions(folder / place / "predictions.csv", predictions)
    test = pd.DataFrame({"image": predictions.image, "case": predictions.case, "subset": "test"})
    train = pd.DataFrame({"image": ["other.png"], "case": predictions.case[:1], "subset": "train"})
    pd.concat([train, test]).assign(patient="").to_csv(folder / "split.csv", index=False)
    return folder / place / "predictions.csv"


@pytest.mark.parametrize("n_classes", [2, 3, 8])
def test_metrics_hold_counts_and_every_metric_with_its_interval(n_classes: int) -> None:
    rows = random_table(0, n_classes=n_classes, n_cases=20)
    metrics = json.loads(json.dumps(evaluate(rows, n_draws=200, seed=3), allow_nan=False))
    assert metrics["n_images"] == 120
    assert metrics["n_patients"] == len(set(rows.patient))
    assert metrics["n_cases"] == len(set(rows.case))
    assert metrics["class_names"] == list(rows.classes)
    assert metrics["confusion_matrix"] == confusion_matrix(rows.target, rows.predicted).tolist()
    assert (metrics["subset"], metrics["n_draws"], metrics["seed"]) == ("test", 200, 3)
    for name, metric in METRICS.items():
        places = metrics["per_class"].values() if metric.per_class else [metrics]
        for place in places:
            assert (name in place) == metric.is_for(n_classes)
            assert name not in place or place[name].keys() == {"value", "ci95"}
    for index, of_class in enumerate(metrics["per_class"].values()):
        assert of_class["support"] == (rows.target == index).sum()
        assert of_class["n_cases"] == len(set(rows.case[rows.target == index]))
    if n_classes == 2:
        assert metrics["sensitivity"] == metrics["per_class"]["malignant"]["recall"]
        assert metrics["specificity"] == metrics["per_class"]["benign"]["recall"]


@pytest.mark.parametrize(
    ("target", "undefined"),
    [([1, 1, 1], {"auroc", "average_precision", "balanced_accuracy", "mcc", "specificity"}), ([0, 1, 1], set())],
)
def test_a_metric_that_is_not_defined_is_null_with_a_reason(target: list[int], undefined: set[str]) -> None:
    metrics = evaluate(table([0, 1, 2], target, [0.4, 0.7, 0.8]), n_draws=200)
    for name, metric in METRICS.items():
        if not metric.per_class and not name.startswith("macro"):
            assert (metrics[name]["value"] is None) == (name in undefined), name
            assert ("reason" in metrics[name]) == (metrics[name]["ci95"] is None), name
            assert name not in undefined or metrics[name]["ci95"] is None, name
    assert (metrics["per_class"]["benign"]["recall"]["value"] is None) == bool(undefined)
    classification_report(metrics)
    json.dumps(metrics, allow_nan=False)


def test_draws_that_lack_a_class_are_counted() -> None:
    metrics = evaluate(table([0, 1, 1, 2], [0, 1, 1, 1], [0.2, 0.9, 0.4, 0.8]), n_draws=20_000)
    expected = 20_000 * ((2 / 3) ** 3 + (1 / 3) ** 3)  # no benign case, or no malignant one
    assert metrics["draws_lacking_a_class"] == pytest.approx(expected, rel=0.05)


def test_draws_do_not_lack_a_class_that_the_table_does_not_have() -> None:
    rows = random_table(0, n_classes=3)
    assert evaluate(rows.take(rows.target != 2), n_draws=200)["draws_lacking_a_class"] == 0


def test_parts_by_magnification_have_the_metrics_of_their_rows() -> None:
    rows = random_table(0)
    parts = evaluate(rows, n_draws=200)["per_magnification"]
    assert list(parts) == ["40", "200"]
    for name, part in parts.items():
        expected = evaluate(rows.take(rows.magnification == int(name)), n_draws=100)
        assert part["n_images"] == expected["n_images"]
        assert part["accuracy"] == expected["accuracy"]["value"]
        assert part["weighted_f1"] == expected["weighted_f1"]["value"]
        assert part["recall"] == {key: of["recall"]["value"] for key, of in expected["per_class"].items()}


def test_parts_by_tumor_type_are_those_that_patients_of_breakhis_name() -> None:
    rows = table([0, 0, 1, 2], [1, 1, 0, 0], [0.9, 0.1, 0.2, 0.3])
    rows.patient[:] = ["SOB_M_DC-14-2523", "SOB_M_DC-14-2523", "SOB_B_TA-14-4659", "someone"]
    parts = evaluate(rows, n_draws=200)["per_subtype"]
    assert {code: (part["recall"], part["n_images"], part["class_name"]) for code, part in parts.items()} == {
        "TA": (1.0, 1, "benign"),
        "DC": (0.5, 2, "malignant"),
    }


def test_a_table_outside_a_run_folder_has_the_metrics_of_its_rows_and_the_checksum_of_its_file(tmp_path: Path) -> None:
    rows = random_table(0)
    path = tmp_path / "train_2024" / "any.csv"
    path.parent.mkdir()
    write_predictions(path, rows)
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    metrics = evaluate_table(path, n_draws=200, seed=1)
    assert metrics["subset"] == "test"
    assert metrics == evaluate(rows, n_draws=200, seed=1) | {"predictions_checksum": f"sha256:{checksum}"}


def test_cases_that_split_csv_or_ensemble_json_name_as_shared_are_left_out_of_a_part(tmp_path: Path) -> None:
    rows = random_table(0)
    of_shared_case = rows.case == rows.case[0]
    others = evaluate(rows.take(~of_shared_case), n_draws=200)
    of_run = evaluate_table(write_run(tmp_path / "run", rows), n_draws=200)
    write_predictions(tmp_path / "predictions.csv", rows)
    (tmp_path / "ensemble.json").write_text(json.dumps({"shared_case_images": rows.image[of_shared_case].tolist()}))
    of_ensemble = evaluate_table(tmp_path / "predictions.csv", n_draws=200)
    assert of_run["n_images"] == len(rows)
    for metrics in (of_run, of_ensemble):
        for name, value in metrics["without_shared_cases"].items():
            assert value == others[name], name
    all_shared = write_run(tmp_path / "all", table([0, 0], [0, 1], [0.2, 0.7]))
    assert evaluate_table(all_shared, n_draws=200)["without_shared_cases"] is None


@pytest.mark.parametrize("place", ["test", "test_flips", "val", "val_flips", "train", "x"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_only_a_binary_test_table_is_also_evaluated_as_calibrated(tmp_path: Path, n_classes: int, place: str) -> None:
    rows = random_table(0, n_classes=n_classes)
    path = write_run(tmp_path / "run", rows, place=place)
    write_calibration(tmp_path / "run" / "calibration.json", CALIBRATION)
    metrics = evaluate_table(path, n_draws=200)
    assert metrics["subset"] == {"val": "val", "val_flips": "val", "train": "train"}.get(place, "test")
    assert ("calibrated" in metrics) == ((n_classes, place) == (2, "test"))
    if "calibrated" in metrics:
        expected = evaluate(calibrated(rows, CALIBRATION), n_draws=200)
        found = metrics["calibrated"]
        assert (found["temperature"], found["threshold"], found["wanted_sensitivity"]) == (2, 0.3, 0.95)
        assert {"subset": "val", "n_images": 60, "n_cases": 12, "specificity": 0.8}.items() <= found[
            "fitted_on"
        ].items()
        line = classification_report(metrics).splitlines()[-1]
        assert all(format_estimate(found[name]) in line for name in ("sensitivity", "specificity"))
        assert found["confusion_matrix"] == expected["confusion_matrix"] != metrics["confusion_matrix"]
        for metric in shown("calibration"):
            assert found[metric.name] == expected[metric.name]


@pytest.mark.parametrize("n_classes", [2, 8])
def test_a_report_for_the_terminal_has_every_class_count_and_shown_metric(n_classes: int) -> None:
    metrics = evaluate(random_table(0, n_classes=n_classes), n_draws=200)
    lines = [line.split() for line in classification_report(metrics).splitlines()]
    for name, counts in zip(metrics["class_names"], metrics["confusion_matrix"], strict=True):
        of_class = metrics["per_class"][name]
        numbers = [f"{of_class[each]['value']:.2f}" for each in ("precision", "recall", "f1")]
        assert [name, *numbers, str(of_class["support"])] in lines
        assert [name, *map(str, counts)] in lines
    for metric in METRICS.values():
        if metric.shown and metric.is_for(n_classes):
            expected = f"{metric.title} {format_estimate(metrics[metric.name])}".split()
            assert any(all(word in line for word in expected) for line in lines)
