"""The interface for notebooks, and the notebook itself."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import breakhis_pl
from breakhis_pl.errors import DataError, RunFolderError
from breakhis_pl.metrics.evaluation import format_estimate
from tests.conftest import REPOSITORY

NOTEBOOK = REPOSITORY / "notebooks" / "first_look.ipynb"


def test_a_run_has_its_tables_its_network_and_predicts_pictures(finished_run: Path, synthetic_cache: Path) -> None:
    run = breakhis_pl.open_run(str(finished_run))
    table = run.predictions
    assert run.metrics == json.loads((finished_run / "test" / "metrics.json").read_text())
    assert len(run.history) == 2
    assert len(table) == run.metrics["n_images"]
    pictures = [next(synthetic_cache.rglob(name)) for name in table["image"][:3]]
    found = run.predict(pictures)
    np.testing.assert_allclose(found["prob_malignant"], table["prob_malignant"][:3], atol=1e-5)
    assert found["predicted"].tolist() == table["predicted"][:3].tolist()
    pixels, heat = run.explain(pictures[0])
    assert (pixels.shape, heat.shape) == ((32, 32, 3), (32, 32))
    other = run.explain(pictures[0], "benign" if table["predicted"][0] == "malignant" else "malignant")[1]
    assert not np.array_equal(heat, other)
    assert not run.network.training


def test_runs_are_compared_in_pairs(finished_run: Path, tmp_path: Path) -> None:
    for name, n_wrong in (("few", 2), ("many", 20)):
        path = shutil.copytree(finished_run, tmp_path / name) / "test" / "predictions.csv"
        table = pd.read_csv(path)
        is_malignant = (table["target"] == "malignant") ^ (table.index < n_wrong)
        table["prob_malignant"] = np.where(is_malignant, 0.9, 0.1)
        table["prob_benign"] = 1 - table["prob_malignant"]
        table["predicted"] = np.where(is_malignant, "malignant", "benign")
        table.to_csv(path, index=False)
    found = breakhis_pl.compare(tmp_path / "few", tmp_path / "many")
    assert set(found["first"] + " " + found["second"]) == {"few many"}
    accuracy = found.set_index("metric").loc["accuracy"]
    assert accuracy["difference"] == pytest.approx(18 / len(table))
    assert accuracy["low"] < accuracy["difference"] < accuracy["high"]


def test_what_cannot_be_opened_is_named(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(RunFolderError, match="nowhere"):
        breakhis_pl.open_run(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"text\.png"):
        breakhis_pl.open_run(finished_run).predict(tmp_path / "text.png")
    with pytest.raises(AttributeError, match="open_runs"):
        _ = breakhis_pl.open_runs  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(finished_run: Path, tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, 4)
    runs = [shutil.copytree(finished_run, tmp_path / name) for name in ("a", "b")]
    first = next(cell for cell in notebook.cells if "RUNS = " in cell["source"])
    own = f"RUNS = [Path(name) for name in {[str(run) for run in runs]}]"
    first["source"] = re.sub(r"^RUNS = .*$", own, first["source"], flags=re.MULTILINE)
    client.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(REPOSITORY)}}).execute()


def test_a_model_card_has_the_results_and_what_to_know_before_using_them(finished_run: Path) -> None:
    from breakhis_pl.inference.model_card import model_card

    metadata = {
        **{"backbone": "resnet18", "classes": ["benign", "malignant"], "image_size": 32, "resized": "to a square"},
        **{
            "data": "images",
            "commit": None,
            "checkpoint_sha256": "0",
            "notice": "Not a medical device.",
            "calibration": None,
        },
    }
    card = model_card(finished_run, metadata)
    metrics = json.loads((finished_run / "test" / "metrics.json").read_text())
    assert format_estimate(metrics["weighted_f1"]) in card
    assert "C02" in card
    assert "Not a medical device." in card
