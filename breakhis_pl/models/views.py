"""Test-time augmentation: the flips and quarter turns of a batch, and a network that averages over them.

Images are square, so a quarter turn moves pixels and computes none: every view is exact.
"""

import math
from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor, nn

from breakhis_pl.errors import ConfigurationError, ShapeError, listed

N_VIEWS = {"flips": 4, "dihedral": 8}
"""Views by kind: identity, left-right, up-down and both; or all eight flips and quarter turns of a square."""


def views(images: Tensor, kind: str) -> Iterator[Tensor]:
    """The images as they are, then flipped and turned, one batch at a time.

    Args:
        images: (batch, channels, size, size).
        kind: A key of `N_VIEWS`.

    Raises:
        ConfigurationError: If there is no such kind.
        ShapeError: If the images are not square.

    Example:
        >>> image = torch.tensor([[[[0, 1], [2, 3]]]])
        >>> [view.flatten().tolist() for view in views(image, "flips")]
        [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]]
    """
    if kind not in N_VIEWS:
        raise ConfigurationError(f"tta={kind} is not possible; expected one of {listed(N_VIEWS)}")
    if images.shape[-1] != images.shape[-2]:
        raise ShapeError(f"images of {images.shape[-2]} x {images.shape[-1]} pixels; expected square ones")
    n_turns = 1 if kind == "flips" else 2
    for n_quarters, up_down, left_right in product(range(n_turns), (False, True), (False, True)):
        turned = torch.rot90(images, n_quarters, dims=(-2, -1)) if n_quarters else images
        axes = [axis for axis, wanted in ((-2, up_down), (-1, left_right)) if wanted]
        yield turned.flip(axes) if axes else turned


class ViewAverage(nn.Module):
    """A network whose probabilities are the mean of those of another for all views of an image.

    Args:
        network: From images (batch, 3, size, size) to logits (batch, n_classes).
        kind: A key of `N_VIEWS`.
    """

    def __init__(self, network: nn.Module, kind: str) -> None:
        super().__init__()
        self.network = network
        self.kind = kind

    def forward(self, images: Tensor) -> Tensor:
        """Logarithm of the mean probabilities, which are their own logits: the softmax of it gives them back.

        Args:
            images: float, (batch, 3, size, size).

        Returns:
            float32, (batch, n_classes).
        """
        log_probabilities = torch.stack(
            [self.network(view).float().log_softmax(1) for view in views(images, self.kind)]
        )
        return log_probabilities.logsumexp(0) - math.log(len(log_probabilities))
