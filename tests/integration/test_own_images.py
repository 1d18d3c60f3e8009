"""A table of three classes, from images to pages and predictions."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.programs import run_program

KEYS = (
    "data=table",
    "data.table=images.csv",
    "data.image_size=32",
    "data.cache_dir=cache",
    "model.weights=none",
    "trainer=cpu",
    "trainer.progress_bar=false",
    "trainer.max_epochs=1",
    "gallery=2",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder with 72 images of three classes, two of each patient, and their table."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(72):
        color = np.eye(3)[index % 3] * 80 + 100
        name = f"{index:02}.{('png', 'jpg', 'tif')[index // 3 % 3]}"
        Image.fromarray((color + rng.normal(0, 20, (40, 48, 3))).clip(0, 255).astype(np.uint8)).save(tmp_path / name)
        patient = index % 36
        split = "test" if patient >= 24 else "val" if patient >= 18 else "train"
        rows.append((name, "xyz"[index % 3], f"p{patient}", split, patient // 12, 1 + index % 2))
    columns = ["image", "label", "patient", "split", "fold", "weight"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "images.csv", index=False)
    return tmp_path


def test_a_table_of_three_classes_is_trained_on_evaluated_and_predicted(folder: Path) -> None:
    outcome = run_program("train", *KEYS, "trainer.monitor=val_loss", "hydra.run.dir=run", cwd=folder)
    assert outcome.status == 0, outcome.err
    run = folder / "run"
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "images.csv" in page
    assert not [word for word in ("BreakHis", "ranking", "threshold", "binary") if word in page]
    rows = pd.read_csv(run / "test" / "predictions.csv")
    assert list(rows.columns) == ["image", "patient", "case", "target", "prob_x", "prob_y", "prob_z", "predicted"]
    assert not {"per_magnification", "per_subtype"} & json.loads((run / "test" / "metrics.json").read_text()).keys()
    (folder / "images.csv").rename(folder / "moved.csv")
    for program, arguments in {
        "train": ("resume=run", "data.table=moved.csv", "trainer.max_epochs=2"),
        "evaluate": ("run=run", "data.table=moved.csv", "tta=flips", "trainer.accelerator=cpu"),
        "predict": ("run=run", "images=00.png", "gradcam=true", "trainer.accelerator=cpu", "hydra.run.dir=predicted"),
    }.items():
        outcome = run_program(program, *arguments, cwd=folder)
        assert outcome.status == 0, outcome.err
    predicted = pd.read_csv(folder / "predicted" / "predictions.csv")
    assert predicted["predicted"].isin(["x", "y", "z"]).all()
    assert not {"prob_z_calibrated", "decision"} & set(predicted)
    assert "decided" not in (folder / "predicted" / "predictions.html").read_text(encoding="utf-8")


def test_folds_of_independent_images_are_compared(folder: Path) -> None:
    table = pd.read_csv(folder / "images.csv").drop(columns=["patient", "weight"])
    table[table["label"] != "z"].to_csv(folder / "images.csv", index=False)
    outcome = run_program("train", "-m", *KEYS, "data.fold=0,1,2", "hydra.sweep.dir=sweep", cwd=folder)
    assert outcome.status == 0, outcome.err
    comparison = (folder / "sweep" / "comparison.html").read_text(encoding="utf-8")
    assert "Over the folds" in comparison
    assert "BreakHis" not in comparison
    metrics = json.loads(next((folder / "sweep").glob("*/test/metrics.json")).read_text())
    assert metrics["n_cases"] == metrics["n_images"] == 16
    assert "patient_recognition_rate" not in metrics
