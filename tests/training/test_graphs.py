"""CUDA graphs where there is no GPU: what surrounds the capture. The capture itself is tested where there is one."""

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch import Tensor, nn

from breakhis_pl.errors import TrainingError
from breakhis_pl.models.classifier import Classifier
from breakhis_pl.training.graphs import CudaGraphs, capture

SAMPLE = torch.zeros((4, 3, 32, 32))


def captured_without_gpu(module: nn.Module, arguments: tuple[Tensor, ...]) -> Callable[..., Any]:
    """Stands for `torch.cuda.make_graphed_callables`: its warm-up, and another `forward` put into the module."""
    for _ in range(3):
        module(*arguments).sum().backward()
    before = module.forward

    def replayed(images: Tensor) -> Tensor:
        assert images.shape == arguments[0].shape, "a graph takes one shape"
        return before(images)

    module.forward = replayed  # type: ignore[method-assign]
    return module


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", captured_without_gpu)


@pytest.mark.usefixtures("without_gpu")
def test_capturing_leaves_no_trace_in_the_network() -> None:
    network = Classifier("resnet18", dropout=0.4).network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    forward = network.forward
    capture(network, SAMPLE)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert network.forward == forward


@pytest.mark.usefixtures("without_gpu")
def test_only_full_train_batches_take_the_graph() -> None:
    classifier = Classifier("resnet18", dropout=0.0).train()
    replay = capture(classifier.network, SAMPLE)
    calls = []

    def graphed(images: Tensor) -> Tensor | None:
        calls.append((len(images), logits := replay(images)))
        return logits

    classifier.graphed_network = graphed
    for n_images in (4, 3):
        images = torch.randn((n_images, 3, 32, 32))
        loss = classifier.training_step(batch_of(images), 0)
        loss.backward()
        assert classifier.network.conv1.weight.grad is not None
    assert [(n_images, logits is None) for n_images, logits in calls] == [(4, False), (3, True)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_graph_trains_like_the_network_it_was_made_of() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn((n, 3, 64, 64), generator=generator).cuda() for n in (8, 8, 5, 8)]
    losses = {}
    for is_graphed in (False, True):
        classifier = Classifier("resnet18", dropout=0.4).cuda().train()
        optimizer = torch.optim.Adamax(classifier.parameters(), lr=5e-4)
        if is_graphed:
            sample = torch.zeros((8, 3, 64, 64), device="cuda").contiguous(memory_format=torch.channels_last)
            classifier.graphed_network = capture(classifier.network, sample)
        losses[is_graphed] = []
        for step, images in enumerate(batches):
            torch.manual_seed(step)
            loss = classifier.training_step(batch_of(images.contiguous(memory_format=torch.channels_last)), step)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[is_graphed].append(loss.item())
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)


def test_steps_are_captured_once_and_not_before_all_layers_are_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    captured = []

    def noted(network: nn.Module, sample: Tensor) -> Callable[[Tensor], Tensor]:
        captured.append((epoch, sample.shape))
        return network.forward

    monkeypatch.setattr("breakhis_pl.training.graphs.capture", noted)
    classifier = Classifier("resnet18", dropout=0.0)
    callback = CudaGraphs(batch_size=4, image_size=32, memory_format=torch.channels_last, first_epoch=2)
    for epoch in range(4):
        trainer: Any = SimpleNamespace(
            current_epoch=epoch, precision_plugin=SimpleNamespace(forward_context=nullcontext)
        )
        callback.on_train_epoch_start(trainer, classifier)
    assert captured == [(2, (4, 3, 32, 32))]
    callback.on_train_end(trainer, classifier)
    assert classifier.graphed_network is None
    with pytest.raises(TypeError, match="got LightningModule"):
        callback.on_train_epoch_start(trainer, L.LightningModule())


def not_capturable(_: nn.Module, __: tuple[Tensor, ...]) -> Callable[..., Any]:
    raise RuntimeError("operation not permitted when stream is capturing\nmore")


def test_a_network_that_cannot_be_captured_is_trained_without_unless_graphs_were_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def spoiling(module: nn.Module, arguments: tuple[Tensor, ...]) -> Callable[..., Any]:
        module(*arguments).sum().backward()
        return not_capturable(module, arguments)

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", spoiling)
    classifier = Classifier("resnet18", dropout=0.0).train()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    sizes: Any = {"batch_size": 4, "image_size": 32, "memory_format": torch.channels_last}
    trainer: Any = SimpleNamespace(current_epoch=0, precision_plugin=SimpleNamespace(forward_context=nullcontext))
    by_itself = CudaGraphs(**sizes, is_asked=False)
    with caplog.at_level("INFO"):
        by_itself.on_train_epoch_start(trainer, classifier)
        by_itself.on_train_epoch_start(trainer, classifier)
    assert caplog.messages == ["trained without CUDA graphs: operation not permitted when stream is capturing"]
    assert classifier.graphed_network is None
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())
    assert all(parameter.grad is None for parameter in classifier.parameters())
    with pytest.raises(TrainingError, match="cuda_graphs=true is not possible here: operation not permitted when str"):
        CudaGraphs(**sizes).on_train_epoch_start(trainer, classifier)


def test_a_lack_of_memory_stays_one_where_graphs_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", out_of_memory)
    trainer: Any = SimpleNamespace(current_epoch=0, precision_plugin=SimpleNamespace(forward_context=nullcontext))
    callback = CudaGraphs(batch_size=4, image_size=32, memory_format=torch.channels_last)
    with pytest.raises(torch.OutOfMemoryError):
        callback.on_train_epoch_start(trainer, Classifier("resnet18", dropout=0.0))


def batch_of(images: Tensor) -> Any:
    from breakhis_pl.data.datamodule import Batch

    n_images = len(images)
    targets = torch.arange(n_images, device=images.device) % 2
    return Batch(images=images, targets=targets, rows=torch.arange(n_images, device=images.device))
