import multiprocessing
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("optuna")

from breakhis_pl import composition
from breakhis_pl.config import TrainConfig, TuningConfig
from breakhis_pl.errors import ConfigurationError, StorageError
from breakhis_pl.tuning import study as studies
from breakhis_pl.tuning.plan import Plan
from breakhis_pl.tuning.space import Dimension
from breakhis_pl.tuning.study import TrialStore

pytestmark = pytest.mark.extra("optuna")
SPACE = (
    Dimension("optimizer.lr", "float", low=1e-4, high=1e-1, log=True),
    Dimension("trainer.max_epochs", "int", low=2, high=9),
    Dimension("optimizer", "choice", choices=("adamax", "sgd")),
)


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    composition.register()
    config: TrainConfig = composition.compose_checked("train", ["data.val_fraction=0.2"])
    return config


@pytest.fixture
def plan(config: TrainConfig, tmp_path: Path) -> Plan:
    tuning = TuningConfig(n_trials=6, startup_trials=2)
    return Plan(tmp_path / "study", tuning, SPACE, ("data.val_fraction=0.2",), config)


def run_out(plan: Plan) -> None:
    """What a worker does, without a training."""
    store = TrialStore(plan)
    while True:
        with store.taken() as trial:
            if trial is None:
                return
            store.complete(trial, trial.params["optimizer.lr"])


def drawn(plan: Plan) -> list[dict[str, object]]:
    return [dict(each.parameters) for each in TrialStore(plan).summary().trials]


def killed(plan: Plan) -> None:
    """Takes a trial and is killed."""
    with TrialStore(plan).taken():
        os.kill(os.getpid(), signal.SIGKILL)


def in_process(target: object, *arguments: object) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)  # type: ignore[arg-type]
    process.start()
    return process


def test_a_study_has_as_many_trials_as_asked_for_and_goes_on_when_it_is_to_have_more(plan: Plan) -> None:
    run_out(plan)
    run_out(plan)
    summary = TrialStore(plan).summary()
    assert [(each.number, each.state) for each in summary.trials] == [(number, "complete") for number in range(6)]
    assert summary.best is not None
    assert summary.best.value == min(each.value or 0 for each in summary.trials)
    run_out(replace(plan, tuning=replace(plan.tuning, n_trials=7)))
    assert len(drawn(plan)) == 7


def test_values_lie_in_the_space_and_follow_seed_and_number(plan: Plan, tmp_path: Path) -> None:
    run_out(plan)
    half = replace(plan, folder=tmp_path / "cut", tuning=replace(plan.tuning, n_trials=3))
    run_out(half)
    run_out(replace(half, tuning=plan.tuning))
    assert drawn(half) == drawn(plan)
    other = replace(plan, folder=tmp_path / "other", tuning=replace(plan.tuning, seed=1))
    run_out(other)
    assert drawn(other) != drawn(plan)
    for each in drawn(plan):
        assert 1e-4 <= each["optimizer.lr"] <= 1e-1  # type: ignore[operator]
        assert each["trainer.max_epochs"] in range(2, 10)
        assert each["optimizer"] in ("adamax", "sgd")
    assert len({each["optimizer.lr"] for each in drawn(plan)}) == 6


def test_a_trial_of_a_killed_process_is_taken_over_with_its_values(plan: Plan) -> None:
    process = in_process(killed, plan)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (cut,) = TrialStore(plan).summary().trials
    assert cut.state == "running"
    run_out(plan)
    trials = TrialStore(plan).summary().trials
    assert [each.state for each in trials] == ["complete"] * 6
    assert trials[0].parameters == cut.parameters


def test_a_trial_that_another_process_has_is_left_to_it(plan: Plan) -> None:
    store, other = TrialStore(plan), TrialStore(plan)
    with store.taken() as first, other.taken() as second:
        assert first is not None
        assert second is not None
        assert (first.number, second.number) == (0, 1)


def test_a_trial_that_keeps_ending_its_process_is_given_up(plan: Plan) -> None:
    for _ in range(studies.MOST_STARTS):
        with TrialStore(plan).taken() as trial:  # left without an end, as by a process that is gone
            assert trial is not None
            assert trial.number == 0
    with TrialStore(plan).taken() as trial:
        assert trial is not None
        assert trial.number == 1
    first = TrialStore(plan).summary().trials[0]
    assert (first.state, first.reason) == ("failed", "its process ended 3 times without a word")


