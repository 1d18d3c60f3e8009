"""Figures with a row for each of many: patients, and differences with their intervals."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ft2font import FT2Font
from matplotlib.textpath import text_to_path

from breakhis_pl.errors import ShapeError, join_truncated
from breakhis_pl.evaluation.figures import (
    BLACK,
    BLUE,
    GRAY,
    GREEN,
    VERMILLION,
    LineStyle,
    new_figure,
    same_length,
)
from breakhis_pl.evaluation.texts import named, one_line

CLASS_STYLES = (LineStyle(BLUE, "-", "o"), LineStyle(VERMILLION, "--", "s"))
"""By index of the class; a third class would need a third style."""

MOST_PATIENTS = 200
"""Rows of a figure; BreakHis has 82 patients."""

FOREST_SIZE = 10.0
"""Of the labels of comparisons, in points."""

_HINTING = 1.1
"""How much wider letters are drawn at most than they are: their edges are moved to whole pixels."""

LONGEST_NAME = 100
"""Characters of a name that a row shows; of a longer one, the middle is left out."""


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

    The figure is as wide as its longest name needs. Of more than `MOST_PATIENTS`, the worst are drawn, and the figure
    says so; the mean is that of all.

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
    correct, counts, classes = same_length(n_correct=n_correct, n_images=n_images, target=target)
    if len(patients) != len(counts):
        raise ShapeError(f"{len(patients)} patients with {len(counts)} counts; expected one count per patient")
    if (counts < 1).any():
        without = [named(patient) for patient, count in zip(patients, counts, strict=True) if count < 1]
        raise ShapeError(f"no images of {join_truncated(without)}; expected at least one of each patient")
    shares = correct / counts
    worst_first = sorted(range(len(shares)), key=lambda index: (shares[index], patients[index]))
    order = np.array(worst_first[:MOST_PATIENTS])
    if len(order) < len(patients):
        title = f"{title}, the lowest {len(order)} of {len(patients):,} patients"
    row_height = min(0.28, max(0.135, 8.5 / len(order)))  # inches; 82 patients fit on a page
    size = min(9.0, 60 * row_height)
    names = [label_text(patients[index]) for index in order]
    width = 6.6 + _beyond(names, size=size, room=1.7)
    figure = new_figure(width=width, height=1.3 + row_height * len(order), title=title, note=note)
    axes = figure.add_subplot()
    rows = np.arange(len(order))
    for index, (class_name, style) in enumerate(zip(class_names, CLASS_STYLES, strict=True)):
        mine = rows[classes[order] == index]
        n_patients = int((classes == index).sum())
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
            label=f"{class_name} ({n_patients:,} patient{'' if n_patients == 1 else 's'})",
        )
    mean = 100 * shares.mean()
    axes.axvline(mean, color=BLACK, linestyle=":", linewidth=1, label=f"mean over patients {mean:.1f}%")
    axes.set_yticks(rows, names, size=size, parse_math=False)
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
    centers, lows, highs = same_length(values=values, lower=lower, upper=upper)
    if len(labels) != len(centers):
        raise ShapeError(f"{len(labels)} labels with {len(centers)} values; expected one label per value")
    rows = np.arange(len(centers))
    names = [label_text(label) for label in labels]
    width = 7.0 + _beyond(names, size=FOREST_SIZE, room=2.2)
    figure = new_figure(width=width, height=1.2 + 0.36 * len(centers), title=title, note=note)
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
    axes.set_yticks(rows, names, size=FOREST_SIZE, parse_math=False)
    axes.set_ylim(len(centers) - 0.4, -0.6)
    axes.set_xlabel(axis_label)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.08)
    return figure


def label_text(text: str) -> str:
    """A name as a figure can show it: on one line, whole up to `LONGEST_NAME`, a box for what has no glyph.

    Args:
        text: The name.
    """
    font = _font()
    line = one_line(text, longest=LONGEST_NAME)
    return "".join(each if font.get_char_index(ord(each)) else "\N{WHITE SQUARE}" for each in line)


@cache
def _font() -> FT2Font:
    return get_font(findfont(FontProperties()))


def _beyond(names: Sequence[str], *, size: float, room: float) -> float:
    """How much wider than `room` the widest name is, in inches; 0 where it is not.

    Args:
        names: From `label_text`.
        size: Of the letters, in points.
        room: In inches.
    """
    font = FontProperties(size=size)
    widths = (text_to_path.get_text_width_height_descent(name, font, ismath=False)[0] for name in names)
    return max(0.0, _HINTING * max(widths) / 72 - room)
