"""Runs that repeat one configuration."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from breakhis_pl.reporting.repeats import repeats
from breakhis_pl.reporting.runs import Run, read_run
from tests.unit.reporting.conftest import constant_table, make_table, write_run


def read_runs(folder: Path, *overrides: str) -> list[Run]:
    """Write and read runs with a result, one for each text of overrides; their predictions differ."""
    return [
        read_run(write_run(folder / f"run{number}", make_table(seed=number, skill=0.8), *each.split()))
        for number, each in enumerate(overrides)
    ]


def value(run: Run, metric: str) -> float:
    estimate = run.estimate(metric)
    return float(estimate["value"])


def test_a_configuration_is_named_by_what_distinguishes_it(tmp_path: Path) -> None:
    other = ("model.backbone=resnet50", "optimizer._target_=torch.optim.SGD optimizer.lr=0.1")
    runs = read_runs(tmp_path, "seed=0", "seed=1 data.fold=3", "optimizer.lr=0.1", *other)
    assert {group.name: [run.name for run in group.runs] for group in repeats(runs)} == {
        "resnet18 optimizer=Adamax optimizer.lr=0.0005": ["run0", "run1"],
        "resnet18 optimizer=Adamax optimizer.lr=0.1": ["run2"],
        "resnet50": ["run3"],
        "resnet18 optimizer=SGD": ["run4"],
    }


@pytest.mark.parametrize(
    "key", ["data.root=x", "data.cache_dir=x", "trainer.progress_bar=false", "gallery=3", "logger.a.b=c"]
)
def test_keys_that_change_no_network_separate_no_configuration(tmp_path: Path, key: str) -> None:
    (group,) = repeats(read_runs(tmp_path, "seed=0", f"seed=1 {key}"))
    assert group.name == "resnet18"
    assert group.seeds == (0, 1)


def test_a_fold_with_two_seeds_counts_once(tmp_path: Path) -> None:
    runs = read_runs(tmp_path, "data.fold=1", "data.fold=2 seed=0", "data.fold=2 seed=1")
    (group,) = repeats(runs)
    values = [value(run, "accuracy") for run in runs]
    assert len({*values}) == 3
    folds = [values[0], np.mean(values[1:])]
    assert group.over_folds("accuracy") == pytest.approx((np.mean(folds), np.std(folds, ddof=1)))
    on_fold = group.on_fold(2, "accuracy")
    assert on_fold["value"] == pytest.approx(folds[1])
    limits = [run.estimate("accuracy")["ci95"] for run in runs[1:]]  # type: ignore[index]
    assert on_fold["ci95"] == pytest.approx(np.mean(limits, axis=0))


def test_the_deviation_over_seeds_is_pooled_over_the_folds_that_have_several(tmp_path: Path) -> None:
    seeds = {1: 3, 2: 2, 3: 1}
    runs = read_runs(tmp_path, *(f"data.fold={fold} seed={seed}" for fold, n in seeds.items() for seed in range(n)))
    (group,) = repeats(runs)
    values = [value(run, "accuracy") for run in runs]
    squares = [(np.array(each) - np.mean(each)) ** 2 for each in (values[:3], values[3:5])]
    assert group.seed_deviation("accuracy") == pytest.approx(np.sqrt(np.concatenate(squares).sum() / (2 + 1)))
    assert repeats(runs[4:])[0].seed_deviation("accuracy") is None


def test_seeds_of_one_split_are_averaged_without_folds(tmp_path: Path) -> None:
    runs = read_runs(tmp_path, "data.split=ratio seed=0", "data.split=ratio seed=1")
    (group,) = repeats(runs)
    assert group.folds == ()
    assert group.over_folds("accuracy") is None
    values = [value(run, "accuracy") for run in runs]
    assert group.over_seeds("accuracy") == pytest.approx((np.mean(values), np.std(values, ddof=1)))


def test_a_copy_of_a_run_counts_once(tmp_path: Path) -> None:
    (run,) = read_runs(tmp_path, "seed=0")
    (group,) = repeats([run, replace(run, name="copy")])
    assert group.runs == (run,)


def test_a_mean_says_which_networks_predict_one_class_and_whether_splits_differ(tmp_path: Path) -> None:
    runs = read_runs(tmp_path, "data.split=ratio seed=0", "data.split=ratio seed=1")
    assert repeats(runs)[0].remark == ""
    constant = read_run(write_run(tmp_path / "c", constant_table(prefix="x"), "data.split=ratio", "seed=2"))
    (group,) = repeats([*runs, constant])
    assert "2 splits" in group.remark
    assert "1 of 3" in group.remark


def test_runs_without_a_result_are_kept_apart(tmp_path: Path) -> None:
    failed = read_run(write_run(tmp_path / "failed", None, "data.fold=3", status="failed"))
    running = read_run(write_run(tmp_path / "running", make_table(), "data.fold=4", status="running"))
    (group,) = repeats([*read_runs(tmp_path, "seed=0"), failed, running])
    assert [run.name for run in group.runs] == ["run0"]
    assert group.over_seeds("accuracy") is None
