"""Grad-CAM: the parts of an image that support a class."""

from contextlib import ExitStack

import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from breakhis_pl.errors import ShapeError

BATCH_SIZE = 16
"""Images per forward and backward pass; bounds the memory."""


def grad_cam(network: nn.Module, images: Tensor, classes: Tensor) -> Tensor | None:
    """Compute how much each part of an image supports a class, relative to the part that supports it most.

    The maps do not depend on the caller's autocast, gradient and inference modes. Modes, gradients and hooks of the
    network are left as they were.

    Args:
        network: From images (n, 3, size, size) to logits (n, n_classes).
        images: Normalized; float, (n, 3, size, size).
        classes: Index of the class to explain for each image; int, (n,).

    Returns:
        float32, (n, size, size), in [0, 1], on the network's device. The largest value of a map is 1; a map is 0
        everywhere if no part of the image supports the class. None if the network has no spatial feature map.

    Raises:
        ShapeError: If there is no image, or not one class per image.

    Source:
        Selvaraju et al., Grad-CAM, ICCV 2017, doi:10.1109/ICCV.2017.74, equations 1 and 2.
    """
    if not 0 < len(images) == len(classes):
        raise ShapeError(f"{len(images)} images, {len(classes)} classes: pass at least one image, and one class each")
    device = next(network.parameters()).device
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        # tensors made in inference mode have no gradients: leave the mode and copy the images
        with torch.inference_mode(mode=False), torch.autocast(device.type, enabled=False):
            batches = (batch.to(device, torch.float32, copy=True) for batch in torch.split(images, BATCH_SIZE))
            found = find_feature_map(network, images[:1].to(device, torch.float32, copy=True))
            if found is None:
                return None
            small = torch.cat(
                [
                    weight_feature_map(network, *found, batch, targets.tolist())
                    for batch, targets in zip(batches, torch.split(classes, BATCH_SIZE), strict=True)
                ]
            )  # (n, 1, h', w')
    finally:
        for module, was_training in modes.items():
            module.training = was_training
    size = (images.shape[2], images.shape[3])
    maps = functional.interpolate(small, size=size, mode="bilinear", align_corners=False)[:, 0]  # (n, h, w)
    highest = maps.amax(dim=(1, 2), keepdim=True)  # (n, 1, 1)
    return torch.where(highest > 0, maps / highest, 0.0)


def find_feature_map(network: nn.Module, image: Tensor) -> tuple[nn.Module, bool] | None:
    """Find the last module whose output has more than one position in each direction.

    Args:
        network: In evaluation mode.
        image: Normalized; float32, (1, 3, size, size).

    Returns:
        The module, and whether its output is (n, channels, h, w); otherwise it is (n, h, w, channels), as in Swin.
        None if there is none, or if a sequence of tokens follows it, as in vision transformers.
    """
    shapes: dict[nn.Module, tuple[int, ...]] = {}  # of the last output of each module, in the order of computation

    def record(module: nn.Module, _inputs: tuple[Tensor, ...], output: object) -> None:
        shapes.pop(module, None)
        shapes[module] = tuple(output.shape) if isinstance(output, Tensor) else ()

    with torch.no_grad(), ExitStack() as hooks:
        for module in network.modules():
            hooks.enter_context(module.register_forward_hook(record))
        network(image)
    for module, shape in reversed(shapes.items()):
        match shape:  # images are square, and so are their feature maps
            case (_, _, _):
                return None
            case (_, _, height, width) if height == width > 1:
                return module, True
            case (_, height, width, _) if height == width > 1:
                return module, False
    return None


def weight_feature_map(
    network: nn.Module, layer: nn.Module, is_channels_first: bool, images: Tensor, classes: list[int]
) -> Tensor:
    """Compute the positive part of the sum of a layer's channels, weighted by their mean gradients.

    Args:
        network: In evaluation mode.
        layer: Module of the network, from `find_feature_map`.
        is_channels_first: Whether the layer's output is (n, channels, h', w'); otherwise it is (n, h', w', channels).
        images: Normalized; float32, (n, 3, size, size), on the network's device.
        classes: Index of the class for each image.

    Returns:
        float32, (n, 1, h', w'), at least 0.
    """
    feature_map = nn.Identity()  # its output has the channels where Captum expects them

    def pass_on(_layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        features: Tensor = feature_map(output if is_channels_first else output.permute(0, 3, 1, 2))
        return features if is_channels_first else features.permute(0, 2, 3, 1)

    # without gradients of parameters, no activations are kept for the layers before the feature map
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
    method = LayerGradCam(lambda batch: functional_call(network, parameters, (batch,)), feature_map)
    with layer.register_forward_hook(pass_on):
        maps: Tensor = method.attribute(images, target=classes, relu_attributions=True)
    return maps.detach()
