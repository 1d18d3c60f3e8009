"""The three residual networks by name, with the report's head, and their pretrained weights."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from breakhis_pl.data.breakhis import CLASS_NAMES
from breakhis_pl.errors import WeightsError, listed
from breakhis_pl.evaluation.texts import named
from breakhis_pl.models.heads import build_head
from breakhis_pl.models.tensor_files import TensorFileError, read_tensor_file


@dataclass(frozen=True, slots=True)
class Backbone:
    """A torchvision network: its name for people, how to build it, its ImageNet weights."""

    title: str
    build: Any
    imagenet: models.WeightsEnum


BACKBONES: Mapping[str, Backbone] = MappingProxyType(
    {
        "resnet18": Backbone("ResNet-18", models.resnet18, models.ResNet18_Weights.IMAGENET1K_V1),
        "wide_resnet50": Backbone(
            "Wide-ResNet-50-2", models.wide_resnet50_2, models.Wide_ResNet50_2_Weights.IMAGENET1K_V1
        ),
        "resnext50": Backbone("ResNeXt-50 32x4d", models.resnext50_32x4d, models.ResNeXt50_32X4D_Weights.IMAGENET1K_V1),
    }
)


def build_network(name: str, *, dropout: float, head: str = "report", n_classes: int = len(CLASS_NAMES)) -> nn.Module:
    """A network with random weights and another head in place of its last layer.

    Args:
        name: A key of `BACKBONES`.
        dropout: Probability of dropout in the report's head, in [0, 1).
        head: As in `heads.build_head`.
        n_classes: Number of logits.

    Returns:
        From float32 (batch, 3, height, width) to logits (batch, n_classes).

    Source:
        Otto et al. 2022; torchvision.models.
    """
    network: nn.Module = BACKBONES[name].build(weights=None)
    n_features: int = network.get_submodule("fc").in_features  # type: ignore[assignment]
    network.fc = build_head(head, n_features, dropout=dropout, n_classes=n_classes)
    return network


def load_pretrained(network: nn.Module, *, name: str, weights: str) -> None:
    """Loads pretrained weights into all layers below the head.

    Args:
        network: From `build_network`.
        name: The network's name.
        weights: "imagenet" (torchvision's IMAGENET1K_V1, downloaded once), "none" (leaves the network as it is), or
            the path of a torchvision state dict, with or without `fc`, of any floating-point type.

    Raises:
        WeightsError: If the weights cannot be had, are no state dict, or belong to another network.
    """
    match weights:
        case "none":
            return
        case "imagenet":
            state, where = imagenet_state(BACKBONES[name].imagenet, name), f"torchvision's weights for {name}"
        case _:
            state, where = _state_from_file(Path(weights)), weights
    _load(network, state, where=where, name=name)


def imagenet_state(weights: models.WeightsEnum, name: str) -> Mapping[str, Any]:
    """ImageNet weights of torchvision, from torch's cache or the network.

    Args:
        weights: Which.
        name: Of the network, for errors.

    Raises:
        WeightsError: If there is no connection, or what arrives is damaged; the text says where to put the file.
    """
    place = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    try:
        _check_cached(place)
        state: Mapping[str, Any] = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except WeightsError:
        raise
    except Exception as error:  # torch.load raises whatever its parsers do
        raise WeightsError(
            f"model.weights=imagenet: no usable weights for {name} ({error}).\n"
            f"Download {weights.url} on a machine with a connection and put it at {place},\n"
            "or set model.weights=<file>, or model.weights=none to train from scratch"
        ) from error
    return state


def _check_cached(path: Path) -> None:
    """Compares a file that is in torch's cache already with the checksum in its name; torch does so for new ones only.

    Raises:
        WeightsError: If they differ.
        OSError: If the file cannot be read.
    """
    expected = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if expected is None or not path.is_file():
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(expected[1]):
        raise WeightsError(
            f"model.weights=imagenet: {path} is damaged, its SHA-256 starts with {found[:8]}; "
            "delete it, so that it is downloaded again"
        )


def _state_from_file(path: Path) -> Mapping[str, Any]:
    """The state dict in a file; nothing in the file is run.

    Raises:
        WeightsError: If there is no such file, or it holds no state dict.
    """
    existing_file(path)
    try:
        state = read_tensor_file(path)
    except TensorFileError as error:
        raise WeightsError(
            f"model.weights={path} is no state dict: {error}; expected a file that torch.save wrote, of tensors by name"
        ) from error
    if "state_dict" in state:
        raise WeightsError(f"model.weights={path} is a checkpoint of a training; expected a torchvision state dict")
    if not state or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        raise WeightsError(f"model.weights={path} is no state dict: expected a dict of tensors by name")
    return state


def existing_file(path: Path) -> None:
    """Makes sure that a file of weights is there.

    Raises:
        WeightsError: If it is not.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise WeightsError(f"model.weights={path} {what}; expected imagenet, none or the path of a state dict")


def state_faults(given: Mapping[str, Any], wanted: Mapping[str, Tensor], *, optional: str = "") -> list[str]:
    """What speaks against copying one state dict into the place of another; no value is computed of what does not fit.

    Args:
        given: Tensors by name, from anywhere.
        wanted: Those of a network.
        optional: End of the names that need not be given; none if empty.

    Returns:
        A text for each kind of fault: missing, unexpected, shape, type, not finite.
    """
    there = {key: given[key] for key in wanted if key in given}
    fitting = {key: value for key, value in there.items() if _fits(value, wanted[key])}
    faults = {
        "missing": [key for key in wanted if key not in given and not (optional and key.endswith(optional))],
        "unexpected": [named(str(key)) for key in given if key not in wanted],
        "shape": [
            f"{key} {tuple(value.shape)} instead of {tuple(wanted[key].shape)}"
            for key, value in there.items()
            if isinstance(value, Tensor) and value.shape != wanted[key].shape
        ],
        "type": [
            f"{key} {_kind(value)} instead of {_kind(wanted[key])}"
            for key, value in there.items()
            if key not in fitting and not (isinstance(value, Tensor) and value.shape != wanted[key].shape)
        ],
        "not finite": [key for key, value in fitting.items() if not value.isfinite().all()],
    }
    return [f"{word}: {listed(keys, limit=3)}" for word, keys in faults.items() if keys]


def _fits(value: object, wanted: Tensor) -> bool:
    """Whether a value is a tensor of the same shape, and of whole numbers where those are wanted."""
    return (
        isinstance(value, Tensor)
        and value.shape == wanted.shape
        and value.is_floating_point() == wanted.is_floating_point()
    )


def _kind(value: object) -> str:
    return str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else type(value).__name__


def _load(network: nn.Module, state: Mapping[str, Any], *, where: str, name: str) -> None:
    """Copies a torchvision state dict into a network, all but its last layer.

    Raises:
        WeightsError: If names, shapes or types are not those of the network, or values are not finite.
    """
    wanted = {key: value for key, value in network.state_dict().items() if not key.startswith("fc.")}
    given = {key: value for key, value in state.items() if not key.startswith("fc.")}
    # files from before torch 0.4.1 have no counter of batches; it is not used with a fixed momentum
    faults = state_faults(given, wanted, optional="num_batches_tracked")
    if faults and all(fault.startswith("not finite") for fault in faults):
        raise WeightsError(f"model.weights: {where} holds values that are {faults[0]}")
    if faults:
        raise WeightsError(f"model.weights: {where} belongs to another network than {name}; " + "; ".join(faults))
    network.load_state_dict({key: value.to(wanted[key].dtype) for key, value in given.items()}, strict=False)
