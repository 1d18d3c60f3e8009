"""Temperature scaling and a decision threshold, fitted on validation rows and on nothing else (no torch).

A fine-tuned network ranks images better than it knows how sure it may be. Dividing its logits by one number, the
temperature, mends the latter and leaves the ranking as it is. The threshold replaces the usual half by the largest one
that still finds as many of the malignant validation images as wanted: missing a cancer and calling a benign tumor
malignant do not weigh the same. What either reaches on other cases is for test rows to say: `calibration_summary`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from breakhis_pl.data.breakhis import CLASS_NAMES
from breakhis_pl.errors import PredictionsError, RunFolderError
from breakhis_pl.evaluation.file_texts import DamagedFileError
from breakhis_pl.evaluation.json_values import LARGEST_COUNT, is_number, json_object
from breakhis_pl.evaluation.metrics import evaluate
from breakhis_pl.evaluation.predictions import Predictions
from breakhis_pl.evaluation.scores import CLIP, log_loss
from breakhis_pl.evaluation.texts import quoted
from breakhis_pl.run_folder import write_text

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

TEMPERATURES = (0.25, 20.0)
"""Bounds of the temperature. Rows without a mistake ask for 0, and any mistake elsewhere would cost without end."""

SUMMARIZED = ("log_loss", "brier", "ece", "accuracy", "sensitivity", "specificity", "weighted_f1")
"""What `calibration_summary` holds with intervals."""

_N_HALVINGS = 60  # of an interval below 4: to 4e-18

_BOUNDS = MappingProxyType(
    {
        "temperature": TEMPERATURES,
        "n_images": (1, LARGEST_COUNT),
        "n_cases": (1, LARGEST_COUNT),
        "log_loss_before": (0.0, math.inf),
        "log_loss_after": (0.0, math.inf),
    }
)
"""Of what a calibration.json may hold; everything else lies between 0 and 1."""


CALIBRATION_JSON = "calibration.json"
"""Inside the run folder, where temperature and threshold were fitted."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was fitted on validation rows.

    Attributes:
        temperature: Divides the logits; above 1 makes probabilities less extreme.
        threshold: An image is called malignant if its calibrated probability of "malignant" is at least this; 0..1.
        sensitivity: Share of the malignant images that was to be found; 0..1, exclusive.
        n_images: Number of validation rows.
        n_cases: Number of their cases.
        log_loss_before: Of these rows as they are, nats per image.
        log_loss_after: With the temperature.
        sensitivity_reached: On these rows at the threshold; at least `sensitivity`.
        specificity_reached: On these rows at the threshold.
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
    """Temperature and threshold for validation rows.

    The temperature has the smallest log loss of all within `TEMPERATURES`. Images with the same probability are called
    alike, so that more of the malignant ones may be found than wanted, never fewer.

    Args:
        predictions: Rows of validation images; nothing else was or will be measured on them.
        sensitivity: Share of the malignant images to find; above 0, below 1.

    Raises:
        PredictionsError: If the sensitivity is not between 0 and 1, or a class has no row.

    Source:
        Guo, Pleiss, Sun and Weinberger, ICML 2017, arXiv:1706.04599, for the temperature.
    """
    if not 0 < sensitivity < 1:
        raise PredictionsError(f"sensitivity {sensitivity} cannot be aimed at; expected a number between 0 and 1")
    is_malignant = predictions.target == 1
    for class_name, present in zip(CLASS_NAMES, (~is_malignant, is_malignant), strict=True):
        if not present.any():
            raise PredictionsError(
                f"none of the {len(predictions)} validation images is {class_name}; expected both classes: "
                "train with a larger data.val_fraction, or another seed"
            )
    temperature = best_temperature(log_odds(predictions.probabilities), predictions.target)
    scaled = at_temperature(predictions.probabilities, temperature)
    threshold = largest_threshold(scaled[is_malignant, 1], sensitivity=sensitivity)
    is_called = scaled[:, 1] >= threshold
    return Calibration(
        temperature=temperature,
        threshold=threshold,
        sensitivity=sensitivity,
        n_images=len(predictions),
        n_cases=len(set(predictions.case)),
        log_loss_before=log_loss(predictions.target, predictions.probabilities),
        log_loss_after=log_loss(predictions.target, scaled),
        sensitivity_reached=float(is_called[is_malignant].mean()),
        specificity_reached=float((~is_called)[~is_malignant].mean()),
    )


def log_odds(probabilities: FloatArray) -> FloatArray:
    """Logit z = ln p(malignant) - ln p(benign), which is the difference of the network's two outputs.

    Both are kept `CLIP` away from 0, as for the log loss, so that z is finite: |z| < 36.05.

    Args:
        probabilities: Columns as in `CLASS_NAMES`; (n, 2), 0..1.

    Returns:
        float64, (n,).

    Example:
        >>> log_odds(np.array([[0.5, 0.5], [0.2, 0.8]])).round(3).tolist()
        [0.0, 1.386]
    """
    log: FloatArray = np.log(np.maximum(probabilities, CLIP))
    return log[:, 1] - log[:, 0]


