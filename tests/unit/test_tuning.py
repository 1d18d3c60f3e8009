"""Studies whose trials train nothing: the value of a trial is its learning rate."""

import logging
import multiprocessing
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from breakhis_pl import tuning
from breakhis_pl.config import TrainConfig, plain, validate
from breakhis_pl.errors import ConfigurationError, DataError, RunFolderError, TrainingError
from breakhis_pl.messages import mask_password
from breakhis_pl.tuning_config import TuneConfig
from tests.configs import CONF

pytestmark = pytest.mark.extra("optuna")
optuna = pytest.importorskip("optuna")

Objective = Callable[..., float]
Patch = pytest.MonkeyPatch
Log = pytest.LogCaptureFixture
Replace = Callable[[Objective], None]


@pytest.fixture(autouse=True)
def _hydra(monkeypatch: Patch) -> Iterator[None]:
    """Hydra as it is inside a program."""
    monkeypatch.setattr(sys, "argv", ["tune.py"])
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


REAL = {name: getattr(tuning, name) for name in ("draw_figures", "write_best", "check_composition")}
"""Steps that take most of the time, and are replaced in most tests."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: Patch) -> None:
    for name in REAL:
        monkeypatch.setattr(tuning, name, lambda *_: None)


@pytest.fixture
def real(monkeypatch: Patch, _quick: None) -> None:
    """Replace nothing but the training."""
    for name, function in REAL.items():
        monkeypatch.setattr(tuning, name, function)


def learning_rate(_trial: Any, _config: TuneConfig, overrides: list[str], _folder: Path) -> float:
    return next(float(each.partition("=")[2]) for each in overrides if each.startswith("optimizer.lr="))


@pytest.fixture(autouse=True)
def objective(monkeypatch: Patch) -> Replace:
    """Replace the training of a trial."""
    monkeypatch.setattr(tuning, "train_trial", learning_rate)
    return lambda function: monkeypatch.setattr(tuning, "train_trial", function)


@cache
def compose_tune(*overrides: str) -> DictConfig:
    return compose("tune", ["study=x", "data.val_fraction=0.2", *overrides])


def run(study: Path, *overrides: str, search_space: dict[str, Any] | None = None) -> pd.DataFrame:
    """Run tune.py's function; return study.csv."""
    composed = compose_tune(*overrides).copy()
    composed.study = str(study)
    if search_space is not None:
        composed.search_space = search_space
    tuning.tune(validate(TuneConfig, composed), ["study=x", "data.val_fraction=0.2", *overrides])
    return pd.read_csv(study / "study.csv")


def test_a_study_has_as_many_trials_as_asked_for_and_can_be_extended(tmp_path: Path) -> None:
    assert len(run(tmp_path, "tuning.n_trials=3")) == 3
    assert len(run(tmp_path, "tuning.n_trials=3")) == 3
    table = run(tmp_path, "tuning.n_trials=4")
    assert table["state"].tolist() == ["COMPLETE"] * 4
    assert table["value"].tolist() == table["params_optimizer.lr"].tolist()
    assert (table["params_optimizer.lr"].between(1e-5, 1e-2)).all()
    assert set(table["params_data.batch_size"]) <= {16, 32, 64}


@pytest.mark.parametrize("n_random", [2, 4])
def test_a_resumed_study_draws_what_an_uncut_one_draws(tmp_path: Path, n_random: int) -> None:
    options = (f"tuning.startup_trials={n_random}",)
    whole = run(tmp_path / "whole", "tuning.n_trials=4", *options)
    run(tmp_path / "cut", "tuning.n_trials=2", *options)
    cut = run(tmp_path / "cut", "tuning.n_trials=4", *options)
    other = run(tmp_path / "other", "tuning.n_trials=4", "tuning.seed=1", *options)
    assert whole["params_optimizer.lr"].tolist() == cut["params_optimizer.lr"].tolist()
    assert not set(whole["params_optimizer.lr"]) & set(other["params_optimizer.lr"])
    assert whole["params_optimizer.lr"].is_unique


@pytest.mark.parametrize("error", [SystemExit(143), KeyboardInterrupt(), DataError("no such folder")])
def test_an_interrupted_trial_is_repeated_in_its_folder_with_its_values(
    tmp_path: Path, objective: Replace, error: BaseException
) -> None:
    whole = run(tmp_path / "whole", "tuning.n_trials=3")
    folders = []

    def interrupted(trial: Any, config: TuneConfig, overrides: list[str], folder: Path) -> float:
        folders.append(folder.name)
        if len(folders) == 2:
            raise error
        return learning_rate(trial, config, overrides, folder)

    objective(interrupted)
    with pytest.raises(type(error)):
        run(tmp_path / "cut", "tuning.n_trials=3")
    table = run(tmp_path / "cut", "tuning.n_trials=3")
    assert folders == ["0", "1", "1", "3"]
    assert table["user_attrs_trial"].tolist() == [0, 1, 1, 3]
    assert table["state"].tolist() == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert table["params_optimizer.lr"][:3].tolist() == [whole["params_optimizer.lr"][number] for number in (0, 1, 1)]


