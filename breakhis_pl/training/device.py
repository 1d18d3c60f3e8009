"""Which device a run takes, and in which precision."""

import os

import torch

from breakhis_pl.errors import ConfigurationError
from breakhis_pl.training.distributed import place


def resolve_device(accelerator: str, precision: str) -> tuple[str, str]:
    """Lightning's names of the device and the precision to use.

    bf16 mixed where a GPU has it in hardware, fp16 mixed on older ones, float32 on the CPU and on Apple's GPU.

    Args:
        accelerator: "auto", "cpu", "gpu" or "mps".
        precision: "auto" or one of Lightning's.

    Raises:
        ConfigurationError: If the device is not there.
    """
    has_cuda = torch.cuda.is_available()
    has_mps = torch.backends.mps.is_available() and place().n_ranks == 1
    if accelerator == "gpu" and not has_cuda:
        raise ConfigurationError(f"trainer.accelerator=gpu: torch {torch.__version__} sees no GPU; try auto or cpu")
    if accelerator == "mps" and not has_mps:
        raise ConfigurationError("trainer.accelerator=mps: torch sees no Apple GPU; try auto or cpu")
    if precision == "16-mixed" and (accelerator in {"cpu", "mps"} or not has_cuda):
        raise ConfigurationError("trainer.precision=16-mixed needs a CUDA GPU; try auto, 32-true or bf16-mixed")
    if accelerator == "auto":
        accelerator = "gpu" if has_cuda else "mps" if has_mps else "cpu"
    if precision == "auto":
        precision = "32-true"
        if accelerator == "gpu":
            precision = "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    return ("cuda" if accelerator == "gpu" else accelerator), precision


def device_name(accelerator: str) -> str:
    """The device for people: what a GPU is called, or the number of cores."""
    if accelerator == "cuda":
        return f"cuda: {torch.cuda.get_device_name()}"
    return f"{accelerator}, {os.cpu_count()} cores"
