"""Networks by name: a backbone of torchvision or timm, or a class by its import path, and a head."""

import difflib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NoReturn

import torch
from hydra.utils import get_class
from torch import Tensor, nn
from torchvision import models

from breakhis_pl.config import ModelConfig
from breakhis_pl.errors import ConfigurationError, WeightsError
from breakhis_pl.models.weights import load_imagenet, load_weights

MLP_WIDTHS = (256, 100)
"""Units of the hidden layers of `head=mlp` (Otto et al. 2022)."""


class Network(nn.Module):
    """A backbone and a head.

    Args:
        backbone: A module from images (batch, 3, size, size) to features (batch, n_features).
        head: A module from features to logits (batch, n_classes).
    """

    pretrained_cfg: Mapping[str, str] = MappingProxyType({"classifier": "head."})
    """Where `timm.optim.param_groups_layer_decay` looks up which parameters are those of the head."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits of normalized images."""
        logits: Tensor = self.head(self.backbone(images))
        return logits


def build_network(config: ModelConfig, *, n_classes: int, image_size: int, pretrained: bool) -> Network:
    """Build a network: first the backbone, then the head, with initial weights from torch's global generator.

    Args:
        config: Keys of `model`.
        n_classes: Number of logits.
        image_size: Side of the images in pixels.
        pretrained: Load the weights that `config.weights` names; False leaves the initial ones, for a checkpoint.

    Raises:
        ConfigurationError: If the library has no such network, or the network does not take the arguments or images.
        WeightsError: If the weights cannot be loaded.
    """
    weights = config.weights if pretrained else "none"
    if config.library == "timm":
        backbone = _create_timm(config.backbone, config.arguments or {}, pretrained=weights == "imagenet")
    elif config.library == "python":
        backbone = _create_own(config.backbone, config.arguments or {})
    else:
        backbone = _create_torchvision(config.backbone, image_size=image_size)
    n_features = _count_features(backbone, name=config.backbone, image_size=image_size)
    head = build_head(config.head, n_features, n_classes=n_classes, dropout=config.dropout)
    if weights == "imagenet" and config.library == "torchvision":
        load_imagenet(backbone, config.backbone)
    elif pretrained and config.weights_file is not None:
        load_weights(backbone, config.weights_file)
    return Network(backbone, head)


def build_head(kind: Literal["mlp", "linear"], n_features: int, *, n_classes: int, dropout: float) -> nn.Module:
    """Build a head with random weights.

    Args:
        kind: "mlp" (Linear, ReLU, dropout, Linear, ReLU, Linear) or "linear" (one Linear).
        n_features: Number of input features.
        n_classes: Number of logits.
        dropout: Dropout probability of "mlp".

    Returns:
        A module from float (batch, n_features) to logits (batch, n_classes).

    Source:
        Otto et al. 2022.
    """
    if kind == "linear":
        return nn.Linear(n_features, n_classes)
    first, second = MLP_WIDTHS
    return nn.Sequential(
        nn.Linear(n_features, first),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(first, second),
        nn.ReLU(inplace=True),
        nn.Linear(second, n_classes),
    )


def _create_torchvision(name: str, *, image_size: int) -> nn.Module:
    """Create a classifier of torchvision without auxiliary outputs, with its last layer replaced by Identity."""
    if name not in models.list_models(module=models):
        _refuse_name("torchvision", name, models.list_models(module=models))
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # transform_input: the scale of the images that the ImageNet weights were trained with
        options = {"aux_logits": False, "init_weights": True, "transform_input": True}
    elif name.startswith("vit_"):
        options = {"image_size": image_size}
    elif name == "maxvit_t":
        options = {"input_size": (image_size, image_size)}
    try:
        network: nn.Module = models.get_model(name, weights=None, **options)
    except (AssertionError, ValueError) as error:
        _refuse_size(name, image_size, error)
    if name.startswith("squeezenet"):  # ends in a convolution, which is pooled
        network.classifier = nn.AdaptiveAvgPool2d(1)
        return network
    last = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    network.set_submodule(last, nn.Identity())
    return network


def _create_timm(name: str, arguments: Mapping[str, Any], *, pretrained: bool) -> nn.Module:
    """Create a network of timm without its classifier."""
    try:
        import timm  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigurationError("model.library=timm: needs the package timm; run `uv sync --extra all`") from error
    if not timm.is_model(name):
        _refuse_name("timm", name, timm.list_models())
    try:
        keywords = dict(arguments)
        if isinstance(keywords.get("mlp_layer"), str):  # unlike other layers, timm does not look it up by name
            keywords["mlp_layer"] = getattr(timm.layers, keywords["mlp_layer"])
        network: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0, **keywords)
    except Exception as error:  # layers and the hub's client raise many kinds
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        if pretrained:
            raise WeightsError(
                f"model.weights=imagenet: timm cannot create {name} with its weights ({reason}); "
                "set model.weights=<file>, or model.weights=none to train from scratch"
            ) from error
        raise ConfigurationError(
            f"model.backbone={name}: timm cannot create it with model.arguments={dict(arguments)} ({reason})"
        ) from error
    return network


def _create_own(path: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Create a network from the import path of its class; nothing else is called: a checkpoint may name it."""
    try:
        found = get_class(path)
        if not issubclass(found, nn.Module):
            raise TypeError("is not a torch.nn.Module")
        return found(**arguments)
    except Exception as error:  # whatever the module raises
        raise ConfigurationError(
            f"model.backbone={path}: cannot be created with model.arguments={dict(arguments)} ({error})"
        ) from error


def _count_features(backbone: nn.Module, *, name: str, image_size: int) -> int:
    """Return the number of features per image, from a forward pass without values on the meta device.

    Raises:
        ConfigurationError: If the backbone does not take images of this size, or does not return features.
    """
    shape = (2, 3, image_size, image_size)
    state = {key: value.to("meta") for key, value in (*backbone.named_parameters(), *backbone.named_buffers())}
    backbone.eval()
    with torch.no_grad():
        try:
            features = torch.func.functional_call(backbone, state, torch.empty(shape, device="meta"))
        except Exception:  # some networks need values: only a real image shows whether it is the size
            try:
                features = backbone(torch.zeros(shape))
            except Exception as error:
                _refuse_size(name, image_size, error)
    backbone.train()
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise ConfigurationError(
            f"model.backbone={name}: does not return one vector per image, (batch, n_features); with timm, set "
            "global_pool=avg in model.arguments"
        )
    return int(features.shape[1])


def _refuse_name(library: str, name: str, known: Sequence[str]) -> NoReturn:
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"see {library}.models.list_models()"
    if ":" in name:  # hf-hub:…
        hint = "set the name of its architecture, and model.weights=<file>"
    raise ConfigurationError(f"model.backbone={name}: {library} has no such network; {hint}")


def _refuse_size(name: str, image_size: int, error: Exception) -> NoReturn:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise ConfigurationError(
        f"data.image_size={image_size}: {name} does not take images of this size ({reason}); set another "
        "data.image_size, or img_size in model.arguments of a network of timm"
    ) from error
