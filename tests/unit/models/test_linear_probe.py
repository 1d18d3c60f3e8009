import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

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


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_the_fit_minimizes_the_documented_objective(n_classes: int, is_weighted: bool) -> None:
    features, targets = draw_problem(n_classes)
    weights = torch.tensor([0.5, 2.0, 1.0])[:n_classes] if is_weighted else None
    found = fit(features, targets, n_classes=n_classes, class_weights=weights)(features).softmax(dim=1)
    # scikit-learn sums the loss; its one row of weights for two classes is the difference of our two
    penalty = (2 if n_classes == 2 else 1) / (L2 * len(targets))
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, tol=1e-8, max_iter=1000))
    of_image = None if weights is None else weights[targets].numpy()
    reference.fit(features.double().numpy(), targets.numpy(), logisticregression__sample_weight=of_image)
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


def test_a_weight_of_2_counts_like_an_image_given_twice() -> None:
    features, targets = draw_problem(2)
    features = features - features.mean(0)
    features, targets = torch.cat([features, -features]), torch.cat([targets, targets])
    standard = features / features.std(0, correction=0)
    weights = 1.0 + (torch.arange(len(targets)) % 2)
    head = nn.Linear(6, 2)
    fit_linear_probe(head, standard, targets, l2=L2, weights=weights)
    reference = LogisticRegression(C=2 / (L2 * len(targets)), tol=1e-8, max_iter=1000)
    reference.fit(standard.double(), targets, weights.double())
    expected = reference.predict_proba(standard.double())
    np.testing.assert_allclose(head(standard).softmax(1).detach(), expected, atol=1e-4)
