"""Run folders written by hand, for tests of what is computed from them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from breakhis_pl.evaluation.confusion import confusion_matrix
from breakhis_pl.evaluation.predictions import Predictions, write_predictions

HISTORY = """epoch,train_loss,train_accuracy,test_loss,test_accuracy,learning_rate,images_per_second
1,0.6,0.80,0.5,0.82,0.0005,100.0
2,0.3,0.95,0.4,0.875,0.00045,300.0
"""


def run_document(model: str = "resnet18", *, seed: int = 0, fold: int = 2, **data: Any) -> dict[str, Any]:
    return {
        "status": "finished",
        "error": None,
        "seconds": {"total": 75.5, "training": 61.25},
        "config": {
            "model": {"backbone": model},
            "data": {"fold": fold, "split": "official", "magnification": [200]},
            "seed": seed,
        },
        "data": {
            "synthetic": False,
            "complete": True,
            "description": "BreakHis",
            "split_checksum": f"sha256:{fold}",
            "n_images": {"train": {"benign": 455, "malignant": 961}, "test": {"benign": 168, "malignant": 429}},
            **data,
        },
        "model": {"backbone": model, "n_parameters": 11_333_702},
        "device": "cpu",
        "precision": "32-true",
    }


def metrics_document(
    accuracy: float = 0.893, *, n_images: int = 597, predictions: Predictions | None = None
) -> dict[str, Any]:
    """What metrics.json may hold, with the counts of these rows where there are some."""
    counts = {}
    if predictions is not None:
        counts = {
            "n_images": len(predictions),
            "confusion_matrix": confusion_matrix(predictions.target, predictions.predicted).tolist(),
        }
    return {
        "subset": "test",
        "n_images": n_images,
        "confusion_matrix": [[119, 49], [25, 404]],
        "per_class": {
            "benign": {"precision": 0.826, "recall": {"value": 0.708, "ci95": None}, "f1": 0.763, "support": 168},
            "malignant": {"precision": 0.892, "recall": 0.942, "f1": 0.916, "support": 429},
        },
        "accuracy": {"value": accuracy, "ci95": [0.82, 0.9614]},
        "balanced_accuracy": 0.825,
        "weighted_f1": {"value": 1 / 3, "ci95": None},
        "auroc": {"value": None, "ci95": None},
        "mcc": 0.68,
        "patient_recognition_rate": {"value": 0.871, "ci95": [0.8, 0.94]},
    } | counts


def table(wrong: Sequence[int] = (), *, n_cases: int = 10, n_images: int = 2, first: int = 0) -> Predictions:
    """Images of cases that are benign and malignant by turns, all classified correctly but for some.

    Args:
        wrong: Indices of the images that are called by the other class.
        n_cases: Number of cases.
        n_images: Number of images of each case.
        first: Number of the first image, in its name.
    """
    case = np.arange(n_cases).repeat(n_images)
    target = (case % 2).astype(np.int64)
    predicted = target.copy()
    predicted[list(wrong)] = 1 - predicted[list(wrong)]
    malignant = np.where(predicted == 1, 0.9, 0.1)
    return Predictions(
        image=tuple(f"{first + i}.png" for i in range(len(case))),
        patient=tuple(f"patient {each}" for each in case),
        case=tuple(f"case {each}" for each in case),
        magnification=np.full(len(case), 200),
        target=target,
        probabilities=np.stack([1 - malignant, malignant], axis=1),
        predicted=predicted,
    )


def write_run(
    sweep: Path,
    name: str,
    run: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    history: str | None = HISTORY,
    predictions: Predictions | None = None,
) -> Path:
    folder = sweep / name
    (folder / "test").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(run_document() if run is None else run), encoding="utf-8")
    (folder / "test" / "metrics.json").write_text(
        json.dumps(metrics_document(predictions=predictions) if metrics is None else metrics), encoding="utf-8"
    )
    if history is not None:
        (folder / "history.csv").write_text(history, encoding="utf-8")
    if predictions is not None:
        write_predictions(folder / "test" / "predictions.csv", predictions)
    return folder
