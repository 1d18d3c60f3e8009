"""Measure on one GPU, in one call of less than nine minutes: limits, epochs, a plain loop, a sweep, and run its tests.

Usage: uv run python -m benchmarks.gpu --out <folder> [--images <folder of BreakHis images at 200X>]

Without --images, 25 images of 700x460 per patient are generated. Writes gpu.json after every part, and gpu.md for
docs/performance.md. `--quick` tries the script on a CPU with a few small images.
"""

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from benchmarks.speed import measure_plain_lightning
from breakhis_pl.config import TrainConfig, validate
from breakhis_pl.data.dataset import Subset
from breakhis_pl.train import make_data, train
from breakhis_pl.training.cuda_graph import capture
from breakhis_pl.training.performance import side_stream

HERE = Path(__file__).resolve().parent.parent
NETWORKS = {"resnet18": "resnet18", "wide_resnet50": "wide_resnet50_2", "resnext50": "resnext50_32x4d"}
"""Names of torchvision by names of conf/model."""


def configuration(*overrides: str) -> TrainConfig:
    """Compose a configuration of train.py."""
    with initialize_config_dir(str(HERE / "conf"), version_base="1.3"):
        return validate(TrainConfig, compose("train", list(overrides)))


def per_second(function: Callable[[], Any], *, device: str, seconds: float) -> float:
    """Call a function for some seconds after a warm-up; return calls per second."""
    is_cuda = device == "cuda"
    for _ in range(3):
        function()
    n, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(10 if is_cuda else 1):
            function()
            n += 1
        if is_cuda:
            torch.cuda.synchronize()
    return n / (time.perf_counter() - start)


def peak_tflops(device: str) -> dict[str, float]:
    """Multiply bf16 matrices; return the operations per second in units of 10^12."""
    size = 8192 if device == "cuda" else 512
    left, right = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    return {"tflops": per_second(lambda: left @ right, device=device, seconds=2) * 2 * size**3 / 1e12}


def step_limit(name: str, batch_size: int, *, image_size: int, device: str) -> dict[str, float]:
    """Train on one batch in memory, forward, backward and optimizer as one CUDA graph: no epoch can be faster."""
    network = models.get_model(name, num_classes=2).to(device).to(memory_format=torch.channels_last)
    images = torch.randn(batch_size, 3, image_size, image_size, device=device).to(memory_format=torch.channels_last)
    targets = torch.zeros(batch_size, dtype=torch.long, device=device)
    optimizer = torch.optim.Adamax(network.parameters(), capturable=device == "cuda")

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        with torch.autocast(device, dtype=torch.bfloat16, cache_enabled=False):
            loss = nn.functional.cross_entropy(network(images), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    # of the backward pass of grouped convolutions, torch counts too many
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images[:2])
    n_flops = 3 * batch_size / 2 * counter.get_total_flops()
    step()  # makes the state of the optimizer
    replay: Callable[[], Any] = step
    if device == "cuda":
        with side_stream() as stream:
            step()
            replay, _ = capture(step, stream)
    rate = per_second(replay, device=device, seconds=2)
    return {"images_per_second": rate * batch_size, "tflops": rate * n_flops / 1e12}


def epochs(shared: list[str], name: str, batch_size: int, folder: Path, *, graph: str) -> dict[str, Any]:
    """Train six epochs; return the median rate of those after the first, and the losses."""
    own = (f"model={name}", f"data.batch_size={batch_size}", f"trainer.cuda_graphs={graph}", "trainer.max_epochs=6")
    train(configuration(*shared, *own, "gallery=0"), folder, evaluate_on=(Subset.TEST,))
    history = pd.read_csv(folder / "history.csv")
    record = json.loads((folder / "run.json").read_text())
    return {
        "images_per_second": float(history["images_per_second"][1:].median()),
        "train_loss": history["train_loss"].tolist(),
        "no_cuda_graph": record["no_cuda_graph"],
    }


def plain(shared: list[str], network: str, *, device: str, n_workers: int) -> dict[str, Any]:
    """Train two epochs of what one would write first."""
    config = configuration(*shared)
    data = make_data(config, device=device, evaluate_on=())
    accelerator = "gpu" if device == "cuda" else "cpu"
    rate = measure_plain_lightning(
        data, config, network=network, accelerator=accelerator, n_workers=n_workers, n_epochs=2
    )
    return {"images_per_second": rate}


