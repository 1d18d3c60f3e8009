import csv
import json
import math
import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("optuna")

from breakhis_pl import composition, run
from breakhis_pl.data.breakhis import Subset
from breakhis_pl.errors import ConfigurationError, Stopped, TrainingError
from breakhis_pl.run_json import read_run
from breakhis_pl.tuning import worker
from breakhis_pl.tuning.best import command_for_best
from breakhis_pl.tuning.plan import Plan, make_plan
from breakhis_pl.tuning.reporting import epoch_value
from breakhis_pl.tuning.study import TrialStore
from breakhis_pl.tuning.worker import tune, value_of_run
from tests.programs import TINY, run_program

pytestmark = [
    pytest.mark.extra("optuna"),
    pytest.mark.usefixtures("undrawn"),  # tests/tuning/test_page.py looks at figures
]
N_TRIALS = 2


@pytest.fixture(scope="module")
def arguments(drawn_cache: Path) -> tuple[str, ...]:
    return (
        *TINY,
        *(f"data.cache_dir={drawn_cache}", "data.val_fraction=0.3", "trainer=cpu", "trainer.max_epochs=2"),
        *("trainer.limit_train_batches=1", "tuning.warmup_epochs=1", "tuning.warmup_trials=1"),
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, arguments: tuple[str, ...]) -> Path:
    """A study of two trials, the second of which was cut by SIGTERM and went on with the same command."""
    folder = tmp_path_factory.mktemp("work")
    command = (*arguments, "study=studies/first", f"tuning.n_trials={N_TRIALS}", "space=optimizer")
    with pytest.MonkeyPatch.context() as monkeypatch:
        n_reported = 0
        report = worker.ReportEpochs.on_train_epoch_end

        def cut(callback: worker.ReportEpochs, trainer: object, pl_module: object) -> None:
            nonlocal n_reported
            n_reported += 1
            if callback.trial.number == 1:
                raise Stopped(signal.SIGTERM)
            report(callback, trainer, pl_module)  # type: ignore[arg-type]

        monkeypatch.setattr(worker.ReportEpochs, "on_train_epoch_end", cut)
        outcome = run_program("tune", *command, cwd=folder)
        assert outcome.status == 143, outcome.err
        assert outcome.err.strip().endswith(f"go on with: python tune.py {shlex.join(command)}")
        assert n_reported >= 2
    outcome = run_program("tune", *command, cwd=folder)
    assert outcome.status == 0, outcome.err
    assert "trial 1 was cut, and goes on here" in outcome.out
    assert "best: trial" in outcome.out
    return folder / "studies" / "first"


def rows(study: Path) -> list[dict[str, str]]:
    with (study / "study.csv").open() as table:
        return list(csv.DictReader(table))


def test_each_trial_is_a_run_folder_in_which_nothing_is_of_test(study: Path) -> None:
    assert [row["number"] for row in rows(study)] == [str(number) for number in range(N_TRIALS)]
    for number in range(N_TRIALS):
        folder = study / "trials" / str(number)
        assert json.loads((folder / "run.json").read_text())["evaluated"] == ["val"]
        assert "test" not in (folder / "history.csv").read_text()
        assert not (folder / "test").exists()
        assert not (folder / "tensorboard" / "test").exists()
        assert not (folder / "report.html").exists()
        assert not (folder / "checkpoints").exists()
        assert read_run(folder)["status"] in ("finished", "pruned")
        if read_run(folder)["status"] == "finished":
            assert (folder / "val" / "predictions.csv").is_file()


def test_the_value_of_a_trial_is_that_of_its_last_epoch_on_validation_rows(study: Path) -> None:
    for row in rows(study):
        with (study / "trials" / row["number"] / "history.csv").open() as table:
            last = list(csv.DictReader(table))[-1]
        assert float(row["val_loss"]) == pytest.approx(float(last["val_loss"]), rel=1e-5)
        assert row["epochs"] == last["epoch"]


def test_the_best_trial_composes_as_it_was_trained(study: Path) -> None:
    complete = [row for row in rows(study) if row["state"] == "complete"]
    best = min(complete, key=lambda row: float(row["val_loss"]))
    command = shlex.split(command_for_best(study))
    assert command[:2] == ["python", "train.py"]
    composition.register()
    composed = composition.plain(composition.compose_checked("train", command[2:]))
    assert composed == read_run(study / "trials" / best["number"])["config"]
    assert (study / "experiment" / "best_trial.yaml").read_text().startswith("# @package _global_\n# trial ")


def test_the_command_of_the_best_trial_works_where_the_path_is_strange(study: Path, tmp_path: Path) -> None:
    strange = tmp_path / "it's, a=1 [x]"
    (strange / "experiment").mkdir(parents=True)
    (strange / "experiment" / "best_trial.yaml").write_text((study / "experiment" / "best_trial.yaml").read_text())
    composition.register()
    command = shlex.split(command_for_best(strange))[2:]
    there = composition.compose_checked("train", shlex.split(command_for_best(study))[2:])
    assert composition.compose_checked("train", command) == there


def test_the_page_and_the_command_on_it_are_there(study: Path) -> None:
    page = (study / "study.html").read_text()
    assert f"{N_TRIALS} of {N_TRIALS} trials" in page
    assert "experiment=best_trial" in page
    assert "Synthetic images, no tissue." in page


