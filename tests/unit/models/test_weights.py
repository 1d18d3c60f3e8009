import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from breakhis_pl.errors import WeightsError
from breakhis_pl.models.weights import find_state, load_weights

State = dict[str, Tensor]


def make_resnet(*layers: int) -> nn.Module:
    network = models.ResNet(models.resnet.BasicBlock, list(layers or (2, 2, 2, 2)))
    network.fc = nn.Identity()
    return network


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    return make_resnet()


@pytest.fixture(scope="module")
def body(resnet18: nn.Module) -> State:
    """Random weights for all layers of the backbone."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.rand(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in resnet18.state_dict().items()
    }


def add_prefix(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def zeros(state: State) -> State:
    return {name: torch.zeros_like(value) for name, value in state.items()}


def optimizer_state() -> dict[str, Any]:
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW([{"params": [layer.weight]}, {"params": [layer.bias], "weight_decay": 0.0}])
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


FC = {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
TWO_LAYERS = {"fc.1.weight": torch.zeros(512, 512), "fc.3.weight": torch.zeros(128, 512)}
EXTRAS = {"arch": "resnet18", "args": argparse.Namespace(lr=0.1), "optimizer": optimizer_state(), "m": np.float64(0.7)}
FORMS: dict[str, Callable[[State], Any]] = {
    "plain": lambda body: body,
    "with its head": lambda body: body | FC,
    "self-supervised, with a head of two layers": lambda body: {
        **{"epoch": 9, "pytorch-lightning_version": "0.9.0"},
        "state_dict": add_prefix("model.resnet.", body | TWO_LAYERS),
    },
    "timm's trainer": lambda body: EXTRAS | {"state_dict": zeros(body) | FC, "state_dict_ema": body | FC},
    "DINO": lambda body: {
        **EXTRAS,
        "student": add_prefix("module.backbone.", zeros(body)),
        "teacher": add_prefix("backbone.", body) | {"head.mlp.0.weight": torch.zeros(4, 4)},
        "dino_loss": {"center": torch.zeros(1, 8)},
    },
    "MoCo": lambda body: {
        "state_dict": add_prefix("module.encoder_q.", body | FC)
        | add_prefix("module.encoder_k.", zeros(body))
        | {"module.queue": torch.zeros(2, 2)}
    },
    "data parallel": lambda body: add_prefix("module.", body | FC),
    "compiled": lambda body: add_prefix("_orig_mod.", body | FC),
    "Lightning, compiled": lambda body: {"state_dict": add_prefix("net._orig_mod.", body | FC)},
    "this project's": lambda body: {
        "state_dict": add_prefix("network.backbone.", body) | {"network.head.0.weight": torch.zeros(256, 512)}
    },
    "before torch 0.4.1": lambda body: {name: value for name, value in body.items() if "num_batches" not in name},
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_loaded_in_every_form(form: str, resnet18: nn.Module, body: State, tmp_path: Path) -> None:
    torch.save(FORMS[form](body), tmp_path / "weights.pth")
    check_loaded(resnet18, tmp_path / "weights.pth", body)


def test_weights_in_half_precision_are_converted(resnet18: nn.Module, body: State, tmp_path: Path) -> None:
    half = {name: value.bfloat16() if value.is_floating_point() else value for name, value in body.items()}
    torch.save(half, tmp_path / "weights.pth")
    check_loaded(resnet18, tmp_path / "weights.pth", half)
    assert resnet18.conv1.weight.dtype == torch.float32


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.bin"])
def test_safetensors_are_read_whatever_their_name(name: str, resnet18: nn.Module, body: State, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(add_prefix("encoder.", body), tmp_path / name)
    check_loaded(resnet18, tmp_path / name, body)


def check_loaded(network: nn.Module, path: Path, expected: State) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(-1)
    load_weights(network, path)
    for name, value in network.state_dict().items():
        if "num_batches" not in name:
            assert torch.equal(value, expected[name].to(value.dtype)), name


class Payload:
    """Makes a folder if it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("is_zip", [True, False])
