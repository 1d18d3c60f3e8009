"""Out-of-distribution detection by the Mahalanobis distance of pooled features from those of train images."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

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

QUANTILE = 0.99
"""Fraction of train images that are within the limit, by their distance from the train images of other cases."""


@contextmanager
def record_features(backbone: nn.Module) -> Iterator[list[Tensor]]:
    """Record the channels of three layers, averaged over places: those at 1/4, 1/2 and 3/4 of the layers with weights.

    The last features of a trained network tell classes apart and little else: photographs have those of tissue.

    Yields:
        A list to which a forward pass appends tensors, float32, (batch, n_channels).

    Source:
        Lee et al. 2018, arXiv:1807.03888, section 2.2, on features of several layers.
    """
    recorded: list[Tensor] = []

    def record(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        is_map = isinstance(_module, nn.Conv2d)  # (batch, channels, height, width); else (batch, ..., channels)
        places = output.flatten(2) if is_map else output.flatten(1, -2).mT if output.ndim > 2 else output[..., None]
        recorded.append(places.mean(dim=2, dtype=torch.float32))

    # exact type: the linear layers inside nn.MultiheadAttention are a subclass, and are not called
    layers: list[nn.Module] = [
        module for module in backbone.modules() if isinstance(module, nn.Conv2d) or type(module) is nn.Linear
    ] or [backbone]
    hooks = [layers[max(0, len(layers) * quarter // 4 - 1)].register_forward_hook(record) for quarter in (1, 2, 3)]
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True, slots=True, eq=False)
class OODDetector:
    """Gaussian model of features.

    The covariance matrix is that of Ledoit and Wolf, stored by its eigenvectors: if there are fewer images than
    features, all directions in which no images differ have the same eigenvalue.

    Attributes:
        mean: float64, (n_features,).
        scale: Standard deviations, float64, (n_features,).
        components: Eigenvectors, float64, (n_components, n_features).
        variances: Their eigenvalues, float64, (n_components,).
        residual_variance: Eigenvalue of all other directions.
        limit: Distance beyond which an image is out of distribution.
    """

    mean: FloatArray
    scale: FloatArray
    components: FloatArray
    variances: FloatArray
    residual_variance: float
    limit: float = 1.0

    def distances(self, features: npt.ArrayLike) -> FloatArray:
        """Compute the Mahalanobis distances of images, in units of the limit.

        Args:
            features: Recorded features, concatenated, float, (n, n_features).

        Returns:
            float64, (n,); above 1, an image is out of distribution.
        """
        standardized = (np.asarray(features, dtype=np.float64) - self.mean) / self.scale
        scores = standardized @ self.components.T  # (n, n_components)
        residuals = standardized - scores @ self.components  # (n, n_features)
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
    features = []
    with torch.inference_mode(), autocast(device, precision):
        for batch in torch.split(
            torch.from_numpy(chosen).to(device), data.data.eval_batch_size or data.data.batch_size
        ):
            with record_features(classifier.network.backbone) as recorded:
                classifier.network.backbone(data.batch(batch).images)
            features.append(torch.cat(recorded, dim=1).cpu())
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
    """
    if len(features) < MIN_IMAGES or len(set(cases)) < N_FOLDS:
        return None
    distances = np.empty(len(features))
    for train, left_out in GroupKFold(N_FOLDS).split(features, groups=cases):
        distances[left_out] = _fit(features[train]).distances(features[left_out])
    return _fit(features, limit=float(np.quantile(distances, QUANTILE)))


def _fit(features: Float32Array, *, limit: float = 1.0) -> OODDetector:
    scaler = StandardScaler().fit(features.astype(np.float64))
    standardized = scaler.transform(features.astype(np.float64))
    shrinkage = ledoit_wolf_shrinkage(standardized)
    # of the empirical covariance, by way of the smaller matrix of products of images
    eigenvalues, vectors = np.linalg.eigh(standardized @ standardized.T / len(features))
    is_kept = eigenvalues > eigenvalues[-1] * 1e-10
    eigenvalues, vectors = eigenvalues[is_kept], vectors[:, is_kept]
    components = vectors.T @ standardized / np.sqrt(len(features) * eigenvalues)[:, None]
    residual_variance = shrinkage * float(eigenvalues.sum()) / features.shape[1]
    variances = (1 - shrinkage) * eigenvalues + residual_variance
    return OODDetector(scaler.mean_, scaler.scale_, components, variances, residual_variance, limit)
