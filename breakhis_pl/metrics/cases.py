"""Sums by case, from which every metric follows: a bootstrap draw of cases is one row of weights.

A metric of thousands of draws then costs a few matrix products instead of thousands of passes over the images.
"""

from functools import cached_property

import numpy as np

from breakhis_pl.errors import ConfigurationError
from breakhis_pl.metrics.predictions import BoolArray, FloatArray, IntArray, Predictions

N_DRAWS = 10_000
"""Bootstrap draws behind an interval."""


def draw_cases(n_cases: int, *, seed: int, n_draws: int = N_DRAWS) -> IntArray:
    """Draw cases with replacement; int64, (n_draws, n_cases), how often each case is in each draw.

    Raises:
        ConfigurationError: If there are fewer than 100 draws, or the seed is negative.
    """
    if n_draws < 100:
        raise ConfigurationError(f"n_draws={n_draws}: must be at least 100; {N_DRAWS} are usual")
    if seed < 0:
        raise ConfigurationError(f"seed={seed}: must be 0 or more")
    return np.random.default_rng(seed).multinomial(n_cases, np.full(n_cases, 1 / n_cases), size=n_draws)


class CaseTable:
    """Predictions grouped by case.

    Args:
        predictions: One row per image.

    Attributes:
        predictions: The same.
        case: Index of each image's case; int64, (n_images,).
        n_cases: Number of cases.
        n_classes: Number of classes.
        confusion: Images by case, truth and prediction; float64, (n_cases, n_classes, n_classes).
    """

    def __init__(self, predictions: Predictions) -> None:
        self.predictions = predictions
        self.case = predictions.case_index
        self.n_cases = int(self.case.max()) + 1
        self.n_classes = predictions.n_classes
        self.confusion = np.zeros((self.n_cases, self.n_classes, self.n_classes))
        np.add.at(self.confusion, (self.case, predictions.target, predictions.predicted), 1)

    @property
    def present(self) -> BoolArray:
        """Classes that have images; bool, (n_classes,)."""
        return self.cases_of_class > 0

    @cached_property
    def cases_of_class(self) -> IntArray:
        """Cases with images of each class; int64, (n_classes,)."""
        return np.asarray((self.confusion.sum(2) > 0).sum(0))

    @cached_property
    def cases_of_prediction(self) -> IntArray:
        """Cases with images that are predicted as each class; int64, (n_classes,)."""
        return np.asarray((self.confusion.sum(1) > 0).sum(0))

    @property
    def predicts_one_class(self) -> bool:
        """Whether all images are predicted as the same class."""
        return int((self.cases_of_prediction > 0).sum()) == 1

    def sum_by_case(self, values: FloatArray) -> FloatArray:
        """Sum a quantity of the images; float64, (n_images, …) to (n_cases, …)."""
        sums = np.zeros((self.n_cases, *values.shape[1:]))
        np.add.at(sums, self.case, values)
        return sums

    @cached_property
    def one_against_rest(self) -> tuple[int, ...]:
        """Classes whose probability is ranked: the positive one of two, every one that has images of more."""
        return (1,) if self.n_classes == 2 else tuple(np.flatnonzero(self.present).tolist())

    def ordered_pairs(self, positive: int) -> FloatArray:
        """Count pairs in which the image of a class has a higher probability of it than the image of another class.

        Args:
            positive: Index of the class.

        Returns:
            float64, (n_cases, n_cases), by case of the other image (row) and of the class's (column); ties count half.
        """
        score, is_positive = self.predictions.probabilities[:, positive], self.predictions.target == positive
        pairs = np.zeros((self.n_cases, self.n_cases))
        for other in np.unique(self.case[~is_positive]):
            below = np.sort(score[(self.case == other) & ~is_positive])
            counts = np.searchsorted(below, score[is_positive], "left") + np.searchsorted(
                below, score[is_positive], "right"
            )
            pairs[other] = np.bincount(self.case[is_positive], weights=counts / 2, minlength=self.n_cases)
        return pairs


class Draws:
    """Weighted cases, one row of weights per draw; formulas of metrics take it.

    Args:
        table: The cases.
        weights: How often each case counts in each draw, (n_draws, n_cases); None: once, in a single draw.

    Attributes:
        table: The same.
        weights: The same, as float64.
    """

    def __init__(self, table: CaseTable, weights: FloatArray | IntArray | None = None) -> None:
        self.table = table
        self.weights = np.ones((1, table.n_cases)) if weights is None else weights.astype(np.float64)

    @property
    def predictions(self) -> Predictions:
        """The images."""
        return self.table.predictions

    @cached_property
    def confusion(self) -> FloatArray:
        """Confusion matrix of each draw, rows are the truth; float64, (n_draws, n_classes, n_classes)."""
        return np.tensordot(self.weights, self.table.confusion, axes=1)

    @cached_property
    def support(self) -> FloatArray:
        """Images of each class; float64, (n_draws, n_classes)."""
        return np.asarray(self.confusion.sum(2))

    @cached_property
    def n_predicted(self) -> FloatArray:
        """Images predicted as each class; float64, (n_draws, n_classes)."""
        return np.asarray(self.confusion.sum(1))

    @cached_property
    def n_images(self) -> FloatArray:
        """Images of each draw; float64, (n_draws,)."""
        return np.asarray(self.support.sum(1))

    @cached_property
    def has_all_classes(self) -> BoolArray:
        """Draws with images of every class that the table has, if these are two or more; bool, (n_draws,)."""
        has_images = (self.support[:, self.table.present] > 0).all(1)
        return np.asarray(has_images & (self.table.present.sum() > 1))

    def sum(self, values: FloatArray) -> FloatArray:
        """Weighted sum of a quantity of the images; float64, (n_images, …) to (n_draws, …)."""
        return self.weights @ self.table.sum_by_case(values)

    def mean(self, values: FloatArray) -> FloatArray:
        """Weighted mean of a quantity of the images; float64, (n_images,) to (n_draws,)."""
        return self.sum(values) / self.n_images
