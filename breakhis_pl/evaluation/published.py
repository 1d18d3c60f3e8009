"""Published results on the 597 test images of fold 2 at 200X, and over the five folds, to compare runs with.

Source:
    Otto, Bannwitz, Steffens, Herzler: Introduction to Focus Areas, Project 2, FU Berlin 2022 ("the report");
    Calderaro et al., Sensors 2023; Calderaro et al., Cognitive Computation 2024.
"""

from dataclasses import dataclass
from types import MappingProxyType

ConfusionCounts = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class ReportResult:
    """What the report states for one network, rounded as it is printed there.

    Attributes:
        model: Name of the model in the configuration.
        network: Name of the network in the report.
        confusion_matrix: Number of images; rows are the truth, classes in the order of `CLASS_NAMES`.
        weighted_precision: Weighted by the support of the classes.
        weighted_recall: The same as the accuracy.
        weighted_f1: The report's main figure.
    """

    model: str
    network: str
    confusion_matrix: ConfusionCounts
    weighted_precision: float
    weighted_recall: float
    weighted_f1: float


REPORT_RESULTS = MappingProxyType(
    {
        result.model: result
        for result in (
            ReportResult("resnet18", "ResNet-18", ((119, 49), (25, 404)), 0.87, 0.88, 0.87),
            ReportResult("resnext50_32x4d", "ResNeXt-50", ((115, 53), (36, 393)), 0.85, 0.85, 0.85),
            ReportResult("wide_resnet50_2", "Wide-ResNet-50", ((138, 30), (134, 295)), 0.80, 0.73, 0.74),
        )
    }
)
"""Tables 3 to 5 of the report by model."""

REPORT_CONFUSION_MATRICES: MappingProxyType[str, ConfusionCounts] = MappingProxyType(
    {model: result.confusion_matrix for model, result in REPORT_RESULTS.items()}
)
"""The report's confusion matrices by model, from its figure 1."""


@dataclass(frozen=True, slots=True)
class LiteratureResult:
    """A result that others published on exactly these 597 images; None where they do not state it.

    Attributes:
        method: What was done, in a few words.
        source: Where it is published; empty for what follows from the class counts alone.
        accuracy: Share of images that are classified correctly.
        weighted_f1: F1 of the classes weighted by their support.
        patient_recognition_rate: Mean over patients of the share of their images that are right.
        auroc: Area under the receiver operating characteristic.
    """

    method: str
    source: str
    accuracy: float
    weighted_f1: float | None = None
    patient_recognition_rate: float | None = None
    auroc: float | None = None


LITERATURE_RESULTS = (
    LiteratureResult(method='always "malignant"', source="", accuracy=0.719),
    LiteratureResult(
        method="frozen ImageNet ResNet-152 features, RBF-SVM",
        source="Calderaro et al., Sensors 2023",
        accuracy=0.878,
    ),
    LiteratureResult(
        method="triplet ResNet-152 on 96-pixel tiles of all magnifications, SOM vote",
        source="Calderaro et al., Cognitive Computation 2024",
        accuracy=0.908,
        weighted_f1=0.910,
        patient_recognition_rate=0.905,
        auroc=0.956,
    ),
)
"""Published results on the same test images, worst first."""


@dataclass(frozen=True, slots=True)
class FoldResult:
    """Mean and standard deviation over the authors' five folds that others published.

    Attributes:
        method: What was done, in a few words.
        source: Where it is published.
        magnification: Of the test images.
        spreads: Mean and standard deviation by metric, of those that are stated.
    """

    method: str
    source: str
    magnification: int
    spreads: MappingProxyType[str, tuple[float, float]]


FOLD_RESULTS = (
    FoldResult(
        method="triplet ResNet-152 on 96-pixel tiles of all magnifications, SOM vote",
        source="Calderaro et al., Cognitive Computation 2024",
        magnification=200,
        spreads=MappingProxyType({"accuracy": (0.893, 0.021)}),
    ),
)
"""Published results over the five folds."""
