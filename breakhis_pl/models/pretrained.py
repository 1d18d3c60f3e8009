"""Pretrained weights for any network: its library's own, or those in a file from anyone."""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from breakhis_pl.errors import WeightsError
from breakhis_pl.models import timm_networks, torchvision_networks
from breakhis_pl.models.backbones import existing_file, imagenet_state, load_pretrained, state_faults
from breakhis_pl.models.networks import Network, NetworkSpec
from breakhis_pl.models.tensor_files import TensorFileError, plain_dict, read_tensor_file

_WRAPPERS = ("state_dict", "model_state_dict", "model", "teacher", "student", "net", "network", "backbone", "encoder")
"""Keys that a training keeps its network's state dict under; of several, the first counts."""

_PREFIXES = ("module.", "model.", "backbone.", "encoder.", "network.", "net.", "trunk.", "visual.", "vit.")
"""What a training's wrappers put before the names of weights."""


def load_weights(network: nn.Module, spec: NetworkSpec, weights: str) -> None:
    """Loads pretrained weights into all layers below the head.

    Args:
        network: From `networks.build`.
        spec: What it was built from.
        weights: "imagenet" (those the library has for the name, downloaded once), "none" (leaves the network as it
            is), or the path of a state dict, of torch or of safetensors, of any floating-point type. Unless the network
            is one of the report's, names may stand under a wrapper (`state_dict`, `model`, …) and behind prefixes
            (`module.`, `backbone.`, …); a classifier in it is left out.

    Raises:
        WeightsError: If the weights cannot be had, are no state dict, or belong to another network.
    """
    if not isinstance(network, Network):
        load_pretrained(network, name=spec.backbone, weights=weights)
        return
    backbone = network.backbone
    state: Mapping[str, Any]
    match weights, spec.library:
        case "none", _:
            return
        case "imagenet", "torchvision":
            own = torchvision_networks.imagenet_weights(spec.backbone)
            where, state = f"torchvision's weights for {spec.backbone}", imagenet_state(own, spec.backbone)
        case "imagenet", _:
            where, state = (
                f"timm's weights for {spec.backbone}",
                timm_networks.own_weights(spec.backbone, spec.arguments),
            )
        case _:
            where, state = weights, read_state(Path(weights))
    state = without_prefixes(state, backbone.state_dict())
    if spec.library == "torchvision":
        state = torchvision_networks.adapted(state, backbone)
    else:
        own_names, classifier = backbone.state_dict().keys(), timm_networks.classifier_prefixes(backbone)
        state = {key: value for key, value in state.items() if key in own_names or not key.startswith(classifier)}
    _load(backbone, state, where=where, name=spec.backbone)


def read_state(path: Path) -> Mapping[str, Any]:
    """The tensors by name in a file; nothing in the file is run.

    Args:
        path: A state dict that torch.save wrote, bare or as a value of a dict, or a file of safetensors.

    Raises:
        WeightsError: If there is no such file, or it holds something else.
    """
    existing_file(path)
    try:
        content = _read_safetensors(path) if path.suffix == ".safetensors" else read_tensor_file(path)
    except TensorFileError as error:
        raise WeightsError(
            f"model.weights={path} is no state dict: {error}; expected tensors by name, in a file that torch.save "
            "wrote or a .safetensors file"
        ) from error
    for _ in range(2):  # a training may keep several networks, each with a wrapper of its own
        if _is_state(content):
            return content
        inner = [found for key in _WRAPPERS if (found := plain_dict(content.get(key)))]
        content = inner[0] if inner else {}
    if _is_state(content):
        return content
    raise WeightsError(
        f"model.weights={path} is no state dict: expected a dict of tensors by name, or one under "
        f"{', '.join(_WRAPPERS[:3])}"
    )


def _is_state(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(isinstance(key, str) and isinstance(each, Tensor) for key, each in content.items())


def _read_safetensors(path: Path) -> dict[Any, Any]:
    """The tensors in a file of safetensors.

    Raises:
        TensorFileError: If it is none.
        WeightsError: If the package that reads it is missing.
    """
    try:
        from safetensors.torch import load_file  # noqa: PLC0415 - optional, comes with timm
    except ImportError as error:
        raise WeightsError(f"model.weights={path} needs the package safetensors: uv sync --extra timm") from error
    try:
        return dict(load_file(path, device="cpu"))
    except Exception as error:  # its parser has an exception of its own, numpy and torch others
        raise TensorFileError(f"it is damaged, or no safetensors file ({str(error).splitlines()[0]})") from error


def without_prefixes(state: Mapping[str, Any], wanted: Iterable[str]) -> Mapping[str, Any]:
    """A state dict with the prefix taken off that makes its names those wanted, and only what stood behind it.

    Args:
        state: Tensors by name.
        wanted: Names of a network's weights.

    Returns:
        As it was given where its names fit as they are, or no prefix of `_PREFIXES` makes them fit.

    Example:
        >>> without_prefixes({"module.backbone.a": 1, "module.head.b": 2}, ["a"])
        {'a': 1}
    """
    names = [name for name in wanted if not name.endswith("num_batches_tracked")]
    if not names or all(name in state for name in names):
        return state
    candidates = sorted({key.removesuffix(names[0]) for key in state if key.endswith(f".{names[0]}")}, key=len)
    for prefix in candidates:
        if _is_of_wrappers(prefix) and all(prefix + name in state for name in names):
            return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return state


def _is_of_wrappers(prefix: str) -> bool:
    """Whether a prefix is made of known ones."""
    ends = [0, *(place + 1 for place, letter in enumerate(prefix) if letter == ".")]
    return all(prefix[start:end] in _PREFIXES for start, end in pairwise(ends))


def _load(backbone: nn.Module, state: Mapping[str, Any], *, where: str, name: str) -> None:
    """Copies a state dict into a backbone.

    Raises:
        WeightsError: If names, shapes or types are not those of the network, or values are not finite.
    """
    wanted = backbone.state_dict()
    faults = state_faults(state, wanted, optional="num_batches_tracked")
    if faults and all(fault.startswith("not finite") for fault in faults):
        raise WeightsError(f"model.weights: {where} holds values that are {faults[0]}")
    if faults:
        raise WeightsError(
            f"model.weights: {where} belongs to another network than {name}, or to one built with other "
            "model.arguments; " + "; ".join(faults)
        )
    backbone.load_state_dict({key: value.to(wanted[key].dtype) for key, value in state.items()}, strict=False)
