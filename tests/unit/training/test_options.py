"""Options of training reach the part that they are for."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from torch.nn import functional

from breakhis_pl.models.backbones import build_network
from breakhis_pl.models.classifier import Classifier
from breakhis_pl.run_folder import RunFolder
from breakhis_pl.train import make_classifier, make_data
from breakhis_pl.training.callbacks import HeadWarmup
from breakhis_pl.training.trainer import make_optimizers, make_trainer, warmup_cosine
from tests.configs import train_config
from tests.programs import TINY


@pytest.fixture
def make(synthetic_cache: Path) -> Any:
    """Build the classifier of a run, and its data."""

    def make_one(*overrides: str) -> tuple[Classifier, Any]:
        config = train_config(*TINY, f"data.cache_dir={synthetic_cache}", *overrides)
        data = make_data(config, device="cpu", evaluate_on=())
        return make_classifier(config, data, pretrained=False), data

    return make_one


def test_class_weights_and_label_smoothing_reach_the_loss(make: Any) -> None:
    classifier, data = make("data.balance=loss", "training.label_smoothing=0.1")
    logits, targets = torch.tensor([[2.0, -1.0], [0.5, 1.0], [3.0, 0.0]]), torch.tensor([0, 1, 1])
    losses = functional.cross_entropy(logits, targets, data.class_weights, label_smoothing=0.1, reduction="none")
    assert float(classifier.train_loss(logits, targets)) == pytest.approx(float(losses.mean()))
    assert float(losses.mean()) != pytest.approx(float(functional.cross_entropy(logits, targets)), rel=0.05)


def test_dropout_and_mixup_are_a_function_of_seed_epoch_and_step(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {}
    for seed in (0, 1):
        classifier, _ = make("training.mixup=0.4", f"seed={seed}")
        for epoch in (0, 1, 0):
            monkeypatch.setattr(Classifier, "current_epoch", epoch)
            for step in (0, 1):
                classifier.on_train_batch_start(None, step)
                found = (float(classifier.mixup_fraction), float(torch.rand(())))
                assert drawn.setdefault((seed, epoch, step), found) == found
    fractions, numbers = (set(each) for each in zip(*drawn.values(), strict=True))
    assert len(fractions) == len(numbers) == 8
    assert all(0 <= fraction < 1 for fraction in fractions)


def test_a_frozen_backbone_is_not_trained_and_another_seed_gives_another_head(make: Any) -> None:
    networks = (make("model.freeze=true", "model.weights=imagenet", f"seed={seed}")[0].network for seed in (0, 1))
    first, other = networks
    assert not any(parameter.requires_grad for parameter in first.backbone.parameters())
    assert all(parameter.requires_grad for parameter in first.head.parameters())
    assert not first.backbone.training
    assert not torch.equal(first.head[0].weight, other.head[0].weight)


def test_only_the_head_trains_in_the_first_epochs(make: Any) -> None:
    classifier, _ = make()
    for epoch, trains in ((0, False), (1, False), (2, True)):
        HeadWarmup(2).on_train_epoch_start(SimpleNamespace(current_epoch=epoch), classifier)  # type: ignore[arg-type]
        assert {parameter.requires_grad for parameter in classifier.network.backbone.parameters()} == {trains}
        assert classifier.network.backbone.training is trains
        assert all(parameter.requires_grad for parameter in classifier.network.head.parameters())


def test_layer_decay_lowers_the_learning_rate_of_early_layers() -> None:
    config = train_config("training.layer_decay=0.5", "model.weights=none", "model.head=linear")
    network = build_network(config.model, n_classes=2, image_size=64, pretrained=False)
    made: Any = make_optimizers(config, network)
    rates = {id(each): group["lr"] for group in made["optimizer"].param_groups for each in group["params"]}
    first, last = network.backbone.conv1.weight, network.backbone.layer4[1].conv2.weight  # type: ignore[union-attr, index]
    assert rates[id(first)] < rates[id(last)] < rates[id(network.head.weight)] == config.optimizer.lr


def test_warmup_cosine_rises_linearly_and_falls_as_half_a_cosine() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, rates = warmup_cosine(optimizer, T_max=6, warmup_epochs=2, eta_min=0.1), []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    cosine = [0.1 + 0.45 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(5)]
    assert rates == pytest.approx([1 / 3, 2 / 3, *cosine])


@pytest.mark.parametrize(("monitor", "mode"), [("val_loss", "min"), ("val_auroc", "max"), ("val_accuracy", "max")])
def test_a_monitor_selects_its_better_epochs_and_patience_stops(tmp_path: Path, monitor: str, mode: str) -> None:
    config = train_config("data.val_fraction=0.2", f"trainer.monitor={monitor}", "trainer.patience=3")
    trainer = make_trainer(config, RunFolder(tmp_path), device="cpu", precision="32-true")
    (stopping,) = trainer.early_stopping_callbacks
    (best,) = (each for each in trainer.checkpoint_callbacks if each.monitor is not None)  # type: ignore[attr-defined]
    assert (stopping.monitor, stopping.mode, stopping.patience) == (monitor, mode, 3)
    assert (best.monitor, best.mode) == (monitor, mode)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("override", "kind"), [("training.ema_decay=0.9", EMAWeightAveraging), ("training.frozen_epochs=2", HeadWarmup)]
)
def test_an_option_adds_its_callback(tmp_path: Path, override: str, kind: type[Callback]) -> None:
    for overrides, n in (((), 0), ((override,), 1)):
        trainer = make_trainer(train_config(*overrides), RunFolder(tmp_path), device="cpu", precision="32-true")
        assert sum(isinstance(each, kind) for each in trainer.callbacks) == n  # type: ignore[attr-defined]


def test_deterministic_algorithms_are_those_of_torch(tmp_path: Path) -> None:
    for value in ("true", "false"):
        config = train_config(f"trainer.deterministic={value}")
        make_trainer(config, RunFolder(tmp_path), device="cpu", precision="32-true")
        assert torch.are_deterministic_algorithms_enabled() is (value == "true")
