import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from breakhis_pl.data.breakhis import official_patients, parse_file_name
from breakhis_pl.errors import ShapeError
from breakhis_pl.evaluation.figures import figure_pixels
from breakhis_pl.evaluation.row_figures import MOST_PATIENTS, forest_figure, label_text, patient_figure

NAMES = ("benign", "malignant")


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

    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a b " + 46 * "c" + "…" + 49 * "c"]
    assert inside(figure)


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


WIDE = "W" * 60
LONG = "SOB_B_TA-14-13200_a-name-that-somebody-made-rather-long-for-reasons-of-their-own_2026-01-02"


@pytest.mark.parametrize("name", [WIDE, LONG, "名" * 50, "\N{MICROSCOPE}" * 50, "$a_{" * 20, "\u202eevil" * 10])
def test_long_names_of_patients_fit_on_the_figure_whole(name: str) -> None:
    figure = patient_figure([name, "b"], [1, 2], [2, 2], [0, 1], NAMES, title="t")

    assert inside(figure)
    (label, _) = figure.axes[0].get_yticklabels()
    assert label.get_text() == label_text(name)
    assert "…" not in label.get_text()
    left = label.get_window_extent()
    assert left.x0 >= 0
    assert figure.axes[0].get_window_extent().width > 2.5 * figure.dpi


@pytest.mark.parametrize("name", [WIDE, LONG])
def test_long_names_of_runs_leave_room_for_the_differences(name: str) -> None:
    figure = forest_figure([f"{name} - {name}", "b"], [0, 0], [-1, -1], [1, 1], axis_label="x", title="t")

    assert inside(figure)
    assert figure.axes[0].get_window_extent().width > 2.5 * figure.dpi


def test_what_no_letter_exists_for_is_a_box_and_no_warning() -> None:
    assert label_text("a名\N{MICROSCOPE}b") == "a□□b"
    figure_pixels(patient_figure(["a名"], [1], [2], [0], NAMES, title="t"))


def test_of_very_many_patients_the_worst_are_drawn_and_the_figure_says_so() -> None:
    n = MOST_PATIENTS + 4000
    correct = np.arange(n) % 5
    names = [f"patient {index}" for index in range(n)]
    figure = patient_figure(names, correct, np.full(n, 4), np.arange(n) % 2, NAMES, title="Patients")

    assert len(figure.axes[0].get_yticks()) == MOST_PATIENTS
    shown = texts(figure)
    assert any(f"the lowest {MOST_PATIENTS} of 4,200 patients" in text.replace("\n", " ") for text in shown)
    assert "benign (2,100 patients)" in shown
    assert f"mean over patients {100 * np.mean(correct / 4):.1f}%" in shown
