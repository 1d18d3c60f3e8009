"""One variant of one trial in a process of its own; prints its speed and its cold seconds as JSON.

python -m benchmarks.trial '<settings as JSON>'
"""

import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy
from torchvision.io import ImageReadMode, decode_png

from benchmarks.limit import Case, Mode, Steps, forward_steps, train_steps
from benchmarks.timing import waiter
from breakhis_pl.config import AugmentationConfig
from breakhis_pl.data.augment import Augmentation, AugmentationDraws, draw_augmentation, resample, to_network_input
from breakhis_pl.training.speed import keep_freed_memory

N_STORED = 512
"""Images that batches are gathered from."""

Settings = Mapping[str, Any]
Work = Callable[[], int]


def main() -> None:
    """Prints images per second, and the seconds until the first piece of work was done."""
    settings: Settings = json.loads(sys.argv[1])
    # torchvision 0.29 says at every call that its decoders will be removed
    warnings.filterwarnings("ignore", message="The image decoding and encoding capabilities")
    if settings.get("keep_memory", True):
        keep_freed_memory()
    if "threads" in settings:
        torch.set_num_threads(settings["threads"])
    started = time.perf_counter()
    work = _WORK[settings["what"]](settings)
    work()
    cold = time.perf_counter() - started
    wait, seconds = waiter(torch.device(settings["device"])), settings["seconds"]
    wait()
    started, n_done = time.perf_counter(), 0
    while True:
        n_done += work()
        wait()
        elapsed = time.perf_counter() - started
        if elapsed >= seconds:
            break
    sys.stdout.write(json.dumps({"rate": n_done / elapsed, "cold_s": cold}) + "\n")


def _case(settings: Settings) -> Case:
    device = torch.device(settings["device"])
    return Case(settings["network"], settings["size"], settings["batch"], settings["precision"], device)


def _train(settings: Settings) -> Work:
    kind = {"adamax": torch.optim.Adamax, "adamw": torch.optim.AdamW}[settings.get("optimizer", "adamax")]
    options = settings.get("options", {})
    return _paced(train_steps(_case(settings), Mode(settings["mode"]), optimizer=options, kind=kind), settings)


def _forward(settings: Settings) -> Work:
    return _paced(forward_steps(_case(settings), Mode(settings["mode"])), settings)


def _paced(steps: Steps, settings: Settings) -> Work:
    n_steps = steps.pace(settings["seconds"] / 2)
    return lambda: steps.run(n_steps)


def _metrics(settings: Settings) -> Work:
    """Loss and accuracy of the batches of an epoch, read at its end."""
    device = torch.device(settings["device"])
    logits, targets = torch.randn((32, 2), device=device), torch.arange(32, device=device) % 2
    loss = functional.cross_entropy(logits, targets)
    n_batches = 45

    def with_torchmetrics() -> int:
        mean_loss = MeanMetric(nan_strategy="disable").to(device)
        accuracy = MulticlassAccuracy(2, average="micro", validate_args=settings["validate_args"]).to(device)
        for _ in range(n_batches):
            mean_loss.update(loss.expand(32))
            accuracy.update(logits, targets)
        float(mean_loss.compute()), float(accuracy.compute())
        return 32 * n_batches

    def with_sums() -> int:
        sums = torch.zeros(3, device=device)
        for _ in range(n_batches):
            n_right = (logits.argmax(dim=1) == targets).sum()
            sums += torch.stack([loss * 32, n_right.float(), torch.full_like(loss, 32)])
        sums.tolist()
        return 32 * n_batches

    return with_torchmetrics if settings["by"] == "torchmetrics" else with_sums


def _augmentation(settings: Settings) -> Work:
    """Batches of random pixels, flipped, rotated and normalized."""
    device, size = torch.device(settings["device"]), settings["size"]
    batch: int = settings["batch"]
    pixels = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, device=device)
    mean, std = torch.full((3,), 0.7, device=device), torch.full((3,), 0.1, device=device)
    draws = draw_augmentation(batch, AugmentationConfig(), seed=0, epoch=0)
    matrices = draws.matrices().to(device)
    flips = [flip.to(device).view(-1, 1, 1, 1) for flip in (draws.horizontal_flip, draws.vertical_flip)]
    upright = torch.zeros_like(draws.horizontal_flip)
    rotation = AugmentationDraws(upright, upright, draws.angle).matrices().to(device)

    def at_once() -> int:
        to_network_input(pixels, mean=mean, std=std, augmentation=Augmentation(matrices))
        return batch

    def in_three() -> int:
        images = pixels.permute(0, 3, 1, 2).float()  # (batch, 3, size, size)
        for flip, axis in zip(flips, (3, 2), strict=True):
            images = torch.where(flip, images.flip(axis), images)
        images = resample(images, rotation)
        images = (images / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        images.contiguous(memory_format=torch.channels_last)
        return batch

    return at_once if settings["by"] == "one resampling" else in_three


def _gather(settings: Settings) -> Work:
    """The pixels of random rows on the device."""
    device, size = torch.device(settings["device"]), settings["size"]
    batch: int = settings["batch"]
    is_host = settings["by"] == "page-locked host"
    stored = torch.randint(0, 256, (N_STORED, size, size, 3), dtype=torch.uint8, device="cpu" if is_host else device)
    rows = torch.randperm(N_STORED, device=stored.device)[:batch]
    pinned = torch.empty((batch, size, size, 3), dtype=torch.uint8, pin_memory=is_host)

    def run() -> int:
        match settings["by"]:
            case "index_select":
                stored.index_select(0, rows)
            case "brackets":
                stored[rows]
            case "page-locked host":
                torch.index_select(stored, 0, rows, out=pinned)
                pinned.to(device, non_blocking=True)
                waiter(device)()  # the buffer is used again
            case other:
                raise ValueError(f"by={other} is not possible")
        return batch

    return run


def _decoder(settings: Settings) -> Work:
    """PNG files that lie in memory, decoded one after another."""
    files = [Path(name).read_bytes() for name in settings["files"]]
    tensors = [torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in files]

    def with_pillow() -> int:
        for content in files:
            with Image.open(BytesIO(content), formats=["PNG"]) as image:
                np.array(image)
        return len(files)

    def with_torchvision() -> int:
        for content in tensors:
            decode_png(content, mode=ImageReadMode.RGB)
        return len(files)

    return with_pillow if settings["by"] == "Pillow" else with_torchvision


def _resize(settings: Settings) -> Work:
    """One decoded image after another, made square."""
    size = settings["size"]
    pixels = np.random.default_rng(0).integers(0, 256, (460, 700, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    batch: Tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None]  # (1, 3, height, width)

    def with_torch() -> int:
        functional.interpolate(batch, (size, size), mode="bilinear", antialias=True)
        return 1

    def with_pillow() -> int:
        np.array(picture.resize((size, size), Image.Resampling.BILINEAR))
        return 1

    return with_torch if settings["by"] == "torch" else with_pillow


_WORK: Mapping[str, Callable[[Settings], Work]] = {
    "train": _train,
    "forward": _forward,
    "metrics": _metrics,
    "augmentation": _augmentation,
    "gather": _gather,
    "decoder": _decoder,
    "resize": _resize,
}

if __name__ == "__main__":
    main()
