"""What a training starts with, checked before its first step, and what run.json says of it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from breakhis_pl import composition
from breakhis_pl.config import SyntheticDataConfig, TrainConfig
from breakhis_pl.data.breakhis import Subset
from breakhis_pl.data.datamodule import BreakHisDataModule
from breakhis_pl.engine import make_fast, make_optimizers
from breakhis_pl.guards import check_same_pixels, check_same_split, check_single_images
from breakhis_pl.models.classifier import Classifier
from breakhis_pl.models.networks import spec_of
from breakhis_pl.models.pretrained import load_weights
from breakhis_pl.training import distributed
from breakhis_pl.training.checkpoints import LAST_CHECKPOINT, load_checkpoint
from breakhis_pl.training.device import device_name, resolve_device
from breakhis_pl.training.speed import Speed


class Ready(NamedTuple):
    """What a training starts with.

    Attributes:
        n_done: Finished epochs.
        checkpoint: State after them; None where a run starts anew.
    """

    accelerator: str
    precision: str
    data: BreakHisDataModule
    speed: Speed
    classifier: Classifier
    n_done: int
    checkpoint: Path | None


def prepare(config: TrainConfig, folder: Path, evaluated: Sequence[Subset], before: Mapping[str, Any] | None) -> Ready:
    """Everything that can be wrong before the first step: device, images, weights.

    Raises:
        BreakHisError: If it is.
    """
    accelerator, precision = resolve_device(config.trainer.accelerator, config.trainer.precision)
    data = BreakHisDataModule(
        config.data,
        config.augmentation,
        seed=config.seed,
        show_progress=config.trainer.progress_bar and distributed.is_first(),
        task=config.task,
    )
    data.index()
    data.evaluated = tuple(subset for subset in data.evaluated if subset in evaluated)
    if before is not None:
        check_same_split(data, before, folder)
    last = folder / LAST_CHECKPOINT
    checkpoint = last if before is not None and last.exists() else None
    speed = make_fast(config, data, accelerator)
    data.check_train_batches(limit=config.trainer.limit_train_batches)
    spec = spec_of(config.model, image_size=config.data.image_size, task=config.task)
    check_single_images(data, spec, limit=config.trainer.limit_train_batches)
    classifier = Classifier(
        **asdict(spec),
        seed=config.seed,
        memory_format=speed.torch_memory_format,
        evaluated=data.evaluated,
        make_optimizers=lambda parameters: make_optimizers(config, parameters),
        class_weights=data.class_weights(),
        label_smoothing=config.training.label_smoothing,
        mixup=config.training.mixup,
        layer_decay=config.training.layer_decay,
    )
    if checkpoint is None:
        load_weights(classifier.network, spec, config.model.weights)
    n_done = 0 if checkpoint is None else load_checkpoint(checkpoint).epoch
    data.setup()
    if before is not None:
        check_same_pixels(data, before, folder)
    return Ready(accelerator, precision, data, speed, classifier, n_done, checkpoint)


def run_facts(config: TrainConfig, ready: Ready) -> Mapping[str, Any]:
    """What run.json says beyond times and versions."""
    data = ready.data
    return {
        "config": composition.plain(config),
        "evaluated": list(data.evaluated),
        "data": {
            "synthetic": isinstance(config.data, SyntheticDataConfig),
            "complete": data.is_complete,
            "description": data.description,
            "n_images": data.split.counts(),
            "split_checksum": data.split.checksum(),
            "pixels_checksum": data.store.checksum(),
            "mean": data.mean,
            "std": data.std,
            **_stain_facts(data),
        },
        "model": {
            "backbone": config.model.backbone,
            "n_parameters": sum(parameter.numel() for parameter in ready.classifier.parameters()),
            "n_trained": sum(each.numel() for each in ready.classifier.parameters() if each.requires_grad),
        },
        "device": device_name(ready.accelerator),
        "precision": ready.precision,
        "processes": {"all": distributed.place().n_ranks, "machines": distributed.place().n_nodes},
        "speed": asdict(ready.speed),
        "torch_threads": torch.get_num_threads(),
    }


def _stain_facts(data: BreakHisDataModule) -> Mapping[str, Any]:
    """What the stains of the images were brought to; nothing where they stay as they are."""
    return {} if data.stain is None else {"stain": data.stain.plain(), "n_stain_unchanged": data.n_stain_unchanged}
