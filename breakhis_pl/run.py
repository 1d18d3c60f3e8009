"""Training and evaluation of one run: the only module that sees both the configuration and Lightning's Trainer."""

import gc
import logging
import os
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from hydra.utils import instantiate
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from omegaconf import OmegaConf
from torch import nn

from breakhis_pl import composition
from breakhis_pl.config import (
    BreakHisDataConfig,
    DataConfig,
    EvaluateConfig,
    EvaluateDataConfig,
    SyntheticDataConfig,
    TrainConfig,
)
from breakhis_pl.data.breakhis import PUBLISHED_COUNTS, Subset
from breakhis_pl.data.datamodule import BreakHisDataModule
from breakhis_pl.data.splits import shared_cases, write_split_csv
from breakhis_pl.errors import CheckpointError, ConfigurationError, RunFolderError
from breakhis_pl.evaluation.metrics import classification_report
from breakhis_pl.evaluation.predictions import Predictions
from breakhis_pl.evaluation.results import Result, write_results
from breakhis_pl.models.backbones import BACKBONES, load_pretrained
from breakhis_pl.models.classifier import Classifier
from breakhis_pl.training.checkpoints import LAST_CHECKPOINT, LastCheckpoint, load_checkpoint
from breakhis_pl.training.history import History, duration
from breakhis_pl.training.progress import RunProgressBar
from breakhis_pl.training.provenance import RUN_JSON, SYNTHETIC_NOTE, RunRecord, read_run
from breakhis_pl.training.tensorboard import SubsetWriters

log = logging.getLogger(__name__)


def train(config: TrainConfig, folder: Path) -> None:
    """Trains a network and evaluates it on the test images.

    Args:
        config: The typed configuration.
        folder: The run folder.

    Raises:
        BreakHisError: Before anything is written, if data, weights or device are not usable.
    """
    started = time.perf_counter()
    if (folder / RUN_JSON).exists():
        raise RunFolderError(f"{folder} holds a run already; choose another hydra.run.dir, or delete it")
    accelerator, precision = resolve_device(config.trainer.accelerator, config.trainer.precision)
    data = BreakHisDataModule(
        config.data, config.augmentation, seed=config.seed, show_progress=config.trainer.progress_bar
    )
    data.index()
    classifier = Classifier(
        config.model.backbone,
        dropout=config.model.dropout,
        seed=config.seed,
        evaluated=data.evaluated,
        make_optimizers=lambda parameters: _make_optimizers(config, parameters),
    )
    load_pretrained(classifier.network, name=config.model.backbone, weights=config.model.weights)
    data.setup()

    record = RunRecord(folder, _facts(config, data, classifier, accelerator=accelerator, precision=precision))
    try:
        write_split_csv(folder / "split.csv", data.split)
        _announce(config, data, classifier, folder, precision=precision, device=_device_name(accelerator))
        writers = SubsetWriters(folder / "tensorboard")
        history = History(folder, writers, title=_title(config.model.backbone, config.data), note=_note(data))
        bars = [RunProgressBar()] if config.trainer.progress_bar else []
        trainer = _trainer(
            config, accelerator=accelerator, precision=precision, callbacks=[*bars, history, LastCheckpoint(folder)]
        )
        trainer.fit(classifier, datamodule=data)
        if trainer.interrupted:
            raise KeyboardInterrupt
        result = _write_results(folder, data, classifier, Subset.TEST)
        writers.add_image("test", "confusion_matrix", result.confusion_matrix, epoch=trainer.current_epoch)
        writers.add_text("train", "configuration", f"```yaml\n{OmegaConf.to_yaml(composition.plain(config))}\n```")
        writers.close()
    except BaseException as error:
        record.fail(str(error) or type(error).__name__)
        raise
    finally:
        _free(data)
    seconds = time.perf_counter() - started
    record.finish(seconds_total=seconds, seconds_training=history.train_seconds)
    _report(result, folder, Subset.TEST, seconds)


