"""Temperature scaling and a decision threshold, fitted on validation rows and on nothing else.

A fine-tuned network ranks images better than its probabilities suggest: they are too extreme. Dividing its logits by a
temperature corrects this and keeps the ranking. The threshold replaces 0.5 by the largest one that finds a wanted
fraction of the positive validation images: a missed cancer and a false alarm do not cost the same.
"""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass
from scipy.optimize import minimize_scalar
from scipy.special import expit

from breakhis_pl.errors import PredictionsError, RunFolderError
from breakhis_pl.metrics.classification import LOG_CLIP, true_class_probability
from breakhis_pl.metrics.predictions import FloatArray, IntArray, Predictions
from breakhis_pl.run_folder import write_text

TEMPERATURES = (0.25, 20.0)
"""Bounds of the temperature: rows without a mistake would need 0, and mistakes elsewhere would cost without limit."""

Fraction = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Calibration:
    """Temperature and threshold, and the validation rows they were fitted on.

    Attributes:
        temperature: Divisor of the logits; above 1 makes probabilities less extreme.
        threshold: Calibrated probability of the positive class from which an image is called positive.
        sensitivity: Fraction of the positive images that was to be found.
        n_images: Number of validation rows.
        n_cases: Number of their cases.
        n_positive_cases: Number of cases with positive images.
        log_loss_before: Log loss of these rows, in nats.
        log_loss_after: The same with the temperature.
        sensitivity_reached: Sensitivity on these rows at the threshold; at least `sensitivity`.
        specificity_reached: Specificity on these rows at the threshold.
    """

    temperature: Annotated[float, Field(ge=TEMPERATURES[0], le=TEMPERATURES[1])]
    threshold: Fraction
    sensitivity: Fraction
    n_images: int
    n_cases: int
    n_positive_cases: int
    log_loss_before: float
    log_loss_after: float
    sensitivity_reached: Fraction
    specificity_reached: Fraction


def fit_calibration(predictions: Predictions, *, sensitivity: float = 0.95) -> Calibration:
    """Fit temperature and threshold on validation rows of two classes.

    Images of equal probability are decided alike, so that more positive images may be found than wanted, never fewer.

    Args:
        predictions: Rows of validation images.
        sensitivity: Fraction of the positive images to find; above 0, below 1.

    Raises:
        PredictionsError: If a class has no row.

    Source:
        Guo, Pleiss, Sun and Weinberger, ICML 2017, arXiv:1706.04599, for the temperature.
    """
    target = predictions.target
    for index, name in enumerate(predictions.classes):
        if not (target == index).any():
            raise PredictionsError(f"no validation image is {name}: set a larger data.val_fraction, or another seed")
    temperature = fit_temperature(log_odds(predictions.probabilities), target)
    scaled = at_temperature(predictions.probabilities, temperature)
    positive = np.sort(scaled[target == 1, 1])
    n_wanted = math.ceil(sensitivity * len(positive) - 1e-9)  # 0.56 * 25 is a little above 14
    threshold = float(positive[len(positive) - n_wanted])
    is_called = scaled[:, 1] >= threshold
    return Calibration(
        temperature=temperature,
        threshold=threshold,
        sensitivity=sensitivity,
        n_images=len(predictions),
        n_cases=len(set(predictions.case)),
        log_loss_before=float(-np.log(true_class_probability(predictions.probabilities, target)).mean()),
        log_loss_after=float(-np.log(true_class_probability(scaled, target)).mean()),
        sensitivity_reached=float(is_called[target == 1].mean()),
        specificity_reached=float((~is_called)[target == 0].mean()),
        n_positive_cases=len(set(predictions.case[target == 1])),
    )


def log_odds(probabilities: FloatArray) -> FloatArray:
    """Return the difference of the two logits, (n, 2) to (n,), with probabilities kept `LOG_CLIP` away from 0.

    Example:
        >>> log_odds(np.array([[0.5, 0.5], [0.2, 0.8]])).round(3).tolist()
        [0.0, 1.386]
    """
    log = np.log(np.maximum(probabilities, LOG_CLIP))
    return log[:, 1] - log[:, 0]


def fit_temperature(logit: FloatArray, target: IntArray) -> float:
    """Return the temperature of the smallest log loss within `TEMPERATURES`; 1 if all are equally good.

    Example:
        >>> round(fit_temperature(np.log([3.0, 3.0, 3.0]), np.array([1, 1, 0])), 3)  # 75% sure, 2 of 3 are correct
        1.585
    """
    if not logit.any():
        return 1.0
    signed = np.where(target == 1, -logit, logit)

    def loss(inverse: float) -> float:  # convex in 1 / temperature
        return float(np.logaddexp(0, inverse * signed).mean())

    bounds = (1 / TEMPERATURES[1], 1 / TEMPERATURES[0])
    found = float(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-10}).x)
    return 1 / min((found, *bounds), key=loss)


def at_temperature(probabilities: FloatArray, temperature: float) -> FloatArray:
    """Return the probabilities of two classes at a temperature; float64, (n, 2)."""
    positive = expit(log_odds(probabilities) / temperature)
    return np.stack([1 - positive, positive], axis=1)


def calibrated(predictions: Predictions, calibration: Calibration) -> Predictions:
    """Return rows with calibrated probabilities, decided at the threshold."""
    scaled = at_temperature(predictions.probabilities, calibration.temperature)
    return replace(
        predictions, probabilities=scaled, predicted=(scaled[:, 1] >= calibration.threshold).astype(np.int64)
    )


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write calibration.json."""
    write_text(path, json.dumps(asdict(calibration), indent=2) + "\n")


def read_calibration(path: Path) -> Calibration:
    """Read calibration.json.

    Raises:
        RunFolderError: If there is none, or it is damaged.
    """
    try:
        return Calibration(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, ValidationError) as error:
        raise RunFolderError(
            f"{path}: cannot be read ({str(error).splitlines()[0]}); fit it with evaluate.py calibrate=true, which "
            "needs a run with data.val_fraction above 0"
        ) from error
