"""Callback that captures the train step."""

import logging
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback

from breakhis_pl.data.dataset import Subset
from breakhis_pl.errors import TrainingError
from breakhis_pl.training.cuda_graph import StepGraph

log = logging.getLogger(__name__)


class CudaGraphs(Callback):
    """Capture the train step, and again after a change that a graph cannot follow.

    Args:
        batch_size: Size of a full train batch; others, such as the last one of an epoch, run without the graph.
        is_required: Raise if the step cannot be captured; otherwise train without a graph then.

    Attributes:
        reason: Why the step cannot be captured; None if it can.
    """

    def __init__(self, *, batch_size: int, is_required: bool) -> None:
        self.batch_size = batch_size
        self.is_required = is_required
        self.reason: str | None = None

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set the learning rates of a graph; drop it if its constants have changed, such as layers that train.

        If the optimizer has a state, as in a resumed run, capture before the first step, which an uninterrupted run
        replays too.
        """
        graph = pl_module.step_graph
        if isinstance(graph, StepGraph):
            graph.set_rates()
            if graph.constants != graph.read_constants():
                self._use(trainer, pl_module, None)
            del graph  # and its memory
        state = trainer.optimizers[0].state
        if all(each in state for each in pl_module.parameters() if each.requires_grad):
            self._capture(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        """Capture after the first step, in which the optimizer has made its state."""
        self._capture(trainer, pl_module)

    def _capture(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Capture a step, unless there is a graph or a reason against it.

        Raises:
            TrainingError: If the step cannot be captured and the graph is required.
            torch.OutOfMemoryError: If memory does not suffice and the graph is required.
        """
        if pl_module.step_graph is not None or self.reason is not None:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        few = data.split.indices(Subset.TRAIN)[: self.batch_size]
        if len(few) < self.batch_size:
            self.reason = "no batch is full"
            return
        indices, autocast = torch.tensor(few, device=pl_module.device), trainer.precision_plugin.forward_context
        trainer.strategy.checkpoint_io.teardown()  # ends its thread, which may wait for the device
        try:
            graph = StepGraph(pl_module, data, trainer.optimizers[0], indices, autocast)
        except (RuntimeError, AssertionError) as error:  # torch.optim asserts that its state is on the device
            if self.is_required and isinstance(error, torch.OutOfMemoryError):
                raise
            self.reason = f"the step cannot be captured: {str(error).splitlines()[0]}"
            if self.is_required:
                raise TrainingError(f"trainer.cuda_graphs=true: {self.reason}; set it to false") from error
            log.info("training without CUDA graph: %s", self.reason)
        else:
            self._use(trainer, pl_module, graph)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the optimizer as if it had never been captured, so that any device can resume the run."""
        for optimizer in checkpoint["optimizer_states"]:
            for group in optimizer["param_groups"]:
                group.update({"capturable": False} if "capturable" in group else {})
            for key, state in optimizer["state"].items():
                step = {"step": state["step"].cpu()} if torch.is_tensor(state.get("step")) else {}
                optimizer["state"][key] = state | step

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Free the memory of the graph."""
        self._use(trainer, pl_module, None)

    def _use(self, trainer: L.Trainer, pl_module: L.LightningModule, graph: StepGraph | None) -> None:
        pl_module.step_graph = graph  # type: ignore[assignment]
        trainer.datamodule.replayed_size = None if graph is None else self.batch_size  # type: ignore[attr-defined]
