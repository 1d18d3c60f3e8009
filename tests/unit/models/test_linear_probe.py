import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional

from breakhis_pl.errors import TrainingError
from breakhis_pl.models import linear_probe
from breakhis_pl.models.linear_probe import fit_linear_probe

L2 = 0.05


def draw_problem(n_classes: int, *, n: int = 90) -> tuple[Tensor, Tensor]:
    """Features on different scales, and targets that depend on them."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn((n, 6), generator=generator)
    scores = features @ torch.randn((6, n_classes), generator=generator) + torch.randn(
        (n, n_classes), generator=generator
    )
    return features * torch.tensor([1.0, 100.0, 0.01, 1.0, 5.0, 1.0]) + 3, scores.argmax(dim=1)


def fit(features: Tensor, targets: Tensor, *, n_classes: int, class_weights: Tensor | None = None) -> nn.Linear:
    head = nn.Linear(features.shape[1], n_classes)
    fit_linear_probe(head, features, targets, l2=L2, class_weights=class_weights)
    return head


def minimize(features: Tensor, targets: Tensor, *, n_classes: int, class_weights: Tensor | None = None) -> Tensor:
    """Probabilities at the minimum of the documented objective, by torch's L-BFGS on one row of weights per class."""
    values = features.double()
    values = (values - values.mean(dim=0)) / values.std(dim=0, correction=0)
    weight = torch.zeros((n_classes, values.shape[1]), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(n_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")
    of_image = torch.ones(len(targets)) if class_weights is None else class_weights[targets]

    def objective() -> Tensor:
        optimizer.zero_grad()
        losses = functional.cross_entropy(values @ weight.T + bias, targets, reduction="none")
        loss = (of_image * losses).mean() + L2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    return (values @ weight.T + bias).softmax(dim=1).detach()


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_the_fit_minimizes_the_documented_objective(n_classes: int, is_weighted: bool) -> None:
    features, targets = draw_problem(n_classes)
    weights = torch.tensor([0.5, 2.0, 1.0])[:n_classes] if is_weighted else None
    found = fit(features, targets, n_classes=n_classes, class_weights=weights)(features).softmax(dim=1).double()
    expected = minimize(features, targets, n_classes=n_classes, class_weights=weights)
    torch.testing.assert_close(found.detach(), expected, atol=1e-4, rtol=0)


def test_three_classes_equal_scikit_learn_with_the_penalty_as_c() -> None:
    features, targets = draw_problem(3)
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (L2 * len(targets)), tol=1e-8))
    reference.fit(features.double().numpy(), targets.numpy())
    found = fit(features, targets, n_classes=3)(features).softmax(dim=1)
    np.testing.assert_allclose(found.detach().numpy(), reference.predict_proba(features.double().numpy()), atol=1e-4)


def test_a_constant_feature_gets_no_weight() -> None:
    features, targets = draw_problem(2)
    features[:, 3] = 7.0
    head = fit(features, targets, n_classes=2)
    assert torch.equal(head.weight[:, 3], torch.zeros(2))
    assert head.weight.isfinite().all()


def test_a_class_without_images_is_not_predicted_and_does_not_change_the_others() -> None:
    features, targets = draw_problem(2)
    probabilities = fit(features, targets * 3, n_classes=5)(features).softmax(dim=1)
    expected = fit(features, targets, n_classes=2)(features).softmax(dim=1)
    torch.testing.assert_close(probabilities[:, [0, 3]], expected, atol=1e-4, rtol=0)
    assert probabilities[:, [1, 2, 4]].max() < 1e-4


def test_features_that_are_not_finite_are_refused() -> None:
    features, targets = draw_problem(2)
    features[3, 2] = torch.inf
    with pytest.raises(TrainingError, match=r"model\.weights"):
        fit(features, targets, n_classes=2)


def test_a_fit_that_does_not_converge_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_probe, "MAX_ITERATIONS", 1)
    with pytest.raises(TrainingError, match=r"model\.l2"):
        fit(*draw_problem(3), n_classes=3)
