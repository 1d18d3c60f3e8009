"""Test-time augmentation: average the probabilities over flips and quarter turns.

Images are square, so flips and quarter turns move pixels without interpolation.
"""

import math
from collections.abc import Iterator, Mapping
from itertools import product
from types import MappingProxyType

import torch
from torch import Tensor, nn

N_VIEWS: Mapping[str, int] = MappingProxyType({"flips": 4, "dihedral": 8})
"""Number of views: the 4 combinations of both flips, or all 8 flips and quarter turns of a square."""


def views(images: Tensor, kind: str) -> Iterator[Tensor]:
    """Yield the images unchanged, then flipped and turned.

    Args:
        images: (batch, channels, size, size).
        kind: A key of `N_VIEWS`.

    Example:
        >>> image = torch.tensor([[[[0, 1], [2, 3]]]])
        >>> [view.flatten().tolist() for view in views(image, "flips")]
        [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]]
    """
    n_turns = N_VIEWS[kind] // 4  # a half turn is two flips, so that one quarter turn gives all eight
    for quarter_turns, vertical, horizontal in product(range(n_turns), (False, True), (False, True)):
        turned = torch.rot90(images, quarter_turns, dims=(-2, -1)) if quarter_turns else images
        axes = [axis for axis, is_flipped in ((-2, vertical), (-1, horizontal)) if is_flipped]
        yield turned.flip(axes) if axes else turned


class ViewAverage(nn.Module):
    """Average the probabilities of a network over the views of an image.

    Args:
        network: A module from images (batch, 3, size, size) to logits (batch, n_classes).
        kind: A key of `N_VIEWS`.
    """

    def __init__(self, network: nn.Module, kind: str) -> None:
        super().__init__()
        self.network = network
        self.kind = kind

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logarithm of the mean probabilities, which serves as logits: its softmax is the mean.

        Args:
            images: float, (batch, 3, size, size).

        Returns:
            float32, (batch, n_classes).
        """
        log_probabilities = torch.stack(
            [self.network(view).float().log_softmax(dim=1) for view in views(images, self.kind)]
        )  # (n_views, batch, n_classes)
        return log_probabilities.logsumexp(dim=0) - math.log(len(log_probabilities))
