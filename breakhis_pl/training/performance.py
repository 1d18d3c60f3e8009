"""Device, precision, memory format and memory of a process; docs/performance.md has the figures behind the choices."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from breakhis_pl.config import DeviceConfig, TrainConfig, TrainerConfig
from breakhis_pl.errors import ConfigurationError
from breakhis_pl.run_folder import RunRecord

CHANNELS_LAST_FROM = 96
"""Side in pixels from which channels_last is faster on a CPU; below it, contiguous is."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt, from malloc.h of glibc."""


def resolve_device(trainer: TrainerConfig | DeviceConfig, *, trained: RunRecord | None = None) -> tuple[str, str]:
    """Return the device type and the precision to use.

    The precision is that of a run that was trained on this type of device; else bf16-mixed on a GPU that has it in
    hardware, 16-mixed on older ones, and 32-true elsewhere.

    Args:
        trainer: Keys of `trainer`.
        trained: The run whose network is used; None: one that is to be trained.

    Returns:
        "cuda", "mps" or "cpu", and Lightning's name of the precision.

    Raises:
        ConfigurationError: If the device does not exist, or cannot compute in this precision.
    """
    accelerator, precision = trainer.accelerator, trainer.precision
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if (accelerator == "gpu" and not has_cuda) or (accelerator == "mps" and not has_mps):
        raise ConfigurationError(
            f"trainer.accelerator={accelerator}: torch {torch.__version__} finds none; set trainer.accelerator=auto"
        )
    device = {"gpu": "cuda", "auto": "cuda" if has_cuda else "mps" if has_mps else "cpu"}.get(accelerator, accelerator)
    if precision == "16-mixed" and device != "cuda":
        raise ConfigurationError("trainer.precision=16-mixed: needs a CUDA GPU; set trainer.precision=auto")
    if precision == "auto" and trained is not None and trained.precision and str(trained.device).startswith(device):
        return device, trained.precision
    if precision == "auto":
        has_bf16 = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = ("bf16-mixed" if has_bf16 else "16-mixed") if device == "cuda" else "32-true"
    return device, precision


def autocast(device: str, precision: str) -> torch.autocast:
    """Return the context that Lightning computes in under a precision."""
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision, torch.float32)
    return torch.autocast(device, dtype=dtype, enabled=dtype is not torch.float32)


def device_name(device: str) -> str:
    """Return a name of the device for people: the GPU's, or the number of cores."""
    return f"cuda: {torch.cuda.get_device_name()}" if device == "cuda" else f"{device}, {os.cpu_count()} cores"


def choose_memory_format(name: str, *, device: str, image_size: int) -> torch.memory_format:
    """Return the memory format of activations and convolution weights.

    Args:
        name: "auto", "channels_last" or "contiguous".
        device: "cuda", "mps" or "cpu".
        image_size: Side in pixels.
    """
    if name == "auto":
        name = "contiguous" if device == "cpu" and image_size < CHANNELS_LAST_FROM else "channels_last"
    return torch.channels_last if name == "channels_last" else torch.contiguous_format


def reason_against_cuda_graph(config: TrainConfig, *, device: str, precision: str) -> str | None:
    """Return why train steps are not captured as a CUDA graph; None if they are to be.

    Args:
        config: The configuration.
        device: "cuda", "mps" or "cpu".
        precision: Lightning's name.

    Raises:
        ConfigurationError: If trainer.cuda_graphs=true asks on a GPU for what cannot be.
    """
    trainer = config.trainer
    is_resnet = config.model.library == "torchvision" and "resne" in config.model.backbone
    impossible = {
        f"the device is {device}": device != "cuda",
        "trainer.cuda_graphs=false": trainer.cuda_graphs is False,
        "a linear probe has no train steps": config.is_linear_probe,
        "several processes train": trainer.is_distributed,
        "data.pixels=host": config.data.pixels == "host",
        "the gradient scaler of fp16 waits for the device": precision == "16-mixed",
    }
    not_by_default = {
        "trainer.deterministic=true": trainer.deterministic,
        "trainer.compile=true": trainer.compile,
        "the network is not a ResNet of torchvision": not is_resnet,
    }
    reasons = impossible if trainer.cuda_graphs else impossible | not_by_default
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if trainer.cuda_graphs and device == "cuda" and reason is not None:
        raise ConfigurationError(f"trainer.cuda_graphs=true: {reason}; set trainer.cuda_graphs=null")
    return reason


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next step, for the life of the process.

    The activations of a step are large. Memory that is given back to the system is mapped and zeroed again in every
    step, which takes some 10% of the time on a CPU.

    Source:
        mallopt(3); has no effect without glibc.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is not None and hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_M_MMAP_THRESHOLD, 2**31 - 1)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def side_stream() -> Iterator[torch.cuda.Stream]:
    """Launch on another stream, after what is queued on the present one, which then waits for it."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            yield stream
    finally:
        torch.cuda.current_stream().wait_stream(stream)
