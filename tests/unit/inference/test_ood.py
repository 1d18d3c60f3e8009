from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from sklearn.covariance import LedoitWolf
from sklearn.preprocessing import StandardScaler
from torch import nn

from breakhis_pl.data.datamodule import BreakHisDataModule
from breakhis_pl.evaluate import load_classifier
from breakhis_pl.inference.ood import QUANTILE, OODDetector, fit_detector, fit_ood, record_features
from tests.configs import train_config


def sample(n: int, *, seed: int, n_features: int = 200) -> np.ndarray:
    """Positive features with a mean and correlations, as a network's."""
    mixing = np.random.default_rng(0).normal(size=(20, n_features))
    rng = np.random.default_rng(seed)
    return np.maximum(3 + 0.2 * rng.normal(size=(n, 20)) @ mixing + 0.1 * rng.normal(size=(n, n_features)), 0)


@pytest.fixture(scope="module")
def detector() -> OODDetector:
    fitted = fit_detector(sample(300, seed=1), [str(index // 10) for index in range(300)])
    assert fitted is not None
    return fitted


def test_images_of_the_same_kind_are_within_the_limit_and_others_are_not(detector: OODDetector) -> None:
    assert (detector.distances(sample(1000, seed=2)) > 1).mean() == pytest.approx(1 - QUANTILE, abs=0.03)
    assert (detector.distances(np.random.default_rng(3).gamma(1, size=(50, 200))) > 1).all()


@pytest.mark.parametrize("n_images", [120, 300])  # fewer and more than features
def test_the_distance_is_that_of_scikit_learn_on_standardized_features(n_images: int) -> None:
    train, test = sample(n_images, seed=1), sample(9, seed=2)
    detector = fit_detector(train, [str(index // 10) for index in range(n_images)])
    assert detector is not None
    scaler = StandardScaler().fit(train)
    expected = np.sqrt(LedoitWolf().fit(scaler.transform(train)).mahalanobis(scaler.transform(test)))
    np.testing.assert_allclose(detector.distances(test), expected / detector.limit, rtol=1e-6)


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "swin_t", "googlenet"])
def test_any_network_has_features_of_its_inner_layers(name: str) -> None:
    network = torchvision.models.get_model(
        name, weights=None, **({"init_weights": False} if name == "googlenet" else {})
    )
    network.eval()
    size = 224 if name == "vit_b_16" else 64
    with torch.inference_mode(), record_features(network) as recorded:
        network(torch.zeros(2, 3, size, size))
    assert len(recorded) == 3
    assert all(features.shape[0] == 2 and features.shape[1] >= 32 and features.ndim == 2 for features in recorded)


class Mean(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


@pytest.mark.parametrize(
    ("network", "widths"),
    [
        (Mean(), [3, 3, 3]),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 6, 1), Mean()), [4, 4, 5]),
    ],
)
def test_a_network_of_few_layers_has_features_too(network: nn.Module, widths: list[int]) -> None:
    with torch.inference_mode(), record_features(network) as recorded:
        network(torch.zeros(2, 3, 8, 8))
    assert [features.shape for features in recorded] == [(2, width) for width in widths]


def test_recorded_features_are_means_over_places() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 3), nn.Flatten(2), nn.Linear(9, 6), nn.Linear(6, 7))
    images = torch.randn(2, 3, 5, 5)
    with torch.inference_mode(), record_features(network) as recorded:
        network(images)
    first = network[0](images)
    maps = network[1](first)
    rows = network[3](network[2](maps))
    means = (first.mean((2, 3)), maps.mean((2, 3)), rows.mean(1))
    for found, expected in zip(recorded, means, strict=True):
        torch.testing.assert_close(found, expected)


def test_images_of_one_case_do_not_tighten_the_limit() -> None:
    rng = np.random.default_rng(9)
    cases = [str(index // 20) for index in range(200)]
    features = sample(200, seed=4) + 0.5 * np.repeat(rng.normal(size=(10, 200)), 20, axis=0)  # cases differ
    by_case, by_image = fit_detector(features, cases), fit_detector(features, [str(index) for index in range(200)])
    assert by_case is not None
    assert by_image is not None
    assert by_case.limit > 1.5 * by_image.limit


def test_a_saved_detector_computes_the_same_distances(detector: OODDetector, tmp_path: Path) -> None:
    detector.save(tmp_path / "ood.npz")
    features = sample(20, seed=5)
    np.testing.assert_allclose(
        OODDetector.load(tmp_path / "ood.npz").distances(features), detector.distances(features), rtol=1e-4
    )


@pytest.mark.parametrize(("n_images", "n_cases"), [(30, 30), (100, 4)])
def test_too_few_images_or_cases_give_no_detector(n_images: int, n_cases: int) -> None:
    assert fit_detector(sample(n_images, seed=1), [str(index % n_cases) for index in range(n_images)]) is None


def test_a_run_is_fitted_to_its_train_images(run: Path, synthetic_cache: Path) -> None:
    config = train_config(
        *("data=synthetic", "data.images_per_patient=1", "data.width=64", "data.image_size=32"),
        f"data.cache_dir={synthetic_cache}",
    )
    data = BreakHisDataModule(config.data, config.augmentation, seed=0, progress_bar=False)
    data.setup()
    classifier, _ = load_classifier(run / "checkpoints/last.ckpt")
    detector = fit_ood(classifier, data, device="cpu", precision="32-true")
    assert detector is not None
    assert detector.mean.shape == (64 + 128 + 256,)
