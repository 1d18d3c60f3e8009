"""ensemble.json: which runs an averaged table of predictions comes from, written beside it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from breakhis_pl.data.dataset import Subset
from breakhis_pl.evaluation.file_texts import DamagedFileError
from breakhis_pl.evaluation.json_values import count_at, flag_at, json_object, object_at, text_at, value_at
from breakhis_pl.evaluation.texts import quoted
from breakhis_pl.run_folder import write_text

ENSEMBLE_JSON = "ensemble.json"
"""In the folder of an ensemble, beside its predictions.csv."""

MOST_MEMBERS = 1_000
MOST_SIBLINGS = 100_000


@dataclass(frozen=True, slots=True)
class EnsembleMember:
    """A run whose probabilities were averaged.

    Attributes:
        name: As in the comparison.
        folder: Its run folder, as it was found.
        predictions_checksum: Of the table that was averaged.
        model: Backbone.
        seed: Seed of the run.
        split_checksum: Of the split it was trained on.
    """

    name: str
    folder: str
    predictions_checksum: str
    model: str | None
    seed: int | None
    split_checksum: str | None


@dataclass(frozen=True, slots=True)
class Ensemble:
    """What an averaged table comes from.

    Attributes:
        table: The members' table, relative to their folders: "test/predictions.csv".
        members: The runs.
        split: "official" or "ratio", where all members have the same.
        fold: The authors' fold, where all members have the same.
        magnification: Magnifications that the images have.
        synthetic: Whether the images are drawn.
        complete: Whether every member had exactly the published images.
        siblings: Images of whose case a member was trained on another slide.
    """

    table: str
    members: tuple[EnsembleMember, ...]
    split: str | None
    fold: int | None
    magnification: tuple[int, ...]
    synthetic: bool | None
    complete: bool | None
    siblings: tuple[str, ...]


def write_ensemble_json(folder: Path, ensemble: Ensemble) -> None:
    """Writes ensemble.json into a folder that exists."""
    content = {"subset": Subset.TEST.value, "averaged": "probabilities", **asdict(ensemble)}
    write_text(folder / ENSEMBLE_JSON, json.dumps(content, indent=2) + "\n")


def read_ensemble_json(folder: Path) -> Ensemble:
    """What the ensemble.json of a folder says.

    Raises:
        DamagedFileError: If it cannot be read, or something in it is not what it should be.
    """
    document = json_object(folder / ENSEMBLE_JSON)
    members = value_at(document, "members")
    if not isinstance(members, list) or not 2 <= len(members) <= MOST_MEMBERS:
        raise DamagedFileError(f"members is {quoted(members)}; expected a list of two runs or more")
    return Ensemble(
        table=_text(document, "table"),
        members=tuple(_member(entry) for entry in members),
        split=text_at(document, "split"),
        fold=count_at(document, "fold"),
        magnification=tuple(_magnifications(value_at(document, "magnification"))),
        synthetic=flag_at(document, "synthetic"),
        complete=flag_at(document, "complete"),
        siblings=tuple(_names(value_at(document, "siblings"))),
    )


def _member(entry: object) -> EnsembleMember:
    document = object_at({"members": entry}, "members") or {}
    return EnsembleMember(
        name=_text(document, "name"),
        folder=_text(document, "folder"),
        predictions_checksum=_text(document, "predictions_checksum"),
        model=text_at(document, "model"),
        seed=count_at(document, "seed"),
        split_checksum=text_at(document, "split_checksum"),
    )


def _text(document: Mapping[str, Any], key: str) -> str:
    text = text_at(document, key)
    if text is None:
        raise DamagedFileError(f"{key} is missing; expected a text")
    return text


def _magnifications(value: object) -> list[int]:
    if isinstance(value, list) and all(type(part) is int and 0 < part < 10_000 for part in value):
        return value
    raise DamagedFileError(f"magnification is {quoted(value)}; expected numbers")


def _names(value: object) -> list[str]:
    if isinstance(value, list) and len(value) <= MOST_SIBLINGS and all(isinstance(part, str) for part in value):
        return value
    raise DamagedFileError(f"siblings is {quoted(value)}; expected names of images")