def test_where_nothing_can_be_locked_a_running_trial_is_left_alone(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    with TrialStore(plan).taken():
        pass
    store = TrialStore(plan)
    monkeypatch.setattr(store, "_has_locks", False)
    with store.taken() as trial:
        assert trial is not None
        assert trial.number == 1


def test_two_processes_share_a_study_and_make_no_trial_too_many(plan: Plan) -> None:
    more = replace(plan, tuning=replace(plan.tuning, n_trials=12))
    workers = [in_process(run_out, more) for _ in range(2)]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    trials = TrialStore(more).summary().trials
    assert [(each.number, each.state) for each in trials] == [(number, "complete") for number in range(12)]
    assert len({each.parameters["optimizer.lr"] for each in trials}) == 12


def test_why_a_trial_was_pruned_or_failed_is_kept(plan: Plan) -> None:
    store = TrialStore(plan)
    with store.taken() as trial:
        assert trial is not None
        trial.report(0.5, 1)
        store.end(trial, pruned=True, reason="pruned after epoch 1")
    with store.taken() as trial:
        assert trial is not None
        store.end(trial, pruned=False, reason="the loss is nan")
    pruned, failed = store.summary().trials
    assert (pruned.state, pruned.value, pruned.epochs) == ("pruned", 0.5, {1: 0.5})
    assert pruned.reason == "pruned after epoch 1"
    assert (failed.state, failed.value, failed.reason) == ("failed", None, "the loss is nan")
    assert store.summary().best is None


def test_importances_need_ten_complete_trials_and_find_the_key_that_matters(plan: Plan) -> None:
    run_out(replace(plan, tuning=replace(plan.tuning, n_trials=9)))
    assert TrialStore(plan).summary().importances == {}
    run_out(replace(plan, tuning=replace(plan.tuning, n_trials=24)))
    importances = TrialStore(plan).summary().importances
    assert sum(importances.values()) == pytest.approx(1)
    assert max(importances, key=lambda key: importances[key]) == "optimizer.lr"


@pytest.mark.parametrize(("pruner", "is_pruned"), [("median", True), ("hyperband", True), ("none", False)])
def test_a_bad_trial_is_pruned_after_the_warm_up(plan: Plan, pruner: str, is_pruned: bool) -> None:
    tuning = replace(plan.tuning, n_trials=9, pruner=pruner, warmup_epochs=2, warmup_trials=2)
    store = TrialStore(replace(plan, tuning=tuning))
    ended = {}
    for number in range(9):
        with store.taken() as trial:
            assert trial is not None
            for epoch in range(1, 9):
                trial.report(0.1 if number < 8 else 9.0, epoch)
                if trial.should_prune():
                    ended[number] = epoch
                    break
            store.complete(trial, 0.1)
    assert (8 in ended) is is_pruned
    assert all(epoch >= 2 for epoch in ended.values())


def test_a_database_that_cannot_be_used_is_named(plan: Plan) -> None:
    (plan.folder).mkdir()
    (plan.folder / studies.STUDY_DB).write_text("no database at all " * 100)
    with pytest.raises(StorageError, match=r"study.db cannot be used: .*not a database"):
        TrialStore(plan)


@pytest.mark.parametrize(
    ("url", "error", "expected"),
    [
        ("nonsense", StorageError, "tuning.storage=nonsense cannot be used: "),
        ("oracle://u@localhost/x", ConfigurationError, "needs a driver that is not installed"),
        ("sqlite:////nowhere/at/all.db", StorageError, "unable to open database file"),
    ],
)
def test_a_url_that_is_none_is_named(plan: Plan, url: str, error: type[Exception], expected: str) -> None:
    with pytest.raises(error, match=re.escape(expected)):
        TrialStore(replace(plan, tuning=replace(plan.tuning, storage=url)))


def test_a_database_by_url_serves_as_well(plan: Plan, tmp_path: Path) -> None:
    elsewhere = replace(plan, tuning=replace(plan.tuning, storage=f"sqlite:///{tmp_path}/elsewhere.db"))
    run_out(elsewhere)
    assert len(drawn(elsewhere)) == 6
    assert not (plan.folder / studies.STUDY_DB).exists()


def test_a_process_that_keeps_the_study_for_long_is_said(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    store, other = TrialStore(plan), TrialStore(plan)
    monkeypatch.setattr(studies, "_WAIT_FOR_OTHERS_S", 0.05)
    with store.alone(), pytest.raises(StorageError, match=r"another process has kept .* end it"), other.alone():
        pass


def test_nothing_of_a_closed_set_is_passed_over(plan: Plan) -> None:
    for name in ("sampler", "pruner"):
        tuning = TuningConfig(**{name: "x"})  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match=f"tuning.{name}=x is not possible"):
            TrialStore(replace(plan, folder=plan.folder / name, tuning=tuning))
    strange = replace(plan, space=(Dimension("a.b", "x"),))  # type: ignore[arg-type]
    store = TrialStore(strange)
    with pytest.raises(ConfigurationError, match="of kind x"), store.taken():
        pass
