"""From the classes a network tells apart to the two that every run is evaluated on."""

import torch
from torch import Tensor, nn

from breakhis_pl.data.breakhis import CLASS_NAMES, SUBTYPES, TASKS


def summed(logits: Tensor, task: str) -> Tensor:
    """Logits of benign and malignant whose softmax are the sums of the probabilities of the tumor types of each.

    Args:
        logits: (batch, n_classes), of the classes of the task.
        task: A key of `TASKS`; those of "binary" are given back as they are.

    Returns:
        (batch, 2), columns as in `CLASS_NAMES`.

    Example:
        >>> torch.softmax(summed(torch.zeros(1, 8), "subtype"), dim=1).tolist()
        [[0.5, 0.5]]
    """
    if task == "binary":
        return logits
    of_class = [
        [place for place, code in enumerate(TASKS[task]) if SUBTYPES[code].class_name == name] for name in CLASS_NAMES
    ]
    return torch.stack([logits[:, places].logsumexp(dim=1) for places in of_class], dim=1)


class SummedTypes(nn.Module):
    """A network of tumor types as one of benign and malignant.

    Args:
        network: From images to logits of the classes of the task.
        task: A key of `TASKS`.
    """

    def __init__(self, network: nn.Module, task: str) -> None:
        super().__init__()
        self.network = network
        self.task = task

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, 2) of normalized images."""
        return summed(self.network(images), self.task)
