"""What a user would pick instead: torchvision's ImageFolder with worker processes, timm's loader, plain Lightning."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from timm.data.loader import PrefetchLoader, fast_collate
from timm.data.transforms import ToNumpy
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from torchvision import transforms
from torchvision.datasets import ImageFolder

from breakhis_pl.models.backbones import build_network

MEAN, STD = (0.79, 0.63, 0.77), (0.11, 0.15, 0.10)
"""About those of the images at 200X; speed does not depend on them."""


def report_transforms(side: int, *, is_training: bool) -> list[Any]:
    """The report's transforms of Pillow images, up to the tensor: resize, and in training flips and rotation.

    Source:
        Otto et al. 2022.
    """
    resize = transforms.Resize((side, side))
    if not is_training:
        return [resize]
    return [
        resize,
        transforms.RandomHorizontalFlip(),
        transforms.RandomVerticalFlip(),
        transforms.RandomRotation(20),
    ]


def image_folder_loader(
    root: Path, *, side: int, batch_size: int, n_workers: int, is_training: bool = True, pin_memory: bool = False
) -> DataLoader[Any]:
    """An ImageFolder of torchvision with the report's transforms in worker processes that stay.

    Args:
        root: Folder with a folder per class.
        side: Of the images given, pixels.
        batch_size: Of the batches given.
        n_workers: Processes.
        is_training: Whether images are shuffled and augmented.
        pin_memory: Whether batches lie in page-locked memory.
    """
    chain = [
        *report_transforms(side, is_training=is_training),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    return DataLoader(
        ImageFolder(str(root), transforms.Compose(chain)),
        batch_size=batch_size,
        shuffle=is_training,
        num_workers=n_workers,
        persistent_workers=n_workers > 0,
        pin_memory=pin_memory,
    )


def timm_loader(root: Path, *, side: int, batch_size: int, n_workers: int, device: torch.device) -> Any:
    """The fast collate and prefetcher of timm over the same transforms; arguments as of `image_folder_loader`."""
    chain = [*report_transforms(side, is_training=True), ToNumpy()]
    loader: DataLoader[Any] = DataLoader(
        ImageFolder(str(root), transforms.Compose(chain)),
        batch_size=batch_size,
        shuffle=True,
        num_workers=n_workers,
        persistent_workers=n_workers > 0,
        pin_memory=device.type == "cuda",
        collate_fn=fast_collate,
    )
    return PrefetchLoader(loader, mean=MEAN, std=STD, device=device)


class PlainClassifier(L.LightningModule):
    """The module that Lightning's tutorials lead to.

    Args:
        backbone: Name of the network.
    """

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.network: nn.Module = build_network(backbone, dropout=0.4)
        self.train_accuracy = MulticlassAccuracy(2, average="micro")
        self.test_accuracy = MulticlassAccuracy(2, average="micro")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002 - Lightning's hook
        """Cross-entropy of a batch; (), float32."""
        loss, logits = self._loss(batch)
        self.train_accuracy(logits, batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        self.log("train_accuracy", self.train_accuracy, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:  # noqa: ARG002 - Lightning's hook
        """Logs loss and accuracy of a batch."""
        loss, logits = self._loss(batch)
        self.test_accuracy(logits, batch[1])
        self.log("test_loss", loss, on_epoch=True)
        self.log("test_accuracy", self.test_accuracy, on_epoch=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The report's optimizer."""
        return torch.optim.Adamax(self.parameters(), lr=5e-4)

    def _loss(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        images, targets = batch
        logits: Tensor = self.network(images).float()
        return functional.cross_entropy(logits, targets), logits
