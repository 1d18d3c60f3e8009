"""Measure train.py on a CPU: rate, time to the first batch, peak memory, building the cache; and what it could reach.

Usage: uv run python -m benchmarks.speed --images <folder> --originals <folder> [--against <checkout>] [--rounds 5]

Every measurement of train.py is a process of its own, alternating with another checkout. The table has medians, and the
ratio of this checkout to the other one. Then follow, in this process, the rates of the data path alone, of train steps
on one batch in memory, and of plain Lightning over torchvision's ImageFolder.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from breakhis_pl.config import TrainConfig
    from breakhis_pl.data.datamodule import BreakHisDataModule

HERE = Path(__file__).resolve().parent.parent
FIRST_BATCH = """
import os, runpy, sys, time
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop as Loop
advance = Loop.advance
def stop(self, *arguments):
    advance(self, *arguments)
    print("seconds", time.time() - float(os.environ["START"]), flush=True)
    os._exit(0)
Loop.advance = stop
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
BUILD_CACHE = """
import sys, tempfile, time
from pathlib import Path
root, start = Path(sys.argv[1]), time.perf_counter
try:
    from breakhis_pl.data.breakhis import open_breakhis
    from breakhis_pl.data.image_cache import ImageCache
    from breakhis_pl.training.performance import keep_freed_memory
    keep_freed_memory()  # as train.py does on a CPU
    records = open_breakhis(root, task="binary", magnifications=(200,), require_complete=False).records
    build = lambda folder: ImageCache.open(records, image_size=224, folder=folder, progress_bar=False)
except ImportError:  # before the rebuild
    from breakhis_pl.data.index import index_images
    from breakhis_pl.data.store import open_store
    records = index_images(root, (200,))
    build = lambda folder: open_store(records, image_size=224, cache_dir=folder, show_progress=False)
with tempfile.TemporaryDirectory() as folder:
    begin = start(); build(Path(folder)); print("build", start() - begin)
    begin = start(); build(Path(folder)); print("open", start() - begin)
"""


