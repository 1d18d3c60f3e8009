"""Heads: from the features of a backbone to logits."""

from typing import Literal

from torch import nn

MLP_WIDTHS = (256, 100)
"""Units of the hidden layers of `head=mlp` (Otto et al. 2022)."""


def build_head(kind: Literal["mlp", "linear"], n_features: int, *, n_classes: int, dropout: float) -> nn.Module:
    """Build a head with random weights.

    Args:
        kind: "mlp" (Linear, ReLU, dropout, Linear, ReLU, Linear) or "linear" (one Linear).
        n_features: Number of input features.
        n_classes: Number of logits.
        dropout: Dropout probability of "mlp".

    Returns:
        A module from float (batch, n_features) to logits (batch, n_classes).

    Source:
        Otto et al. 2022.
    """
    if kind == "linear":
        return nn.Linear(n_features, n_classes)
    first, second = MLP_WIDTHS
    return nn.Sequential(
        nn.Linear(n_features, first),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(first, second),
        nn.ReLU(inplace=True),
        nn.Linear(second, n_classes),
    )
