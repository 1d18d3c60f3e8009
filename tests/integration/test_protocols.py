"""Options of data, training and evaluation, each in a small run."""

import json
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.programs import TINY, run_program


def run(tmp_path: Path, cache: Path, *arguments: str) -> Path:
    fixed = (*TINY, f"data.cache_dir={cache}", "trainer.max_epochs=2", "gallery=0", "hydra.run.dir=run")
    outcome = run_program("train", *fixed, *arguments, cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    return tmp_path / "run"


def metrics(folder: Path) -> dict[str, object]:
    return json.loads((folder / "metrics.json").read_text())  # type: ignore[no-any-return]


OPTIONS = {
    "ratio split by patient": ("data.split=ratio", "data.group=patient", "data.test_fraction=0.2"),
    "several magnifications": ("data.magnification=[100,200]", "data.test_magnification=40"),
    "sampler": ("data.balance=sampler",),
    "downsample": ("data.balance=downsample",),
    "class weights": ("data.balance=loss", "training.label_smoothing=0.1"),
    "stain": ("data.stain=macenko",),
    "schedule and optimizer": ("scheduler=warmup_cosine", "optimizer=adamw"),
    "any optimizer of torch": ("optimizer._target_=torch.optim.RAdam", "~optimizer.betas"),
    "head warm-up": ("training.frozen_epochs=1",),
    "layer decay": ("training.layer_decay=0.7",),
    "another network": ("model=torchvision", "model.backbone=mobilenet_v3_small"),
    "pixels on the host": ("data.pixels=host", "trainer.memory_format=channels_last"),
    "deterministic": ("trainer.deterministic=true",),
    "loggers": ("logger=[tensorboard,csv]",),
    "frozen": ("model.freeze=true", "model.weights={weights}"),
}


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A torchvision ResNet-18 state dict with random weights."""
    import torch
    from torchvision.models import resnet18

    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(resnet18().state_dict(), path)
    return path


@pytest.mark.parametrize("arguments", OPTIONS.values(), ids=list(OPTIONS))
def test_an_option_trains_and_is_evaluated(
    tmp_path: Path, synthetic_cache: Path, weights: Path, arguments: tuple[str, ...]
) -> None:
    folder = run(tmp_path, synthetic_cache, *(argument.format(weights=weights) for argument in arguments))
    assert metrics(folder / "test")["n_images"] == len(pd.read_csv(folder / "test" / "predictions.csv"))
    assert len(pd.read_csv(folder / "history.csv")) == 2


def test_a_validation_metric_selects_the_epoch_and_calibrates(tmp_path: Path, synthetic_cache: Path) -> None:
    folder = run(
        tmp_path,
        synthetic_cache,
        "data.val_fraction=0.3",
        "trainer.monitor=val_auroc",
        "trainer.patience=1",
        "trainer.max_epochs=4",
    )
    history = pd.read_csv(folder / "history.csv")
    selection = json.loads((folder / "run.json").read_text())["selection"]
    assert selection["best_epoch"] == history["val_auroc"].idxmax() + 1
    assert history["test_accuracy"][selection["best_epoch"] - 1] == pytest.approx(
        metrics(folder / "test")["accuracy"]["value"],
        abs=1e-6,  # type: ignore[index]
    )
    assert (folder / "calibration.json").is_file()
    outcome = run_program("evaluate", f"run={folder}", "calibrate=true", "sensitivity=0.8", "gallery=0", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    assert json.loads((folder / "calibration.json").read_text())["sensitivity"] == 0.8


def test_calibration_needs_validation_images(finished_run: Path) -> None:
    outcome = run_program("evaluate", f"run={finished_run}", "calibrate=true", cwd=finished_run.parent)
    assert outcome.status == 1
    assert "data.val_fraction" in outcome.err


def test_the_linear_probe_is_fitted_once(tmp_path: Path, synthetic_cache: Path, weights: Path) -> None:
    arguments = ("experiment=frozen", "data=synthetic", f"model.weights={weights}", "trainer.max_epochs=1")
    folder = run(tmp_path, synthetic_cache, *arguments)
    history = pd.read_csv(folder / "history.csv")
    assert len(history) == 1
    assert history["train_accuracy"][0] > 0.9
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    events = EventAccumulator(str(folder / "tensorboard" / "test")).Reload()
    assert [event.step for event in events.Images("confusion_matrix")] == [1]


def test_tumor_types_are_summed_to_benign_and_malignant(tmp_path: Path, synthetic_cache: Path) -> None:
    folder = run(tmp_path, synthetic_cache, "task=subtype")
    predictions = pd.read_csv(folder / "test" / "predictions.csv")
    subtypes = pd.read_csv(folder / "test" / "subtypes.csv")
    benign = subtypes[[f"prob_{code}" for code in ("A", "F", "PT", "TA")]].sum(axis=1)
    assert predictions["prob_benign"].to_numpy() == pytest.approx(benign.to_numpy(), abs=1e-6)


@pytest.mark.parametrize("option", ["batch", "fast_dev_run", "overfit"])
def test_debug_options_run(tmp_path: Path, synthetic_cache: Path, option: str) -> None:
    arguments = (*TINY, f"debug={option}", f"data.cache_dir={synthetic_cache}", "gallery=0", "data.batch_size=4")
    outcome = run_program("train", *arguments, "hydra.run.dir=run", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    if option == "overfit":
        losses = pd.read_csv(tmp_path / "run" / "history.csv")["train_loss"]
        assert losses.iloc[-1] < 0.25 * losses.iloc[0]
    else:
        assert not (tmp_path / "run" / "run.json").exists()
    if option == "batch":
        with Image.open(tmp_path / "run" / "batch.png") as picture:
            assert len(picture.convert("RGB").getcolors(10_000) or ()) > 100  # four images beside each other


def test_ensembles_average_runs(finished_run: Path, tmp_path: Path, synthetic_cache: Path) -> None:
    other = run(tmp_path, synthetic_cache, "seed=1")
    outcome = run_program("evaluate", f"runs=[{finished_run},{other}]", "ensemble=true", "out=both", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    parts = [pd.read_csv(folder / "test" / "predictions.csv") for folder in (finished_run, other)]
    mean = sum(part["prob_malignant"] for part in parts) / 2
    assert pd.read_csv(tmp_path / "both" / "predictions.csv")["prob_malignant"].to_numpy() == pytest.approx(
        mean.to_numpy(), abs=1e-6
    )
