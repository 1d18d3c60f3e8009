"""The confusion matrix as a figure."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from breakhis_pl.errors import ShapeError
from breakhis_pl.evaluation.figures import GRAY, count_of_images, new_figure

IntArray = npt.NDArray[np.int64]

FEW_CLASSES = 3
"""Up to so many, cells are large; with more, what is nought is not spelled out."""


def confusion_matrix_figure(
    matrix: npt.ArrayLike, class_names: Sequence[str], *, title: str, note: str | None = None
) -> Figure:
    """Heat map of a confusion matrix: counts, and the share of each row in percent.

    Args:
        matrix: Number of images by true class (rows) and predicted class (columns); int, (n_classes, n_classes).
        class_names: Name of each class, in the order of rows and columns.
        title: Heading.
        note: Warning that must not be lost, such as "synthetic images, no tissue".

    Raises:
        ShapeError: If the matrix has not one row and one column per class, or holds anything but counts.
    """
    counts = _checked_counts(matrix, len(class_names))
    row_sums = counts.sum(axis=1)
    shares = np.divide(counts, row_sums[:, None], out=np.full(counts.shape, np.nan), where=row_sums[:, None] > 0)

    is_small = len(class_names) <= FEW_CLASSES
    width, height, (count_size, share_size) = (5.6, 4.4, (17, 11)) if is_small else (9.2, 7.4, (11, 8))
    figure = new_figure(width=width, height=height, title=title, note=note)
    axes = figure.add_subplot()
    axes.set_facecolor("#e6e6e6")  # a class without images has no shares
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        if count == 0 and not is_small:
            continue
        share = shares[row, column]
        color = "white" if share > 0.55 else "black"
        axes.text(column, row, f"{count:,}\n", ha="center", va="center", color=color, size=count_size, weight="bold")
        percent = "no images" if math.isnan(share) else f"{share:.1%}"
        axes.text(column, row, f"\n\n{percent}", ha="center", va="center", color=color, size=share_size)

    ticks = range(len(class_names))
    axes.set_yticks(
        ticks,
        [f"{name}\n{count_of_images(n)}" for name, n in zip(class_names, row_sums, strict=True)],
        parse_math=False,
    )
    axes.set_xticks(
        ticks,
        [f"{name}\n{count_of_images(n)}" for name, n in zip(class_names, counts.sum(axis=0), strict=True)],
        parse_math=False,
    )
    axes.set_ylabel("True class")
    axes.set_xlabel("Predicted class")
    axes.set_title(_accuracy_line(counts), size=10, color=GRAY)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(1, len(class_names)) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, len(class_names)) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    bar = figure.colorbar(image, ax=axes, fraction=0.06, format=PercentFormatter(xmax=1.0))
    bar.set_label("Share of the true class (%)")
    return figure


def _accuracy_line(counts: IntArray) -> str:
    n_images, n_correct = int(counts.sum()), int(np.trace(counts))
    return f"{count_of_images(n_images)}, {n_correct:,} right ({n_correct / n_images:.1%})" if n_images else "no images"


def _checked_counts(matrix: npt.ArrayLike, n_classes: int) -> IntArray:
    counts = np.asarray(matrix)
    if counts.shape != (n_classes, n_classes):
        raise ShapeError(
            f"confusion matrix of shape {counts.shape}; expected {(n_classes, n_classes)}, one row per class"
        )
    if not np.issubdtype(counts.dtype, np.integer) or counts.min(initial=0) < 0:
        raise ShapeError(
            f"confusion matrix {counts.tolist()} holds something else than counts; expected integers from 0"
        )
    return counts.astype(np.int64)
