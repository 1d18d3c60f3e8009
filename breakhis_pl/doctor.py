"""`python -m breakhis_pl.doctor`: Show what works on this machine; paste it into a bug report."""

import argparse
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import torch
from torchvision import models

from breakhis_pl.config import DeviceConfig
from breakhis_pl.data.breakhis import CLASS_NAMES, MAGNIFICATIONS, PUBLISHED_COUNTS, index_images
from breakhis_pl.errors import DataError
from breakhis_pl.training.performance import device_name, resolve_device
from breakhis_pl.training.provenance import PACKAGES, source_state, versions

NETWORKS = ("resnet18", "wide_resnet50_2", "resnext50_32x4d")


def main(argv: Sequence[str] | None = None) -> int:
    """Print what is there; the exit status is 0, whatever is missing."""
    parser = argparse.ArgumentParser(prog="uv run python -m breakhis_pl.doctor", description=__doc__.partition(": ")[2])
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder with the images (default: data)")
    root = parser.parse_args(argv).root
    for name, text in (*software(), *hardware(), *data(root), *weights(), *extras()):
        sys.stdout.write(f"{name:<12} {text}\n")
    return 0


def software() -> Iterator[tuple[str, str]]:
    """Yield versions of the project and of what it is built on."""
    state = source_state()
    changes = ", with uncommitted changes" if state["uncommitted_changes"] else ""
    yield "breakhis_pl", f"{state['package_version']}, commit {state['commit'] or 'unknown'}{changes}"
    yield "system", f"{platform.platform()}, Python {platform.python_version()}"
    found = versions()
    yield "packages", ", ".join(f"{name} {found[name]}" for name in ("torch", *PACKAGES))


def hardware() -> Iterator[tuple[str, str]]:
    """Yield the device that `trainer=auto` takes, its precision and memory, and free disk space."""
    device, precision = resolve_device(DeviceConfig(accelerator="auto", precision="auto"))
    memory = f", {torch.cuda.mem_get_info()[1] / 2**30:.0f} GiB" if device == "cuda" else ""
    yield "device", f"{device_name(device)}{memory}, {precision}, {torch.get_num_threads()} threads"
    yield "disk", f"{shutil.disk_usage(Path.cwd()).free / 1e9:,.0f} GB free in {Path.cwd()}"


def data(root: Path) -> Iterator[tuple[str, str]]:
    """Yield the number of images at each magnification, beside the published one."""
    try:
        images = index_images(root, MAGNIFICATIONS)
    except DataError as error:
        yield "images", str(error).splitlines()[0]
        return
    for magnification in MAGNIFICATIONS:
        n = sum(image.name.magnification == magnification for image in images)
        n_published = sum(PUBLISHED_COUNTS[magnification, name] for name in CLASS_NAMES)
        state = "complete" if n == n_published else "none" if n == 0 else "data.require_complete=false uses them"
        yield f"{magnification}X", f"{n:,} of {n_published:,} images in {root}: {state}"


def weights() -> Iterator[tuple[str, str]]:
    """Yield which ImageNet weights have been downloaded."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in NETWORKS:
        file_name = models.get_model_weights(name)["IMAGENET1K_V1"].url.rpartition("/")[2]
        is_there = (folder / file_name).is_file()
        yield "weights", f"{name}: {'in' if is_there else 'will be downloaded to'} {folder / file_name}"


def extras() -> Iterator[tuple[str, str]]:
    """Yield which optional packages are installed."""
    requirements = metadata.requires("breakhis-pl") or [] if source_state()["package_version"] else []
    names = [re.split(r"[^\w-]", each)[0] for each in requirements if "extra ==" in each]
    there = {name: bool(list(metadata.distributions(name=name))) for name in dict.fromkeys(names)}
    yield "extras", ", ".join(f"{name} {'yes' if found else 'no'}" for name, found in there.items()) or "unknown"


if __name__ == "__main__":
    sys.exit(main())
