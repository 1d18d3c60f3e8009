"""Figures of scores: ROC, precision and recall, calibration; row_figures.py has those with a row for each of many."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from breakhis_pl.errors import ShapeError
from breakhis_pl.evaluation.figures import BLUE, GRAY, VERMILLION, count_of_images, new_figure, same_length

FEW_IMAGES = 10
"""Below it, one image moves the share of a bin by more than ten points."""


@dataclass(frozen=True, slots=True)
class Band:
    """An interval around a curve, on a grid of its own.

    Attributes:
        x: Grid, rising; float, (n_points,).
        lower: Lower end at each grid point; float, (n_points,).
        upper: Upper end at each grid point; float, (n_points,).
        label: What the band is, for the legend: "95% interval over cases".
    """

    x: npt.ArrayLike
    lower: npt.ArrayLike
    upper: npt.ArrayLike
    label: str


def roc_figure(
    false_positive_rate: npt.ArrayLike,
    true_positive_rate: npt.ArrayLike,
    *,
    n_benign: int,
    n_malignant: int,
    label: str,
    title: str,
    note: str | None = None,
    point: tuple[float, float] | None = None,
    band: Band | None = None,
) -> Figure:
    """ROC curve; malignant is the positive class.

    Args:
        false_positive_rate: In [0, 1], rising; float, (n_thresholds,).
        true_positive_rate: In [0, 1], rising; float, (n_thresholds,).
        n_benign: Number of benign images.
        n_malignant: Number of malignant images.
        label: What the curve is, for the legend: "AUC 0.956 (0.91 to 0.98)".
        title: Heading.
        note: Warning that must not be lost.
        point: False and true positive rate of the decisions counted in the confusion matrix.
        band: Interval around the curve.

    Raises:
        ShapeError: If the arrays are empty or differ in length.
    """
    x, y = same_length(false_positive_rate=false_positive_rate, true_positive_rate=true_positive_rate)
    figure, axes = _square_figure(title=title, note=note)
    axes.plot([0, 100], [0, 100], color=GRAY, linestyle=":", linewidth=1, label="chance")
    _draw_band(axes, band)
    axes.plot(100 * x, 100 * y, color=BLUE, linewidth=2, label=label)
    if point is not None:
        axes.plot(*(100 * rate for rate in point), color=VERMILLION, marker="D", linestyle="", label="threshold used")
    axes.set_xlabel(f"False positive rate (% of {n_benign:,} benign images)")
    axes.set_ylabel(f"True positive rate (% of {n_malignant:,} malignant images)")
    _legend(axes, "lower right")
    return figure


def precision_recall_figure(
    recall: npt.ArrayLike,
    precision: npt.ArrayLike,
    *,
    n_benign: int,
    n_malignant: int,
    label: str,
    title: str,
    note: str | None = None,
    point: tuple[float, float] | None = None,
    band: Band | None = None,
) -> Figure:
    """Precision over recall; malignant is the positive class.

    Args:
        recall: In [0, 1], in the order of a rising threshold, that is falling; float, (n_thresholds,).
        precision: In [0, 1]; float, (n_thresholds,).
        n_benign: Number of benign images.
        n_malignant: Number of malignant images.
        label: What the curve is, for the legend: "average precision 0.97".
        title: Heading.
        note: Warning that must not be lost.
        point: Recall and precision of the decisions counted in the confusion matrix.
        band: Interval around the curve.

    Raises:
        ShapeError: If the arrays are empty or differ in length.
    """
    x, y = same_length(recall=recall, precision=precision)
    n_images = n_benign + n_malignant
    prevalence = n_malignant / n_images if n_images else float("nan")
    figure, axes = _square_figure(title=title, note=note)
    axes.axhline(100 * prevalence, color=GRAY, linestyle=":", linewidth=1, label=f"always malignant ({prevalence:.1%})")
    _draw_band(axes, band)
    axes.plot(100 * x, 100 * y, color=BLUE, linewidth=2, drawstyle="steps-post", label=label)
    if point is not None:
        axes.plot(*(100 * rate for rate in point), color=VERMILLION, marker="D", linestyle="", label="threshold used")
    axes.set_xlabel(f"Recall (% of {n_malignant:,} malignant images)")
    axes.set_ylabel("Precision (% of images called malignant)")
    _legend(axes, "lower left")
    return figure


def reliability_figure(
    predicted: npt.ArrayLike,
    observed: npt.ArrayLike,
    counts: npt.ArrayLike,
    *,
    edges: npt.ArrayLike,
    title: str,
    note: str | None = None,
    label: str = "test images",
) -> Figure:
    """Share of malignant images over the predicted probability, and below it the number of images in each bin.

    A line joins each point to where it would lie if it were calibrated; points of few images are hollow.

    Args:
        predicted: Mean predicted probability of malignant in each bin, NaN where it is empty; float, (n_bins,).
        observed: Share of malignant images in each bin, NaN where it is empty; float, (n_bins,).
        counts: Number of images in each bin; int, (n_bins,).
        edges: Ends of the bins, rising in [0, 1]; float, (n_bins + 1,).
        title: Heading.
        note: Warning that must not be lost.
        label: What the points are, for the legend: "calibration error 0.04".

    Raises:
        ShapeError: If the arrays are empty or do not match in length.
    """
    x, y, n_images = same_length(predicted=predicted, observed=observed, counts=counts)
    ends = 100 * np.asarray(edges, dtype=np.float64)
    if ends.shape != (len(x) + 1,):
        raise ShapeError(f"{len(x)} bins with {ends.size} edges; expected {len(x) + 1}")
    figure = new_figure(width=5.2, height=5.5, title=title, note=note)
    axes, count_axes = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.plot([0, 100], [0, 100], color=GRAY, linestyle=":", linewidth=1, label="perfect calibration")
    for is_shown, fill, text in (
        (n_images >= FEW_IMAGES, BLUE, label),
        ((n_images > 0) & (n_images < FEW_IMAGES), "white", f"fewer than {FEW_IMAGES} images"),
    ):
        if not is_shown.any():
            continue
        places, shares = 100 * x[is_shown], 100 * y[is_shown]
        axes.vlines(places, places, shares, color=BLUE, linewidth=1)
        axes.plot(places, shares, color=BLUE, marker="o", mfc=fill, linestyle="", label=text, clip_on=False, zorder=3)
    axes.set_ylabel("Malignant images (%)")
    _percent_limits(axes)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.12, 1.0), ncols=2, fontsize=8, frameon=False, columnspacing=0.8)
    bars = count_axes.bar(
        ends[:-1], n_images, width=np.diff(ends), align="edge", color="#bcd9ea", edgecolor=BLUE, linewidth=0.8
    )
    count_axes.bar_label(bars, [f"{int(n):,}" for n in n_images], size=8, padding=2)
    count_axes.set_ylim(0, max(1.0, 1.25 * n_images.max()))
    count_axes.set_ylabel("Images")
    count_axes.set_xlabel(f"Predicted probability of malignant (%), {count_of_images(int(n_images.sum()))}")
    count_axes.spines[["top", "right"]].set_visible(False)
    figure.align_ylabels()
    return figure


def _square_figure(*, title: str, note: str | None) -> tuple[Figure, Axes]:
    figure = new_figure(width=5.2, height=4.9, title=title, note=note)
    axes = figure.add_subplot()
    _percent_limits(axes)
    return figure, axes


def _percent_limits(axes: Axes) -> None:
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_band(axes: Axes, band: Band | None) -> None:
    if band is None:
        return
    x, lower, upper = same_length(x=band.x, lower=band.lower, upper=band.upper)
    axes.fill_between(100 * x, 100 * lower, 100 * upper, color=BLUE, alpha=0.18, linewidth=0, label=band.label)


def _legend(axes: Axes, place: Literal["lower right", "lower left"]) -> None:
    axes.legend(loc=place, fontsize=9, framealpha=0.9)
