"""From a checkpoint to predictions.csv, metrics.json and report.html."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from breakhis_pl.config import EvaluateConfig, MovedDataConfig, TrainConfig, make_title, validate
from breakhis_pl.data.datamodule import BreakHisDataModule
from breakhis_pl.data.dataset import Dataset, Subset
from breakhis_pl.errors import CheckpointError, ConfigurationError, RunFolderError
from breakhis_pl.explain.gradcam import grad_cam
from breakhis_pl.metrics.calibration import fit_calibration, write_calibration
from breakhis_pl.metrics.evaluation import METRICS_JSON, classification_report, evaluate_table, write_metrics
from breakhis_pl.metrics.predictions import PREDICTIONS_CSV, Predictions, read_predictions
from breakhis_pl.models.classifier import Classifier
from breakhis_pl.models.tta import N_VIEWS, ViewAverage
from breakhis_pl.reporting.checks import run_checks
from breakhis_pl.reporting.gallery import choose_images, write_gallery
from breakhis_pl.reporting.program import log_checks, report
from breakhis_pl.reporting.results import SUBTYPE_FILES, write_results
from breakhis_pl.reporting.runs import read_run
from breakhis_pl.run_folder import RunFolder, check_same_images, lock_run
from breakhis_pl.train import make_data
from breakhis_pl.training.performance import autocast, choose_memory_format, resolve_device

log = logging.getLogger(__name__)

DEFAULT_SENSITIVITY = 0.95
"""Target of the threshold that is fitted on validation images."""


@torch.inference_mode()
def predict_logits(
    classifier: Classifier, data: BreakHisDataModule, subset: Subset, *, device: str, precision: str
) -> tuple[Tensor, Tensor]:
    """Compute the logits of all images of a subset.

    Args:
        classifier: The network; it is moved to the device and set to evaluation mode.
        data: After `setup`.
        subset: The images.
        device: "cuda", "mps" or "cpu".
        precision: Lightning's name.

    Returns:
        Sample indices, int64 (n_images,), and logits, float32 (n_images, n_classes), on the CPU.
    """
    classifier.to(device).eval()
    indices, logits = [], []
    batches = list(data.eval_batches(subset, device=torch.device(device)))
    with autocast(device, precision):
        for batch in tqdm(batches, desc=f"{subset} images", disable=None, leave=False):
            indices.append(batch)
            logits.append(classifier.network(data.batch(batch).images).float())
    return torch.cat(indices).cpu(), torch.cat(logits).cpu()


def evaluate_subset(
    folder: Path,
    classifier: Classifier,
    data: BreakHisDataModule,
    subset: Subset,
    *,
    device: str,
    precision: str,
    n_explained: int,
    views: str | None = None,
) -> dict[str, Any]:
    """Evaluate a subset and write its folder: predictions.csv, metrics.json, confusion_matrix.png, gallery/.

    Args:
        folder: The subset's folder in the run folder.
        classifier: The trained network.
        data: After `setup`.
        subset: The images.
        device: "cuda", "mps" or "cpu".
        precision: Lightning's name.
        n_explained: Images of each kind that Grad-CAM explains; 0 for none.
        views: Test-time augmentation, for the figure's title.
    """
    indices, logits = predict_logits(classifier, data, subset, device=device, precision=precision)
    predictions = to_predictions(data.dataset, indices, classifier.sum_logits(logits))
    title = ", ".join(filter(None, (make_title(classifier.config.backbone, data.data), views)))
    note = data.dataset.note
    metrics = write_results(folder, predictions, title=title, note=note)
    if classifier.parents is not None:
        types = to_predictions(data.dataset, indices, logits, by_parent=False)
        write_results(folder, types, title=f"{title}: {subset} images", note=note, files=SUBTYPE_FILES)
    if n_explained > 0:
        chosen = choose_images(predictions, n_per_kind=n_explained)
        rows = indices[[row for _, row in chosen]]
        images = data.batch(rows.to(device)).images
        heat = grad_cam(classifier, images, torch.from_numpy(predictions.predicted[[row for _, row in chosen]]))
        pixels = data.cache.pixels[rows].numpy()
        write_gallery(folder, predictions, chosen, pixels, None if heat is None else heat.cpu().numpy())
    return metrics


def calibrate(run: RunFolder, *, sensitivity: float) -> None:
    """Fit temperature and threshold on the validation rows of a run.

    Raises:
        PredictionsError: If the validation rows do not allow it.
    """
    rows = read_predictions(run.path / Subset.VAL / PREDICTIONS_CSV)
    fitted = fit_calibration(rows, sensitivity=sensitivity)
    write_calibration(run.calibration_json, fitted)
    log.info(
        "calibration: temperature %.3f, threshold %.3f; on validation images sensitivity %.3f, specificity %.3f",
        fitted.temperature,
        fitted.threshold,
        fitted.sensitivity_reached,
        fitted.specificity_reached,
    )


def load_classifier(
    path: Path, *, memory_format: torch.memory_format = torch.channels_last
) -> tuple[Classifier, dict[str, object]]:
    """Load a trained network.

    Args:
        path: A checkpoint that train.py wrote.
        memory_format: Memory format of the convolution weights.

    Returns:
        The classifier in evaluation mode, and the state of the datamodule: mean, std, split_checksum,
        stain.

    Raises:
        CheckpointError: If it is not such a checkpoint; code in it is never run.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        classifier = Classifier(**content["hyper_parameters"], memory_format=memory_format)
        classifier.load_state_dict(content["state_dict"])
        return classifier.eval(), content[BreakHisDataModule.__name__]
    except Exception as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: is damaged, or not a checkpoint of this version ({reason}); train again"
        ) from error


