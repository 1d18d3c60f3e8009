"""Run folders of an untrained network, and pictures for it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from breakhis_pl.config import PredictConfig, plain
from breakhis_pl.data.breakhis import CLASS_NAMES
from breakhis_pl.metrics.calibration import Calibration, write_calibration
from breakhis_pl.models.classifier import Classifier
from breakhis_pl.run_folder import RunFolder, RunRecord
from tests.configs import train_config


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory, synthetic_cache: Path) -> Callable[..., Path]:
    """Write a run folder as train.py does, with a network that is not trained."""

    def make(
        classes: Sequence[str] = CLASS_NAMES,
        parents: Sequence[int] | None = None,
        stain: dict[str, Any] | None = None,
        calibrated: bool = False,
    ) -> Path:
        size = ("data=synthetic", "data.images_per_patient=1", "data.width=64", "data.image_size=32")
        config = train_config(*size, f"data.cache_dir={synthetic_cache}", "model.weights=none")
        classifier = Classifier(
            config.model.model_dump(), classes=classes, parents=parents, parent_classes=CLASS_NAMES, image_size=32
        )
        run = RunFolder(tmp_path_factory.mktemp("runs") / "run")
        run.checkpoints.mkdir(parents=True)
        run.write(RunRecord(status="finished", command="", started="", config=plain(config), device="cpu"))
        statistics = {"mean": [0.7, 0.5, 0.6], "std": [0.1, 0.2, 0.1], "image_size": 32, "stain": stain}
        checkpoint = {
            "epoch": 0,
            "state_dict": classifier.state_dict(),
            "hyper_parameters": dict(classifier.hparams),
            "BreakHisDataModule": statistics,
        }
        torch.save(checkpoint, run.last_checkpoint)
        if calibrated:
            write_calibration(run.calibration_json, Calibration(2.0, 0.4, 0.95, 50, 9, 5, 0.6, 0.5, 0.96, 0.7))
        return run.path

    return make


@pytest.fixture(scope="session")
def run(make_run: Callable[..., Path]) -> Path:
    """A run folder with calibration and without a detector."""
    return make_run(calibrated=True)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Folder of five PNG pictures of different sizes, the last two in a folder of their own."""
    rng = np.random.default_rng(0)
    names = ("a.png", "b.PNG", "c.png", "below/d.png", "below/<e> & 'f',g.png")
    for number, name in enumerate(names):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30 + number, 50, 3), dtype=np.uint8)).save(path)
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    (tmp_path / "pictures" / ".hidden.png").write_bytes(b"")
    return tmp_path / "pictures"


@pytest.fixture
def configure(run: Path) -> Callable[..., PredictConfig]:
    """Make a configuration of predict.py with the values of conf/predict.yaml."""

    def make(images: Path | list[Path], **changes: Any) -> PredictConfig:
        values = {"run": run, "images": images, "checkpoint": "auto", "batch_size": 2, "threads": 2, "gradcam": False}
        return PredictConfig.model_validate(
            {**values, "trainer": {"accelerator": "cpu", "precision": "auto"}, **changes}
        )

    return make
