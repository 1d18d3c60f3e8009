"""What the hardware can do with a network: steps and forward passes on one resident batch, without data or Lightning.

Modes are the ways to run the same arithmetic: memory format, `torch.compile`, and on a GPU the whole step, optimizer
included, as one CUDA graph.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.timing import waiter
from breakhis_pl.models.backbones import build_network

WARM_UP_STEPS = 3
_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Mode(StrEnum):
    """A way to run steps."""

    CONTIGUOUS = "contiguous"
    CHANNELS_LAST = "channels_last"
    GRAPH = "CUDA graph"
    GRAPH_CONTIGUOUS = "CUDA graph, contiguous"
    TUNED = "channels_last, cudnn.benchmark"
    GRAPH_TUNED = "CUDA graph, cudnn.benchmark"
    COMPILED = "compiled"

    @property
    def memory_format(self) -> torch.memory_format:
        """Of images and convolution weights."""
        is_contiguous = self in {Mode.CONTIGUOUS, Mode.GRAPH_CONTIGUOUS}
        return torch.contiguous_format if is_contiguous else torch.channels_last

    @property
    def is_graph(self) -> bool:
        """Whether it is a CUDA graph."""
        return self in {Mode.GRAPH, Mode.GRAPH_CONTIGUOUS, Mode.GRAPH_TUNED}

    @property
    def is_tuned(self) -> bool:
        """Whether cuDNN tries its algorithms first."""
        return self in {Mode.TUNED, Mode.GRAPH_TUNED}


def modes(device: torch.device) -> tuple[Mode, ...]:
    """Those that a device has, without compilation."""
    if device.type == "cuda":
        return tuple(mode for mode in Mode if mode is not Mode.COMPILED)
    return (Mode.CONTIGUOUS, Mode.CHANNELS_LAST)


@dataclass(frozen=True, slots=True)
class Case:
    """A network, its input and where it runs.

    Attributes:
        network: Its name.
        image_size: Side in pixels.
        batch_size: Images per step.
        precision: Lightning's name of it.
        device: Where it runs.
    """

    network: str
    image_size: int
    batch_size: int
    precision: str
    device: torch.device

    def images(self, mode: Mode) -> Tensor:
        """A batch of noise: float32, (batch, 3, size, size)."""
        shape = (self.batch_size, 3, self.image_size, self.image_size)
        return torch.randn(shape, device=self.device).contiguous(memory_format=mode.memory_format)

    def built(self, mode: Mode) -> nn.Module:
        """The network with random weights."""
        return build_network(self.network, dropout=0.4).to(self.device).to(memory_format=mode.memory_format)

    def autocast(self, mode: Mode) -> torch.autocast:
        """The precision as Lightning applies it."""
        return torch.autocast(
            self.device.type,
            dtype=_DTYPES.get(self.precision, torch.bfloat16),
            enabled=self.precision in _DTYPES,
            cache_enabled=not mode.is_graph,
        )


class Steps:
    """Repeats a step on a resident batch.

    Args:
        case: What is run.
        mode: How.
        step: Does one step.
    """

    def __init__(self, case: Case, mode: Mode, step: Callable[[], None]) -> None:
        self.case = case
        self._mode = mode
        self._wait = waiter(case.device)
        self._step = step
        for _ in range(WARM_UP_STEPS):
            self._do()
        if mode.is_graph:
            self._captured = step  # a graph reads and writes the memory of its network and images, but does not own it
            self._step = _captured(self._do)

    def pace(self, seconds: float) -> int:
        """Number of steps that take about so long."""
        self.run(1)
        started = time.perf_counter()
        self.run(2)
        return max(2, math.ceil(2 * seconds / (time.perf_counter() - started)))

    def run(self, n_steps: int) -> int:
        """Does so many steps and waits for the device; the number of images."""
        for _ in range(n_steps):
            self._do()
        self._wait()
        return n_steps * self.case.batch_size

    def rate(self, n_steps: int) -> float:
        """Images per second of so many steps."""
        self._wait()
        started = time.perf_counter()
        n_images = self.run(n_steps)
        return n_images / (time.perf_counter() - started)

    def _do(self) -> None:
        if self._mode.is_tuned:
            with torch.backends.cudnn.flags(enabled=True, benchmark=True):
                self._step()
        else:
            self._step()


def train_steps(
    case: Case,
    mode: Mode,
    *,
    optimizer: Mapping[str, Any] | None = None,
    kind: type[torch.optim.Optimizer] = torch.optim.Adamax,
) -> Steps:
    """Forward pass, backward pass and optimizer.

    Args:
        case: What is run.
        mode: How.
        optimizer: Further arguments of the optimizer, as a run has them.
        kind: Of optimizer.
    """
    network = case.built(mode).train()
    call = _callable(network, case, mode)
    images, targets = case.images(mode), torch.arange(case.batch_size, device=case.device) % 2
    options: dict[str, Any] = {"lr": 5e-4, **(optimizer or {}), "capturable": mode.is_graph}
    stepped = kind(network.parameters(), **options)

    def step() -> None:
        stepped.zero_grad(set_to_none=True)
        with case.autocast(mode):
            loss = functional.cross_entropy(call(images).float(), targets)
        loss.backward()  # type: ignore[no-untyped-call]  # torch
        stepped.step()

    return _on_a_stream_of_its_own(case, mode, step)


def forward_steps(case: Case, mode: Mode) -> Steps:
    """Forward passes without gradients, as in an evaluation."""
    network = case.built(mode).eval()
    call = _callable(network, case, mode)
    images = case.images(mode)
    without_gradients = torch.inference_mode if not mode.is_graph and mode is not Mode.COMPILED else torch.no_grad

    def step() -> None:
        with without_gradients(), case.autocast(mode):
            call(images)

    return _on_a_stream_of_its_own(case, mode, step)


def _callable(network: nn.Module, case: Case, mode: Mode) -> Callable[[Tensor], Tensor]:
    if mode is Mode.COMPILED:
        compiled: Callable[[Tensor], Tensor] = torch.compile(
            network, mode="reduce-overhead" if case.device.type == "cuda" else "default", dynamic=False
        )
        return compiled
    return network


def _on_a_stream_of_its_own(case: Case, mode: Mode, step: Callable[[], None]) -> Steps:
    """Warm-up before a capture must not happen on the default stream (torch's notes on CUDA graphs)."""
    if not mode.is_graph:
        return Steps(case, mode, step)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        steps = Steps(case, mode, step)
    torch.cuda.current_stream().wait_stream(stream)
    return steps


def _captured(step: Callable[[], None]) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        step()
    return graph.replay