def evaluate(config: EvaluateConfig) -> None:
    """Evaluate a checkpoint and write to its run folder.

    Args:
        config: The configuration, with `run`.

    Raises:
        BreakHisError: If run folder, checkpoint or images cannot be used, or do not belong together.
    """
    if config.run is None:
        raise ConfigurationError("run: set run=<run folder>")
    run, subset = RunFolder(config.run), Subset(config.subset)
    record, path = run.read(), run.checkpoint(config.checkpoint)
    trained = validate(TrainConfig, moved(record.config, config.data))
    is_selected = path.resolve() == run.selected_checkpoint().resolve()
    if config.calibrate and not is_selected:
        raise ConfigurationError(f"calibrate=true: is fitted for {run.selected_checkpoint().name}; drop checkpoint")
    device, precision = resolve_device(config.trainer, trained=record)
    memory_format = choose_memory_format(
        trained.trainer.memory_format, device=device, image_size=trained.data.image_size
    )
    classifier, statistics = load_classifier(path, memory_format=memory_format)
    subsets = (Subset.VAL, subset) if config.calibrate and subset is not Subset.VAL else (subset,)
    if config.calibrate and len(classifier.parent_classes) != 2:
        raise ConfigurationError(
            f"calibrate=true: needs two classes, the run has {len(classifier.parent_classes)}; drop it"
        )
    with lock_run(run.path):
        data = make_data(trained, device=device, evaluate_on=subsets)
        check_same_images(record, run.path, **data.identity())
        if statistics["split_checksum"] != record.data["split_checksum"]:
            raise CheckpointError(f"{path}: was trained on another split; it may have seen these images")
        data.load_state_dict(statistics)
        if Subset.VAL in subsets and Subset.VAL not in data.split.subsets:
            raise RunFolderError(f"{run.path}: has no validation images; train with data.val_fraction=0.2")
        if config.tta != "none":
            classifier.network = ViewAverage(classifier.network, config.tta)  # type: ignore[assignment]
        for each in subsets:
            words = [each, "" if is_selected else path.stem, "" if config.tta == "none" else config.tta]
            folder = run.path / "_".join(filter(None, words))
            metrics = evaluate_subset(
                folder,
                classifier,
                data,
                each,
                device=device,
                precision=precision,
                n_explained=config.gallery if config.tta == "none" else 0,
                views=None if config.tta == "none" else f"{N_VIEWS[config.tta]} views",
            )
            if each is Subset.VAL and config.calibrate:
                calibrate(run, sensitivity=config.sensitivity or DEFAULT_SENSITIVITY)
        table = run.path / Subset.TEST / PREDICTIONS_CSV
        if config.calibrate and table.is_file():
            write_metrics(table.parent / METRICS_JSON, evaluate_table(table))
        if is_selected and config.tta == "none" and table.is_file() and (subset is Subset.TEST or config.calibrate):
            report(run.path)
    if folder.name != Subset.TEST:
        log_checks(run_checks(read_run(run.path, place=folder.name)))
    log.info("%s images\n\n%s", subset, classification_report(metrics))
    log.info("%s", folder)


def moved(stored: dict[str, Any], now: MovedDataConfig) -> dict[str, Any]:
    """Return a run's configuration with a program's folders and batch size."""
    given = {name: value for name, value in now if value is not None}
    if "batch_size" in given:
        given["eval_batch_size"] = given.pop("batch_size")
    data = stored["data"]
    unknown = [name for name in given if name not in data]
    if unknown:
        raise ConfigurationError(f"data.{unknown[0]}: the run was trained with data.source={data['source']}; drop it")
    return {**stored, "data": {**data, **given, "verify": True}}


def to_predictions(dataset: Dataset, indices: Tensor, logits: Tensor, *, by_parent: bool = True) -> Predictions:
    """Build the rows of an evaluation.

    Args:
        dataset: Its records are what the indices refer to.
        indices: Sample indices, int64 (n,).
        logits: float32, (n, n_classes); probabilities are their softmax in double precision.
        by_parent: Whether the classes are the parent classes.
    """
    records = [dataset.records[index] for index in indices.tolist()]
    probabilities = torch.softmax(logits.double(), dim=1).numpy()
    magnifications = [record.magnification for record in records]
    targets = [dataset.parent_of(record.target) if by_parent else record.target for record in records]
    return Predictions(
        classes=dataset.parent_classes if by_parent else dataset.classes,
        image=np.array([record.image for record in records], dtype=object),
        patient=np.array([record.patient for record in records], dtype=object),
        case=np.array([record.case for record in records], dtype=object),
        magnification=None if None in magnifications else np.array(magnifications, dtype=np.int64),
        target=np.array(targets, dtype=np.int64),
        probabilities=probabilities,
        predicted=probabilities.argmax(axis=1).astype(np.int64),
    )
