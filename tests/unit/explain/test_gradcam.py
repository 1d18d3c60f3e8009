from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig

from breakhis_pl.errors import ShapeError
from breakhis_pl.explain.gradcam import BATCH_SIZE, grad_cam


class Tiny(nn.Module):
    """The logits are `weight` times the channels' means of the features, which change in place before."""

    def __init__(self, weight: list[list[float]], layer: nn.Module | None = None, channels_last: bool = False) -> None:
        super().__init__()
        self.layer = nn.Identity() if layer is None else layer
        self.channels_last = channels_last
        self.fc = nn.Linear(3, 2)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor(weight))

    def forward(self, images: Tensor) -> Tensor:
        features = self.layer(images.permute(0, 2, 3, 1) if self.channels_last else images).relu_()
        return self.fc(features.mean(dim=(1, 2) if self.channels_last else (2, 3)))


def make_resnet(name: str = "resnet18") -> nn.Module:
    return models.get_model(name, num_classes=2)


def make_swin() -> nn.Module:
    return models.SwinTransformer([4, 4], 8, depths=[1, 1], num_heads=[1, 2], window_size=[4, 4], num_classes=2)


def make_convnext() -> nn.Module:
    return models.ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=2)


def make_timm_swin() -> nn.Module:
    from timm.models import SwinTransformer

    return SwinTransformer(64, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4, num_classes=2)


def make_timm_convnext() -> nn.Module:
    from timm.models import ConvNeXt

    return ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 8, 16), num_classes=2)


def make_vit() -> nn.Module:
    return models.VisionTransformer(64, 8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16, num_classes=2)


def make_timm_vit() -> nn.Module:
    """A vision transformer with attention pooling, whose keys are as many as their channels."""
    from timm.models import VisionTransformer

    return VisionTransformer(
        64, 16, embed_dim=16, depth=1, num_heads=1, num_classes=2, global_pool="map", class_token=False
    )


def make_images(n: int, size: int = 64) -> Tensor:
    return torch.randn((n, 3, size, size), generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(7)


def stretch(maps: np.ndarray) -> np.ndarray:
    """Stretch maps from 0 to 1."""
    lowest, highest = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
    assert (highest - lowest > 0.05).all()
    return (maps - lowest) / (highest - lowest)


@pytest.mark.parametrize(
    ("make", "layer", "channels_last"),
    [
        (lambda: make_resnet("resnet18"), "layer4", False),
        (lambda: make_resnet("wide_resnet50_2"), "layer4", False),
        (lambda: make_resnet("resnext50_32x4d"), "layer4", False),
        (make_swin, "permute", False),
        (make_convnext, "features", False),
        (make_timm_swin, "norm", True),
        (make_timm_convnext, "stages", False),
    ],
    ids=["resnet18", "wide_resnet50", "resnext50", "swin", "convnext", "timm-swin", "timm-convnext"],
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


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_map_equals_one_computed_by_hand(channels_last: bool) -> None:
    image = torch.zeros(1, 3, 2, 2)
    image[0, 0] = torch.tensor([[4.0, 1.0], [1.0, 1.0]])
    image[0, 1] = torch.tensor([[1.0, 2.0], [1.0, 1.0]])
    image[0, 2] = 1.0
    network = Tiny([[1.0, -2.0, 0.0], [0.0, 2.0, -1.0]], channels_last=channels_last)

    maps = grad_cam(network, image.repeat(2, 1, 1, 1), torch.tensor([0, 1]))

    # channel 0 minus twice channel 1 is 2, -3, -1, -1; twice channel 1 minus channel 2 is 1, 3, 1, 1
    assert maps is not None
    expected = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[1 / 3, 1.0], [1 / 3, 1 / 3]]])
    torch.testing.assert_close(maps, expected)


def test_maps_are_upsampled_bilinearly_before_they_are_scaled() -> None:
    image = torch.zeros(1, 3, 4, 4)
    image[0, 0, :2, :2] = 3.0  # the feature map is 3 in one corner

    maps = grad_cam(Tiny([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], nn.AvgPool2d(2)), image, torch.tensor([0]))

    profile = torch.tensor([1.0, 0.75, 0.25, 0.0])
    assert maps is not None
    torch.testing.assert_close(maps[0], torch.outer(profile, profile))


def test_a_map_is_zero_where_nothing_supports_the_class() -> None:
    maps = grad_cam(Tiny([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]), torch.ones(1, 3, 8, 8), torch.tensor([0]))

    assert maps is not None
    assert torch.count_nonzero(maps) == 0


