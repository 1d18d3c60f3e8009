"""Metrics that need more than a confusion matrix: probabilities, patients or cases."""

import numpy as np
from numpy.typing import NDArray

from breakhis_pl.errors import ShapeError

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

N_CALIBRATION_BINS = 10
"""Bins of equal width of the predicted probability of "malignant"; each holds its upper edge, the first 0 as well."""

CLIP = float(np.finfo(np.float64).eps)
"""Probabilities are kept this far from 0 and 1 before the logarithm is taken, as scikit-learn does."""


def roc_auc(target: IntArray, prob_malignant: FloatArray) -> float | None:
    """Probability that a malignant image gets a higher probability than a benign one; a tie counts half.

    Args:
        target: Index of the true class; int, (n,), 0 or 1.
        prob_malignant: (n,), 0..1.

    Returns:
        In [0, 1]; None where a class has no image.

    Raises:
        ShapeError: If the arrays are empty or differ in length.

    Source:
        Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747.

    Example:
        >>> roc_auc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]))
        0.75
    """
    _check_lengths(target, prob_malignant)
    benign, malignant = np.sort(prob_malignant[target == 0]), prob_malignant[target == 1]
    if benign.size == 0 or malignant.size == 0:
        return None
    below = np.searchsorted(benign, malignant, side="left")
    not_above = np.searchsorted(benign, malignant, side="right")
    return float((below + not_above).sum() / (2 * benign.size * malignant.size))


def average_precision(target: IntArray, prob_malignant: FloatArray) -> float | None:
    """Area under the steps of precision over recall of the malignant class.

    Args:
        target: Index of the true class; int, (n,), 0 or 1.
        prob_malignant: (n,), 0..1.

    Returns:
        In [0, 1]; None where a class has no image.

    Raises:
        ShapeError: If the arrays are empty or differ in length.

    Source:
        Zhu, Recall, Precision and Average Precision, University of Waterloo 2004.

    Example:
        >>> round(average_precision(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])), 4)
        0.8333
    """
    _check_lengths(target, prob_malignant)
    n_malignant = int(target.sum())
    if n_malignant in (0, target.size):
        return None
    order = np.argsort(-prob_malignant, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(prob_malignant[order]) != 0, True))  # tied images enter together
    found = np.cumsum(target[order])[ends]
    return float((np.diff(found, prepend=0) * found / (ends + 1)).sum() / n_malignant)


def brier_score(target: IntArray, prob_malignant: FloatArray) -> float:
    """Mean squared difference of the predicted probability of "malignant" and the truth.

    Args:
        target: Index of the true class; int, (n,), 0 or 1.
        prob_malignant: (n,), 0..1.

    Returns:
        In [0, 1]; less is better.

    Raises:
        ShapeError: If the arrays are empty or differ in length.

    Source:
        Brier 1950, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2, in the form with one class.

    Example:
        >>> brier_score(np.array([0, 1]), np.array([0.5, 1.0]))
        0.125
    """
    _check_lengths(target, prob_malignant)
    return float(squared_errors(target, prob_malignant).mean())


def log_loss(target: IntArray, probabilities: FloatArray) -> float:
    """Mean negative natural logarithm of the probability of the true class, kept within `CLIP` of 0 and 1.

    Args:
        target: Index of the true class; int, (n,), 0 or 1.
        probabilities: (n, 2), 0..1.

    Returns:
        0 or more, at most 36.05 for the clipping; less is better.

    Raises:
        ShapeError: If the arrays are empty or differ in length.

    Example:
        >>> round(log_loss(np.array([0, 1]), np.array([[0.5, 0.5], [0.0, 1.0]])), 4)
        0.3466
    """
    _check_lengths(target, probabilities)
    return float(log_losses(target, probabilities).mean())


