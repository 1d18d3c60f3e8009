from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from breakhis_pl.errors import ConfigurationError, ShapeError
from breakhis_pl.evaluation import gradcam
from breakhis_pl.evaluation.feature_maps import FeatureMap
from breakhis_pl.evaluation.gallery import picture_content, read_gallery
from breakhis_pl.evaluation.gradcam import explain, explain_predictions, grad_cam
from breakhis_pl.evaluation.predictions import Predictions
from breakhis_pl.models.backbones import build_network
from tests.configs import train_config


class Tiny(nn.Module):
    """Its last block hands on the three channels; the logits are `weight` times their means."""

    def __init__(self, weight: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.layer4 = nn.Identity()
        self.fc = nn.Linear(3, 2)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor(weight))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.layer4(images).mean(dim=(2, 3)))


def network_of(name: str) -> nn.Module:
    torch.manual_seed(7)
    return build_network(train_config(f"model={name}").model, n_classes=2, image_size=64, pretrained=False)


def images_of_noise(n: int, size: int = 64) -> Tensor:
    return torch.randn((n, 3, size, size), generator=torch.Generator().manual_seed(3))


def from_zero_to_one(maps: np.ndarray) -> np.ndarray:
    lowest, highest = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
    assert (highest - lowest > 0.05).all()
    return (maps - lowest) / (highest - lowest)


@pytest.mark.parametrize("name", ["resnet18", "wide_resnet50", "resnext50"])
def test_maps_are_those_of_an_independent_implementation(name: str) -> None:
    """The other one subtracts the smallest value of the small map and adds 1e-7 to its largest, this one does not.

    Both upsample linearly, so each map of one is a stretched and shifted map of the other: stretched from 0 to 1 again,
    they differ by rounding only.
    """
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    images, classes = images_of_noise(4), torch.tensor([0, 1, 1, 0])
    other = network_of(name)
    with GradCAM(model=other, target_layers=[other.backbone.layer4]) as reference:
        expected = reference(images, [ClassifierOutputTarget(index) for index in classes.tolist()])

    maps = grad_cam(network_of(name), images, classes).numpy()

    assert maps.dtype == np.float32
    shown = expected.max(axis=(1, 2)) > 0
    assert shown.any()
    np.testing.assert_array_equal(maps.max(axis=(1, 2)), shown.astype(np.float32))
    np.testing.assert_allclose(from_zero_to_one(maps[shown]), from_zero_to_one(expected[shown]), atol=1e-4)


