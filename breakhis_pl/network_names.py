"""Networks by library and name, and what may be asked of them: checked at the door, so without torch.

Names are read from the source of the library that is installed, where each network is marked as registered: importing
torchvision or timm takes ten seconds, reading a tenth of one. A test compares them with what the libraries themselves
list.
"""

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from breakhis_pl.errors import listed

REPORT_NETWORKS = ("resnet18", "wide_resnet50", "resnext50")
"""Those of the report."""

LIBRARIES = ("report", "torchvision", "timm")

HEADS = ("report", "linear", "svm")

_REGISTERED = {
    "torchvision": re.compile(r"^@register_model\(\)\n(?:@[^\n]*\n(?:[ )][^\n]*\n)*)*def (\w+)\(", re.MULTILINE),
    "timm": re.compile(r"^@register_model\ndef (\w+)\(", re.MULTILINE),
}

_NAME = re.compile(r"([A-Za-z0-9_]{1,80})(\.[A-Za-z0-9_]{1,80})?")
"""A name, and for timm the tag of a set of weights behind a dot."""

_LARGEST_ARGUMENT: Mapping[str, tuple[type, float, float]] = MappingProxyType(
    {
        "img_size": (int, 32, 4096),
        "patch_size": (int, 4, 64),
        "embed_dim": (int, 16, 4096),
        "depth": (int, 1, 64),
        "num_heads": (int, 1, 64),
        "mlp_ratio": (float, 0.25, 16),
        "reg_tokens": (int, 0, 64),
        "window_size": (int, 2, 64),
        "init_values": (float, 0, 1),
        "drop_path_rate": (float, 0, 0.9),
        "proj_drop_rate": (float, 0, 0.9),
        "attn_drop_rate": (float, 0, 0.9),
    }
)
"""Numbers that timm's networks may be given: type, smallest and largest."""

_FLAGS = (
    "dynamic_img_size",
    "dynamic_img_pad",
    "strict_img_size",
    "class_token",
    "no_embed_class",
    "pre_norm",
    "qkv_bias",
    "qk_norm",
)

_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "global_pool": ("avg", "avgmax", "max", "token"),
        "act_layer": ("gelu", "gelu_tanh", "quick_gelu", "relu", "silu"),
        "mlp_layer": ("Mlp", "SwiGLUPacked"),
    }
)

ARGUMENTS = (*_LARGEST_ARGUMENT, *_FLAGS, *_WORDS)
"""All that `model.arguments` may hold: shapes of a network, no path, no address, no class of anyone's."""

_SMALLEST_IMAGES = {"alexnet": 63, "inception_v3": 75}
"""Sides in pixels below which a layer of torchvision's network has nothing left to look at."""


@cache
def known_names(library: str) -> tuple[str, ...]:
    """Names of the networks that a library has, sorted; none where it is not installed.

    Args:
        library: One of `LIBRARIES`.
    """
    if library == "report":
        return REPORT_NETWORKS
    found = find_spec(library)
    if found is None or not found.submodule_search_locations:
        return ()
    folder = Path(found.submodule_search_locations[0]) / "models"
    texts = (file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.py")))
    return tuple(sorted(name for text in texts for name in _REGISTERED[library].findall(text)))


def network_faults(library: str, name: str, arguments: object) -> Iterator[str]:
    """A sentence for everything that keeps a network from being built.

    Args:
        library: Where it comes from.
        name: Its name there.
        arguments: As in `model.arguments`.
    """
    if library not in LIBRARIES:
        yield f"model.library={library} is not possible; expected one of {listed(LIBRARIES)}"
        return
    yield from _name_faults(library, name)
    if not isinstance(arguments, Mapping):
        yield f"model.arguments={str(arguments)[:60]} is not possible; expected as in model.arguments={{img_size: 96}}"
    elif arguments and library != "timm":
        yield f"model.arguments={dict(arguments)} is for model=timm; the networks of {library} take none"
    else:
        yield from argument_faults(arguments)


def _name_faults(library: str, name: str) -> Iterator[str]:
    names = known_names(library)
    if not names and library == "timm":
        yield "model=timm needs the package timm: uv sync --extra timm"
        return
    matched = _NAME.fullmatch(name)
    base = matched[1] if matched is not None and (library == "timm" or matched[2] is None) else name
    if matched is not None and base in names:
        return
    shown = name if len(name) <= 60 and name.isprintable() else f"{name[:60]!r}…"
    near = difflib.get_close_matches(base[:80], names, n=3)
    if library == "report":
        hint = f"expected one of {listed(names)}; any other network: model=torchvision or model=timm"
    else:
        hint = f"{library} has {len(names):,} networks" + (f"; did you mean {' or '.join(near)}?" if near else "")
        hint += "; a network from a file is model.weights=<file>" if library == "timm" and ":" in name else ""
    yield f"model.backbone={shown} is not possible; {hint}"


def argument_faults(arguments: Mapping[str, object]) -> Iterator[str]:
    """A sentence for each argument of a timm network that is not on the list, or whose value is not possible."""
    for key, value in arguments.items():
        if not isinstance(key, str) or key not in ARGUMENTS:
            text = key[:60] if isinstance(key, str) else f"a {type(key).__name__}"
            near = difflib.get_close_matches(text, ARGUMENTS, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            yield f"model.arguments has {text!r}{hint}; possible are: {', '.join(ARGUMENTS)}"
            continue
        wanted = _wanted(key, value)
        if wanted is not None:
            shown = repr(value)[:60] if isinstance(value, str | int | float) else f"a {type(value).__name__}"
            yield f"model.arguments.{key}={shown} is not possible; expected {wanted}"


def _wanted(key: str, value: object) -> str | None:
    """What was expected instead of an argument's value; None if it is possible."""
    if key in _FLAGS:
        return None if isinstance(value, bool) else "true or false"
    if key in _WORDS:
        return None if isinstance(value, str) and value in _WORDS[key] else f"one of {listed(_WORDS[key])}"
    kind, lowest, highest = _LARGEST_ARGUMENT[key]
    is_number = isinstance(value, int | (float if kind is float else int)) and not isinstance(value, bool)
    if is_number and math.isfinite(value) and lowest <= value <= highest:  # type: ignore[arg-type, operator]
        return None
    return f"a {'whole ' if kind is int else ''}number from {lowest:g} to {highest:g}"


def image_size_fault(library: str, name: str, image_size: int) -> str | None:
    """Why a network of torchvision cannot take images of a size; None where it can, or where only building it tells.

    Args:
        library: Where the network comes from.
        name: Its name.
        image_size: Side in pixels.
    """
    if library != "torchvision":
        return None
    least = _SMALLEST_IMAGES.get(name, 0)
    if image_size < least:
        return f"data.image_size={image_size} is not possible for {name}; expected at least {least}"
    multiple = 224 if name == "maxvit_t" else 1
    if name.startswith("vit_"):
        multiple = int(name.rpartition("_")[2])
    if image_size % multiple:
        reason = "windows of 7 at four scales" if name == "maxvit_t" else f"patches of {multiple} pixels"
        return (
            f"data.image_size={image_size} is not possible for {name}, which divides images into {reason}; "
            f"expected a multiple of {multiple}"
        )
    return None
