"""Any network by plain values: library, name, arguments, head; and its parts in the order that images pass them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from breakhis_pl.config import ModelConfig
from breakhis_pl.data.breakhis import TASKS
from breakhis_pl.errors import ConfigurationError
from breakhis_pl.models import timm_networks, torchvision_networks
from breakhis_pl.models.backbones import BACKBONES, build_network
from breakhis_pl.models.heads import build_head


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """The plain values that a network is built from; the same values give the same layers anywhere.

    Attributes:
        backbone: Its name.
        library: Where the name is looked up: "report", "torchvision" or "timm".
        arguments: What timm's network is built with; empty for the others.
        head: "report", "linear" or "svm".
        dropout: Probability of dropout in the report's head, in [0, 1).
        image_size: Side in pixels of the images.
        is_frozen: Whether only the head is trained.
        task: What it tells apart, a key of `TASKS`.
    """

    backbone: str
    library: str = "report"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    head: str = "report"
    dropout: float = 0.4
    image_size: int = 224
    is_frozen: bool = False
    task: str = "binary"

    @property
    def title(self) -> str:
        """What the network is, for people."""
        name = BACKBONES[self.backbone].title if self.library == "report" else self.backbone
        frozen = ", frozen" if self.is_frozen else ""
        types = "" if self.task == "binary" else f", {len(TASKS[self.task])} tumor types"
        return f"{name}{frozen}{types}" + ("" if self.head == "report" else f", {self.head} head")


def spec_of(model: ModelConfig, *, image_size: int, task: str = "binary") -> NetworkSpec:
    """The network that a configuration asks for.

    Args:
        model: The keys of `model`.
        image_size: Side in pixels of the images.
        task: What it tells apart.
    """
    return NetworkSpec(
        backbone=model.backbone,
        library=model.library,
        arguments=dict(model.arguments or {}),
        head=model.head,
        dropout=model.dropout,
        image_size=image_size,
        is_frozen=model.freeze,
        task=task,
    )


class Network(nn.Module):
    """A network of a library without its own classifier, and a head behind it.

    Attributes:
        backbone: From images (batch, 3, size, size) to features (batch, n_features).
        head: From features to logits (batch, n_classes).
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Logits of normalized images."""
        logits: Tensor = self.head(self.backbone(images))
        return logits


def build(spec: NetworkSpec) -> nn.Module:
    """A network with random weights.

    Args:
        spec: Its plain values.

    Returns:
        From float32 (batch, 3, image_size, image_size) to logits (batch, 2). The report's networks are torchvision's
        own with another `fc`; all others are a `Network`.

    Raises:
        ConfigurationError: If the library has no such network, or it cannot be built with these values.
    """
    if spec.library == "report":
        network = build_network(spec.backbone, dropout=spec.dropout, head=spec.head, n_classes=len(TASKS[spec.task]))
    else:
        backbone, n_features = _build_backbone(spec)
        network = Network(
            backbone, build_head(spec.head, n_features, dropout=spec.dropout, n_classes=len(TASKS[spec.task]))
        )
    if spec.is_frozen:
        network.requires_grad_(False)
        head_of(network).requires_grad_(True)
    return network


def _build_backbone(spec: NetworkSpec) -> tuple[nn.Module, int]:
    match spec.library:
        case "torchvision":
            return torchvision_networks.build_backbone(spec.backbone, image_size=spec.image_size)
        case "timm":
            n_features = features_on_paper(spec)  # before any memory is taken
            return timm_networks.build_backbone(spec.backbone, spec.arguments), n_features
        case _:
            raise ConfigurationError(f"model.library={spec.library} is not possible")


def build_on_paper(spec: NetworkSpec) -> nn.Module:
    """The network without its numbers: names and shapes of all weights, in hardly any memory.

    Raises:
        ConfigurationError: As `build`.
    """
    with _without_numbers():
        return build(spec).to("meta")


def features_on_paper(spec: NetworkSpec) -> int:
    """Length of the features that a network of timm gives for images of the size wanted; no number is computed.

    Raises:
        ConfigurationError: If it cannot take such images, or gives something else than a row of features.
    """
    with _without_numbers():
        paper = timm_networks.build_backbone(spec.backbone, spec.arguments).to("meta").eval()
    size = spec.image_size
    try:
        with torch.no_grad():
            features = paper(torch.empty((2, 3, size, size), device="meta"))
    except Exception as error:  # whatever its layers raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigurationError(
            f"model.backbone={spec.backbone} cannot take images of data.image_size={size} pixels: {reason}; set "
            f"'model.arguments={{img_size: {size}}}' where the network has a fixed size, or another data.image_size"
        ) from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise ConfigurationError(
            f"model.backbone={spec.backbone} gives no row of features per image; choose another network or global_pool"
        )
    return int(features.shape[1])


class _EmptyOnMeta(TorchFunctionMode):
    """Memory that is to be filled afterwards, as that of weights, is not taken at all."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        options = dict(kwargs or {})
        if func is torch.empty and options.get("device") is None:
            options["device"] = "meta"
        return func(*args, **options)


@contextmanager
def _without_numbers() -> Iterator[None]:
    """Networks that are built here have no values; torch's random stream is left as it was."""
    with torch.random.fork_rng(devices=[]), _EmptyOnMeta():
        yield


def takes_single_images(spec: NetworkSpec) -> bool:
    """Whether the network can be trained on a batch of one image; batch norm needs more than one value per channel."""
    if spec.is_frozen:
        return True
    paper = build_on_paper(spec).train()
    try:
        with torch.no_grad():
            paper(torch.empty((1, 3, spec.image_size, spec.image_size), device="meta"))
    except ValueError:
        return False
    return True


def head_of(network: nn.Module) -> nn.Module:
    """The head of a network from `build`."""
    head: nn.Module = network.head if isinstance(network, Network) else network.get_submodule("fc")
    return head


def stages(network: nn.Module) -> list[tuple[str, list[nn.Parameter]]]:
    """All parameters of a network, in stages from the stem to the head, for rates or freezing by depth.

    A part that holds more than half of the layers, as the encoder of a vision transformer, is taken apart.

    Args:
        network: From `build`.

    Returns:
        Name and parameters; each parameter once, stages without any left out.
    """
    whole = network.backbone if isinstance(network, Network) else network
    head = head_of(network)
    most = sum(_n_layers(part) for part in whole.children() if part is not head) / 2

    def taken_apart(name: str, part: nn.Module) -> Iterator[tuple[str, list[nn.Parameter]]]:
        if part is head:
            return
        if part is not whole and (_n_layers(part) <= most or len(list(part.children())) < 2):
            yield name, list(part.parameters())
            return
        yield name or "stem", list(part.parameters(recurse=False))
        for child_name, child in part.named_children():
            yield from taken_apart(f"{name}.{child_name}" if name else child_name, child)

    found = [*taken_apart("", whole), ("head", list(head.parameters()))]
    seen: set[nn.Parameter] = set()
    result = []
    for name, parameters in found:
        own = [each for each in parameters if each not in seen]
        seen.update(own)
        if own:
            result.append((name, own))
    return result


def _n_layers(part: nn.Module) -> int:
    """Modules in a part that have parameters of their own."""
    return sum(1 for module in part.modules() if next(module.parameters(recurse=False), None) is not None)


def watch_features(network: nn.Module, see: Callable[[Tensor], None]) -> torch.utils.hooks.RemovableHandle:
    """Has a function see what the head is given in every forward pass; (batch, n_features) each."""

    def before(_head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        see(inputs[0].detach())

    return head_of(network).register_forward_pre_hook(before)
