"""Checks of a run: what a reader must know before its numbers. docs/checks.md has a line on each code."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from breakhis_pl.data.breakhis import PUBLISHED_COUNTS, official_patients
from breakhis_pl.data.dataset import Subset
from breakhis_pl.errors import join_truncated
from breakhis_pl.metrics.evaluation import format_estimate
from breakhis_pl.metrics.predictions import Predictions
from breakhis_pl.reporting.pages import relative_path
from breakhis_pl.reporting.runs import Run
from breakhis_pl.run_folder import RunFolder

FEW_CASES = 10
"""Cases of a class below which an interval rests on little."""

OVERFITTING = 0.1
"""Train accuracy minus test accuracy above which the check reports."""

IMBALANCE = 1 / 3
"""Fraction of the test images of the rarest of two classes below which the check reports."""

CALIBRATION_ERROR = 0.05
"""Lower limit of the expected calibration error above which the check reports."""

FOR_PREDICTIONS = ("C01", "C02", "C03", "C08", "C10", "C12", "C16")
"""Checks of the network and its probabilities, which matter for its predictions too; the others are of its results."""

DOCUMENTATION = Path(__file__).resolve().parent.parent.parent / "docs" / "checks.md"


@dataclass(frozen=True)
class Check:
    """A check that a run did not pass.

    Attributes:
        code: Its code in docs/checks.md.
        title: A few words.
        text: A sentence with the numbers of the run.
    """

    code: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.title}: {self.text}"


def documentation_link(folder: Path) -> str | None:
    """Return the path of docs/checks.md relative to a folder; None without it."""
    return relative_path(DOCUMENTATION, folder) if DOCUMENTATION.is_file() else None


def run_checks(run: Run) -> list[Check]:
    """Return the checks that a run with a result did not pass, the most important first.

    Of a table without a run folder, and of another subset than test, only its predictions and images are checked.
    """
    if run.predictions is None or run.metrics is None:
        raise ValueError(f"{run.name} has no result")
    is_test = run.record is not None and run.metrics["subset"] == "test"
    found = list(_failed_checks_of_predictions(run, run.predictions, run.metrics))
    found += _failed_checks_of_data(run, len(run.predictions), run.metrics["subset"])
    found += _failed_checks_of_training(run, run.predictions) if is_test else ()
    return sorted((Check(*each) for each in found), key=lambda check: check.code)


def prediction_checks(run: Run) -> list[Check]:
    """Return the checks that matter for predictions of other pictures; without a result, those of data and status."""
    of_data = [Check(*each) for each in _failed_checks_of_data(run, 0, "")]
    return [check for check in (of_data if run.metrics is None else run_checks(run)) if check.code in FOR_PREDICTIONS]


def _failed_checks_of_data(run: Run, n_images: int, subset: str) -> Iterator[tuple[str, str, str]]:
    if run.is_synthetic:
        yield (
            "C02",
            "Synthetic images",
            "they are generated and show no tissue; the numbers only show that the software works.",
        )
    if run.status != "finished":
        reason = f" ({run.error})" if run.error else ""
        yield "C03", "Run not finished", f"its status is {run.status}{reason}; the results may be of an earlier state."
    if run.is_incomplete:
        n_published = sum(n for (m, _), n in PUBLISHED_COUNTS.items() if m in run.magnifications[1])
        description = run.data.get("description") or f"not all {n_published:,} images are there"
        if isinstance(run.fold, int) and subset == "test":
            n_test = sum(
                patient.n_images.get(magnification, 0)
                for patient in official_patients().values()
                for magnification in run.magnifications[1]
                if patient.subsets[run.fold] is Subset.TEST
            )
            description += f", tested on {n_images:,} of {n_test:,} published test images"
        yield "C04", "Incomplete archive", f"{description}; results cannot be compared with published ones."


def _failed_checks_of_predictions(
    run: Run, predictions: Predictions, metrics: Mapping[str, Any]
) -> Iterator[tuple[str, str, str]]:
    n_images, subset = len(predictions), metrics["subset"]
    if run.one_class is not None:
        index = predictions.classes.index(run.one_class)
        n_predicted, n_true = (int((each == index).sum()) for each in (predictions.predicted, predictions.target))
        n = "all" if n_predicted == n_images else f"{n_predicted:,} of"
        yield (
            "C01",
            "One class only" if n_predicted == n_images else "Almost one class only",
            f"{n} {n_images:,} {subset} images are predicted as {run.one_class}; {n_true:,} are {run.one_class}. The "
            "predictions do not separate the classes: accuracy only reflects their sizes.",
        )
    if run.are_independent:
        yield "C15", "Images taken as independent", "no patient or case is known; intervals may be too narrow."
    if "without_shared_cases" in metrics:
        yield "C05", "Shared cases across subsets", _shared_cases(metrics, n_images)
    counts = {name: metrics["per_class"][name]["n_cases"] for name in predictions.classes}
    unit = "image" if run.are_independent else "case"
    few = [f"{n or 'no'} {name}" for name, n in counts.items() if n < FEW_CASES]
    if few:
        yield (
            "C06",
            "Few cases",
            f"{unit}s among the {subset} images: {', '.join(few)}; the intervals are wide and uncertain.",
        )
    support = np.bincount(predictions.target, minlength=predictions.n_classes)
    if predictions.n_classes == 2 and 0 < support.min() < IMBALANCE * n_images:
        rarest, other = (predictions.classes[int(index)] for index in np.argsort(support, kind="stable"))
        yield (
            "C09",
            "Class imbalance",
            f"{support.min():,} of {n_images:,} {subset} images are {rarest}; always predicting {other} has an "
            f"accuracy of {support.max() / n_images:.3f}.",
        )
    error = metrics["ece"]
    if (error["value"] if error["ci95"] is None else error["ci95"][0]) > CALIBRATION_ERROR:
        yield (
            "C10",
            "Calibration off",
            f"on average, predicted probabilities differ from observed frequencies by {format_estimate(error)}.",
        )
    patients = np.unique(predictions.patient)
    wrong = [name for name in patients if not predictions.correct[predictions.patient == name].any()]
    if wrong and run.one_class is None and not run.are_independent:
        yield "C11", "A patient all wrong", f"all images of {join_truncated(wrong, limit=3)} are predicted wrongly."
    if "calibrated" in metrics:
        reasons = list(_threshold_faults(metrics["calibrated"], predictions.classes))
        if reasons:
            yield "C16", "Threshold uncertain", f"{'; '.join(reasons)}."
    n_other = int((predictions.predicted != predictions.probabilities.argmax(axis=1)).sum())
    if n_other:
        yield (
            "C13",
            "Predicted class not the most probable",
            f"{n_other:,} of {n_images:,} images; the table was made with another threshold, or is wrong.",
        )


def _failed_checks_of_training(run: Run, predictions: Predictions) -> Iterator[tuple[str, str, str]]:
    counts = run.data.get("n_images", {})
    if "val" not in counts:
        yield (
            "C07",
            "No validation set",
            "no epoch selection or calibration: the last epoch is evaluated.",
        )
    if run.overfitting is not None and run.overfitting > OVERFITTING and run.one_class is None:
        row = run.final_row
        yield (
            "C08",
            "Overfitting",
            f"train accuracy is {row['train_accuracy']:.3f}, test accuracy {row['test_accuracy']:.3f}.",
        )
    limit = run.config.get("trainer", {}).get("limit_train_batches")
    if limit is not None:
        yield "C12", "Shortened epochs", f"each epoch used only trainer.limit_train_batches={limit} batches."
    split_csv = RunFolder(run.folder).split_csv
    if split_csv.is_file():
        split = pd.read_csv(split_csv, dtype=str)
        differing = set(split["image"][split["subset"] == "test"]) ^ set(predictions.image)
        if differing:
            names = join_truncated(sorted(differing), limit=3)
            yield "C14", "Not the images of the run", f"in only one of predictions.csv and split.csv (test): {names}."


def _threshold_faults(calibrated: Mapping[str, Any], classes: Sequence[str]) -> Iterator[str]:
    fitted_on, wanted, (negative, positive) = calibrated["fitted_on"], calibrated["wanted_sensitivity"], classes
    n_cases = fitted_on["n_positive_cases"]
    if wanted > 1 - 1 / n_cases + 1e-9:  # 1 - 1 / 20 is a little below 0.95
        yield (
            f"a sensitivity of {wanted:g} was chosen on {n_cases} {positive} validation cases; {n_cases} cases cannot "
            f"tell a sensitivity above {1 - 1 / n_cases:.3f} (1 - 1/{n_cases}) from 1"
        )
    specificities = {"validation": fitted_on["specificity"], "test": calibrated["specificity"]["value"]}
    subsets = [subset for subset, value in specificities.items() if value == 0]
    if subsets:
        yield (
            f"at the threshold, the specificity is 0: all {negative} {' and '.join(subsets)} images are predicted as "
            f"{positive}"
        )


def _shared_cases(metrics: Mapping[str, Any], n_images: int) -> str:
    without = metrics["without_shared_cases"]
    if without is None:
        return f"all {n_images:,} test images share a case with train or validation images."
    return (
        f"{n_images - without['n_images']:,} of {n_images:,} test images share a case with train or validation "
        "images; the network may have seen the same person. Without them: weighted F1 "
        f"{format_estimate(without['weighted_f1'])}, AUROC {format_estimate(without['auroc'])}."
    )
