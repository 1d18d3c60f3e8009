import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from breakhis_pl.errors import ShapeError
from breakhis_pl.evaluation.confusion_figure import confusion_matrix_figure
from breakhis_pl.evaluation.figures import curves_figure, figure_pixels, save_figure

NAMES = ("benign", "malignant")
REPORT = np.array([[119, 49], [25, 404]])


def history(n_epochs: int) -> list[dict[str, float | None]]:
    return [
        {
            "epoch": epoch,
            "train_loss": 0.6 / epoch,
            "train_accuracy": 1 - 0.2 / epoch,
            "test_loss": 0.4,
            "test_accuracy": 0.87,
            "learning_rate": 5e-4,
        }
        for epoch in range(1, n_epochs + 1)
    ]


def texts(figure: Figure) -> list[str]:
    return [text.get_text().strip() for text in figure.findobj(Text) if text.get_text().strip()]


def overlaps(figure: Figure, labels: list[str]) -> bool:
    figure.canvas.draw()
    # of an annotation, Text's extent is that of the words, its own that of words and leader
    boxes = [Text.get_window_extent(text) for text in figure.findobj(Text) if text.get_text() in labels]
    assert len(boxes) == len(labels)
    return any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_confusion_matrix_shows_counts_row_shares_and_support() -> None:
    shown = texts(confusion_matrix_figure(REPORT, NAMES, title="ResNet-18"))

    assert {"119", "49", "25", "404", "70.8%", "29.2%", "5.8%", "94.2%"} <= set(shown)
    assert {"benign\n168 images", "malignant\n429 images", "benign\n144 images", "malignant\n453 images"} <= set(shown)
    assert {"ResNet-18", "True class", "Predicted class", "597 images, 523 right (87.6%)"} <= set(shown)


def test_confusion_matrix_is_colored_by_row_share() -> None:
    (image,) = confusion_matrix_figure(REPORT, NAMES, title="t").axes[0].images

    np.testing.assert_allclose(np.asarray(image.get_array()).sum(axis=1), [1.0, 1.0])
    assert image.get_clim() == (0.0, 1.0)


def test_confusion_matrix_of_a_class_without_images_says_so() -> None:
    shown = texts(confusion_matrix_figure([[0, 0], [0, 12345]], NAMES, title="t"))

    assert shown.count("no images") == 2
    assert {"12,345", "benign\n0 images", "malignant\n12,345 images", "100.0%"} <= set(shown)


def test_confusion_matrix_without_any_image_can_be_drawn() -> None:
    assert texts(confusion_matrix_figure(np.zeros((2, 2), dtype=int), NAMES, title="t")).count("no images") == 5


def test_confusion_matrix_counts_a_single_image_in_the_singular() -> None:
    assert "benign\n1 image" in texts(confusion_matrix_figure([[1, 0], [0, 2]], NAMES, title="t"))


def test_confusion_matrix_of_wrong_shape_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"shape \(3, 3\); expected \(2, 2\)"):
        confusion_matrix_figure(np.zeros((3, 3), dtype=int), NAMES, title="t")


@pytest.mark.parametrize(("matrix", "value"), [([[1, -1], [0, 2]], "-1"), ([[0.5, 0.5], [0.0, 1.0]], "0.5")])
def test_confusion_matrix_of_anything_but_counts_is_refused(matrix: list[list[float]], value: str) -> None:
    with pytest.raises(ShapeError, match=value):
        confusion_matrix_figure(matrix, NAMES, title="t")


def test_a_note_stands_on_the_figure() -> None:
    note = "synthetic images, no tissue"

    assert note in texts(confusion_matrix_figure(REPORT, NAMES, title="t", note=note))
    assert note in texts(curves_figure(history(3), title="t", note=note))


def test_a_title_is_never_read_as_a_formula() -> None:
    figure_pixels(confusion_matrix_figure(REPORT, NAMES, title="run $a_{ and 5$"))


def test_long_titles_are_wrapped() -> None:
    title = next(t for t in texts(confusion_matrix_figure(REPORT, NAMES, title="word " * 30)) if t.startswith("word"))

    assert "\n" in title


@pytest.mark.parametrize("n_epochs", [1, 2, 15, 60, 500])
def test_curves_end_in_their_last_values_which_do_not_touch(n_epochs: int) -> None:
    figure = curves_figure(history(n_epochs), title="t")
    last = history(n_epochs)[-1]
    labels = [
        f"train {last['train_loss']:.3f}",
        "test 0.400",
        f"train {100 * last['train_accuracy']:.1f}%",
        "test 87.0%",
    ]

    assert not overlaps(figure, labels)


