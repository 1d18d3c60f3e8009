import csv
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from breakhis_pl.errors import ConfigurationError
from breakhis_pl.evaluation.__main__ import main as recompute
from breakhis_pl.evaluation.predictions import read_predictions
from breakhis_pl.training.device import resolve_device
from tests.conftest import REPOSITORY
from tests.programs import TINY, run_program


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open() as table:
        return list(csv.DictReader(table))


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_a_run_folder_is_complete(finished_run: Path) -> None:
    files = {str(path.relative_to(finished_run)) for path in finished_run.rglob("*") if path.is_file()}
    expected = {
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
        "test/gallery/01.jpg",
        "report.html",
        ".hydra/config.yaml",
    }
    assert expected <= files
    assert not {name for name in files if "/." in name and not name.startswith(".hydra")}


def test_run_json_says_what_the_run_was(finished_run: Path) -> None:
    run = json.loads((finished_run / "run.json").read_text())
    assert (run["status"], run["error"]) == ("finished", None)
    assert run["data"]["synthetic"] is True
    assert run["data"]["n_images"]["train"] == {"benign": 15, "malignant": 39}
    assert run["config"]["seed"] == 0
    assert run["model"]["n_parameters"] == sum(
        parameter.numel() for parameter in torch.load(finished_run / "checkpoints/last.ckpt")["state_dict"].values()
    ) - count_of_statistics(finished_run)
    assert run["seconds"]["total"] >= run["seconds"]["training"] > 0
    assert run["versions"]["torch"] == torch.__version__


def count_of_statistics(folder: Path) -> int:
    """Numbers in a checkpoint that batch norm keeps and nothing trains."""
    state = torch.load(folder / "checkpoints/last.ckpt")["state_dict"]
    return sum(value.numel() for name, value in state.items() if "running_" in name or "num_batches" in name)


def test_the_history_has_a_row_per_epoch(finished_run: Path) -> None:
    rows = history(finished_run)
    assert list(rows[0]) == [
        "epoch",
        "train_loss",
        "train_accuracy",
        "test_loss",
        "test_accuracy",
        "learning_rate",
        "images_per_second",
    ]
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([5e-4, 4.5e-4])


def test_tensorboard_shows_train_and_test_of_a_quantity_in_one_chart(finished_run: Path) -> None:
    rows = history(finished_run)
    for subset in ("train", "test"):
        for quantity in ("loss", "accuracy"):
            expected = [(int(row["epoch"]), float(row[f"{subset}_{quantity}"])) for row in rows]
            found = points(finished_run / "tensorboard" / subset, quantity)
            assert [step for step, _ in found] == [step for step, _ in expected]
            assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-5)
    images = EventAccumulator(str(finished_run / "tensorboard" / "test")).Reload().Tags()["images"]
    assert images == ["confusion_matrix"]


def test_the_last_row_of_the_history_is_the_evaluation(finished_run: Path) -> None:
    predictions = read_predictions(finished_run / "test" / "predictions.csv")
    metrics = json.loads((finished_run / "test" / "metrics.json").read_text())
    last = history(finished_run)[-1]
    loss = -np.log(predictions.probabilities[np.arange(len(predictions)), predictions.target]).mean()
    assert float(last["test_accuracy"]) == pytest.approx(metrics["accuracy"]["value"], abs=1e-7)
    assert float(last["test_loss"]) == pytest.approx(loss, rel=1e-5)


def test_predictions_hold_every_test_image_once(finished_run: Path) -> None:
    with (finished_run / "split.csv").open() as table:
        expected = sorted(row["image"] for row in csv.DictReader(table) if row["subset"] == "test")
    predictions = read_predictions(finished_run / "test" / "predictions.csv")
    assert sorted(predictions.image) == expected
    assert np.allclose(predictions.probabilities.sum(axis=1), 1, atol=1e-8)
    assert np.array_equal(predictions.predicted, predictions.probabilities.argmax(axis=1))


def test_numbers_recomputed_without_torch_are_the_same(finished_run: Path, tmp_path: Path) -> None:
    assert recompute([str(finished_run / "test" / "predictions.csv"), "--out", str(tmp_path)]) == 0
    again = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert again == json.loads((finished_run / "test" / "metrics.json").read_text())


