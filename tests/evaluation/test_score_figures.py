import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from breakhis_pl.errors import ShapeError
from breakhis_pl.evaluation.figures import figure_pixels
from breakhis_pl.evaluation.score_figures import Band, precision_recall_figure, reliability_figure, roc_figure

BAND = Band([0, 1], [0, 0.9], [0.1, 1], "95% interval over cases")


def texts(figure: Figure) -> set[str]:
    figure_pixels(figure)
    return {text.get_text().strip() for text in figure.findobj(Text)}


def test_roc_names_its_curve_its_classes_and_its_note() -> None:
    figure = roc_figure(
        [0, 0.5, 1], [0, 0.9, 1], n_benign=168, n_malignant=429, label="AUC 0.70", title="ROC", note="synthetic",
        point=(0.5, 0.9), band=BAND,
    )  # fmt: skip

    assert {"AUC 0.70", "ROC", "synthetic", "chance", "threshold used", "95% interval over cases"} <= texts(figure)
    assert "False positive rate (% of 168 benign images)" in texts(figure)


def test_precision_recall_shows_what_always_malignant_would_reach() -> None:
    figure = precision_recall_figure(
        [1, 0.5, 0],
        [0.7, 0.9, 1],
        n_benign=168,
        n_malignant=429,
        label="AP 0.9",
        title="PR",
        point=(0.5, 0.9),
        band=BAND,
    )

    assert {"AP 0.9", "always malignant (71.9%)", "Recall (% of 429 malignant images)"} <= texts(figure)


def test_reliability_shows_the_count_of_every_bin_and_skips_empty_ones() -> None:
    figure = reliability_figure([0.2, np.nan, 0.9], [0.1, np.nan, 1], [30, 0, 1234], edges=[0, 0.3, 0.6, 1], title="t")

    assert {"30", "0", "1,234"} <= texts(figure)
    assert len(np.asarray(figure.axes[0].lines[1].get_xdata())) == 2


def test_reliability_needs_one_edge_more_than_bins() -> None:
    with pytest.raises(ShapeError, match="1 bins with 3 edges; expected 2"):
        reliability_figure([0.5], [0.5], [1], edges=[0, 0.5, 1], title="t")


def test_bins_of_few_images_are_hollow() -> None:
    axes = reliability_figure([0.2, 0.5, 0.9], [0.1, 0.6, 1], [30, 9, 10], edges=[0, 0.3, 0.6, 1], title="t").axes[0]
    many, few = axes.lines[1:]

    assert (len(np.asarray(many.get_xdata())), len(np.asarray(few.get_xdata()))) == (2, 1)
    assert few.get_markerfacecolor() == "white"
    assert few.get_label() == "fewer than 10 images"


@pytest.mark.parametrize(("x", "y"), [([], []), ([0, 1], [0]), ([[0]], [[0]])])
def test_empty_and_uneven_arrays_are_refused(x: list[float], y: list[float]) -> None:
    with pytest.raises(ShapeError, match="expected one dimension, the same length, at least one value"):
        roc_figure(x, y, n_benign=1, n_malignant=1, label="l", title="t")
