"""Evaluation of a checkpoint of a run, again or on other images of it."""

import logging
import time
from pathlib import Path

import torch

from breakhis_pl import composition
from breakhis_pl.config import (
    NAMED_CHECKPOINTS,
    BreakHisDataConfig,
    DataConfig,
    EvaluateConfig,
    EvaluateDataConfig,
    TrainConfig,
)
from breakhis_pl.data.breakhis import Subset
from breakhis_pl.data.datamodule import BreakHisDataModule
from breakhis_pl.engine import evaluate_subsets, make_fast, make_trainer
from breakhis_pl.errors import ConfigurationError, RunFolderError
from breakhis_pl.evaluation.report import write_report
from breakhis_pl.guards import check_fits, check_same_pixels, check_same_split, errors_explained, only_writer
from breakhis_pl.models.views import N_VIEWS, ViewAverage
from breakhis_pl.outcome import DEFAULT_SENSITIVITY, calibrate, renew_test_metrics, say_result, write_outcome
from breakhis_pl.run_json import read_run
from breakhis_pl.training import distributed
from breakhis_pl.training.checkpoints import counting_checkpoint, load_checkpoint, named_checkpoint
from breakhis_pl.training.device import resolve_device

log = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig) -> None:
    """Evaluates a checkpoint of a run again, into the run's folder.

    Args:
        config: The typed configuration.

    Raises:
        BreakHisError: If run folder, checkpoint or images are not usable, or not those of the run.
    """
    started = time.perf_counter()
    if config.run is None:
        raise ConfigurationError("evaluate.py needs run=<run folder>")
    folder = Path(config.run)
    read_run(folder)  # before anything is written there
    with only_writer(folder), errors_explained(config, folder):
        _evaluate(config, folder, started)


def _evaluate(config: EvaluateConfig, folder: Path, started: float) -> None:
    """Evaluates a run whose folder is this process's own."""
    subset, run = Subset(config.subset), read_run(folder)
    trained: TrainConfig = composition.restored("train", run["config"])
    _apply(config.data, trained.data)
    trained.data.verify = True
    accelerator, precision = resolve_device(config.trainer.accelerator, config.trainer.precision)
    if config.trainer.precision == "auto" and str(run.get("device")).startswith(accelerator):
        precision = run.get("precision") or precision
    subsets = (Subset.VAL, subset) if config.calibrate and subset is not Subset.VAL else (subset,)
    path = named_checkpoint(folder, config.checkpoint)
    counts = config.checkpoint in NAMED_CHECKPOINTS and path == counting_checkpoint(folder)
    if config.calibrate and not counts:
        raise ConfigurationError(
            f"calibrate=true checkpoint={config.checkpoint}: what is kept with {folder} is fitted for the checkpoint "
            f"that counts, {counting_checkpoint(folder).name}; drop checkpoint"
        )
    data = BreakHisDataModule(
        trained.data,
        trained.augmentation,
        seed=trained.seed,
        show_progress=distributed.is_first(),
        task=trained.task,
    )
    with distributed.first_of_machine_first():
        data.index()
    speed = make_fast(trained, data, accelerator)
    network = load_checkpoint(path, evaluated=subsets, memory_format=speed.torch_memory_format)
    check_fits(network, path, run, trained, folder)
    check_same_split(data, run, folder)
    if Subset.VAL in subsets and Subset.VAL not in data.split.subsets:
        raise RunFolderError(
            f"run {folder} has no validation images, and nothing is fitted on train or test images; "
            "train with data.val_fraction above 0, as in data.val_fraction=0.2"
        )
    data.evaluated = subsets
    data.stain = network.stain
    with distributed.first_of_machine_first():
        data.setup()
    check_same_pixels(data, run, folder)
    data.mean, data.std = network.mean, network.std
    if config.tta != "none":
        network.classifier.network = ViewAverage(network.classifier.network, config.tta)
    trainer = make_trainer(trained, accelerator=accelerator, precision=precision, callbacks=[])
    evaluate_subsets(trainer, network.classifier, data)
    if not distributed.is_first():
        return
    device = torch.device(accelerator)
    for each in subsets:
        place = folder / "_".join(_parts_of_place(config, each, None if counts else path))
        result = write_outcome(
            place,
            data,
            network.classifier,
            each,
            n_explained=config.gallery if config.tta == "none" else 0,  # Grad-CAM would explain one view of several
            device=device,
            views=None if config.tta == "none" else f"{N_VIEWS[config.tta]} views",
        )
        if each is Subset.VAL and config.calibrate:
            calibrate(folder, sensitivity=config.sensitivity or DEFAULT_SENSITIVITY)
    is_shown = subset is Subset.TEST and counts and config.tta == "none"
    if config.calibrate and subset is not Subset.TEST:
        is_shown = renew_test_metrics(folder)
    if is_shown:
        log.info("page: %s", write_report(folder))
    say_result(result, place, subset, time.perf_counter() - started)


def _parts_of_place(config: EvaluateConfig, subset: Subset, checkpoint: Path | None) -> list[str]:
    """Words of the name of the folder of an evaluation; results of another kind never take the place of the run's.

    Args:
        config: The typed configuration.
        subset: What is evaluated.
        checkpoint: Another than the one that counts; None for that.
    """
    words = [subset.value, "" if checkpoint is None else checkpoint.stem]
    return [word for word in (*words, "" if config.tta == "none" else config.tta) if word]


def _apply(asked: EvaluateDataConfig, data: DataConfig) -> None:
    """Puts what evaluate.py was asked for in place of what the run was trained with.

    Raises:
        ConfigurationError: If a folder is named for a run on drawn images.
    """
    data.eval_batch_size = data.eval_batch_size if asked.batch_size is None else asked.batch_size
    data.cache_dir = data.cache_dir if asked.cache_dir is None else asked.cache_dir
    if asked.root is None:
        return
    if not isinstance(data, BreakHisDataConfig):
        raise ConfigurationError(f"data.root={asked.root}: the run was trained on drawn images, which have no folder")
    data.root = asked.root
