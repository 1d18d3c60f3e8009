"""One run in two processes over gloo, against the same run in one."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import BatchSampler

from breakhis_pl.data.datamodule import Batch, BreakHisDataModule
from breakhis_pl.data.row_loading import DealtBatches, SharedBatches
from breakhis_pl.errors import ConfigurationError
from breakhis_pl.models.classifier import Classifier
from breakhis_pl.processes import ALONE, Place, run_together
from breakhis_pl.run import train
from breakhis_pl.training import distributed
from tests.conftest import REPOSITORY
from tests.programs import TINY, run_program
from tests.shared_runs import exact_config, frozen, train_and_evaluate, train_chosen, train_small_shares

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
    train(exact_config(drawn_cache), one, callbacks=[frozen()])
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
    conv1 = "network.conv1.weight"  # by frozen_epochs=1, DDP sees it only from the second epoch on
    config = exact_config(Path())
    begun = Classifier(config.model.backbone, dropout=0.0, seed=config.seed).state_dict()
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


def test_the_best_epoch_and_averaged_weights_are_those_of_all_processes(drawn_cache: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_together(train_chosen, (drawn_cache, run), n_ranks=2)
    before = (run / "test" / "predictions.csv").read_bytes()
    outcome = run_program("evaluate", f"run={run}", "gallery=0", "trainer.accelerator=cpu", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    assert (run / "test" / "predictions.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("trainer=cpu", "trainer.devices=2"), "trainer.devices=2 trainer.num_nodes=1 on a CPU: one process uses all"),
        (("trainer=ddp", "trainer.accelerator=mps"), "trainer.accelerator=mps is a single device"),
        (("trainer=ddp", "trainer.cuda_graphs=true"), "trainer.cuda_graphs=true is for one process"),
        (("trainer=ddp", "trainer.devices=0"), "trainer.devices=0 is not possible; expected a number at least 1"),
        (("trainer=ddp", "trainer.devices=8", "data.batch_size=7"), "data.batch_size=7 is too small for 8 processes"),
        (("trainer=ddp", "trainer.num_nodes=2"), "srun --nodes=2 --ntasks-per-node=1 python train.py"),
    ],
)
def test_processes_that_cannot_be_are_refused_at_the_door(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    outcome = run_program("train", *TINY, *arguments, cwd=tmp_path)
    assert outcome.status == 1
    assert words in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_more_devices_than_there_are_are_refused() -> None:
    n_cores = len(os.sched_getaffinity(0))
    with (
        pytest.raises(
            ConfigurationError, match=rf"trainer\.devices={n_cores + 1}: there is no GPU, and only {n_cores} c"
        ),
        distributed.joined(Place(0, n_cores + 1, 0, n_cores + 1), "cpu"),
    ):
        raise AssertionError
    if not torch.cuda.is_available():
        with pytest.raises(ConfigurationError, match="sees 0 GPUs"), distributed.joined(ALONE, "gpu"):
            raise AssertionError


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 8])
def test_shares_are_disjoint_and_whole_and_their_weights_give_the_mean_over_images(
    n_ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = SimpleNamespace(data=SimpleNamespace(batch_size=10), n_train_images=23)
    values = np.random.default_rng(0).normal(size=23)
    batches = BatchSampler(range(23), 10, drop_last=False)
    places = [Place(rank, n_ranks, rank, n_ranks) for rank in range(n_ranks)]
    shares = [list(SharedBatches(batches, place)) for place in places]
    for step, whole in enumerate(batches):
        own = [share[step] for share in shares]
        assert sorted(position for each in own for position in each) == whole
        losses = []
        for place, positions in zip(places, own, strict=True):
            monkeypatch.setattr(distributed, "_place", place)
            mean = values[positions].mean() if positions else 0.0
            losses.append(mean * distributed.share_weight(data, step))  # type: ignore[arg-type]
        assert np.mean(losses) == pytest.approx(values[whole].mean())
    dealt = [list(DealtBatches(batches, place)) for place in places]
    assert sorted(position for each in dealt for batch in each for position in batch) == list(range(23))
    assert all(len(each) > 0 for each in dealt)


def test_a_share_without_images_has_gradients_of_zero_and_is_not_counted() -> None:
    classifier = Classifier("resnet18", dropout=0.0)
    nothing = Batch(torch.empty(0, 3, 32, 32), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    classifier.training_step(nothing, 0).backward()
    assert all(float(each.grad.abs().max()) == 0 for each in classifier.parameters())  # type: ignore[union-attr]
    classifier.on_validation_epoch_start()
    classifier.validation_step(nothing, 0)
    assert classifier._outputs == {"test": []}


def test_a_share_of_one_tiny_image_is_refused(drawn_cache: Path) -> None:
    config = exact_config(drawn_cache)
    config.data.batch_size = 11  # of 43 images: 11, 11, 11 and 10
    data = BreakHisDataModule(config.data, config.augmentation, seed=0)
    data.index()
    data.check_train_batches()
    data.place = Place(0, 8, 0, 8)
    with pytest.raises(ConfigurationError, match=r"leaves a batch of a single image to one of 8 processes"):
        data.check_train_batches()


@pytest.mark.slow
def test_so_is_one_by_a_run_in_processes(drawn_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"data\.batch_size=10 leaves a batch of a single image to one of 2"):
        run_together(train_small_shares, (drawn_cache, tmp_path / "run"), n_ranks=2)
    assert not (tmp_path / "run" / "run.json").exists()


def slow_run(cache: Path) -> tuple[str, ...]:
    processes = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    return (*TINY, f"data.cache_dir={cache}", *processes, "gallery=0", "trainer.progress_bar=false")


@pytest.mark.slow
def test_a_sweep_of_shared_runs_starts_each_with_its_own_configuration(tmp_path: Path, drawn_cache: Path) -> None:
    arguments = ("seed=0,1", "optimizer=sgd", "trainer.max_epochs=1", "hydra.sweep.dir=sweep")
    outcome = run_program("train", "-m", *slow_run(drawn_cache), *arguments, cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    for seed in (0, 1):
        content = json.loads((tmp_path / "sweep" / str(seed) / "run.json").read_text())
        assert (content["status"], content["config"]["seed"], content["processes"]["all"]) == ("finished", seed, 2)
    assert (tmp_path / "sweep" / "comparison.html").is_file()


@pytest.mark.slow
def test_a_shared_run_that_goes_wrong_says_so_once(tmp_path: Path, drawn_cache: Path) -> None:
    arguments = ("optimizer=sgd", "optimizer.lr=1e30", "data.image_size=33", "hydra.run.dir=run")
    outcome = run_program("train", *slow_run(drawn_cache), *arguments, "data.batch_size=10", cwd=tmp_path)
    assert outcome.status == 1
    assert "at learning rate 1e+30" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (run["status"], run["error"]) == ("failed", outcome.err.strip())


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_a_shared_run_in_order(tmp_path: Path, drawn_cache: Path, number: int, status: int) -> None:
    command = [sys.executable, str(REPOSITORY / "train.py"), *slow_run(drawn_cache), "hydra.run.dir=run"]
    command += ["trainer.max_epochs=500"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as begun:
        deadline = time.monotonic() + 240
        while not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists():
            assert begun.poll() is None, begun.stderr.read()  # type: ignore[union-attr]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        begun.send_signal(number)
        _, err = begun.communicate(timeout=100)
    assert begun.returncode == status, err
    assert err.strip().splitlines()[-1].endswith(f"go on with: python train.py resume={tmp_path / 'run'}")
    assert "Traceback" not in err
    torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["error"] == "interrupted"