def run(*command: str) -> dict[str, Any]:
    """Run a command in the checkout; return its status, seconds, and the end of its output."""
    start = time.perf_counter()
    command, pipe = (sys.executable, *command), subprocess.PIPE
    try:
        done = subprocess.run(command, cwd=HERE, stdout=pipe, stderr=subprocess.STDOUT, check=False, timeout=240)  # noqa: S603
        status, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as late:
        status, output = 124, late.stdout or b""
    seconds = time.perf_counter() - start
    return {"status": status, "seconds": seconds, "output": output[-3000:].decode(errors="replace")}


def measure(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the parts by name, the most important first."""
    out, device = options.out.resolve(), "cuda" if torch.cuda.is_available() and not options.quick else "cpu"
    shared = ["model.weights=none", f"data.cache_dir={out / 'cache'}", "trainer.progress_bar=false"]
    if options.images is None:
        few = ["data.images_per_patient=1", "data.width=64"]
        shared += ["data=synthetic", *(few if options.quick else ["data.images_per_patient=25", "data.width=700"])]
    else:
        shared += [f"data.root={options.images.resolve()}", "data.require_complete=false"]
    image_size = 32 if options.quick else 224
    shared += [f"data.image_size={image_size}", "trainer=cpu" if options.quick else "trainer=gpu"]
    sizes = (8,) if options.quick else (32, 256)
    n_epochs = 1 if options.quick else 15
    small = configuration(*shared, "data.image_size=32")
    yield "images", lambda: {"description": make_data(small, device=device, evaluate_on=()).dataset.description}
    sweep = ["train.py", "-m", *shared, f"model={','.join(NETWORKS)}", f"trainer.max_epochs={n_epochs}"]
    yield "sweep without image cache", partial(run, *sweep, f"hydra.sweep.dir={out / 'sweep'}")
    yield "bf16 peak", partial(peak_tflops, device)
    for name, network in NETWORKS.items():
        for size in sizes:
            part = f"{name}, batch {size}"
            yield f"{part}: limit", partial(step_limit, network, size, image_size=image_size, device=device)
            for graph in ("null", "false") if size == sizes[0] else ("null",):
                folder = out / f"{name}_{size}_{graph}"
                yield f"{part}: epochs, cuda_graphs={graph}", partial(epochs, shared, name, size, folder, graph=graph)
    for name, network in NETWORKS.items():
        n_workers = 2 if options.quick else 16
        yield f"{name}: plain Lightning, float32", partial(plain, shared, network, device=device, n_workers=n_workers)
    yield "tests", partial(run, "-m", "pytest", "-n0", "--tb=short", "-rf", "tests/integration/test_on_gpu.py")


def to_markdown(results: dict[str, Any]) -> str:
    """Write the lines for docs/performance.md."""
    lines = [f"{results['device']}, torch {results['torch']}, commit {results['commit']}:", ""]
    lines += ["| what | images/s | TFLOP/s | seconds | |", "|---|---:|---:|---:|---|"]
    for name, part in results["parts"].items():
        numbers = [
            f"{part[key]:,.{digits}f}" if key in part else ""
            for key, digits in (("images_per_second", 0), ("tflops", 1), ("seconds", 1))
        ]
        losses = ", ".join(f"{loss:.4f}" for loss in part.get("train_loss", ()))
        status = f"exit {part['status']}" if "status" in part else ""
        remarks = [losses, part.get("no_cuda_graph"), part.get("error"), status]
        lines.append(f"| {name} | {' | '.join(numbers)} | {'; '.join(filter(None, remarks))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write both files after each part, so that an interrupted call leaves what it has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument("--images", type=Path, help="folder of BreakHis images at 200X")
    parser.add_argument("--quick", action="store_true", help="few small images on a CPU, to try the script")
    options = parser.parse_args()
    options.out.mkdir(parents=True)  # older runs there would be taken for new ones
    revision = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(revision, cwd=HERE, capture_output=True, text=True, check=False)  # noqa: S603
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "torch": torch.__version__,
        "commit": commit.stdout.strip() or "unknown",
        "parts": {},
    }
    for name, part in measure(options):
        sys.stdout.write(f"{name}\n")
        try:
            results["parts"][name] = part()
        except Exception as error:  # the other parts are worth having
            results["parts"][name] = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # which other processes and parts need
        (options.out / "gpu.json").write_text(json.dumps(results, indent=2))
        (options.out / "gpu.md").write_text(to_markdown(results))
    sys.stdout.write(to_markdown(results))


if __name__ == "__main__":
    main()
