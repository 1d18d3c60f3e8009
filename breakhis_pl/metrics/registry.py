"""The metrics. To add one, add it to `_ENTRIES`: it gets an interval, and appears wherever `shown` says.

Metric("kappa", "Cohen's kappa", "agreement beyond chance", kappa, range=(-1, 1), chance=0, basis="classes")
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from breakhis_pl.metrics import classification as formulas
from breakhis_pl.metrics.cases import CaseTable, Draws
from breakhis_pl.metrics.classification import Formula
from breakhis_pl.metrics.predictions import FloatArray

Basis = Literal["cases", "classes", "class", "prediction", "positive", "negative"]
Place = Literal["key", "report", "shared_cases", "calibration", "comparison", "paired", "folds"]


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        name: Key in metrics.json and column of comparison.csv.
        title: Heading.
        meaning: A phrase that explains it.
        formula: Returns the value in each draw: float64, (n_draws,), or (n_draws, n_classes) if `per_class`.
        per_class: Whether it has a value for each class; its keys end in the name of the class.
        range: Lowest and highest value.
        chance: Value of decisions by chance; a number, or a function of the cases. None: 1 / n_classes.
        basis: Cases that its interval rests on. "cases": all; "classes": those of the class with fewest, as all
            weigh the same; "class": those of the class, for `per_class`; "prediction": those predicted as the class;
            "positive" and "negative": those of one of two classes.
        uses_all_cases: Whether images of other classes change the value too, for metrics of a class.
        interval: "logit" and "log": scale of the t interval; "wilson": a fraction of independent cases; "unbiased":
            plain scale, with the bias of the draws removed.
        is_of_groups: Whether it is about patients or cases, and equals accuracy if images are independent.
        shown: Where it appears. "key": the first numbers of a run's page; "report": its table of metrics; "paired":
            differences of runs; "folds": mean over folds; the others by their names.
    """

    name: str
    title: str
    meaning: str
    formula: Formula
    per_class: bool = False
    range: tuple[float, float] = (0.0, 1.0)
    chance: float | Callable[[CaseTable], float] | None = None
    basis: Basis = "cases"
    uses_all_cases: bool = False
    interval: Literal["logit", "log", "wilson", "unbiased"] = "logit"
    is_of_groups: bool = False
    shown: frozenset[Place] = frozenset({"report", "comparison"})

    def chance_value(self, table: CaseTable) -> float:
        """Return the value of decisions by chance."""
        if self.chance is None:
            return 1 / table.n_classes
        return self.chance(table) if callable(self.chance) else self.chance

    def values(self, draws: Draws) -> FloatArray:
        """Return the values of all draws, NaN where a draw does not define it.

        A mean over classes needs an image of every class of the table, and a per-class metric needs one of its class;
        precision needs one predicted as the class.
        """
        values = self.formula(draws)
        match self.basis:
            case "classes":
                return np.where(draws.has_all_classes, values, np.nan)
            case "class":
                return np.where(draws.support > 0, values, np.nan)
            case "prediction":
                return np.where(draws.n_predicted > 0, values, np.nan)
            case "positive" | "negative":
                return np.where(draws.support[:, self.class_index] > 0, values, np.nan)
            case _:
                return values

    @property
    def class_index(self) -> int:
        """Index of the class that a metric of one of two classes is about."""
        return 1 if self.basis == "positive" else 0

    def is_for(self, n_classes: int) -> bool:
        """Whether the metric is defined for a number of classes."""
        return n_classes == 2 or self.basis not in ("positive", "negative")

    def n_cases(self, table: CaseTable, index: int = 0) -> int:
        """Return the number of cases that the value rests on; of a class for `per_class`."""
        match self.basis:
            case "classes":
                return int(table.cases_of_class[table.present].min()) if table.present.sum() > 1 else 0
            case "class":
                return int(table.cases_of_class[index])
            case "prediction":
                return int(table.cases_of_prediction[index])
            case "positive" | "negative":
                return int(table.cases_of_class[self.class_index])
            case _:
                return table.n_cases

    def n_effective_cases(self, table: CaseTable, index: int = 0) -> float:
        """Return the effective number of cases, which determines the precision of the value.

        For metrics that weigh classes equally, it is n_classes^2 / sum(1 / cases of the class), at most all cases: a
        case may have images of several classes.

        Source:
            Willer, Li and Abecasis 2010, doi:10.1093/bioinformatics/btq340, for cases and controls.
        """
        if self.basis == "classes":
            counts = table.cases_of_class[table.present]
            return min(float(table.n_cases), float(len(counts) ** 2 / (1 / counts).sum()))
        return float(table.n_cases if self.uses_all_cases else self.n_cases(table, index))


def _prevalence(table: CaseTable) -> float:
    support = table.confusion.sum((0, 2))
    return float(np.mean([support[positive] for positive in table.one_against_rest]) / support.sum())


