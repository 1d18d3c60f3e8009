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
from breakhis_pl.models.classifier import Classifier
from breakhis_pl.training.background import BackgroundCheckpointIO

LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"
"""Inside the run folder."""


class LastCheckpoint(Callback):
    """Keeps the state after the last finished epoch.

    Where an epoch ends before the file of an earlier one is written, it is left out: what is lost with a killed
    process is the epoch it was in, or what was computed while one file is written.

    Args:
        folder: The run folder.
        writer: The trainer's plugin that writes checkpoints.
    """

    def __init__(self, folder: Path, writer: BackgroundCheckpointIO) -> None:
        self.path = folder / LAST_CHECKPOINT
        self.writer = writer

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Has the checkpoint written."""
        is_last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if self.writer.is_busy and not is_last:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        trainer.save_checkpoint(self.path)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Waits for the last file."""
        self.writer.flush()


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


def load_checkpoint(
    path: Path,
    *,
    evaluated: tuple[str, ...] = ("test",),
    memory_format: torch.memory_format = torch.channels_last,
) -> TrainedNetwork:
    """The network in a checkpoint, rebuilt from plain values; nothing in the file is run.

    Args:
        path: Written by `LastCheckpoint`.
        evaluated: Subsets the classifier will be evaluated on.
        memory_format: Of the network.

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
        return _rebuilt(content, evaluated, memory_format)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not hold a network of breakhis_pl: {str(error).splitlines()[0]}") from error


def _rebuilt(
    content: Mapping[str, Any], evaluated: tuple[str, ...], memory_format: torch.memory_format
) -> TrainedNetwork:
    facts = content["breakhis_pl"]
    if facts["class_names"] != list(CLASS_NAMES) or facts["backbone"] not in BACKBONES:
        raise ValueError(f"network {facts['backbone']} for classes {facts['class_names']}")
    classifier = Classifier(
        facts["backbone"], dropout=facts["dropout"], evaluated=evaluated, memory_format=memory_format
    )
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
