"""Precision of a run, and which runs capture their train step."""

from typing import Literal

import pytest

from breakhis_pl.config import DeviceConfig
from breakhis_pl.errors import ConfigurationError
from breakhis_pl.run_folder import RunRecord
from breakhis_pl.training.performance import reason_against_cuda_graph, resolve_device
from tests.configs import train_config

OTHER_NETWORK = ("model=torchvision", "model.backbone=efficientnet_b0")


@pytest.mark.parametrize("overrides", [(), ("optimizer=sgd",), ("model=resnext50", "training.ema_decay=0.9")])
def test_a_resnet_on_a_gpu_is_captured(overrides: tuple[str, ...]) -> None:
    assert reason_against_cuda_graph(train_config(*overrides), device="cuda", precision="bf16-mixed") is None


@pytest.mark.parametrize(
    ("overrides", "precision", "reason"),
    [
        (("experiment=frozen",), "bf16-mixed", "linear probe"),
        (("trainer=ddp", "trainer.devices=2"), "bf16-mixed", "several processes"),
        (("data.pixels=host",), "bf16-mixed", "data.pixels=host"),
        ((), "16-mixed", "fp16"),
    ],
)
def test_a_step_that_no_graph_can_hold_trains_without_or_is_refused(
    overrides: tuple[str, ...], precision: str, reason: str
) -> None:
    assert reason in str(reason_against_cuda_graph(train_config(*overrides), device="cuda", precision=precision))
    required = train_config(*overrides, "trainer.cuda_graphs=true")
    with pytest.raises(ConfigurationError, match=reason):
        reason_against_cuda_graph(required, device="cuda", precision=precision)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [(OTHER_NETWORK, "not a ResNet"), (("trainer.compile=true",), "compile"), (("trainer.deterministic=true",), "det")],
)
def test_what_has_not_been_tried_is_captured_on_demand_only(overrides: tuple[str, ...], reason: str) -> None:
    assert reason in str(reason_against_cuda_graph(train_config(*overrides), device="cuda", precision="bf16-mixed"))
    required = train_config(*overrides, "trainer.cuda_graphs=true")
    assert reason_against_cuda_graph(required, device="cuda", precision="bf16-mixed") is None
    assert reason_against_cuda_graph(required, device="cpu", precision="32-true") == "the device is cpu"


@pytest.mark.parametrize(
    ("asked", "device", "expected"),
    [
        ("auto", "cpu, 2 cores", "bf16-mixed"),
        ("32-true", "cpu, 2 cores", "32-true"),
        ("auto", "cuda: NVIDIA H100", "32-true"),
    ],
)
def test_a_trained_network_computes_as_in_its_training_if_the_device_is_of_the_same_type(
    asked: Literal["auto", "32-true"], device: str, expected: str
) -> None:
    trained = RunRecord(status="finished", command="", started="", config={}, device=device, precision="bf16-mixed")
    assert resolve_device(DeviceConfig(accelerator="cpu", precision=asked), trained=trained) == ("cpu", expected)


def test_nothing_keeps_two_batches_from_being_learned_by_heart() -> None:
    training = train_config("experiment=best", "debug=overfit").training
    assert (training.mixup, training.label_smoothing, training.ema_decay) == (0, 0, None)