def best_temperature(logit: FloatArray, target: IntArray) -> float:
    """The temperature within `TEMPERATURES` by which logits have the smallest log loss.

    The log loss is convex in b = 1 / temperature, and its slope, the mean of (1 / (1 + exp(-b z)) - target) z, grows
    with b: halving finds where it is 0, and ends at a bound where it is 0 nowhere between.

    Args:
        logit: (n,).
        target: Index of the true class; int, (n,), 0 or 1.

    Returns:
        1 where every temperature is as good, as for logits of 0.

    Example:
        >>> round(best_temperature(np.log([3.0, 3.0, 3.0]), np.array([1, 1, 0])), 3)  # surer than 2 of 3
        1.585
    """

    def slope(inverse: float) -> float:
        return float(((_sigmoid(inverse * logit) - target) * logit).mean())

    if not logit.any():
        return 1.0
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    if slope(low) >= 0:
        return TEMPERATURES[1]
    if slope(high) <= 0:
        return TEMPERATURES[0]
    for _ in range(_N_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 2 / (low + high)


def largest_threshold(prob_malignant: FloatArray, *, sensitivity: float) -> float:
    """The largest number that at least a share of the malignant images reaches.

    Args:
        prob_malignant: Of the malignant images; (n,), at least one.
        sensitivity: The share; above 0, at most 1.

    Returns:
        The probability of one of them.

    Example:
        >>> largest_threshold(np.array([0.9, 0.6, 0.8, 0.6]), sensitivity=0.75)
        0.6
    """
    n_needed = math.ceil(sensitivity * prob_malignant.size - 1e-9)  # 0.7 * 10 is a little above 7
    return float(np.sort(prob_malignant)[prob_malignant.size - n_needed])


def at_temperature(probabilities: FloatArray, temperature: float) -> FloatArray:
    """Probabilities at a temperature.

    Args:
        probabilities: Columns as in `CLASS_NAMES`; (n, 2), 0..1.
        temperature: Divides the logits.

    Returns:
        float64, (n, 2).
    """
    logit = log_odds(probabilities) / temperature
    return np.stack([_sigmoid(-logit), _sigmoid(logit)], axis=1)


def calibrated(predictions: Predictions, calibration: Calibration) -> Predictions:
    """The rows with calibrated probabilities, decided at the threshold.

    Args:
        predictions: Rows of any subset.
        calibration: What was fitted on validation rows of the same network.
    """
    scaled = at_temperature(predictions.probabilities, calibration.temperature)
    is_called = scaled[:, 1] >= calibration.threshold
    return replace(predictions, probabilities=scaled, predicted=is_called.astype(np.int64))


def calibration_summary(test: Predictions, calibration: Calibration, *, seed: int, n_draws: int) -> dict[str, Any]:
    """What metrics.json holds as "calibrated": the fit, and what it reaches on test rows.

    Args:
        test: Rows as they are, of images that nothing was fitted on.
        calibration: What was fitted on validation rows.
        seed: Of the draws of cases; 0 or more.
        n_draws: Number of draws, at least 100.

    Returns:
        Temperature, threshold, wanted sensitivity, size of the validation set, every metric of `SUMMARIZED` as
        `{"value": v, "ci95": [lo, hi]}`, and the confusion matrix at the threshold.

    Raises:
        PredictionsError: If there is no row.
        ConfigurationError: If there are too few draws, or the seed is negative.
    """
    metrics = evaluate(calibrated(test, calibration), seed=seed, n_draws=n_draws)
    return {
        "temperature": calibration.temperature,
        "threshold": calibration.threshold,
        "wanted_sensitivity": calibration.sensitivity,
        "fitted_on": {"subset": "val", "n_images": calibration.n_images, "n_cases": calibration.n_cases},
        **{name: metrics[name] for name in SUMMARIZED},
        "confusion_matrix": metrics["confusion_matrix"],
    }


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write a calibration as JSON; the file appears under its name only when it is complete.

    Args:
        path: The file to write, calibration.json; its folder exists.
        calibration: What to write.
    """
    write_text(path, json.dumps(asdict(calibration), indent=2, allow_nan=False) + "\n")


def read_calibration(path: Path) -> Calibration:
    """The calibration in a file.

    Args:
        path: A calibration.json.

    Raises:
        RunFolderError: If there is no such file, or it is no calibration.
    """
    if not path.exists():
        raise RunFolderError(
            f"{path} does not exist; expected the calibration of a run: train with data.val_fraction above 0, "
            "as in data.val_fraction=0.2, because nothing is fitted on train or test images"
        )
    try:
        return calibration_from(json_object(path))
    except DamagedFileError as damage:
        raise _damaged(path, str(damage)) from damage


def calibration_from(document: object) -> Calibration:
    """A calibration from plain values of anyone.

    Raises:
        DamagedFileError: If `fit_calibration` cannot have returned it; the text names the value.
    """
    names = [field.name for field in fields(Calibration)]
    if not isinstance(document, Mapping) or document.keys() != set(names):
        raise DamagedFileError(f"expected an object with {', '.join(names)}")
    for name, value in document.items():
        is_count = name in ("n_images", "n_cases")
        if not is_number(value) or not math.isfinite(value) or (is_count and not isinstance(value, int)):
            raise DamagedFileError(f"{name} is {quoted(value)}, not a {'whole ' if is_count else ''}number")
        low, high = _BOUNDS.get(name, (0.0, 1.0))
        if not low <= value <= high:
            raise DamagedFileError(f"{name} {quoted(value)}; expected {low:g} to {high:g}")
    return Calibration(**document)


def _damaged(path: Path, fault: str) -> RunFolderError:
    return RunFolderError(
        f"{path} is damaged: {fault}; fit again with `uv run evaluate.py run=<its folder> calibrate=true`, which takes "
        "a run with data.val_fraction above 0, because nothing is fitted on train or test images"
    )


def _sigmoid(logit: FloatArray) -> FloatArray:
    value: FloatArray = 1 / (1 + np.exp(-logit))
    return value