def test_evaluate_gives_the_same_predictions_from_the_checkpoint(finished_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    shutil.rmtree(copy / "test")
    outcome = run_program("evaluate", f"run={copy}", "trainer.accelerator=cpu", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    assert "weighted avg" in outcome.out
    for name in ("predictions.csv", "metrics.json"):
        assert (copy / "test" / name).read_bytes() == (finished_run / "test" / name).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_evaluate_takes_the_train_images_too(finished_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    outcome = run_program("evaluate", f"run={copy}", "subset=train", "data.batch_size=7", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    assert json.loads((copy / "train" / "metrics.json").read_text())["n_images"] == 54


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path: Path, drawn_cache: Path) -> None:
    tables = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        arguments = (*TINY, f"data.cache_dir={drawn_cache}", "trainer.max_epochs=1", f"seed={seed}", "trainer=cpu")
        outcome = run_program("train", *arguments, "gallery=0", f"hydra.run.dir={folder}", cwd=tmp_path)
        assert outcome.status == 0, outcome.err
        tables.append((tmp_path / folder / "test" / "predictions.csv").read_bytes())
    assert tables[0] == tables[1]
    assert tables[0] != tables[2]


def test_a_line_is_printed_per_epoch_and_no_bar_outside_a_terminal(tmp_path: Path, drawn_cache: Path) -> None:
    arguments = (*TINY, f"data.cache_dir={drawn_cache}", "trainer.max_epochs=1", "trainer.limit_train_batches=1")
    outcome = run_program("train", *arguments, "hydra.run.dir=run", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    line = next(line for line in outcome.out.splitlines() if line.startswith("epoch 1/1"))
    assert re.fullmatch(r"epoch 1/1  train loss \S+ accuracy \S+  test loss \S+ accuracy \S+  \S+ images/s", line)
    assert outcome.err == ""


def test_a_folder_that_holds_a_run_is_not_written_to(finished_run: Path, tmp_path: Path, drawn_cache: Path) -> None:
    before = (finished_run / "run.json").read_bytes()
    arguments = (*TINY, f"data.cache_dir={drawn_cache}", f"hydra.run.dir={finished_run}")
    outcome = run_program("train", *arguments, cwd=tmp_path)
    assert outcome.status == 1
    assert "holds a run already" in outcome.err
    assert (finished_run / "run.json").read_bytes() == before


def test_a_training_that_diverges_stops_and_says_so(tmp_path: Path, drawn_cache: Path) -> None:
    arguments = (*TINY, f"data.cache_dir={drawn_cache}", "optimizer=sgd", "optimizer.lr=1e30", "trainer.max_epochs=3")
    outcome = run_program("train", *arguments, "trainer=cpu", "hydra.run.dir=run", cwd=tmp_path)
    assert outcome.status == 1
    assert "the loss is nan in epoch 1, step 2 of 2, at learning rate 1e+30" in outcome.err
    assert "Traceback" not in outcome.err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
    assert not (tmp_path / "run" / "test").exists()


def test_images_with_other_pixels_are_not_evaluated(finished_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    facts = json.loads((copy / "run.json").read_text())
    facts["data"]["pixels_checksum"] = "sha256:0"
    (copy / "run.json").write_text(json.dumps(facts))
    outcome = run_program("evaluate", f"run={copy}", cwd=tmp_path)
    assert outcome.status == 1
    assert "have the names of those of run" in outcome.err


def test_a_run_that_does_not_say_its_precision_is_evaluated_in_the_usual_one(
    finished_run: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(finished_run, tmp_path / "run")
    facts = json.loads((copy / "run.json").read_text())
    del facts["precision"]
    (copy / "run.json").write_text(json.dumps(facts))
    (copy / "test" / "predictions.csv").unlink()
    outcome = run_program("evaluate", f"run={copy}", "gallery=0", "trainer.accelerator=cpu", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    table = "test/predictions.csv"
    assert (copy / table).read_bytes() == (finished_run / table).read_bytes()


def test_a_checkpoint_of_another_split_or_network_is_refused_and_one_of_the_same_has_its_own_folder(
    finished_run: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    before = (copy / "test" / "predictions.csv").read_bytes()
    content = torch.load(copy / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save(content, tmp_path / "other.ckpt")
    outcome = run_program("evaluate", f"run={copy}", f"checkpoint={tmp_path / 'other.ckpt'}", "gallery=0", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    assert (copy / "test_other" / "predictions.csv").is_file()
    assert (copy / "test" / "predictions.csv").read_bytes() == before
    content["BreakHisDataModule"]["split_checksum"] = "sha256:0"
    torch.save(content, tmp_path / "other.ckpt")
    outcome = run_program("evaluate", f"run={copy}", f"checkpoint={tmp_path / 'other.ckpt'}", cwd=tmp_path)
    assert (outcome.status, "was trained on another split" in outcome.err) == (1, True)
    facts = json.loads((copy / "run.json").read_text())
    facts["config"]["model"]["backbone"] = "resnext50"
    (copy / "run.json").write_text(json.dumps(facts))
    outcome = run_program("evaluate", f"run={copy}", cwd=tmp_path)
    assert (outcome.status, "holds resnet18, the run" in outcome.err) == (1, True)


def test_ctrl_c_ends_a_run_with_status_130_and_says_so(tmp_path: Path, drawn_cache: Path) -> None:
    arguments = (*TINY, f"data.cache_dir={drawn_cache}", "trainer.max_epochs=500", "hydra.run.dir=run", "trainer=cpu")
    started = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "train.py"), *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in started.stdout:
        if line.startswith("epoch 2/500"):
            break
    started.send_signal(signal.SIGINT)
    _, errors = started.communicate(timeout=120)
    assert started.returncode == 130, errors
    assert errors.strip().endswith(f"interrupted; go on with: python train.py resume={tmp_path / 'run'}")
    assert "Traceback" not in errors
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (run["status"], run["error"]) == ("failed", "interrupted")
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_precision_follows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto", "auto") == ("cpu", "32-true")
    with pytest.raises(ConfigurationError, match=r"accelerator=gpu: torch .* sees no GPU"):
        resolve_device("gpu", "auto")
    with pytest.raises(ConfigurationError, match=r"trainer\.precision=16-mixed needs a CUDA GPU"):
        resolve_device("cpu", "16-mixed")
    with pytest.raises(ConfigurationError, match="accelerator=mps"):
        resolve_device("mps", "auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for has_bf16, expected in ((True, "bf16-mixed"), (False, "16-mixed")):
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda *, including_emulation, has=has_bf16: has and not including_emulation,
        )
        assert resolve_device("auto", "auto") == ("cuda", expected)
    assert resolve_device("auto", "32-true") == ("cuda", "32-true")
