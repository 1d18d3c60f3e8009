"""Where in any network the last map of features lies, for Grad-CAM; with torch."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn


class FeatureMap(NamedTuple):
    """The output of a network's last layer that still says where in the image something is.

    Attributes:
        module: Name of the module that gives it.
        is_channels_first: Whether it is (n, channels, h, w); otherwise (n, h, w, channels), as within Swin.
    """

    module: str
    is_channels_first: bool


def last_feature_map(network: nn.Module, image: Tensor) -> FeatureMap | None:
    """The last map that a network makes of an image before it is pooled into one row of features.

    Found by looking: the last square output of more than one place, unless a sequence of tokens comes after it, as in
    vision transformers, whose only map is their input cut into patches.

    Args:
        network: In evaluation mode.
        image: Normalized; float, (1, 3, size, size).

    Returns:
        None where there is none.
    """
    found: FeatureMap | None = None

    def look(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], object], None]:
        def at_output(_module: nn.Module, _inputs: tuple[Tensor, ...], output: object) -> None:
            nonlocal found
            if not isinstance(output, Tensor):
                return
            if output.ndim == 3 and output.shape[1] > 1:
                found = None
            if output.ndim == 4:
                found = _as_map(name, output) or found

        return at_output

    hooks = [module.register_forward_hook(look(name)) for name, module in network.named_modules() if name]
    try:
        with torch.no_grad():
            network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _as_map(name: str, output: Tensor) -> FeatureMap | None:
    """Images are square, so their maps are: the two equal sides tell where the channels are."""
    _, first, second, third = output.shape
    if second == third > 1:
        return FeatureMap(name, is_channels_first=True)
    if first == second > 1:
        return FeatureMap(name, is_channels_first=False)
    return None
