"""Formulas of the metrics, each for all draws of cases at once; `registry` lists them.

They return float64, (n_draws,), or (n_draws, n_classes) for a metric of each class; 0/0 is 0, as in scikit-learn, and
`registry.Metric.values` masks what is not defined.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from breakhis_pl.metrics.cases import Draws
from breakhis_pl.metrics.predictions import BoolArray, FloatArray, IntArray, Predictions

Formula: TypeAlias = Callable[[Draws], FloatArray]

LOG_CLIP = float(np.finfo(np.float64).eps)
"""Probabilities are kept this far from 0 and 1 in logarithms, as in scikit-learn's log_loss."""

N_CALIBRATION_BINS = 10


def divide(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Divide two arrays of one shape; 0 where the denominator is 0.

    Example:
        >>> divide(np.array([1.0, 1.0]), np.array([2.0, 0.0])).tolist()
        [0.5, 0.0]
    """
    return np.divide(numerator, denominator, out=np.zeros(np.shape(denominator)), where=denominator != 0)


def _diagonal(draws: Draws) -> FloatArray:
    return np.diagonal(draws.confusion, axis1=1, axis2=2)


def precision(draws: Draws) -> FloatArray:
    """Fraction of the images predicted as a class that are of it; (n_draws, n_classes)."""
    return divide(_diagonal(draws), draws.n_predicted)


def recall(draws: Draws) -> FloatArray:
    """Fraction of a class's images that are found; (n_draws, n_classes)."""
    return divide(_diagonal(draws), draws.support)


def f1(draws: Draws) -> FloatArray:
    """Harmonic mean of precision and recall; (n_draws, n_classes)."""
    return divide(2 * _diagonal(draws), draws.support + draws.n_predicted)


def weighted(per_class: Formula) -> Formula:
    """Mean of a metric over the classes, weighted by their images."""
    return lambda draws: divide((per_class(draws) * draws.support).sum(1), draws.n_images)


def macro(per_class: Formula) -> Formula:
    """Mean of a metric over the classes that have images."""
    return lambda draws: np.asarray(per_class(draws)[:, draws.table.present].mean(1))


def accuracy(draws: Draws) -> FloatArray:
    """Fraction of the images that are correct."""
    return divide(_diagonal(draws).sum(1), draws.n_images)


def matthews_correlation(draws: Draws) -> FloatArray:
    """Correlation of truth and prediction; 0 if one of them is constant.

    Source:
        Matthews 1975, doi:10.1016/0005-2795(75)90109-9; Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006 for more
        than two classes.
    """
    total, correct = draws.n_images, _diagonal(draws).sum(1)
    covariance = correct * total - (draws.support * draws.n_predicted).sum(1)
    margins = (total**2 - (draws.n_predicted**2).sum(1)) * (total**2 - (draws.support**2).sum(1))
    return divide(covariance, np.sqrt(np.maximum(margins, 0)))


def auroc(draws: Draws) -> FloatArray:
    """Probability that an image of the positive class is ranked above another one; mean one-against-rest of several.

    Source:
        Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747.
    """
    areas = []
    for positive in draws.table.one_against_rest:
        ordered = ((draws.weights @ draws.table.ordered_pairs(positive)) * draws.weights).sum(1)
        n_positive = draws.support[:, positive]
        areas.append(divide(ordered, n_positive * (draws.n_images - n_positive)))
    return np.asarray(np.mean(areas, axis=0))


def average_precision(draws: Draws) -> FloatArray:
    """Area under the steps of precision over recall; mean one-against-rest of several classes.

    Source:
        Zhu, Recall, Precision and Average Precision, University of Waterloo 2004.
    """
    areas = [_average_precision(draws, positive) for positive in draws.table.one_against_rest]
    return np.asarray(np.mean(areas, axis=0))


def _average_precision(draws: Draws, positive: int) -> FloatArray:
    """Pass down the ranking once for all draws; images of equal probability are counted together."""
    score = draws.predictions.probabilities[:, positive]
    ranking = np.argsort(-score, kind="stable")
    is_last_of_tie = np.append(np.diff(score[ranking]) != 0, True)
    weights_of_group = np.ascontiguousarray(draws.weights.T)  # (n_groups, n_draws)
    found, found_before, n_called, area = (np.zeros(len(draws.weights)) for _ in range(4))
    is_positive = draws.predictions.target[ranking] == positive
    for group, hit, is_last in zip(draws.table.group[ranking], is_positive, is_last_of_tie, strict=True):
        n_called += weights_of_group[group]
        if hit:
            found += weights_of_group[group]
        if is_last:
            area += (found - found_before) * divide(found, n_called)
            found_before[:] = found
    return divide(area, draws.support[:, positive])


def brier(draws: Draws) -> FloatArray:
    """Half of the squared error of the probabilities, summed over the classes, mean over the images; 0 to 1.

    Of two classes, this is the squared error of the probability of one of them.

    Source:
        Brier 1950, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2.
    """
    errors = ((draws.predictions.probabilities - np.eye(draws.table.n_classes)[draws.predictions.target]) ** 2).sum(1)
    return draws.mean(errors / 2)


def log_loss(draws: Draws) -> FloatArray:
    """Mean negative logarithm of the probability of the true class, in nats."""
    return draws.mean(-np.log(true_class_probability(draws.predictions.probabilities, draws.predictions.target)))


def true_class_probability(probabilities: FloatArray, target: IntArray) -> FloatArray:
    """Probability of the true class, kept `LOG_CLIP` away from 0 and 1; float64, (n_images,)."""
    return np.clip(probabilities[np.arange(len(target)), target], LOG_CLIP, 1 - LOG_CLIP)


def expected_calibration_error(draws: Draws) -> FloatArray:
    """Mean distance of predicted probability and observed frequency over ten bins, weighted by their images.

    The probability is that of the positive class of two, that of the predicted class of more.

    Source:
        Naeini, Cooper and Hauskrecht, AAAI 2015, doi:10.1609/aaai.v29i1.9602.
    """
    probability, outcome = calibration_pairs(draws.predictions)
    excess = np.zeros((len(outcome), N_CALIBRATION_BINS))
    excess[np.arange(len(outcome)), calibration_bin(probability)] = outcome - probability
    return np.asarray(np.abs(draws.sum(excess)).sum(1) / draws.n_images)


def calibration_pairs(predictions: Predictions) -> tuple[FloatArray, FloatArray]:
    """Return the probability of each image and whether its event happened, 0 or 1; float64, (n_images,) each."""
    if predictions.n_classes == 2:
        return predictions.prob_positive, (predictions.target == 1).astype(np.float64)
    return predictions.probabilities.max(1), predictions.correct.astype(np.float64)


def calibration_bin(probability: FloatArray) -> IntArray:
    """Index of each probability's bin of width 0.1; int64, (n_images,)."""
    edges = np.linspace(0, 1, N_CALIBRATION_BINS + 1)[1:-1]
    return np.searchsorted(edges, probability, side="left").astype(np.int64)


def patient_recognition_rate(draws: Draws) -> FloatArray:
    """Mean over patients of the fraction of their images that are correct.

    Source:
        Spanhol et al. 2016, doi:10.1109/TBME.2015.2496264.
    """
    _, patient = np.unique(draws.predictions.patient, return_inverse=True)
    weight_in_patient = 1 / np.bincount(patient)[patient]  # (n_images,)
    return draws.sum(draws.predictions.correct * weight_in_patient) / draws.sum(weight_in_patient)


def case_accuracy(draws: Draws) -> FloatArray:
    """Fraction of cases that are correct by the mean probability of their images."""
    correct, group = case_decisions(draws)
    n_correct = np.bincount(group, weights=correct, minlength=draws.table.n_groups)
    return draws.weights @ n_correct / (draws.weights @ np.bincount(group, minlength=draws.table.n_groups))


def case_decisions(draws: Draws) -> tuple[BoolArray, IntArray]:
    """Return whether each case is correct, and its group; a case with images of two classes is decided for each."""
    predictions = draws.predictions
    unit, unit_of_image = np.unique(
        predictions.case_index * predictions.n_classes + predictions.target, return_inverse=True
    )
    sums = np.zeros((len(unit), predictions.n_classes))
    np.add.at(sums, unit_of_image, predictions.probabilities)
    group = draws.table.group_of_case[unit // predictions.n_classes]
    return sums.argmax(1) == unit % predictions.n_classes, group
