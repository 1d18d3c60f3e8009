"""Several runs as one."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from breakhis_pl.errors import BreakHisError, PredictionsError, RunFolderError
from breakhis_pl.metrics.evaluation import evaluate_table
from breakhis_pl.metrics.predictions import Predictions, read_predictions, table_checksum
from breakhis_pl.reporting.comparison import write_comparison
from breakhis_pl.reporting.ensemble import write_ensemble
from tests.unit.reporting.conftest import make_table, metrics_of, with_decisions, write_run, write_table

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two runs on the same images, the rows of the second in another order; one shares a case with its train images."""
    first = make_table(skill=0.5)
    second = with_decisions(first, make_table(skill=0.5, seed=1))
    return [
        write_run(tmp_path / "a", first),
        write_run(tmp_path / "b", second.take(np.arange(40)[::-1]), "seed=1", trained_on=[("x.png", "14-1003")]),
    ]


def test_probabilities_are_averaged_and_the_larger_mean_decides(tmp_path: Path, runs: list[Path]) -> None:
    write_ensemble(tmp_path / "out", runs)
    tables = [pd.read_csv(run / "test/predictions.csv", index_col="image").sort_index() for run in runs]
    mean = pd.read_csv(tmp_path / "out/predictions.csv", index_col="image").sort_index()
    expected = np.mean([table[["prob_benign", "prob_malignant"]] for table in tables], axis=0)
    np.testing.assert_allclose(mean[["prob_benign", "prob_malignant"]], expected, atol=1e-8)
    assert (mean["predicted"] == np.array(["benign", "malignant"])[expected.argmax(axis=1)]).all()
    assert (mean[["case", "patient", "target"]] == tables[0][["case", "patient", "target"]]).all(axis=None)


def test_the_folder_has_metrics_members_and_a_comparison(tmp_path: Path, runs: list[Path]) -> None:
    out = tmp_path / "out"
    path, _ = write_ensemble(out, runs)
    assert path == out / "comparison.md"
    ensemble = json.loads((out / "ensemble.json").read_text())
    assert [member["name"] for member in ensemble["members"]] == ["a", "b"]
    assert [member["seed"] for member in ensemble["members"]] == [0, 1]
    for run, member in zip(runs, ensemble["members"], strict=True):
        assert member["predictions_checksum"] == table_checksum(run / "test/predictions.csv")
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics == evaluate_table(out / "predictions.csv")
    shared = set(ensemble["shared_case_images"])
    assert shared == {name for name in make_table().image if "14-1003" in name}
    assert metrics["without_shared_cases"]["n_images"] == 40 - len(shared)
    table = pd.read_csv(out / "comparison.csv", index_col="run")
    assert list(table.index) == ["ensemble", "a", "b"]
    assert table.loc["ensemble", "accuracy"] == pytest.approx(metrics["accuracy"]["value"])
    assert table.loc["a", "accuracy"] == pytest.approx(metrics_of(runs[0])["accuracy"]["value"])
    assert table["fold"].tolist() == [2, 2, 2]


def test_an_ensemble_is_compared_like_a_run_and_is_no_member(tmp_path: Path, runs: list[Path]) -> None:
    write_ensemble(tmp_path / "out", runs)
    write_ensemble(tmp_path / "out", [*runs, tmp_path / "out"])  # replaces the earlier one
    assert len(json.loads((tmp_path / "out/ensemble.json").read_text())["members"]) == 2
    write_comparison(tmp_path / "comparison", [runs[0], tmp_path / "out"])
    table = pd.read_csv(tmp_path / "comparison/comparison.csv")
    assert table["run"].tolist() == ["resnet18", "out (ensemble of 2)"]
    assert table["status"].tolist() == ["finished", "finished"]


def test_tables_of_averaged_views_are_averaged(tmp_path: Path, runs: list[Path]) -> None:
    with pytest.raises(RunFolderError, match="test_flips"):
        write_ensemble(tmp_path / "out", runs, tta="flips")
    tables = [make_table(seed=seed) for seed in (3, 4)]
    for run, table in zip(runs, tables, strict=True):
        write_table(run / "test_flips", replace(table, image=make_table().image))
    write_ensemble(tmp_path / "out", runs, tta="flips")
    found = read_predictions(tmp_path / "out/predictions.csv")
    mean = np.mean([table.probabilities for table in tables], axis=0)
    np.testing.assert_allclose(found.probabilities, mean, atol=1e-8)


def with_run_c(table: Predictions | None, **options: Any) -> Callable[[Path, list[Path]], list[Path]]:
    """Add a run to those of the fixture."""
    return lambda folder, runs: [*runs, write_run(folder / "c", table, "seed=2", **options)]


OTHER = make_table(seed=2)
REFUSED: dict[str, tuple[Callable[[Path, list[Path]], list[Path]], type[BreakHisError], str]] = {
    "one run": (lambda _, runs: runs[:1], PredictionsError, "ensemble"),
    "a run twice": (lambda _, runs: [*runs, runs[0]], PredictionsError, "/a:"),
    "other images": (with_run_c(make_table(prefix="other")), PredictionsError, "^c: SOB_B"),
    "other truth": (with_run_c(replace(OTHER, target=1 - OTHER.target)), PredictionsError, "^c: SOB_B"),
    "the same table": (with_run_c(make_table(skill=0.5)), PredictionsError, "^a, c: "),
    "trained on a test image": (
        with_run_c(OTHER, trained_on=[(OTHER.image[0], "14-1000")]),
        PredictionsError,
        f"^c: .*{OTHER.image[0]}",
    ),
    "synthetic images": (with_run_c(OTHER, data={"synthetic": True}), PredictionsError, "synthetic"),
    "no result": (with_run_c(None, status="failed", error="out of memory"), RunFolderError, "/c: out of memory"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_runs_that_cannot_be_averaged_are_refused_by_name(tmp_path: Path, runs: list[Path], fault: str) -> None:
    add, error, named = REFUSED[fault]
    with pytest.raises(error, match=named):
        write_ensemble(tmp_path / "out", add(tmp_path, runs))
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_not_overwritten(runs: list[Path]) -> None:
    files = set(runs[0].rglob("*"))
    with pytest.raises(RunFolderError, match="out"):
        write_ensemble(runs[0], runs)
    assert set(runs[0].rglob("*")) == files
