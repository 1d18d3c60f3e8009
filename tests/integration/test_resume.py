"""Interrupted runs resume with the bits of an uninterrupted one."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as L
import pandas as pd
import pytest
import torch

from breakhis_pl.training.callbacks import History
from tests.conftest import REPOSITORY
from tests.programs import TINY, run_program

N_EPOCHS = 3


@pytest.fixture(scope="module")
def arguments(synthetic_cache: Path) -> tuple[str, ...]:
    """A run with everything that draws numbers: shuffling, augmentation, dropout, mixup, EMA, a selected epoch."""
    return (
        *TINY,
        f"data.cache_dir={synthetic_cache}",
        "data.val_fraction=0.3",
        f"trainer.max_epochs={N_EPOCHS}",
        "experiment=best",
        "data=synthetic",
        "model.weights=none",
        "trainer.monitor=val_loss",
        "gallery=0",
    )


@pytest.fixture(scope="module")
def uninterrupted(arguments: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    outcome = run_program("train", *arguments, "hydra.run.dir=run", cwd=folder)
    assert outcome.status == 0, outcome.err
    return folder / "run"


@pytest.fixture
def interrupt_after(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Send SIGTERM when the epoch after `epoch` finished ones would be recorded."""
    settings = {"epoch": 0}
    original = History.on_train_epoch_end

    def stop(history: History, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if len(history.rows) == settings["epoch"]:
            signal.raise_signal(signal.SIGTERM)
        original(history, trainer, pl_module)

    monkeypatch.setattr(History, "on_train_epoch_end", stop)
    yield settings
    monkeypatch.undo()


def assert_equal_runs(run: Path, other: Path) -> None:
    for name in ("test/predictions.csv", "val/predictions.csv"):
        assert (run / name).read_bytes() == (other / name).read_bytes()
    histories = [pd.read_csv(folder / "history.csv").drop(columns="images_per_second") for folder in (run, other)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    for name in ("last.ckpt", "best.ckpt"):
        states = [torch.load(folder / "checkpoints" / name, weights_only=True)["state_dict"] for folder in (run, other)]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])


@pytest.mark.parametrize("epoch", [0, 2])
def test_an_interrupted_run_resumes_with_equal_bits(
    arguments: tuple[str, ...],
    uninterrupted: Path,
    tmp_path: Path,
    interrupt_after: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
    epoch: int,
) -> None:
    interrupt_after["epoch"] = epoch
    assert run_program("train", *arguments, "hydra.run.dir=run", cwd=tmp_path).status == 143
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert (record["status"], record["error"]) == ("failed", "interrupted")
    monkeypatch.undo()
    outcome = run_program("train", "resume=run", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    assert_equal_runs(tmp_path / "run", uninterrupted)
    assert len(json.loads((tmp_path / "run/run.json").read_text())["resumed"]) == 1


def test_a_finished_run_is_left_as_it_is(uninterrupted: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*") if path.suffix in (".csv", ".ckpt")}
    outcome = run_program("train", f"resume={uninterrupted}", cwd=uninterrupted.parent)
    assert outcome.status == 0
    assert "finished" in outcome.out
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("override", ["data.batch_size=7", "seed=1", "model=resnext50"])
def test_keys_that_change_an_epoch_cannot_change_on_resume(uninterrupted: Path, override: str) -> None:
    outcome = run_program("train", f"resume={uninterrupted}", override, cwd=uninterrupted.parent)
    assert outcome.status == 1
    assert override.partition("=")[0] in outcome.err
    assert "Traceback" not in outcome.err


def test_an_interrupted_sweep_resumes_by_its_command(
    tmp_path: Path, synthetic_cache: Path, interrupt_after: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("-m", *TINY, f"data.cache_dir={synthetic_cache}", "trainer.max_epochs=1", "gallery=0", "seed=0,1")
    interrupt_after["epoch"] = 0
    interrupted = run_program("train", *command, "hydra.sweep.dir='sweep,a=b'", cwd=tmp_path)
    assert interrupted.status == 143
    monkeypatch.undo()
    printed = interrupted.err.partition("uv run train.py ")[2].splitlines()[0]
    outcome = run_program("train", *shlex.split(printed), cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    assert len(list((tmp_path / "sweep,a=b").glob("*/test/metrics.json"))) == 2
    assert len(pd.read_csv(tmp_path / "sweep,a=b" / "comparison.csv")) == 2


def test_a_damaged_checkpoint_is_named_and_the_run_is_left_as_it_is(finished_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    os.truncate(copy / "checkpoints" / "last.ckpt", 100_000)
    before = (copy / "run.json").read_bytes()
    for program, arguments in (("train", ("resume=run", "trainer.max_epochs=3")), ("evaluate", ("run=run",))):
        outcome = run_program(program, *arguments, cwd=tmp_path)
        assert outcome.status == 1
        assert "last.ckpt" in outcome.err
        assert "Traceback" not in outcome.err
    assert (copy / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    "name",
    [
        "SIGTERM",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")),
    ],
)
def test_a_signal_ends_a_run_in_order(tmp_path: Path, synthetic_cache: Path, name: str) -> None:
    arguments = (*TINY, f"data.cache_dir={synthetic_cache}", "trainer.max_epochs=500", "hydra.run.dir=run")
    run, number = tmp_path / "run", getattr(signal, name)
    command = [sys.executable, str(REPOSITORY / "train.py"), *arguments]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        deadline = time.monotonic() + 120
        while not (run / "checkpoints/last.ckpt").exists():
            assert started.poll() is None, started.stderr.read()  # type: ignore[union-attr]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        second = run_program("train", "resume=run", cwd=tmp_path)
        os.kill(started.pid, number)
        _, errors = started.communicate(timeout=60)
    assert second.status == 1
    assert started.returncode == 128 + number
    assert "uv run train.py resume=run" in errors
    assert "Traceback" not in errors
    assert json.loads((run / "run.json").read_text())["error"] == "interrupted"
    torch.load(run / "checkpoints/last.ckpt", weights_only=True)


@pytest.mark.extra("wandb")
def test_a_resumed_run_is_the_same_run_of_weights_and_biases(
    tmp_path: Path, synthetic_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    fixed = (f"data.cache_dir={synthetic_cache}", "logger=wandb")
    arguments = (*TINY, *fixed, "gallery=0", "trainer.max_epochs=1", "hydra.run.dir=run")
    assert run_program("train", *arguments, cwd=tmp_path).status == 0
    first = json.loads((tmp_path / "run" / "run.json").read_text())["run_ids"]["wandb"]
    assert run_program("train", "resume=run", *fixed, "trainer.max_epochs=2", cwd=tmp_path).status == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["run_ids"]["wandb"] == first
    folders = list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert {folder.name.rpartition("-")[2] for folder in folders} == {first}