def test_a_map_worked_by_hand() -> None:
    image = torch.zeros(1, 3, 2, 2)
    image[0, 0] = torch.tensor([[4.0, 0.0], [1.0, 0.0]])
    image[0, 1] = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    network = Tiny([[1.0, -2.0, 0.0], [0.0, 1.0, 5.0]])

    maps = grad_cam(network, image.repeat(2, 1, 1, 1), torch.tensor([0, 1]))

    # channel 0 minus twice channel 1 is 4, -2, -1, 0; channel 1 alone is 0, 1, 1, 0
    assert maps.tolist() == [[[1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]]


def test_small_maps_are_upsampled_bilinearly_and_then_reach_one() -> None:
    network = Tiny([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    network.layer4 = nn.AvgPool2d(2)
    image = torch.zeros(1, 3, 4, 4)
    image[0, 0, :2, :2] = 3.0  # the small map is 3 in one corner

    maps = grad_cam(network, image, torch.tensor([0]))

    profile = torch.tensor([1.0, 0.75, 0.25, 0.0])
    torch.testing.assert_close(maps[0], torch.outer(profile, profile))


def test_where_nothing_speaks_for_the_class_the_map_is_zero() -> None:
    maps = grad_cam(Tiny([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]), torch.ones(1, 3, 8, 8), torch.tensor([0]))

    assert torch.count_nonzero(maps) == 0


def test_an_image_is_explained_alike_in_any_batch() -> None:
    network, images, classes = network_of("resnet18"), images_of_noise(3), torch.tensor([1, 0, 1])

    together = grad_cam(network, images, classes)
    alone = torch.cat([grad_cam(network, images[i : i + 1], classes[i : i + 1]) for i in range(3)])

    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_the_network_is_left_as_it_was() -> None:
    network = network_of("resnet18").train()
    network.backbone.layer2.eval()
    network.backbone.conv1.requires_grad_(False)
    modes = {name: module.training for name, module in network.named_modules()}
    state = {name: value.clone() for name, value in network.state_dict().items()}
    network.head[0].weight.grad = torch.ones_like(network.head[0].weight)
    random_state = torch.get_rng_state()

    grad_cam(network, images_of_noise(2), torch.tensor([0, 1]))

    assert {name: module.training for name, module in network.named_modules()} == modes
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    grads = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert grads == {"head.0.weight"}
    assert torch.equal(network.head[0].weight.grad, torch.ones_like(network.head[0].weight))
    assert not any(module._forward_hooks or module._backward_hooks for module in network.modules())
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_network_that_fails_is_left_as_it_was() -> None:
    network = Tiny([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).train()
    with pytest.raises(ShapeError, match=r"classes 2 are none of the network's; expected 0 to 1"):
        grad_cam(network, torch.ones(1, 3, 4, 4), torch.tensor([2]))

    assert network.training
    assert network.layer4.training
    assert not network.layer4._forward_hooks
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("context", ["inference mode", "no gradients", "autocast", "frozen"])
def test_the_callers_mode_changes_nothing(context: str) -> None:
    network, classes = network_of("resnet18"), torch.tensor([0, 1])
    expected = grad_cam(network, images_of_noise(2), classes)
    match context:
        case "inference mode":
            mode = torch.inference_mode()
        case "no gradients":
            mode = torch.no_grad()
        case "autocast":
            mode = torch.autocast("cpu", dtype=torch.bfloat16)
        case _:
            network.requires_grad_(False)
            mode = torch.enable_grad()

    with mode:
        maps = grad_cam(network, images_of_noise(2) * 1.0, classes)

    assert torch.equal(maps, expected)
    assert not maps.requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same_maps() -> None:
    network, images, classes = network_of("resnet18"), images_of_noise(3), torch.tensor([1, 0, 1])
    expected = grad_cam(network, images, classes)

    maps = grad_cam(network.cuda(), images, classes)

    assert maps.is_cuda
    torch.testing.assert_close(maps.cpu(), expected, atol=0.05, rtol=0)  # convolutions in TF32


def test_one_class_per_image_is_needed() -> None:
    network = Tiny([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    with pytest.raises(ShapeError, match=r"\(2, 3, 4, 4\) and classes of shape \(1,\)"):
        grad_cam(network, torch.ones(2, 3, 4, 4), torch.tensor([0]))
    with pytest.raises(ShapeError, match=r"images of shape \(3, 4, 4\)"):
        grad_cam(network, torch.ones(3, 4, 4), torch.tensor([0, 0, 0]))


class Tokens(nn.Module):
    """Cuts an image into patches, which from then on are a sequence, as a vision transformer does."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 3, 2, stride=2)
        self.norm = nn.LayerNorm(3)
        self.fc = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.norm(self.patches(images).flatten(2).transpose(1, 2))
        return self.fc(tokens.mean(dim=1))


def test_a_network_without_a_map_of_features_is_refused() -> None:
    with pytest.raises(TypeError, match="Tokens has no map of features"):
        grad_cam(Tokens(), torch.ones(1, 3, 8, 8), torch.tensor([0]))


class ChannelsLast(nn.Module):
    """A network whose map has its channels at the end, and which goes on in place."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Identity()
        self.fc = nn.Linear(3, 2)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[1.0, -2.0, 0.0], [0.0, 1.0, 5.0]]))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.last(images.permute(0, 2, 3, 1)).relu_().mean(dim=(1, 2)))


def test_maps_with_channels_at_the_end_are_those_worked_by_hand() -> None:
    image = torch.zeros(1, 3, 2, 2)
    image[0, 0] = torch.tensor([[4.0, 1.0], [1.0, 1.0]])
    image[0, 1] = torch.tensor([[1.0, 2.0], [1.0, 1.0]])
    image[0, 2] = 1.0

    maps = grad_cam(ChannelsLast(), image, torch.tensor([0]))

    # channel 0 minus twice channel 1 is 2, -3, -1, -1
    assert maps.tolist() == [[[1.0, 0.0], [0.0, 0.0]]]


def test_without_a_map_of_features_the_gallery_shows_the_images_alone(tmp_path: Path) -> None:
    entries = explain_predictions(
        tmp_path,
        Tokens(),
        predictions_of(12),
        rows=list(range(12)),
        images_of=lambda rows: torch.ones(len(rows), 3, 8, 8),
        pixels_of=lambda rows: np.zeros((len(rows), 8, 8, 3), dtype=np.uint8),
    )
    assert entries == read_gallery(tmp_path)
    assert not any(entry.has_heat for entry in entries)
    assert {picture_content(tmp_path, entry)[1] for entry in entries} == {(8, 8)}


def test_batches_are_explained_one_after_the_other() -> None:
    network, images, classes = network_of("resnet18"), images_of_noise(5), torch.tensor([1, 0, 1, 1, 0])

    maps = explain(network, images.split(2), classes)

    assert (maps.shape, maps.dtype) == ((5, 64, 64), np.float32)
    np.testing.assert_allclose(maps, grad_cam(network, images, classes).numpy(), atol=1e-4)


def test_batches_and_classes_of_another_number_are_refused() -> None:
    network = Tiny([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    with pytest.raises(ShapeError, match="0 images and 0 classes"):
        explain(network, [], torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ShapeError, match="2 images and 3 classes"):
        explain(network, [torch.ones(2, 3, 4, 4)], torch.tensor([0, 0, 0]))
    with pytest.raises(ShapeError, match=r"\(2, 3, 4, 4\) and classes of shape \(1,\)"):
        explain(network, [torch.ones(2, 3, 4, 4)], torch.tensor([0]))


def predictions_of(n: int) -> Predictions:
    """Every third image is wrong; a patient has four images."""
    target = np.arange(n) % 2
    predicted = np.where(np.arange(n) % 3 == 0, 1 - target, target)
    sure = np.linspace(0.6, 0.9, n)
    prob_malignant = np.where(predicted == 1, sure, 1 - sure)
    return Predictions(
        image=tuple(f"image {index:02}.png" for index in range(n)),
        patient=tuple(f"patient {index // 4}" for index in range(n)),
        case=tuple(f"case {index // 4}" for index in range(n)),
        magnification=np.full(n, 200),
        target=target,
        probabilities=np.stack([1 - prob_malignant, prob_malignant], axis=1),
        predicted=predicted,
    )


def test_predictions_are_explained_from_their_rows_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictions = predictions_of(40)
    rows = [100 - index for index in range(40)]  # of the store, in another order
    row_of = dict(zip(predictions.image, rows, strict=True))
    given: list[list[int]] = []
    explained: list[tuple[int, int]] = []

    def images_of(rows: Sequence[int]) -> Tensor:
        given.append(list(rows))
        return torch.tensor(rows, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)

    def pixels_of(rows: Sequence[int]) -> np.ndarray:
        return np.broadcast_to(np.array(rows, dtype=np.uint8)[:, None, None, None], (len(rows), 8, 8, 3))

    def spy(network: nn.Module, images: Tensor, classes: Tensor, *, at: FeatureMap) -> Tensor:
        explained.extend(zip(images[:, 0, 0, 0].int().tolist(), classes.tolist(), strict=True))
        return grad_cam(network, images, classes, at=at)

    monkeypatch.setattr(gradcam, "grad_cam", spy)
    entries = explain_predictions(
        tmp_path,
        Tiny([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
        predictions,
        rows=rows,
        images_of=images_of,
        pixels_of=pixels_of,
    )

    assert entries == read_gallery(tmp_path)
    assert len(entries) > 16
    assert [len(batch) for batch in given] == [1, 16, len(entries) - 16]  # the first one to find the map of features
    assert explained == [(row_of[entry.image], ("benign", "malignant").index(entry.predicted)) for entry in entries]


def test_one_row_of_the_store_per_prediction_is_needed(tmp_path: Path) -> None:
    def unused(rows: Sequence[int]) -> Tensor:
        raise AssertionError(rows)

    with pytest.raises(ShapeError, match="3 rows of the store and 4 predictions"):
        explain_predictions(
            tmp_path, nn.Identity(), predictions_of(4), rows=[1, 2, 3], images_of=unused, pixels_of=unused
        )
    with pytest.raises(ConfigurationError, match="n_per_kind=0"):
        explain_predictions(
            tmp_path, nn.Identity(), predictions_of(1), rows=[1], images_of=unused, pixels_of=unused, n_per_kind=0
        )
    assert not list(tmp_path.iterdir())
