"""End to end on real images, where they are at hand."""

import json
from pathlib import Path

import pytest

from tests.programs import run_program


@pytest.fixture(scope="module")
def real_run(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps on the 839 images, made small."""
    folder = tmp_path_factory.mktemp("real")
    outcome = run_program(
        "train",
        f"data.root={real_data / 'breakhis_200x_224px'}",
        "data.require_complete=false",
        "data.image_size=64",
        "data.cache_dir=cache",
        f"model.weights={real_data / 'weights' / 'resnet18_imagenet_approx_fp16.pth'}",
        "trainer.max_epochs=1",
        "trainer=cpu",
        "hydra.run.dir=run",
        cwd=folder,
    )
    assert outcome.status == 0, outcome.err
    assert "incomplete archive: 839 of 2,013 images at 200X" in outcome.out
    return folder / "run"


def test_real_images_are_learned_from(real_run: Path) -> None:
    metrics = json.loads((real_run / "test" / "metrics.json").read_text())
    assert metrics["n_images"] == 316
    assert metrics["n_patients"] == 20
    assert metrics["auroc"]["value"] > 0.75  # 0.5 is chance; the full recipe at 224 pixels reaches 0.95


def test_an_incomplete_archive_is_said_in_run_json(real_run: Path) -> None:
    run = json.loads((real_run / "run.json").read_text())
    assert (run["data"]["complete"], run["data"]["synthetic"]) == (False, False)
    assert run["data"]["n_images"] == {
        "train": {"benign": 89, "malignant": 434},
        "test": {"benign": 113, "malignant": 203},
    }


def test_evaluate_finds_the_images_where_they_have_moved(real_run: Path, real_data: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    moved.symlink_to(real_data / "breakhis_200x_224px")
    before = (real_run / "test" / "predictions.csv").read_bytes()
    outcome = run_program(
        "evaluate", f"run={real_run}", f"data.root={moved}", "trainer.accelerator=cpu", cwd=real_run.parent
    )
    assert outcome.status == 0, outcome.err
    assert (real_run / "test" / "predictions.csv").read_bytes() == before


def test_originals_of_four_magnifications_are_trained_on(real_data: Path, tmp_path: Path) -> None:
    outcome = run_program(
        "train",
        f"data.root={real_data / 'breakhis_originals'}",
        "data.require_complete=false",
        "data.magnification=[40,100,200,400]",
        "data.split=ratio",
        "data.test_fraction=0.3",
        "data.image_size=64",
        "data.cache_dir=cache",
        "model.weights=none",
        "trainer.max_epochs=1",
        "trainer=cpu",
        "hydra.run.dir=run",
        cwd=tmp_path,
    )
    assert outcome.status == 0, outcome.err
    metrics = json.loads((tmp_path / "run" / "test" / "metrics.json").read_text())
    assert sum(entry["n_images"] for entry in metrics["per_magnification"].values()) == metrics["n_images"]
    assert len(metrics["per_magnification"]) > 1