def run(checkout: Path, *command: str, cwd: Path) -> tuple[str, float]:
    """Run Python in a checkout; return its output and its peak memory in MB."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "START": str(time.time())}
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, *command],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise RuntimeError(output[-2000:])
    return output, usage.ru_maxrss / 1024


def measure(checkout: Path, images: Path, originals: Path | None, cache: Path) -> dict[str, float]:
    """Take every measurement once.

    Args:
        checkout: Checkout that is measured.
        images: Folder of BreakHis images at 200X.
        originals: Folder of images of the original size, for the cache; None leaves it out.
        cache: Folder of image caches that the rounds share.
    """
    values = {}
    keys = ["data=breakhis", f"data.root={images}", "data.require_complete=false", "model.weights=none", "gallery=0"]
    keys += [f"data.cache_dir={cache}", "trainer=cpu", "trainer.progress_bar=false", "seed=0"]
    for size, n_batches in ((64, 17), (224, 4)):
        with tempfile.TemporaryDirectory() as folder:
            own = [f"data.image_size={size}", f"trainer.limit_train_batches={n_batches}", "trainer.max_epochs=3"]
            train = [str(checkout / "train.py"), *keys, *own, "hydra.run.dir=run"]
            _, memory = run(checkout, *train, cwd=Path(folder))
            rates = pd.read_csv(Path(folder, "run", "history.csv"))["images_per_second"]
            values[f"images/s at {size} px"] = float(rates[1:].max())  # the first epoch warms up
            values[f"peak memory at {size} px (MB)"] = memory
    with tempfile.TemporaryDirectory() as folder:
        train = [str(checkout / "train.py"), *keys, "data.image_size=64", "hydra.run.dir=run"]
        output, _ = run(checkout, "-c", FIRST_BATCH, *train, cwd=Path(folder))
        values["time to the first batch (s)"] = float(output.rpartition("seconds")[2])
    if originals is not None:
        output, _ = run(checkout, "-c", BUILD_CACHE, str(originals), cwd=checkout)
        for line in output.splitlines():
            if line.startswith(("build ", "open ")):
                values[f"{line.split()[0]} the cache (s)"] = float(line.split()[1])
    return values


def measure_limits(images: Path, cache: Path, *, image_size: int) -> dict[str, float]:
    """Measure rates to judge those of train.py by; images per second.

    Args:
        images: Folder of BreakHis images at 200X.
        cache: Folder of image caches.
        image_size: Side in pixels.
    """
    import torch  # noqa: PLC0415 - the processes above need no torch here
    from hydra import compose, initialize_config_dir  # noqa: PLC0415

    from breakhis_pl.config import TrainConfig, validate  # noqa: PLC0415
    from breakhis_pl.train import make_classifier, make_data  # noqa: PLC0415
    from breakhis_pl.training.performance import keep_freed_memory  # noqa: PLC0415

    keys = [f"data.root={images}", f"data.cache_dir={cache}", f"data.image_size={image_size}", "trainer=cpu"]
    keys += ["trainer.keep_memory=false"]  # until the plain loop is measured, which has none of it
    with initialize_config_dir(str(HERE / "conf"), version_base="1.3"):
        composed = compose("train", [*keys, "data.require_complete=false", "model.weights=none"])
    config = validate(TrainConfig, composed)
    data = make_data(config, device="cpu", evaluate_on=())
    plain = measure_plain_lightning(data, config)
    keep_freed_memory()
    classifier = make_classifier(config, data, pretrained=False)
    network = classifier.network.train()
    optimizer = torch.optim.Adamax(network.parameters())
    indices = list(data.train_dataloader())
    batch = data.batch(indices[0], epoch=0)

    def step() -> int:
        loss = torch.nn.functional.cross_entropy(network(batch.images), batch.targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        network.zero_grad()
        return len(batch.targets)

    return {
        f"data path at {image_size} px": rate(lambda: len(data.batch(indices[0], epoch=1).images)),
        f"steps on one batch at {image_size} px": rate(step),
        f"plain Lightning over ImageFolder at {image_size} px": plain,
    }


def rate(function: Callable[[], int], seconds: float = 10) -> float:
    """Call a function for some seconds after a warm-up; return the items it counts per second."""
    for _ in range(8):  # the first steps of a network take seconds
        function()
    n, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        n += function()
    return n / (time.perf_counter() - start)


def measure_plain_lightning(
    data: "BreakHisDataModule",
    config: "TrainConfig",
    *,
    network: str = "resnet18",
    accelerator: str = "cpu",
    n_workers: int = 2,
    n_epochs: int = 3,
) -> float:
    """Train a network of torchvision over ImageFolder as Otto et al. 2022; return images/s of the best epoch.

    It is what one would write first: float32, the transforms in the workers of a DataLoader.
    """
    import lightning.pytorch as L  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from torchvision import datasets, models, transforms  # noqa: PLC0415

    from breakhis_pl.data.export import export_split  # noqa: PLC0415

    class Plain(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.seconds, self.start = models.get_model(network, num_classes=2), list[float](), 0.0

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adamax(self.parameters())

        def on_train_epoch_start(self) -> None:
            self.start = time.perf_counter()

        def on_train_epoch_end(self) -> None:
            self.network.fc.bias.sum().item()  # waits for a GPU
            self.seconds.append(time.perf_counter() - self.start)

    size, flips = config.data.image_size, [transforms.RandomHorizontalFlip(), transforms.RandomVerticalFlip()]
    rotation = transforms.RandomRotation(config.augmentation.rotation)
    normalize = transforms.Normalize(data.mean, data.std)
    transform = transforms.Compose(
        [transforms.Resize((size, size)), *flips, rotation, transforms.ToTensor(), normalize]
    )
    with tempfile.TemporaryDirectory() as folder:
        export_split(data.split, Path(folder, "images"), copy=False)
        images = datasets.ImageFolder(str(Path(folder, "images", "train")), transform)
        loader = torch.utils.data.DataLoader(images, 32, shuffle=True, num_workers=n_workers, persistent_workers=True)
        module = Plain()
        trainer = L.Trainer(
            max_epochs=n_epochs,
            accelerator=accelerator,
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader)
        return len(images) / min(module.seconds[1:])  # workers fetch images before the first epoch


def main() -> None:
    """Print the tables, and write all measurements as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of BreakHis images at 200X")
    parser.add_argument("--originals", type=Path, help="folder of images of the original size, for the cache")
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file for all measurements")
    options = parser.parse_args()
    checkouts = {"this": HERE} | ({"other": options.against.resolve()} if options.against else {})
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as cache:
        for number in range(options.rounds):
            order = list(checkouts) if number % 2 == 0 else list(checkouts)[::-1]
            for name in order:
                originals = None if options.originals is None else options.originals.resolve()
                rows[name].append(measure(checkouts[name], options.images.resolve(), originals, Path(cache, name)))
                sys.stderr.write(f"round {number + 1}, {name}: {rows[name][-1]}\n")
    if options.out is not None:
        options.out.write_text(json.dumps(rows, indent=2))
    table = pd.DataFrame(
        {name: {key: statistics.median(row[key] for row in of) for key in of[0]} for name, of in rows.items()}
    )
    if "other" in table:
        table["this / other"] = table["this"] / table["other"]
    sys.stdout.write(f"{table.to_string(float_format='{:.3g}'.format)}\n")
    with tempfile.TemporaryDirectory() as cache:
        for size in (64, 224):
            for name, value in measure_limits(options.images.resolve(), Path(cache), image_size=size).items():
                sys.stdout.write(f"{name}: {value:,.1f} images/s\n")


if __name__ == "__main__":
    main()
