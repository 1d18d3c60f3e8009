"""What all figures share, and the curves of a training; figures are drawn from arrays, for files and for pages.

Every function hands back a matplotlib figure that belongs to nobody else: pyplot and its global state are not used.
Colors are those of Okabe and Ito; what a color says, a marker or a line style says too.
"""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from breakhis_pl.errors import ShapeError
from breakhis_pl.run_folder import atomic_write

FloatArray = npt.NDArray[np.float64]

DPI = 150

BLACK = "#000000"
BLUE = "#0072B2"
VERMILLION = "#D55E00"
GREEN = "#009E73"
GRAY = "#666666"


"""Put on every figure of a run on drawn images."""

"""Put on every figure of a run on a part of the published images."""


@dataclass(frozen=True, slots=True)
class LineStyle:
    """How a series is told from the others, with and without color."""

    color: str
    dashes: str
    marker: str


SUBSET_STYLES = {
    "train": LineStyle(BLUE, "-", "o"),
    "val": LineStyle(GREEN, ":", "^"),
    "test": LineStyle(VERMILLION, "--", "s"),
}


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG: 150 dpi, no dates, so that equal figures give equal bytes.

    The file appears whole or not at all; its folder is made if need be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as aside:
        aside.write_bytes(figure_png(figure))


def figure_png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file, 150 dpi."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def figure_pixels(figure: Figure) -> npt.NDArray[np.uint8]:
    """A figure as pixels; uint8, (height, width, 3), RGB."""
    with Image.open(io.BytesIO(figure_png(figure))) as image:
        return np.array(image.convert("RGB"), dtype=np.uint8)


def curves_figure(
    history: Sequence[Mapping[str, object]] | Mapping[str, Sequence[object] | npt.NDArray[np.generic]],
    *,
    title: str,
    note: str | None = None,
    counted: int | None = None,
) -> Figure:
    """Loss and accuracy over the epochs, side by side, a curve for train, val (where there is one) and test.

    Args:
        history: Rows of history.csv, or its columns: `epoch` (counted from 1), and `<subset>_loss` (nats) and
            `<subset>_accuracy` (in [0, 1]) of the subsets there are. None, an empty text and numbers that are not
            finite leave a gap.
        title: Heading.
        note: Warning that must not be lost.
        counted: Epoch that was chosen, which is marked; None marks none.

    Raises:
        ShapeError: If there is no epoch, no curve, or the columns differ in length.
    """
    columns = _history_columns(history)
    epochs = columns["epoch"]
    figure = new_figure(width=9.0, height=3.6, title=title, note=note)
    loss_axes, accuracy_axes = figure.subplots(1, 2)

    losses = {subset: columns[f"{subset}_loss"] for subset in SUBSET_STYLES if f"{subset}_loss" in columns}
    accuracies = {
        subset: 100.0 * columns[f"{subset}_accuracy"] for subset in SUBSET_STYLES if f"{subset}_accuracy" in columns
    }
    if not losses and not accuracies:
        raise ShapeError(f"no curve among the columns {sorted(columns)}; expected train_loss, test_accuracy and so on")
    loss_axes.set_ylim(0.0, _highest(losses, otherwise=1.0) * 1.08)
    accuracy_axes.set_ylim(_accuracy_floor(accuracies), 101.0)
    for axes, curves, form in ((loss_axes, losses, "{:.3f}"), (accuracy_axes, accuracies, "{:.1f}%")):
        _draw_curves(axes, epochs, curves)
        _label_last_values(axes, epochs, curves, form)
        if counted is not None:
            _mark_epoch(axes, counted)
    loss_axes.set_ylabel("Loss (cross-entropy, nats)")
    accuracy_axes.set_ylabel("Accuracy (% of images)")
    return figure


def new_figure(*, width: float, height: float, title: str, note: str | None) -> Figure:
    """An empty figure with its heading above, and the note, if any, in a frame below.

    Args:
        width: In inches.
        height: In inches, of what lies between heading and note; their lines come on top of it.
        title: Heading; long lines are wrapped, nothing in it is read as a formula.
        note: Warning that must not be lost.
    """
    heading = _wrapped(title, round(width * 10))
    height += 0.1 + 0.2 * len(heading.splitlines())
    if note is not None:
        warning = _wrapped(note, round(width * 11))
        height += 0.25 + 0.17 * len(warning.splitlines())
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(heading, size=12, weight="bold", parse_math=False)
    if note is not None:
        frame = {"facecolor": "white", "edgecolor": VERMILLION, "boxstyle": "round,pad=0.3"}
        figure.supxlabel(warning, size=10, weight="bold", color=VERMILLION, parse_math=False, bbox=frame)
    return figure


def _wrapped(text: str, characters: int) -> str:
    return "\n".join(textwrap.fill(line, characters) for line in text.splitlines())


def count_of_images(n: int) -> str:
    """A count with its unit.

    Example:
        >>> count_of_images(1416)
        '1,416 images'
    """
    return "1 image" if n == 1 else f"{n:,} images"


def same_length(**arrays: npt.ArrayLike) -> list[FloatArray]:
    """The arrays as float64, (n,), n the same and not 0.

    Raises:
        ShapeError: If they are empty or differ in length.
    """
    columns = {name: np.asarray(values, dtype=np.float64) for name, values in arrays.items()}
    shapes = {name: values.shape for name, values in columns.items()}
    first = next(iter(columns.values()))
    if first.ndim != 1 or first.size == 0 or len(set(shapes.values())) > 1:
        raise ShapeError(f"arrays of shapes {shapes}; expected one dimension, the same length, at least one value")
    return list(columns.values())


