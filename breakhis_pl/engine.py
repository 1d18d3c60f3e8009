"""Lightning's Trainer as this package uses it, and what goes into it."""

import gc
import logging
import signal
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import lightning.pytorch as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn

from breakhis_pl.config import TrainConfig
from breakhis_pl.data.datamodule import BreakHisDataModule
from breakhis_pl.models.classifier import Classifier
from breakhis_pl.models.stages import ParameterGroup
from breakhis_pl.training import distributed
from breakhis_pl.training.averaging import AveragedWeights
from breakhis_pl.training.frozen_start import FrozenStart
from breakhis_pl.training.graphs import CudaGraphs
from breakhis_pl.training.progress import RunProgressBar
from breakhis_pl.training.speed import Speed, keep_freed_memory, resolve_speed


def make_fast(config: TrainConfig, data: BreakHisDataModule, accelerator: str) -> Speed:
    """Decides what makes this run fast, and tells the data."""
    speed = resolve_speed(config, accelerator, n_pixel_bytes=len(data.records) * 3 * config.data.image_size**2)
    data.is_resident = speed.pixels == "device"
    data.memory_format = speed.torch_memory_format
    data.eval_batch_size = speed.eval_batch_size
    data.place = distributed.place()
    if speed.keep_memory:
        keep_freed_memory()
    return speed


def graphs(config: TrainConfig, speed: Speed) -> list[L.Callback]:
    """The callback that captures train steps, where that is wanted."""
    if not speed.cuda_graphs:
        return []
    return [
        CudaGraphs(
            batch_size=config.data.batch_size,
            image_size=config.data.image_size,
            memory_format=speed.torch_memory_format,
            first_epoch=config.training.frozen_epochs,
            is_asked=config.trainer.cuda_graphs is True,
        )
    ]


def frozen_start(config: TrainConfig) -> list[L.Callback]:
    """The callback that trains the head alone at first, where that is wanted; before `graphs`, which captures all."""
    return [FrozenStart(config.training.frozen_epochs)] if config.training.frozen_epochs > 0 else []


def averaged_weights(config: TrainConfig) -> list[L.Callback]:
    """The callback that averages weights, where that is wanted; after `FiniteTraining`, which looks at the weights."""
    return [] if config.training.ema_decay is None else [AveragedWeights(config.training.ema_decay)]


def make_trainer(
    config: TrainConfig,
    *,
    accelerator: str,
    precision: str,
    callbacks: list[L.Callback],
    plugins: Sequence[CheckpointIO] = (),
) -> L.Trainer:
    """A Trainer that leaves logging, checkpoints and bars to the callbacks given."""
    # the loaders hand out numbers; workers would only make them slower
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # what is frozen is to be in that mode
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
    # Lightning 2.6.6 uses a class that torch 2.15 deprecates; can go with the next Lightning
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    # a graph was captured on a stream of its own; torch waits for it where it has to
    warnings.filterwarnings("ignore", message=".*AccumulateGrad node's stream does not match.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    arguments = distributed.trainer_arguments()
    callbacks = [*arguments.pop("callbacks"), *callbacks]
    return L.Trainer(
        accelerator=accelerator,
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
        plugins=[*arguments.pop("plugins"), *plugins],
        **arguments,
    )


def fit(trainer: L.Trainer, classifier: Classifier, data: BreakHisDataModule, *, checkpoint: Path | None) -> None:
    """Trains; Ctrl-C stays Ctrl-C.

    Args:
        trainer: From `make_trainer`.
        classifier: To be trained.
        data: The run's data.
        checkpoint: State to go on from; None starts anew.

    Raises:
        KeyboardInterrupt: If the training was interrupted.
    """
    with _interruptions_kept(trainer):
        trainer.fit(classifier, datamodule=data, ckpt_path=checkpoint, weights_only=True)


def evaluate_subsets(trainer: L.Trainer, classifier: Classifier, data: BreakHisDataModule) -> None:
    """Evaluates the subsets that the data is asked for; Ctrl-C stays Ctrl-C.

    Args:
        trainer: From `make_trainer`.
        classifier: As it is.
        data: The run's data.

    Raises:
        KeyboardInterrupt: If the evaluation was interrupted.
    """
    with _interruptions_kept(trainer):
        trainer.validate(classifier, datamodule=data, verbose=False)


@contextmanager
def _interruptions_kept(trainer: L.Trainer) -> Iterator[None]:
    """Gives Ctrl-C back.

    Lightning 2.6 makes exit status 1 of it and ignores further ones (`_call_and_handle_interrupt`).

    Raises:
        KeyboardInterrupt: If there was one.
    """
    try:
        yield
    except SystemExit as end:
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt from end


def make_optimizers(config: TrainConfig, parameters: Iterable[nn.Parameter | ParameterGroup]) -> OptimizerLRScheduler:
    """The optimizer and the schedule, stepped once an epoch; a group of parameters has its own learning rate."""
    params = [
        {"params": list(each.parameters), "lr": config.optimizer.lr * each.rate}
        if isinstance(each, ParameterGroup)
        else each
        for each in parameters
    ]
    optimizer = instantiate(asdict(config.optimizer), _partial_=True)(params)
    scheduler = instantiate(asdict(config.scheduler), optimizer=optimizer)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}


def free_device(data: BreakHisDataModule) -> None:
    """Gives the device back to the next run of a sweep."""
    data.release()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
