"""The LightningModule: a network by name, its loss, and loss and metrics of every subset after every epoch."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributions import Beta
from torch.nn import functional
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassF1Score,
)

from breakhis_pl.config import ModelConfig
from breakhis_pl.data.datamodule import Batch
from breakhis_pl.models.backbones import build_network
from breakhis_pl.randomness import derived_seed

if TYPE_CHECKING:
    from breakhis_pl.training.cuda_graph import StepGraph

ConfigureOptimizers: TypeAlias = Callable[[nn.Module], OptimizerLRScheduler]


class Classifier(L.LightningModule):
    """Image classifier.

    The first arguments are plain values, which a checkpoint holds: `Classifier.load_from_checkpoint(path)` rebuilds
    the network from them. The keyword arguments matter for training only.

    Args:
        model: Keys and values of `ModelConfig`.
        classes: Names of the classes that the network separates.
        parents: Index in `parent_classes` of each class; None if the classes are final.
        parent_classes: Names of the classes that results are reported for.
        image_size: Side of the images in pixels.
        pretrained: Load the weights that `model` names.
        seed: Seed of initial weights, dropout and mixup.
        memory_format: Memory format of convolution weights.
        subsets: Names of the subsets of the validation loaders, in their order.
        configure: Returns optimizer and schedule of this module; None for evaluation.
        class_weights: Weights of the classes in the train loss; (n_classes,).
        label_smoothing: Fraction of a target that the train loss spreads over all classes.
        mixup: Alpha of mixup; 0 switches it off.

    Attributes:
        network: From images, float32 (batch, 3, size, size), to logits, (batch, n_classes).
        train_sums: float32, (3,), over the train images of the epoch: of loss, of correct ones, of all.
        step_graph: Replays the train step of a batch given by its sample indices; None without a CUDA graph.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        *,
        classes: Sequence[str],
        parents: Sequence[int] | None,
        parent_classes: Sequence[str],
        image_size: int,
        pretrained: bool = False,
        seed: int = 0,
        memory_format: torch.memory_format = torch.channels_last,
        subsets: Sequence[str] = ("test",),
        configure: ConfigureOptimizers | None = None,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters("model", "classes", "parents", "parent_classes", "image_size", logger=False)
        self.config = ModelConfig.model_validate(model)
        self.classes, self.parent_classes = tuple(classes), tuple(parent_classes)
        self.parents = None if parents is None else tuple(parents)
        self.image_size = image_size
        self.seed = seed
        self.subsets = tuple(subsets)
        self.configure = configure
        self.label_smoothing = label_smoothing
        self.mixup = Beta(torch.tensor([mixup]), torch.tensor([mixup])) if mixup > 0 else None
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", class_weights, persistent=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "initialization"))
            self.network = build_network(
                self.config, n_classes=len(self.classes), image_size=image_size, pretrained=pretrained
            ).to(memory_format=memory_format)
        if self.config.freeze:
            self.network.backbone.requires_grad_(False)
        self.parent_of: Tensor | None
        self.mixup_fraction: Tensor
        self.train_sums: Tensor
        self.register_buffer("parent_of", None if parents is None else torch.tensor(parents), persistent=False)
        self.log_membership: Tensor
        if parents is not None:  # 0 in the column of the parent, else -inf; (n_classes, n_parent_classes)
            is_in_parent = functional.one_hot(torch.tensor(parents), len(parent_classes))
            self.register_buffer("log_membership", is_in_parent.float().log(), persistent=False)
        self.register_buffer("mixup_fraction", torch.ones(()), persistent=False)
        self.register_buffer("train_sums", torch.zeros(3), persistent=False)
        self.step_graph: StepGraph | None = None
        self.metrics = nn.ModuleDict({f"{name}_metrics": self._make_metrics(name) for name in subsets})
        self.train()

    def _make_metrics(self, subset: str) -> MetricCollection:
        """Make metrics of the final classes; validate_args would read every target back from the device."""
        n_classes = len(self.parent_classes)
        metrics: dict[str, Any] = {
            "accuracy": MulticlassAccuracy(n_classes, average="micro", validate_args=False),
            "balanced_accuracy": MulticlassAccuracy(n_classes, average="macro", validate_args=False),
            "weighted_f1": MulticlassF1Score(n_classes, average="weighted", validate_args=False),
            "auroc": MulticlassAUROC(n_classes, average="macro", validate_args=False),
        }
        return MetricCollection(metrics, prefix=f"{subset}_")

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits of the final classes.

        Args:
            images: float32, (batch, 3, size, size), normalized.

        Returns:
            float32, (batch, n_parent_classes).
        """
        return self.sum_logits(self.network(images).float())

    def sum_logits(self, logits: Tensor) -> Tensor:
        """Sum the probabilities of the classes to those of the final classes, as logits.

        Args:
            logits: float32, (batch, n_classes).

        Returns:
            float32, (batch, n_parent_classes); the same tensor if the classes are final.
        """
        if self.parents is None:
            return logits
        return (logits[:, :, None] + self.log_membership).logsumexp(dim=1)

    def sum_targets(self, targets: Tensor) -> Tensor:
        """Return the final class of each target; int64, (batch,)."""
        return targets if self.parent_of is None else self.parent_of[targets]

    def train(self, mode: bool = True) -> "Classifier":
        """Set training mode; a frozen backbone stays in evaluation mode, so that its statistics do not change."""
        super().train(mode)
        if mode and self.config.freeze:
            self.network.backbone.eval()
        return self

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return what the configuration names."""
        return None if self.configure is None else self.configure(self.network)

    def on_train_batch_start(self, batch: Batch | Tensor, batch_idx: int) -> None:
        """Seed dropout and mixup by (seed, epoch, step, rank), so that a resumed run draws what an uncut one draws."""
        if batch_idx == 0:
            self.train_sums.zero_()
        rank = (self.global_rank,) if self.global_rank > 0 else ()
        torch.manual_seed(derived_seed(self.seed, "dropout", self.current_epoch, batch_idx, *rank))
        if self.mixup is not None:
            self.mixup_fraction.fill_(self.mixup.sample().item())

    def training_step(self, batch: Batch | Tensor, batch_idx: int) -> Tensor:
        """Return the loss of a batch, float32, (); sample indices alone are replayed by the CUDA graph."""
        if isinstance(batch, Tensor):
            return cast("StepGraph", self.step_graph)(batch)
        return self.compute_loss(batch)

    def compute_loss(self, batch: Batch) -> Tensor:
        """Compute the loss of a train batch, float32, (), and add to `train_sums`; a CUDA graph can capture it."""
        images, targets, weights = batch.images, batch.targets, batch.weights
        if self.mixup is not None:
            one_hot = torch.eye(len(self.classes), device=targets.device)[targets]
            one_hot = one_hot if weights is None else one_hot * weights[:, None]  # mixed with the targets
            images, targets = mix(images, self.mixup_fraction), mix(one_hot, self.mixup_fraction)  # (batch, n_classes)
            if weights is not None:
                weights = targets.sum(dim=1)
                targets = targets / weights[:, None]
        logits = self.network(images).float()
        loss = self.train_loss(logits, targets, weights)
        self.add_to_sums(loss, logits, targets if targets.ndim == 1 else targets.argmax(dim=1))
        return loss

    @torch.no_grad()
    def add_to_sums(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a batch to `train_sums`: loss, (), logits, float32 (batch, n_classes), and targets, int64 (batch,)."""
        is_correct = self.sum_logits(logits).argmax(dim=1) == self.sum_targets(targets)
        n_images = torch.full_like(loss, len(targets))
        self.train_sums += torch.stack([loss * n_images, is_correct.sum(dtype=loss.dtype), n_images])

    def on_train_batch_end(self, outputs: Any, batch: Batch | Tensor, batch_idx: int) -> None:
        """Log loss and accuracy of the epoch after its last batch."""
        if self.trainer.is_last_batch:
            sums = self.trainer.strategy.reduce(self.train_sums.clone(), reduce_op="sum")
            loss, accuracy = sums[:2] / sums[2]
            options: dict[str, Any] = {"on_step": False, "on_epoch": True, "logger": False, "batch_size": 1}
            self.log("train_loss", loss, prog_bar=True, **options)
            self.log("train_accuracy", accuracy, **options)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute the gradients; a replayed step has computed them."""
        if loss.requires_grad:
            super().backward(loss, *args, **kwargs)
        elif self.step_graph is not None:
            self.step_graph.set_gradients()

    def train_loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Compute the cross-entropy with class weights, label smoothing and weights of the images.

        The mean is over images, not weights.
        """
        if self.class_weights is None and weights is None:
            return functional.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        losses = functional.cross_entropy(
            logits, targets, weight=self.class_weights, label_smoothing=self.label_smoothing, reduction="none"
        )
        return losses.mean() if weights is None else (losses * weights).mean()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the metrics of its subset, validation or test; nothing is selected on test images."""
        subset = self.subsets[dataloader_idx]
        logits = self.network(batch.images).float()
        loss = functional.cross_entropy(logits, batch.targets)
        self.log(
            f"{subset}_loss",
            loss,
            on_step=False,
            on_epoch=True,
            logger=False,
            batch_size=len(logits),
            sync_dist=True,
            add_dataloader_idx=False,
        )
        self.update_metrics(subset, logits, batch.targets)

    def update_metrics(self, subset: str, logits: Tensor, targets: Tensor) -> None:
        """Add logits, float32 (batch, n_classes), and targets, int64 (batch,), to the epoch's metrics of a subset."""
        metrics: MetricCollection = self.metrics[f"{subset}_metrics"]  # type: ignore[assignment]
        metrics.update(self.sum_logits(logits).softmax(dim=1), self.sum_targets(targets))
        self.log_dict(metrics, on_step=False, on_epoch=True, logger=False, add_dataloader_idx=False)


def mix(values: Tensor, fraction: Tensor) -> Tensor:
    """Mix each item of a batch with the one before it; fraction, (), is its own share.

    Source:
        Zhang et al. 2018, mixup, https://arxiv.org/abs/1710.09412.
    """
    return values.roll(1, 0).mul_(1 - fraction).add_(values * fraction)
