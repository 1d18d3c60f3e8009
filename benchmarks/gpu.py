"""Measure on one GPU, in one call of less than nine minutes: tests, train steps with and without CUDA graph, a sweep.

Usage: uv run python -m benchmarks.gpu --out <folder> [--images <folder of BreakHis images at 200X>]

Without --images, 25 images per patient are generated. Writes gpu.json, and gpu.md for docs/performance.md.
`--quick` tries the script on a CPU.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

HERE = Path(__file__).resolve().parent.parent
NETWORKS = ("resnet18", "wide_resnet50", "resnext50")


def run(*command: str) -> tuple[int, float, str]:
    """Run a command in the checkout; return its status, seconds, and the end of its output."""
    start = time.perf_counter()
    done = subprocess.run(  # noqa: S603
        [sys.executable, *command], cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.returncode, round(time.perf_counter() - start, 1), done.stdout[-1500:]


def measure_steps(shared: Sequence[str], out: Path, *, graphs: Sequence[str]) -> list[dict[str, Any]]:
    """Train each network for three epochs, with and without CUDA graph.

    Args:
        shared: Overrides of all runs.
        out: Folder of the runs.
        graphs: Values of trainer.cuda_graphs.

    Returns:
        A row per run: images per second of the fastest epoch after the first, losses, peak memory if it is known.
    """
    rows = []
    for network in NETWORKS:
        for graph in graphs:
            folder = out / f"{network}_{graph}"
            own = (f"model={network}", f"trainer.cuda_graphs={graph}", "trainer.max_epochs=3", "gallery=0")
            status, seconds, output = run("train.py", *shared, *own, f"hydra.run.dir={folder}")
            row: dict[str, Any] = {"network": network, "cuda_graphs": graph, "status": status, "seconds": seconds}
            if status == 0:
                history = pd.read_csv(folder / "history.csv")
                row["images_per_second"] = float(history["images_per_second"][1:].max())
                row["train_loss"] = history["train_loss"].tolist()
            else:
                row["output"] = output
            rows.append(row)
    return rows


def to_markdown(results: dict[str, Any]) -> str:
    """Write the lines for docs/performance.md."""
    lines = [f"{results['device']}, torch {results['torch']}, commit {results['commit']}:", ""]
    lines += ["| network | CUDA graph | images/s | train loss of three epochs |", "|---|---|---:|---|"]
    for row in results["steps"]:
        losses = ", ".join(f"{loss:.4f}" for loss in row.get("train_loss", ()))
        rate = f"{row['images_per_second']:,.0f}" if "images_per_second" in row else f"failed ({row['status']})"
        lines.append(f"| {row['network']} | {row['cuda_graphs']} | {rate} | {losses} |")
    for name in ("tests", "sweep"):
        part = results[name]
        lines += ["", f"{part['what']}: {part['seconds']} s, exit status {part['status']}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write both files after each part, so that an interrupted call leaves what it has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=Path, help="folder of BreakHis images at 200X")
    parser.add_argument("--quick", action="store_true", help="few small images on a CPU, to try the script")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    out = options.out.resolve()
    shared = ["model.weights=none", f"data.cache_dir={out / 'cache'}", "trainer.progress_bar=false"]
    if options.images is None:
        n_images = 1 if options.quick else 25
        shared += ["data=synthetic", f"data.images_per_patient={n_images}", "data.width=224"]
    else:
        shared += [f"data.root={options.images.resolve()}", "data.require_complete=false"]
    shared += ["trainer=cpu", "data.image_size=32"] if options.quick else ["trainer=gpu"]
    graphs = ("null",) if options.quick else ("true", "false")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "torch": torch.__version__,
        "commit": commit.stdout.strip() or "unknown",
        "steps": [],
    }
    epochs = 1 if options.quick else 15
    networks = f"model={','.join(NETWORKS)}"
    commands = {
        "sweep": [
            "train.py",
            "-m",
            *shared,
            networks,
            f"trainer.max_epochs={epochs}",
            f"hydra.sweep.dir={out / 'sweep'}",
        ],
        "tests": ["-m", "pytest", "-q", "-n0", "tests/integration/test_on_gpu.py"],
    }
    for name, command in commands.items():
        status, seconds, output = run(*command)
        what = f"`{' '.join(command).replace(str(out), '<out>')}`"
        results[name] = {"what": what, "status": status, "seconds": seconds, "output": output}
        (out / "gpu.json").write_text(json.dumps(results, indent=2))
    results["steps"] = measure_steps(shared, out, graphs=graphs)
    (out / "gpu.json").write_text(json.dumps(results, indent=2))
    (out / "gpu.md").write_text(to_markdown(results))
    sys.stdout.write(to_markdown(results))


if __name__ == "__main__":
    main()
