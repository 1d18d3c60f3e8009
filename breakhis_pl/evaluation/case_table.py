"""Sums by case from which every metric follows, so that a draw of cases is one row of weights.

A metric of thousands of draws then costs a few matrix products instead of thousands of passes over the images.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from breakhis_pl.data.breakhis import CLASS_NAMES
from breakhis_pl.evaluation import confusion as of_confusion
from breakhis_pl.evaluation import scores
from breakhis_pl.evaluation.predictions import Predictions, index_of

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_WEIGHS_CLASSES_ALIKE = (
    "balanced_accuracy",
    "macro_precision",
    "macro_recall",
    "macro_f1",
    "mcc",
    "auroc",
    "average_precision",
)


@dataclass(frozen=True, slots=True, eq=False)
class CaseTable:
    """What each case adds to the metrics.

    Attributes:
        confusion: Images by truth and prediction; float64, (n_cases, 2, 2).
        squared_error: Sum of squared errors; float64, (n_cases,).
        log_loss: Sum of log losses; float64, (n_cases,).
        excess: Sum of truth minus probability by calibration bin; float64, (n_cases, 10).
        patient_rate: Sum over the case's patients of the share of their images that are right; float64, (n_cases,).
        n_patients: Patients of each case; float64, (n_cases,).
        n_right: Right decisions by mean probability, one for each class the case has; float64, (n_cases,).
        n_decisions: Number of these decisions, 1 if no case has both classes; float64, (n_cases,).
        ordered_pairs: Pairs of a benign image (its case: row) and a malignant one (its case: column) in which the
            latter has the higher probability, ties half; float64, (n_cases, n_cases).
        ranked_case: Case of each image, by falling probability; int64, (n_images,).
        ranked_target: Class of each image in this order; int64, (n_images,).
        ends_tie: Whether the next image has a lower probability, in this order; bool, (n_images,).
    """

    confusion: FloatArray
    squared_error: FloatArray
    log_loss: FloatArray
    excess: FloatArray
    patient_rate: FloatArray
    n_patients: FloatArray
    n_right: FloatArray
    n_decisions: FloatArray
    ordered_pairs: FloatArray
    ranked_case: IntArray
    ranked_target: IntArray
    ends_tie: NDArray[np.bool_]

    @property
    def n_cases(self) -> int:
        """Number of cases."""
        return len(self.confusion)

    @property
    def support(self) -> FloatArray:
        """Images of each case by class; float64, (n_cases, 2)."""
        support: FloatArray = self.confusion.sum(2)
        return support

    @property
    def n_predicted(self) -> FloatArray:
        """Images of each case by predicted class; float64, (n_cases, 2)."""
        n_predicted: FloatArray = self.confusion.sum(1)
        return n_predicted

    def metrics(self, weights: NDArray[np.int64] | FloatArray) -> dict[str, FloatArray]:
        """Every metric of each draw, NaN where a draw does not define it.

        Precision is not defined without an image that is predicted so, recall and F1 not without an image of the class,
        and what weighs both classes or ranks one against the other needs both.

        Args:
            weights: How often each case is in each draw; (n_draws, n_cases).

        Returns:
            float64, (n_draws,), by the names of `metrics.point_values`.
        """
        weights = weights.astype(np.float64)
        confusion = np.tensordot(weights, self.confusion, axes=1)  # (n_draws, 2, 2)
        support = confusion.sum(2)
        n_images = support.sum(1)
        has_both = (support > 0).all(1)
        by_class = {
            "precision": of_confusion.precision(confusion),
            "recall": of_confusion.recall(confusion),
            "f1": of_confusion.f1(confusion),
        }
        values = {
            "accuracy": of_confusion.accuracy(confusion),
            "balanced_accuracy": _where(has_both, of_confusion.balanced_accuracy(confusion)),
        }
        values |= {f"weighted_{name}": of_confusion.weighted(of, confusion) for name, of in by_class.items()}
        values |= {f"macro_{name}": _where(has_both, of_confusion.macro(of)) for name, of in by_class.items()}
        values |= {
            "mcc": _where(has_both, of_confusion.matthews_correlation(confusion)),
            "auroc": _where(has_both, self._auroc(weights, support)),
            "average_precision": _where(has_both, self._average_precision(weights, support)),
            "brier": weights @ self.squared_error / n_images,
            "log_loss": weights @ self.log_loss / n_images,
            "ece": np.abs(weights @ self.excess).sum(1) / n_images,
            "patient_recognition_rate": weights @ self.patient_rate / (weights @ self.n_patients),
            "case_accuracy": weights @ self.n_right / (weights @ self.n_decisions),
        }
        is_defined = {"precision": confusion.sum(1) > 0, "recall": support > 0, "f1": support > 0}
        for name, of in by_class.items():
            defined = _where(is_defined[name], of)
            values |= {f"{name}_{class_name}": defined[:, i] for i, class_name in enumerate(CLASS_NAMES)}
        return values

    def n_cases_behind(self, name: str) -> int:
        """Number of cases that a metric rests on.

        Args:
            name: Of the metric, as in `metrics`.

        Returns:
            Cases with images of the class for recall and F1, predicted so for precision; of the rarer class for what
            weighs both classes alike; all cases for everything else.
        """
        cases_of_class = (self.support > 0).sum(0)
        if name in _WEIGHS_CLASSES_ALIKE:
            return int(cases_of_class.min())
        for i, class_name in enumerate(CLASS_NAMES):
            if name == f"precision_{class_name}":
                return int((self.n_predicted[:, i] > 0).sum())
            if name in (f"recall_{class_name}", f"f1_{class_name}"):
                return int(cases_of_class[i])
        return self.n_cases

    def n_effective_cases(self, name: str) -> float:
        """Number of cases that a metric's precision is judged by.

        Args:
            name: Of the metric, as in `metrics`.

        Returns:
            Cases of the class for its recall, all for what counts images. What weighs both classes alike is as precise
            as from 4 / (1 / benign + 1 / malignant) cases: all of them if there are as many of either class, else less.

        Source:
            Willer, Li and Abecasis 2010, doi:10.1093/bioinformatics/btq340, for cases and controls.
        """
        cases_of_class = (self.support > 0).sum(0)
        for i, class_name in enumerate(CLASS_NAMES):
            if name == f"recall_{class_name}":
                return float(cases_of_class[i])
        if name in _WEIGHS_CLASSES_ALIKE:
            return float(4 * cases_of_class.prod() / cases_of_class.sum())
        return float(self.n_cases)

    def value_of_a_coin(self, name: str) -> float:
        """What a coin, or a probability of a half, scores; 0.5 stands for the F1 scores and precisions as well.

        Args:
            name: Of the metric, as in `metrics`.
        """
        match name:
            case "brier":
                return 0.25
            case "log_loss":
                return math.log(2)
            case "mcc":
                return 0.0
            case "average_precision":
                support = self.support.sum(0)
                return float(support[1] / support.sum())
            case _:
                return 0.5

    def _auroc(self, weights: FloatArray, support: FloatArray) -> FloatArray:
        ordered = ((weights @ self.ordered_pairs) * weights).sum(1)
        return of_confusion.divide(ordered, support.prod(1))

    def _average_precision(self, weights: FloatArray, support: FloatArray) -> FloatArray:
        """One pass down the ranking for all draws at once: fast without threads, and no (n_draws, n_images) array."""
        weights_of_case = np.ascontiguousarray(weights.T)
        found, found_before, called, area = (np.zeros(len(weights)) for _ in range(4))
        for case, target, ends_tie in zip(self.ranked_case, self.ranked_target, self.ends_tie, strict=True):
            called += weights_of_case[case]
            if target == 1:
                found += weights_of_case[case]
            if ends_tie:
                precision = found / np.maximum(called, 1)  # where nothing is called, nothing is found
                area += (found - found_before) * precision
                found_before[:] = found
        return of_confusion.divide(area, support[:, 1])


def tabulate_cases(predictions: Predictions) -> CaseTable:
    """Sums by case of a table of predictions.

    Args:
        predictions: One row per image, at least one.
    """
    target, prob_malignant = predictions.target, predictions.prob_malignant
    case = index_of(predictions.case)
    n_cases = int(case.max()) + 1

    def sum_by_case(values: FloatArray) -> FloatArray:
        return np.bincount(case, weights=values, minlength=n_cases).astype(np.float64)

    confusion = np.zeros((n_cases, len(CLASS_NAMES), len(CLASS_NAMES)))
    np.add.at(confusion, (case, target, predictions.predicted), 1)
    excess = np.zeros((n_cases, scores.N_CALIBRATION_BINS))
    np.add.at(excess, (case, scores.calibration_bin(prob_malignant)), target - prob_malignant)
    patient = index_of(predictions.patient)
    share_of_patient = 1 / np.bincount(patient)[patient]  # an image's part of its patient
    right, case_of_decision = scores.correct_cases(target, prob_malignant, case)
    ranking = np.argsort(-prob_malignant, kind="stable")
    return CaseTable(
        confusion=confusion,
        squared_error=sum_by_case(scores.squared_errors(target, prob_malignant)),
        log_loss=sum_by_case(scores.log_losses(target, predictions.probabilities)),
        excess=excess,
        patient_rate=sum_by_case(predictions.correct * share_of_patient),
        n_patients=sum_by_case(share_of_patient),
        n_right=np.bincount(case_of_decision, weights=right, minlength=n_cases).astype(np.float64),
        n_decisions=np.bincount(case_of_decision, minlength=n_cases).astype(np.float64),
        ordered_pairs=_ordered_pairs(target, prob_malignant, case, n_cases),
        ranked_case=case[ranking],
        ranked_target=target[ranking],
        ends_tie=np.append(np.diff(prob_malignant[ranking]) != 0, True),
    )


def _ordered_pairs(target: IntArray, prob_malignant: FloatArray, case: IntArray, n_cases: int) -> FloatArray:
    pairs = np.zeros((n_cases, n_cases))
    malignant, case_of_malignant = prob_malignant[target == 1], case[target == 1]
    for benign_case in np.unique(case[target == 0]):
        benign = np.sort(prob_malignant[(case == benign_case) & (target == 0)])
        below = np.searchsorted(benign, malignant, side="left") + np.searchsorted(benign, malignant, side="right")
        pairs[benign_case] = np.bincount(case_of_malignant, weights=below / 2, minlength=n_cases)
    return pairs


def _where(is_defined: NDArray[np.bool_], values: FloatArray) -> FloatArray:
    return np.where(is_defined, values, np.nan)
