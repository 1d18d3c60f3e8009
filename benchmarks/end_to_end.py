"""Whole epochs of a real run against the step limit and against plain Lightning over ImageFolder."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from benchmarks.bench import Bench
from benchmarks.images import linked, n_cores
from benchmarks.limit import Case, Mode
from benchmarks.quiet import quiet
from benchmarks.rivals import PlainClassifier, image_folder_loader
from benchmarks.step import fastest_mode, free
from benchmarks.stopwatch import Limits, Stopwatch
from benchmarks.timing import Measurement
from breakhis_pl.config import TrainConfig
from breakhis_pl.data.breakhis import Subset
from breakhis_pl.data.datamodule import BreakHisDataModule
from breakhis_pl.run import train


def measure(bench: Bench, steps: Iterable[Measurement]) -> list[Measurement]:
    """Speed of whole epochs, as shares of the limit and as multiples of plain Lightning.

    Args:
        bench: What is measured with.
        steps: Figures of `step.measure`, which tell the fastest mode.
    """
    figures, found = list(steps), []
    for network in bench.plan.networks:
        for batch_size in bench.plan.batch_sizes:
            fastest = [fastest_mode(figures, network, batch_size, what=what) for what in ("train", "forward")]
            own = _run(bench, network, batch_size, fastest if figures else [])
            free()
            found += _figures(f"{network}, batch {batch_size}", own)
            if network in bench.plan.networks[: bench.plan.n_plain] and batch_size == bench.plan.batch_sizes[0]:
                plain = _run_plain(bench, network, batch_size, own.modes[:1])
                free()
                found += _against(f"{network}, batch {batch_size}", own, plain)
    return found


def share_name(network: str, batch_size: int) -> str:
    """Name of the share of the limit that whole epochs reach."""
    return f"{network}, batch {batch_size}: share of limit"


def train_part_name(network: str, batch_size: int) -> str:
    """Name of the share of the step limit that the train part of epochs reaches."""
    return f"{network}, batch {batch_size}: train part"


def plain_name(network: str, batch_size: int) -> str:
    """Name of the multiple of plain Lightning."""
    return f"{network}, batch {batch_size}: ours against plain"


def _figures(name: str, watch: Stopwatch) -> list[Measurement]:
    rounds, own, fastest = watch.rounds(), watch.modes[:1], watch.modes
    found = [
        Measurement(f"{name}: ours", "images/s", tuple(each.images_per_second for each in rounds)),
        Measurement(f"{name}: share of limit", "", tuple(each.share(fastest) for each in rounds)),
        Measurement(f"{name}: train part", "", tuple(each.train_share(fastest) for each in rounds)),
        Measurement(f"{name}: test part", "", tuple(each.test_share(fastest) for each in rounds)),
    ]
    if own != fastest:
        shares = tuple(each.share(own) for each in rounds)
        found.append(Measurement(f"{name}: share of limit, {own[0].value} only", "", shares))
    for what in ("train", "test"):
        rates = tuple(max(getattr(each.limit, what).values()) for each in rounds)
        found.append(Measurement(f"{name}: {what} limit", "images/s", rates))
    return found


def _against(name: str, own: Stopwatch, plain: Stopwatch) -> list[Measurement]:
    """Both trainings are measured against the limit beside them, so that a machine that changes favors none."""
    modes = plain.modes
    pairs = list(zip(own.rounds(), plain.rounds(), strict=True))
    return [
        Measurement(f"{name}: plain Lightning", "images/s", tuple(each.images_per_second for _, each in pairs)),
        Measurement(f"{name}: ours against plain", "x", tuple(a.share(modes) / b.share(modes) for a, b in pairs)),
    ]


def _run(bench: Bench, network: str, batch_size: int, fastest: Sequence[Mode]) -> Stopwatch:
    """A run of `breakhis_pl.run.train`, timed."""
    plan = bench.plan
    config = bench.config(
        plan.n_images,
        f"model={network}",
        f"data.image_size={plan.image_size}",
        f"data.batch_size={batch_size}",
        f"data.split={plan.split}",
        f"trainer.max_epochs={plan.block * (plan.rounds + 1)}",
    )

    # the limit is one of whole batches; what an odd last one costs is no matter of the loop around it
    config.trainer.limit_train_batches = max(1, _n_train(config) // batch_size)

    def make_limits(trainer: L.Trainer, module: L.LightningModule) -> Limits:
        data, optimizer = trainer.datamodule, trainer.optimizers[0].defaults  # type: ignore[attr-defined]
        train_case, test_case = _cases(bench, network, batch_size, data)
        return Limits(
            train_case,
            test_case,
            modes=[_own_mode(module), *fastest],
            seconds=plan.limit_s,
            optimizer={"foreach": optimizer.get("foreach")},
        )

    watch = Stopwatch(block=plan.block, make_limits=make_limits)
    folder = bench.folder / f"run-{network}-{batch_size}"
    folder.mkdir()
    with quiet():
        train(config, folder, callbacks=[watch])
    return watch


def _n_train(config: TrainConfig) -> int:
    data = BreakHisDataModule(config.data, config.augmentation, seed=config.seed, show_progress=False)
    data.index()
    return len(data.split.indices(Subset.TRAIN))


def _cases(bench: Bench, network: str, batch_size: int, data: BreakHisDataModule) -> tuple[Case, Case]:
    """What the limit does: batches as large as the run's."""
    n_train, n_test = (len(data.split.indices(subset)) for subset in (Subset.TRAIN, Subset.TEST))
    loader = data.val_dataloader()[-1]
    train_size, test_size = min(batch_size, n_train), min(loader.batch_size or batch_size, n_test)
    size = bench.plan.image_size
    return (
        Case(network, size, train_size, bench.precision, bench.device),
        Case(network, size, test_size, bench.precision, bench.device),
    )


