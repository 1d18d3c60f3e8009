"""Linear probe: a linear head on fixed features, fitted as a logistic regression."""

import warnings

import torch
from torch import Tensor, nn

from breakhis_pl.errors import TrainingError

TOLERANCE = 1e-6
"""Largest component of the gradient at convergence; the loss is of the order of 1."""

MAX_ITERATIONS = 2_000

ABSENT_CLASS_LOGIT = -14.0
"""Bias of a class without train images, whose optimum is minus infinity: a probability of about 1e-6."""


def fit_linear_probe(
    head: nn.Linear,
    features: Tensor,
    targets: Tensor,
    *,
    l2: float,
    class_weights: Tensor | None = None,
    weights: Tensor | None = None,
) -> None:
    """Fit a linear head to features.

    Minimizes the mean cross-entropy plus l2 / 2 times the sum of the squared weights, on features standardized to zero
    mean and unit variance. The standardization is folded into the head, which takes features as they are. Nothing is
    random, and the previous weights of the head do not matter.

    Args:
        head: From n_features to n_classes; its weights are replaced.
        features: float, (n, n_features), of train images.
        targets: int64, (n,).
        l2: Weight of the penalty, above 0.
        class_weights: float, (n_classes,), weights of the cross-entropy of each class; None for 1.
        weights: float, (n,), weights of the cross-entropy of each image; None for 1.

    Raises:
        TrainingError: If features are not finite, or the fit does not converge.
    """
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415 - takes three seconds
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    if not features.isfinite().all():
        raise TrainingError("features of the frozen backbone are not finite; set other model.weights")
    scaler = StandardScaler()
    standardized = scaler.fit_transform(features.detach().cpu().double().numpy())  # (n, n_features)
    labels = targets.cpu().numpy()
    is_binary = len(set(labels.tolist())) == 2
    regression = LogisticRegression(
        # scikit-learn fits two classes with one row of weights w, here the rows -w/2 and w/2: half the penalty
        C=(2 if is_binary else 1) / (l2 * len(labels)),
        class_weight=None if class_weights is None else dict(enumerate(class_weights.tolist())),
        tol=TOLERANCE,
        max_iter=MAX_ITERATIONS,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            regression.fit(standardized, labels, sample_weight=None if weights is None else weights.cpu().numpy())
    except ConvergenceWarning as error:
        raise TrainingError(f"no convergence of the linear probe in {MAX_ITERATIONS} steps; raise model.l2") from error
    weight, bias = torch.from_numpy(regression.coef_ / scaler.scale_), torch.from_numpy(regression.intercept_)
    bias = bias - weight @ torch.from_numpy(scaler.mean_)
    if is_binary:
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(ABSENT_CLASS_LOGIT)
        head.weight[regression.classes_] = weight.to(head.weight)
        head.bias[regression.classes_] = bias.to(head.bias)