def evaluate(config: EvaluateConfig) -> None:
    """Evaluates a checkpoint of a run again, into the run's folder.

    Args:
        config: The typed configuration.

    Raises:
        BreakHisError: If run folder, checkpoint or images are not usable, or not those of the run.
    """
    started = time.perf_counter()
    folder, subset = Path(config.run), Subset(config.subset)
    run = read_run(folder)
    trained: TrainConfig = composition.restored("train", run["config"])
    _apply(config.data, trained.data)
    trained.data.verify = True
    accelerator, precision = resolve_device(config.trainer.accelerator, config.trainer.precision)
    path = folder / LAST_CHECKPOINT if config.checkpoint == "last" else Path(config.checkpoint)
    network = load_checkpoint(path, evaluated=(subset,))
    if network.image_size != trained.data.image_size:
        raise CheckpointError(
            f"{path} was trained on images of {network.image_size} pixels, "
            f"the run {folder} on {trained.data.image_size}"
        )
    data = BreakHisDataModule(trained.data, trained.augmentation, seed=trained.seed)
    data.evaluated = (subset,)
    data.index()
    if data.split.checksum() != run["data"]["split_checksum"]:
        raise RunFolderError(
            f"the images are not those of run {folder}: there it was {run['data']['description']}, "
            f"here it is {data.description}; set data.root to the folder the run was trained on"
        )
    data.setup()
    data.mean, data.std = _three(network.mean), _three(network.std)
    trainer = _trainer(trained, accelerator=accelerator, precision=precision, callbacks=[])
    trainer.validate(network.classifier, datamodule=data, verbose=False)
    result = _write_results(folder, data, network.classifier, subset)
    _report(result, folder, subset, time.perf_counter() - started)


def resolve_device(accelerator: str, precision: str) -> tuple[str, str]:
    """Lightning's names of the device and the precision to use.

    bf16 mixed where a GPU has it in hardware, fp16 mixed on older ones, float32 on the CPU and on Apple's GPU.

    Args:
        accelerator: "auto", "cpu", "gpu" or "mps".
        precision: "auto" or one of Lightning's.

    Raises:
        ConfigurationError: If the device is not there.
    """
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if accelerator == "gpu" and not has_cuda:
        raise ConfigurationError(f"accelerator=gpu: torch {torch.__version__} sees no GPU; try auto or cpu")
    if accelerator == "mps" and not has_mps:
        raise ConfigurationError("accelerator=mps: torch sees no Apple GPU; try auto or cpu")
    if accelerator == "auto":
        accelerator = "gpu" if has_cuda else "mps" if has_mps else "cpu"
    if precision == "auto":
        precision = "32-true"
        if accelerator == "gpu":
            precision = "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    return ("cuda" if accelerator == "gpu" else accelerator), precision


def _trainer(config: TrainConfig, *, accelerator: str, precision: str, callbacks: list[L.Callback]) -> L.Trainer:
    """A Trainer that leaves logging, checkpoints and bars to the callbacks given."""
    # the loaders hand out numbers; workers would only make them slower
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # Lightning 2.6.6 uses a class that torch 2.15 deprecates; can go with the next Lightning
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    return L.Trainer(
        accelerator=accelerator,
        devices=1,
        precision=precision,  # type: ignore[arg-type]  # one of config.PRECISIONS
        max_epochs=config.trainer.max_epochs,
        limit_train_batches=config.trainer.limit_train_batches,
        deterministic=config.trainer.deterministic,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=any(isinstance(callback, RunProgressBar) for callback in callbacks),
        use_distributed_sampler=False,
        callbacks=callbacks,
    )


def _make_optimizers(config: TrainConfig, parameters: Iterable[nn.Parameter]) -> OptimizerLRScheduler:
    """The optimizer and the schedule, stepped once an epoch."""
    optimizer = instantiate(asdict(config.optimizer), params=list(parameters))
    scheduler = instantiate(asdict(config.scheduler), optimizer=optimizer)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}


def _write_results(folder: Path, data: BreakHisDataModule, classifier: Classifier, subset: Subset) -> Result:
    """Files of the last evaluation of a subset, in the run folder's folder of its name."""
    predictions = _predictions(data, classifier, subset)
    shared = set(shared_cases(data.split)) if subset is Subset.TEST else set()
    siblings = [image for image, case in zip(predictions.image, predictions.case, strict=True) if case in shared]
    return write_results(
        folder / subset,
        predictions,
        subset=subset,
        title=_title(classifier.backbone, data.data),
        note=_note(data),
        siblings=siblings,
    )


