"""Trainings that cannot be, or that go wrong on their way, as their users see them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from breakhis_pl.data.datamodule import Batch
from breakhis_pl.models.classifier import Classifier
from tests.programs import TINY, Outcome, run_program

# of fold 2; every patient is a case of its own within its subset
BENIGN_TRAIN = ("SOB_B_A-14-22549AB", "SOB_B_F-14-14134", "SOB_B_F-14-23222AB", "SOB_B_F-14-25197")
MALIGNANT_TRAIN = ("SOB_M_DC-14-11031", "SOB_M_DC-14-11520", "SOB_M_DC-14-11951")
BENIGN_TEST = ("SOB_B_TA-14-15275", "SOB_B_TA-14-19854C")
MALIGNANT_TEST = ("SOB_M_DC-14-10926", "SOB_M_DC-14-15792")
TRAIN, TEST = BENIGN_TRAIN + MALIGNANT_TRAIN, BENIGN_TEST + MALIGNANT_TEST
ALL = TRAIN + TEST

WORKS = [
    ("batch of one at 33 pixels", ALL, ("data.image_size=33", "data.batch_size=1"), ""),
    ("last batch of one at 33 pixels", ALL, ("data.image_size=33", "data.batch_size=6"), ""),
    ("last batch of one left out", ALL, ("data.batch_size=6", "trainer.limit_train_batches=1"), ""),
    ("more batch than images", ALL, ("data.batch_size=1000",), ""),
    ("evaluation one by one", ALL, ("data.eval_batch_size=1",), ""),
    ("more evaluation batch than images", ALL, ("data.eval_batch_size=1000",), ""),
    ("nearly everything for validation", ALL, ("data.val_fraction=0.99",), ""),
    ("hardly anything for validation", ALL, ("data.val_fraction=0.001",), ""),
    ("two train images", (ALL[0], MALIGNANT_TRAIN[0], *TEST), (), ""),
    ("one test image", (*TRAIN, BENIGN_TEST[0]), (), "test has no malignant image (data.split=official data.fold=2)"),
    ("benign missing from test", TRAIN + MALIGNANT_TEST, (), "test has no benign image"),
    ("malignant missing from test", TRAIN + BENIGN_TEST, ("data.val_fraction=0.3",), "test has no malignant image"),
]
SLOW = (
    "last batch of one at 33 pixels",
    "more evaluation batch than images",
    "nearly everything for validation",
    "malignant missing from test",
)
"""Of those that work: little else than a neighbor of theirs."""
REFUSED = [
    ("nothing", (), (), "no BreaKHis images under images"),
    ("one image", ALL[:1], (), "train has no malignant image, test has no benign image, test has no malignant"),
    ("malignant missing from train", BENIGN_TRAIN + TEST, (), "train has no malignant image (data.split=official"),
    ("benign missing from train", MALIGNANT_TRAIN + TEST, (), "train has no benign image (data.split=official"),
    ("train empty", TEST, (), "train has no benign image, train has no malignant image"),
    ("test empty", TRAIN, (), "test has no benign image, test has no malignant image"),
    ("a case of each class, by ratio", (ALL[0], MALIGNANT_TRAIN[0]), ("data.split=ratio",), "data.split=ratio"),
    ("batch of one at 32 pixels", ALL, ("data.batch_size=1",), "data.batch_size=1 leaves a batch of a single image"),
    ("last batch of one at 32 pixels", ALL, ("data.batch_size=6",), "data.batch_size=6 leaves a batch of a single"),
    ("one case for validation", ALL[3:], ("data.val_fraction=0.5",), "train and validation need one each"),
    (
        "last batch of one after validation",
        ALL,
        ("data.val_fraction=0.01", "data.batch_size=4"),
        "data.batch_size=4 leaves a batch of a single image (5 train images)",
    ),
    ("no such magnification", ALL, ("data.magnification=40",), "no BreaKHis images at 40X under images, but 11 at"),
    ("one magnification of two", ALL, ("data.magnification=[40,200]",), "no image at 40X; expected some at each"),
    ("incomplete", ALL, ("data.require_complete=true",), "the images are not the published ones"),
]


def write_images(folder: Path, patients: Sequence[str], *, green: int | None = None) -> None:
    """Writes a noisy image at 200X of each patient."""
    folder.mkdir()
    for number, patient in enumerate(patients):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        if green is not None:
            pixels[:, :, 1] = green
        Image.fromarray(pixels).save(folder / f"{patient}-200-001.png")


def train(cwd: Path, *arguments: str) -> Outcome:
    return run_program(
        "train",
        *("data.root=images", "data.cache_dir=cache", "data.image_size=32", "data.require_complete=false"),
        *("model=resnet18", "model.weights=none", "trainer=cpu", "trainer.max_epochs=1", "gallery=0"),
        "hydra.run.dir=run",
        *arguments,
        cwd=cwd,
    )


@pytest.mark.parametrize(
    ("patients", "arguments", "said"),
    [pytest.param(*row[1:], id=row[0], marks=[pytest.mark.slow] * (row[0] in SLOW)) for row in WORKS],
)
def test_what_can_be_trained_is_trained(
    tmp_path: Path, patients: Sequence[str], arguments: Sequence[str], said: str
) -> None:
    write_images(tmp_path / "images", patients)
    outcome = train(tmp_path, *arguments)
    assert (outcome.status, outcome.err) == (0, "")
    assert said in outcome.out
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"
    metrics = json.loads((tmp_path / "run" / "test" / "metrics.json").read_text())
    assert metrics["n_images"] == len(set(patients) & set(TEST))
    assert (metrics["auroc"]["value"] is None) == ("test has no" in said)
    assert ("test has no" in outcome.out) == ("test has no" in said)
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize(
    ("patients", "arguments", "text"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_what_cannot_be_trained_is_refused_before_anything_is_decoded(
    tmp_path: Path, patients: Sequence[str], arguments: Sequence[str], text: str
) -> None:
    write_images(tmp_path / "images", patients)
    outcome = train(tmp_path, *arguments)
    assert outcome.status == 1
    assert text in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "run" / "run.json").exists()


def test_images_without_contrast_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "images", ALL, green=0)
    outcome = train(tmp_path)
    assert outcome.status == 1
    assert outcome.err.startswith("all pixels of all train images have green=0 (of 1); expected images that differ")
    assert not (tmp_path / "run" / "run.json").exists()


def spoilt(value: float, *, epoch: int, step: int) -> Any:
    """A `training_step` whose loss is spoilt in one step, or (0) whose gradients are."""
    plain = Classifier.training_step

    def training_step(classifier: Classifier, batch: Batch, batch_idx: int) -> Tensor:
        loss = plain(classifier, batch, batch_idx)
        if (classifier.current_epoch, batch_idx) != (epoch, step):
            return loss
        return loss + (loss - loss).sqrt() if value == 0 else loss * value

    return training_step


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (float("nan"), "the loss is nan"),
        (0.0, "the gradient is not finite for network.conv1.weight, network.bn1.weight"),
    ],
    ids=["loss", "gradient"],
)
def test_a_training_that_is_no_longer_finite_stops_and_its_last_checkpoint_can_be_evaluated(
    tmp_path: Path, drawn_cache: Path, monkeypatch: pytest.MonkeyPatch, value: float, text: str
) -> None:
    monkeypatch.setattr(Classifier, "training_step", spoilt(value, epoch=1, step=1))
    outcome = run_program(
        "train",
        *(*TINY, f"data.cache_dir={drawn_cache}", "trainer=cpu", "trainer.max_epochs=3", "hydra.run.dir=run"),
        cwd=tmp_path,
    )
    assert outcome.status == 1
    assert outcome.err.startswith(text)
    assert "in epoch 2, step 2 of 2, at learning rate 0.00045; the checkpoint of an epoch before is kept" in outcome.err
    assert "Traceback" not in outcome.err
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (run["status"], run["error"]) == ("failed", outcome.err.strip())
    content = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["epoch"] == 0
    assert all(value.isfinite().all() for value in content["state_dict"].values())
    outcome = run_program("evaluate", "run=run", "gallery=0", "trainer.accelerator=cpu", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    assert (tmp_path / "run" / "test" / "metrics.json").is_file()


def test_a_learning_rate_that_is_far_too_high_is_named(tmp_path: Path) -> None:
    write_images(tmp_path / "images", ALL)
    outcome = train(tmp_path, "optimizer=sgd", "optimizer.lr=1e30", "data.batch_size=3", "data.image_size=33")
    assert outcome.status == 1
    assert (
        "in epoch 1, step 2 of 3, at learning rate 1e+30; no checkpoint is there yet; lower optimizer.lr" in outcome.err
    )
    assert not (tmp_path / "run" / "checkpoints").exists()


def of_all_memory(*_: object, **__: object) -> Tensor:
    return torch.empty(2**48)


def test_a_training_that_lacks_memory_says_which_keys_to_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "images", ALL)
    monkeypatch.setattr(Classifier, "training_step", of_all_memory)
    outcome = train(tmp_path, "data.batch_size=3", "data.image_size=33")
    assert outcome.status == 1
    assert outcome.err.startswith(
        f"out of memory: {2**50} bytes were asked for; lower one of these: data.batch_size=3, "
    )
    assert "data.eval_batch_size=null, data.image_size=33; or leave more memory free" in outcome.err
    assert "Traceback" not in outcome.err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["error"] == outcome.err.strip()


def test_an_evaluation_that_lacks_memory_says_which_keys_to_lower(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Classifier, "validation_step", of_all_memory)
    before = (finished_run / "test" / "predictions.csv").read_bytes()
    outcome = run_program("evaluate", f"run={finished_run}", "data.batch_size=7", "gallery=0", cwd=tmp_path)
    assert outcome.status == 1
    assert outcome.err.startswith(
        f"out of memory: {2**50} bytes were asked for; lower one of these: data.batch_size=7;"
    )
    assert (finished_run / "test" / "predictions.csv").read_bytes() == before
