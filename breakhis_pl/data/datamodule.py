"""LightningDataModule of a run: split, normalization statistics, augmentation, image cache, loaders.

The loaders yield sample indices. The pixels lie on the device of the network, or on the host if they do not fit; a batch
is gathered, augmented and normalized on the device in `on_after_batch_transfer`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader

from breakhis_pl.config import AugmentationConfig, SharedDataConfig
from breakhis_pl.data.augmentation import Augmentation, AugmentationParameters, normalize
from breakhis_pl.data.dataset import Dataset, Subset
from breakhis_pl.data.image_cache import ImageCache
from breakhis_pl.data.sampling import EpochSampler, IndexDataset, class_weights, distribute_batches
from breakhis_pl.data.sources import open_dataset
from breakhis_pl.data.splits import Split, make_split
from breakhis_pl.data.stain import StainTarget, fit_stain
from breakhis_pl.errors import ConfigurationError, DataError

MAX_MEMORY_SHARE = 0.5
"""Share of the free device memory that pixels may take; the rest is for the network."""

CUDA_EVAL_FACTOR = 4
"""Evaluation batches on a GPU are this much larger: nothing is kept for a backward pass."""


class Batch(NamedTuple):
    """Input of a network.

    Attributes:
        images: float32, (batch, 3, size, size), normalized.
        targets: int64, (batch,), index of the class.
        indices: int64, (batch,), sample indices.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor


class _OnDevice(NamedTuple):
    """Tensors on a device; pixels is None if they stay on the host."""

    pixels: Tensor | None
    targets: Tensor
    mean: Tensor
    std: Tensor


