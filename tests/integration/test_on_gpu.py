"""What only a GPU shows; skipped without one. The images are synthetic, of 64 pixels."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.models import resnet18

from breakhis_pl.data.datamodule import Batch
from breakhis_pl.metrics.predictions import read_predictions
from breakhis_pl.models.classifier import Classifier
from tests.conftest import REPOSITORY
from tests.programs import Outcome, run_program

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once; trainer.deterministic=true needs it

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SETTINGS = ("data=synthetic", "data.images_per_patient=2", "data.width=96", "data.image_size=64", "model.weights=none")
EQUAL = ("trainer.deterministic=true",)


def arguments(cache: Path, *, run: str) -> tuple[str, ...]:
    """Two epochs on the GPU."""
    fixed = (f"data.cache_dir={cache}", "trainer=gpu", "trainer.max_epochs=2", "gallery=0", f"hydra.run.dir={run}")
    return (*SETTINGS, *fixed, "trainer.progress_bar=false")


def train(cwd: Path, cache: Path, *more: str, run: str = "run") -> Outcome:
    return run_program("train", *arguments(cache, run=run), *more, cwd=cwd)


def trained(cwd: Path, cache: Path, *more: str, run: str = "run") -> Path:
    outcome = train(cwd, cache, *more, run=run)
    assert outcome.status == 0, outcome.err
    return cwd / run


def contents(run: Path) -> dict[str, object]:
    """Return weights, predictions and metrics, bit for bit."""
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")["state_dict"]
    files = {name: (run / "test" / name).read_bytes() for name in ("predictions.csv", "metrics.json")}
    return {**files, "weights": {name: value.numpy().tobytes() for name, value in state.items()}}


def losses(run: Path) -> list[float]:
    with (run / "history.csv").open() as table:
        return [float(row[name]) for row in csv.DictReader(table) for name in ("train_loss", "test_loss")]


def test_a_run_takes_the_gpu_in_mixed_precision_and_says_so(tmp_path: Path, synthetic_cache: Path) -> None:
    cache = f"data.cache_dir={synthetic_cache}"
    outcome = run_program("train", *SETTINGS, cache, "trainer.max_epochs=1", "hydra.run.dir=run", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["status"] == "finished"
    assert torch.cuda.get_device_name() in run["device"]
    is_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    assert run["precision"] == ("bf16-mixed" if is_bf16 else "16-mixed")
    assert (tmp_path / "run" / "report.html").is_file()  # with pictures by Grad-CAM


@pytest.mark.parametrize("precision", ["auto", "32-true"])
def test_equal_runs_where_only_deterministic_algorithms_are_allowed(
    tmp_path: Path, synthetic_cache: Path, precision: str
) -> None:
    more = (*EQUAL, f"trainer.precision={precision}", "augmentation=strong", "training.mixup=0.2")
    first, second, other = (
        contents(trained(tmp_path, synthetic_cache, *more, f"seed={seed}", run=f"run{number}"))
        for number, seed in enumerate((0, 0, 1))
    )
    assert first == second
    assert first["weights"] != other["weights"]


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("training.ema_decay=0.9", "trainer.precision=16-mixed"),
        ("trainer.cuda_graphs=true", "training.mixup=0.2", "model.dropout=0.5", "augmentation=strong"),
    ],
    ids=["", "ema, fp16", "graph"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, synthetic_cache: Path, more: tuple[str, ...]
) -> None:
    whole = trained(tmp_path, synthetic_cache, *EQUAL, *more, "trainer.max_epochs=3", run="whole")
    trained(tmp_path, synthetic_cache, *EQUAL, *more, "trainer.max_epochs=1")
    outcome = run_program("train", "resume=run", "trainer.max_epochs=3", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    assert contents(tmp_path / "run") == contents(whole)


def test_pixels_on_the_host_give_the_same_run_as_on_the_gpu(tmp_path: Path, synthetic_cache: Path) -> None:
    of_device = trained(tmp_path, synthetic_cache, *EQUAL, "data.pixels=device", run="device")
    of_host = trained(tmp_path, synthetic_cache, *EQUAL, "data.pixels=host", run="host")
    assert contents(of_device) == contents(of_host)


def test_the_first_epoch_in_float32_is_that_of_a_cpu(tmp_path: Path, synthetic_cache: Path) -> None:
    settings = ("trainer.precision=32-true", "trainer.max_epochs=1", "optimizer=sgd", "optimizer.lr=1e-3")
    still = ("augmentation=none", "model.dropout=0")
    on_gpu = trained(tmp_path, synthetic_cache, *settings, *still, run="gpu")
    on_cpu = trained(tmp_path, synthetic_cache, *settings, *still, "trainer.accelerator=cpu", run="cpu")
    assert losses(on_gpu) == pytest.approx(losses(on_cpu), rel=2e-3)


def test_a_checkpoint_gives_the_same_probabilities_on_gpu_and_cpu(tmp_path: Path, synthetic_cache: Path) -> None:
    run = trained(tmp_path, synthetic_cache)
    found = {}
    for device, precision in (("cpu", "32-true"), ("gpu", "32-true"), ("gpu", "auto")):
        on = (f"trainer.accelerator={device}", f"trainer.precision={precision}")
        outcome = run_program("evaluate", f"run={run}", *on, "gallery=0", cwd=tmp_path)
        assert outcome.status == 0, outcome.err
        found[device, precision] = read_predictions(run / "test" / "predictions.csv").probabilities
    assert np.abs(found["gpu", "32-true"] - found["cpu", "32-true"]).max() < 1e-3
    assert np.abs(found["gpu", "auto"] - found["cpu", "32-true"]).max() < 0.05


@pytest.mark.parametrize(
    "more", [(), ("training.frozen_epochs=1",), ("training.mixup=0.2", "training.ema_decay=0.9"), ("optimizer=sgd",)]
)
def test_cuda_graphs_change_no_result_beyond_rounding(
    tmp_path: Path, synthetic_cache: Path, more: tuple[str, ...]
) -> None:
    settings = (*more, "data.batch_size=20", "optimizer.lr=1e-4", "trainer.precision=32-true", "model.dropout=0")
    plain = trained(tmp_path, synthetic_cache, *settings, "trainer.cuda_graphs=false", run="plain")
    graphs = trained(tmp_path, synthetic_cache, *settings, "trainer.cuda_graphs=true", run="graphs")
    assert losses(graphs) == pytest.approx(losses(plain), rel=2e-2)
    assert json.loads((graphs / "run.json").read_text())["no_cuda_graph"] is None


def test_a_captured_step_has_the_precision_of_the_run(
    tmp_path: Path, synthetic_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, original = [], Classifier.compute_loss

    def compute_loss(classifier: Classifier, batch: Batch) -> Tensor:
        found.append(torch.is_autocast_enabled("cuda"))
        return original(classifier, batch)

    monkeypatch.setattr(Classifier, "compute_loss", compute_loss)
    trained(tmp_path, synthetic_cache, "trainer.cuda_graphs=true", "trainer.precision=bf16-mixed")
    assert len(found) > 4  # first step, warm-up, capture, last steps of the epochs
    assert all(found)


@pytest.mark.slow
def test_a_compiled_network_changes_no_result_beyond_rounding(tmp_path: Path, synthetic_cache: Path) -> None:
    settings = ("optimizer.lr=1e-4", "trainer.precision=32-true", "model.dropout=0", "trainer.cuda_graphs=false")
    plain = trained(tmp_path, synthetic_cache, *settings, run="plain")
    compiled = trained(tmp_path, synthetic_cache, *settings, "trainer.compile=true", run="compiled")
    assert losses(compiled) == pytest.approx(losses(plain), rel=2e-2)


def test_a_gpu_that_lacks_memory_says_which_keys_to_lower(tmp_path: Path, synthetic_cache: Path) -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, 1.5 * 2**30 / total))
    try:
        large = ("data.image_size=224", "data.batch_size=100", "model=wide_resnet50")
        outcome = train(tmp_path, synthetic_cache, *large)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert outcome.status == 1
    assert "data.batch_size" in outcome.err
    assert "Traceback" not in outcome.err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


@pytest.mark.parametrize("spoil", [lambda loss: loss * float("nan"), lambda loss: loss + (loss - loss).sqrt()])
def test_a_loss_or_gradient_that_is_not_finite_ends_the_run_before_it_is_saved(
    tmp_path: Path, synthetic_cache: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Tensor], Tensor]
) -> None:
    original = Classifier.training_step

    def training_step(classifier: Classifier, batch: Batch, batch_idx: int) -> Tensor:
        loss = original(classifier, batch, batch_idx)
        return spoil(loss) if (classifier.current_epoch, batch_idx) == (1, 1) else loss

    monkeypatch.setattr(Classifier, "training_step", training_step)
    outcome = train(tmp_path, synthetic_cache, "trainer.max_epochs=3", "trainer.cuda_graphs=false")
    assert outcome.status == 1
    assert "epoch 2" in outcome.err
    assert "Traceback" not in outcome.err
    content = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["epoch"] == 0


def test_a_process_for_the_only_gpu_trains_as_no_process_would(tmp_path: Path, synthetic_cache: Path) -> None:
    alone = trained(tmp_path, synthetic_cache, *EQUAL, run="alone")
    # in a process of its own, because Lightning leaves the process group open
    command = (sys.executable, str(REPOSITORY / "train.py"), *arguments(synthetic_cache, run="ddp"))
    ddp = ("trainer.strategy=ddp", "trainer.devices=1")
    done = subprocess.run([*command, *EQUAL, *ddp], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "ddp") == contents(alone)


def test_frozen_features_are_computed_on_the_gpu(tmp_path: Path, synthetic_cache: Path) -> None:
    torch.save(resnet18().state_dict(), tmp_path / "weights.pth")
    run = trained(tmp_path, synthetic_cache, "experiment=frozen", "model.weights=weights.pth", "trainer.max_epochs=1")
    assert json.loads((run / "test" / "metrics.json").read_text())["n_images"] > 0


def test_new_images_are_predicted_on_the_gpu_as_on_the_cpu(tmp_path: Path, synthetic_cache: Path) -> None:
    trained(tmp_path, synthetic_cache)
    (tmp_path / "images").mkdir()
    random = np.random.default_rng(0)
    for number in range(5):
        pixels = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    found = {}
    for device in ("gpu", "cpu"):
        to = (f"hydra.run.dir={device}", f"trainer.accelerator={device}")
        outcome = run_program("predict", "run=run", "images=images", *to, cwd=tmp_path)
        assert outcome.status == 0, outcome.err
        with (tmp_path / device / "predictions.csv").open() as table:
            found[device] = [float(row["prob_malignant"]) for row in csv.DictReader(table)]
    assert len(found["gpu"]) == 5
    assert found["gpu"] == pytest.approx(found["cpu"], abs=0.05)
