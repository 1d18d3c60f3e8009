"""Pretrained weights of a backbone: torchvision's, or those in a file that another training or publisher wrote."""

import argparse
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models
from torchvision.models.vision_transformer import interpolate_embeddings

from breakhis_pl.errors import WeightsError, join_truncated

GIT_LFS_POINTER = b"version https://git-lfs.github.com"

_numpy_scalar: Any = np.float64(0).__reduce__()[0]
PLAIN_TYPES: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,  # the options of a command, which timm, DINO and MAE store beside the weights
    np.dtype,  # metrics that are numpy scalars
    *(type(np.dtype(name)) for name in ("float32", "float64", "int64")),
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
    (_numpy_scalar, "numpy.core.multiarray.scalar"),  # numpy 1
]
"""Types that `torch.load(weights_only=True)` accepts here in addition to its own; none of them runs code."""

MAX_DEPTH = 3
"""Deepest nesting of dictionaries in which a state dict is looked for."""

NOT_OF_BACKBONE = re.compile(
    r"(fc|heads?(_dist)?|classif\w*|last_linear|aux\w*"  # classifiers in torchvision and timm
    r"|mask_token|decoder\w*|proj(ector|ection)\w*|predictor\w*)"  # used in self-supervised pretraining only
    r"(\.|$)",
    re.IGNORECASE,
)
"""Names that a file may hold in addition to those of the backbone; they are ignored."""


def load_weights(backbone: nn.Module, path: Path) -> None:
    """Load weights from a file.

    The file is written by `torch.save` or safetensors. The state dict may be nested (under "state_dict", "model",
    "teacher", …), its names may have a prefix ("module.", "model.resnet.", …), and a head in it is ignored.
    Floating-point weights of any precision are converted. No code in the file is run.

    Args:
        backbone: Its parameters and buffers are replaced.
        path: The file.

    Raises:
        WeightsError: If the file cannot be read, holds no weights, or those of another network.
    """
    source = f"model.weights={path}"
    state = find_state(read_file(path), backbone.state_dict().keys())
    if not state:
        raise WeightsError(f"{source}: holds no tensors by name; expected a saved network.state_dict()")
    load_state(backbone, state, source=source)


def load_imagenet(backbone: nn.Module, name: str) -> None:
    """Load torchvision's ImageNet weights, which are downloaded once.

    Args:
        backbone: Its parameters and buffers are replaced.
        name: Name of the network in torchvision.

    Raises:
        WeightsError: If they cannot be downloaded or read.
    """
    versions = models.get_model_weights(name).__members__
    # networks that lack the first version have weights that are fine-tuned from SWAG at a larger size, and these
    weights = versions.get("IMAGENET1K_V1") or versions["IMAGENET1K_SWAG_LINEAR_V1"]
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    try:
        state = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # urllib, torch.load and sockets raise many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"model.weights=imagenet: no usable weights for {name} ({reason}); download {weights.url} to {path}, "
            "or set model.weights=<file>, or model.weights=none to train from scratch"
        ) from error
    load_state(backbone, state, source=f"model.weights=imagenet ({path})")


def read_file(path: Path) -> Any:
    """Read a file of torch or safetensors on the CPU, with `weights_only=True`.

    Raises:
        WeightsError: If there is no such file, or it holds something else.
    """
    source = f"model.weights={path}"
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise WeightsError(f"{source}: {what}; expected imagenet, none or the path of a file")
    with torch.serialization.safe_globals(PLAIN_TYPES):
        try:
            with path.open("rb") as file:
                start = file.read(len(GIT_LFS_POINTER))
            if path.suffix == ".safetensors" or start[8:9] == b"{":  # 8 bytes of length, then a header in JSON
                return load_file(path)
            if start != GIT_LFS_POINTER:
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle, zipfile, safetensors and torch raise many kinds, torch with unsafe advice
            why = f"cannot be read ({type(error).__name__}); download it again, or use another file"
            if unsafe := _unsafe_names(path):
                why = (
                    f"holds {join_truncated(unsafe, 3)}, which could run code; if you trust the file, save its tensors "
                    "alone, torch.save(checkpoint['state_dict'], <file>), where it was written"
                )
            raise WeightsError(f"{source}: {why}") from error
    raise WeightsError(
        f"{source}: is a Git LFS pointer, not the weights; run `git lfs pull` in the repository it is from"
    )


