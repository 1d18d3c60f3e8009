"""Tables of predictions for tests of metrics."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from breakhis_pl.data.breakhis import official_patients, parse_file_name
from breakhis_pl.data.dataset import Subset
from breakhis_pl.metrics.calibration import Calibration
from breakhis_pl.metrics.predictions import Predictions

CLASSES = ("benign", "malignant")
MANY_CLASSES = ("A", "F", "PT", "TA", "DC", "LC", "MC", "PC")
N_STEPS = 16  # sums of probabilities that are multiples of 1/16 are exact, so that ties are ties in any order
CALIBRATION = Calibration(2.0, 0.3, 0.95, 60, 12, 8, 0.5, 0.4, 0.96, 0.8)
"""Temperature 2 and threshold 0.3, fitted on 60 images of 12 cases."""


def table(
    case: Sequence[object] | npt.NDArray[Any],
    target: Sequence[int] | npt.NDArray[Any],
    positive: Sequence[float] | npt.NDArray[Any],
) -> Predictions:
    """Table of two classes from the probability of the positive one; every case has one patient."""
    probability = np.asarray(positive, dtype=np.float64)
    return Predictions(
        classes=CLASSES,
        image=np.array([f"{index:05}.png" for index in range(len(probability))], dtype=object),
        patient=np.array([f"patient {each}" for each in case], dtype=object),
        case=np.array([f"case {each}" for each in case], dtype=object),
        magnification=np.full(len(probability), 200),
        target=np.asarray(target, dtype=np.int64),
        probabilities=np.stack([1 - probability, probability], axis=1),
        predicted=(probability > 0.5).astype(np.int64),
    )


def random_table(seed: int, *, n_classes: int = 2, n_cases: int = 14, n_images: int = 120) -> Predictions:
    """Table with ties, zeros and ones, decisions that are not the argmax, and cases with images of two classes.

    A case has one or two patients, a patient one class, and every class has images.
    """
    rng = np.random.default_rng(seed)
    patient = np.concatenate([np.arange(2 * n_cases), rng.integers(0, 2 * n_cases, n_images - 2 * n_cases)])
    case = np.where(patient < n_classes, patient, patient // 2)
    target = (patient % n_classes).astype(np.int64)
    weights = rng.dirichlet(np.full(n_classes, 0.6), n_images) + 0.8 * np.eye(n_classes)[target]
    probabilities = np.array([rng.multinomial(N_STEPS, each / each.sum()) for each in weights]) / N_STEPS
    is_other = rng.random(n_images) < 0.1
    return Predictions(
        classes=MANY_CLASSES[:n_classes] if n_classes > 2 else CLASSES,
        image=np.array([f"{index:05}.png" for index in range(n_images)], dtype=object),
        patient=np.array([f"patient {each}" for each in patient], dtype=object),
        case=np.array([f"case {each:03}" for each in case], dtype=object),
        magnification=rng.choice([40, 200], n_images),
        target=target,
        probabilities=probabilities,
        predicted=np.where(is_other, rng.integers(0, n_classes, n_images), probabilities.argmax(1)),
    )


@cache
def fold_2() -> tuple[npt.NDArray[np.object_], npt.NDArray[np.int64]]:
    """Case and target of each of the 597 test images of fold 2 at 200X."""
    names = [
        parse_file_name(f"{official.patient}-200-{number:03}.png")
        for official in official_patients().values()
        if official.subsets[2] is Subset.TEST
        for number in range(1, official.n_images[200] + 1)
    ]
    return np.array([name.case for name in names], dtype=object), np.array([name.target_of("binary") for name in names])


def simulate_fold_2(rng: np.random.Generator, *, recall: Sequence[float], correlation: float) -> Predictions:
    """Draw predictions of fold 2: each case has its own chance to be correct, beta distributed around the recall."""
    names, target = fold_2()
    cases, case = np.unique(names, return_inverse=True)
    mean = np.empty(len(cases))
    mean[case] = np.asarray(recall)[target]
    spread = 1 / correlation - 1
    is_correct = rng.random(len(target)) < rng.beta(mean * spread, (1 - mean) * spread)[case]
    return table(names, target, np.where(is_correct == (target == 1), 0.9, 0.1))
