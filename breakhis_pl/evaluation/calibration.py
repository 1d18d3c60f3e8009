"""Temperature scaling and a decision threshold, fitted on validation rows only (no torch).

Temperature scaling divides the logit z = ln p(malignant) - ln p(benign) by the number with the smallest log loss on
the validation rows; the order of images stays. The threshold is the largest one whose sensitivity on the validation rows is
at least the wanted one.

Source:
    Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks, ICML 2017, arXiv:1706.04599.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from breakhis_pl.data.breakhis import CLASS_NAMES
from breakhis_pl.errors import PredictionsError, RunFolderError
from breakhis_pl.evaluation.metrics import evaluate
from breakhis_pl.evaluation.predictions import Predictions
from breakhis_pl.files import write_text

SMALLEST_PROBABILITY = 1e-12
"""Probabilities are clipped to [this, 1 - this] before their logit is taken."""

TEMPERATURES = (0.05, 20.0)
"""The temperature is searched for between these."""

_SUMMARIZED = ("accuracy", "weighted_f1", "brier", "log_loss", "ece", "sensitivity", "specificity")


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was fitted on validation rows.

    Attributes:
        temperature: Divides the logits.
        threshold: On the calibrated probability of malignant: malignant if it is at least this.
        sensitivity: The wanted one.
        n_images: Number of validation rows.
        n_cases: Number of their cases.
        log_loss_before: On these rows, without temperature.
        log_loss_after: On these rows, with it.
        sensitivity_reached: On these rows, at the threshold.
        specificity_reached: On these rows, at the threshold.
    """

    temperature: float
    threshold: float
    sensitivity: float
    n_images: int
    n_cases: int
    log_loss_before: float
    log_loss_after: float
    sensitivity_reached: float
    specificity_reached: float


def fit_calibration(predictions: Predictions, *, sensitivity: float = 0.95) -> Calibration:
    """Temperature and threshold from validation rows.

    Args:
        predictions: Of validation images, both classes.
        sensitivity: Wanted share of malignant images that are called malignant, in (0, 1).

    Raises:
        PredictionsError: If the sensitivity is outside (0, 1), or a class has no row.
    """
    if not 0 < sensitivity < 1:
        raise PredictionsError(f"a sensitivity of {sensitivity} cannot be asked for; expected one within (0, 1)")
    is_malignant = predictions.target == 1
    for class_name, present in zip(CLASS_NAMES, (~is_malignant, is_malignant), strict=True):
        if not present.any():
            raise PredictionsError(f"the validation rows hold no {class_name} image; raise data.val_fraction")
    logit = _logit(predictions.prob_malignant)
    temperature = _fit_temperature(logit, is_malignant)
    scaled = _sigmoid(logit / temperature)
    threshold = _largest_threshold(scaled[is_malignant], sensitivity)
    called = scaled >= threshold
    return Calibration(
        temperature=temperature,
        threshold=threshold,
        sensitivity=sensitivity,
        n_images=len(predictions),
        n_cases=len(set(predictions.case)),
        log_loss_before=_log_loss(logit, is_malignant),
        log_loss_after=_log_loss(logit / temperature, is_malignant),
        sensitivity_reached=float(called[is_malignant].mean()),
        specificity_reached=float((~called)[~is_malignant].mean()),
    )


def calibrated(predictions: Predictions, calibration: Calibration) -> Predictions:
    """The rows with calibrated probabilities and the decision at the fitted threshold."""
    malignant = _sigmoid(_logit(predictions.prob_malignant) / calibration.temperature)
    return replace(
        predictions,
        probabilities=np.stack([1 - malignant, malignant], axis=1),
        predicted=(malignant >= calibration.threshold).astype(np.int64),
    )


def calibration_summary(test: Predictions, calibration: Calibration, *, seed: int, n_draws: int) -> dict[str, Any]:
    """What calibration and threshold do to test rows, for the key "calibrated" of metrics.json.

    Args:
        test: Rows of images that nothing was fitted on.
        calibration: From validation rows.
        seed: Of the draws of the intervals.
        n_draws: Number of draws.
    """
    metrics = evaluate(calibrated(test, calibration), seed=seed, n_draws=n_draws)
    return {
        "temperature": calibration.temperature,
        "threshold": calibration.threshold,
        "wanted_sensitivity": calibration.sensitivity,
        "fitted_on": {"subset": "val", "n_images": calibration.n_images, "n_cases": calibration.n_cases},
        **{name: metrics[name] for name in _SUMMARIZED},
        "confusion_matrix": metrics["confusion_matrix"],
    }


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Writes calibration.json."""
    write_text(path, json.dumps(asdict(calibration), indent=2, allow_nan=False) + "\n")


def read_calibration(path: Path) -> Calibration:
    """What `write_calibration` wrote.

    Raises:
        RunFolderError: If the file is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunFolderError(
            f"{path} does not exist; temperature and threshold are fitted on validation images only: "
            "train with data.val_fraction above 0, as in data.val_fraction=0.2"
        ) from None
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} is damaged: {error}") from error
    try:
        calibration = Calibration(**content)
        numbers = np.array([float(value) for value in asdict(calibration).values()])
    except (TypeError, ValueError) as error:
        raise RunFolderError(f"{path} is damaged: {error}") from error
    if not np.isfinite(numbers).all() or calibration.temperature <= 0 or not 0 <= calibration.threshold <= 1:
        raise RunFolderError(
            f"{path} is damaged: temperature {calibration.temperature}, threshold {calibration.threshold}"
        )
    return calibration


def _fit_temperature(logit: NDArray[np.float64], is_malignant: NDArray[np.bool_]) -> float:
    """The temperature of the smallest log loss, by golden-section search; the loss is convex in its inverse."""
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    ratio = (np.sqrt(5) - 1) / 2
    for _ in range(100):  # the bracket shrinks by 0.618 each time, far below the precision of a float
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if _log_loss(logit * left, is_malignant) <= _log_loss(logit * right, is_malignant):
            high = right
        else:
            low = left
    return float(2 / (low + high))


def _largest_threshold(malignant: NDArray[np.float64], sensitivity: float) -> float:
    """The largest value that at least a share of the malignant probabilities reaches; equal ones go together."""
    n_needed = int(np.ceil(sensitivity * len(malignant) - 1e-9))
    return float(np.sort(malignant)[::-1][n_needed - 1])


def _log_loss(logit: NDArray[np.float64], is_malignant: NDArray[np.bool_]) -> float:
    """Mean of ln(1 + exp(-z)) for malignant and ln(1 + exp(z)) for benign rows, in nats."""
    return float(np.logaddexp(0, np.where(is_malignant, -logit, logit)).mean())


def _logit(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    clipped = np.clip(probability, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    logit: NDArray[np.float64] = np.log(clipped) - np.log1p(-clipped)
    return logit


def _sigmoid(logit: NDArray[np.float64]) -> NDArray[np.float64]:
    value: NDArray[np.float64] = 1 / (1 + np.exp(-logit))
    return value