def test_a_map_does_not_depend_on_the_other_images() -> None:
    network, images, classes = make_resnet(), make_images(BATCH_SIZE + 1), torch.arange(BATCH_SIZE + 1) % 2

    together = grad_cam(network, images, classes)
    alone = grad_cam(network, images[-1:], classes[-1:])

    assert together is not None
    assert alone is not None
    torch.testing.assert_close(together[-1:], alone, atol=1e-4, rtol=0)


def test_a_batch_has_at_most_sixteen_images() -> None:
    sizes: list[int] = []
    network = Tiny([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    network.fc.register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))

    grad_cam(network, make_images(40, size=4), torch.zeros(40, dtype=torch.int64))

    assert sizes == [1, 16, 16, 8]  # the first forward pass finds the feature map


def test_network_and_images_are_left_as_they_were() -> None:
    network, images = make_resnet().train(), make_images(2)
    network.layer2.eval()
    network.conv1.requires_grad_(requires_grad=False)
    network.fc.weight.grad = torch.ones_like(network.fc.weight)
    modes = {name: module.training for name, module in network.named_modules()}
    state = {name: value.clone() for name, value in network.state_dict().items()}
    parameters = {name: (id(value), value.requires_grad) for name, value in network.named_parameters()}
    random_state = torch.get_rng_state()

    grad_cam(network, images, torch.tensor([0, 1]))

    assert {name: module.training for name, module in network.named_modules()} == modes
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert {name: (id(value), value.requires_grad) for name, value in network.named_parameters()} == parameters
    assert {name for name, value in network.named_parameters() if value.grad is not None} == {"fc.weight"}
    assert torch.equal(network.fc.weight.grad, torch.ones_like(network.fc.weight))
    assert not any(module._forward_hooks or module._backward_hooks for module in network.modules())
    assert torch.equal(images, make_images(2))
    assert not images.requires_grad
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_network_that_changes_images_in_place_does_not_change_those_of_the_caller() -> None:
    network = Tiny([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    with torch.inference_mode():
        images = make_images(2, size=4) * 1.0
        grad_cam(network, images, torch.tensor([0, 1]))

    assert torch.equal(images, make_images(2, size=4))


def test_a_network_that_fails_is_left_as_it_was() -> None:
    network = Tiny([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).train()
    with pytest.raises(RuntimeError):
        grad_cam(network, torch.ones(1, 3, 4, 4), torch.tensor([2]))

    assert network.training
    assert network.layer.training
    assert not network.layer._forward_hooks


@pytest.mark.parametrize("context", ["inference mode", "no gradients", "autocast", "frozen"])
def test_the_modes_of_the_caller_change_nothing(context: str) -> None:
    network, classes = make_resnet(), torch.tensor([0, 1])
    expected = grad_cam(network, make_images(2), classes)
    network.requires_grad_(requires_grad=context != "frozen")
    modes = {
        "inference mode": torch.inference_mode(),
        "no gradients": torch.no_grad(),
        "autocast": torch.autocast("cpu", dtype=torch.bfloat16),
    }

    with modes.get(context, nullcontext()):
        maps = grad_cam(network, make_images(2) * 1.0, classes * 1)  # tensors made in the mode

    assert expected is not None
    assert maps is not None
    assert torch.equal(maps, expected)
    assert not maps.requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_maps_computed_on_a_gpu_are_the_same() -> None:
    network, images, classes = make_resnet(), make_images(2), torch.tensor([1, 0])
    expected = grad_cam(network, images, classes)

    maps = grad_cam(network.cuda(), images, classes)

    assert expected is not None
    assert maps is not None
    assert maps.is_cuda
    torch.testing.assert_close(maps.cpu(), expected, atol=0.05, rtol=0)  # convolutions in TF32


@pytest.mark.parametrize("make", [make_vit, make_timm_vit])
def test_a_vision_transformer_has_no_map(make: Callable[[], nn.Module]) -> None:
    assert grad_cam(make(), make_images(2), torch.tensor([0, 1])) is None


def test_of_a_module_called_twice_the_last_output_counts() -> None:
    shared = nn.Identity()
    layer = nn.Sequential(nn.AvgPool2d(1), shared, nn.AdaptiveAvgPool2d(1), shared)  # ends with a single position
    image = torch.zeros(1, 3, 2, 2)
    image[0, 0, 0, 0] = 1.0

    maps = grad_cam(Tiny([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], layer), image, torch.tensor([0]))

    assert maps is not None
    assert maps.tolist() == [[[1.0, 0.0], [0.0, 0.0]]]


@pytest.mark.parametrize(("n_images", "n_classes"), [(2, 1), (1, 2), (0, 0)])
def test_each_image_needs_one_class(n_images: int, n_classes: int) -> None:
    network = Tiny([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    with pytest.raises(ShapeError):
        grad_cam(network, torch.ones(n_images, 3, 4, 4), torch.zeros(n_classes, dtype=torch.int64))
