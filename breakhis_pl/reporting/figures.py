"""Figures, drawn from arrays, for files and pages.

pyplot and its global state are not used. Colors are those of Okabe and Ito (2008); markers and line styles repeat them.
"""

import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter

from breakhis_pl.reporting.curves import Curve, ReliabilityBins
from breakhis_pl.run_folder import atomic_write

DPI = 150
BLUE, VERMILLION, GREEN, GRAY, BLACK = "#0072B2", "#D55E00", "#009E73", "#666666", "#000000"
COLORS = (BLUE, VERMILLION, GREEN, "#CC79A7", "#E69F00", "#56B4E9", BLACK, "#8A8A00")
"""Colors of runs that are drawn together."""

QUANTITIES = ("loss", "accuracy")
"""What is drawn over the epochs."""

FEW_IMAGES = 10
"""Below it, one image moves the fraction of a bin by more than ten points."""


class LineStyle(NamedTuple):
    """Style of a series."""

    color: str
    dashes: str
    marker: str


SUBSET_STYLES = {
    "train": LineStyle(BLACK, "-", "o"),
    "val": LineStyle(GREEN, ":", "^"),
    "test": LineStyle(VERMILLION, "--", "s"),
}


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; equal figures give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_bytes(figure_png(figure))


def figure_png(figure: Figure) -> bytes:
    """Return the content of a PNG file of a figure, 150 dpi."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def new_figure(*, width: float, height: float, title: str, note: str | None) -> Figure:
    """Create a figure with a title above and a note in a frame below.

    Args:
        width: In inches.
        height: In inches, without title and note.
        title: Long lines are wrapped; nothing in it is read as a formula.
        note: Warning about the data; None for none.
    """
    title = textwrap.fill(title, round(width * 10))
    height += 0.1 + 0.2 * len(title.splitlines())
    if note is not None:
        note = textwrap.fill(note, round(width * 11))
        height += 0.25 + 0.17 * len(note.splitlines())
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(title, size=12, weight="bold", parse_math=False)
    if note is not None:
        frame = {"facecolor": "white", "edgecolor": VERMILLION, "boxstyle": "round,pad=0.3"}
        figure.supxlabel(note, size=10, weight="bold", color=VERMILLION, parse_math=False, bbox=frame)
    return figure


def curves_figure(
    history: pd.DataFrame,
    *,
    title: str,
    note: str | None = None,
    selected_epoch: int | None = None,
    quantities: Sequence[str] = QUANTITIES,
) -> Figure:
    """Draw loss and accuracy over the epochs, a curve for each subset.

    Args:
        history: Rows of history.csv: epoch, <subset>_loss in nats, <subset>_accuracy from 0 to 1.
        title: Title.
        note: Warning about the data.
        selected_epoch: Epoch that validation selected; it is marked.
        quantities: "loss", "accuracy", or both beside each other.
    """
    figure = new_figure(width=4.5 * len(quantities) + 0.2, height=3.6, title=title, note=note)
    for axes, quantity in zip(figure.subplots(1, len(quantities), squeeze=False)[0], quantities, strict=True):
        scale, form = (1, "{:.3f}") if quantity == "loss" else (100, "{:.1f}%")
        curves = {
            subset: scale * history[f"{subset}_{quantity}"]
            for subset in SUBSET_STYLES
            if f"{subset}_{quantity}" in history
        }
        _format_epochs(axes, history["epoch"])
        _set_limits(axes, quantity, curves.values())
        for subset, values in curves.items():
            style = SUBSET_STYLES[subset]
            axes.plot(
                history["epoch"],
                values,
                color=style.color,
                linestyle=style.dashes,
                marker=style.marker,
                markersize=5,
                markevery=max(1, len(history) // 15),
                clip_on=False,
                zorder=3,
            )
        _label_last_values(axes, history["epoch"].iloc[-1], {key: v.iloc[-1] for key, v in curves.items()}, form)
        if selected_epoch is not None:
            axes.axvline(selected_epoch, color=GRAY, linewidth=1.0, linestyle=":", zorder=1)
            place = {"xy": (selected_epoch, 1.0), "xycoords": axes.get_xaxis_transform()}
            text = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center", "size": 9, "color": GRAY}
            axes.annotate(f"epoch {selected_epoch} selected", **place, **text, annotation_clip=False)
    return figure


def overlay_figure(
    histories: Mapping[str, pd.DataFrame], *, quantity: str, title: str, note: str | None = None
) -> Figure:
    """Draw loss or accuracy of several runs: train dotted, test solid.

    Args:
        histories: Rows of history.csv by name of the run.
        quantity: "loss" or "accuracy".
        title: Title.
        note: Warning about the data.
    """
    height, scale = 0.2 * len(histories), 1 if quantity == "loss" else 100
    figure = new_figure(width=5.2, height=3.6 + height, title=title, note=note)
    axes, legend = figure.subplots(2, 1, height_ratios=(3.6, height))
    for (name, history), color in zip(histories.items(), COLORS * len(histories), strict=False):
        for subset, dashes, marker in (("train", ":", "x"), ("test", "-", "o")):
            label = _plain(name) if subset == "test" else None
            axes.plot(
                history["epoch"],
                scale * history[f"{subset}_{quantity}"],
                color=color,
                linestyle=dashes,
                marker=marker if len(history) < 16 else "",
                markersize=4,
                label=label,
            )
    _format_epochs(axes, pd.concat([history["epoch"] for history in histories.values()]))
    columns = [f"{subset}_{quantity}" for subset in ("train", "test")]
    _set_limits(axes, quantity, (scale * h[column] for h in histories.values() for column in columns))
    _draw_legend(legend, axes)
    return figure


def _draw_legend(axes: Axes, of: Axes) -> None:
    """Draw the legend of a plot in axes of its own, where long names have room."""
    handles, labels = of.get_legend_handles_labels()
    short = [name if len(name) <= 60 else f"{name[:28]} … {name[-28:]}" for name in labels]
    axes.axis("off")
    axes.legend(handles, short, loc="center", fontsize=8, frameon=False)


def _plain(text: str) -> str:
    return text.replace("$", r"\$")


def _format_epochs(axes: Axes, epochs: pd.Series) -> None:
    axes.set_xlabel("Epoch")
    axes.set_xlim(epochs.min() - 0.5, epochs.max() + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=15, integer=True, min_n_ticks=1))
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def _set_limits(axes: Axes, quantity: str, curves: Iterable[pd.Series]) -> None:
    values = pd.concat(list(curves)).dropna()
    if quantity == "loss":
        axes.set_ylabel("Loss (cross-entropy, nats)")
        axes.set_ylim(0, 1.08 * values.max() if len(values) and values.max() > 0 else 1)
    else:
        lowest = values.min() if len(values) else 0
        axes.set_ylabel("Accuracy (% of images)")
        axes.set_ylim(max(0, min(90, math.floor((lowest - 2) / 10) * 10)), 101)


def _label_last_values(axes: Axes, epoch: float, last: Mapping[str, float], form: str) -> None:
    """Write name and last value of each curve to the right of the axes, apart from each other."""
    bottom, top = axes.get_ylim()
    height = -math.inf
    for subset, value in sorted(last.items(), key=lambda item: item[1]):
        if math.isnan(value):
            continue
        height = max((value - bottom) / (top - bottom), height + 0.085)
        color = SUBSET_STYLES[subset].color
        axes.annotate(
            f"{subset} {form.format(value)}",
            xy=(epoch, value),
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            size=9.5,
            color=color,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.7, "shrinkB": 3, "relpos": (0.0, 0.5)},
            annotation_clip=False,
        )


def confusion_matrix_figure(
    matrix: npt.ArrayLike, classes: Sequence[str], *, title: str, note: str | None = None
) -> Figure:
    """Draw a confusion matrix.

    Args:
        matrix: Number of images by true class (row) and predicted class (column); int, (n_classes, n_classes).
        classes: Names of the classes.
        title: Title.
        note: Warning about the data.
    """
    counts = np.asarray(matrix, dtype=np.int64)
    support, total = counts.sum(1), int(counts.sum())
    fractions = np.divide(counts, support[:, None], out=np.full(counts.shape, np.nan), where=support[:, None] > 0)
    n_classes, is_small = len(classes), len(classes) <= 3
    side = max(5.6, 1.5 + 0.52 * n_classes)  # 0.52 inches hold a count of four digits
    count_size, fraction_size = (17, 11) if is_small else (13, 10) if n_classes <= 5 else (10, 9)
    figure = new_figure(width=side, height=4.4 if is_small else side + 0.4, title=title, note=note)
    axes = figure.add_subplot()
    axes.set_facecolor("#e6e6e6")  # rows of classes without images
    image = axes.imshow(fractions, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        if count == 0 and not is_small:
            continue
        fraction = fractions[row, column]
        style: dict[str, Any] = {"ha": "center", "va": "center", "color": "white" if fraction > 0.55 else "black"}
        axes.text(column, row, f"{count:,}\n", size=count_size, weight="bold", **style)
        text = "no images" if math.isnan(fraction) else f"{fraction:.1%}" if is_small else f"{fraction:.0%}"
        axes.text(column, row, f"\n\n{text}", size=fraction_size, **style)
    for set_ticks, sums in ((axes.set_yticks, support), (axes.set_xticks, counts.sum(0))):
        width = 18 if is_small else 14
        labels = [
            textwrap.fill(f"{name.replace('_', '_ ')} ({n:,})", width) for name, n in zip(classes, sums, strict=True)
        ]
        set_ticks(range(n_classes), [label.replace("_ ", "_") for label in labels], parse_math=False)
        set_ticks(np.arange(1, n_classes) - 0.5, minor=True)
    axes.set(xlabel="Predicted class (images)", ylabel="True class (images)")
    axes.set_title(
        f"{np.trace(counts):,} of {total:,} images correct ({np.trace(counts) / total:.1%})", size=10, color=GRAY
    )
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0, labelsize=min(10, fraction_size))
    if is_small:
        bar = figure.colorbar(image, ax=axes, fraction=0.06, format=PercentFormatter(xmax=1.0))
        bar.set_label("Fraction of the true class (%)")
    else:
        axes.tick_params(axis="x", rotation=90)
    return figure


def roc_figure(curves: Mapping[str, Curve], *, title: str, note: str | None = None) -> Figure:
    """Draw ROC curves, with its band and the decisions if there is one curve.

    Args:
        curves: From `curves.roc_curve` by label.
        title: Title.
        note: Warning about the data.
    """
    height = 0.2 * (len(curves) + 3)
    figure = new_figure(width=5.2, height=4.6 + height, title=title, note=note)
    axes, legend = figure.subplots(2, 1, height_ratios=(4.6, height))
    _format_percent(axes)
    axes.plot([0, 100], [0, 100], color=GRAY, linestyle=":", linewidth=1, label="chance")
    _draw_curves(axes, curves, "default")
    axes.set(xlabel="False positive rate (%)", ylabel="True positive rate (%)")
    _draw_legend(legend, axes)
    return figure


def precision_recall_figure(
    curve: Curve, *, label: str, positive: str, prevalence: float, title: str, note: str | None = None
) -> Figure:
    """Draw precision over recall.

    Args:
        curve: From `curves.precision_recall_curve`.
        label: Text of the legend.
        positive: Name of the positive class.
        prevalence: Fraction of positive images, the precision of predicting every image as positive.
        title: Title.
        note: Warning about the data.
    """
    figure = new_figure(width=5.2, height=5.4, title=title, note=note)
    axes, legend = figure.subplots(2, 1, height_ratios=(4.6, 0.8))
    _format_percent(axes)
    axes.axhline(
        100 * prevalence, color=GRAY, linestyle=":", linewidth=1, label=f"always {positive} ({prevalence:.1%})"
    )
    _draw_curves(axes, {label: curve}, "steps-post")
    axes.set(xlabel=f"Recall (% of {positive} images)", ylabel=f"Precision (% of images predicted as {positive})")
    _draw_legend(legend, axes)
    return figure


def _draw_curves(axes: Axes, curves: Mapping[str, Curve], drawstyle: str) -> None:
    for (label, curve), color in zip(curves.items(), COLORS * len(curves), strict=False):
        if len(curves) == 1 and curve.band is not None:
            grid, lower, upper = (100 * each for each in curve.band)
            axes.fill_between(
                grid, lower, upper, color=color, alpha=0.18, linewidth=0, label="95% band, cases resampled"
            )
        axes.plot(100 * curve.x, 100 * curve.y, color=color, linewidth=2, drawstyle=drawstyle, label=_plain(label))
        if curve.point is not None:
            text = "predicted classes" if len(curves) == 1 else None
            marker_color = VERMILLION if len(curves) == 1 else color
            x, y = (100 * each for each in curve.point)
            axes.plot(x, y, "D", color=marker_color, label=text, clip_on=False, zorder=3)


def reliability_figure(
    bins: ReliabilityBins, *, label: str, positive: str, title: str, note: str | None = None
) -> Figure:
    """Draw the observed frequency of the positive class over its predicted probability, and the images of each bin.

    A line joins each point to the diagonal; points of fewer than `FEW_IMAGES` images are hollow.

    Args:
        bins: From `curves.reliability_bins`.
        label: Text of the legend.
        positive: Name of the positive class.
        title: Title.
        note: Warning about the data.
    """
    x, y, n = 100 * bins.predicted, 100 * bins.observed, bins.counts
    figure = new_figure(width=5.2, height=5.5, title=title, note=note)
    axes, count_axes = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.plot([0, 100], [0, 100], color=GRAY, linestyle=":", linewidth=1, label="perfect calibration")
    for is_shown, fill, text in (
        (n >= FEW_IMAGES, BLUE, label),
        ((n > 0) & (n < FEW_IMAGES), "white", f"fewer than {FEW_IMAGES} images"),
    ):
        if is_shown.any():
            axes.vlines(x[is_shown], x[is_shown], y[is_shown], color=BLUE, linewidth=1)
            style = {"color": BLUE, "marker": "o", "mfc": fill, "linestyle": "", "clip_on": False, "zorder": 3}
            axes.plot(x[is_shown], y[is_shown], label=text, **style)
    axes.set_ylabel(f"{positive[:1].upper()}{positive[1:]} images (%)")
    _format_percent(axes)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.12, 1.0), ncols=2, fontsize=8, frameon=False, columnspacing=0.8)
    bars = count_axes.bar(
        np.arange(0, 100, 10), n, width=10, align="edge", color="#bcd9ea", edgecolor=BLUE, linewidth=0.8
    )
    count_axes.bar_label(bars, [f"{each:,}" for each in n], size=8, padding=2)
    count_axes.set_ylim(0, 1.25 * n.max())
    count_axes.set(ylabel="Images", xlabel=f"Predicted probability of {positive} (%)")
    count_axes.spines[["top", "right"]].set_visible(False)
    figure.align_ylabels()
    return figure


def _format_percent(axes: Axes) -> None:
    axes.set(xlim=(0, 100), ylim=(0, 100))
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
