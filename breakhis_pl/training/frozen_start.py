"""A start with the head alone: what is pretrained is not disturbed by a head that knows nothing yet."""

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback
from torch import nn

from breakhis_pl.models.classifier import Classifier
from breakhis_pl.models.stages import head_of


class FrozenStart(Callback):
    """Trains the head alone for the first epochs, then everything.

    What lies below the head then needs no gradient and is in evaluation mode, so that the statistics of its batch norm
    stay as they are. All parameters are the optimizer's from the start; it leaves those without a gradient alone.

    Args:
        n_epochs: That the head is trained alone for.
    """

    def __init__(self, n_epochs: int) -> None:
        self.n_epochs = n_epochs
        self._is_frozen = False

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Freezes or thaws, by the number of the epoch alone."""
        if not isinstance(pl_module, Classifier):
            raise TypeError(f"expected a Classifier, got {type(pl_module).__name__}")
        if trainer.current_epoch < self.n_epochs:
            freeze(pl_module.network)
            self._is_frozen = True
        elif self._is_frozen:
            thaw(pl_module.network)
            self._is_frozen = False


def freeze(network: nn.Module) -> None:
    """Leaves only the head to be trained; everything else is in evaluation mode."""
    network.requires_grad_(requires_grad=False).eval()
    head_of(network).requires_grad_().train()


def thaw(network: nn.Module) -> None:
    """Leaves everything to be trained."""
    network.requires_grad_().train()