def _history_columns(history: object) -> dict[str, FloatArray]:
    """Columns of a history as float64, (n_epochs,), NaN where a value is missing."""
    if isinstance(history, Mapping):
        table = {str(name): list(values) for name, values in history.items()}
    elif isinstance(history, Sequence):
        names = dict.fromkeys(str(name) for row in history for name in row)
        table = {name: [row.get(name) for row in history] for name in names}
    else:
        raise TypeError(f"history is {type(history).__name__}; expected rows or columns")
    columns = {name: np.array([_number(value) for value in values]) for name, values in table.items()}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ShapeError(f"columns of the history differ in length: {lengths}; expected one value per epoch in each")
    if not lengths or not next(iter(lengths.values())):
        raise ShapeError("the history has no epoch; expected at least one row")
    columns.setdefault("epoch", np.arange(1.0, 1.0 + next(iter(lengths.values()))))
    return columns


def _number(value: object) -> float:
    number = math.nan if value is None or value == "" else float(value)  # type: ignore[arg-type]
    return number if math.isfinite(number) else math.nan


def _highest(curves: Mapping[str, FloatArray], *, otherwise: float) -> float:
    finite = _finite(curves)
    return float(finite.max()) if finite.size and finite.max() > 0 else otherwise


def _accuracy_floor(curves: Mapping[str, FloatArray]) -> float:
    """Lower end of the accuracy axis in percent: a multiple of ten below every value, at most 90."""
    finite = _finite(curves)
    return float(max(0.0, min(90.0, math.floor((finite.min() - 2.0) / 10.0) * 10.0))) if finite.size else 0.0


def _finite(curves: Mapping[str, FloatArray]) -> FloatArray:
    values: FloatArray = np.concatenate([np.empty(0), *curves.values()])
    return values[~np.isnan(values)]


def _draw_curves(axes: Axes, epochs: FloatArray, curves: Mapping[str, FloatArray]) -> None:
    for subset, values in curves.items():
        style = SUBSET_STYLES[subset]
        axes.plot(
            epochs,
            values,
            color=style.color,
            linestyle=style.dashes,
            marker=style.marker,
            markersize=5,
            label=subset,
            markevery=1 if np.isnan(values).any() else max(1, len(epochs) // 15),
            clip_on=False,
            zorder=3,
        )
    axes.set_xlabel("Epoch")
    axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    axes.set_xticks(_epoch_ticks(int(epochs[0]), int(epochs[-1])))
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def _mark_epoch(axes: Axes, epoch: int) -> None:
    """A line at the epoch that was chosen, named above the axes."""
    axes.axvline(epoch, color="#666666", linewidth=1.0, linestyle=":", zorder=1)
    axes.annotate(
        f"epoch {epoch} counts",
        xy=(epoch, 1.0),
        xycoords=axes.get_xaxis_transform(),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        size=9,
        color="#444444",
        annotation_clip=False,
    )


def _epoch_ticks(first: int, last: int) -> list[int]:
    """The first epoch, then round ones, so that numbers do not touch.

    Example:
        >>> _epoch_ticks(1, 60)
        [1, 10, 20, 30, 40, 50, 60]
    """
    n_epochs = last - first + 1
    if n_epochs <= 16:
        return list(range(first, last + 1))
    step = next(
        step * scale for scale in (1, 10, 100, 1000, 10000) for step in (5, 10, 20) if n_epochs / step / scale <= 10
    )
    return [first, *range((first // step + 1) * step, last + 1, step)]


def _label_last_values(axes: Axes, epochs: FloatArray, curves: Mapping[str, FloatArray], form: str) -> None:
    """Name and last value of each curve, right of the axes, moved apart where they would touch."""
    bottom, top = axes.get_ylim()
    last = {}
    for subset, values in curves.items():
        known = np.flatnonzero(np.isfinite(values))
        if known.size:
            last[subset] = (epochs[known[-1]], values[known[-1]])
    subsets = sorted(last, key=lambda subset: last[subset][1])
    heights = _moved_apart([(last[subset][1] - bottom) / (top - bottom) for subset in subsets], gap=0.085)
    for subset, height in zip(subsets, heights, strict=True):
        axes.annotate(
            f"{subset} {form.format(last[subset][1])}",
            xy=last[subset],
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            size=9.5,
            color=SUBSET_STYLES[subset].color,
            arrowprops={
                "arrowstyle": "-",
                "color": SUBSET_STYLES[subset].color,
                "linewidth": 0.7,
                "shrinkB": 3,
                "relpos": (0.0, 0.5),
            },
            annotation_clip=False,
        )


def _moved_apart(heights: Sequence[float], *, gap: float) -> list[float]:
    """Sorted heights in [0, 1], moved as little as needed to lie `gap` apart and stay inside.

    Example:
        >>> _moved_apart([0.5, 0.5], gap=0.1)
        [0.45, 0.55]
    """
    moved: list[list[float]] = []  # clusters of heights that touch; each is centered on the mean of its wishes
    for height in heights:
        moved.append([height])
        while len(moved) > 1 and _cluster(moved[-2], gap)[-1] + gap > _cluster(moved[-1], gap)[0]:
            moved[-2:] = [moved[-2] + moved[-1]]
    return [round(height, 6) for cluster in moved for height in _cluster(cluster, gap)]


def _cluster(wishes: Sequence[float], gap: float) -> list[float]:
    extent = gap * (len(wishes) - 1)
    start = min(max(sum(wishes) / len(wishes) - extent / 2, 0.0), 1.0 - extent)
    return [start + gap * index for index in range(len(wishes))]
