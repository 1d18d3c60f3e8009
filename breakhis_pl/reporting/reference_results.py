"""Published results on BreakHis at 200X: on the 597 test images of fold 2, and over the five folds.

Source:
    Otto, Bannwitz, Steffens, Herzler: Introduction to Focus Areas, Project 2, FU Berlin 2022 (`otto2022`);
    Calderaro et al., Sensors 2023; Calderaro et al., Cognitive Computation 2024.
"""

from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

N_TEST_IMAGES = 597
"""Test images of fold 2 at 200X."""

FOLD, MAGNIFICATION = 2, 200
"""Fold and magnification of Otto et al. 2022."""


@dataclass(frozen=True)
class OttoResult:
    """A network of Otto et al. 2022: its name there and its confusion matrix (rows: truth; benign, malignant)."""

    network: str
    confusion_matrix: tuple[tuple[int, int], tuple[int, int]]

    def values(self) -> dict[str, float]:
        """Return the metrics that follow from the confusion matrix.

        Example:
            >>> {name: round(value, 3) for name, value in OTTO2022["resnet18"].values().items()}
            {'accuracy': 0.876, 'weighted_f1': 0.873, 'f1_benign': 0.763, 'f1_malignant': 0.916}
        """
        counts = np.array(self.confusion_matrix)
        f1 = 2 * counts.diagonal() / (counts.sum(0) + counts.sum(1))
        return {
            "accuracy": float(counts.trace() / counts.sum()),
            "weighted_f1": float(f1 @ counts.sum(1) / counts.sum()),
            "f1_benign": float(f1[0]),
            "f1_malignant": float(f1[1]),
        }


OTTO2022 = MappingProxyType(
    {
        "resnet18": OttoResult("ResNet-18", ((119, 49), (25, 404))),
        "resnext50_32x4d": OttoResult("ResNeXt-50", ((115, 53), (36, 393))),
        "wide_resnet50_2": OttoResult("Wide-ResNet-50", ((138, 30), (134, 295))),
    }
)
"""Tables 3 to 5 and figure 1 of Otto et al. 2022 by backbone."""


@dataclass(frozen=True)
class PublishedResult:
    """A result that others published.

    Attributes:
        method: The method, in a few words.
        source: The publication; None for what follows from the class counts alone.
        values: Metrics that are stated: a number, or mean and standard deviation over folds.
    """

    method: str
    source: str | None
    values: MappingProxyType[str, float] = field(default_factory=lambda: MappingProxyType({}))
    over_folds: MappingProxyType[str, tuple[float, float]] = field(default_factory=lambda: MappingProxyType({}))


PUBLISHED = (
    PublishedResult('always "malignant"', None, MappingProxyType({"accuracy": 0.719})),
    PublishedResult(
        "frozen ImageNet ResNet-152 features, RBF-SVM",
        "Calderaro et al., Sensors 2023",
        MappingProxyType({"accuracy": 0.878}),
    ),
    PublishedResult(
        "triplet ResNet-152 on 96-pixel tiles of all magnifications, SOM vote",
        "Calderaro et al., Cognitive Computation 2024",
        MappingProxyType({"accuracy": 0.908, "weighted_f1": 0.910, "auroc": 0.956, "patient_recognition_rate": 0.905}),
        MappingProxyType({"accuracy": (0.893, 0.021)}),
    ),
)
"""Results of others on the same test images, lowest accuracy first, and over the five folds."""
