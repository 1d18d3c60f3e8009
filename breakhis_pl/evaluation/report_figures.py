"""The figures of a run's page, each with a text that says in words and numbers what it shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from breakhis_pl.data.breakhis import CLASS_NAMES
from breakhis_pl.data.dataset import INCOMPLETE_NOTE, SYNTHETIC_NOTE
from breakhis_pl.evaluation.confusion_figure import confusion_matrix_figure
from breakhis_pl.evaluation.curves import Curve, ReliabilityBins, precision_recall_points, reliability_bins, roc_points
from breakhis_pl.evaluation.figures import (
    SUBSET_STYLES,
    count_of_images,
    curves_figure,
)
from breakhis_pl.evaluation.gallery import KINDS, GalleryEntry, picture_content
from breakhis_pl.evaluation.history_table import HistoryRow
from breakhis_pl.evaluation.pages import Picture, data_uri, picture_of
from breakhis_pl.evaluation.patients import PatientRow
from breakhis_pl.evaluation.row_figures import label_text, patient_figure
from breakhis_pl.evaluation.run_files import RunFiles
from breakhis_pl.evaluation.run_summary import Estimate
from breakhis_pl.evaluation.score_figures import precision_recall_figure, reliability_figure, roc_figure


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands on every figure of a page.

    Attributes:
        title: Heading.
        note: Warning that must not be lost.
    """

    title: str
    note: str | None

    def of(self, kind: str) -> str:
        """Heading of one figure: what it shows, and of what."""
        return f"{kind}: {self.title}"


def frame_of(files: RunFiles) -> Frame:
    """Heading and warning of the figures of a run."""
    n_images = count_of_images(len(files.predictions)).replace("image", "test image")
    title = f"{label_text(files.network)}, {files.magnifications}, {n_images}"
    summary = files.summary
    note = SYNTHETIC_NOTE if summary.is_synthetic else INCOMPLETE_NOTE if summary.is_complete is False else None
    return Frame(title=title, note=note)


def confusion_picture(matrix: Sequence[Sequence[int]], frame: Frame) -> Picture:
    """The confusion matrix; rows are the truth."""
    parts = [
        f"of {count_of_images(sum(row)).replace('image', f'{name} image')} "
        + " and ".join(f"{count:,} are called {called}" for count, called in zip(row, CLASS_NAMES, strict=True))
        for row, name in zip(matrix, CLASS_NAMES, strict=True)
    ]
    figure = confusion_matrix_figure(matrix, CLASS_NAMES, title=frame.of("Confusion matrix"), note=frame.note)
    return picture_of(figure, alt=f"Confusion matrix: {'; '.join(parts)}.")


def eight_types_picture(files: RunFiles, frame: Frame) -> Picture | None:
    """The confusion matrix of the tumor types; None where the network tells two classes apart."""
    if files.subtypes is None:
        return None
    matrix, codes = files.subtypes["confusion_matrix"], files.subtypes["class_names"]
    parts = [f"{row[i]:,} of {sum(row):,} {code}" for i, (row, code) in enumerate(zip(matrix, codes, strict=True))]
    figure = confusion_matrix_figure(matrix, codes, title=frame.of("Tumor types"), note=frame.note)
    return picture_of(figure, alt=f"Confusion matrix of the tumor types; right are {', '.join(parts)}.")


def history_picture(history: Sequence[HistoryRow], frame: Frame, *, counted: int | None = None) -> Picture | None:
    """Loss and accuracy over the epochs; None where nothing was recorded.

    Args:
        history: Rows of history.csv.
        frame: Heading and warning.
        counted: Epoch that was chosen; None where none was.
    """
    if not any(f"{subset}_loss" in row for row in history for subset in SUBSET_STYLES):
        return None
    first, last = history[0], history[-1]
    parts = [
        f"{subset}: loss from {_cell(first, subset, 'loss', '{:.3f}')} to {_cell(last, subset, 'loss', '{:.3f}')}, "
        f"accuracy from {_cell(first, subset, 'accuracy', '{:.1%}')} to {_cell(last, subset, 'accuracy', '{:.1%}')}"
        for subset in SUBSET_STYLES
        if f"{subset}_loss" in first
    ]
    n_epochs = f"{len(history)} epoch{'' if len(history) == 1 else 's'}"
    figure = curves_figure(history, title=frame.of("Loss and accuracy"), note=frame.note, counted=counted)
    chosen = "" if counted is None else f" Epoch {counted} counts."
    return picture_of(figure, alt=f"Loss and accuracy over {n_epochs}; {'; '.join(parts)}.{chosen}")


def roc_picture(files: RunFiles, frame: Frame) -> Picture | None:
    """ROC curve with its band; None where a class has no image."""
    curve = roc_points(files.predictions)
    if curve is None:
        return None
    area = phrase(files.estimate("auroc"))
    figure = _curve_figure(roc_figure, curve, files, label=f"AUROC {area}", title=frame.of("ROC curve"), frame=frame)
    # of equal false positive rates the last, highest point counts
    reached = [f"{_highest_at(curve, rate):.0%} at {rate:.0%}" for rate in (0.05, 0.1, 0.2)]
    return picture_of(
        figure,
        alt=f"ROC curve with area {area}. True positive rate by false positive rate: {', '.join(reached)}."
        + _point_sentence(curve, "false positive rate", "true positive rate"),
    )