def _own_mode(module: L.LightningModule) -> Mode:
    """The memory format that a run has chosen."""
    weight = next(layer.weight for layer in module.modules() if isinstance(layer, nn.Conv2d))
    is_channels_last = weight.is_contiguous(memory_format=torch.channels_last)
    return Mode.CHANNELS_LAST if is_channels_last else Mode.CONTIGUOUS


def _run_plain(bench: Bench, network: str, batch_size: int, modes: Sequence[Mode]) -> Stopwatch:
    """Plain Lightning on the same images and split, with its default logger and checkpoints, timed."""
    plan = bench.plan
    config = bench.config(plan.n_images, f"data.split={plan.split}")
    train_root, test_root = _split_trees(config, bench.folder / f"plain-{network}-{batch_size}")
    sizes: dict[str, Any] = {
        "side": plan.image_size,
        "batch_size": batch_size,
        "n_workers": n_cores(),
        "pin_memory": bench.device.type == "cuda",
    }
    loaders = (
        image_folder_loader(train_root, **sizes),
        image_folder_loader(test_root, is_training=False, **sizes),
    )
    case = Case(network, plan.image_size, batch_size, bench.precision, bench.device)
    watch = Stopwatch(
        block=1,
        make_limits=lambda _trainer, _module: Limits(case, case, modes=modes, seconds=plan.limit_s, optimizer={}),
    )
    with quiet():
        trainer = L.Trainer(
            accelerator="gpu" if bench.device.type == "cuda" else bench.device.type,
            devices=1,
            precision=bench.precision,  # type: ignore[arg-type]  # one of config.PRECISIONS
            max_epochs=plan.rounds + 1,
            logger=TensorBoardLogger(train_root.parent),
            default_root_dir=train_root.parent,
            callbacks=[watch],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(PlainClassifier(network), *loaders)
    return watch


def _split_trees(config: TrainConfig, folder: Path) -> tuple[Path, Path]:
    """Trees of the train and of the test images of a configuration."""
    data = BreakHisDataModule(config.data, config.augmentation, seed=config.seed, show_progress=False)
    data.index()
    train_root, test_root = (
        linked([data.split.records[place] for place in data.split.indices(subset)], folder / subset)
        for subset in (Subset.TRAIN, Subset.TEST)
    )
    return train_root, test_root
