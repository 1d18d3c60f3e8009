"""Which epoch of a training counts, where a validation value decides: the best so far, and when to stop waiting."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from breakhis_pl.config import MONITORS
from breakhis_pl.errors import ConfigurationError
from breakhis_pl.evaluation.confusion import balanced_accuracy, confusion_matrix
from breakhis_pl.evaluation.scores import roc_auc


class Selection:
    """The best epoch so far by a validation value; of equal ones the earlier.

    Its state is kept with the history in every checkpoint, so that a run that goes on chooses as if it never stopped.

    Args:
        monitor: One of `config.MONITORS`; a loss is better when lower, everything else when higher.
        patience: Epochs without a better value after which the training stops; None never stops it.
        n_frozen: First epochs that train the head alone; patience begins after them.

    Attributes:
        best_epoch: From 1; None before the first epoch has ended.
        best_value: Of the monitor in this epoch.
        stopped_after: Epoch after which patience had run out; None while it has not.

    Raises:
        ConfigurationError: If there is no such monitor.
    """

    def __init__(self, monitor: str, *, patience: int | None = None, n_frozen: int = 0) -> None:
        if monitor not in MONITORS:
            raise ConfigurationError(f"trainer.monitor={monitor} is not possible")
        self.monitor = monitor
        self.patience = patience
        self.n_frozen = n_frozen
        self.best_epoch: int | None = None
        self.best_value: float | None = None
        self.stopped_after: int | None = None

    def take(self, epoch: int, value: float) -> None:
        """Looks at the value of an epoch, counted from 1; each epoch is to come once, in order."""
        if self.best_epoch is None or self.best_value is None or self._is_better(value, self.best_value):
            self.best_epoch, self.best_value = epoch, value
        elif self.patience is not None and epoch - max(self.best_epoch, self.n_frozen) >= self.patience:
            self.stopped_after = epoch

    def _is_better(self, value: float, other: float) -> bool:
        return value < other if self.monitor.endswith("_loss") else value > other

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint and for run.json."""
        return {
            "monitor": self.monitor,
            "patience": self.patience,
            "best_epoch": self.best_epoch,
            "best_value": self.best_value,
            "stopped_after": self.stopped_after,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes what was chosen so far; monitor and patience stay those of the configuration."""
        self.best_epoch, self.best_value = state["best_epoch"], state["best_value"]
        self.stopped_after = state["stopped_after"]


def monitored_value(monitor: str, targets: npt.NDArray[np.int64], logits: Tensor) -> float:
    """A monitored value that the history does not have anyway.

    Args:
        monitor: "val_balanced_accuracy" or "val_auroc".
        targets: Index of the class of each validation image; int, (n_images,).
        logits: float32, (n_images, 2).

    Raises:
        ConfigurationError: If it is another one, or not defined because a class has no image.
    """
    probabilities = torch.softmax(logits.double(), dim=1).numpy()
    match monitor:
        case "val_balanced_accuracy":
            value = float(balanced_accuracy(confusion_matrix(targets, probabilities.argmax(axis=1).astype(np.int64))))
        case "val_auroc":
            area = roc_auc(targets, probabilities[:, 1])
            value = float("nan") if area is None else area
        case _:
            raise ConfigurationError(f"trainer.monitor={monitor} is not computed from logits")
    if not np.isfinite(value):
        raise ConfigurationError(f"trainer.monitor={monitor} needs validation images of both classes")
    return value
