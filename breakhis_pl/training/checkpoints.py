"""The checkpoint of the last finished epoch, and what is read from one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback

from breakhis_pl.config import BACKBONES
from breakhis_pl.data.breakhis import CLASS_NAMES
from breakhis_pl.errors import CheckpointError
from breakhis_pl.files import written_aside
from breakhis_pl.models.classifier import Classifier

LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"
"""Inside the run folder."""


class LastCheckpoint(Callback):
    """Keeps the state after the last finished epoch; the file is always whole.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LAST_CHECKPOINT

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the checkpoint aside and renames it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(self.path) as aside:
            trainer.save_checkpoint(aside)


@dataclass(frozen=True, slots=True)
class TrainedNetwork:
    """A network as a checkpoint holds it.

    Attributes:
        classifier: With the trained weights, on the CPU.
        mean: Of the train images, per channel, values in [0, 1].
        std: Likewise the standard deviation.
        image_size: Side in pixels of the images it was trained on.
        split_checksum: Of the split it was trained on.
        epoch: Number of finished epochs.
    """

    classifier: Classifier
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    split_checksum: str | None
    epoch: int


def load_checkpoint(path: Path, *, evaluated: tuple[str, ...] = ("test",)) -> TrainedNetwork:
    """The network in a checkpoint, rebuilt from plain values; nothing in the file is run.

    Args:
        path: Written by `LastCheckpoint`.
        evaluated: Subsets the classifier will be evaluated on.

    Raises:
        CheckpointError: If the file is missing, damaged, or something else.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; expected a checkpoint, as in <run folder>/{LAST_CHECKPOINT}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its parsers do
        raise CheckpointError(f"{path} is no checkpoint: {type(error).__name__} while reading") from error
    if not isinstance(content, dict) or not isinstance(content.get("breakhis_pl"), dict):
        raise CheckpointError(f"{path} is no checkpoint of breakhis_pl; expected one that train.py wrote")
    try:
        return _rebuilt(content, evaluated)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not hold a network of breakhis_pl: {str(error).splitlines()[0]}") from error


def _rebuilt(content: Mapping[str, Any], evaluated: tuple[str, ...]) -> TrainedNetwork:
    facts = content["breakhis_pl"]
    if facts["class_names"] != list(CLASS_NAMES) or facts["backbone"] not in BACKBONES:
        raise ValueError(f"network {facts['backbone']} for classes {facts['class_names']}")
    classifier = Classifier(facts["backbone"], dropout=facts["dropout"], evaluated=evaluated)
    classifier.load_state_dict(content["state_dict"])
    statistics = content["BreakHisDataModule"]
    return TrainedNetwork(
        classifier=classifier,
        mean=_three(statistics["mean"]),
        std=_three(statistics["std"]),
        image_size=statistics["image_size"],
        split_checksum=statistics.get("split_checksum"),
        epoch=content["epoch"] + 1,
    )


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    """Values of red, green and blue."""
    red, green, blue = (float(value) for value in values)
    return red, green, blue
