"""The one LightningModule: a network by name, its loss, loss and accuracy per subset."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from breakhis_pl.data.breakhis import TASKS
from breakhis_pl.data.datamodule import Batch
from breakhis_pl.models.heads import loss_of
from breakhis_pl.models.mixup import mixed, mixup_share, partners
from breakhis_pl.models.networks import NetworkSpec, build, head_of
from breakhis_pl.models.stages import ParameterGroup, layer_groups
from breakhis_pl.models.tasks import SummedTypes, summed
from breakhis_pl.randomness import derived_seed

OptimizerFactory: TypeAlias = Callable[[Iterable[nn.Parameter | ParameterGroup]], OptimizerLRScheduler]
GraphedNetwork: TypeAlias = Callable[[Tensor], Tensor | None]


_LOCAL: Mapping[str, Any] = {"sync_on_compute": False, "compute_with_cache": False}
"""Of metrics: each process sums over its own images until all are asked for; neither value stands for the other."""


class Classifier(L.LightningModule):
    """Tells the classes of a task apart.

    Args:
        backbone: Name of the network in its library.
        dropout: Probability of dropout in the report's head.
        library: Where the name is looked up: "report", "torchvision" or "timm".
        arguments: What timm's network is built with; None for none.
        head: "report", "linear" or "svm".
        image_size: Side in pixels of the images.
        is_frozen: Whether only the head is trained; the network below it then stays in evaluation mode.
        task: A key of `TASKS`.
        seed: The run's seed; initial weights and dropout follow it.
        memory_format: Of convolution weights, and so of activations.
        evaluated: Names of the subsets of the validation loaders, in their order.
        make_optimizers: From parameters to what `configure_optimizers` returns; not needed for evaluation.
        class_weights: Of the classes in the loss that training lowers; every loss that is shown is unweighted.
        label_smoothing: Of the loss that training lowers, in [0, 1).
        mixup: Alpha of the shares in which train images are mixed; 0 mixes nothing.
        layer_decay: Factor on the learning rate per stage, from the head down.

    Attributes:
        network: From images (batch, 3, height, width) to logits (batch, n_classes) of the task.
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
        task: str = "binary",
        seed: int = 0,
        memory_format: torch.memory_format = torch.channels_last,
        evaluated: Sequence[str] = ("test",),
        make_optimizers: OptimizerFactory | None = None,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        layer_decay: float = 1.0,
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
            task=task,
        )
        self.loss_function = loss_of(head)
        self.known_features: Tensor | None = None
        self.seed = seed
        self.evaluated = tuple(evaluated)
        self.make_optimizers = make_optimizers
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", weights, persistent=False)  # of the training, not of the network
        self.label_smoothing = label_smoothing
        self.mixup = mixup
        self.layer_decay = layer_decay
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "initialization"))
            self.network = build(self.spec).to(memory_format=memory_format)
        subsets = ("train", *self.evaluated)
        # the names of ModuleDict's own methods, such as train, cannot be keys
        self.losses = nn.ModuleDict({f"{name}_loss": MeanMetric(nan_strategy="disable", **_LOCAL) for name in subsets})
        n_classes = len(TASKS[task])
        self.accuracies = nn.ModuleDict(
            {
                # validate_args looks at every target, which waits for the device in every step
                f"{name}_accuracy": MulticlassAccuracy(n_classes, average="micro", validate_args=False, **_LOCAL)
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
        """Logits of benign and malignant, whatever the network tells apart, for normalized images.

        Args:
            images: float32, (batch, 3, height, width).

        Returns:
            float32, (batch, 2), whatever the precision inside.
        """
        logits: Tensor = self.network(images)
        return summed(logits.float(), self.spec.task)

    def binary_network(self) -> nn.Module:
        """The network, as one that tells benign from malignant."""
        return self.network if self.spec.task == "binary" else SummedTypes(self.network, self.spec.task)

    def logits_of(self, batch: Batch) -> Tensor:
        """Logits of the task's classes; from what is known where the network below the head never changes."""
        if self.known_features is None:
            logits: Tensor = self.network(batch.images)
        else:
            logits = head_of(self.network)(self.known_features.index_select(0, batch.rows))
        return logits.float()

    def train(self, mode: bool = True) -> "Classifier":
        """Training mode; what is frozen stays in evaluation mode, so that its statistics stay as they are."""
        super().train(mode)
        if mode and self.spec.is_frozen:
            self.network.eval()
            head_of(self.network).train()
        return self

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer and the schedule that the configuration names; nothing is kept of what is frozen."""
        if self.make_optimizers is None:
            return None
        if self.layer_decay < 1:
            return self.make_optimizers(layer_groups(self.network, decay=self.layer_decay))
        return self.make_optimizers(parameter for parameter in self.parameters() if parameter.requires_grad)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Makes dropout a function of seed, epoch, step, and process where there are several."""
        others = (self.global_rank,) if self.global_rank > 0 else ()
        torch.manual_seed(derived_seed(self.seed, "dropout", self.current_epoch, batch_idx, *others))

    def on_train_epoch_start(self) -> None:
        """Forgets the metrics of the epoch before."""
        self._reset("train")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch: weighted by class, of mixed images, smoothed targets where wanted; (), float32.

        What is shown of train images is the plain loss and accuracy, of a mixed image for the class that weighs more
        in it. Zero, with gradients of zero, where this process has no image of the batch.
        """
        if len(batch.rows) == 0:
            return torch.stack([each.sum() for each in self.parameters() if each.requires_grad]).sum() * 0
        share = mixup_share(self.mixup, seed=self.seed, epoch=self.current_epoch, step=batch_idx)
        batch = batch if share == 1 else batch._replace(images=mixed(batch.images, share))
        graphed = None if self.graphed_network is None else self.graphed_network(batch.images)
        logits = self.logits_of(batch) if graphed is None else graphed.float()
        loss = self._train_loss(logits, batch.targets)
        shown = batch.targets
        if share < 1:
            others = partners(batch.targets)
            loss = share * loss + (1 - share) * self._train_loss(logits, others)
            shown = batch.targets if share >= 0.5 else others
        is_plain = share == 1 and self.label_smoothing == 0 and self.class_weights is None
        shown_loss = loss if is_plain else self.loss_function(logits.detach(), shown)
        self._update("train", shown_loss.detach(), logits.detach(), shown)
        return loss

    def _train_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean over the images, whatever their classes weigh, so that shares of a batch add up to the whole."""
        if self.class_weights is None and self.label_smoothing == 0:
            return self.loss_function(logits, targets)
        return functional.cross_entropy(
            logits, targets, weight=self.class_weights, label_smoothing=self.label_smoothing, reduction="none"
        ).mean()

    def on_validation_epoch_start(self) -> None:
        """Forgets metrics and logits of the evaluation before."""
        self._outputs = {name: [] for name in self.evaluated}
        for name in self.evaluated:
            self._reset(name)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds a batch to metrics and logits of its subset."""
        name = self.evaluated[dataloader_idx]
        if len(batch.rows) == 0:  # more processes than batches
            return
        logits = self.logits_of(batch)
        self._update(name, self.loss_function(logits, batch.targets), logits, batch.targets)
        self._outputs[name].append((batch.rows, logits))

    def gather_outputs(self, gathered: Callable[[Any], Sequence[Any]]) -> None:
        """Puts rows and logits of all processes together, in the order of the rows.

        Args:
            gathered: From a value of this process to those of all.
        """
        own = {name: [(rows.cpu(), logits.cpu()) for rows, logits in self._outputs[name]] for name in self.evaluated}
        parts = gathered(own)
        for name in self.evaluated:
            rows, logits = (
                torch.cat(each) for each in zip(*(pair for part in parts for pair in part[name]), strict=True)
            )
            order = rows.argsort()
            self._outputs[name] = [(rows[order], logits[order])]

    def evaluated_logits(self, subset: str) -> tuple[Tensor, Tensor]:
        """Rows and logits of the last evaluation: int64 (n_images,) and float32 (n_images, n_classes), on the CPU."""
        rows, logits = zip(*self._outputs[subset], strict=True)
        return torch.cat(rows).cpu(), torch.cat(logits).cpu()

    def loss_and_accuracy(self, subset: str, *, of_all: bool = True) -> tuple[float, float]:
        """Mean loss and accuracy of a subset since the start of its last epoch.

        Args:
            subset: Which.
            of_all: Over the images of all processes, which then have to ask at the same time; else over this one's.
        """
        values = []
        for metric in self._metrics(subset):
            with metric.sync_context(should_sync=of_all):
                values.append(float(metric.compute()))
        return values[0], values[1]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the plain values that rebuild the network."""
        checkpoint["breakhis_pl"] = {
            "backbone": self.spec.backbone,
            "library": self.spec.library,
            "arguments": dict(self.spec.arguments),
            "head": self.spec.head,
            "is_frozen": self.spec.is_frozen,
            "dropout": self.spec.dropout,
            "class_names": list(TASKS[self.spec.task]),
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