def _predictions(data: BreakHisDataModule, classifier: Classifier, subset: Subset) -> Predictions:
    """The rows of the last evaluation; probabilities are the softmax of float32 logits."""
    rows, logits = classifier.evaluated_logits(subset)
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


def _apply(asked: EvaluateDataConfig, data: DataConfig) -> None:
    """Puts what evaluate.py was asked for in place of what the run was trained with.

    Raises:
        ConfigurationError: If a folder is named for a run on drawn images.
    """
    data.batch_size = data.batch_size if asked.batch_size is None else asked.batch_size
    data.cache_dir = data.cache_dir if asked.cache_dir is None else asked.cache_dir
    if asked.root is None:
        return
    if not isinstance(data, BreakHisDataConfig):
        raise ConfigurationError(f"data.root={asked.root}: the run was trained on drawn images, which have no folder")
    data.root = asked.root


def _facts(
    config: TrainConfig, data: BreakHisDataModule, classifier: Classifier, *, accelerator: str, precision: str
) -> Mapping[str, Any]:
    """What run.json says beyond times and versions."""
    return {
        "config": composition.plain(config),
        "data": {
            "synthetic": isinstance(config.data, SyntheticDataConfig),
            "complete": data.is_complete,
            "description": data.description,
            "n_images": data.split.counts(),
            "split_checksum": data.split.checksum(),
            "mean": data.mean,
            "std": data.std,
        },
        "model": {
            "backbone": config.model.backbone,
            "n_parameters": sum(parameter.numel() for parameter in classifier.parameters()),
        },
        "device": _device_name(accelerator),
        "precision": precision,
        "torch_threads": torch.get_num_threads(),
    }


def _device_name(accelerator: str) -> str:
    if accelerator == "cuda":
        return f"cuda: {torch.cuda.get_device_name()}"
    return f"{accelerator}, {os.cpu_count()} cores"


def _title(backbone: str, data: DataConfig) -> str:
    """What a run is, for figures: network, magnification, split."""
    where = "+".join(f"{magnification}X" for magnification in data.magnification)
    split = f"fold {data.fold}" if data.split == "official" else f"ratio split, {data.test_fraction:g} test"
    return f"{BACKBONES[backbone].title}, {where}, {split}"


def _note(data: BreakHisDataModule) -> str | None:
    """What every figure of the run must say about its images."""
    if isinstance(data.data, SyntheticDataConfig):
        return SYNTHETIC_NOTE
    if data.is_complete:
        return None
    n_published = sum(
        n for (magnification, _), n in PUBLISHED_COUNTS.items() if magnification in data.data.magnification
    )
    return f"incomplete archive: {len(data.records):,} of {n_published:,} images"


def _announce(
    config: TrainConfig,
    data: BreakHisDataModule,
    classifier: Classifier,
    folder: Path,
    *,
    precision: str,
    device: str,
) -> None:
    """Says what is about to happen, in three lines."""
    if not data.is_complete:
        what = "drawn images, no tissue" if isinstance(config.data, SyntheticDataConfig) else "incomplete archive"
        log.warning("%s: %s", what, data.description)
    counts = ", ".join(
        f"{subset} {sum(by_class.values()):,} ({by_class['benign']:,} benign, {by_class['malignant']:,} malignant)"
        for subset, by_class in data.split.counts().items()
    )
    n_parameters = sum(parameter.numel() for parameter in classifier.parameters())
    log.info("%s: %s", _title(config.model.backbone, config.data), counts)
    log.info(
        "%.1f million parameters, weights %s; %d epochs in %s on %s",
        n_parameters / 1e6,
        config.model.weights,
        config.trainer.max_epochs,
        precision,
        device,
    )
    log.info("run folder: %s", folder)


def _report(result: Result, folder: Path, subset: Subset, seconds: float) -> None:
    """Says how good the network is and where everything lies."""
    log.info("%s images\n\n%s", subset, classification_report(result.metrics))
    log.info("%s after %s", folder / subset, duration(seconds))


def _free(data: BreakHisDataModule) -> None:
    """Gives the device back to the next run of a sweep."""
    data.release()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _three(values: tuple[float, ...]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue
