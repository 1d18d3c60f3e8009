"""What `trials` tries: groups of variants, the first of each being what the others are compared with."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.images import n_cores
from benchmarks.limit import Mode
from benchmarks.plan import NETWORKS

_SIDES = (64, 96, 128, 224)
_CHANNELS_LAST, _CONTIGUOUS = Mode.CHANNELS_LAST.value, Mode.CONTIGUOUS.value


@dataclass(frozen=True, slots=True)
class Variant:
    """One thing to try.

    Attributes:
        group: Variants that are compared.
        name: For reading.
        settings: For `trial`.
    """

    group: str
    name: str
    settings: dict[str, Any]


def cpu_variants(files: Sequence[Path]) -> Iterator[Variant]:
    """Everything that can be tried on a CPU.

    Args:
        files: PNG files to decode.
    """
    yield from _formats()
    yield from _arithmetic()
    yield from _optimizers("cpu")
    for n_threads in range(n_cores(), 0, -1):
        settings = _train(64, _CONTIGUOUS, threads=n_threads)
        yield Variant("torch threads, 64 px", f"{n_threads}", settings)
    yield from _around_the_step("cpu")
    for size in (64, 224):
        for batch in (32, 64, 128, 256):
            settings = _train(size, _CONTIGUOUS if size == 64 else _CHANNELS_LAST, batch=batch, what="forward")
            yield Variant(f"evaluation, {size} px", f"batch {batch}", settings)
    for by in ("Pillow", "torchvision"):
        settings = {"what": "decoder", "device": "cpu", "by": by, "threads": 1, "files": [str(file) for file in files]}
        yield Variant("decoder, one thread", by, settings)
    for by in ("torch", "Pillow"):
        settings = {"what": "resize", "device": "cpu", "by": by, "size": 224, "threads": 1}
        yield Variant("resize to 224 px, one thread", by, settings)


def cuda_variants() -> Iterator[Variant]:
    """Everything that needs a GPU."""
    for network in NETWORKS:
        for batch in (32, 256):
            for mode in Mode:
                settings = _train(224, mode.value, network=network, batch=batch, precision="bf16-mixed", device="cuda")
                yield Variant(f"mode, {network}, batch {batch}", mode.value, settings)
            settings = _train(224, _CHANNELS_LAST, network=network, batch=batch, device="cuda")
            yield Variant(f"mode, {network}, batch {batch}", "channels_last, float32", settings)
        for batch in (32, 128, 512, 1024):
            settings = _train(224, _CHANNELS_LAST, network=network, batch=batch, precision="bf16-mixed", device="cuda")
            settings["what"] = "forward"
            yield Variant(f"evaluation, {network}", f"batch {batch}", settings)
    yield from _optimizers("cuda")
    yield from _around_the_step("cuda")
    settings = {"what": "gather", "device": "cuda", "size": 224, "batch": 32, "by": "page-locked host"}
    yield Variant("gathering, 224 px", "page-locked host", settings)


def _formats() -> Iterator[Variant]:
    for size in _SIDES:
        for keep in (False, True):
            for mode in (_CONTIGUOUS, _CHANNELS_LAST):
                name = f"{mode}, freed memory {'kept' if keep else 'given back'}"
                yield Variant(f"memory format and memory, {size} px", name, _train(size, mode, keep_memory=keep))


def _arithmetic() -> Iterator[Variant]:
    for size, mode in ((64, _CONTIGUOUS), (224, _CHANNELS_LAST)):
        group = f"arithmetic, {size} px"
        yield Variant(group, "float32, eager", _train(size, mode))
        yield Variant(group, "bf16 autocast", _train(size, mode, precision="bf16-mixed"))
        yield Variant(group, "compiled", _train(size, Mode.COMPILED.value))
        both = _train(size, Mode.COMPILED.value, precision="bf16-mixed")
        yield Variant(group, "compiled, bf16 autocast", both)


def _optimizers(device: str) -> Iterator[Variant]:
    size, precision = (64, "32-true") if device == "cpu" else (224, "bf16-mixed")
    mode = _CONTIGUOUS if device == "cpu" else _CHANNELS_LAST
    for kind, options in (
        ("adamax", {"foreach": False}),
        ("adamax", {"foreach": True}),
        ("adamw", {"foreach": False}),
        ("adamw", {"foreach": True}),
        ("adamw", {"fused": True}),
    ):
        settings = _train(size, mode, precision=precision, device=device, optimizer=kind, options=options)
        name = ", ".join(f"{key}={value}" for key, value in options.items())
        yield Variant(f"optimizer, {size} px", f"{kind}, {name}", settings)


def _around_the_step(device: str) -> Iterator[Variant]:
    """Metrics, augmentation and gathering."""
    metrics = {"what": "metrics", "device": device, "by": "torchmetrics"}
    yield Variant("metrics of an epoch", "torchmetrics", {**metrics, "validate_args": True})
    yield Variant("metrics of an epoch", "torchmetrics, arguments not checked", {**metrics, "validate_args": False})
    yield Variant("metrics of an epoch", "sums", {**metrics, "by": "sums"})
    for size in (64, 224):
        for by in ("one resampling", "flips and rotation apart"):
            settings = {"what": "augmentation", "device": device, "size": size, "batch": 32, "by": by}
            yield Variant(f"augmentation, {size} px", by, settings)
        for by in ("index_select", "brackets"):
            settings = {"what": "gather", "device": device, "size": size, "batch": 32, "by": by}
            yield Variant(f"gathering, {size} px", by, settings)


def _train(size: int, mode: str, **changes: Any) -> dict[str, Any]:
    common = {"what": "train", "network": "resnet18", "batch": 32, "precision": "32-true", "device": "cpu"}
    return {**common, "size": size, "mode": mode, **changes}
