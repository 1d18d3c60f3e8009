"""Out-of-distribution detection by the Mahalanobis distance of pooled features from those of train images."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.decomposition import PCA
from sklearn.model_selection import GroupKFold

from breakhis_pl.data.datamodule import BreakHisDataModule
from breakhis_pl.data.dataset import Subset
from breakhis_pl.models.classifier import Classifier
from breakhis_pl.run_folder import atomic_write
from breakhis_pl.training.performance import autocast

FloatArray: TypeAlias = npt.NDArray[np.float64]
Float32Array: TypeAlias = npt.NDArray[np.float32]

MAX_IMAGES = 512
MIN_IMAGES = 40
N_FOLDS = 5

QUANTILE = 0.95
"""Fraction of train images that are within the limit, by their distance from the train images of other cases."""


@dataclass(frozen=True, slots=True, eq=False)
class OODDetector:
    """Gaussian model of features of length 1.

    The covariance matrix is that of Ledoit and Wolf, stored by its eigenvectors: fewer images than features give it one
    eigenvalue that belongs to all directions in which no two images differ.

    Attributes:
        mean: float64, (n_features,).
        components: Eigenvectors, float64, (n_components, n_features).
        variances: Their eigenvalues, float64, (n_components,).
        residual_variance: Eigenvalue of all other directions.
        limit: Distance beyond which an image is out of distribution.
    """

    mean: FloatArray
    components: FloatArray
    variances: FloatArray
    residual_variance: float
    limit: float = 1.0

    def distances(self, features: npt.ArrayLike) -> FloatArray:
        """Compute the Mahalanobis distances of images, in units of the limit.

        Args:
            features: Output of the backbone, float, (n, n_features).

        Returns:
            float64, (n,); above 1, an image is out of distribution.
        """
        centered = _normalize(features) - self.mean
        scores = centered @ self.components.T  # (n, n_components)
        residuals = centered - scores @ self.components  # (n, n_features)
        squares = (scores**2 / self.variances).sum(axis=1) + (residuals**2).sum(axis=1) / self.residual_variance
        distances: FloatArray = np.sqrt(squares) / self.limit
        return distances

    def save(self, path: Path) -> None:
        """Write an npz file of float32 arrays."""
        arrays = {field.name: np.asarray(getattr(self, field.name), dtype=np.float32) for field in fields(self)}
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> "OODDetector":
        """Read a file that `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(**{field.name: arrays[field.name].astype(np.float64) for field in fields(cls)})


def fit_ood(classifier: Classifier, data: BreakHisDataModule, *, device: str, precision: str) -> OODDetector | None:
    """Fit a detector to at most `MAX_IMAGES` train images, without augmentation.

    Args:
        classifier: The trained network; it is moved to the device and set to evaluation mode.
        data: After `setup`.
        device: "cuda", "mps" or "cpu".
        precision: Lightning's name.

    Returns:
        None if there are too few images or cases.
    """
    train = np.array(data.split.indices(Subset.TRAIN))
    chosen = train[np.linspace(0, len(train) - 1, min(len(train), MAX_IMAGES)).astype(int)]
    classifier.to(device).eval()
    batches = torch.split(torch.from_numpy(chosen).to(device), data.data.eval_batch_size or data.data.batch_size)
    with torch.inference_mode(), autocast(device, precision):
        features = [classifier.network.backbone(data.batch(batch).images).float().cpu() for batch in batches]
    return fit_detector(torch.cat(features).numpy(), [data.dataset.records[index].case for index in chosen])


def fit_detector(features: Float32Array, cases: Sequence[str]) -> OODDetector | None:
    """Fit a detector and its limit.

    The limit is a quantile of the distances that images have from a detector fitted to other cases: images of the same
    case resemble each other more than those of a new one.

    Args:
        features: float32, (n, n_features).
        cases: Case of each image.

    Returns:
        None for fewer than `MIN_IMAGES` images or `N_FOLDS` cases.

    Source:
        Lee et al. 2018, arXiv:1807.03888, for the distance. Features are scaled to length 1, as in Müller and Hein
        2025, arXiv:2505.18032: else a blank image, whose activations are small, is close to the mean.
    """
    if len(features) < MIN_IMAGES or len(set(cases)) < N_FOLDS:
        return None
    distances = np.empty(len(features))
    for train, left_out in GroupKFold(N_FOLDS).split(features, groups=cases):
        distances[left_out] = _fit(features[train]).distances(features[left_out])
    return _fit(features, limit=float(np.quantile(distances, QUANTILE)))


def _fit(features: Float32Array, *, limit: float = 1.0) -> OODDetector:
    normalized = _normalize(features)
    pca = PCA(svd_solver="full").fit(normalized)
    shrinkage = ledoit_wolf_shrinkage(normalized)
    eigenvalues = pca.explained_variance_ * (1 - 1 / len(normalized))  # of the empirical covariance, divided by n
    mean_eigenvalue = max(float(eigenvalues.sum()) / normalized.shape[1], 1e-12)  # 0 if images are equal
    residual_variance = max(shrinkage, 1e-3) * mean_eigenvalue
    variances = (1 - shrinkage) * eigenvalues + residual_variance
    return OODDetector(pca.mean_, pca.components_, variances, residual_variance, limit)


def _normalize(features: npt.ArrayLike) -> FloatArray:
    """Scale feature vectors to length 1."""
    vectors = np.asarray(features, dtype=np.float64)
    scaled: FloatArray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
    return scaled
