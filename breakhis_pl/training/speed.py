"""What makes a run fast and is chosen by itself: resolved once, named in run.json, switched off by a key.

The figures behind every choice are in docs/performance.md.
"""

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from breakhis_pl.config import TrainConfig

CHANNELS_LAST_FROM = 96
"""Side in pixels from which channels_last is faster on a CPU; below it, contiguous is."""

LARGEST_SHARE = 0.5
"""Of the free device memory that pixels may take; the rest is for the network."""

EVALUATION_FACTOR = 4
"""Batches of an evaluation on a GPU are so many times larger: nothing is kept for a backward pass."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


@dataclass(frozen=True, slots=True)
class Speed:
    """The choices of a run.

    Attributes:
        pixels: Where decoded images lie: "device", or "host" (page-locked if the device is a GPU).
        memory_format: Of activations and convolution weights: "channels_last" or "contiguous".
        cuda_graphs: Whether full train batches are replayed as a CUDA graph.
        compile: Whether the network is compiled.
        keep_memory: Whether freed memory stays with the process.
        eval_batch_size: Images per evaluation step.
    """

    pixels: str
    memory_format: str
    cuda_graphs: bool
    compile: bool
    keep_memory: bool
    eval_batch_size: int

    @property
    def torch_memory_format(self) -> torch.memory_format:
        """As torch's functions take it."""
        return torch.channels_last if self.memory_format == "channels_last" else torch.contiguous_format


def resolve_speed(config: TrainConfig, accelerator: str, *, n_pixel_bytes: int) -> Speed:
    """The choices for a device.

    Args:
        config: The typed configuration.
        accelerator: "cpu", "cuda" or "mps".
        n_pixel_bytes: Of all decoded images.
    """
    is_gpu = accelerator == "cuda"
    pixels, memory_format = config.data.pixels, config.trainer.memory_format
    if pixels == "auto":
        free = torch.cuda.mem_get_info()[0] if is_gpu else None
        pixels = "device" if free is None or n_pixel_bytes <= LARGEST_SHARE * free else "host"
    if memory_format == "auto":
        is_small = accelerator == "cpu" and config.data.image_size < CHANNELS_LAST_FROM
        memory_format = "contiguous" if is_small else "channels_last"
    return Speed(
        pixels=pixels,
        memory_format=memory_format,
        cuda_graphs=is_gpu and may_have_graphs(config),
        compile=config.trainer.compile,
        keep_memory=config.trainer.keep_memory and accelerator == "cpu" and _mallopt() is not None,
        eval_batch_size=config.data.eval_batch_size or config.data.batch_size * (EVALUATION_FACTOR if is_gpu else 1),
    )


def may_have_graphs(config: TrainConfig) -> bool:
    """Whether train steps become CUDA graphs if the device is a GPU.

    By themselves those of the networks that it was measured for, in one process; where only deterministic algorithms
    are allowed or the network is compiled, it was not.
    """
    trainer, model = config.trainer, config.model
    if trainer.cuda_graphs is not None:
        return trainer.cuda_graphs
    is_simple = not (trainer.is_distributed or trainer.deterministic or trainer.compile or model.freeze)
    return is_simple and model.library == "report"


def keep_freed_memory() -> bool:
    """Lets the C library keep what is freed for the next step, for the life of the process.

    The activations of a step are large; given back to the system, every one is mapped and cleared anew in every step.

    Returns:
        Whether the C library is one that can do so (glibc).

    Source:
        mallopt(3).
    """
    mallopt = _mallopt()
    if mallopt is None:
        return False
    largest = 2**31 - 1
    return bool(mallopt(_M_MMAP_THRESHOLD, largest)) and bool(mallopt(_M_TRIM_THRESHOLD, largest))


def has_fast_bf16() -> bool:
    """Whether this CPU multiplies matrices of bf16 in hardware (Intel AMX), which float32 cannot use."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older releases do not tell
    return bool(capabilities.get("amx_bf16", False))


def _mallopt() -> Callable[[int, int], int] | None:
    """The function of glibc; None elsewhere."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "gnu_get_libc_version"):
        return None
    mallopt: Callable[[int, int], int] = library.mallopt
    return mallopt