class BreakHisDataModule(L.LightningDataModule):
    """Images of a run.

    Args:
        data: Keys of `data`.
        augmentation: Keys of `augmentation`; used for train batches only.
        seed: Seed of the run: of random splits, the order of train images and augmentation.
        task: "binary" or "subtype".
        evaluate_on: Subsets that are evaluated after every epoch, if the split has them.
        memory_format: Memory format of the images of a batch.
        overfit_batches: Use only the first train images, as many as fill these batches, in every epoch; 0 uses all.
        progress_bar: Show progress bars on a terminal.

    Attributes:
        dataset: The images that train, validation or test use.
        split: The subset of each image.
        cache: Decoded images, in the order of `dataset.records`, after stain normalization.
        mean: Per channel over all pixels of all train images, each once, in [0, 1].
        std: Likewise the population standard deviation.
        stain: Target of stain normalization; None without.
    """

    dataset: Dataset
    split: Split
    cache: ImageCache
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __init__(
        self,
        data: SharedDataConfig,
        augmentation: AugmentationConfig,
        *,
        seed: int,
        task: str = "binary",
        evaluate_on: Sequence[Subset] = (Subset.VAL, Subset.TEST),
        memory_format: torch.memory_format = torch.channels_last,
        overfit_batches: int = 0,
        progress_bar: bool = True,
    ) -> None:
        super().__init__()
        self.data = data
        self.seed = seed
        self.task = task
        self.evaluate_on = tuple(evaluate_on)
        self.memory_format = memory_format
        self.overfit_batches = overfit_batches
        self.progress_bar = progress_bar
        self.stain: StainTarget | None = None
        self._augmentation = Augmentation(augmentation, seed=seed)
        self._parameters: tuple[int, torch.device, AugmentationParameters] | None = None
        self._on_device: dict[torch.device, _OnDevice] = {}
        self._host_pixels: Tensor | None = None
        self._is_set_up = False

    def prepare_data(self) -> None:
        """Generate and decode images if they are not cached; Lightning calls this in one process."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Split the images, open the cache, compute the statistics; a second call does nothing.

        Raises:
            DataError: If images cannot be read, or a subset lacks a class.
        """
        if self._is_set_up:
            return
        dataset = open_dataset(self.data, task=self.task, progress_bar=self.progress_bar)
        self.split = make_split(dataset, self.data, seed=self.seed)
        self.dataset = self.split.dataset
        self._check_batches()
        self.cache = ImageCache.open(
            self.dataset.records,
            image_size=self.data.image_size,
            folder=self.data.cache_dir,
            progress_bar=self.progress_bar,
        )
        if self.data.verify and not self.cache.was_built:
            self.cache.verify(self.dataset.records, progress_bar=self.progress_bar)
        train = self.split.indices(Subset.TRAIN)
        if self.data.stain != "none":
            pixels = self.cache.pixels.numpy()
            self.stain = fit_stain(self.data.stain, (pixels[index] for index in train))
            self.cache = self.cache.transform(
                self.stain.normalize, key=str(self.stain.to_plain()), progress_bar=self.progress_bar
            )
        mean, std = self.cache.channel_statistics(train)
        if min(std) == 0:
            raise DataError("train images have no contrast: all pixels of a channel are equal; check the images")
        self.mean, self.std = (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])
        self._is_set_up = True

    @property
    def evaluated_subsets(self) -> tuple[Subset, ...]:
        """Subsets that are evaluated after every epoch."""
        return tuple(subset for subset in self.evaluate_on if subset in self.split.subsets)

    @property
    def class_weights(self) -> Tensor | None:
        """Weights of the classes in the train loss, float32 (n_classes,); None if all are 1."""
        if self.data.balance != "loss":
            return None
        return class_weights(self._targets(Subset.TRAIN), n_classes=len(self.dataset.classes))

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Return a loader of the sample indices of train images, in an order that follows seed and epoch."""
        train = list(self.split.indices(Subset.TRAIN))
        if self.overfit_batches > 0:
            order = EpochSampler(self._targets(Subset.TRAIN), balance="none", seed=self.seed, epoch=lambda: 0)
            train = [train[position] for position in order.positions(0)[: self.overfit_batches * self.data.batch_size]]
        sampler = EpochSampler(
            [self.dataset.records[index].target for index in train],
            balance=self.data.balance,
            seed=self.seed,
            epoch=lambda: 0 if self.trainer is None else self.trainer.current_epoch,
            rank=0 if self.trainer is None else self.trainer.global_rank,
            world_size=1 if self.trainer is None else self.trainer.world_size,
        )
        return _make_loader(train, BatchSampler(sampler, self.data.batch_size, drop_last=False))

    def val_dataloader(self) -> list[DataLoader[Tensor]]:
        """Return a loader per subset of `evaluated_subsets`.

        Lightning's validation loop also runs over test images, whose curve is shown; nothing is selected on them.
        """
        rank, world_size = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        loaders = []
        for subset in self.evaluated_subsets:
            indices = self.split.indices(subset)
            size = self._eval_batch_size(None if self.trainer is None else self.trainer.strategy.root_device)
            batches = distribute_batches(len(indices), size, rank=rank, world_size=world_size)
            loaders.append(_make_loader(indices, batches))
        return loaders

    def eval_batches(self, subset: Subset | str, *, device: torch.device) -> Iterator[Tensor]:
        """Yield the sample indices of a subset on a device, int64, in the order of the records."""
        yield from torch.tensor(self.split.indices(Subset(subset)), device=device).split(self._eval_batch_size(device))

    def transfer_batch_to_device(self, batch: Tensor, device: torch.device, dataloader_idx: int) -> Tensor:
        """Move sample indices to the device."""
        return batch.to(device, non_blocking=True)

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> Batch:
        """Make the batch of some sample indices; augmented during training."""
        is_training = self.trainer is not None and self.trainer.training
        return self.batch(batch, epoch=self.trainer.current_epoch if is_training and self.trainer is not None else None)

    def batch(self, indices: Tensor, *, epoch: int | None = None) -> Batch:
        """Make a batch on the device of the indices.

        Args:
            indices: Sample indices, int64 (batch,).
            epoch: Epoch, from 0, whose augmentation is applied; None for none.
        """
        own = self._tensors_on(indices.device)
        if own.pixels is not None:
            pixels = own.pixels.index_select(0, indices)
        else:
            pixels = self._gather_on_host(indices)
        parameters = None
        if epoch is not None and not self._augmentation.is_identity:
            parameters = self._parameters_of(epoch, indices.device).select(indices)
        images = normalize(pixels, mean=own.mean, std=own.std, parameters=parameters, memory_format=self.memory_format)
        return Batch(images, own.targets.index_select(0, indices), indices)

    def release(self) -> None:
        """Free the memory of the device."""
        self._on_device.clear()
        self._parameters = self._host_pixels = None

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs to be used without the train images."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "image_size": self.data.image_size,
            "split_checksum": self.split.checksum(),
            "stain": None if self.stain is None else self.stain.to_plain(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the statistics of a checkpoint."""
        self.mean, self.std = tuple(state_dict["mean"]), tuple(state_dict["std"])
        self._on_device.clear()

    def _targets(self, subset: Subset) -> list[int]:
        return [self.dataset.records[index].target for index in self.split.indices(subset)]

    def _eval_batch_size(self, device: torch.device | None) -> int:
        factor = CUDA_EVAL_FACTOR if device is not None and device.type == "cuda" else 1
        return self.data.eval_batch_size or self.data.batch_size * factor

    def _check_batches(self) -> None:
        """Refuse a train batch of a single image, which batch norm cannot use.

        Raises:
            ConfigurationError: If there is one.
        """
        n_train = EpochSampler(self._targets(Subset.TRAIN), balance=self.data.balance, seed=0, epoch=lambda: 0).n_images
        if self.data.batch_size == 1 or n_train % self.data.batch_size == 1:
            raise ConfigurationError(
                f"data.batch_size={self.data.batch_size}: of {n_train} train images, the last batch would be a single "
                "one, which batch norm cannot use; set another batch size"
            )

    def _tensors_on(self, device: torch.device) -> _OnDevice:
        """Return targets, statistics and, if they fit, pixels on a device."""
        if device not in self._on_device:
            pixels = self.cache.pixels
            fits = device.type != "cuda" or pixels.numel() <= MAX_MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]
            is_resident = fits if self.data.pixels == "auto" else self.data.pixels == "device"
            if not is_resident and device.type == "cuda":
                self._host_pixels = pixels.pin_memory()
            self._on_device[device] = _OnDevice(
                pixels=pixels.to(device) if is_resident else None,
                targets=torch.tensor([record.target for record in self.dataset.records], device=device),
                mean=torch.tensor(self.mean, dtype=torch.float32, device=device),
                std=torch.tensor(self.std, dtype=torch.float32, device=device),
            )
        return self._on_device[device]

    def _gather_on_host(self, indices: Tensor) -> Tensor:
        pixels = self.cache.pixels if self._host_pixels is None else self._host_pixels
        return pixels.index_select(0, indices.cpu()).to(indices.device)

    def _parameters_of(self, epoch: int, device: torch.device) -> AugmentationParameters:
        """Return the augmentation of all images in an epoch, sampled once."""
        if self._parameters is None or self._parameters[:2] != (epoch, device):
            parameters = self._augmentation.sample(len(self.dataset.records), epoch, device)
            self._parameters = (epoch, device, parameters)
        return self._parameters[2]


def _make_loader(indices: Sequence[int], batches: Any) -> DataLoader[Tensor]:
    """Return a loader of batches of sample indices, with a generator of its own.

    Without one, making an iterator would draw from the global generator, which training uses.
    """
    return DataLoader(IndexDataset(indices), sampler=batches, batch_size=None, generator=torch.Generator())
