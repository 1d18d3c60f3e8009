from types import SimpleNamespace
from typing import Any

import lightning.pytorch as L
import pytest
import torch

from breakhis_pl.data.datamodule import Batch
from breakhis_pl.models.classifier import Classifier
from breakhis_pl.training.frozen_start import FrozenStart


def at_epoch(epoch: int) -> Any:
    return SimpleNamespace(current_epoch=epoch)


def step(classifier: Classifier, optimizer: torch.optim.Optimizer) -> set[str]:
    """Names of what a train step changes: parameters and statistics."""
    before = {name: value.clone() for name, value in classifier.network.state_dict().items()}
    images = torch.randn((4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    optimizer.zero_grad()
    classifier.training_step(Batch(images, torch.arange(4) % 2, torch.arange(4)), 0).backward()
    optimizer.step()
    return {name for name, value in classifier.network.state_dict().items() if not torch.equal(value, before[name])}


def test_only_the_head_changes_until_everything_does() -> None:
    classifier, start = Classifier("resnet18", dropout=0.4).train(), FrozenStart(2)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=0.01, weight_decay=0.1)
    for epoch in range(2):
        start.on_train_epoch_start(at_epoch(epoch), classifier)
        changed = step(classifier, optimizer)
        assert changed
        assert all(name.startswith("fc.") for name in changed)
        assert classifier.network.fc[2].training  # its dropout
    start.on_train_epoch_start(at_epoch(2), classifier)
    assert {"conv1.weight", "layer4.1.bn2.running_var", "fc.5.bias"} <= step(classifier, optimizer)
    assert all(module.training for module in classifier.modules())


def test_a_run_that_goes_on_after_the_start_is_not_frozen() -> None:
    classifier = Classifier("resnet18", dropout=0.0).train()
    FrozenStart(2).on_train_epoch_start(at_epoch(2), classifier)
    assert all(parameter.requires_grad for parameter in classifier.parameters())


def test_another_module_is_refused() -> None:
    with pytest.raises(TypeError, match="got LightningModule"):
        FrozenStart(1).on_train_epoch_start(at_epoch(0), L.LightningModule())
