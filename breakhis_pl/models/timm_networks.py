"""Networks of timm by name, without their classifier; nothing is downloaded unless its own weights are asked for.

timm is an optional package: it is imported where a network of it is built.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from breakhis_pl.errors import ConfigurationError, WeightsError
from breakhis_pl.network_names import argument_faults, network_faults

_MISSING = "model=timm needs the package timm: uv sync --extra timm"


def build_backbone(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A network with random weights and without its classifier.

    Args:
        name: As timm registers it; a tag of weights may follow behind a dot.
        arguments: Plain values, of `network_names.ARGUMENTS`.

    Returns:
        From images to features (batch, n_features).

    Raises:
        ConfigurationError: If timm is missing, has no such network, or cannot build it with these arguments.
    """
    faults = list(network_faults("timm", name, arguments))
    if faults:
        raise ConfigurationError("\n".join(faults))
    try:
        import timm  # noqa: PLC0415 - optional
    except ImportError as error:
        raise ConfigurationError(f"{_MISSING} ({error})") from error
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **_as_layers(arguments))
    except Exception as error:  # whatever its layers raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigurationError(
            f"model.backbone={name} cannot be built with model.arguments={dict(arguments)}: {reason}; "
            "leave out what this network does not have"
        ) from error
    return network


def _as_layers(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with layers in place of their names."""
    from timm.layers.mlp import Mlp, SwiGLUPacked  # noqa: PLC0415 - optional

    layers = {"mlp_layer": {"Mlp": Mlp, "SwiGLUPacked": SwiGLUPacked}}
    return {key: layers[key][value] if key in layers else value for key, value in arguments.items()}


def classifier_prefixes(backbone: nn.Module) -> tuple[str, ...]:
    """How the names of the classifier's weights start that `build_backbone` left out."""
    settings: Any = getattr(backbone, "pretrained_cfg", None) or {}
    names = settings.get("classifier") or ()
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def own_weights(name: str, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights that timm itself loads for a name, downloaded once into the cache of its hub.

    Raises:
        WeightsError: If there are none, or they cannot be had.
    """
    faults = list(argument_faults(arguments))
    if faults:
        raise ConfigurationError("\n".join(faults))
    import timm  # noqa: PLC0415 - optional; there, as the network has been built

    try:
        network: nn.Module = timm.create_model(name, pretrained=True, num_classes=0, **_as_layers(arguments))
    except Exception as error:  # the hub's client and torch raise whatever they do
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"model.weights=imagenet: timm has no usable weights for {name} ({reason}).\n"
            "With a connection they are downloaded once; without one set model.weights=<file>, a state dict "
            "(.pth or .safetensors), or model.weights=none to train from scratch"
        ) from error
    return dict(network.state_dict())
