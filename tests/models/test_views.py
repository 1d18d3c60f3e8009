import numpy as np
import pytest
import torch
from torch import Tensor, nn

from breakhis_pl.errors import ConfigurationError, ShapeError
from breakhis_pl.models.views import N_VIEWS, ViewAverage, views


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def convolutional() -> nn.Module:
    """A small network to which a flip or a turn makes a difference."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    return network.requires_grad_(requires_grad=False)


class Mean(nn.Module):
    """Sees the mean of each channel only, so that flips and turns change nothing."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((-2, -1))[:, :2] * 3


@pytest.mark.parametrize("kind", N_VIEWS)
def test_views_are_as_many_as_said_all_different_and_start_with_the_image(kind: str) -> None:
    image = torch.arange(48.0).reshape(1, 3, 4, 4)

    found = list(views(image, kind))

    assert torch.equal(found[0], image)
    assert len({tuple(view.flatten().tolist()) for view in found}) == len(found) == N_VIEWS[kind]
    assert all(torch.equal(view.flatten(2).sort().values, image.flatten(2).sort().values) for view in found)


def test_flips_are_those_that_leave_rows_rows() -> None:
    image = drawn(2, 3, 5, 5)

    expected = [image, image.flip(-1), image.flip(-2), image.flip(-1, -2)]

    assert all(torch.equal(a, b) for a, b in zip(views(image, "flips"), expected, strict=True))


def test_the_mean_over_eight_views_is_that_computed_by_hand() -> None:
    network, images = convolutional(), drawn(3, 3, 9, 9)
    by_hand = np.zeros((3, 2))
    for n_quarters in range(4):
        for is_mirrored in (False, True):
            pixels = np.rot90(images.numpy(), n_quarters, axes=(2, 3))
            pixels = pixels[:, :, :, ::-1] if is_mirrored else pixels
            logits = network(torch.from_numpy(pixels.copy())).double().numpy()
            odds = np.exp(logits)
            by_hand += odds / odds.sum(axis=1, keepdims=True) / 8

    found = ViewAverage(network, "dihedral")(images).double().softmax(1).numpy()

    assert np.allclose(found, by_hand, atol=1e-6)
    assert not np.allclose(found, network(images).double().softmax(1).numpy(), atol=1e-3)


@pytest.mark.parametrize("kind", N_VIEWS)
def test_a_network_that_does_not_see_the_views_says_the_same(kind: str) -> None:
    images = drawn(4, 3, 6, 6)

    found = ViewAverage(Mean(), kind)(images).softmax(1)

    assert torch.allclose(found, Mean()(images).softmax(1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", N_VIEWS)
def test_an_image_that_is_its_own_mirror_image_and_turn_gets_the_same(kind: str) -> None:
    network, half = convolutional(), drawn(2, 3, 9, 9)
    symmetric = torch.stack(list(views(half, "dihedral"))).mean(0)

    assert torch.allclose(symmetric, symmetric.rot90(1, (-2, -1)), atol=1e-6)
    found = ViewAverage(network, kind)(symmetric).softmax(1)
    assert torch.allclose(found, network(symmetric).softmax(1), atol=1e-6, rtol=0)


def test_sure_predictions_stay_finite() -> None:
    sure = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    nn.init.constant_(sure[1].weight, 0)
    sure[1].bias.data = torch.tensor([-500.0, 500.0])

    found = ViewAverage(sure, "dihedral")(drawn(1, 3, 2, 2))

    assert torch.isfinite(found).all()
    assert found.softmax(1).tolist() == [[0.0, 1.0]]


def test_what_cannot_be_turned_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="tta=none is not possible; expected one of flips, dihedral"):
        next(views(drawn(1, 3, 4, 4), "none"))
    with pytest.raises(ShapeError, match="images of 4 x 5 pixels; expected square ones"):
        next(views(drawn(1, 3, 4, 5), "flips"))
