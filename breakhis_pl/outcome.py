"""From a classifier's last evaluation to the files of a run: rows, metrics, pictures, explanations."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from breakhis_pl.config import DataConfig, SyntheticDataConfig, all_magnifications
from breakhis_pl.data.breakhis import PUBLISHED_COUNTS, Subset
from breakhis_pl.data.datamodule import BreakHisDataModule
from breakhis_pl.evaluation.calibration import CALIBRATION_JSON, Calibration, fit_calibration, write_calibration
from breakhis_pl.evaluation.figures import INCOMPLETE_NOTE, SYNTHETIC_NOTE
from breakhis_pl.evaluation.gradcam import explain_predictions
from breakhis_pl.evaluation.metrics import classification_report, write_metrics
from breakhis_pl.evaluation.predictions import Predictions, read_predictions
from breakhis_pl.evaluation.results import PREDICTIONS_CSV, Result, write_results
from breakhis_pl.evaluation.run_metrics import evaluate_table
from breakhis_pl.evaluation.subtypes import SubtypePredictions, write_subtype_results
from breakhis_pl.models.classifier import Classifier
from breakhis_pl.models.tasks import summed
from breakhis_pl.training.history import duration

log = logging.getLogger(__name__)

DEFAULT_SENSITIVITY = 0.95
"""Wanted of the threshold that is fitted at the end of a training with validation images."""


def write_outcome(
    folder: Path,
    data: BreakHisDataModule,
    classifier: Classifier,
    subset: Subset,
    *,
    n_explained: int,
    device: torch.device,
    views: str | None = None,
) -> Result:
    """Writes the results of a subset's last evaluation.

    Args:
        folder: Where to; the run folder's folder of the subset's name.
        data: The run's data.
        classifier: After an evaluation of the subset.
        subset: What was evaluated.
        n_explained: Pictures of each kind that Grad-CAM explains.
        device: Where Grad-CAM runs.
        views: What each image was averaged over, for the figure's title; None where it was shown once.
    """
    rows, logits = classifier.evaluated_logits(subset)
    predictions = to_predictions(data, rows, summed(logits, classifier.spec.task))
    title = ", ".join(filter(None, (run_title(classifier.spec.title, data.data), views)))
    result = write_results(folder, predictions, subset=subset, title=title, note=figure_note(data))
    if classifier.spec.task == "subtype":
        types = to_subtypes(data, rows, logits)
        write_subtype_results(folder, types, title=f"{title}: {subset} images", note=figure_note(data))
    if n_explained > 0:

        def images_of(chosen: Sequence[int]) -> Tensor:
            return data.batch(torch.tensor(chosen, device=device)).images

        def pixels_of(chosen: Sequence[int]) -> npt.NDArray[np.uint8]:
            return data.store.pixels[list(chosen)]

        explain_predictions(
            folder,
            classifier.binary_network().to(device),
            predictions,
            rows=rows.tolist(),
            images_of=images_of,
            pixels_of=pixels_of,
            n_per_kind=n_explained,
        )
    return result


def calibrate(folder: Path, *, sensitivity: float) -> Calibration:
    """Fits temperature and threshold on the validation rows of a run and keeps them with it.

    Args:
        folder: The run folder, after its validation images were evaluated.
        sensitivity: Wanted on the validation images, in (0, 1).

    Raises:
        PredictionsError: If the validation rows do not allow it.
    """
    calibration = fit_calibration(read_predictions(folder / Subset.VAL / PREDICTIONS_CSV), sensitivity=sensitivity)
    write_calibration(folder / CALIBRATION_JSON, calibration)
    return calibration


def renew_test_metrics(folder: Path) -> bool:
    """Computes the metrics of a run's test images again, after what is fitted on validation images has changed.

    Args:
        folder: The run folder.

    Returns:
        Whether it has test images.
    """
    table = folder / Subset.TEST / PREDICTIONS_CSV
    if not table.is_file():
        return False
    write_metrics(table.parent / "metrics.json", evaluate_table(table))
    return True


def to_predictions(data: BreakHisDataModule, rows: Tensor, logits: Tensor) -> Predictions:
    """The rows of an evaluation.

    Args:
        data: What the rows of the store are.
        rows: int64, (n,), rows of the store.
        logits: float32, (n, 2); probabilities are their softmax in double precision.
    """
    names = [data.records[row].name for row in rows.tolist()]
    probabilities = torch.softmax(logits.double(), dim=1).numpy()
    return Predictions(
        image=tuple(name.file_name for name in names),
        patient=tuple(name.patient for name in names),
        case=tuple(name.case for name in names),
        magnification=np.array([name.magnification for name in names], dtype=np.int64),
        target=np.array([name.target for name in names], dtype=np.int64),
        probabilities=probabilities,
        predicted=probabilities.argmax(axis=1).astype(np.int64),
    )


def to_subtypes(data: BreakHisDataModule, rows: Tensor, logits: Tensor) -> SubtypePredictions:
    """The rows of an evaluation by tumor type.

    Args:
        data: What the rows of the store are.
        rows: int64, (n,), rows of the store.
        logits: float32, (n, 8).
    """
    names = [data.records[row].name for row in rows.tolist()]
    probabilities = torch.softmax(logits.double(), dim=1).numpy()
    return SubtypePredictions(
        image=tuple(name.file_name for name in names),
        patient=tuple(name.patient for name in names),
        case=tuple(name.case for name in names),
        target=np.array([name.target_of("subtype") for name in names], dtype=np.int64),
        probabilities=probabilities,
        predicted=probabilities.argmax(axis=1).astype(np.int64),
    )


def run_title(network: str, data: DataConfig) -> str:
    """What a run is, for figures: network (the title of its `NetworkSpec`), magnification, split."""
    where = "+".join(f"{magnification}X" for magnification in data.magnification)
    if data.test_magnification is not None:
        where += f", tested at {'+'.join(f'{magnification}X' for magnification in data.test_magnification)}"
    by = "" if data.group == "case" else f" by {data.group}"
    split = f"fold {data.fold}" if data.split == "official" else f"ratio split{by}, {data.test_fraction:g} test"
    stain = "" if data.stain == "none" else f", {data.stain.capitalize()} stains"
    return f"{network}, {where}, {split}{stain}"


def figure_note(data: BreakHisDataModule) -> str | None:
    """What every figure of the run must say about its images."""
    if isinstance(data.data, SyntheticDataConfig):
        return SYNTHETIC_NOTE
    if data.is_complete:
        return None
    n_published = sum(
        n for (magnification, _), n in PUBLISHED_COUNTS.items() if magnification in all_magnifications(data.data)
    )
    return f"{INCOMPLETE_NOTE}: {data.n_found:,} of {n_published:,} images"


def say_result(result: Result, folder: Path, subset: Subset, seconds: float) -> None:
    """Says how good the network is and where everything lies."""
    log.info("%s images\n\n%s", subset, classification_report(result.metrics))
    log.info("%s after %s", folder, duration(seconds))
