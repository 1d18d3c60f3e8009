"""Augmented, normalized batches per second: ours against ImageFolder with workers and against timm's loader."""

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.bench import Bench, data_module
from benchmarks.images import n_cores
from benchmarks.rivals import image_folder_loader, timm_loader
from benchmarks.timing import Measurement, alternate, waiter
from breakhis_pl.data.datamodule import BreakHisDataModule

BATCH_SIZE = 32
OURS, FOLDER, COPIES, TIMM = "ours", "ImageFolder", "ImageFolder, small PNGs", "timm"


def measure(bench: Bench) -> list[Measurement]:
    """Images per second of whole passes, and how many times as many ours gives."""
    plan = bench.plan
    config = bench.config(
        plan.n_loader_images,
        f"data.image_size={plan.loader_size}",
        f"data.batch_size={BATCH_SIZE}",
        "data.split=ratio",
        "data.test_fraction=0.1",
    )
    data = data_module(config)
    sizes: dict[str, Any] = {"side": plan.loader_size, "batch_size": BATCH_SIZE, "n_workers": n_cores()}
    originals, is_gpu = bench.subset(plan.n_loader_images), bench.device.type == "cuda"
    passes = {
        OURS: _our_passes(bench, data),
        FOLDER: _pass(bench, image_folder_loader(originals, pin_memory=is_gpu, **sizes)),
        COPIES: _pass(bench, image_folder_loader(bench.copies(), pin_memory=is_gpu, **sizes)),
        TIMM: _pass(bench, timm_loader(originals, device=bench.device, **sizes)),
    }
    rounds = alternate(passes, rounds=plan.rounds, wait=waiter(bench.device))
    data.release()
    speeds = [Measurement(name, "images/s", rounds.rates(name)) for name in passes]
    rivals = [name for name in passes if name != OURS]
    return speeds + [Measurement(f"ours against {name}", "x", rounds.ratios(OURS, name)) for name in rivals]


def own_pass(data: BreakHisDataModule, bench: Bench, *, epoch: int) -> int:
    """One pass over the train images as training sees them; their number."""
    n_images = 0
    for rows in data.train_dataloader():
        n_images += len(data.batch(rows.to(bench.device), epoch=epoch).targets)
    return n_images


def _our_passes(bench: Bench, data: BreakHisDataModule) -> Callable[[], float]:
    def run() -> float:
        return sum(own_pass(data, bench, epoch=epoch) for epoch in range(bench.plan.own_passes))

    return run


def _pass(bench: Bench, loader: Iterable[Any]) -> Callable[[], float]:
    def run() -> float:
        n_images = 0
        for images, targets in loader:
            images.to(bench.device, non_blocking=True)
            n_images += len(targets)
        return n_images

    return run
