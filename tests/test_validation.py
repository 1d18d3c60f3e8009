import csv
import json
import shutil
from pathlib import Path

import pytest

from breakhis_pl.config import ProgramName
from breakhis_pl.models.classifier import Classifier
from tests.programs import TINY, run_program


@pytest.fixture(scope="module")
def run_with_validation(tmp_path_factory: pytest.TempPathFactory, drawn_cache: Path) -> Path:
    """A run that took whole cases out of train for validation."""
    folder = tmp_path_factory.mktemp("validation")
    arguments = (*TINY, f"data.cache_dir={drawn_cache}", "data.val_fraction=0.3", "trainer.max_epochs=1", "gallery=1")
    outcome = run_program("train", *arguments, "trainer=cpu", "hydra.run.dir=run", cwd=folder)
    assert outcome.status == 0, outcome.err
    return folder / "run"


def test_validation_takes_whole_cases_of_both_classes_out_of_train(run_with_validation: Path) -> None:
    with (run_with_validation / "split.csv").open() as table:
        rows = list(csv.DictReader(table))
    cases = {subset: {row["case"] for row in rows if row["subset"] == subset} for subset in ("train", "val", "test")}
    assert not cases["train"] & cases["val"]
    assert len(cases["val"]) > 4
    classes = {row["patient"].split("_")[1] for row in rows if row["subset"] == "val"}
    assert classes == {"B", "M"}


def test_the_history_shows_validation_between_train_and_test(run_with_validation: Path) -> None:
    header = (run_with_validation / "history.csv").read_text().splitlines()[0]
    assert header.startswith("epoch,train_loss,train_accuracy,val_loss,val_accuracy,test_loss,test_accuracy,")
    assert (run_with_validation / "tensorboard" / "val").is_dir()


def test_temperature_and_threshold_are_fitted_on_validation_rows_and_used_on_test(run_with_validation: Path) -> None:
    kept = json.loads((run_with_validation / "calibration.json").read_text())
    val = json.loads((run_with_validation / "val" / "metrics.json").read_text())
    test = json.loads((run_with_validation / "test" / "metrics.json").read_text())
    assert kept["n_images"] == val["n_images"]
    assert kept["sensitivity"] == 0.95
    assert test["calibrated"]["temperature"] == pytest.approx(kept["temperature"])
    assert "calibrated" not in val


def test_evaluate_fits_again_for_another_sensitivity(run_with_validation: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_with_validation, copy)
    arguments = (f"run={copy}", "calibrate=true", "sensitivity=0.5", "gallery=0", "trainer.accelerator=cpu")
    outcome = run_program("evaluate", *arguments, cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    kept = json.loads((copy / "calibration.json").read_text())
    before = json.loads((run_with_validation / "calibration.json").read_text())
    assert kept["sensitivity"] == 0.5
    assert kept["temperature"] == pytest.approx(before["temperature"])
    assert kept["threshold"] >= before["threshold"]
    metrics = json.loads((copy / "test" / "metrics.json").read_text())
    assert metrics["calibrated"]["threshold"] == pytest.approx(kept["threshold"])


def test_fitting_again_renews_what_is_said_of_the_test_images(run_with_validation: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run_with_validation, tmp_path / "run")
    table = (copy / "test" / "predictions.csv").read_bytes()
    arguments = (f"run={copy}", "subset=val", "calibrate=true", "sensitivity=0.5", "gallery=0")
    outcome = run_program("evaluate", *arguments, "trainer.accelerator=cpu", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    threshold = json.loads((copy / "calibration.json").read_text())["threshold"]
    assert threshold != json.loads((run_with_validation / "calibration.json").read_text())["threshold"]
    metrics = json.loads((copy / "test" / "metrics.json").read_text())
    assert metrics["calibrated"]["threshold"] == pytest.approx(threshold)
    assert f"probability of {threshold:.3f} to reach a sensitivity of 0.5" in (copy / "report.html").read_text()
    assert (copy / "test" / "predictions.csv").read_bytes() == table


@pytest.mark.parametrize("program", ["evaluate", "train"])
def test_an_interruption_while_images_are_evaluated_is_one(
    program: ProgramName, run_with_validation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of evaluate.py, and of the epoch that counts after a training."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Classifier, "validation_step", interrupt)
    if program == "evaluate":
        arguments: tuple[str, ...] = (f"run={run_with_validation}", "trainer.accelerator=cpu")
    else:
        copy = shutil.copytree(run_with_validation, tmp_path / "run")
        content = json.loads((copy / "run.json").read_text())
        (copy / "run.json").write_text(json.dumps(content | {"status": "failed"}))
        arguments = (f"resume={copy}",)
    outcome = run_program(program, *arguments, cwd=tmp_path)
    assert outcome.status == 130
    assert "interrupted" in outcome.err
    if program == "train":
        assert json.loads((copy / "run.json").read_text())["error"] == "interrupted"


def test_rows_of_another_checkpoint_are_named_after_their_subset_and_not_calibrated(
    run_with_validation: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_with_validation, copy)
    shutil.copyfile(copy / "checkpoints" / "last.ckpt", tmp_path / "mine.ckpt")
    for subset in ("val", "test"):
        arguments = (f"run={copy}", f"checkpoint={tmp_path / 'mine.ckpt'}", f"subset={subset}", "gallery=0")
        outcome = run_program("evaluate", *arguments, "trainer.accelerator=cpu", cwd=tmp_path)
        assert outcome.status == 0, outcome.err
        metrics = json.loads((copy / f"{subset}_mine" / "metrics.json").read_text())
        assert metrics["subset"] == subset
        assert "calibrated" not in metrics


@pytest.mark.parametrize("argument", ["calibrate=true", "subset=val"])
def test_without_validation_images_the_error_says_why(finished_run: Path, tmp_path: Path, argument: str) -> None:
    outcome = run_program("evaluate", f"run={finished_run}", argument, cwd=tmp_path)
    assert outcome.status == 1
    assert "has no validation images, and nothing is fitted on train or test images" in outcome.err
    assert "data.val_fraction=0.2" in outcome.err


def test_all_of_train_cannot_be_taken_for_validation(tmp_path: Path) -> None:
    outcome = run_program("train", *TINY, "data.val_fraction=1", cwd=tmp_path)
    assert outcome.status == 1
    assert "data.val_fraction=1.0 is not possible; expected a number at least 0 and below 1" in outcome.err
