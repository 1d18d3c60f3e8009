import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from breakhis_pl.errors import TrainingError
from breakhis_pl.models.heads import loss_of
from breakhis_pl.training import solver
from breakhis_pl.training.solver import solve_head

L2 = 0.05


def problem(n: int = 80, n_features: int = 6) -> tuple[Tensor, Tensor]:
    """Features of very different scale, and targets that they tell apart in part."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn((n, n_features), generator=generator)
    targets = (features[:, 0] - features[:, 1] + torch.randn(n, generator=generator) > 0.4).long()
    return features * torch.tensor([1.0, 100.0, 0.01, 1.0, 5.0, 1.0]) + 3, targets


def solved(head: str, features: Tensor, targets: Tensor) -> nn.Linear:
    layer = nn.Linear(features.shape[1], 2)
    solve_head(layer, features, targets, loss=loss_of(head), l2=L2)
    return layer


def standardized(features: Tensor) -> np.ndarray:
    values = features.double().numpy()
    return (values - values.mean(axis=0)) / values.std(axis=0)


def test_the_linear_head_is_scikit_learns_logistic_regression() -> None:
    features, targets = problem()
    probabilities = torch.softmax(solved("linear", features, targets)(features), dim=1)[:, 1].detach().numpy()
    # both rows of weights are penalized, which is half the penalty on their difference
    reference = LogisticRegression(C=2 / (len(targets) * L2), tol=1e-10, max_iter=10_000)
    reference.fit(standardized(features), targets.numpy())
    expected = reference.predict_proba(standardized(features))[:, 1]
    np.testing.assert_allclose(probabilities, expected, atol=1e-4)


def test_the_svm_head_is_the_squared_hinge_at_its_lowest() -> None:
    features, targets = problem()
    logits = solved("svm", features, targets)(features).detach()
    rows, signs = standardized(features), 2.0 * targets.numpy() - 1

    def objective(given: np.ndarray) -> float:
        margin = signs * (rows @ given[:-1] + given[-1])
        return float(np.mean(np.maximum(0, 1 - margin) ** 2) / 2 + L2 / 4 * np.sum(given[:-1] ** 2))

    reference = minimize(objective, np.zeros(rows.shape[1] + 1), method="BFGS", options={"gtol": 1e-9})
    expected = rows @ reference.x[:-1] + reference.x[-1]
    np.testing.assert_allclose((logits[:, 1] - logits[:, 0]).numpy(), expected, atol=1e-3)


def test_a_feature_that_never_changes_is_left_out() -> None:
    features, targets = problem()
    features[:, 3] = 7.0
    head = solved("linear", features, targets)
    assert torch.equal(head.weight[:, 3], torch.zeros(2))
    assert head.weight.isfinite().all()


def test_the_same_features_give_the_same_bits() -> None:
    first, again = (solved("linear", *problem()) for _ in range(2))
    assert torch.equal(first.weight, again.weight)


def test_features_that_are_not_finite_are_refused() -> None:
    features, targets = problem()
    features[3, 2] = torch.inf
    with pytest.raises(TrainingError, match="features of the frozen network are not finite"):
        solved("linear", features, targets)


def test_a_search_that_does_not_end_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver, "MOST_ITERATIONS", 1)
    with pytest.raises(TrainingError, match=r"has not converged after 1 iterations \(gradient .*\); raise model\.l2"):
        solved("linear", *problem())
