"""Facts of a network as texts in the metadata of an ONNX file, and back, from a file of anyone (no torch)."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from breakhis_pl.config import SMALLEST_IMAGE
from breakhis_pl.data.breakhis import CLASS_NAMES
from breakhis_pl.data.domain import plain_domain, restored_domain
from breakhis_pl.data.stain import restored_target
from breakhis_pl.evaluation.calibration import Calibration, calibration_from
from breakhis_pl.evaluation.file_texts import DamagedFileError
from breakhis_pl.evaluation.texts import quoted
from breakhis_pl.prediction.facts import NOTICE, NetworkFacts

PREFIX = "breakhis_pl."
"""Of the names of all our entries."""

FORMAT = 1
"""Of the entries; another one is refused."""

RESIZED = "antialiased bilinear to a square, the aspect not kept, as torch.nn.functional.interpolate does for uint8"
LICENSE = (
    "Trained on images of BreakHis (Spanhol et al. 2016, CC BY 4.0), unless `data` says that they were drawn; what the "
    "initial weights allow applies too."
)
LARGEST_SIDE = 4096
LONGEST_TEXT = 100_000
"""Characters of an entry."""

INPUT, OUTPUT = "pixels", "logits"
"""Names of the one input, uint8 (batch, size, size, 3), RGB, and the one output, float32 (batch, 2)."""


def to_metadata(facts: NetworkFacts, *, origin: Mapping[str, Any]) -> dict[str, str]:
    """Entries of the file's metadata.

    Args:
        facts: Of the network.
        origin: Where it comes from: plain values by name, such as the checkpoint's checksum; for people.
    """
    values = {
        "format": FORMAT,
        "class_names": list(CLASS_NAMES),
        "backbone": facts.backbone,
        "image_size": facts.image_size,
        "mean": list(facts.mean),
        "std": list(facts.std),
        "calibration": None if facts.calibration is None else asdict(facts.calibration),
        "domain": None if facts.domain is None else plain_domain(facts.domain),
        "stain": None if facts.stain is None else facts.stain.plain(),
        "input": f"{INPUT}: uint8 (batch, {facts.image_size}, {facts.image_size}, 3), RGB; normalized inside",
        "output": f"{OUTPUT}: float32 (batch, {len(CLASS_NAMES)}); their softmax are the probabilities of class_names",
        "resized": RESIZED,
        "notice": NOTICE,
        "license": LICENSE,
        **origin,
    }
    return {f"{PREFIX}{name}": json.dumps(value, ensure_ascii=False) for name, value in values.items()}


def from_metadata(metadata: Mapping[str, str]) -> NetworkFacts:
    """The facts that `to_metadata` wrote.

    Raises:
        ValueError: If something is missing or not possible; the text names it.
    """
    if f"{PREFIX}format" not in metadata:
        raise ValueError(f"its metadata has no {PREFIX}format")
    version = _value(metadata, "format")
    if version != FORMAT:
        raise ValueError(f"{PREFIX}format is {quoted(version)}, not {FORMAT}: another version wrote it")
    class_names = _value(metadata, "class_names")
    if class_names != list(CLASS_NAMES):
        raise ValueError(f"class_names is {quoted(class_names)}, not {list(CLASS_NAMES)}")
    backbone, size = _value(metadata, "backbone"), _value(metadata, "image_size")
    if not isinstance(backbone, str) or not backbone.isprintable() or len(backbone) > 200:
        raise ValueError(f"backbone is {quoted(backbone)}, not a name")
    if isinstance(size, bool) or not isinstance(size, int) or not SMALLEST_IMAGE <= size <= LARGEST_SIDE:
        raise ValueError(f"image_size is {quoted(size)}, not a whole number from {SMALLEST_IMAGE} to {LARGEST_SIDE:,}")
    domain, calibration, stain = (_value(metadata, name) for name in ("domain", "calibration", "stain"))
    if stain is not None and not isinstance(stain, dict):
        raise ValueError(f"stain is {quoted(stain)}, neither null nor a target of stains")
    return NetworkFacts(
        backbone=backbone,
        image_size=size,
        mean=_three(metadata, "mean", above=-1),
        std=_three(metadata, "std", above=0),
        calibration=None if calibration is None else _calibration(calibration),
        domain=None if domain is None else restored_domain(domain),
        stain=None if stain is None else restored_target(stain),
    )


def _value(metadata: Mapping[str, str], name: str) -> Any:
    """The value of an entry.

    Raises:
        ValueError: If it is missing, too long, or no JSON.
    """
    text = metadata.get(f"{PREFIX}{name}")
    if text is None:
        raise ValueError(f"its metadata has no {PREFIX}{name}")
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"{PREFIX}{name} has {len(text):,} characters, expected at most {LONGEST_TEXT:,}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{PREFIX}{name} is no JSON: {quoted(text)}") from error


def _three(metadata: Mapping[str, str], name: str, *, above: float) -> tuple[float, float, float]:
    match _value(metadata, name):
        case [int() | float() as red, int() | float() as green, int() | float() as blue] if all(
            math.isfinite(value) and above < value <= 1 for value in (red, green, blue)
        ):
            return float(red), float(green), float(blue)
        case other:
            raise ValueError(f"{name} is {quoted(other)}, not three numbers up to 1")


def _calibration(values: object) -> Calibration:
    try:
        return calibration_from(values)
    except DamagedFileError as damage:
        raise ValueError(f"calibration: {damage}") from damage
