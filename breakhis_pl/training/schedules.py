"""Learning rates over the epochs that torch has no single class for."""

import math

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class WarmupCosine(LRScheduler):
    """A linear warm-up, then half a cosine down; stepped once an epoch, like all schedules here.

    With n warm-up epochs, epoch e (from 0) has (e + 1) / (n + 1) of the learning rate while e < n; the whole of it
    at e = n; from there half a cosine ends at `eta_min` after T_max epochs, and stays. Each rate is computed from the
    number of the epoch alone.

    Args:
        optimizer: Each of its groups keeps its own largest rate.
        T_max: Epochs until the rate is at its lowest.
        warmup_epochs: Below T_max.
        eta_min: Lowest rate.
        last_epoch: As of torch's schedules.

    Source:
        Goyal et al. 2017, arXiv:1706.02677; Loshchilov and Hutter 2017, arXiv:1608.03983.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_max: int,  # noqa: N803 - as torch's CosineAnnealingLR calls it
        warmup_epochs: int,
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.T_max = T_max
        self.warmup_epochs = warmup_epochs
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Rate of each group in the present epoch."""
        return [
            warmup_cosine(
                self.last_epoch, float(base), T_max=self.T_max, n_warmup=self.warmup_epochs, lowest=self.eta_min
            )
            for base in self.base_lrs
        ]


def warmup_cosine(epoch: int, base: float, *, T_max: int, n_warmup: int, lowest: float = 0.0) -> float:  # noqa: N803
    """Learning rate of an epoch.

    Args:
        epoch: Counted from 0.
        base: Largest rate.
        T_max: Epochs until the rate is at its lowest.
        n_warmup: Warm-up epochs.
        lowest: The rate at the end.

    Example:
        >>> [round(warmup_cosine(epoch, 0.9, T_max=4, n_warmup=2), 3) for epoch in range(5)]
        [0.3, 0.6, 0.9, 0.45, 0.0]
    """
    if epoch < n_warmup:
        return base * (epoch + 1) / (n_warmup + 1)
    done = min(1.0, (epoch - n_warmup) / (T_max - n_warmup))
    return lowest + (base - lowest) * (1 + math.cos(math.pi * done)) / 2
