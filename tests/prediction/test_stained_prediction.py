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


@pytest.mark.parametrize("stain", [pytest.param("reinhard", marks=pytest.mark.slow), "macenko"])
def test_predictions_of_the_run_and_of_its_export_are_those_of_the_test_table(
    stain: str, drawn_cache: Path, tmp_path: Path
) -> None:
    keys = (f"data.stain={stain}", f"data.cache_dir={drawn_cache}", "trainer.max_epochs=1", "gallery=0")
    trained = run_program("train", *TINY, *keys, "trainer=cpu", "hydra.run.dir=run", cwd=tmp_path)
    assert trained.status == 0, trained.err
    images = next(path for path in drawn_cache.iterdir() if path.name.startswith("synthetic-"))
    own = probabilities(tmp_path / "run" / "test" / "predictions.csv")

    facts = open_run(tmp_path / "run", checkpoint="auto", accelerator="cpu", precision="auto").facts
    path = str(next(images.rglob("*.png")))
    plain, stained = decode(path, 32), decode(path, 32, facts.stain)
    assert isinstance(plain, Decoded)
    assert isinstance(stained, Decoded)
    assert np.abs(plain.pixels.astype(int) - stained.pixels).max() > 3  # else nothing of what follows could fail

    exported = export_onnx.export_onnx(tmp_path / "run", out=tmp_path / "run.onnx", images=str(images))
    assert exported.logit_difference <= export_onnx.TOLERANCE
    for place, tolerance in (("run", 1e-6), ("run.onnx", 1e-4)):
        arguments = (f"run={place}", f"images={images}", f"hydra.run.dir={place}-out", "trainer.accelerator=cpu")
        outcome = run_program("predict", *arguments, cwd=tmp_path)
        assert outcome.status == 0, outcome.err
        found = probabilities(tmp_path / f"{place}-out" / "predictions.csv")
        assert {name: found[name] for name in own} == pytest.approx(own, abs=tolerance)
