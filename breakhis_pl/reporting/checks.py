"""Checks of a run: what a reader must know before its numbers. docs/checks.md has a line on each code."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from breakhis_pl.data.breakhis import PUBLISHED_COUNTS, official_patients
from breakhis_pl.data.dataset import Subset
from breakhis_pl.metrics.evaluation import format_estimate
from breakhis_pl.reporting.runs import Run

FEW_CASES = 10
"""Cases of a class below which an interval rests on little."""

OVERFITTING = 0.1
"""Train accuracy minus test accuracy above which the check reports."""

IMBALANCE = 1 / 3
"""Fraction of the test images of the rarest of two classes below which the check reports."""

CALIBRATION_ERROR = 0.05
"""Lower limit of the expected calibration error above which the check reports."""

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
    """Return the path of docs/checks.md relative to a folder; None without it, or if it is on another drive."""
    try:
        return Path(os.path.relpath(DOCUMENTATION, folder.resolve())).as_posix() if DOCUMENTATION.is_file() else None
    except ValueError:
        return None


def run_checks(run: Run) -> list[Check]:
    """Return the checks that a run with a result did not pass, the most important first."""
    return [Check(*found) for found in _failed_checks(run)]


def _failed_checks(run: Run) -> Iterator[tuple[str, str, str]]:  # noqa: PLR0912 - a branch per check
    predictions, metrics = run.predictions, run.metrics
    if predictions is None or metrics is None:
        raise ValueError(f"{run.name} has no result")
    n_images, config = len(predictions), run.config
    if run.predicts_one_class:
        name = predictions.classes[predictions.predicted[0]]
        fraction = float((predictions.target == predictions.predicted[0]).mean())
        yield (
            "C01",
            "One class only",
            f"all {n_images:,} test images are predicted {name}; {fraction:.1%} are, which is the accuracy. "
            "The decisions say nothing about the images.",
        )
    if run.is_synthetic:
        yield (
            "C02",
            "Synthetic images, no tissue",
            "these numbers show that the software runs, nothing about pathology.",
        )
    if run.status != "finished":
        reason = f" ({run.error})" if run.error else ""
        yield "C03", "Run not finished", f"its status is {run.status}{reason}; the results may be of an earlier state."
    if run.is_incomplete:
        n_published = sum(n for (m, _), n in PUBLISHED_COUNTS.items() if m in run.magnifications[1])
        description = run.data.get("description") or f"not all {n_published:,} images are there"
        if run.fold is not None:
            n_test = sum(
                patient.n_images.get(magnification, 0)
                for patient in official_patients().values()
                for magnification in run.magnifications[1]
                if patient.subsets[run.fold] is Subset.TEST
            )
            description += f", tested on {n_images:,} of {n_test:,} published test images"
        yield "C04", "Incomplete archive", f"{description}; results cannot be compared with published ones."
    if "without_shared_cases" in metrics:
        yield "C05", "Shared cases across subsets", _shared_cases(metrics, n_images)
    counts = {name: metrics["per_class"][name]["n_cases"] for name in predictions.classes}
    few = [f"{n or 'no'} {name} case{'' if n == 1 else 's'}" for name, n in counts.items() if n < FEW_CASES]
    if few:
        yield (
            "C06",
            "Few cases",
            f"the test images are of {' and '.join(few)}; images of one case resemble each other, so the intervals "
            "rest on little.",
        )
    if "val" not in run.data.get("n_images", {}) and run.record is not None:
        yield (
            "C07",
            "No validation set",
            "nothing was selected or calibrated: the last epoch is evaluated, and the threshold is 0.5.",
        )
    if run.overfitting is not None and run.overfitting > OVERFITTING and not run.predicts_one_class:
        row = run.final_row
        yield (
            "C08",
            "Overfitting",
            f"train accuracy is {row['train_accuracy']:.3f}, test accuracy {row['test_accuracy']:.3f}.",
        )
    support = np.bincount(predictions.target, minlength=predictions.n_classes)
    if predictions.n_classes == 2 and 0 < support.min() < IMBALANCE * n_images:
        rarest = predictions.classes[int(support.argmin())]
        yield (
            "C09",
            "Class imbalance",
            f"{support.min():,} of {n_images:,} test images are {rarest}; calling none of them {rarest} gives an "
            f"accuracy of {1 - support.min() / n_images:.3f}.",
        )
    error = metrics["ece"]
    if error["ci95"] is not None and error["ci95"][0] > CALIBRATION_ERROR:
        yield (
            "C10",
            "Calibration off",
            f"probabilities miss the observed frequencies by {format_estimate(error)} on average.",
        )
    wrong = [
        name for name in np.unique(predictions.patient) if not predictions.correct[predictions.patient == name].any()
    ]
    if wrong and not run.predicts_one_class:
        names = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        yield "C11", "A patient all wrong", f"no image is correct of {names}."
    limit = config.get("trainer", {}).get("limit_train_batches")
    if limit is not None:
        yield "C12", "Shortened epochs", f"each epoch used only trainer.limit_train_batches={limit} batches."


def _shared_cases(metrics: Mapping[str, Any], n_images: int) -> str:
    without = metrics["without_shared_cases"]
    if without is None:
        return f"all {n_images:,} test images are of a case that has images in train or validation, too."
    return (
        f"{n_images - without['n_images']:,} of {n_images:,} test images are of a case that has images in train or "
        "validation, too; the network may have seen the same person. Without them: weighted F1 "
        f"{format_estimate(without['weighted_f1'])}, AUROC {format_estimate(without['auroc'])}."
    )
