"""A run whose images were brought to the stains of its train images: predict.py and the export do the same."""

from pathlib import Path

import numpy as np
import pytest

from breakhis_pl import export_onnx
from breakhis_pl.evaluation.csv_tables import read_columns
from breakhis_pl.prediction.run_network import open_run
from breakhis_pl.prediction.stream import Decoded, decode
from tests.programs import TINY, run_program


def probabilities(table: Path) -> dict[str, float]:
    return {Path(cells["image"]).name: float(cells["prob_malignant"]) for _, cells in read_columns(table, ())}


@pytest.fixture(scope="module", params=[pytest.param("reinhard", marks=pytest.mark.slow), "macenko"])
def work(request: pytest.FixtureRequest, drawn_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which such a run is `run`."""
    folder = tmp_path_factory.mktemp(request.param)
    keys = (f"data.stain={request.param}", f"data.cache_dir={drawn_cache}", "trainer.max_epochs=1", "gallery=0")
    trained = run_program("train", *TINY, *keys, "trainer=cpu", "hydra.run.dir=run", cwd=folder)
    assert trained.status == 0, trained.err
    return folder


@pytest.fixture
def images(work: Path, drawn_cache: Path) -> Path:
    """The folder of the images that the run was made from."""
    images = next(path for path in drawn_cache.iterdir() if path.name.startswith("synthetic-"))
    facts = open_run(work / "run", checkpoint="auto", accelerator="cpu", precision="auto").facts
    path = str(next(images.rglob("*.png")))
    plain, stained = decode(path, 32), decode(path, 32, facts.stain)
    assert isinstance(plain, Decoded)
    assert isinstance(stained, Decoded)
    assert np.abs(plain.pixels.astype(int) - stained.pixels).max() > 3  # else nothing of what follows could fail
    return images


def check_predictions(place: str, work: Path, images: Path, *, tolerance: float) -> None:
    """Predictions of a run or an exported network are those of the run's test table."""
    arguments = (f"run={place}", f"images={images}", f"hydra.run.dir={place}-out", "trainer.accelerator=cpu")
    outcome = run_program("predict", *arguments, cwd=work)
    assert outcome.status == 0, outcome.err
    own = probabilities(work / "run" / "test" / "predictions.csv")
    found = probabilities(work / f"{place}-out" / "predictions.csv")
    assert {name: found[name] for name in own} == pytest.approx(own, abs=tolerance)


def test_predictions_of_the_run_are_those_of_the_test_table(work: Path, images: Path) -> None:
    check_predictions("run", work, images, tolerance=1e-6)


@pytest.mark.extra("onnx", "onnxscript", "onnxruntime")
def test_predictions_of_the_export_are_those_of_the_test_table(work: Path, images: Path) -> None:
    exported = export_onnx.export_onnx(work / "run", out=work / "run.onnx", images=str(images))
    assert exported.logit_difference <= export_onnx.TOLERANCE
    check_predictions("run.onnx", work, images, tolerance=1e-4)
