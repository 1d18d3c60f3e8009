"""What stands behind a network: the layers that turn its features into logits, and the loss they are trained by."""

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor, nn
from torch.nn import functional

from breakhis_pl.data.breakhis import CLASS_NAMES

HEAD_FEATURES = (256, 100)
"""Outputs of the first two fully connected layers of the report's head (Otto et al. 2022)."""

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def build_head(kind: str, n_features: int, *, dropout: float, n_classes: int = len(CLASS_NAMES)) -> nn.Module:
    """A head with random weights.

    Args:
        kind: "report" (Linear-ReLU-Dropout-Linear-ReLU-Linear with 256, 100 and 2 outputs), "linear" or "svm" (one
            Linear).
        n_features: Length of what the head is given.
        dropout: Probability of dropout in the report's head, in [0, 1).
        n_classes: Number of logits.

    Source:
        Otto et al. 2022.
    """
    if kind != "report":
        return nn.Linear(n_features, n_classes)
    first, second = HEAD_FEATURES
    return nn.Sequential(
        nn.Linear(n_features, first),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(first, second),
        nn.ReLU(inplace=True),
        nn.Linear(second, n_classes),
    )


def loss_of(head: str) -> Loss:
    """The loss of a head, from logits (batch, n_classes) and targets (batch,) to a mean over the batch.

    Cross-entropy; of "svm" the squared multi-class hinge, with a margin of 1 between the logits: zero for images on
    the right side by at least that much.

    Source:
        Crammer and Singer, JMLR 2, 2001 (the margin); Lee and Lin, Neural Computation 25, 2013 (its square).
    """
    return functional.cross_entropy if head != "svm" else _squared_hinge


def _squared_hinge(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.multi_margin_loss(logits, targets, p=2)