_MEANS: tuple[tuple[str, Callable[[Formula], Formula], Basis, str], ...] = (
    ("weighted", formulas.weighted, "cases", "mean over the classes, weighted by their images"),
    ("macro", formulas.macro, "classes", "mean over the classes"),
)
_OF_CLASS: tuple[tuple[str, Formula, Basis, str], ...] = (
    ("precision", formulas.precision, "prediction", "fraction of the images predicted as the class that are of it"),
    ("recall", formulas.recall, "class", "fraction of the class's images that are found"),
    ("f1", formulas.f1, "class", "harmonic mean of precision and recall"),
)

_ENTRIES = (
    Metric(
        "weighted_f1",
        "Weighted F1",
        "F1 of the classes, weighted by their images",
        formulas.weighted(formulas.f1),
        shown=frozenset({"key", "shared_cases", "calibration", "comparison", "paired", "folds"}),
    ),
    Metric(
        "accuracy",
        "Accuracy",
        "fraction of images that are correct",
        formulas.accuracy,
        shown=frozenset({"key", "report", "shared_cases", "calibration", "comparison", "paired", "folds"}),
    ),
    Metric(
        "auroc",
        "AUROC",
        "probability that an image of a class is ranked above one of another class",
        formulas.auroc,
        chance=0.5,
        basis="classes",
        shown=frozenset({"key", "report", "shared_cases", "comparison", "paired", "folds"}),
    ),
    Metric(
        "patient_recognition_rate",
        "Patient recognition rate",
        "mean over patients of the fraction of their images that are correct",
        formulas.patient_recognition_rate,
        is_of_groups=True,
        shown=frozenset({"key", "report", "shared_cases", "folds"}),
    ),
    Metric(
        "balanced_accuracy",
        "Balanced accuracy",
        "mean recall of the classes",
        formulas.macro(formulas.recall),
        basis="classes",
        shown=frozenset({"report", "comparison", "folds"}),
    ),
    Metric(
        "mcc",
        "Matthews correlation (MCC)",
        "correlation of truth and prediction, -1 to 1",
        formulas.matthews_correlation,
        range=(-1.0, 1.0),
        chance=0.0,
        basis="classes",
    ),
    Metric(
        "case_accuracy",
        "Case accuracy",
        "fraction of cases that are correct by the mean probability of their images",
        formulas.case_accuracy,
        is_of_groups=True,
        interval="wilson",
        shown=frozenset({"report", "folds"}),
    ),
    Metric(
        "average_precision",
        "Average precision",
        "area under precision over recall",
        formulas.average_precision,
        chance=_prevalence,
        basis="classes",
        shown=frozenset({"report"}),
    ),
    Metric(
        "brier",
        "Brier score",
        "mean squared error of the probability; lower is better",
        formulas.brier,
        chance=lambda table: (1 - 1 / table.n_classes) / 2,
        shown=frozenset({"report", "calibration"}),
    ),
    Metric(
        "log_loss",
        "Log loss",
        "mean negative logarithm of the true class's probability; lower is better",
        formulas.log_loss,
        range=(0.0, math.inf),
        chance=lambda table: math.log(table.n_classes),
        interval="log",
        shown=frozenset({"report", "calibration"}),
    ),
    Metric(
        "ece",
        "Expected calibration error",
        "mean distance of probability and observed frequency, 10 bins; lower is better",
        formulas.expected_calibration_error,
        interval="unbiased",
        shown=frozenset({"report", "calibration"}),
    ),
    Metric(
        "sensitivity",
        "Sensitivity",
        "recall of the positive class",
        lambda draws: formulas.recall(draws)[:, 1],
        basis="positive",
        shown=frozenset({"shared_cases", "calibration"}),
    ),
    Metric(
        "specificity",
        "Specificity",
        "recall of the negative class",
        lambda draws: formulas.recall(draws)[:, 0],
        basis="negative",
        shown=frozenset({"shared_cases", "calibration"}),
    ),
    *(
        Metric(
            f"{kind}_{name}",
            f"{kind.capitalize()} {name.capitalize()}",
            meaning,
            mean(formula),
            basis=basis,
            shown=frozenset(),
        )
        for kind, mean, basis, meaning in _MEANS
        for name, formula, *_ in _OF_CLASS
        if (kind, name) != ("weighted", "f1")
    ),
    *(
        Metric(
            name,
            name.capitalize(),
            meaning,
            formula,
            per_class=True,
            basis=basis,
            uses_all_cases=name != "recall",
            shown=frozenset(),
        )
        for name, formula, basis, meaning in _OF_CLASS
    ),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ENTRIES}
"""All metrics by name, in the order in which they are shown."""

MAIN_METRIC = "weighted_f1"
"""The metric of Otto et al. 2022; conclusions are drawn from it."""


def shown(place: Place, n_classes: int = 2) -> list[Metric]:
    """Return the metrics that appear in a place."""
    return [metric for metric in METRICS.values() if place in metric.shown and metric.is_for(n_classes)]
