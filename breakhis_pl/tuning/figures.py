"""Figures of a study: its history, importances of keys, values along each key."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from breakhis_pl.errors import ShapeError
from breakhis_pl.evaluation.figures import BLACK, BLUE, GRAY, new_figure
from breakhis_pl.evaluation.texts import one_line
from breakhis_pl.tuning.space import Dimension
from breakhis_pl.tuning.trials import StudySummary, TrialRow

METRIC_TITLES = {
    "val_loss": "Validation loss (nats)",
    "val_balanced_accuracy": "Balanced accuracy (validation)",
    "val_auroc": "AUROC (validation)",
    "val_accuracy": "Accuracy (validation)",
}

_IN_A_ROW = 3
_LONGEST = 30


def history_figure(study: StudySummary, *, note: str | None = None) -> Figure:
    """Value of every trial by its number, with the best value so far.

    Args:
        study: With at least one trial that is complete or pruned.
        note: Warning that must not be lost.

    Raises:
        ShapeError: If there is none.
    """
    shown = _with_value(study)
    figure = new_figure(width=9.0, height=3.6, title="Value of each trial", note=note)
    axes = figure.subplots()
    _scatter(axes, shown, [float(each.number) for each in shown])
    if study.complete:
        best = np.minimum.accumulate([study.loss(each.value) for each in study.complete])
        values = best if study.is_minimized else -best
        numbers = [each.number for each in study.complete]
        last = max(each.number for each in study.trials)
        axes.step(
            [*numbers, last], [*values, values[-1]], where="post", color=BLACK, linewidth=1.2, label="best so far"
        )
    axes.set_xlabel("Trial")
    axes.set_ylabel(METRIC_TITLES[study.metric])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9, loc="best")
    return figure


def importance_figure(importances: Mapping[str, float], *, note: str | None = None) -> Figure:
    """Share of each key, the largest on top.

    Args:
        importances: Share by key, 1 in all.
        note: Warning that must not be lost.

    Raises:
        ShapeError: If there is none.
    """
    if not importances:
        raise ShapeError("no importances; expected a share for at least one key")
    names = sorted(importances, key=lambda name: importances[name])
    figure = new_figure(width=7.0, height=0.6 + 0.36 * len(names), title="Importance of each key", note=note)
    axes = figure.subplots()
    bars = axes.barh(range(len(names)), [importances[name] for name in names], color=BLUE, height=0.6)
    axes.bar_label(bars, [f"{importances[name]:.0%}" for name in names], padding=4, fontsize=9)
    axes.set_yticks(range(len(names)), [one_line(name, longest=_LONGEST) for name in names])
    axes.set_xlim(0, 1.1)
    axes.set_xlabel("Share (PED-ANOVA)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def slices_figure(study: StudySummary, *, note: str | None = None) -> Figure:
    """Value of every trial along each key, on the scale on which it is searched.

    Args:
        study: With at least one trial that is complete or pruned.
        note: Warning that must not be lost.

    Raises:
        ShapeError: If there is none.
    """
    shown = _with_value(study)
    n_rows = math.ceil(len(study.space) / _IN_A_ROW)
    n_columns = min(_IN_A_ROW, len(study.space))
    figure = new_figure(width=9.0, height=2.7 * n_rows, title="Value along each key", note=note)
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharey=True)
    for place, dimension in enumerate(study.space):
        axes = grid[place // _IN_A_ROW, place % _IN_A_ROW]
        _scatter(axes, shown, _positions(dimension, shown))
        axes.set_xlabel(one_line(dimension.key, longest=_LONGEST))
        if dimension.kind == "choice":
            labels = [one_line(_shown(each), longest=12) for each in dimension.choices]
            axes.set_xticks(range(len(labels)), labels)
            axes.set_xlim(-0.5, len(labels) - 0.5)
        elif dimension.log:
            axes.set_xscale("log")
            axes.set_xlim(dimension.low / 1.3, dimension.high * 1.3)
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            margin = 0.05 * (dimension.high - dimension.low)
            axes.set_xlim(dimension.low - margin, dimension.high + margin)
        if place % _IN_A_ROW == 0:
            axes.set_ylabel(METRIC_TITLES[study.metric], fontsize=9)
    for place in range(len(study.space), n_rows * n_columns):
        grid[place // _IN_A_ROW, place % _IN_A_ROW].set_visible(False)
    return figure


def _with_value(study: StudySummary) -> list[TrialRow]:
    shown = [each for each in study.trials if each.value is not None and each.state in ("complete", "pruned")]
    if not shown:
        raise ShapeError(f"study {study.name} has no trial with a value; expected at least one")
    return shown


def _scatter(axes: Axes, trials: Sequence[TrialRow], positions: Sequence[float]) -> None:
    for state, color, marker, label in (("complete", BLUE, "o", "complete"), ("pruned", GRAY, "x", "pruned")):
        points = [
            (position, each.value)
            for position, each in zip(positions, trials, strict=True)
            if each.state == state and each.value is not None
        ]
        if points:
            axes.plot(
                [position for position, _ in points],
                [value for _, value in points],
                linestyle="none",
                color=color,
                marker=marker,
                markersize=6,
                label=label,
            )
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def _positions(dimension: Dimension, trials: Sequence[TrialRow]) -> list[float]:
    values = [each.parameters[dimension.key] for each in trials]
    if dimension.kind == "choice":
        return [float(dimension.choices.index(value)) for value in values]
    return [float(value) for value in values]  # type: ignore[arg-type]  # of a number's dimension


def _shown(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
