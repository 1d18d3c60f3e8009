import numpy as np
import torch
from torch import Tensor, nn

from breakhis_pl.models.tta import ViewAverage, views


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def make_network() -> nn.Module:
    """A small network that is not invariant to flips and turns."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    return network.requires_grad_(requires_grad=False)


def test_flips_are_left_right_up_down_and_both() -> None:
    image = draw(2, 3, 5, 5)
    expected = [image, image.flip(-1), image.flip(-2), image.flip(-1, -2)]
    assert all(torch.equal(a, b) for a, b in zip(views(image, "flips"), expected, strict=True))


def test_the_average_of_eight_views_equals_one_computed_with_numpy() -> None:
    network, images = make_network(), draw(3, 3, 9, 9)
    expected = np.zeros((3, 2))
    for quarter_turns in range(4):
        for is_mirrored in (False, True):
            pixels = np.rot90(images.numpy(), quarter_turns, axes=(2, 3))
            pixels = pixels[:, :, :, ::-1] if is_mirrored else pixels
            odds = np.exp(network(torch.from_numpy(pixels.copy())).double().numpy())
            expected += odds / odds.sum(axis=1, keepdims=True) / 8
    found = ViewAverage(network, "dihedral")(images).double().softmax(1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not np.allclose(found, network(images).double().softmax(1).numpy(), atol=1e-3)


def test_confident_predictions_stay_finite() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    nn.init.zeros_(network[1].weight)
    network[1].bias.data = torch.tensor([-500.0, 500.0])
    found = ViewAverage(network, "dihedral")(draw(1, 3, 2, 2))
    assert found.isfinite().all()
    assert found.softmax(1).tolist() == [[0.0, 1.0]]
