"""One linear layer on fixed features, solved for: the convex problem has one best answer, found in seconds."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from breakhis_pl.errors import TrainingError
from breakhis_pl.models.heads import Loss

MOST_ITERATIONS = 2_000

SMALLEST_GRADIENT = 1e-6
"""Largest component at which the loss is taken to be at its lowest; the loss itself is of the order of 1."""

ENOUGH_GRADIENT = 1e-3
"""Where rounding stops the search before, this is still the answer to three digits."""


class Solution(NamedTuple):
    """How a search ended.

    Attributes:
        n_iterations: Steps of L-BFGS.
        gradient: Largest component at the end.
    """

    n_iterations: int
    gradient: float


def solve_head(head: nn.Linear, features: Tensor, targets: Tensor, *, loss: Loss, l2: float) -> Solution:
    """Finds the weights of a linear head that minimize the mean loss plus a penalty on the weights.

    Features are standardized by mean and standard deviation over the images given, and l2 / 2 times the sum of the
    squared weights on that scale is added to the mean loss. What is found is written into the head on the scale of the
    features as they are. Computed in float64 on the CPU; nothing is drawn, so it is the same every time.

    Args:
        head: From n_features to n_classes; changed.
        features: float, (n_images, n_features), of the train images alone.
        targets: int64, (n_images,).
        loss: From logits and targets to a mean.
        l2: Weight of the penalty, above 0.

    Raises:
        TrainingError: If features are not finite, or the search does not end.

    Source:
        Liu and Nocedal, Mathematical Programming 45, 1989 (L-BFGS).
    """
    given = features.detach().cpu().double()
    if not given.isfinite().all():
        raise TrainingError("the features of the frozen network are not finite; use other model.weights")
    mean, deviation = given.mean(dim=0), given.std(dim=0, correction=0)
    scale = torch.where(deviation > 0, deviation, 1.0)  # of a feature that never changes the weight stays 0
    standardized = (given - mean) / scale  # (n_images, n_features)
    labels = targets.cpu()
    weight = torch.zeros(head.weight.shape, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(head.bias.shape, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MOST_ITERATIONS,
        max_eval=MOST_ITERATIONS * 2,
        tolerance_grad=SMALLEST_GRADIENT,
        tolerance_change=1e-14,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        search.zero_grad()
        value = loss(standardized @ weight.T + bias, labels) + l2 / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    search.step(objective)  # type: ignore[no-untyped-call]
    objective()
    gradient = max(float(each.grad.abs().max()) for each in (weight, bias) if each.grad is not None)
    n_iterations = int(search.state[weight]["n_iter"])
    if not gradient <= ENOUGH_GRADIENT:
        raise TrainingError(
            f"the head has not converged after {n_iterations} iterations (gradient {gradient:.2g}); raise model.l2"
        )
    with torch.no_grad():
        head.weight.copy_(weight / scale)
        head.bias.copy_(bias - (weight / scale) @ mean)
    return Solution(n_iterations, gradient)