def killed(study: Path) -> None:
    """Run a study and be killed in its second trial."""

    def train(trial: Any, config: TuneConfig, overrides: list[str], folder: Path) -> float:
        if folder.name == "1":
            time.sleep(2)  # Optuna takes a trial without its first heartbeat as alive
            os.kill(os.getpid(), signal.SIGKILL)
        return learning_rate(trial, config, overrides, folder)

    tuning.HEARTBEAT_S, tuning.GRACE_S = 1, 1
    tuning.train_trial = train
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run(study, "tuning.n_trials=3")


@pytest.mark.slow
def test_a_trial_of_a_killed_process_is_repeated(tmp_path: Path, monkeypatch: Patch) -> None:
    process = multiprocessing.get_context("spawn").Process(target=killed, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    monkeypatch.setattr(tuning, "GRACE_S", 1)
    time.sleep(2.5)  # the database counts whole seconds
    table = run(tmp_path, "tuning.n_trials=3")
    assert table["state"].tolist() == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert table["user_attrs_trial"].tolist() == [0, 1, 1, 3]
    assert table["params_optimizer.lr"][1] == table["params_optimizer.lr"][2]


def test_failed_trials_do_not_stop_a_study_and_keep_their_reason(tmp_path: Path, objective: Replace) -> None:
    outcomes = [0.6, TrainingError("the loss is not finite"), MemoryError(), ConfigurationError("a\nb"), 0.5]

    def fail(*_: Any) -> float:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return float(outcome)  # type: ignore[arg-type]

    objective(fail)
    table = run(tmp_path, "tuning.n_trials=5")
    assert table["state"].tolist() == ["COMPLETE", "FAIL", "FAIL", "FAIL", "COMPLETE"]
    assert table["user_attrs_reason"].dropna().tolist() == ["the loss is not finite", "MemoryError", "a"]


def test_a_study_stops_when_its_first_three_trials_fail(tmp_path: Path, objective: Replace) -> None:
    def fail(*_: Any) -> float:
        raise TrainingError("the loss is not finite")

    objective(fail)
    with pytest.raises(TrainingError):
        run(tmp_path)
    assert pd.read_csv(tmp_path / "study.csv")["state"].tolist() == ["FAIL"] * 3


def test_interruptions_do_not_count_as_trials_that_failed(tmp_path: Path, objective: Replace) -> None:
    outcomes: list[BaseException | float] = [KeyboardInterrupt(), KeyboardInterrupt(), TrainingError("diverged"), 0.5]

    def end(*_: Any) -> float:
        outcome = outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    objective(end)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, "tuning.n_trials=2")
    table = run(tmp_path, "tuning.n_trials=2")
    assert table["state"].tolist() == ["FAIL", "FAIL", "FAIL", "COMPLETE"]


def test_no_trial_starts_after_the_timeout(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"study\.csv"):
        run(tmp_path, "tuning.timeout_s=1e-9")


def test_checkpoints_of_ended_trials_are_removed_unless_they_are_wanted(tmp_path: Path, objective: Replace) -> None:
    def train(_trial: Any, _config: TuneConfig, _overrides: list[str], folder: Path) -> float:
        (folder / "seed0" / "checkpoints").mkdir(parents=True)
        if folder.name == "1":
            raise TrainingError("diverged")
        return 1.0

    objective(train)
    for keep, n_left in (("false", 0), ("true", 2)):
        run(tmp_path / keep, "tuning.n_trials=2", f"tuning.keep_checkpoints={keep}")
        assert len(list((tmp_path / keep).glob("trials/*/seed0/checkpoints"))) == n_left


def compose_best(caplog: Log) -> TrainConfig:
    """Compose what the command that the study ends with would train."""
    command = shlex.split(caplog.messages[-1].splitlines()[-1])
    assert command[:3] == ["uv", "run", "train.py"]
    return validate(TrainConfig, compose("train", command[3:]))


@pytest.mark.usefixtures("real")
def test_a_maximized_metric_has_its_largest_value_as_best(tmp_path: Path, caplog: Log) -> None:
    caplog.set_level(logging.INFO)
    table = run(tmp_path, "tuning.n_trials=2", "tuning.metric=val_auroc")
    assert compose_best(caplog).optimizer.lr == table["value"].max()


