"""Sweeps: three networks, a failing run, folds."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from breakhis_pl import command_line
from breakhis_pl.run_folder import RunFolder
from tests.programs import TINY, Outcome, run_program


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, synthetic_cache: Path) -> tuple[Path, Outcome]:
    """Three networks, one step each, in which the weights of half of the runs are missing."""
    folder = tmp_path_factory.mktemp("sweep")
    arguments = [argument for argument in TINY if not argument.startswith("model.weights")]
    outcome = run_program(
        "train",
        "-m",
        "model=resnet18,wide_resnet50,resnext50",
        "model.weights=none,missing.pth",
        *arguments,
        f"data.cache_dir={synthetic_cache}",
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=1",
        "data.batch_size=8",
        "optimizer=sgd",  # keeps nothing beside the weights of Wide-ResNet-50
        "gallery=0",
        "hydra.sweep.dir=all",
        cwd=folder,
    )
    return folder / "all", outcome


def test_three_networks_are_trained_and_compared(sweep: tuple[Path, Outcome]) -> None:
    table = pd.read_csv(sweep[0] / "comparison.csv")
    finished = table[table["status"] == "finished"]
    assert set(finished["model"]) == {"resnet18", "wide_resnet50_2", "resnext50_32x4d"}
    parameters = dict(zip(finished["model"], finished["parameters"] / 1e6, strict=True))
    assert parameters == pytest.approx({"resnet18": 11.33, "wide_resnet50_2": 67.4, "resnext50_32x4d": 23.5}, abs=0.06)


def test_a_failing_run_does_not_stop_the_others(sweep: tuple[Path, Outcome]) -> None:
    folder, outcome = sweep
    assert outcome.status == 1
    assert "missing.pth" in outcome.out + outcome.err
    assert "Traceback" not in outcome.out + outcome.err
    assert len(list(folder.glob("*/test/metrics.json"))) == 3
    assert len(pd.read_csv(folder / "comparison.csv")) == 6


@pytest.mark.parametrize("is_on_gpu", [False, True])
def test_a_sweep_in_an_experiment_file_has_a_folder_per_run(
    tmp_path: Path, synthetic_cache: Path, monkeypatch: pytest.MonkeyPatch, is_on_gpu: bool
) -> None:
    sessions: list[int] = []  # of processes that write pages

    class Watched(subprocess.Popen[bytes]):
        def __init__(self, command: list[str], **options: Any) -> None:
            super().__init__(command, **options)
            if "breakhis_pl.reporting" in command:
                sessions.append(os.getsid(self.pid))

    monkeypatch.setattr(subprocess, "Popen", Watched)
    decide = command_line.pages_follow

    def decide_on_gpu() -> bool:
        with pytest.MonkeyPatch.context() as gpu:
            gpu.setattr("torch.cuda.is_available", lambda: is_on_gpu)
            return decide()

    monkeypatch.setattr(command_line, "pages_follow", decide_on_gpu)
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 0,1\n"
    )
    arguments = (*TINY, f"data.cache_dir={synthetic_cache}", "trainer.max_epochs=1", "trainer.limit_train_batches=1")
    searchpath = f"hydra.searchpath=[file://{tmp_path}/own]"
    outcome = run_program(
        "train", searchpath, "experiment=mine", *arguments, "gallery=0", "hydra.sweep.dir=sweep", cwd=tmp_path
    )
    assert outcome.status == 0, outcome.err
    records = [RunFolder(path.parent).read() for path in (tmp_path / "sweep").glob("*/run.json")]
    commands = [record.command for record in records]  # each repeats its own run
    assert len(set(commands)) == 2
    assert not any("sweep" in command for command in commands)
    assert all(f"seed={record.config['seed']}" in record.command for record in records)
    assert len(pd.read_csv(tmp_path / "sweep" / "comparison.csv")) == 2
    for path in (tmp_path / "sweep").glob("*/run.json"):
        assert path.with_name("report.html").is_file()
        assert "report: " in path.with_name("train.log").read_text()
    assert len(sessions) == is_on_gpu  # the first run's page
    assert os.getsid(0) not in sessions  # Ctrl-C does not reach it
