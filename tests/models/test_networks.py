from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from breakhis_pl.data.datamodule import Batch
from breakhis_pl.errors import ConfigurationError
from breakhis_pl.evaluation.feature_maps import last_feature_map
from breakhis_pl.evaluation.gradcam import grad_cam
from breakhis_pl.models.classifier import Classifier
from breakhis_pl.models.networks import (
    Network,
    NetworkSpec,
    build,
    build_on_paper,
    head_of,
    stages,
    takes_single_images,
)
from breakhis_pl.models.torchvision_networks import imagenet_weights

AUXILIARY_OF_INCEPTION = 3_326_696
"""Parameters of the classifier at the side that is left out, which torchvision counts."""

SMALL: dict[str, tuple[int, str | None]] = {
    "alexnet": (64, "avgpool"),
    "squeezenet1_1": (64, "features"),
    "densenet121": (64, "features"),
    "mobilenet_v3_small": (64, "features"),
    "googlenet": (64, "inception5b"),
    "inception_v3": (107, "Mixed_7c"),
    "shufflenet_v2_x0_5": (64, "conv5"),
    "efficientnet_b0": (64, "features"),
    "regnet_y_400mf": (64, "trunk_output"),
    "convnext_tiny": (64, "features"),
    "swin_t": (64, "permute"),
    "vit_b_32": (64, None),
}
"""A network of each family: an image size, and the module whose output Grad-CAM explains."""


def images(n: int, size: int) -> torch.Tensor:
    return torch.randn((n, 3, size, size), generator=torch.Generator().manual_seed(0))


def test_every_network_of_torchvision_loses_its_last_layer_and_nothing_else() -> None:
    for name in models.list_models(module=models):
        network = build_on_paper(NetworkSpec(name, "torchvision", head="linear"))
        assert isinstance(network, Network)
        assert isinstance(network.head, nn.Linear)
        n_features = network.head.in_features
        n_published = imagenet_weights(name).meta["num_params"] - (AUXILIARY_OF_INCEPTION if "inception" in name else 0)
        n_left = sum(parameter.numel() for parameter in network.backbone.parameters())
        n_last = (n_features + (name != "maxvit_t")) * 1000  # MaxViT's last layer has no bias
        assert n_left + n_last == n_published, name


@pytest.mark.parametrize("name", SMALL)
def test_a_network_of_each_family_is_trained_and_explained(name: str) -> None:
    size, module = SMALL[name]
    network = build(NetworkSpec(name, "torchvision", head="linear", image_size=size))
    logits = network(images(2, size))
    assert logits.shape == (2, 2)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    found = last_feature_map(network.eval(), images(1, size))
    assert (found and found.module) == (module and f"backbone.{module}")
    if found is not None:
        maps = grad_cam(network, images(2, size), torch.tensor([0, 1]))
        assert maps.shape == (2, size, size)
        assert maps.isfinite().all()


