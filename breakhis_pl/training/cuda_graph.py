"""A whole train step as one CUDA graph: from sample indices to updated weights in one launch."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from breakhis_pl.data.datamodule import BreakHisDataModule
from breakhis_pl.models.classifier import Classifier
from breakhis_pl.training.performance import side_stream

N_WARM_UPS = 3
"""Steps before a capture, in which libraries choose algorithms and allocate what they keep."""

MIN_COSINE, MAX_LOSS_DIFFERENCE = 0.9, 0.02
"""A replay is used if it resembles the same step without graph: cosine between their updates, relative difference of
the losses."""


class StepGraph:
    """A captured train step. Calling it with sample indices, int64 (batch,), replays it on them; returns the loss.

    The graph reads and writes weights, statistics, optimizer state and `Classifier.train_sums` where they are. Indices,
    learning rates, augmentation and the fraction of mixup are tensors that are filled before a replay; numbers that are
    no tensors are constants. An optimizer that cannot be captured steps outside, on the graph's gradients.

    Args:
        classifier: On a CUDA device, in training mode.
        data: Makes the batches; its pixels are on the device.
        optimizer: Has a state for every parameter that trains.
        indices: A full batch to try the step on; all state is as before afterwards.
        autocast: Makes the context of the forward pass, which sets its precision.

    Raises:
        RuntimeError: If the step cannot be captured, memory does not suffice, or a replay differs from the step.

    Source:
        https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(
        self,
        classifier: Classifier,
        data: BreakHisDataModule,
        optimizer: Optimizer,
        indices: Tensor,
        autocast: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.classifier, self.data, self.optimizer, self.autocast = classifier, data, optimizer, autocast
        self.indices = indices
        self.parameters = [each for each in classifier.network.parameters() if each.requires_grad]
        self.has_optimizer = all("capturable" in group for group in optimizer.param_groups)
        undo = make_capturable(optimizer) if self.has_optimizer else lambda: None
        self.rates = [torch.tensor(float(group["lr"]), device=indices.device) for group in optimizer.param_groups]
        self.constants = self.read_constants()
        states = [value for state in optimizer.state.values() for value in state.values()]
        tensors = [each for each in (*classifier.parameters(), *classifier.buffers(), *states) if torch.is_tensor(each)]
        before = [(tensor, tensor.detach().clone()) for tensor in tensors]
        try:
            self.replay, self.loss = self._capture(before)
        except BaseException:
            undo()
            raise
        finally:
            restore(before)
        self.gradients = [] if self.has_optimizer else [each.grad for each in self.parameters]

    def __call__(self, indices: Tensor) -> Tensor:
        """Replay the step; the loss is overwritten by the next replay."""
        self.indices.copy_(indices)
        self.replay()
        return self.loss

    def set_rates(self) -> None:
        """Take the learning rates that the optimizer has now."""
        for rate, group in zip(self.rates, self.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])

    def set_gradients(self) -> None:
        """Hand the gradients of a replay to an optimizer that is not part of the graph."""
        for parameter, gradient in zip(self.parameters, self.gradients, strict=False):
            parameter.grad = gradient

    def read_constants(self) -> list[Any]:
        """Return what the graph holds as constants: keys of the optimizer, which layers train and how."""
        variable = ("params", "lr")
        groups = [{k: v for k, v in group.items() if k not in variable} for group in self.optimizer.param_groups]
        network = self.classifier.network
        return [groups, [p.requires_grad for p in network.parameters()], [m.training for m in network.modules()]]

    def _step(self) -> Tensor:
        """Run the step that is captured; return the loss."""
        for parameter in self.parameters:
            parameter.grad = None  # backward writes new gradients instead of adding to these
        batch = self.data.batch(self.indices, epoch=self.classifier.current_epoch)
        with self.autocast():
            loss = self.classifier.compute_loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.has_optimizer:
            rates = [group["lr"] for group in self.optimizer.param_groups]
            set_values(self.optimizer, "lr", self.rates)
            try:
                self.optimizer.step()
            finally:
                set_values(self.optimizer, "lr", rates)
        return loss.detach()

    def _capture(self, before: Sequence[tuple[Tensor, Tensor]]) -> tuple[Callable[[], None], Tensor]:
        """Warm up, capture, and compare a replay with the step."""
        with torch.random.fork_rng(devices=[self.indices.device] * self.indices.is_cuda), side_stream() as stream:
            for number in range(N_WARM_UPS):
                restore(before)
                torch.manual_seed(0)
                torch.cuda.set_sync_debug_mode("error" if number > 0 else "default")  # raise where the host would wait
                try:
                    expected_loss = self._step()
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            expected = self._outcome(before)
            restore(before)
            self.optimizer.zero_grad()
            replay, loss = capture(self._step, stream)
            torch.manual_seed(0)
            replay()
            cosine = torch.cosine_similarity(expected, self._outcome(before), dim=0).item()
            difference = abs(loss.item() / expected_loss.item() - 1)
        if not (cosine >= MIN_COSINE and difference <= MAX_LOSS_DIFFERENCE):
            raise RuntimeError(f"a replay differs from the step: cosine {cosine:.3f}, loss by {difference:.1%}")
        return replay, loss

    @torch.no_grad()
    def _outcome(self, before: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Return what a step has done, as one vector: changes of the weights, or gradients."""
        old = {id(tensor): value for tensor, value in before}
        done = [each - old[id(each)] if self.has_optimizer else each.grad for each in self.parameters]
        return torch.cat([each.flatten() for each in done if each is not None])


def make_capturable(optimizer: Optimizer) -> Callable[[], None]:
    """Let an optimizer keep on the device what it counts on the host; return a function that undoes it."""
    on_host = [
        (state, name, value)
        for parameter, state in optimizer.state.items()
        for name, value in state.items()
        if torch.is_tensor(value) and value.device != parameter.device
    ]

    def move(is_capturable: bool) -> None:
        set_values(optimizer, "capturable", [is_capturable] * len(optimizer.param_groups))
        device = optimizer.param_groups[0]["params"][0].device
        for state, name, value in on_host:
            state[name] = value.to(device) if is_capturable else value

    move(True)
    return lambda: move(False)


def set_values(optimizer: Optimizer, key: str, values: Sequence[Any]) -> None:
    """Set a key of each group of parameters."""
    for group, value in zip(optimizer.param_groups, values, strict=True):
        group[key] = value


def capture(step: Callable[[], Tensor], stream: torch.cuda.Stream) -> tuple[Callable[[], None], Tensor]:
    """Record what a function launches, without running it.

    Returns:
        A function that replays it, and its result, which every replay overwrites.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):  # others may save a checkpoint
        result = step()
    return graph.replay, result


@torch.no_grad()
def restore(before: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Copy values back to the tensors they are from."""
    for tensor, value in before:
        tensor.copy_(value)
