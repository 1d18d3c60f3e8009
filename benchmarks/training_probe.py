"""Gives batches or trains in a process of its own; prints seconds and memory as JSON.

python -m benchmarks.training_probe "data path"|training <images> <cache> <image size> <rounds> <device> <precision>
"""

import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.bench import data_module, train_config
from benchmarks.memory import MemoryWatch
from benchmarks.probe import answer, timed
from benchmarks.quiet import quiet
from benchmarks.stopwatch import Limits, Stopwatch
from benchmarks.timing import waiter
from breakhis_pl.config import TrainConfig
from breakhis_pl.run import train
from breakhis_pl.training.speed import keep_freed_memory


def main() -> None:
    """Prints seconds of every pass or epoch, peak memory, and memory before the first."""
    phase, root, cache, size, rounds, device_name, precision = sys.argv[1:]
    device = torch.device(device_name)
    config = train_config(
        Path(root),
        Path(cache),
        f"data.image_size={size}",
        "data.split=ratio",
        f"trainer.precision={precision}",
        f"trainer.accelerator={'gpu' if device.type == 'cuda' else device.type}",
    )
    watch = MemoryWatch()
    work = _training if phase == "training" else _data_path
    seconds = work(config, device, int(rounds))
    is_cuda = device.type == "cuda"
    answer(seconds, watch, device_mb=torch.cuda.max_memory_allocated() / 1e6 if is_cuda else None)


def _data_path(config: TrainConfig, device: torch.device, rounds: int) -> list[float]:
    """Seconds of every pass over the train images."""
    if device.type == "cpu":
        keep_freed_memory()  # as training does
    data = data_module(config)
    wait = waiter(device)

    def one_pass() -> None:
        for rows in data.train_dataloader():
            data.batch(rows.to(device), epoch=0)
        wait()

    return timed(one_pass, rounds, warm_up=True)


def _training(config: TrainConfig, device: torch.device, rounds: int) -> list[float]:  # noqa: ARG001 - as _data_path
    """Seconds of every epoch but the first."""
    config.trainer.max_epochs = rounds + 1
    watch = Stopwatch(block=1, make_limits=lambda _trainer, _module: Limits.none())
    with tempfile.TemporaryDirectory() as folder, quiet():
        train(config, Path(folder), callbacks=[watch])
    return [epoch.whole for epoch in watch.epochs[1:]]


if __name__ == "__main__":
    main()
