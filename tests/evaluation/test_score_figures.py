import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from breakhis_pl.data.breakhis import official_patients, parse_file_name
from breakhis_pl.errors import ShapeError
from breakhis_pl.evaluation.figures import figure_pixels
from breakhis_pl.evaluation.score_figures import (
    Band,
    forest_figure,
    patient_figure,
    precision_recall_figure,
    reliability_figure,
    roc_figure,
)

NAMES = ("benign", "malignant")
BAND = Band([0, 1], [0, 0.9], [0.1, 1], "95% interval over cases")


def texts(figure: Figure) -> set[str]:
    figure_pixels(figure)
    return {text.get_text().strip() for text in figure.findobj(Text)}


def inside(figure: Figure) -> bool:
    """Whether everything that is drawn lies on the figure."""
    figure.canvas.draw()
    drawn = figure.get_tightbbox()  # inches
    width, height = figure.get_size_inches()
    return drawn.x0 >= 0 and drawn.y0 >= 0 and drawn.x1 <= width and drawn.y1 <= height


def patients_figure(n_patients: int, *, title: str = "Patients") -> Figure:
    names = list(official_patients())[:: 82 // n_patients][:n_patients]
    targets = [parse_file_name(f"{name}-200-001.png").target for name in names]
    counts = np.array([official_patients()[name].n_images[200] for name in names])
    correct = np.random.default_rng(0).binomial(counts, 0.9)
    return patient_figure(names, correct, counts, targets, NAMES, title=title, note="synthetic images, no tissue")


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


@pytest.mark.parametrize("n_patients", [1, 4, 28, 82])
def test_any_number_of_patients_fits_on_the_figure(n_patients: int) -> None:
    figure = patients_figure(n_patients)

    assert inside(figure)
    assert len(figure.axes[0].get_yticks()) == n_patients
    assert figure.get_figheight() < 13.5


def test_a_long_title_makes_the_figure_taller_not_the_axes_smaller() -> None:
    assert inside(patients_figure(1, title="long title " * 40))


def test_patients_are_sorted_by_result_then_by_name() -> None:
    figure = patient_figure(["c", "b", "a"], [1, 2, 4], [2, 4, 4], [0, 1, 1], NAMES, title="t")

    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["b", "c", "a"]
    assert {"1 of 2", "2 of 4", "4 of 4", "benign (1 patient)", "malignant (2 patients)"} <= texts(figure)
    assert "mean over patients 66.7%" in texts(figure)


def test_a_name_that_no_figure_can_show_is_shown_on_one_line() -> None:
    figure = patient_figure(["a\r\nb\udcff" + 100 * "c"], [1], [2], [0], NAMES, title="t")

    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a b " + 35 * "c" + "…"]
    assert inside(figure)


def test_bins_of_few_images_are_hollow() -> None:
    axes = reliability_figure([0.2, 0.5, 0.9], [0.1, 0.6, 1], [30, 9, 10], edges=[0, 0.3, 0.6, 1], title="t").axes[0]
    many, few = axes.lines[1:]

    assert (len(np.asarray(many.get_xdata())), len(np.asarray(few.get_xdata()))) == (2, 1)
    assert few.get_markerfacecolor() == "white"
    assert few.get_label() == "fewer than 10 images"


def test_a_patient_without_images_is_refused_by_name() -> None:
    with pytest.raises(ShapeError, match="no images of b; expected at least one"):
        patient_figure(["a", "b"], [1, 0], [1, 0], [0, 1], NAMES, title="t")


def test_patients_and_counts_must_match() -> None:
    with pytest.raises(ShapeError, match="1 patients with 2 counts"):
        patient_figure(["a"], [1, 0], [1, 1], [0, 1], NAMES, title="t")


def test_forest_writes_every_difference_with_its_interval() -> None:
    figure = forest_figure(["a", "b"], [0.1, -0.02], [0.05, -0.1], [0.2, 0.04], axis_label="x", title="t")

    assert {"+0.100 (+0.050 to +0.200)", "−0.020 (−0.100 to +0.040)"} <= texts(figure)  # noqa: RUF001  minus signs
    assert inside(figure)


def test_forest_without_reference_writes_plain_values() -> None:
    figure = forest_figure(["a"], [0.1], [0.05], [0.2], axis_label="x", title="t", reference=None)

    assert "0.100 (0.050 to 0.200)" in texts(figure)


def test_labels_and_values_must_match() -> None:
    with pytest.raises(ShapeError, match="1 labels with 2 values"):
        forest_figure(["a"], [0, 0], [0, 0], [0, 0], axis_label="x", title="t")


@pytest.mark.parametrize(("x", "y"), [([], []), ([0, 1], [0]), ([[0]], [[0]])])
def test_empty_and_uneven_arrays_are_refused(x: list[float], y: list[float]) -> None:
    with pytest.raises(ShapeError, match="expected one dimension, the same length, at least one value"):
        roc_figure(x, y, n_benign=1, n_malignant=1, label="l", title="t")
