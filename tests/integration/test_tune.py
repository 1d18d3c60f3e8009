"""One real study of two trials, read by several tests, and the training of a trial."""

import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from breakhis_pl import tuning
from breakhis_pl.config import TrainConfig
from breakhis_pl.data.dataset import Subset
from breakhis_pl.errors import DataError
from breakhis_pl.run_folder import RunFolder
from breakhis_pl.tuning_config import TuneConfig
from tests.programs import TINY, Outcome, run_program

pytestmark = pytest.mark.extra("optuna")


@pytest.fixture(scope="module")
def shared(synthetic_cache: Path) -> list[str]:
    """Overrides of every command."""
    return [
        *TINY,
        f"data.cache_dir={synthetic_cache}",
        "data.val_fraction=0.3",
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=1",
    ]


def run_tune(folder: Path, *arguments: str) -> Outcome:
    return run_program(
        "tune", "study=studies/first", "tuning.n_trials=2", "search_space=optimizer", *arguments, cwd=folder
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, shared: list[str]) -> Path:
    """A study whose second trial was interrupted when its training had ended, and repeated."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as monkeypatch:
        read = tuning.read_result

        def stop(run: RunFolder, metric: str) -> float:
            if run.path.name == "1":
                raise SystemExit(143)
            return read(run, metric)

        monkeypatch.setattr(tuning, "read_result", stop)
        assert run_tune(folder, *shared).status == 143
    outcome = run_tune(folder, *shared)
    assert outcome.status == 0, outcome.err
    assert "experiment=best_trial" in outcome.out
    return folder / "studies" / "first"


def test_each_trial_is_a_run_folder_without_anything_of_test(study: Path) -> None:
    for number in range(2):
        folder = study / "trials" / str(number)
        assert json.loads((folder / "run.json").read_text())["status"] == "finished"
        assert (folder / "val" / "predictions.csv").is_file()
        assert "test" not in (folder / "history.csv").read_text()
        assert not any(path.name in ("test", "checkpoints", "report.html") for path in folder.rglob("*"))


def test_the_value_of_a_trial_is_that_of_its_validation_images(study: Path) -> None:
    table = pd.read_csv(study / "study.csv").query("state == 'COMPLETE'")
    assert table["user_attrs_trial"].tolist() == [0, 1]
    for number, value in zip(table["user_attrs_trial"], table["value"], strict=True):
        metrics = json.loads((study / "trials" / str(number) / "val" / "metrics.json").read_text())
        assert value == pytest.approx(metrics["log_loss"]["value"], rel=1e-5)


def test_an_interrupted_trial_was_resumed(study: Path) -> None:
    assert len(json.loads((study / "trials" / "1" / "run.json").read_text())["resumed"]) == 1
    assert json.loads((study / "trials" / "0" / "run.json").read_text())["resumed"] == []


def test_the_last_line_of_a_study_trains_its_best_configuration(study: Path, shared: list[str]) -> None:
    outcome = run_tune(study.parents[1], *shared)
    command = shlex.split(outcome.out.splitlines()[-1])
    assert command[:3] == ["uv", "run", "train.py"]
    outcome = run_program("train", *command[3:], "hydra.run.dir=best", "gallery=0", cwd=study)
    assert outcome.status == 0, outcome.err
    best = pd.read_csv(study / "study.csv").sort_values("value").iloc[0]
    record = json.loads((study / "best" / "run.json").read_text())
    assert record["config"]["optimizer"]["lr"] == best["params_optimizer.lr"]
    assert pd.read_csv(study / "best" / "history.csv")["val_loss"].iloc[-1] == pytest.approx(best["value"], rel=1e-6)
    assert (study / "best" / "test" / "metrics.json").is_file()


def test_a_refused_study_shows_no_traceback(tmp_path: Path) -> None:
    outcome = run_program("tune", "study=s", *TINY, cwd=tmp_path)
    assert outcome.status == 1
    assert "data.val_fraction" in outcome.err
    assert "Traceback" not in outcome.err


def test_several_seeds_are_trained_in_folders_of_their_own_and_averaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = []

    def train(config: TrainConfig, folder: Path, *, callbacks: list[Any], evaluate_on: tuple[Subset, ...]) -> None:
        assert evaluate_on == (Subset.VAL,)
        seeds.append((config.seed, folder.name, len(callbacks)))
        folder.mkdir(parents=True)
        pd.DataFrame({"epoch": [1, 2], "val_loss": [9.0, config.seed / 2]}).to_csv(folder / "history.csv", index=False)

    monkeypatch.setattr("breakhis_pl.train.train", train)
    monkeypatch.setattr(RunFolder, "read", lambda _: SimpleNamespace(selection=None))
    value = tuning.train_trial(SimpleNamespace(), *compose("seed=7", "tuning.seeds_per_trial=2"), tmp_path / "0")
    assert seeds == [(7, "seed7", 1), (8, "seed8", 0)]
    assert value == (3.5 + 4.0) / 2


def compose(*overrides: str) -> tuple[TuneConfig, list[str]]:
    """Initialize Hydra and compose tune.yaml."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    from breakhis_pl.config import validate
    from tests.configs import CONF

    GlobalHydra.instance().clear()
    hydra.initialize_config_dir(str(CONF), version_base="1.3")
    config = validate(TuneConfig, hydra.compose("tune", ["study=x", "data.val_fraction=0.2", *overrides]))
    return config, tuning.select_train_overrides(overrides)


@pytest.mark.parametrize(("selection", "value"), [(None, 0.3), ({"best_epoch": 1}, 0.1)])
def test_the_value_is_that_of_the_selected_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selection: dict[str, int] | None, value: float
) -> None:
    pd.DataFrame({"epoch": [1, 2], "val_auroc": [0.1, 0.3]}).to_csv(tmp_path / "history.csv", index=False)
    monkeypatch.setattr(RunFolder, "read", lambda _: SimpleNamespace(selection=selection))
    assert tuning.read_result(RunFolder(tmp_path), "val_auroc") == value


def test_epochs_are_reported_and_a_trial_is_pruned_before_the_next_one() -> None:
    import optuna

    reported = []
    trial = SimpleNamespace(
        report=lambda value, step: reported.append((step, value)), should_prune=lambda: bool(reported)
    )
    callback = tuning.report_epochs(trial, "val_loss")  # type: ignore[arg-type]
    data = SimpleNamespace(evaluated_subsets=(Subset.VAL,))
    trainer: Any = SimpleNamespace(callback_metrics={"val_loss": torch.tensor(0.5)}, current_epoch=0, datamodule=data)
    callback.on_train_epoch_start(trainer, trainer)
    callback.on_train_epoch_end(trainer, trainer)
    assert reported == [(1, 0.5)]
    trainer.current_epoch = 1
    with pytest.raises(optuna.TrialPruned):
        callback.on_train_epoch_start(trainer, trainer)


def test_a_table_without_validation_images_is_refused_before_the_first_epoch() -> None:
    callback = tuning.report_epochs(SimpleNamespace(), "val_loss")  # type: ignore[arg-type]
    trainer: Any = SimpleNamespace(datamodule=SimpleNamespace(evaluated_subsets=()))
    with pytest.raises(DataError, match=r"data\.val_fraction"):
        callback.on_train_epoch_start(trainer, trainer)