def test_code_in_a_file_is_refused_and_does_not_run(
    is_zip: bool, resnet18: nn.Module, body: State, tmp_path: Path
) -> None:
    content = {"state_dict": body, "extra": Payload(tmp_path / "ran")}
    torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(WeightsError, match="mkdir" if is_zip else "weights.pth"):
        load_weights(resnet18, tmp_path / "weights.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("pointer.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n", "git lfs pull"),
        ("empty.pth", b"", r"empty\.pth"),
        ("page.pth", b"<!DOCTYPE html><html></html>", r"page\.pth"),
        ("broken.safetensors", b"\xff" * 64, r"broken\.safetensors"),
        ("module.pth", nn.Linear(2, 2), "Linear"),
        ("numbers.pth", {"epoch": 3}, r"numbers\.pth"),
        ("list.pth", [torch.ones(2)], r"list\.pth"),
        ("nowhere.pth", None, r"nowhere\.pth"),
        (".", None, ""),
    ],
)
def test_files_without_weights_are_refused_by_name(
    name: str, content: object, named: str, resnet18: nn.Module, tmp_path: Path
) -> None:
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / name)
    with pytest.raises(WeightsError, match=named or tmp_path.name):
        load_weights(resnet18, tmp_path / name)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda _: make_resnet(2, 3, 2, 2).state_dict(), r"layer2\.2"),
        (lambda _: make_resnet(2, 2, 1, 2).state_dict(), r"layer3\.1"),
        (lambda body: add_prefix("module.", body | {"conv1.weight": torch.zeros(64, 1, 7, 7)}), r"conv1\.weight"),
        (lambda body: {**body, "conv1.weight": torch.zeros(64, 3, 7, 7, dtype=torch.int8)}, r"conv1\.weight"),
        (lambda body: {**body, "bn1.bias": torch.full((64,), torch.nan)}, r"bn1\.bias"),
        (lambda _: {"features.weight": torch.zeros(2)}, r"conv1\.weight"),
    ],
)
def test_weights_of_another_network_are_refused_and_nothing_is_loaded(
    change: Callable[[State], State], named: str, body: State, tmp_path: Path
) -> None:
    network = make_resnet()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.save(change(body), tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=named):
        load_weights(network, tmp_path / "weights.pth")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_network_that_has_all_names_is_used_before_one_that_has_some() -> None:
    one, two = torch.ones(1), torch.full((1,), 2.0)
    content = {"a": {"x.weight": one}, "b": {"net.x.weight": two, "net.y.weight": two}}
    assert find_state(content, ["x.weight", "y.weight"]) == {"x.weight": two, "y.weight": two}


def test_position_embeddings_are_interpolated_to_another_image_size(tmp_path: Path) -> None:
    def make_vit(image_size: int) -> models.VisionTransformer:
        return models.VisionTransformer(
            image_size=image_size, patch_size=16, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8
        )

    state = make_vit(96).state_dict()
    state["encoder.pos_embedding"] = torch.ones(1, 37, 8, dtype=torch.float16)
    torch.save(state, tmp_path / "weights.pth")
    network = make_vit(64)
    load_weights(network, tmp_path / "weights.pth")
    torch.testing.assert_close(network.encoder.pos_embedding.detach(), torch.ones(1, 17, 8))
    torch.save(state | {"encoder.pos_embedding": torch.ones(1, 36, 8)}, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="pos_embedding"):
        load_weights(network, tmp_path / "weights.pth")


def test_a_classifier_inside_a_container_is_ignored(tmp_path: Path) -> None:
    original = models.mobilenet_v3_small()
    torch.save(original.state_dict(), tmp_path / "weights.pth")
    network = models.mobilenet_v3_small()
    network.classifier[3] = nn.Identity()
    load_weights(network, tmp_path / "weights.pth")
    assert torch.equal(network.classifier[0].weight, original.classifier[0].weight)
