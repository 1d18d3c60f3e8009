"""Trainer, optimizer, schedule and loggers from the configuration."""

import inspect
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from hydra.utils import get_class, instantiate
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, ReduceLROnPlateau, SequentialLR

from breakhis_pl.config import TrainConfig
from breakhis_pl.errors import ConfigurationError
from breakhis_pl.run_folder import RunFolder, atomic_write
from breakhis_pl.training.callbacks import (
    HeadWarmup,
    History,
    LinearProbe,
    MovableCheckpoint,
    NaNGuard,
    ProgressBar,
)
from breakhis_pl.training.performance import side_stream


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside the old one and rename it; Lightning copies it from TMPDIR, maybe another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Replace a checkpoint; if that fails, the old one stays."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()  # torch's error of a full disk does not say so
        # on a stream of its own, the thread waits once for the steps that are queued, not for each tensor
        with side_stream() if torch.cuda.is_initialized() else nullcontext():  # type: ignore[no-untyped-call]
            torch.save(checkpoint, buffer)
        with atomic_write(Path(path)) as temporary:
            temporary.write_bytes(buffer.getbuffer())


def make_trainer(
    config: TrainConfig,
    run: RunFolder,
    *,
    device: str,
    precision: str,
    captures: bool = False,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
) -> L.Trainer:
    """Build the Trainer of a run.

    Args:
        config: The configuration.
        run: Where checkpoints and the history are written.
        device: "cuda", "mps" or "cpu".
        precision: Lightning's name.
        captures: Replay train steps as a CUDA graph.
        callbacks: Called before the run's own.
        loggers: Where curves are kept.
    """
    for message in (
        ".*does not have many workers.*",  # the loaders yield indices; workers would only make them slower
        ".*in eval mode at the start of training.*",  # a frozen backbone
        ".*configure_optimizers. returned .None.*",  # a linear probe
        ".*No (positive|negative) samples in targets.*",  # a subset without one of the classes
        ".*isinstance.treespec, LeafSpec.*",  # Lightning 2.6 with torch 2.15
        ".*AccumulateGrad node's stream does not match.*",  # a CUDA graph is captured on a stream of its own
        ".*Synchronization debug mode is a prototype.*",  # set while a CUDA graph is tried
        ".*capturable=True.*",  # the last batch of an epoch is stepped without the graph
        ".*smaller than the logging interval.*",  # history.csv and the loggers have one row per epoch
        ".*Checkpoint directory .* exists and is not empty.*",  # a resumed run
    ):
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    trainer = config.trainer
    # a frozen backbone leaves parameters without gradient, which DDP has to look for
    strategy = "ddp_find_unused_parameters_true" if config.training.frozen_epochs > 0 else "ddp"
    bar = [ProgressBar()] if trainer.progress_bar and sys.stderr.isatty() else []
    return L.Trainer(
        accelerator="gpu" if device == "cuda" else device,
        precision=precision,  # type: ignore[arg-type]
        strategy=strategy if trainer.is_distributed else "auto",
        devices=trainer.devices,
        num_nodes=trainer.num_nodes,
        max_epochs=trainer.max_epochs,
        limit_train_batches=trainer.limit_train_batches,
        fast_dev_run=trainer.fast_dev_run,
        deterministic=trainer.deterministic,
        num_sanity_val_steps=0,
        logger=list(loggers),
        callbacks=[*callbacks, *bar, *_make_callbacks(config, run, device=device, captures=captures)],
        # on a CPU the thread would slow the training
        plugins=[AsyncCheckpointIO(AtomicCheckpointIO()) if device == "cuda" else AtomicCheckpointIO()],
        enable_progress_bar=bool(bar),
        enable_model_summary=False,
        use_distributed_sampler=False,  # the datamodule's samplers know rank and epoch
        default_root_dir=run.path,
    )


def _make_callbacks(config: TrainConfig, run: RunFolder, *, device: str, captures: bool) -> Iterator[Callback]:
    trainer, training = config.trainer, config.training
    if config.is_linear_probe:
        yield LinearProbe(l2=config.model.l2, checkpoint=run.last_checkpoint)
    if training.frozen_epochs > 0:
        yield HeadWarmup(training.frozen_epochs)
    if captures:
        from breakhis_pl.training.cuda_graph_callback import CudaGraphs  # noqa: PLC0415 - on a GPU only

        yield CudaGraphs(batch_size=config.data.batch_size, is_required=trainer.cuda_graphs is True)
    yield NaNGuard()
    if training.ema_decay is not None:
        # without a device, Lightning keeps the average on the host
        yield EMAWeightAveraging(device=device if device == "cuda" else None, decay=training.ema_decay)
    yield History(run)
    if trainer.patience is not None and trainer.monitor is not None:
        yield EarlyStopping(trainer.monitor, patience=trainer.patience, mode=_mode(trainer.monitor))
    if config.is_linear_probe:
        return
    if trainer.monitor is not None:
        yield MovableCheckpoint(
            run.checkpoints,
            filename=run.best_checkpoint.stem,
            monitor=trainer.monitor,
            mode=_mode(trainer.monitor),
            enable_version_counter=False,
        )
    # a callback of its own: save_last=True writes last.ckpt only after epochs that are the best so far
    yield MovableCheckpoint(run.checkpoints, filename=run.last_checkpoint.stem, enable_version_counter=False)


