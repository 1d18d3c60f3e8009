"""One run in two processes over gloo, against the same run in one."""

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from breakhis_pl import run
from breakhis_pl.processes import run_together
from tests.programs import run_program
from tests.shared_runs import exact_config, frozen, train_and_evaluate

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),  # Lightning 2.6.6, deprecated by torch 2.15
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # the loaders hand out numbers
]


@dataclass(frozen=True, slots=True)
class Pair:
    """The run of one process and that of two; `evaluated` is the first one's table as two processes write it again."""

    one: Path
    two: Path
    evaluated: Path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, drawn_cache: Path) -> Pair:
    folder = tmp_path_factory.mktemp("shared")
    one, two, again = folder / "one", folder / "two", folder / "again"
    run.train(exact_config(drawn_cache), one, callbacks=[frozen()])
    shutil.copytree(one, again)
    (again / "test" / "predictions.csv").unlink()
    run_together(train_and_evaluate, (drawn_cache, two, again), n_ranks=2)
    return Pair(one, two, again / "test" / "predictions.csv")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / "checkpoints" / "last.ckpt")["state_dict"]
    return state


def history(folder: Path) -> list[dict[str, float]]:
    with (folder / "history.csv").open() as table:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(table)]


def test_a_checkpoint_evaluated_by_two_processes_gives_the_same_table(pair: Pair) -> None:
    assert pair.evaluated.read_bytes() == (pair.one / "test" / "predictions.csv").read_bytes()


def test_two_processes_train_the_weights_that_one_trains(pair: Pair) -> None:
    ours, theirs = weights(pair.two), weights(pair.one)
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) < 1e-5
    conv1 = "network.conv1.weight"  # frozen in the first epoch, so that DDP sees it only from the second one on
    config = exact_config(Path())
    begun = run.Classifier(config.model.backbone, dropout=0.0, seed=config.seed).state_dict()
    assert float((theirs[conv1] - begun[conv1]).abs().max()) > 1e-4


def test_each_image_counts_once_in_every_figure(pair: Pair) -> None:
    for ours, theirs in zip(history(pair.two), history(pair.one), strict=True):
        for name in set(theirs) - {"images_per_second"}:
            assert ours[name] == pytest.approx(theirs[name], abs=1e-5), name
    for subset in ("val", "test"):
        table = np.genfromtxt(pair.two / subset / "predictions.csv", delimiter=",", dtype=str)[1:, 0]
        assert len(set(table)) == len(table)
        one = np.genfromtxt(pair.one / subset / "predictions.csv", delimiter=",", dtype=str)[1:, 0]
        assert (table == one).all()


def test_one_process_writes(pair: Pair) -> None:
    names = [{str(path.relative_to(run)) for path in run.rglob("*")} for run in (pair.two, pair.one)]
    without_events = [{name for name in each if "tfevents" not in name} for each in names]
    assert without_events[0] == without_events[1]
    assert len(names[0]) == len(names[1])
    for subset in ("train", "test"):
        events = EventAccumulator(str(pair.two / "tensorboard" / subset)).Reload()
        assert [event.step for event in events.Scalars("loss")] == [1, 2]
    content = json.loads((pair.two / "run.json").read_text())
    assert (content["status"], content["processes"]) == ("finished", {"all": 2, "machines": 1})


def test_a_run_of_two_processes_goes_on_in_one(pair: Pair, tmp_path: Path) -> None:
    shutil.copytree(pair.two, tmp_path / "run")
    changes = ("trainer.max_epochs=3", "trainer.devices=1", "trainer.strategy=auto")
    outcome = run_program("train", "resume=run", *changes, cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    assert "goes on after epoch 2" in outcome.out
    assert history(tmp_path / "run")[:2] == history(pair.two)
    assert len(history(tmp_path / "run")) == 3
