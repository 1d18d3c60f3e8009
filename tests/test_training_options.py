"""All options of `training` together, with strong augmentation and a schedule with warm-up, as their user runs them."""

import csv
import json
import re
from pathlib import Path

import pytest
import torch

from breakhis_pl import composition
from breakhis_pl.composition import compose_checked
from breakhis_pl.config import TrainingConfig, WarmupCosineConfig
from breakhis_pl.engine import make_optimizers
from breakhis_pl.errors import ConfigurationError
from breakhis_pl.models.classifier import Classifier
from breakhis_pl.models.stages import layer_groups
from breakhis_pl.training.averaging import OWN_WEIGHTS
from breakhis_pl.training.checkpoints import load_checkpoint
from breakhis_pl.training.history import History
from tests.programs import TINY, run_program
from tests.test_resume import assert_equal_runs

EVERYTHING = (
    "augmentation=strong",
    "scheduler=warmup_cosine",
    "training.label_smoothing=0.1",
    "training.mixup=0.4",
    "training.ema_decay=0.9",
    "training.layer_decay=0.5",
    "training.frozen_epochs=1",
)


@pytest.fixture(scope="module")
def arguments(drawn_cache: Path) -> tuple[str, ...]:
    return (*TINY, f"data.cache_dir={drawn_cache}", "trainer.max_epochs=3", "trainer=cpu", "gallery=0", *EVERYTHING)


@pytest.fixture(scope="module")
def uninterrupted(arguments: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    outcome = run_program("train", *arguments, "hydra.run.dir=run", cwd=folder)
    assert outcome.status == 0, outcome.err
    return folder / "run"


@pytest.mark.parametrize("n_done", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_with_everything_that_was_cut_ends_in_the_same_bits(
    arguments: tuple[str, ...], uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_done: int
) -> None:
    original = History.on_train_epoch_end

    def cut(history: History, trainer: object, pl_module: object) -> None:
        if len(history.rows) == n_done:
            raise KeyboardInterrupt
        original(history, trainer, pl_module)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(History, "on_train_epoch_end", cut)
        assert run_program("train", *arguments, "hydra.run.dir=run", cwd=tmp_path).status == 130
    outcome = run_program("train", "resume=run", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    assert_equal_runs(tmp_path / "run", uninterrupted)
    ours, theirs = (
        torch.load(each / "checkpoints" / "last.ckpt")[OWN_WEIGHTS] for each in (tmp_path / "run", uninterrupted)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_averaged_network_is_what_is_evaluated_and_what_others_load(uninterrupted: Path) -> None:
    written = (uninterrupted / "test" / "predictions.csv").read_bytes()
    content = torch.load(uninterrupted / "checkpoints" / "last.ckpt")
    network = load_checkpoint(uninterrupted / "checkpoints" / "last.ckpt").classifier.network
    averaged, own = (content[part]["network.conv1.weight"] for part in ("state_dict", OWN_WEIGHTS))
    assert torch.equal(network.conv1.weight, averaged)  # type: ignore[arg-type]
    assert not torch.equal(averaged, own)
    arguments = (f"run={uninterrupted}", "gallery=0", "trainer.accelerator=cpu")
    outcome = run_program("evaluate", *arguments, cwd=uninterrupted.parent)
    assert outcome.status == 0, outcome.err
    assert (uninterrupted / "test" / "predictions.csv").read_bytes() == written


def test_the_learning_rate_of_a_row_is_the_heads(uninterrupted: Path) -> None:
    with (uninterrupted / "history.csv").open() as table:
        found = [float(row["learning_rate"]) for row in csv.DictReader(table)]
    assert found == pytest.approx([2.5e-4, 5e-4, 2.5e-4])
    run = json.loads((uninterrupted / "run.json").read_text())
    assert run["config"]["training"]["layer_decay"] == 0.5


@pytest.fixture
def _registered() -> None:
    composition.register()


@pytest.mark.usefixtures("_registered")
def test_every_stage_has_its_learning_rate_throughout() -> None:
    config = compose_checked("train", ["training.layer_decay=0.5", "optimizer=sgd", "optimizer.lr=0.8"])
    network = Classifier("resnet18", dropout=0.0).network
    made = make_optimizers(config, layer_groups(network, decay=0.5))
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]  # type: ignore[index, call-overload]
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == [0.8, 0.4, 0.2, 0.1, 0.05, 0.025]
    assert {id(each) for group in optimizer.param_groups for each in group["params"]} == set(
        map(id, network.parameters())
    )
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.9 * rate for rate in rates])


@pytest.mark.usefixtures("_registered")
def test_the_defaults_change_nothing() -> None:
    config = compose_checked("train", [])
    assert config.training == TrainingConfig(
        label_smoothing=0.0, mixup=0.0, ema_decay=None, layer_decay=1.0, frozen_epochs=0
    )
    assert compose_checked("train", ["augmentation=report"]).augmentation == config.augmentation
    network = Classifier("resnet18", dropout=0.0)
    made = make_optimizers(config, network.parameters())
    assert len(made["optimizer"].param_groups) == 1  # type: ignore[index, call-overload]


@pytest.mark.usefixtures("_registered")
def test_the_warm_up_ends_with_the_training() -> None:
    config = compose_checked("train", ["scheduler=warmup_cosine", "trainer.max_epochs=7", "scheduler.warmup_epochs=2"])
    assert config.scheduler == WarmupCosineConfig(T_max=7, warmup_epochs=2, eta_min=0.0)


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["training.label_smoothing=1"], "training.label_smoothing=1.0 is not possible; expected a number at least 0"),
        (["training.mixup=-1"], "training.mixup=-1.0 is not possible"),
        (["training.mixup=0.2", "data.batch_size=1"], "training.mixup=0.2 mixes the images of a batch"),
        (["training.ema_decay=1"], "training.ema_decay=1.0 is not possible; expected a number above 0 and below 1"),
        (["training.layer_decay=0"], "training.layer_decay=0.0 is not possible; expected a number above 0"),
        (["training.layer_decay=1.1"], "training.layer_decay=1.1 is not possible"),
        (["training.frozen_epochs=15"], "training.frozen_epochs=15 is not possible; expected fewer than trainer.max"),
        (["training.frozen_epochs=-1"], "training.frozen_epochs=-1 is not possible"),
        (["training.mixpu=1"], "unknown key training.mixpu (did you mean training.mixup?)"),
        (["scheduler=warmup_cosine", "scheduler.warmup_epochs=15"], "expected fewer than scheduler.T_max=15"),
        (["augmentation.zoom=2"], "augmentation.zoom=2.0 is not possible; expected a number at least 0 and at most 1"),
        (["augmentation.border=white"], "augmentation.border=white is not possible; expected one of black, mirror"),
        (["augmentation.quarter_turn=1.5"], "augmentation.quarter_turn=1.5 is not possible"),
        (["augmentation.hue=0.6"], "augmentation.hue=0.6 is not possible"),
        (["augmentation.stain=1"], "augmentation.stain=1.0 is not possible; expected a number at least 0 and below 1"),
    ],
)
def test_impossible_values_are_refused_at_the_door(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(expected)):
        compose_checked("train", overrides)
