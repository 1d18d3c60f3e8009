"""Run folders written by hand: patients and cases of the authors' fold 2, drawn probabilities."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from breakhis_pl.data.breakhis import official_patients, parse_file_name
from breakhis_pl.evaluation.gallery import choose_gallery, write_gallery
from breakhis_pl.evaluation.metrics import evaluate, write_metrics
from breakhis_pl.evaluation.predictions import Predictions, read_predictions, write_predictions
from breakhis_pl.evaluation.siblings import siblings_from_split

CONFIG = {
    "data": {"source": "breakhis", "root": "data", "magnification": [200], "split": "official", "fold": 2},
    "model": {"backbone": "resnet18", "weights": "imagenet", "epochs": 15},
    "optimizer": {"_target_": "torch.optim.Adamax", "lr": 0.0005},
    "trainer": {"limit_train_batches": None, "deterministic": False},
    "seed": 0,
}


def drawn_predictions(*, images_per_patient: int = 5, skill: float = 1.5, seed: int = 0) -> Predictions:
    """Rows of the 28 test patients of fold 2; patients differ in how well they are told."""
    random = np.random.default_rng(seed)
    rows = []
    for name, patient in official_patients().items():
        if patient.subsets[2] != "test":
            continue
        parsed = parse_file_name(f"{name}-200-001.png")
        center = skill * (2 * parsed.target - 1) + random.normal()
        for number in range(images_per_patient):
            logit = center + random.normal()
            rows.append((f"{name}-200-{number + 1:03}.png", name, parsed.case, parsed.target, 1 / (1 + np.exp(-logit))))
    malignant = np.array([row[4] for row in rows])
    return Predictions(
        image=tuple(row[0] for row in rows),
        patient=tuple(row[1] for row in rows),
        case=tuple(row[2] for row in rows),
        magnification=np.full(len(rows), 200),
        target=np.array([row[3] for row in rows]),
        probabilities=np.column_stack([1 - malignant, malignant]),
        predicted=(malignant > 0.5).astype(np.int64),
    )


def write_run(
    folder: Path,
    predictions: Predictions | None = None,
    *,
    facts: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    with_validation: bool = False,
) -> Path:
    """A finished run with its result.

    Args:
        folder: Made.
        predictions: Rows of its result; drawn if there are none.
        facts: What run.json holds instead of the usual.
        config: Groups of the configuration instead of the usual.
        with_validation: Whether split.csv names a validation set.
    """
    folder.mkdir(parents=True)
    predictions = drawn_predictions() if predictions is None else predictions
    record = {
        "status": "finished",
        "error": None,
        "command": "uv run train.py model=resnet18",
        "started": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T03:14:05+00:00",
        "seconds": {"total": 600.0, "training": 500.0},
        "package_version": "0.1.0",
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "uncommitted_changes": False,
        "versions": {"python": "3.12.1", "torch": "2.11.0"},
        "config": CONFIG | dict(config or {}),
        "data": {
            "synthetic": False,
            "complete": True,
            "description": "2,013 images at 200X",
            "n_images": {"train": {"benign": 455, "malignant": 961}, "test": {"benign": 168, "malignant": 429}},
            "split_checksum": "sha256:00ff",
        },
        "model": {"backbone": "resnet18", "n_parameters": 11_333_742},
        "device": "cpu, 2 cores",
        "precision": "32-true",
        "torch_threads": 2,
    } | dict(facts or {})
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    _write_split(folder / "split.csv", predictions, with_validation=with_validation)
    (folder / "history.csv").write_text(
        "epoch,train_loss,train_accuracy,test_loss,test_accuracy,learning_rate,images_per_second\n"
        "1,0.5,0.75,0.45,0.8,0.0005,100\n2,0.25,0.9,0.4,0.85,0.00045,100\n"
    )
    (folder / "test").mkdir()
    write_predictions(folder / "test/predictions.csv", predictions)
    metrics = evaluate(predictions, siblings=siblings_from_split(folder / "split.csv"), n_draws=200)
    write_metrics(folder / "test/metrics.json", metrics)
    return folder


def add_gallery(folder: Path, *, n_per_kind: int = 8) -> None:
    """A gallery of noise, which compresses worst."""
    predictions = read_predictions(folder / "test/predictions.csv")
    chosen = choose_gallery(predictions, n_per_kind=n_per_kind)
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (len(chosen), 256, 256, 3), dtype=np.uint8)
    heat = random.random((len(chosen), 256, 256), dtype=np.float32)
    write_gallery(folder / "test", chosen, pixels, heat)


def _write_split(path: Path, predictions: Predictions, *, with_validation: bool) -> None:
    """The test images, and an image of train (one of val) per official patient of the other side."""
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("image", "patient", "case", "subset"))
    for image, patient, case in zip(predictions.image, predictions.patient, predictions.case, strict=True):
        writer.writerow((image, patient, case, "test"))
    others = [name for name, patient in official_patients().items() if patient.subsets[2] == "train"]
    for index, name in enumerate(others):
        subset = "val" if with_validation and index % 5 == 0 else "train"
        writer.writerow((f"{name}-200-001.png", name, parse_file_name(f"{name}-200-001.png").case, subset))
    path.write_text(table.getvalue(), encoding="utf-8", newline="")