@pytest.mark.usefixtures("real")
def test_the_best_trial_is_an_experiment_that_composes_as_it_was_trained(tmp_path: Path, caplog: Log) -> None:
    caplog.set_level(logging.INFO)
    study = tmp_path / "it's, a=1 [x] é"
    options = ("experiment=demo", "model=resnext50", "optimizer.weight_decay=0.03", "trainer.max_epochs=7")
    table = run(study, *options, "search_space=optimizer", "tuning.n_trials=2")
    best = table.loc[table["value"].idxmin()]
    values = [f"{key}={best[f'params_{key}']}" for key in ("optimizer", "scheduler", "optimizer.lr")]
    expected = validate(TrainConfig, compose("train", [*options, "data.val_fraction=0.2", *values]))
    assert plain(compose_best(caplog)) == plain(expected)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("values", [[0.5], [0.5] * 9, [0.5] * 10, list(range(10))])
def test_figures_are_drawn_and_leave_the_style_as_it_is(tmp_path: Path, values: list[float]) -> None:
    import matplotlib.pyplot as plt

    style = plt.rcParams["axes.facecolor"]
    study, distributions = optuna.create_study(), {"x": optuna.distributions.FloatDistribution(0, 100)}
    for index, value in enumerate(values):
        study.add_trial(optuna.create_trial(params={"x": index}, distributions=distributions, value=value))
    REAL["draw_figures"](study, tmp_path, "val_loss")
    names = {"history.png", "slices.png"} | ({"importances.png"} if len(values) >= 10 else set())
    assert {path.name for path in tmp_path.iterdir()} == names
    assert plt.rcParams["axes.facecolor"] == style
    assert plt.get_fignums() == []


def test_another_configuration_in_the_folder_is_refused_and_named(tmp_path: Path) -> None:
    run(tmp_path, "tuning.n_trials=1")
    for override, key in (
        ("data.fold=3", "data.fold"),
        ("optimizer.lr=0.1", "search_space.optimizer.lr"),
        ("trainer.max_epochs=3", "trainer.max_epochs"),
        ("search_space=optimizer", "search_space.model.dropout"),
    ):
        with pytest.raises(RunFolderError, match=key):
            run(tmp_path, "tuning.n_trials=1", override)
    run(tmp_path, "tuning.n_trials=2", "data.root=elsewhere", "tuning.timeout_s=100")


def test_keys_of_the_command_line_are_not_searched(tmp_path: Path) -> None:
    table = run(tmp_path, "tuning.n_trials=1", "search_space=optimizer", "optimizer=sgd", "scheduler=cosine")
    assert [name for name in table if name.startswith("params_")] == ["params_optimizer.lr"]


def test_a_search_without_keys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="search_space"):
        run(tmp_path, "model.dropout=0.1", search_space={"model.dropout": {"type": "float", "low": 0, "high": 1}})


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ({"type": "flaot", "low": 0, "high": 1}, "type"),
        ({"low": 0, "high": 1}, "type"),
        ({"type": "float", "low": 0, "hihg": 1}, "hihg"),
        ({"type": "float", "low": 1, "high": 1}, "low"),
        ({"type": "float", "low": "x", "high": 1}, "low"),
        ({"type": "float", "low": 0, "high": 1, "log": True}, "low"),
        ({"type": "float", "low": 0, "high": float("inf")}, "high"),
        ({"type": "int", "low": 0.5, "high": 1}, "low"),
        ({"type": "float", "low": 0, "high": 1, "choices": [1, 2]}, "choices"),
        ({"type": "choice", "choices": [0.1]}, "choices"),
        ({"type": "choice", "choices": [0.1, 0.2], "low": 0}, "choices"),
        ({"type": "choice", "choices": [0.1, [0.2]]}, "choices"),
    ],
)
def test_an_impossible_entry_is_refused_by_its_key(tmp_path: Path, entry: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigurationError, match=r"model\.dropout") as caught:
        run(tmp_path, search_space={"model.dropout": entry})
    assert fault in str(caught.value)
    assert not (tmp_path / "study.db").exists()


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize(
    ("key", "low", "high"),
    [
        *((key, 1, 2) for key in ("optimizer.momentum", "optimiser", "data.fold", "data.val_fraction", "seed")),
        *((key, 1, 2) for key in ("experiment", "trainer.devices", "a b")),
        *(("model.dropout", -1, 0.5), ("model.dropout", 0.1, 1)),
    ],
)
def test_a_key_or_bound_that_is_not_possible_is_refused(tmp_path: Path, key: str, low: float, high: float) -> None:
    with pytest.raises(ConfigurationError, match=key):
        run(tmp_path / "study", search_space={key: {"type": "float", "low": low, "high": high}})
    assert not (tmp_path / "study").exists()


