"""What processes that share a run do in tests; they find it by its name, so it has a module of its own (no torch)."""

import os
import time
from pathlib import Path
from typing import Any

from breakhis_pl.errors import TrainingError
from breakhis_pl.processes import Place

BATCH, EVAL_BATCH = 11, 5
"""43 train images are three batches, shared by 6 and 5, and one by 5 and 5; 28 test images are 6 batches."""


def exact_config(cache: Path, **trainer: Any) -> Any:
    """A run that is the same in any number of processes: nothing in it depends on who sees an image."""
    from breakhis_pl.config import (
        AugmentationConfig,
        ExponentialConfig,
        ModelConfig,
        SGDConfig,
        SyntheticDataConfig,
        TensorBoardLoggerConfig,
        TrainConfig,
        TrainerConfig,
        TrainingConfig,
    )

    return TrainConfig(
        data=SyntheticDataConfig(
            cache_dir=str(cache),
            magnification=(200,),
            image_size=32,
            images_per_patient=1,
            width=64,
            batch_size=BATCH,
            eval_batch_size=EVAL_BATCH,
            val_fraction=0.2,
        ),
        augmentation=AugmentationConfig(0.0, 0.0, 0.0),
        model=ModelConfig(backbone="resnet18", weights="none", dropout=0.0, epochs=2),
        optimizer=SGDConfig(lr=0.01, momentum=0.9),
        scheduler=ExponentialConfig(),
        training=TrainingConfig(frozen_epochs=1),
        trainer=TrainerConfig(accelerator="cpu", max_epochs=2, progress_bar=False, **trainer),
        logger=TensorBoardLoggerConfig(),
        gallery=0,
    )


def frozen() -> Any:
    """A callback that keeps batch norm as it is."""
    import lightning.pytorch as L
    from torch import nn

    class Frozen(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
            for module in pl_module.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    return Frozen()


def train_and_evaluate(cache: Path, folder: Path, one: Path, place: Place) -> None:
    """Trains in `folder`; evaluates the run `one`, which a single process trained; notes what each process saw."""
    from breakhis_pl import evaluating, run
    from breakhis_pl.config import EvaluateConfig, EvaluateTrainerConfig
    from breakhis_pl.training import distributed

    with distributed.joined(place, "cpu"):
        run.train(exact_config(cache, strategy="ddp", devices=place.n_ranks), folder, callbacks=[frozen()])
        trainer = EvaluateTrainerConfig(strategy="ddp", devices=place.n_ranks, accelerator="cpu")
        evaluating.evaluate(EvaluateConfig(run=str(one), trainer=trainer, gallery=0))
        assert distributed.told(place.rank) == 0
        assert distributed.gathered(place.rank) == list(range(place.n_ranks))


def train_chosen(cache: Path, folder: Path, place: Place) -> None:
    """Trains with averaged weights and a chosen epoch; the first process takes its time over the files."""
    from breakhis_pl import run
    from breakhis_pl.training import distributed
    from breakhis_pl.training.background import BackgroundCheckpointIO

    flush = BackgroundCheckpointIO.flush

    def slow_flush(writer: BackgroundCheckpointIO) -> None:
        time.sleep(2)
        flush(writer)

    if place.rank == 0:
        BackgroundCheckpointIO.flush = slow_flush  # type: ignore[method-assign]
    with distributed.joined(place, "cpu"):
        config = exact_config(cache, strategy="ddp", devices=place.n_ranks, monitor="val_loss")
        config.training.ema_decay = 0.5
        run.train(config, folder)


def train_small_shares(cache: Path, folder: Path, place: Place) -> None:
    """Trains with a last batch of 3 images, of which one process gets a single one."""
    from breakhis_pl import run
    from breakhis_pl.training import distributed

    with distributed.joined(place, "cpu"):
        config = exact_config(cache, strategy="ddp", devices=place.n_ranks)
        config.data.batch_size = 10
        run.train(config, folder)


def fail(folder: Path, what: str, place: Place) -> None:
    """The second process goes wrong in some way, while the first one works on."""
    (folder / str(place.rank)).write_text(str(os.getpid()))
    if place.rank == 0:
        try:
            time.sleep(60)
        except BaseException as end:
            (folder / "end").write_text(type(end).__name__)
            raise
    if what == "ours":
        raise TrainingError("the loss is nan")
    if what == "other":
        raise ZeroDivisionError("division by zero")
    if what == "killed":
        os.kill(os.getpid(), 9)
    time.sleep(60)


def end_well(folder: Path, place: Place) -> None:
    """Nothing goes wrong."""
    (folder / str(place.rank)).write_text(f"{place.n_ranks} {place.local_rank} {place.n_nodes}")
