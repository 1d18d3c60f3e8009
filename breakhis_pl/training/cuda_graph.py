"""Forward and backward pass of a train step as a CUDA graph: one launch instead of hundreds."""

import logging
from collections.abc import Callable
from typing import cast

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from breakhis_pl.errors import TrainingError
from breakhis_pl.models.classifier import Classifier

log = logging.getLogger(__name__)


class CudaGraphs(Callback):
    """Capture the network at the start of the first epoch that trains all layers.

    Args:
        batch_size: Size of a full train batch; others, such as the last one of an epoch, run without the graph.
        image_size: Side in pixels.
        memory_format: Memory format of the images.
        first_epoch: Epochs before it, counted from 0, run without the graph.
        is_required: Raise if the network cannot be captured; otherwise train without a graph then.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        image_size: int,
        memory_format: torch.memory_format,
        first_epoch: int = 0,
        is_required: bool = True,
    ) -> None:
        self.first_epoch = first_epoch
        self.is_required = is_required
        self._has_failed = False
        self.batch_size = batch_size
        self.image_size = image_size
        self.memory_format = memory_format

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Capture once, on the device and in the precision of the training.

        Raises:
            TrainingError: If the network cannot be captured and the graph is required.
            torch.OutOfMemoryError: If memory does not suffice and the graph is required.
        """
        if not isinstance(pl_module, Classifier):
            raise TypeError(f"expected a Classifier, got {type(pl_module).__name__}")
        if trainer.current_epoch < self.first_epoch or pl_module.graphed_network is not None or self._has_failed:
            return
        shape = (self.batch_size, 3, self.image_size, self.image_size)
        sample = torch.zeros(shape, device=pl_module.device).contiguous(memory_format=self.memory_format)
        try:
            with trainer.precision_plugin.forward_context():
                pl_module.graphed_network = capture(pl_module.network, sample)
        except RuntimeError as error:
            if self.is_required and isinstance(error, torch.OutOfMemoryError):
                raise
            reason = str(error).split("\n", 1)[0]
            if self.is_required:
                raise TrainingError(
                    f"trainer.cuda_graphs=true: the network cannot be captured ({reason}); set it to false"
                ) from error
            self._has_failed = True
            log.info("training without CUDA graphs: %s", reason)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Free the memory of the graph."""
        if isinstance(pl_module, Classifier):
            pl_module.graphed_network = None


def capture(network: nn.Module, sample: Tensor) -> Callable[[Tensor], Tensor | None]:
    """Capture a network in training mode as a CUDA graph.

    Capturing runs the network a few times on the sample; the statistics of batch norm are restored afterwards.

    Args:
        network: On a CUDA device, in training mode, under the autocast of the training.
        sample: Tensor with shape and memory format of the images, (batch, 3, size, size); its values do not matter.

    Returns:
        Function from images to the network's output; None for images of another shape, which the graph cannot take.

    Raises:
        RuntimeError: If something in the network cannot be captured, or memory does not suffice.

    Source:
        https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    is_autocast, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    try:
        # with its cache on, autocast would keep copies of weights that later steps no longer have
        with torch.autocast("cuda", dtype=dtype, enabled=is_autocast, cache_enabled=False):
            replayed = cast(nn.Module, torch.cuda.make_graphed_callables(_Wrapper(network), (sample,)))
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for parameter in network.parameters():
            parameter.grad = None

    def replay(images: Tensor) -> Tensor | None:
        logits: Tensor | None = replayed(images) if images.shape == sample.shape else None
        return logits

    return replay


class _Wrapper(nn.Module):
    """Hold a network, so that capturing does not replace the `forward` of the network itself."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Call the network."""
        logits: Tensor = self.network(images)
        return logits
