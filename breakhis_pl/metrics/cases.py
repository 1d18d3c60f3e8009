"""Sums by case, from which every metric follows: a bootstrap draw of cases is one row of weights.

A metric of thousands of draws then costs a few matrix products instead of thousands of passes over the images.
"""

from functools import cached_property

import numpy as np

from breakhis_pl.metrics.predictions import BoolArray, FloatArray, IntArray, Predictions

N_DRAWS = 10_000
"""Bootstrap draws behind an interval."""

MAX_GROUPS = 2_000
"""Largest number of groups that are resampled, because some metrics need a number for every pair of them."""


def draw_cases(n_groups: int, *, seed: int, n_draws: int = N_DRAWS) -> IntArray:
    """Draw cases with replacement; int64, (n_draws, n_groups), how often each case is in each draw."""
    return np.random.default_rng(seed).multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_draws)


class CaseTable:
    """Predictions grouped by case, the unit that is resampled.

    More than `MAX_GROUPS` cases are put into as many groups at random, which are resampled in their place.

    Args:
        predictions: One row per image.

    Attributes:
        predictions: The same.
        group: Index of the group of each image, which is its case if there are few; int64, (n_images,).
        group_of_case: Index of the group of each case; int64, (n_cases,).
        n_groups: Number of groups.
        n_cases: Number of cases.
        n_classes: Number of classes.
        confusion: Images by group, truth and prediction; float64, (n_groups, n_classes, n_classes).

    Source:
        Kott 2001, The Delete-a-Group Jackknife, Journal of Official Statistics 17 (4), for random groups.
    """

    def __init__(self, predictions: Predictions) -> None:
        self.predictions = predictions
        self.n_cases = int(predictions.case_index.max()) + 1
        self.group_of_case = np.arange(self.n_cases)
        if self.n_cases > MAX_GROUPS:
            self.group_of_case = np.random.default_rng(0).permutation(self.n_cases) % MAX_GROUPS
        self.group = self.group_of_case[predictions.case_index]
        self.n_groups = min(self.n_cases, MAX_GROUPS)
        self.n_classes = predictions.n_classes
        self.confusion = np.zeros((self.n_groups, self.n_classes, self.n_classes))
        np.add.at(self.confusion, (self.group, predictions.target, predictions.predicted), 1)

    @property
    def present(self) -> BoolArray:
        """Classes that have images; bool, (n_classes,)."""
        return self.cases_of_class > 0

    @cached_property
    def cases_of_class(self) -> IntArray:
        """Cases with images of each class; int64, (n_classes,)."""
        return self._count_cases(self.predictions.target)

    @cached_property
    def cases_of_prediction(self) -> IntArray:
        """Cases with images that are predicted as each class; int64, (n_classes,)."""
        return self._count_cases(self.predictions.predicted)

    def _count_cases(self, classes: IntArray) -> IntArray:
        pairs = np.unique(self.predictions.case_index * self.n_classes + classes)
        return np.bincount(pairs % self.n_classes, minlength=self.n_classes)

    @property
    def predicts_one_class(self) -> bool:
        """Whether all images are predicted as the same class."""
        return int((self.cases_of_prediction > 0).sum()) == 1

    def sum_by_group(self, values: FloatArray) -> FloatArray:
        """Sum a quantity of the images; float64, (n_images, …) to (n_groups, …)."""
        sums = np.zeros((self.n_groups, *values.shape[1:]))
        np.add.at(sums, self.group, values)
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
            float64, (n_groups, n_groups), by group of the other image (row) and of the class's (column); ties are half.
        """
        score, is_positive = self.predictions.probabilities[:, positive], self.predictions.target == positive
        pairs = np.zeros((self.n_groups, self.n_groups))
        for other in np.unique(self.group[~is_positive]):
            below = np.sort(score[(self.group == other) & ~is_positive])
            counts = np.searchsorted(below, score[is_positive], "left") + np.searchsorted(
                below, score[is_positive], "right"
            )
            pairs[other] = np.bincount(self.group[is_positive], weights=counts / 2, minlength=self.n_groups)
        return pairs


class Draws:
    """Weighted cases, one row of weights per draw; formulas of metrics take it.

    Args:
        table: The cases.
        weights: How often each group counts in each draw, (n_draws, n_groups); None: once, in a single draw.

    Attributes:
        table: The same.
        weights: The same, as float64.
    """

    def __init__(self, table: CaseTable, weights: FloatArray | IntArray | None = None) -> None:
        self.table = table
        self.weights = np.ones((1, table.n_groups)) if weights is None else weights.astype(np.float64)

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
        return self.weights @ self.table.sum_by_group(values)

    def mean(self, values: FloatArray) -> FloatArray:
        """Weighted mean of a quantity of the images; float64, (n_images,) to (n_draws,)."""
        return self.sum(values) / self.n_images