@pytest.mark.usefixtures("real")
def test_groups_texts_null_and_whole_numbers_can_be_searched(tmp_path: Path, objective: Replace) -> None:
    space = {
        "augmentation": {"type": "choice", "choices": ["none", "strong"]},
        "augmentation.border": {"type": "choice", "choices": ["black", "mirror"]},
        "training.ema_decay": {"type": "choice", "choices": [None, 0.9]},
        "trainer.max_epochs": {"type": "int", "low": 1, "high": 9},
    }
    seen = []

    def compose_trial(_trial: Any, _config: TuneConfig, overrides: list[str], _folder: Path) -> float:
        config = validate(TrainConfig, compose("train", overrides))
        seen.append((config.augmentation.is_identity, config.augmentation.border, config.training.ema_decay))
        return config.trainer.max_epochs

    objective(compose_trial)
    table = run(tmp_path, "tuning.n_trials=4", search_space=space)
    assert table["value"].tolist() == table["params_trainer.max_epochs"].tolist()
    assert [border for _, border, _ in seen] == table["params_augmentation.border"].tolist()
    assert {is_identity for is_identity, _, _ in seen} == {True, False}
    assert {decay for _, _, decay in seen} == {None, 0.9}


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["data.val_fraction=0"], "data.val_fraction"),
        (["trainer=ddp"], "trainer.strategy"),
        (["debug=fast_dev_run"], "trainer.fast_dev_run"),
        (["resume=run"], "resume"),
        (["tuning.seeds_per_trial=2", "data.split=ratio"], "tuning.seeds_per_trial"),
    ],
)
def test_what_a_study_cannot_do_is_refused(tmp_path: Path, overrides: list[str], key: str) -> None:
    with pytest.raises(ConfigurationError, match=key):
        run(tmp_path / "study", *overrides)
    assert not (tmp_path / "study").exists()


def test_optuna_is_named_if_it_is_missing(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "optuna" else object())
    with pytest.raises(ConfigurationError, match="optuna"):
        validate(TuneConfig, compose("tune", [f"study={tmp_path}", "data.val_fraction=0.2"]))


@pytest.mark.parametrize("n_warmup", [2, 9])
def test_a_bad_trial_is_pruned_after_the_warm_up(tmp_path: Path, objective: Replace, n_warmup: int) -> None:
    ended = {}

    def report(trial: Any, _config: TuneConfig, _overrides: list[str], folder: Path) -> float:
        for epoch in range(1, 9):
            trial.report(0.1 if int(folder.name) < 8 else 9.0, epoch)
            if trial.should_prune():
                ended[folder.name] = epoch
                raise optuna.TrialPruned(f"pruned after epoch {epoch}")
        return 0.1

    objective(report)
    options = ("tuning.warmup_epochs=2", f"tuning.warmup_trials={n_warmup}", "trainer.max_epochs=8")
    table = run(tmp_path, "tuning.n_trials=9", *options)
    assert set(ended) == ({"8"} if n_warmup == 2 else set())
    assert set(ended.values()) <= {2}
    assert table["state"].tolist().count("PRUNED") == len(ended)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgresql://alice:secret@host:5432/studies", "postgresql://alice:***@host:5432/studies"),
        ("mysql+pymysql://alice:p@ss@host/studies", "mysql+pymysql://alice:***@host/studies"),
        ("postgresql://host/studies?password=secret&x=1", "postgresql://host/studies?password=***&x=1"),
        ("sqlite:////tmp/study.db", "sqlite:////tmp/study.db"),
        ("data.root=/a:b/c", "data.root=/a:b/c"),
    ],
)
def test_passwords_are_masked(text: str, masked: str) -> None:
    assert mask_password(text) == masked


def test_a_password_is_neither_written_nor_shown(tmp_path: Path, monkeypatch: Patch, caplog: Log) -> None:
    caplog.set_level(logging.DEBUG)
    url = "nosuchdatabase://alice:secret@localhost/studies"
    monkeypatch.setattr(sys, "argv", ["tune.py", f"tuning.storage={url}"])
    with pytest.raises(ConfigurationError, match=r"alice:\*\*\*@") as caught:
        run(tmp_path, f"tuning.storage='{url}'")
    shown = [str(caught.value), caplog.text, *sys.argv, *(path.read_text() for path in tmp_path.iterdir())]
    assert all("secret" not in text for text in shown)


def test_a_database_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("no database " * 100)
    with pytest.raises(ConfigurationError, match=r"study\.db"):
        run(tmp_path)
    for url in ("nonsense", "sqlite:////nowhere/at/all.db", "oracle://u@localhost/x"):
        with pytest.raises(ConfigurationError, match=r"tuning\.storage"):
            run(tmp_path / "other" / url[:3], f"tuning.storage='{url}'")


def test_a_study_can_be_kept_in_another_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/elsewhere.db"
    run(tmp_path / "a", "tuning.n_trials=1", f"tuning.storage='{url}'")
    run(tmp_path / "b", "tuning.n_trials=1", f"tuning.storage='{url}'")
    assert not (tmp_path / "a" / "study.db").exists()
    assert len(optuna.get_all_study_summaries(url)) == 2