def precision_recall_picture(files: RunFiles, frame: Frame) -> Picture | None:
    """Precision over recall with its band; None where a class has no image."""
    curve = precision_recall_points(files.predictions)
    if curve is None:
        return None
    area = phrase(files.estimate("average_precision"))
    label, title = f"average precision {area}", frame.of("Precision and recall")
    figure = _curve_figure(precision_recall_figure, curve, files, label=label, title=title, frame=frame)
    reached = [f"{float(curve.y[curve.x >= rate][-1]):.0%} at {rate:.0%}" for rate in (0.5, 0.8, 0.95)]
    return picture_of(
        figure,
        alt=f"Precision over recall with average precision {area}. Precision by recall: {', '.join(reached)}."
        + _point_sentence(curve, "recall", "precision"),
    )


def _curve_figure(
    draw: Callable[..., Figure], curve: Curve, files: RunFiles, *, label: str, title: str, frame: Frame
) -> Figure:
    return draw(
        curve.x,
        curve.y,
        n_benign=_n_of_class(files, 0),
        n_malignant=_n_of_class(files, 1),
        label=label,
        title=title,
        note=frame.note,
        point=curve.point,
        band=curve.band,
    )


def reliability_picture(files: RunFiles, frame: Frame) -> Picture:
    """Share of malignant images by predicted probability."""
    bins = reliability_bins(files.predictions)
    error = phrase(files.estimate("ece"))
    figure = reliability_figure(
        bins.predicted,
        bins.observed,
        bins.counts,
        edges=bins.edges,
        title=frame.of("Reliability"),
        note=frame.note,
        label=f"calibration error {error}",
    )
    return picture_of(
        figure, alt=f"Reliability diagram, expected calibration error {error}. {'; '.join(_bin_texts(bins))}."
    )


def patient_picture(rows: Sequence[PatientRow], frame: Frame) -> Picture:
    """Share of right images by patient."""
    figure = patient_figure(
        [row.patient for row in rows],
        [row.n_correct for row in rows],
        [row.n_images for row in rows],
        [row.target for row in rows],
        CLASS_NAMES,
        title=frame.of("Patients"),
        note=frame.note,
    )
    mean = float(np.mean([row.share for row in rows]))
    n_full = sum(row.n_correct == row.n_images for row in rows)
    lowest = [f"{row.patient} {row.n_correct} of {row.n_images}" for row in rows[:3]]
    return picture_of(
        figure,
        alt=f"Share of right images of {len(rows)} patients: mean {mean:.1%}, {n_full} with every image right. "
        f"Lowest: {', '.join(lowest)}.",
    )


def gallery_groups(files: RunFiles) -> list[tuple[str, list[tuple[GalleryEntry, Picture]]]]:
    """Pictures of the gallery by kind; kinds without pictures are left out."""
    groups = []
    for kind in dict.fromkeys([*KINDS, *(entry.kind for entry in files.gallery)]):
        entries = [entry for entry in files.gallery if entry.kind == kind]
        if entries:
            groups.append((kind, [_gallery_picture(files.folder / "test", entry) for entry in entries]))
    return groups


def _gallery_picture(folder: Path, entry: GalleryEntry) -> tuple[GalleryEntry, Picture]:
    content, (width, height) = picture_content(folder, entry)
    halves = f" Left the image, right what speaks for {entry.predicted} in it." if entry.has_heat else ""
    alt = f"{entry.image}. {entry.caption}{halves}"
    return entry, Picture(src=data_uri(content, "image/jpeg"), width=width, height=height, alt=alt)


def phrase(estimate: Estimate | None) -> str:
    """A value with its interval, in words.

    Example:
        >>> phrase(Estimate(0.8934, (0.8213, 0.9567)))
        '0.893 (0.82 to 0.96)'
    """
    match estimate:
        case None:
            return "not defined"
        case Estimate(value, None):
            return f"{value:.3f}"
        case Estimate(value, (low, high)):
            return f"{value:.3f} ({low:.2f} to {high:.2f})"
        case other:
            raise TypeError(f"{other!r} is no Estimate; expected a value with an interval or None")


def _cell(row: HistoryRow, subset: str, quantity: str, form: str) -> str:
    value = row.get(f"{subset}_{quantity}")
    return "nothing" if value is None else form.format(value)


def _n_of_class(files: RunFiles, index: int) -> int:
    return int((files.predictions.target == index).sum())


def _highest_at(curve: Curve, x: float) -> float:
    return float(curve.y[curve.x <= x].max())


def _point_sentence(curve: Curve, x: str, y: str) -> str:
    return "" if curve.point is None else f" The decisions lie at {x} {curve.point[0]:.1%}, {y} {curve.point[1]:.1%}."


def _bin_texts(bins: ReliabilityBins) -> list[str]:
    return [
        f"of {count_of_images(int(count))} at {low:.0%} to {high:.0%}, {share:.0%} are malignant"
        for low, high, share, count in zip(bins.edges, bins.edges[1:], bins.observed, bins.counts, strict=False)
        if count
    ]
