"""Figures of ordinary and of degenerate arrays; warnings are errors in all tests."""

import io
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from breakhis_pl.data.breakhis import SUBTYPES
from breakhis_pl.reporting import figures
from breakhis_pl.reporting.curves import precision_recall_curve, reliability_bins, roc_curve
from tests.unit.reporting.conftest import HISTORY, constant_table, make_table

TITLE = r"50% of $\unknown$ and $y_1$ " * 6  # long, and not a formula
COUNTS = [[119, 49], [25, 404]]
WITH_VAL = HISTORY.assign(val_loss=[0.5, 0.4, 0.5], val_accuracy=[0.7, 0.8, 0.7])


def draw_roc(**options: int) -> Figure:
    curve = roc_curve(make_table(**options))
    return figures.roc_figure({"AUROC 0.9": curve}, title=TITLE, note="synthetic images, no tissue")


FIGURES: dict[str, Callable[[], Figure]] = {
    "curves": lambda: figures.curves_figure(WITH_VAL, title=TITLE, note="incomplete archive", selected_epoch=2),
    "curves of one epoch": lambda: figures.curves_figure(HISTORY[:1], title=TITLE),
    "curves of 300 epochs": lambda: figures.curves_figure(
        pd.concat([HISTORY] * 100).assign(epoch=range(1, 301)), title=TITLE
    ),
    "curves with NaN": lambda: figures.curves_figure(HISTORY.assign(test_loss=[0.5, np.nan, np.nan]), title=TITLE),
    "curves of NaN alone": lambda: figures.curves_figure(
        HISTORY[["epoch"]].assign(train_loss=np.nan, train_accuracy=np.nan), title=TITLE
    ),
    "loss alone": lambda: figures.curves_figure(HISTORY, title=TITLE, quantities=("loss",)),
    "overlay": lambda: figures.overlay_figure(
        {rf"run $\unknown{n}$": HISTORY[: n + 1] for n in range(9)}, quantity="loss", title=TITLE
    ),
    "confusion matrix": lambda: figures.confusion_matrix_figure(COUNTS, ("a", "b"), title=TITLE, note="note " * 40),
    "confusion matrix of an empty class": lambda: figures.confusion_matrix_figure(
        [[0, 0], [1, 4]], ("a", "b"), title=TITLE
    ),
    "confusion matrix of eight classes": lambda: figures.confusion_matrix_figure(
        np.eye(8, dtype=int) * 1000, [subtype.name for subtype in SUBTYPES.values()], title=TITLE
    ),
    "ROC": draw_roc,
    "ROC without band": lambda: draw_roc(n_patients=2, n_cases=2),
    "ROC of nine runs": lambda: figures.roc_figure(
        {rf"run $\unknown{n}$": roc_curve(make_table(seed=n), with_band=False) for n in range(9)}, title=TITLE
    ),
    "precision and recall": lambda: figures.precision_recall_figure(
        precision_recall_curve(make_table()), label="area", positive="malignant", prevalence=0.5, title=TITLE
    ),
    "reliability of one bin": lambda: figures.reliability_figure(
        reliability_bins(constant_table()), label="error", positive="malignant", title=TITLE, note="note"
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn_without_warnings(name: str) -> None:
    pixels = np.array(Image.open(io.BytesIO(figures.figure_png(FIGURES[name]()))).convert("RGB"))
    assert min(pixels.shape[:2]) > 500
    assert pixels.std() > 5


def test_the_name_of_a_class_keeps_its_capitals() -> None:
    figure = figures.reliability_figure(
        reliability_bins(make_table()), label="error", positive="HER2", title=TITLE, note=None
    )
    assert "HER2 images (%)" in [axes.get_ylabel() for axes in figure.axes]


@pytest.mark.parametrize("name", ["curves", "ROC"])
def test_a_figure_that_is_saved_twice_has_equal_bytes(tmp_path: Path, name: str) -> None:
    path = tmp_path / "below" / "figure.png"
    contents = []
    for _ in range(2):
        figures.save_figure(FIGURES[name](), path)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]
    assert [file.name for file in path.parent.iterdir()] == ["figure.png"]
    with Image.open(path) as image:
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.02)


def test_a_confusion_matrix_shows_counts_and_fractions_of_the_true_class() -> None:
    figure = FIGURES["confusion matrix"]()
    texts = {text.get_text().strip() for text in figure.findobj(Text)}
    assert {"119", "49", "25", "404", "70.8%", "29.2%", "5.8%", "94.2%"} <= texts
    (image,) = figure.axes[0].images
    np.testing.assert_allclose(np.asarray(image.get_array()), [[119 / 168, 49 / 168], [25 / 429, 404 / 429]])


@pytest.mark.parametrize("n_classes", [2, 4, 8])
def test_a_confusion_matrix_is_readable_on_a_narrow_screen(n_classes: int) -> None:
    names = ["papillary_carcinoma_in_situ", *(subtype.name for subtype in SUBTYPES.values())][:n_classes]
    figure = figures.confusion_matrix_figure(np.full((n_classes, n_classes), 1234), names, title="title")
    figure.canvas.draw()  # sets the places of the texts
    texts = [text for text in figure.axes[0].findobj(Text) if text.get_text().strip()]
    pixels_per_point = 350 / (72 * figure.get_figwidth())
    assert min(text.get_fontsize() for text in texts) * pixels_per_point > 7
    for labels in (figure.axes[0].get_xticklabels(), figure.axes[0].get_yticklabels()):
        boxes = [label.get_window_extent() for label in labels]
        assert not any(a.overlaps(b) for a, b in pairwise(boxes))
