"""Every metric against an independent reference, one draw against the rows that it stands for, and a new metric."""

import html
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from sklearn import metrics as sk

from breakhis_pl.metrics.cases import CaseTable, Draws, draw_cases
from breakhis_pl.metrics.evaluation import classification_report, evaluate, evaluate_table, format_estimate
from breakhis_pl.metrics.predictions import FloatArray, Predictions
from breakhis_pl.metrics.registry import METRICS, Metric
from breakhis_pl.reporting.comparison import write_comparison
from breakhis_pl.reporting.run_report import write_report
from tests.conftest import REPOSITORY
from tests.unit.metrics.tables import random_table, table

RUNS = REPOSITORY / "results" / "839_images"
TABLES = [random_table(seed, n_classes=n) for n in (2, 3, 8) for seed in range(4)]
TABLES += [
    table(["a", "a", "b"], [0, 1, 1], [0.5, 0.5, 0.5]),
    table(["a", "b", "c"], [0, 1, 1], [0.0, 1.0, 1.0]),
    table(["a", "b", "c"], [0, 1, 1], [1.0, 0.0, 0.0]),
    table(["a", "b", "c", "c"], [0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4]),
]
"""Two, three and eight classes, then: all tied, all correct and certain, all wrong and certain, one class predicted."""


def scores(p: Predictions) -> FloatArray:
    """Return what scikit-learn ranks: the positive column of two classes, all columns of more."""
    return p.prob_positive if p.n_classes == 2 else p.probabilities


def by_class(index: int, average: str | None) -> Callable[[Predictions], Any]:
    """Precision, recall or F1 of scikit-learn."""
    return lambda p: sk.precision_recall_fscore_support(
        p.target, p.predicted, labels=range(p.n_classes), average=average, zero_division=0
    )[index]


def calibration_error(p: Predictions) -> float:
    score, event = (p.prob_positive, p.target) if p.n_classes == 2 else (p.probabilities.max(1), p.correct)
    total = 0.0
    for low in range(10):
        rows = (score > low / 10) & (score <= (low + 1) / 10) | ((score == 0) & (low == 0))
        total += abs(event[rows].sum() - score[rows].sum())
    return total / len(p)


def recognition_rate(p: Predictions) -> float:
    return float(np.mean([p.correct[p.patient == each].mean() for each in set(p.patient)]))


def case_accuracy(p: Predictions) -> float:
    groups = [(p.case == case) & (p.target == target) for case, target in set(zip(p.case, p.target, strict=True))]
    return float(np.mean([p.probabilities[rows].mean(0).argmax() == p.target[rows][0] for rows in groups]))


REFERENCES: dict[str, Callable[[Predictions], Any]] = {
    "accuracy": lambda p: sk.accuracy_score(p.target, p.predicted),
    "balanced_accuracy": lambda p: sk.balanced_accuracy_score(p.target, p.predicted),
    "mcc": lambda p: sk.matthews_corrcoef(p.target, p.predicted),
    "auroc": lambda p: sk.roc_auc_score(p.target, scores(p), multi_class="ovr", average="macro"),
    "average_precision": lambda p: sk.average_precision_score(p.target, scores(p)),
    "brier": lambda p: sk.brier_score_loss(p.target, scores(p), labels=range(p.n_classes), scale_by_half=True),
    "log_loss": lambda p: sk.log_loss(p.target, p.probabilities, labels=range(p.n_classes)),
    "ece": calibration_error,
    "patient_recognition_rate": recognition_rate,
    "case_accuracy": case_accuracy,
    "sensitivity": lambda p: sk.recall_score(p.target, p.predicted),
    "specificity": lambda p: sk.recall_score(p.target, p.predicted, pos_label=0),
    **{
        name if average is None else f"{average}_{name}": by_class(index, average)
        for index, name in enumerate(("precision", "recall", "f1"))
        for average in (None, "weighted", "macro")
    },
}


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_equals_its_independent_reference(name: str) -> None:
    n_compared = 0
    for predictions in TABLES:
        if METRICS[name].is_for(predictions.n_classes):
            metrics = evaluate(predictions, n_draws=100)
            of_classes = [of_class.get(name, {}).get("value") for of_class in metrics["per_class"].values()]
            found = of_classes if METRICS[name].per_class else metrics[name]["value"]
            assert found == pytest.approx(REFERENCES[name](predictions), abs=1e-10)
            n_compared += 1
    assert n_compared == (8 if name in {"sensitivity", "specificity"} else 16)


