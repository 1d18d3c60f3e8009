"""The exponential moving average of the weights, which is what is evaluated and kept.

Lightning's EMAWeightAveraging (2.6) is not used: it keeps the average where the module was before it moved to its
device, waits for the device in every step (torch's AveragedModel asks how many updates there were), rounds averages of
counters, and has one decay from the first step on, which in short runs keeps mostly the first weights.
"""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from breakhis_pl.training.distributed import put_means

OWN_WEIGHTS = "weights_before_averaging"
"""In a checkpoint: the weights that training goes on with; `state_dict` holds the averaged ones."""


class AveragedWeights(Callback):
    """Averages weights, and statistics of batch norm, after every step; evaluates and saves the average.

    Training itself goes on with its own weights. When it ends, the network has the averaged ones.

    Args:
        decay: Largest share of the average that a step keeps; see `decay_of_step`.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._n_steps = 0
        self._kept: Mapping[str, Tensor] = {}  # from a checkpoint
        self._names: list[str] = []
        self._weights: list[Tensor] = []  # the network's own memory
        self._averages: list[Tensor] = []
        self._set_aside: list[Tensor] | None = None

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"n_steps": self._n_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting."""
        self._n_steps = state_dict["n_steps"]

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Puts the average in the place of the weights, and these beside it."""
        own = checkpoint["state_dict"]
        checkpoint[OWN_WEIGHTS] = own
        checkpoint["state_dict"] = {**own, **dict(zip(self._names, self._averages, strict=True))}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes the average; the network gets its own weights back."""
        self._kept = checkpoint["state_dict"]
        pl_module.load_state_dict(checkpoint[OWN_WEIGHTS])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts with the weights there are, on the device of the training."""
        floating = {name: value for name, value in pl_module.state_dict().items() if value.is_floating_point()}
        self._names, self._weights = list(floating), list(floating.values())
        self._averages = [
            torch.empty_like(value).copy_(self._kept.get(name, value)) for name, value in floating.items()
        ]
        self._kept = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        """Moves the average towards the weights."""
        decay = decay_of_step(self._n_steps, self.decay)
        torch._foreach_lerp_(self._averages, self._weights, 1 - decay)
        self._n_steps += 1

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lends the network the average; what batch norm has seen is averaged over all processes too."""
        if trainer.state.fn == "fit":
            buffers = {name for name, _ in pl_module.named_buffers()}
            put_means([each for name, each in zip(self._names, self._averages, strict=True) if name in buffers])
            self._set_aside = [value.clone() for value in self._weights]
            torch._foreach_copy_(self._weights, self._averages)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gives the network its own weights back."""
        if self._set_aside is not None:
            torch._foreach_copy_(self._weights, self._set_aside)
            self._set_aside = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leaves the network with the average."""
        torch._foreach_copy_(self._weights, self._averages)


def decay_of_step(step: int, largest: float) -> float:
    """What a step keeps of the average: little at first, so that the first weights are soon forgotten.

    Args:
        step: Counted from 0.
        largest: Of the later steps.

    Source:
        TensorFlow's tf.train.ExponentialMovingAverage with num_updates.

    Example:
        >>> [round(decay_of_step(step, 0.9), 3) for step in (0, 1, 1000)]
        [0.1, 0.182, 0.9]
    """
    return min(largest, (1 + step) / (10 + step))
