import csv
import gc
import json
from pathlib import Path

import pytest
import torch

from tests.programs import TINY, Outcome, run_program

NETWORKS = ("resnet18", "wide_resnet50", "resnext50")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, drawn_cache: Path) -> tuple[Path, Outcome]:
    """A sweep over the three networks, one step each, in which a fourth run's weights are missing."""
    folder = tmp_path_factory.mktemp("sweep")
    arguments = [argument for argument in TINY if not argument.startswith("model.weights")]
    outcome = run_program(
        "train",
        "-m",
        f"model={','.join(NETWORKS)}",
        "model.weights=none,missing.pth",
        *arguments,
        f"data.cache_dir={drawn_cache}",
        "trainer=cpu",
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=1",
        "data.batch_size=8",
        "optimizer=sgd",  # keeps nothing beside the weights of Wide-ResNet-50
        "gallery=0",
        "hydra.sweep.dir=all",
        cwd=folder,
    )
    return folder / "all", outcome


def comparison(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "comparison.csv").open() as table:
        return {row["run"]: row for row in csv.DictReader(table)}


def test_all_three_networks_are_trained_and_compared(sweep: tuple[Path, Outcome]) -> None:
    rows = comparison(sweep[0])
    for network in NETWORKS:
        row = rows[f"{network}_none"]
        assert (row["status"], row["model"]) == ("finished", network)
        metrics = json.loads((sweep[0] / f"{network}_none" / "test" / "metrics.json").read_text())
        assert float(row["weighted_f1"]) == metrics["weighted_f1"]["value"]
        gap = float(row["train_accuracy"]) - float(row["test_accuracy"])
        assert float(row["train_minus_test_accuracy"]) == pytest.approx(gap)
        assert float(row["seconds"]) > 0


def test_parameters_are_those_of_the_networks_with_their_heads(sweep: tuple[Path, Outcome]) -> None:
    rows = comparison(sweep[0])
    counted = {network: float(rows[f"{network}_none"]["parameters"]) / 1e6 for network in NETWORKS}
    assert counted == pytest.approx({"resnet18": 11.33, "wide_resnet50": 67.4, "resnext50": 23.5}, abs=0.06)


def test_failed_runs_are_listed_and_do_not_stop_the_others(sweep: tuple[Path, Outcome]) -> None:
    folder, outcome = sweep
    rows = comparison(folder)
    assert len(rows) == 6
    assert outcome.status == 1
    assert "model.weights=missing.pth does not exist" in outcome.err
    assert "Traceback" not in outcome.err
    page = (folder / "comparison.md").read_text()
    for network in NETWORKS:
        refused = next(row for name, row in rows.items() if name.startswith(f"{network}_missing"))
        assert (refused["status"], refused["weighted_f1"]) == ("refused", "")
    assert page.count("model.weights=missing.pth does not exist") == 3


def test_the_reports_results_stand_beside_ours_only_where_the_images_are_its_own(sweep: tuple[Path, Outcome]) -> None:
    page = (sweep[0] / "comparison.md").read_text()
    assert "synthetic" in page.lower()
    assert "Beside published results" not in page


def test_evaluate_compares_a_sweep_again_and_any_runs_elsewhere(sweep: tuple[Path, Outcome], tmp_path: Path) -> None:
    folder, _ = sweep
    before = (folder / "comparison.csv").read_bytes()
    outcome = run_program("evaluate", f"runs={folder}", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    assert (folder / "comparison.csv").read_bytes() == before
    runs = ",".join(str(folder / f"{network}_none") for network in NETWORKS[:2])
    outcome = run_program("evaluate", f"runs=[{runs}]", "out=mine", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    assert set(comparison(tmp_path / "mine")) == {"resnet18_none", "wide_resnet50_none"}
    assert (tmp_path / "mine" / "comparison.html").is_file()
    outcome = run_program("evaluate", f"runs={runs}", cwd=tmp_path)
    assert outcome.status == 1
    assert f"'runs=[{runs}]'" in outcome.err


def test_evaluate_refuses_to_compare_what_is_no_sweep(tmp_path: Path) -> None:
    outcome = run_program("evaluate", "runs=nowhere", cwd=tmp_path)
    assert outcome.status == 1
    assert "nowhere is no folder" in outcome.err


def test_nothing_of_a_run_stays_in_memory(sweep: tuple[Path, Outcome]) -> None:
    assert sweep[0].is_dir()
    gc.collect()
    alive = [thing for thing in gc.get_objects() if type(thing) is torch.nn.Conv2d]
    assert not alive
