"""The one LightningModule: a network by name, its loss, loss and accuracy per subset."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from breakhis_pl.data.breakhis import CLASS_NAMES
from breakhis_pl.data.datamodule import Batch
from breakhis_pl.models.heads import loss_of
from breakhis_pl.models.networks import NetworkSpec, build, head_of
from breakhis_pl.randomness import derived_seed

OptimizerFactory: TypeAlias = Callable[[Iterable[nn.Parameter]], OptimizerLRScheduler]
GraphedNetwork: TypeAlias = Callable[[Tensor], Tensor | None]


class Classifier(L.LightningModule):
    """Tells the classes of `CLASS_NAMES` apart.

    Args:
        backbone: Name of the network in its library.
        dropout: Probability of dropout in the report's head.
        library: Where the name is looked up: "report", "torchvision" or "timm".
        arguments: What timm's network is built with; None for none.
        head: "report", "linear" or "svm".
        image_size: Side in pixels of the images.
        is_frozen: Whether only the head is trained; the network below it then stays in evaluation mode.
        seed: The run's seed; initial weights and dropout follow it.
        memory_format: Of convolution weights, and so of activations.
        evaluated: Names of the subsets of the validation loaders, in their order.
        make_optimizers: From parameters to what `configure_optimizers` returns; not needed for evaluation.

    Attributes:
        network: From images (batch, 3, height, width) to logits (batch, 2).
        spec: The plain values that rebuild it.
        known_features: What the head is given for each row of the store, float, (n_images, n_features), where that
            never changes; None computes it for every batch.
        graphed_network: The same as a CUDA graph, for train batches of one size; None where there is none.
    """

    def __init__(
        self,
        backbone: str,
        *,
        dropout: float,
        library: str = "report",
        arguments: Mapping[str, Any] | None = None,
        head: str = "report",
        image_size: int = 224,
        is_frozen: bool = False,
        seed: int = 0,
        memory_format: torch.memory_format = torch.channels_last,
        evaluated: Sequence[str] = ("test",),
        make_optimizers: OptimizerFactory | None = None,
    ) -> None:
        super().__init__()
        self.spec = NetworkSpec(
            backbone=backbone,
            library=library,
            arguments=dict(arguments or {}),
            head=head,
            dropout=dropout,
            image_size=image_size,
            is_frozen=is_frozen,
        )
        self.loss_function = loss_of(head)
        self.known_features: Tensor | None = None
        self.seed = seed
        self.evaluated = tuple(evaluated)
        self.make_optimizers = make_optimizers
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "initialization"))
            self.network = build(self.spec).to(memory_format=memory_format)
        subsets = ("train", *self.evaluated)
        # the names of ModuleDict's own methods, such as train, cannot be keys
        self.losses = nn.ModuleDict({f"{name}_loss": MeanMetric(nan_strategy="disable") for name in subsets})
        self.accuracies = nn.ModuleDict(
            {
                # validate_args looks at every target, which waits for the device in every step
                f"{name}_accuracy": MulticlassAccuracy(len(CLASS_NAMES), average="micro", validate_args=False)
                for name in subsets
            }
        )
        self.graphed_network: GraphedNetwork | None = None
        self._outputs: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.train()  # Lightning trains each part in the mode it finds it in

    @property
    def backbone(self) -> str:
        """Name of the network in its library."""
        return self.spec.backbone

    @property
    def dropout(self) -> float:
        """Probability of dropout in the report's head."""
        return self.spec.dropout

    def forward(self, images: Tensor) -> Tensor:
        """Logits of normalized images.

        Args:
            images: float32, (batch, 3, height, width).

        Returns:
            float32, (batch, 2), whatever the precision inside.
        """
        logits: Tensor = self.network(images)
        return logits.float()

    def logits_of(self, batch: Batch) -> Tensor:
        """Logits of a batch; from what is known where the network below the head never changes."""
        if self.known_features is None:
            return self(batch.images)  # type: ignore[no-any-return]
        logits: Tensor = head_of(self.network)(self.known_features.index_select(0, batch.rows))
        return logits.float()

    def train(self, mode: bool = True) -> "Classifier":
        """Training mode; what is frozen stays in evaluation mode, so that its statistics stay as they are."""
        super().train(mode)
        if self.spec.is_frozen:
            self.network.eval()
            head_of(self.network).train(mode)
        return self

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer and the schedule that the configuration names; nothing is kept of what is frozen."""
        if self.make_optimizers is None:
            return None
        return self.make_optimizers(parameter for parameter in self.parameters() if parameter.requires_grad)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Makes dropout a function of seed, epoch and step."""
        torch.manual_seed(derived_seed(self.seed, "dropout", self.current_epoch, batch_idx))

    def on_train_epoch_start(self) -> None:
        """Forgets the metrics of the epoch before."""
        self._reset("train")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch; (), float32."""
        graphed = None if self.graphed_network is None else self.graphed_network(batch.images)
        logits = self.logits_of(batch) if graphed is None else graphed.float()
        loss = self.loss_function(logits, batch.targets)
        self._update("train", loss.detach(), logits.detach(), batch.targets)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forgets metrics and logits of the evaluation before."""
        self._outputs = {name: [] for name in self.evaluated}
        for name in self.evaluated:
            self._reset(name)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds a batch to metrics and logits of its subset."""
        name = self.evaluated[dataloader_idx]
        logits = self.logits_of(batch)
        self._update(name, self.loss_function(logits, batch.targets), logits, batch.targets)
        self._outputs[name].append((batch.rows, logits))

    def evaluated_logits(self, subset: str) -> tuple[Tensor, Tensor]:
        """Rows and logits of the last evaluation: int64 (n_images,) and float32 (n_images, 2), on the CPU."""
        rows, logits = zip(*self._outputs[subset], strict=True)
        return torch.cat(rows).cpu(), torch.cat(logits).cpu()

    def loss_and_accuracy(self, subset: str) -> tuple[float, float]:
        """Mean loss and accuracy of a subset since the start of its last epoch."""
        loss, accuracy = (float(metric.compute()) for metric in self._metrics(subset))
        return loss, accuracy

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the plain values that rebuild the network."""
        checkpoint["breakhis_pl"] = {
            "backbone": self.spec.backbone,
            "library": self.spec.library,
            "arguments": dict(self.spec.arguments),
            "head": self.spec.head,
            "is_frozen": self.spec.is_frozen,
            "dropout": self.spec.dropout,
            "class_names": list(CLASS_NAMES),
        }

    def _metrics(self, subset: str) -> tuple[MeanMetric, MulticlassAccuracy]:
        return self.losses[f"{subset}_loss"], self.accuracies[f"{subset}_accuracy"]  # type: ignore[return-value]

    def _reset(self, subset: str) -> None:
        for metric in self._metrics(subset):
            metric.reset()

    def _update(self, subset: str, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        mean_loss, accuracy = self._metrics(subset)
        mean_loss.update(loss.expand(len(targets)))  # torchmetrics 1.9 ignores weights if NaN is to stay NaN
        accuracy.update(logits, targets)