def expected_calibration_error(target: IntArray, prob_malignant: FloatArray) -> float:
    """Mean distance of the predicted probability of "malignant" and its observed share, over bins of the former.

    The bins are those of `N_CALIBRATION_BINS`; each weighs by its number of images.

    Args:
        target: Index of the true class; int, (n,), 0 or 1.
        prob_malignant: (n,), 0..1.

    Returns:
        In [0, 1]; less is better.

    Raises:
        ShapeError: If the arrays are empty or differ in length.

    Source:
        Naeini, Cooper and Hauskrecht, AAAI 2015, doi:10.1609/aaai.v29i1.9602.

    Example:
        >>> round(expected_calibration_error(np.array([0, 1, 1, 1]), np.array([0.72, 0.74, 0.78, 0.96])), 4)
        0.07
    """
    _check_lengths(target, prob_malignant)
    excess = np.bincount(calibration_bin(prob_malignant), weights=target - prob_malignant)
    return float(np.abs(excess).sum() / target.size)


def patient_recognition_rate(correct: BoolArray, patient: IntArray) -> float:
    """Mean over patients of the share of their images that are classified correctly.

    Args:
        correct: bool, (n_images,).
        patient: Index of each image's patient; int, (n_images,), 0..n_patients-1.

    Returns:
        In [0, 1]; every patient weighs the same.

    Raises:
        ShapeError: If the arrays are empty or differ in length.

    Source:
        Spanhol et al. 2016, doi:10.1109/TBME.2015.2496264.

    Example:
        >>> patient_recognition_rate(np.array([True, True, False]), np.array([0, 0, 1]))
        0.5
    """
    _check_lengths(correct, patient)
    return float((np.bincount(patient, weights=correct) / np.bincount(patient)).mean())


def case_accuracy(target: IntArray, prob_malignant: FloatArray, case: IntArray) -> float:
    """Share of cases that are right by the mean probability of their images; above 0.5 means malignant.

    The images of one case that differ in class are judged as one case of each class.

    Args:
        target: Index of the true class; int, (n_images,), 0 or 1.
        prob_malignant: (n_images,), 0..1.
        case: Index of each image's case; int, (n_images,), 0..n_cases-1.

    Returns:
        In [0, 1]; every case weighs the same.

    Raises:
        ShapeError: If the arrays are empty or differ in length.

    Example:
        >>> case_accuracy(np.array([0, 0, 1]), np.array([0.1, 0.7, 0.3]), np.array([0, 0, 1]))
        0.5
    """
    _check_lengths(target, prob_malignant)
    _check_lengths(target, case)
    correct, _ = correct_cases(target, prob_malignant, case)
    return float(correct.mean())


def correct_cases(target: IntArray, prob_malignant: FloatArray, case: IntArray) -> tuple[BoolArray, IntArray]:
    """Whether each case of one class is right by its mean probability, and the case's index.

    Args:
        target: Index of the true class; int, (n_images,), 0 or 1.
        prob_malignant: (n_images,), 0..1.
        case: Index of each image's case; int, (n_images,), 0..n_cases-1.

    Returns:
        bool, (n,), and int64, (n,); n is the number of cases if no case has both classes.
    """
    unit, unit_of_image = np.unique(2 * case + target, return_inverse=True)
    mean = np.bincount(unit_of_image, weights=prob_malignant) / np.bincount(unit_of_image)
    return (mean > 0.5) == (unit % 2 == 1), unit // 2


def squared_errors(target: IntArray, prob_malignant: FloatArray) -> FloatArray:
    """Squared difference of the probability of "malignant" and the truth, by image; (n,), 0..1."""
    squared: FloatArray = (prob_malignant - target) ** 2
    return squared


def log_losses(target: IntArray, probabilities: FloatArray) -> FloatArray:
    """Negative logarithm of the clipped probability of the true class, by image; (n,)."""
    of_truth = probabilities[np.arange(target.size), target]
    losses: FloatArray = -np.log(np.clip(of_truth, CLIP, 1 - CLIP))
    return losses


def calibration_bin(prob_malignant: FloatArray) -> IntArray:
    """Index of each image's bin, 0..9; int64, (n,)."""
    edges = np.linspace(0, 1, N_CALIBRATION_BINS + 1)[1:-1]
    return np.searchsorted(edges, prob_malignant, side="left").astype(np.int64)


def _check_lengths(first: NDArray[np.generic], second: NDArray[np.generic]) -> None:
    if len(first) == 0 or len(first) != len(second):
        raise ShapeError(f"arrays of {len(first)} and {len(second)} images; expected one value per image in both")