def planned(study: Path, arguments: tuple[str, ...], *more: str) -> Plan:
    composition.register()
    return make_plan([f"study={study}", *arguments, *more])


def finished_run(of: Path) -> Callable[..., None]:
    """A training that takes no time: the run folder of another one."""

    def train(_: object, folder: Path, **more: object) -> None:
        assert more["evaluated"] == (Subset.VAL,)
        (folder / "val").mkdir(parents=True)
        for name in ("run.json", "val/predictions.csv"):
            (folder / name).write_bytes((of / name).read_bytes())

    return train


@pytest.fixture
def one_run(study: Path) -> Path:
    """Folder of a finished trial."""
    number = next(row["number"] for row in rows(study) if row["state"] == "complete")
    return study / "trials" / number


def test_failed_trials_do_not_stop_a_study_and_keep_their_reason(
    arguments: tuple[str, ...], one_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished, calls = finished_run(one_run), []

    def train(config: object, folder: Path, **more: object) -> None:
        calls.append(folder.name)
        if len(calls) == 2:
            raise TrainingError("the loss is nan in epoch 1")
        if len(calls) == 3:
            raise ConfigurationError("these two keys do not go together")
        finished(config, folder, **more)

    monkeypatch.setattr(run, "train", train)
    tune(planned(tmp_path / "study", arguments, "tuning.n_trials=4"))
    found = rows(tmp_path / "study")
    assert [row["state"] for row in found] == ["complete", "failed", "failed", "complete"]
    assert [row["reason"] for row in found[1:3]] == ["the loss is nan in epoch 1", "these two keys do not go together"]
    assert calls == ["0", "1", "2", "3"]


def test_a_study_of_which_every_trial_fails_stops(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: object, **__: object) -> None:
        raise TrainingError("the loss is nan")

    monkeypatch.setattr(run, "train", train)
    with pytest.raises(TrainingError, match=r"all 3 trials of study study failed, the last one: the loss is nan"):
        tune(planned(tmp_path / "study", arguments))
    assert len(rows(tmp_path / "study")) == 3


def test_several_seeds_give_the_mean_and_a_folder_each(
    arguments: tuple[str, ...], one_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "train", finished_run(one_run))
    values = iter((0.25, 0.75))
    monkeypatch.setattr(worker, "value_of_run", lambda *_: next(values))
    tune(planned(tmp_path / "study", arguments, "tuning.n_trials=1", "tuning.seeds_per_trial=2", "seed=7"))
    (row,) = rows(tmp_path / "study")
    assert float(row["val_loss"]) == 0.5
    assert sorted(path.name for path in (tmp_path / "study" / "trials" / "0").iterdir()) == ["seed7", "seed8"]


def test_no_trial_starts_after_the_time_is_over(arguments: tuple[str, ...], tmp_path: Path) -> None:
    tune(planned(tmp_path / "study", arguments, "tuning.timeout_s=1e-9"))
    assert rows(tmp_path / "study") == []
    assert "No trial is complete yet." in (tmp_path / "study" / "study.html").read_text()


def test_a_run_that_was_pruned_before_the_study_knew_stays_pruned(
    arguments: tuple[str, ...], one_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "train", finished_run(one_run))
    folder = tmp_path / "study" / "trials" / "0"
    folder.mkdir(parents=True)
    content = json.loads((one_run / "run.json").read_text()) | {"status": "pruned", "error": "pruned after epoch 1"}
    (folder / "run.json").write_text(json.dumps(content))
    tune(planned(tmp_path / "study", arguments, "tuning.n_trials=1"))
    (row,) = rows(tmp_path / "study")
    assert (row["state"], row["reason"]) == ("pruned", "pruned after epoch 1")


@pytest.mark.parametrize("metric", ["val_loss", "val_accuracy", "val_balanced_accuracy", "val_auroc"])
def test_every_metric_is_read_from_the_rows(one_run: Path, metric: str) -> None:
    names = {"val_loss": "log_loss", "val_auroc": "auroc"}
    metrics = json.loads((one_run / "val" / "metrics.json").read_text())
    expected = metrics[names.get(metric, metric.removeprefix("val_"))]["value"]
    assert value_of_run(one_run, metric) == pytest.approx(expected, abs=1e-6)


def test_a_metric_that_rows_do_not_define_is_said(one_run: Path, tmp_path: Path) -> None:
    lines = (one_run / "val" / "predictions.csv").read_text().splitlines()
    (tmp_path / "val").mkdir()
    malignant = [line for line in lines if "SOB_M" in line.partition(",")[0]]
    (tmp_path / "val" / "predictions.csv").write_text("\n".join([lines[0], *malignant]) + "\n")
    with pytest.raises(TrainingError, match=r"val_auroc of .* is not defined; take tuning.metric=val_loss"):
        value_of_run(tmp_path, "val_auroc")
    assert math.isfinite(value_of_run(tmp_path, "val_loss"))


def test_an_epochs_value_needs_a_classifier() -> None:
    with pytest.raises(TypeError, match="expected a Classifier and its data, got int"):
        epoch_value(1, 2, "val_loss")


def test_a_study_is_seen_while_it_runs(study: Path, arguments: tuple[str, ...]) -> None:
    store = TrialStore(planned(study, (*arguments, "space=optimizer")))
    assert len(store.summary().trials) == N_TRIALS
