"""What the figures were measured on."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.images import n_cores
from breakhis_pl.training.provenance import source_state, versions


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores, GPU, versions, commit, and how busy the machine is."""
    return {
        "cpu": _cpu_model(),
        "cores": n_cores(),
        "torch_threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "platform": platform.platform(),
        "versions": {**versions(), "timm": metadata.version("timm")},
        **source_state(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