@pytest.mark.parametrize(
    ("name", "arguments", "module"),
    [
        ("resnet10t", {}, "backbone.layer4"),
        ("vit_tiny_patch16_224", {"img_size": 64, "init_values": 1e-5}, None),
        ("vit_tiny_patch16_224", {"dynamic_img_size": True, "mlp_layer": "SwiGLUPacked", "reg_tokens": 2}, None),
        ("swin_tiny_patch4_window7_224", {"img_size": 64}, "backbone.norm"),
    ],
)
def test_networks_of_timm_are_built_from_plain_values(name: str, arguments: dict[str, Any], module: str | None) -> None:
    network = build(NetworkSpec(name, "timm", arguments, head="linear", image_size=64))
    network(images(2, 64)).sum().backward()
    found = last_feature_map(network.eval(), images(1, 64))
    assert (found and found.module) == module
    if found is not None:
        assert found.is_channels_first == (name == "resnet10t")
        assert grad_cam(network, images(2, 64), torch.tensor([0, 1])).amax() <= 1


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (
            NetworkSpec("vit_tiny_patch16_224", "timm", image_size=64),
            r"cannot take images of data\.image_size=64 pixels",
        ),
        (NetworkSpec("resnet10t", "timm", {"depth": 3}), r"cannot be built with model\.arguments=\{'depth': 3\}"),
        (NetworkSpec("resnet10t.nonsense", "timm"), "resnet10t.nonsense cannot be built"),
        (NetworkSpec("resnet10t", "timm", {"checkpoint_path": "x"}), "model.arguments has 'checkpoint_path'"),
        (NetworkSpec("nonsense", "torchvision"), "torchvision has no such network"),
        (NetworkSpec("resnet18", "elsewhere"), "model.library=elsewhere is not possible"),
    ],
)
def test_what_cannot_be_built_is_refused(spec: NetworkSpec, expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        build(spec)


@pytest.mark.parametrize(
    ("spec", "first", "n_stages"),
    [
        (NetworkSpec("resnet18"), "conv1", 7),
        (NetworkSpec("vit_b_32", "torchvision", image_size=64), "stem", 17),
        (NetworkSpec("convnext_tiny", "torchvision"), "features.0", 10),
    ],
)
def test_stages_hold_every_parameter_once_from_stem_to_head(spec: NetworkSpec, first: str, n_stages: int) -> None:
    network = build_on_paper(spec)
    found = stages(network)
    assert (found[0][0], found[-1][0], len(found)) == (first, "head", n_stages)
    given = [parameter for _, parameters in found for parameter in parameters]
    assert len(given) == len(set(given))
    assert set(given) == set(network.parameters())
    assert {id(parameter) for parameter in head_of(network).parameters()} == {id(each) for each in found[-1][1]}


def test_batch_norm_takes_no_single_values_unless_it_is_frozen() -> None:
    assert not takes_single_images(NetworkSpec("resnet50", "torchvision", image_size=32))
    assert takes_single_images(NetworkSpec("resnet50", "torchvision", image_size=32, is_frozen=True))
    assert takes_single_images(NetworkSpec("swin_t", "torchvision", image_size=32))


@pytest.mark.parametrize(
    ("spec", "title"),
    [
        (NetworkSpec("resnet18"), "ResNet-18"),
        (NetworkSpec("resnet18", head="linear", is_frozen=True), "ResNet-18, frozen, linear head"),
        (NetworkSpec("vit_b_16", "torchvision", head="svm"), "vit_b_16, svm head"),
    ],
)
def test_titles_say_what_is_not_the_reports(spec: NetworkSpec, title: str) -> None:
    assert spec.title == title


def test_of_a_frozen_network_only_the_head_learns_and_statistics_stay() -> None:
    given: list[nn.Parameter] = []
    classifier = Classifier("resnet18", dropout=0.0, is_frozen=True, make_optimizers=given.extend)
    classifier.configure_optimizers()
    assert set(given) == set(classifier.network.fc.parameters())
    assert not classifier.network.layer4.training  # Lightning trains a module in the mode it finds
    classifier.eval().train()
    assert classifier.network.fc.training
    assert not classifier.network.layer4.training
    statistics = classifier.network.bn1.running_mean.clone()
    classifier.training_step(Batch(images(4, 32), torch.tensor([0, 1, 0, 1]), torch.arange(4)), 0).backward()
    assert torch.equal(classifier.network.bn1.running_mean, statistics)
    assert classifier.network.conv1.weight.grad is None
    assert classifier.network.fc[0].weight.grad is not None


def test_the_hinge_loss_is_the_squared_margin_worked_by_hand() -> None:
    classifier = Classifier("resnet18", dropout=0.0, head="svm")
    logits, targets = torch.tensor([[2.0, 0.0], [0.5, 0.0], [0.0, 1.5]]), torch.tensor([0, 0, 0])
    # margins 2, 0.5 and -1.5: what is missing to 1 is 0, 0.5 and 2.5; the mean over both classes halves the squares
    expected = (0.0 + 0.25 + 6.25) / 2 / 3
    assert classifier.loss_function(logits, targets).item() == pytest.approx(expected)