def repeat_cases(predictions: Predictions, weights: npt.NDArray[np.int64]) -> Predictions:
    """Return the rows of every case as often as a draw has it, each copy as images of a case of its own."""
    rows, copy = [], []
    for case, weight in enumerate(weights):
        of_case = np.flatnonzero(predictions.case_index == case)
        rows += [of_case] * weight
        copy += [f"{number}/" for number in range(weight) for _ in of_case]
    repeated = predictions.take(np.concatenate(rows))
    names = {name: np.array(copy, dtype=object) + getattr(repeated, name) for name in ("image", "patient", "case")}
    return replace(repeated, **names)


@pytest.mark.parametrize("n_classes", [2, 3, 8])
@pytest.mark.parametrize("seed", range(3))
def test_a_draw_of_cases_has_the_metrics_of_the_rows_of_these_cases(n_classes: int, seed: int) -> None:
    predictions = random_table(seed, n_classes=n_classes)
    cases = CaseTable(predictions)
    weights = draw_cases(cases.n_groups, seed=seed, n_draws=100)[:8]
    draws = Draws(cases, weights)
    copies = [Draws(CaseTable(repeat_cases(predictions, each))) for each in weights]
    for name, metric in METRICS.items():
        for number, values in enumerate(metric.values(draws) if metric.is_for(n_classes) else ()):
            expected = metric.values(copies[number])[0]
            if metric.basis == "classes" and not draws.has_all_classes[number]:
                expected = np.nan  # a table has all classes that it has; a draw lacks those of its table
            assert values == pytest.approx(expected, abs=1e-12, nan_ok=True), name


def kappa(draws: Draws) -> FloatArray:
    """Cohen's kappa of each draw, (n_draws,)."""
    observed = np.trace(draws.confusion, axis1=1, axis2=2) / draws.n_images
    expected = (draws.support * draws.n_predicted).sum(1) / draws.n_images**2
    return np.asarray((observed - expected) / (1 - expected))


@pytest.mark.usefixtures("undrawn")
def test_a_new_metric_is_one_entry_and_appears_in_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Metric("kappa", "Cohen's kappa", "agreement beyond chance", kappa, range=(-1, 1), chance=0, basis="classes")
    monkeypatch.setitem(METRICS, "kappa", entry)
    found = {}
    for name in ("resnet18_seed0", "resnet18_seed1"):
        shutil.copytree(RUNS / name, tmp_path / name)
        path = tmp_path / name / "test" / "predictions.csv"
        found[name] = evaluate_table(path, n_draws=1000)
        path.with_name("metrics.json").write_text(json.dumps(found[name]))
        rows = pd.read_csv(path)
        low, high = found[name]["kappa"]["ci95"]
        assert found[name]["kappa"]["value"] == pytest.approx(sk.cohen_kappa_score(rows["target"], rows["predicted"]))
        assert -1 <= low < found[name]["kappa"]["value"] < high <= 1
    page, _ = write_report(tmp_path / "resnet18_seed0")
    write_comparison(tmp_path)
    of_run = format_estimate(found["resnet18_seed0"]["kappa"])
    for text in (classification_report(found["resnet18_seed0"]), read_text(page)):
        assert re.search(rf"Cohen's kappa\s*{re.escape(of_run)}", text)
    table = pd.read_csv(tmp_path / "comparison.csv")
    comparison = dict(zip(table["folder"].map(lambda folder: Path(folder).name), table["kappa"], strict=True))
    pages = [read_text(tmp_path / file) for file in ("comparison.md", "comparison.html")]
    for name, metrics in found.items():
        assert comparison[name] == metrics["kappa"]["value"]
        assert format_estimate(metrics["kappa"]) != format_estimate(metrics["mcc"])
        for text in pages:
            assert "Cohen's kappa" in text
            assert format_estimate(metrics["kappa"]) in text


def read_text(path: Path) -> str:
    """Return the text of a page without its tags."""
    return html.unescape(re.sub(r"<[^>]*>", "", path.read_text(encoding="utf-8")))
