"""Figures of scores: ROC, precision and recall, calibration, patients, differences with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from breakhis_pl.errors import ShapeError, listed
from breakhis_pl.evaluation.figures import (
    BLACK,
    BLUE,
    GRAY,
    GREEN,
    VERMILLION,
    FloatArray,
    LineStyle,
    count_of_images,
    new_figure,
)

CLASS_STYLES = (LineStyle(BLUE, "-", "o"), LineStyle(VERMILLION, "--", "s"))
"""By index of the class; a third class would need a third style."""

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
    x, y = _same_length(false_positive_rate=false_positive_rate, true_positive_rate=true_positive_rate)
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
    x, y = _same_length(recall=recall, precision=precision)
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
    x, y, n_images = _same_length(predicted=predicted, observed=observed, counts=counts)
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


def patient_figure(
    patients: Sequence[str],
    n_correct: npt.ArrayLike,
    n_images: npt.ArrayLike,
    target: npt.ArrayLike,
    class_names: Sequence[str],
    *,
    title: str,
    note: str | None = None,
) -> Figure:
    """One row per patient, the worst on top: share of the images classified correctly, and how many there are.

    Args:
        patients: Name of each patient; (n_patients,).
        n_correct: Number of each patient's images that are classified correctly; int, (n_patients,).
        n_images: Number of images of each patient, at least 1; int, (n_patients,).
        target: Index of each patient's class; int, (n_patients,).
        class_names: Names of the two classes by index.
        title: Heading.
        note: Warning that must not be lost.

    Raises:
        ShapeError: If the arrays are empty or differ in length, or a patient has no images.
    """
    correct, counts, classes = _same_length(n_correct=n_correct, n_images=n_images, target=target)
    if len(patients) != len(counts):
        raise ShapeError(f"{len(patients)} patients with {len(counts)} counts; expected one count per patient")
    if (counts < 1).any():
        without = [patient for patient, count in zip(patients, counts, strict=True) if count < 1]
        raise ShapeError(f"no images of {listed(without)}; expected at least one of each patient")
    shares = correct / counts
    order = np.array(sorted(range(len(shares)), key=lambda index: (shares[index], patients[index])))
    row_height = min(0.28, max(0.135, 8.5 / len(order)))  # inches; 82 patients fit on a page
    figure = new_figure(width=6.6, height=1.3 + row_height * len(order), title=title, note=note)
    axes = figure.add_subplot()
    rows = np.arange(len(order))
    for index, (class_name, style) in enumerate(zip(class_names, CLASS_STYLES, strict=True)):
        mine = rows[classes[order] == index]
        if not mine.size:
            continue  # an empty line would stretch the layout to the origin of the figure
        percents = 100 * shares[order][mine]
        axes.hlines(mine, 0, percents, color=style.color, linestyle=style.dashes, linewidth=1)
        axes.plot(
            percents,
            mine,
            color=style.color,
            marker=style.marker,
            markersize=4 + 6 * (row_height - 0.135),
            linestyle="",
            clip_on=False,
            zorder=3,
            label=f"{class_name} ({len(mine)} patient{'' if len(mine) == 1 else 's'})",
        )
    mean = 100 * shares.mean()
    axes.axvline(mean, color=BLACK, linestyle=":", linewidth=1, label=f"mean over patients {mean:.1f}%")
    size = min(9.0, 60 * row_height)
    axes.set_yticks(rows, [one_line(patients[index]) for index in order], size=size, parse_math=False)
    for row, index in enumerate(order):
        text = f"{int(correct[index])} of {int(counts[index])}"
        axes.annotate(text, (1.02, row), xycoords=("axes fraction", "data"), va="center", size=size, color=GRAY)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("Images classified correctly (% of the patient's images)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(
        loc="lower center",
        bbox_to_anchor=(0.42, 1.0),
        ncols=3,
        fontsize=9,
        frameon=False,
        columnspacing=1.2,
        handletextpad=0.5,
    )
    return figure


def forest_figure(
    labels: Sequence[str],
    values: npt.ArrayLike,
    lower: npt.ArrayLike,
    upper: npt.ArrayLike,
    *,
    axis_label: str,
    title: str,
    note: str | None = None,
    reference: float | None = 0.0,
) -> Figure:
    """One row per comparison: its value and interval, drawn and written; first row on top.

    Args:
        labels: What is compared in each row.
        values: Differences, or other values; float, (n_rows,).
        lower: Lower ends of the intervals; float, (n_rows,).
        upper: Upper ends of the intervals; float, (n_rows,).
        axis_label: What the values are, with unit: "Difference of weighted F1 (95% interval over cases)".
        title: Heading.
        note: Warning that must not be lost.
        reference: Where to draw a line, for example at no difference; None for no line.

    Raises:
        ShapeError: If the arrays are empty or differ in length.
    """
    centers, lows, highs = _same_length(values=values, lower=lower, upper=upper)
    if len(labels) != len(centers):
        raise ShapeError(f"{len(labels)} labels with {len(centers)} values; expected one label per value")
    rows = np.arange(len(centers))
    figure = new_figure(width=7.0, height=1.2 + 0.36 * len(centers), title=title, note=note)
    axes = figure.add_subplot()
    if reference is not None:
        axes.axvline(reference, color=GRAY, linestyle=":", linewidth=1)
    clear = np.zeros(len(centers), dtype=np.bool_) if reference is None else (lows > reference) | (highs < reference)
    for row in rows:
        color, marker = (GREEN, "D") if clear[row] else (BLUE, "o")
        axes.hlines(row, lows[row], highs[row], color=color, linewidth=1.8)
        axes.plot(centers[row], row, color=color, marker=marker, markersize=6)
        form = "{:+.3f} ({:+.3f} to {:+.3f})" if reference == 0.0 else "{:.3f} ({:.3f} to {:.3f})"
        axes.annotate(
            form.format(centers[row], lows[row], highs[row]).replace("-", "\N{MINUS SIGN}"),
            (1.02, row),
            xycoords=("axes fraction", "data"),
            va="center",
            size=9,
        )
    axes.set_yticks(rows, labels, parse_math=False)
    axes.set_ylim(len(centers) - 0.4, -0.6)
    axes.set_xlabel(axis_label)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.08)
    return figure


def one_line(text: str, *, longest: int = 40) -> str:
    r"""A text from outside as a figure can show it: printable, on one line, cut where it is too long.

    Args:
        text: A name, for example.
        longest: Characters to keep.

    Example:
        >>> one_line("a\r\nb" + 100 * "c", longest=8)
        'a bcccc…'
    """
    line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def _same_length(**arrays: npt.ArrayLike) -> list[FloatArray]:
    """The arrays as float64, (n,), n the same and not 0."""
    columns = {name: np.asarray(values, dtype=np.float64) for name, values in arrays.items()}
    shapes = {name: values.shape for name, values in columns.items()}
    first = next(iter(columns.values()))
    if first.ndim != 1 or first.size == 0 or len(set(shapes.values())) > 1:
        raise ShapeError(f"arrays of shapes {shapes}; expected one dimension, the same length, at least one value")
    return list(columns.values())


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
    x, lower, upper = _same_length(x=band.x, lower=band.lower, upper=band.upper)
    axes.fill_between(100 * x, 100 * lower, 100 * upper, color=BLUE, alpha=0.18, linewidth=0, label=band.label)


def _legend(axes: Axes, place: Literal["lower right", "lower left"]) -> None:
    axes.legend(loc=place, fontsize=9, framealpha=0.9)
