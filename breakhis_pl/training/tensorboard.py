"""TensorBoard with one folder per subset, so that train and test of one quantity share a chart."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.tensorboard import SummaryWriter


class SubsetWriters:
    """A writer per subset, each in a folder of the subset's name; tags are the quantities.

    Args:
        folder: Made when the first value is written.
        first_epoch: Points from this epoch on that are there already are taken back.
    """

    def __init__(self, folder: Path, *, first_epoch: int = 1) -> None:
        self.folder = folder
        self.first_epoch = first_epoch
        self._writers: dict[str, SummaryWriter] = {}

    def add_scalar(self, subset: str, quantity: str, value: float, *, epoch: int) -> None:
        """Adds a point to a chart, at the epoch (from 1)."""
        self._writer(subset).add_scalar(quantity, value, global_step=epoch)

    def add_image(self, subset: str, name: str, pixels: npt.NDArray[np.uint8], *, epoch: int) -> None:
        """Adds a picture: uint8, (height, width, channels)."""
        self._writer(subset).add_image(name, pixels, global_step=epoch, dataformats="HWC")

    def add_text(self, subset: str, name: str, text: str) -> None:
        """Adds a text in Markdown."""
        self._writer(subset).add_text(name, text, global_step=0)

    def add_results(self, subset: str, metrics: Mapping[str, Any], *, epoch: int) -> None:
        """Nothing: the classification report stands there as a text, and a chart of one point says nothing."""

    def flush(self) -> None:
        """Writes what is left."""
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        """Writes what is left and closes the files."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _writer(self, subset: str) -> SummaryWriter:
        if subset not in self._writers:
            place = self.folder / subset
            self._writers[subset] = SummaryWriter(str(place), purge_step=self.first_epoch if place.exists() else None)
        return self._writers[subset]
