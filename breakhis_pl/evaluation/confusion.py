"""Metrics that follow from a confusion matrix alone.

Every function but the first takes counts as an array of shape (..., 2, 2), rows truth, columns prediction, classes in
the order of `CLASS_NAMES`, and returns one value per matrix: the same formula serves one table and thousands of draws.
Where a quotient is 0/0 it counts as 0, as with `zero_division=0` in scikit-learn.
"""

import numpy as np
from numpy.typing import NDArray

from breakhis_pl.data.breakhis import CLASS_NAMES
from breakhis_pl.errors import ShapeError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Counts = NDArray[np.int64] | NDArray[np.float64]


def confusion_matrix(target: IntArray, predicted: IntArray) -> IntArray:
    """Number of images by true class (row) and predicted class (column).

    Args:
        target: Index of the true class; int, (n,), 0 or 1.
        predicted: Index of the predicted class; int, (n,), 0 or 1.

    Returns:
        int64, (2, 2).

    Raises:
        ShapeError: If the arrays are empty or differ in length.

    Example:
        >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1])).tolist()
        [[1, 1], [0, 1]]
    """
    if target.size == 0 or target.shape != predicted.shape:
        raise ShapeError(
            f"target has shape {target.shape}, predicted {predicted.shape}; expected one value per image in both"
        )
    n_classes = len(CLASS_NAMES)
    return np.bincount(target * n_classes + predicted, minlength=n_classes**2).reshape(n_classes, n_classes)


def accuracy(confusion: Counts) -> FloatArray:
    """Share of images that are classified correctly.

    Args:
        confusion: (..., 2, 2).

    Returns:
        float64, (...), 0..1.

    Example:
        >>> float(accuracy(np.array([[3, 1], [0, 4]])))
        0.875
    """
    return divide(_diagonal(confusion).sum(-1), confusion.sum((-2, -1)))


def precision(confusion: Counts) -> FloatArray:
    """Share of the images called a class that are of it, by class.

    Args:
        confusion: (..., 2, 2).

    Returns:
        float64, (..., 2), 0..1; 0 for a class that is never predicted.

    Example:
        >>> precision(np.array([[3, 1], [0, 4]])).tolist()
        [1.0, 0.8]
    """
    return divide(_diagonal(confusion), confusion.sum(-2))


def recall(confusion: Counts) -> FloatArray:
    """Share of the images of a class that are found, by class: specificity and sensitivity.

    Args:
        confusion: (..., 2, 2).

    Returns:
        float64, (..., 2), 0..1; 0 for a class without images.

    Example:
        >>> recall(np.array([[3, 1], [0, 4]])).tolist()
        [0.75, 1.0]
    """
    return divide(_diagonal(confusion), confusion.sum(-1))


def f1(confusion: Counts) -> FloatArray:
    """Harmonic mean of precision and recall, by class.

    Args:
        confusion: (..., 2, 2).

    Returns:
        float64, (..., 2), 0..1; 0 for a class without images that is never predicted.

    Source:
        van Rijsbergen, Information Retrieval, 2nd ed. 1979, chapter 7.

    Example:
        >>> f1(np.array([[2, 1], [1, 4]])).round(3).tolist()
        [0.667, 0.8]
    """
    return divide(2 * _diagonal(confusion), confusion.sum(-2) + confusion.sum(-1))


def macro(per_class: FloatArray) -> FloatArray:
    """Mean over the classes, each with the same weight.

    Args:
        per_class: (..., 2).

    Returns:
        float64, (...).

    Example:
        >>> float(macro(np.array([0.5, 1.0])))
        0.75
    """
    mean: FloatArray = per_class.mean(-1)
    return mean


def weighted(per_class: FloatArray, confusion: Counts) -> FloatArray:
    """Mean over the classes, each weighted by its number of images.

    Args:
        per_class: (..., 2).
        confusion: The counts behind it; (..., 2, 2).

    Returns:
        float64, (...).

    Example:
        >>> float(weighted(np.array([0.5, 1.0]), np.array([[3, 0], [0, 1]])))
        0.625
    """
    support = confusion.sum(-1)
    return divide((per_class * support).sum(-1), support.sum(-1))


def balanced_accuracy(confusion: Counts) -> FloatArray:
    """Mean of the recalls of the classes that have images.

    Args:
        confusion: (..., 2, 2).

    Returns:
        float64, (...), 0..1.

    Source:
        Brodersen et al. 2010, doi:10.1109/ICPR.2010.764.

    Example:
        >>> float(balanced_accuracy(np.array([[3, 1], [0, 4]])))
        0.875
    """
    return divide(recall(confusion).sum(-1), (confusion.sum(-1) > 0).sum(-1))


def matthews_correlation(confusion: Counts) -> FloatArray:
    """Correlation of truth and prediction.

    Args:
        confusion: (..., 2, 2).

    Returns:
        float64, (...), -1..1; 0 where truth or prediction is constant.

    Source:
        Matthews 1975, doi:10.1016/0005-2795(75)90109-9.

    Example:
        >>> round(float(matthews_correlation(np.array([[3, 1], [0, 4]]))), 3)
        0.775
    """
    counts = confusion.astype(np.float64)
    determinant = counts[..., 0, 0] * counts[..., 1, 1] - counts[..., 0, 1] * counts[..., 1, 0]
    margins = np.sqrt(counts.sum(-2).prod(-1)) * np.sqrt(counts.sum(-1).prod(-1))
    return divide(determinant, margins)


def divide(numerator: Counts, denominator: Counts) -> FloatArray:
    """Quotient of two arrays of one shape, 0 where the denominator is 0.

    Example:
        >>> divide(np.array([1, 1]), np.array([2, 0])).tolist()
        [0.5, 0.0]
    """
    quotient = np.zeros(np.shape(denominator))
    np.divide(numerator, denominator, out=quotient, where=denominator != 0)
    return quotient


def _diagonal(confusion: Counts) -> FloatArray:
    return np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