def _unsafe_names(path: Path) -> list[str]:
    """Return the functions and classes that an archive of torch.save needs; empty for any other file."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # not an archive
        return []


def find_state(content: Any, names: Iterable[str]) -> dict[str, Tensor]:
    """Find the state dict in a file, and the prefix of its names, by the names of a backbone.

    Of several networks in a file, the one that has most of the names is used. Of several that have all of them, it is
    a teacher or an exponential moving average, else the first.

    Args:
        content: What `read_file` returned.
        names: Names of the backbone's parameters and buffers.

    Returns:
        The tensors below the prefix, without it; empty if there are none.

    Example:
        >>> content = {"epoch": 1, "model": {"module.conv.weight": torch.ones(1), "module.fc.weight": torch.ones(1)}}
        >>> list(find_state(content, ["conv.weight"]))
        ['conv.weight', 'fc.weight']
    """
    # torch before 0.4.1 has no num_batches_tracked
    wanted = [name for name in names if not name.endswith("num_batches_tracked")]
    best: dict[str, Tensor] = {}
    best_score = (-1, False)
    for place, state in _state_dicts(content, place="", depth=0):
        prefixes = [key.removesuffix(name) for name in (wanted[0], wanted[-1]) for key in state if key.endswith(name)]
        for prefix in dict.fromkeys(["", *prefixes]):
            if prefix and not prefix.endswith("."):
                continue
            found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            is_average = re.search(r"teacher|(^|[._])ema", f"{place}{prefix}") is not None
            score = (sum(name in found for name in wanted), is_average)
            if score > best_score:
                best, best_score = found, score
    return best


def _state_dicts(content: Any, *, place: str, depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every dictionary that has tensors by name, with the keys that lead to it."""
    if not isinstance(content, Mapping) or depth > MAX_DEPTH:
        return
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors:
        yield place, tensors
    for key, value in content.items():
        yield from _state_dicts(value, place=f"{place}{key}.", depth=depth + 1)


def load_state(backbone: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load a state dict whose names are those of the backbone.

    Position embeddings of torchvision's vision transformers are interpolated to another image size.

    Args:
        backbone: Its parameters and buffers are replaced.
        state: Tensors by name; those of a head are ignored.
        source: The key and value that named it, for errors.

    Raises:
        WeightsError: If names or shapes are not those of the backbone, or values are not finite.
    """
    wanted = backbone.state_dict()
    state = {name: value for name, value in state.items() if name in wanted or not NOT_OF_BACKBONE.match(name)}
    state = _interpolate_positions(backbone, state)
    shared = [name for name in wanted if name in state]
    faults = {
        "missing": [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")],
        "unexpected": [name for name in state if name not in wanted],
        "shape": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
            for name in shared
            if state[name].shape != wanted[name].shape
        ],
        "type": [
            f"{name} {state[name].dtype}"
            for name in shared
            if state[name].is_floating_point() != wanted[name].is_floating_point()
        ],
    }
    described = "; ".join(f"{kind}: {join_truncated(names, 3)}" for kind, names in faults.items() if names)
    if described:
        raise WeightsError(f"{source}: does not fit this model.backbone and model.arguments ({described})")
    not_finite = [name for name in shared if not state[name].isfinite().all()]
    if not_finite:
        raise WeightsError(f"{source}: values are not finite ({join_truncated(not_finite, 3)}); use another file")
    backbone.load_state_dict(state, strict=False)  # copies, so converts the precision


def _interpolate_positions(backbone: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    positions = state.get("encoder.pos_embedding")
    if not isinstance(backbone, models.VisionTransformer) or positions is None:
        return state
    try:
        positions = positions.float()  # there is no bicubic interpolation in half precision on the CPU
        state = {**state, "encoder.pos_embedding": positions}
        return dict(interpolate_embeddings(backbone.image_size, backbone.patch_size, state))
    except ValueError:  # not a square of patches; refused for its shape
        return state
