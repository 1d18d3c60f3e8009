from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from breakhis_pl.errors import ShapeError
from breakhis_pl.explain.gradcam import BATCH_SIZE, grad_cam


def make_timm_swin() -> nn.Module:
    from timm.models import SwinTransformer

    return SwinTransformer(64, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4, num_classes=2)


def make_images(n: int, size: int = 64) -> Tensor:
    return torch.randn((n, 3, size, size), generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(7)


@pytest.fixture
def resnet18() -> nn.Module:
    return models.resnet18(num_classes=2)


def stretch(maps: np.ndarray) -> np.ndarray:
    """Stretch maps from 0 to 1."""
    lowest, highest = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
    assert (highest - lowest > 0.05).all()
    return (maps - lowest) / (highest - lowest)


@pytest.mark.parametrize(
    ("make", "layer", "channels_last"),
    [
        (partial(models.resnet18, num_classes=2), "layer4", False),
        (partial(models.wide_resnet50_2, num_classes=2), "layer4", False),
        (partial(models.resnext50_32x4d, num_classes=2), "layer4", False),
        (make_timm_swin, "norm", True),
    ],
    ids=["resnet18", "wide_resnet50", "resnext50", "timm-swin"],
)
def test_maps_equal_those_of_an_independent_implementation(
    make: Callable[[], nn.Module], layer: str, channels_last: bool
) -> None:
    """The reference subtracts the smallest value of a map, this implementation does not.

    Both upsample linearly, so that stretched from 0 to 1 their maps differ by rounding only.
    """
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    network, size = make().eval(), 64 if channels_last else 96
    images, classes = make_images(2, size).repeat(2, 1, 1, 1), torch.tensor([0, 0, 1, 1])
    permute = (lambda features: features.permute(0, 3, 1, 2)) if channels_last else None
    with GradCAM(network, [network.get_submodule(layer)], reshape_transform=permute) as reference:
        expected = reference(images, [ClassifierOutputTarget(index) for index in classes.tolist()])
    maps = grad_cam(network, images, classes)
    assert maps is not None
    assert (maps.shape, maps.dtype) == ((4, size, size), torch.float32)
    shown = expected.max(axis=(1, 2)) > 0
    assert shown.any()
    np.testing.assert_array_equal(maps.amax(dim=(1, 2)).numpy(), shown.astype(np.float32))
    np.testing.assert_allclose(stretch(maps.numpy()[shown]), stretch(expected[shown]), atol=1e-4)


def test_a_map_is_zero_where_nothing_supports_the_class() -> None:
    network = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    nn.init.constant_(network[3].weight, -1)
    maps = grad_cam(network, torch.ones(1, 3, 8, 8), torch.tensor([0]))
    assert maps is not None
    assert torch.count_nonzero(maps) == 0


def test_a_map_does_not_depend_on_the_other_images(resnet18: nn.Module) -> None:
    images, classes = make_images(BATCH_SIZE + 1), torch.arange(BATCH_SIZE + 1) % 2
    together, alone = grad_cam(resnet18, images, classes), grad_cam(resnet18, images[-1:], classes[-1:])
    assert together is not None
    torch.testing.assert_close(together[-1:], alone, atol=1e-4, rtol=0)


def test_network_and_images_are_left_as_they_were(resnet18: nn.Module) -> None:
    network, images = resnet18.train(), make_images(2)
    network.layer2.eval()
    network.conv1.requires_grad_(requires_grad=False)
    network.fc.weight.grad = torch.ones_like(network.fc.weight)
    modes = {name: module.training for name, module in network.named_modules()}
    state = {name: value.clone() for name, value in network.state_dict().items()}
    parameters = {name: (id(value), value.requires_grad) for name, value in network.named_parameters()}
    random_state = torch.get_rng_state()
    grad_cam(network, images, torch.tensor([0, 1]))
    with pytest.raises(RuntimeError):
        grad_cam(network, images, torch.tensor([0, 2]))  # fails after the forward pass
    assert {name: module.training for name, module in network.named_modules()} == modes
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert {name: (id(value), value.requires_grad) for name, value in network.named_parameters()} == parameters
    assert {name for name, value in network.named_parameters() if value.grad is not None} == {"fc.weight"}
    assert torch.equal(network.fc.weight.grad, torch.ones_like(network.fc.weight))
    assert not any(module._forward_hooks or module._backward_hooks for module in network.modules())
    assert torch.equal(images, make_images(2))
    assert not images.requires_grad
    assert torch.equal(torch.get_rng_state(), random_state)


AUTOCAST = partial(torch.autocast, "cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, AUTOCAST, nullcontext])
def test_the_modes_of_the_caller_and_frozen_layers_change_nothing(mode: Any, resnet18: nn.Module) -> None:
    classes = torch.tensor([0, 1])
    expected = grad_cam(resnet18, make_images(2), classes)
    resnet18.requires_grad_(requires_grad=mode is not nullcontext)
    with mode():
        maps = grad_cam(resnet18, make_images(2) * 1.0, classes * 1)  # tensors made in the mode
    assert expected is not None
    assert maps is not None
    assert torch.equal(maps, expected)
    assert not maps.requires_grad


def test_a_vision_transformer_has_no_map() -> None:
    network = models.VisionTransformer(64, 8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16, num_classes=2)
    assert grad_cam(network, make_images(2), torch.tensor([0, 1])) is None


@pytest.mark.parametrize(("n_images", "n_classes"), [(2, 1), (1, 2), (0, 0)])
def test_each_image_needs_one_class(n_images: int, n_classes: int, resnet18: nn.Module) -> None:
    with pytest.raises(ShapeError):
        grad_cam(resnet18, torch.ones(n_images, 3, 4, 4), torch.zeros(n_classes, dtype=torch.int64))