def test_equal_last_values_are_moved_apart() -> None:
    columns = {f"{subset}_{name}": [0.5, 1.0] for subset in ("train", "val", "test") for name in ("loss", "accuracy")}

    figure = curves_figure(columns, title="t")

    assert not overlaps(figure, [f"{s} {v}" for s in ("train", "val", "test") for v in ("1.000", "100.0%")])


def test_curves_of_validation_are_drawn_where_there_are_some() -> None:
    without = curves_figure(history(3), title="t")
    with_validation = curves_figure([{**row, "val_loss": 0.5, "val_accuracy": 0.8} for row in history(3)], title="t")

    assert [len(axes.lines) for axes in without.axes] == [2, 2]
    assert [len(axes.lines) for axes in with_validation.axes] == [3, 3]


def test_rows_and_columns_draw_the_same_curves() -> None:
    rows = history(4)
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}

    assert np.array_equal(
        figure_pixels(curves_figure(rows, title="t")), figure_pixels(curves_figure(columns, title="t"))
    )


@pytest.mark.parametrize("missing", [None, "", "nan", float("inf")])
def test_missing_values_leave_a_gap(missing: object) -> None:
    rows: list[dict[str, object]] = [dict(row) for row in history(3)]
    rows[1]["test_loss"] = missing

    lines = {line.get_label(): line for line in curves_figure(rows, title="t").axes[0].lines}

    assert np.isnan(np.asarray(lines["test"].get_ydata(), dtype=float)).tolist() == [False, True, False]


def test_curves_without_any_value_can_be_drawn() -> None:
    figure_pixels(curves_figure([{"epoch": 1, "train_loss": None, "train_accuracy": None}], title="t"))


@pytest.mark.parametrize(
    ("n_epochs", "ticks"), [(1, [1]), (5, [1, 2, 3, 4, 5]), (60, [1, 10, 20, 30, 40, 50, 60]), (17, [1, 5, 10, 15])]
)
def test_epoch_ticks_are_whole_numbers_from_one(n_epochs: int, ticks: list[int]) -> None:
    assert curves_figure(history(n_epochs), title="t").axes[0].get_xticks().tolist() == ticks


def test_axes_say_what_they_show_and_in_which_unit() -> None:
    loss, accuracy = curves_figure(history(2), title="t").axes

    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("Loss (cross-entropy, nats)", "Accuracy (% of images)")
    assert loss.get_xlabel() == accuracy.get_xlabel() == "Epoch"


@pytest.mark.parametrize("empty", [[], {}, {"train_loss": []}])
def test_a_history_without_epochs_is_refused(empty: list[dict[str, float]] | dict[str, list[float]]) -> None:
    with pytest.raises(ShapeError, match="no epoch"):
        curves_figure(empty, title="t")


def test_a_history_of_uneven_columns_is_refused() -> None:
    with pytest.raises(ShapeError, match="'train_loss': 2, 'test_loss': 1"):
        curves_figure({"train_loss": [1, 2], "test_loss": [1]}, title="t")


def test_a_history_without_curves_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"no curve among the columns \['epoch', 'speed'\]"):
        curves_figure([{"epoch": 1, "speed": 3}], title="t")


def test_equal_figures_give_equal_bytes_at_150_dpi(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save_figure(confusion_matrix_figure(REPORT, NAMES, title="t"), tmp_path / "new" / name)

    first, second = ((tmp_path / "new" / name).read_bytes() for name in ("a.png", "b.png"))
    assert first == second
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
        assert set(image.info) == {"dpi"}


def test_a_saved_figure_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    path.write_bytes(b"old")

    save_figure(curves_figure(history(1), title="t"), path)

    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [path]


def test_a_figure_that_cannot_be_saved_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "curves.png"
    path.write_bytes(b"old")

    def full_disk(*_: object) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        save_figure(curves_figure(history(1), title="t"), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_pixels_are_rgb_bytes() -> None:
    pixels = figure_pixels(confusion_matrix_figure(REPORT, NAMES, title="t"))

    assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, 3)
    assert pixels.min() < 50


def test_drawing_needs_neither_pyplot_nor_torch_nor_a_display() -> None:
    code = (
        "import sys; from breakhis_pl.evaluation import figures, row_figures as r;"
        "figures.figure_png(r.forest_figure(['a'], [0], [0], [1], axis_label='x', title='t'));"
        "sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name not in {"DISPLAY", "MPLBACKEND"}}

    assert subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode == 0
