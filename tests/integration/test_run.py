"""One trained run, read by many tests."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from breakhis_pl.metrics.predictions import read_predictions
from tests.programs import TINY, run_program


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_a_run_folder_is_complete(finished_run: Path) -> None:
    files = {str(path.relative_to(finished_run)) for path in finished_run.rglob("*") if path.is_file()}
    assert {
        "run.json",
        "split.csv",
        "history.csv",
        "curves.png",
        "train.log",
        "checkpoints/last.ckpt",
        "test/predictions.csv",
        "test/metrics.json",
        "test/confusion_matrix.png",
        "test/gallery/gallery.json",
        "report.html",
        ".hydra/config.yaml",
    } <= files


def test_run_json_records_data_network_and_versions(finished_run: Path) -> None:
    run = json.loads((finished_run / "run.json").read_text())
    state = torch.load(finished_run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    n_parameters = sum(
        value.numel() for name, value in state.items() if "running_" not in name and "num_batches" not in name
    )
    assert (run["status"], run["error"]) == ("finished", None)
    assert run["data"]["synthetic"] is True
    assert run["data"]["n_images"]["train"] == {"benign": 15, "malignant": 39}
    assert run["model"]["n_parameters"] == n_parameters
    assert run["seconds"]["total"] >= run["seconds"]["training"] > 0
    assert run["versions"]["torch"] == torch.__version__


def test_the_history_has_a_row_per_epoch(finished_run: Path) -> None:
    history = pd.read_csv(finished_run / "history.csv")
    assert history["epoch"].tolist() == [1, 2]
    assert history["learning_rate"].tolist() == pytest.approx([5e-4, 4.5e-4])
    assert {"train_loss", "train_accuracy", "test_loss", "test_accuracy", "test_weighted_f1", "test_auroc"} <= set(
        history.columns
    )


def test_tensorboard_has_train_and_test_of_a_quantity_in_one_chart(finished_run: Path) -> None:
    history = pd.read_csv(finished_run / "history.csv")
    for subset, quantity in (("train", "loss"), ("train", "accuracy"), ("test", "loss"), ("test", "weighted_f1")):
        found = points(finished_run / "tensorboard" / subset, quantity)
        assert [step for step, _ in found] == [1, 2]
        assert [value for _, value in found] == pytest.approx(history[f"{subset}_{quantity}"].tolist(), rel=1e-5)
    events = EventAccumulator(str(finished_run / "tensorboard" / "test")).Reload()
    assert events.Tags()["images"] == ["confusion_matrix"]


def test_the_last_row_of_the_history_is_the_evaluation(finished_run: Path) -> None:
    predictions = read_predictions(finished_run / "test" / "predictions.csv")
    metrics = json.loads((finished_run / "test" / "metrics.json").read_text())
    last = pd.read_csv(finished_run / "history.csv").iloc[-1]
    loss = -np.log(predictions.probabilities[np.arange(len(predictions)), predictions.target]).mean()
    assert last["test_loss"] == pytest.approx(loss, rel=1e-5)
    for name in ("accuracy", "weighted_f1", "auroc", "balanced_accuracy"):
        assert last[f"test_{name}"] == pytest.approx(metrics[name]["value"], abs=1e-6)


def test_predictions_hold_every_test_image_once(finished_run: Path) -> None:
    with (finished_run / "split.csv").open() as table:
        expected = sorted(row["image"] for row in csv.DictReader(table) if row["subset"] == "test")
    predictions = read_predictions(finished_run / "test" / "predictions.csv")
    assert sorted(predictions.image) == expected


def test_evaluate_repeats_the_result_from_the_checkpoint(finished_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished_run, tmp_path / "run")
    shutil.rmtree(copy / "test")
    outcome = run_program("evaluate", f"run={copy}", "trainer.accelerator=cpu", "gallery=0", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    for name in ("predictions.csv", "metrics.json"):
        assert (copy / "test" / name).read_bytes() == (finished_run / "test" / name).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_evaluate_computes_in_the_precision_of_the_run_and_knows_its_checkpoint(
    finished_run: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(finished_run, tmp_path / "run")
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(record | {"precision": "bf16-mixed"}))
    checkpoint = f"checkpoint={copy}/../run/checkpoints/last.ckpt"
    outcome = run_program("evaluate", f"run={copy}", checkpoint, "gallery=0", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    assert not (copy / "test_last").exists()
    before, after = (read_predictions(each / "test" / "predictions.csv").prob_positive for each in (finished_run, copy))
    assert 0 < np.abs(before - after).max() < 0.05


def test_metrics_are_recomputed_from_a_table(finished_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished_run, tmp_path / "run")
    (copy / "test" / "metrics.json").unlink()
    outcome = run_program("evaluate", f"predictions={copy}/test/predictions.csv", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    again = json.loads((copy / "test" / "metrics.json").read_text())
    assert again == json.loads((finished_run / "test" / "metrics.json").read_text())
    shutil.move(copy / "test" / "predictions.csv", tmp_path / "other.csv")
    outcome = run_program("evaluate", "predictions=other.csv", cwd=tmp_path)
    assert "C06" in outcome.out + outcome.err
    assert (tmp_path / "other_metrics.json").is_file()
    assert not (tmp_path / "metrics.json").exists()


def test_evaluate_has_other_subsets_views_and_checkpoints(finished_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished_run, tmp_path / "run")
    shutil.copy(copy / "checkpoints/last.ckpt", tmp_path / "other.ckpt")
    for arguments, folder in (
        (("subset=train", "data.batch_size=7"), "train"),
        (("tta=dihedral",), "test_dihedral"),
        ((f"checkpoint={tmp_path}/other.ckpt",), "test_other"),
    ):
        outcome = run_program("evaluate", f"run={copy}", "gallery=0", *arguments, cwd=tmp_path)
        assert outcome.status == 0, outcome.err
        assert (copy / folder / "metrics.json").is_file()
        assert "C02" in outcome.out + outcome.err
    split, test = pd.read_csv(copy / "split.csv"), read_predictions(copy / "test" / "predictions.csv")
    train, views = (read_predictions(copy / name / "predictions.csv") for name in ("train", "test_dihedral"))
    assert set(train.image) == set(split["image"][split["subset"] == "train"])
    assert views.image.tolist() == test.image.tolist()
    assert np.abs(views.prob_positive - test.prob_positive).max() > 1e-6
    other = copy / "test_other" / "predictions.csv"
    assert other.read_bytes() == (finished_run / "test" / "predictions.csv").read_bytes()


def test_a_checkpoint_of_another_split_is_refused(finished_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished_run, tmp_path / "run")
    content = torch.load(copy / "checkpoints/last.ckpt", weights_only=True)
    content["BreakHisDataModule"]["split_checksum"] = "sha256:0"
    torch.save(content, tmp_path / "other.ckpt")
    outcome = run_program("evaluate", f"run={copy}", f"checkpoint={tmp_path}/other.ckpt", cwd=tmp_path)
    assert outcome.status == 1
    assert "other.ckpt" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("key", ["split_checksum", "pixels_checksum"])
def test_other_images_are_not_evaluated(finished_run: Path, tmp_path: Path, key: str) -> None:
    copy = shutil.copytree(finished_run, tmp_path / "run")
    facts = json.loads((copy / "run.json").read_text())
    facts["data"][key] = "sha256:0"
    (copy / "run.json").write_text(json.dumps(facts))
    outcome = run_program("evaluate", f"run={copy}", cwd=tmp_path)
    assert outcome.status == 1
    assert "data.root" in outcome.err
    assert "Traceback" not in outcome.err


def test_equal_seeds_give_equal_bits_and_others_do_not(tmp_path: Path, synthetic_cache: Path) -> None:
    tables = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        arguments = (*TINY, f"data.cache_dir={synthetic_cache}", "trainer.max_epochs=1", f"seed={seed}", "gallery=0")
        outcome = run_program("train", *arguments, f"hydra.run.dir={folder}", cwd=tmp_path)
        assert outcome.status == 0, outcome.err
        tables.append((tmp_path / folder / "test" / "predictions.csv").read_bytes())
    assert tables[0] == tables[1]
    assert tables[0] != tables[2]