def _mode(monitor: str) -> str:
    return "min" if monitor.endswith("_loss") else "max"


def make_optimizers(config: TrainConfig, network: nn.Module) -> OptimizerLRScheduler:
    """Build optimizer and schedule, which is stepped once an epoch.

    Args:
        config: The configuration.
        network: Its parameters that require gradients are trained.

    Raises:
        ConfigurationError: If a class does not exist, or does not take the arguments.
    """
    parameters: list[Any] = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if config.is_linear_probe:
        return None
    if config.training.layer_decay < 1:
        from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]  # noqa: PLC0415 - an extra

        weight_decay = getattr(config.optimizer, "weight_decay", 0.0)
        groups = param_groups_layer_decay(network, weight_decay, layer_decay=config.training.layer_decay)
        parameters = [group | {"lr": config.optimizer.lr * group.pop("lr_scale")} for group in groups]
    optimizer = _instantiate("optimizer", config.optimizer.model_dump(), parameters)
    if not isinstance(optimizer, Optimizer):
        raise ConfigurationError(f"optimizer._target_={config.optimizer.target}: is not an optimizer")
    scheduler = _instantiate("scheduler", config.scheduler.model_dump(), optimizer)
    if not isinstance(scheduler, LRScheduler):
        raise ConfigurationError(f"scheduler._target_={config.scheduler.target}: is not a scheduler")
    if isinstance(scheduler, ReduceLROnPlateau):
        monitor = config.trainer.monitor or "train_loss"
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": monitor}}
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}


def _instantiate(group: str, values: dict[str, Any], *arguments: Any) -> Any:
    """Instantiate a class by its import path.

    Raises:
        ConfigurationError: If it does not exist, or does not take the arguments.
    """
    keywords = {name: value for name, value in values.items() if name != "_target_"}
    try:
        return instantiate({"_target_": values["_target_"], "_convert_": "all"}, *arguments, **keywords)
    except Exception as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ConfigurationError(f"{group}._target_={values['_target_']}: cannot be used ({reason})") from error


def warmup_cosine(optimizer: Optimizer, *, T_max: int, warmup_epochs: int, eta_min: float) -> LRScheduler:
    """Build a linear rise of the learning rate, then half a cosine down.

    Args:
        optimizer: Whose learning rate changes.
        T_max: Epochs in all.
        warmup_epochs: Epochs of the rise; in the first one the learning rate is 1/(warmup_epochs + 1) of its highest.
        eta_min: Lowest learning rate.
    """
    cosine = CosineAnnealingLR(optimizer, T_max - warmup_epochs, eta_min)
    if warmup_epochs == 0:
        return cosine
    rise = LinearLR(optimizer, start_factor=1 / (warmup_epochs + 1), total_iters=warmup_epochs)
    return SequentialLR(optimizer, [rise, cosine], [warmup_epochs])


def make_loggers(config: TrainConfig, folder: Path, *, run_ids: dict[str, str]) -> dict[str, Logger]:
    """Build the loggers, which write into the run folder or to their server.

    Args:
        config: The configuration.
        folder: The run folder.
        run_ids: Identifier by logger of the run that is resumed; empty for a new run.
    """
    loggers = {}
    for name, logger in config.logger.items():
        accepted = inspect.signature(get_class(logger.target)).parameters
        names = (name if number == 1 else f"{name}_{number}" for number in count(1))
        version = next(each for each in names if not (folder / each).exists())  # CSVLogger deletes older metrics
        own = {"save_dir": str(folder), "name": "", "version": version}
        if name in run_ids:
            own |= {"run_id": run_ids[name], "id": run_ids[name]}
        given = {key: value for key, value in own.items() if key in accepted}
        if "run_id" in accepted or "id" in accepted:  # MLflow and W&B name runs themselves
            given = {key: value for key, value in given.items() if key not in ("name", "version")}
        loggers[name] = _instantiate(f"logger.{name}", logger.model_dump() | given)
    return loggers
