from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision import models

from breakhis_pl.config import ModelConfig
from breakhis_pl.errors import ConfigurationError, WeightsError
from breakhis_pl.models.backbones import Network, build_network
from tests.configs import train_config

FAMILIES = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "maxvit_t"),
    *("mnasnet0_5", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1"),
    *("swin_t", "swin_v2_t", "vgg11", "vit_b_32"),
)
"""A network of each family of torchvision."""


@cache
def default_config() -> ModelConfig:
    return train_config("model=torchvision", "model.weights=none").model


def build(backbone: str, *, image_size: int = 64, n_classes: int = 2, **changes: Any) -> Network:
    config = default_config().model_copy(update={"backbone": backbone, **changes})
    return build_network(config, n_classes=n_classes, image_size=image_size, pretrained=True)


def draw_images(n: int, size: int) -> Tensor:
    return torch.randn((n, 3, size, size), generator=torch.Generator().manual_seed(0))


class EmptyOnMeta(TorchFunctionMode):
    """Build networks without memory: parameters start as torch.empty. torch.device("meta") is too strict for RegNet."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        options = {"device": "meta"} if func is torch.empty else {}
        return func(*args, **{**(kwargs or {}), **options})


@pytest.mark.parametrize("name", ["resnet18", "wide_resnet50_2", "resnext50_32x4d"])
def test_logits_equal_those_of_torchvision_with_the_same_weights(name: str) -> None:
    reference = models.get_model(name, weights=None).eval()
    network = build(name, n_classes=1000).eval()
    network.backbone.load_state_dict({k: v for k, v in reference.state_dict().items() if not k.startswith("fc.")})
    network.head.load_state_dict(reference.fc.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(network(draw_images(2, 64)), reference(draw_images(2, 64)), rtol=0, atol=0)


def test_every_classifier_of_torchvision_loses_its_last_layer_and_nothing_else() -> None:
    names = models.list_models(module=models)
    for name in names:
        with EmptyOnMeta():
            network = build(name, image_size=224)
        n_features = network.head.in_features
        n_published = min(weights.meta["num_params"] for weights in models.get_model_weights(name))
        n_auxiliary = 3_326_696 if name == "inception_v3" else 0
        n_last = (n_features + (name != "maxvit_t")) * 1000  # the last layer of MaxViT has no bias
        n_left = sum(parameter.numel() for parameter in network.backbone.parameters())
        assert n_left + n_last + n_auxiliary == n_published, name


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_of_each_family_computes_logits_and_gradients_of_all_parameters(name: str) -> None:
    size = {"inception_v3": 107, "maxvit_t": 224}.get(name, 64)
    network = build(name, image_size=size)
    assert network.training
    logits = network(draw_images(2, size))
    assert logits.shape == (2, 2)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet10t", None),
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 1}),
        ("vit_tiny_patch16_224", {"dynamic_img_size": True, "depth": 1, "mlp_layer": "SwiGLUPacked", "reg_tokens": 2}),
    ],
)
def test_networks_of_timm_take_arguments(name: str, arguments: dict[str, Any] | None) -> None:
    network = build(name, library="timm", arguments=arguments)
    assert network(draw_images(2, 64)).shape == (2, 2)
    if name.startswith("vit"):
        assert len(network.backbone.blocks) == 1


@pytest.mark.parametrize(("head", "n_layers"), [("mlp", 3), ("linear", 1)])
def test_the_head_has_the_layers_of_its_kind(head: str, n_layers: int) -> None:
    network = build("resnet18", head=head, n_classes=8, dropout=0.3)
    layers = [module for module in network.head.modules() if isinstance(module, nn.Linear)]
    assert (layers[0].in_features, layers[-1].out_features, len(layers)) == (512, 8, n_layers)
    assert [module.p for module in network.head.modules() if isinstance(module, nn.Dropout)] == [0.3] * (n_layers > 1)


@pytest.mark.parametrize(
    ("backbone", "changes", "named"),
    [
        ("resnt50", {}, "resnet50"),
        ("vit_smal_patch16_224", {"library": "timm"}, "vit_small_patch16_224"),
        ("hf-hub:someone/else", {"library": "timm"}, "hf-hub:someone/else"),
        ("resnet10t.nonsense", {"library": "timm"}, "nonsense"),
        ("resnet10t", {"library": "timm", "arguments": {"depth": 3}}, "depth"),
        ("vit_tiny_patch16_224", {"library": "timm"}, "data.image_size=64"),
        ("vit_tiny_patch16_224", {"library": "timm", "arguments": {"img_size": 64, "global_pool": ""}}, "global_pool"),
        ("inception_v3", {}, "data.image_size=64"),
        ("alexnet", {"image_size": 62}, "data.image_size=62"),
        ("vit_b_16", {"image_size": 100}, "data.image_size=100"),
        ("maxvit_t", {"image_size": 256}, "data.image_size=256"),
    ],
)
def test_a_network_that_cannot_be_built_or_run_is_refused(backbone: str, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        build(backbone, **changes)


def test_layer_decay_of_timm_finds_the_head() -> None:
    from timm.optim import param_groups_layer_decay

    network = build("resnet18", head="linear")
    groups = param_groups_layer_decay(network, layer_decay=0.5)
    scales = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    assert {scales[id(parameter)] for parameter in network.head.parameters()} == {1.0}
    assert scales[id(network.backbone.conv1.weight)] < scales[id(network.backbone.layer4[1].conv2.weight)] < 1


def test_imagenet_weights_come_from_the_cache_of_torch_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub/checkpoints/resnet18-f37072fd.pth"
    with pytest.raises(WeightsError, match=str(path)):  # not there; pytest-socket allows no connection
        build("resnet18", weights="imagenet")
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: torch.rand_like(value.float()) for name, value in models.resnet18().state_dict().items()}
    torch.save({name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}, path)
    assert torch.equal(build("resnet18", weights="imagenet").backbone.bn1.bias, state["bn1.bias"])
    path.write_bytes(b"damaged")
    with pytest.raises(WeightsError, match=str(path)):
        build("resnet18", weights="imagenet")


def test_a_failed_download_of_timm_is_a_weights_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    def fail(*_: object, pretrained: bool, **__: object) -> None:
        assert pretrained
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(WeightsError, match="no route to host"):
        build("resnet10t", library="timm", weights="imagenet")


def test_weights_are_not_looked_for_when_a_checkpoint_follows() -> None:
    config = default_config().model_copy(update={"backbone": "resnet18", "weights": "nowhere.pth"})
    build_network(config, n_classes=2, image_size=64, pretrained=False)
    with pytest.raises(WeightsError, match=r"nowhere\.pth"):
        build_network(config, n_classes=2, image_size=64, pretrained=True)
