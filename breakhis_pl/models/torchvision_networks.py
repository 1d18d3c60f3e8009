"""Every classification network of torchvision without its classifier, and its ImageNet weights."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torchvision import models
from torchvision.models.vision_transformer import interpolate_embeddings

from breakhis_pl.errors import ConfigurationError

FIRST, OTHERWISE = "IMAGENET1K_V1", "IMAGENET1K_SWAG_LINEAR_V1"
"""Which ImageNet weights of a network: the first version, as for the report's; of those that have none, the set that
was trained on images of 224 pixels."""

_WITH_AUXILIARY_CLASSIFIERS = ("googlenet", "inception_v3")
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")


def build_backbone(name: str, *, image_size: int) -> tuple[nn.Module, int]:
    """A network with random weights whose last layer is left out.

    GoogLeNet and Inception come without their auxiliary classifiers, and with the change of scale that their ImageNet
    weights were trained with.

    Args:
        name: As torchvision registers it.
        image_size: Side in pixels; the vision transformers and MaxViT are built for one size.

    Returns:
        From images to features (batch, n_features), and n_features.

    Raises:
        ConfigurationError: If torchvision has no such network, or it has no classifier that could be replaced.
    """
    if name not in models.list_models(module=models):
        raise ConfigurationError(f"model.backbone={name} is not possible; torchvision has no such network")
    options: dict[str, Any] = {}
    if name in _WITH_AUXILIARY_CLASSIFIERS:
        options = {"aux_logits": False, "init_weights": True, "transform_input": True}
    elif name.startswith("vit_"):
        options = {"image_size": image_size}
    elif name == "maxvit_t":
        options = {"input_size": (image_size, image_size)}
    network: nn.Module = models.get_model(name, weights=None, **options)
    if name.startswith("squeezenet"):  # its last layer is a convolution, followed by the pooling
        network.classifier = nn.AdaptiveAvgPool2d((1, 1))
        return network, 512
    place = last_layer(network)
    parent, _, child = place.rpartition(".")
    layer = network.get_submodule(place)
    if not isinstance(layer, nn.Linear):
        raise ConfigurationError(f"model.backbone={name} ends in {type(layer).__name__}; expected a linear layer")
    setattr(network.get_submodule(parent), child, nn.Identity())
    return network, layer.in_features


def last_layer(network: nn.Module) -> str:
    """Name of the last linear layer, the one of the 1,000 ImageNet classes."""
    names: list[str] = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return names[-1]


def imagenet_weights(name: str) -> models.WeightsEnum:
    """The ImageNet weights of a network; all have some."""
    versions = models.get_model_weights(name)
    return versions[FIRST if FIRST in versions.__members__ else OTHERWISE]


def adapted(state: Mapping[str, Any], backbone: nn.Module) -> dict[str, Any]:
    """A state dict of torchvision for a backbone: without classifiers, positions of another image size resampled.

    Args:
        state: Tensors by name.
        backbone: From `build_backbone`.
    """
    wanted = backbone.state_dict()
    left = {
        key: value
        for key, value in state.items()
        if key in wanted or not (key.startswith(_AUXILIARY) or _is_of_classifier(key))
    }
    positions = left.get("encoder.pos_embedding")
    if isinstance(backbone, models.VisionTransformer) and isinstance(positions, Tensor) and positions.ndim == 3:
        n_patches = positions.shape[1] - 1
        if positions.is_floating_point() and positions.shape[0] == 1 and round(n_patches**0.5) ** 2 == n_patches > 0:
            left = dict(
                interpolate_embeddings(
                    backbone.image_size,
                    backbone.patch_size,
                    {**left, "encoder.pos_embedding": positions.float()},
                )
            )
    return left


def _is_of_classifier(key: str) -> bool:
    return key.startswith(("fc.", "classifier.", "head.", "heads.")) and key.rpartition(".")[2] in {"weight", "bias"}
