"""LightningDataModule of a run: split, normalization statistics, augmentation, image cache, loaders.

The loaders yield sample indices. The pixels are on the device of the network, or on the host if they do not fit.
Batches are augmented and normalized on the device, in `on_after_batch_transfer`.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import lightning.pytorch as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader

from breakhis_pl.config import MIN_IMAGE_SIZE, AugmentationConfig, DataConfig
from breakhis_pl.data.augmentation import Augmentation, AugmentationParameters, normalize
from breakhis_pl.data.dataset import Dataset, Subset, open_dataset
from breakhis_pl.data.image_cache import ImageCache
from breakhis_pl.data.sampling import EpochSampler, class_weights, distribute_batches
from breakhis_pl.data.splits import Split, make_split
from breakhis_pl.data.stain import StainTarget, fit_stain
from breakhis_pl.errors import ConfigurationError, DataError
from breakhis_pl.run_folder import write_text

MAX_MEMORY_FRACTION = 0.5
"""Fraction of the free device memory that pixels may take; the rest is for the network."""

CUDA_EVAL_FACTOR = 4
"""Evaluation batches on a GPU are this much larger: nothing is kept for a backward pass."""


class Batch(NamedTuple):
    """Input of a network.

    Attributes:
        images: float32, (batch, 3, size, size), normalized.
        targets: int64, (batch,), index of the class.
        indices: int64, (batch,), sample indices.
        weights: float32, (batch,), factors on the loss of the images; None if all are 1.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor
    weights: Tensor | None = None


class _DeviceTensors(NamedTuple):
    """What batches are made of on a device; pixels is None if they stay on the host."""

    pixels: Tensor | None
    targets: Tensor
    weights: Tensor | None
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
        overfit_batches: Use only the train images of the first batches of epoch 0, in every epoch; 0 uses all.
        progress_bar: Show progress bars on a terminal.

    Attributes:
        dataset: Images that train, validation or test use; a sample index is a position in its records.
        split: Subset of each image.
        cache: Decoded images in the order of the records, after stain normalization.
        mean: Of each channel over all pixels of all train images, each once, in [0, 1].
        std: Likewise the population standard deviation.
        stain: Target of stain normalization; None for data.stain=none.
        replayed_size: Of train batches of this size, only the sample indices are passed on, to a CUDA graph.
    """

    dataset: Dataset
    split: Split
    cache: ImageCache
    mean: list[float]
    std: list[float]
    stain: StainTarget | None

    def __init__(
        self,
        data: DataConfig,
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
        self.replayed_size: int | None = None
        self._is_set_up = False
        self._augmentation = Augmentation(augmentation, seed=seed)
        self._parameters: tuple[int, torch.device, AugmentationParameters] | None = None
        self._tensors: dict[torch.device, _DeviceTensors] = {}

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
        self._decoded = ImageCache.open(
            self.dataset.records,
            image_size=self.data.image_size,
            folder=self.data.cache_dir,
            progress_bar=self.progress_bar,
        )
        if self.data.verify and not self._decoded.was_built:
            self._decoded.verify(self.dataset.records, progress_bar=self.progress_bar)
        self.stain, self.cache = None, self._decoded
        if self.data.stain != "none":
            self._normalize_stain(self._fit_stain(self.data.stain))
        self.mean, self.std = self.cache.channel_statistics(self.split.indices(Subset.TRAIN))
        if min(self.std) == 0:
            raise DataError(
                f"data.root: all pixels of a channel of all train images are equal (mean {self.mean}); check the images"
            )
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
        return class_weights(self._targets(self.split.indices(Subset.TRAIN)), n_classes=len(self.dataset.classes))

    def identity(self) -> dict[str, str]:
        """Return checksums and description of the images, by which runs recognize them."""
        return {
            "split_checksum": self.split.checksum(),
            "pixels_checksum": self.cache.checksum(),
            "description": self.dataset.description,
        }

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Return a loader of the sample indices of train images, in an order that follows seed and epoch."""
        indices, sampler = self._train_sampler()
        self._check_batches(len(sampler))
        return _make_loader(indices, BatchSampler(sampler, self.data.batch_size, drop_last=False))

    def val_dataloader(self) -> list[DataLoader[Tensor]]:
        """Return a loader per subset of `evaluated_subsets`.

        Lightning's validation loop also runs over test images, whose curve is shown; nothing is selected on them.
        """
        rank, world_size = self._rank_and_world_size()
        size = self._eval_batch_size(None if self.trainer is None else self.trainer.strategy.root_device)
        loaders = []
        for subset in self.evaluated_subsets:
            indices = self.split.indices(subset)
            batches = distribute_batches(len(indices), size, rank=rank, world_size=world_size)
            loaders.append(_make_loader(indices, batches))
        return loaders

    def eval_batches(self, subset: Subset, *, device: torch.device) -> Iterator[Tensor]:
        """Yield the sample indices of a subset on a device, int64, in the order of the records."""
        indices = torch.tensor(self.split.indices(subset), device=device)
        yield from torch.split(indices, self._eval_batch_size(device))

    def transfer_batch_to_device(
        self, batch: Tensor, device: torch.device, dataloader_idx: int
    ) -> tuple[Tensor, Tensor | None]:
        """Move sample indices to the device, and their pixels if these stay on the host."""
        is_resident = self._tensors_on(device).pixels is not None
        pixels = None if is_resident else self._gather_on_host(batch, device)
        if device.type == "cuda":
            batch = batch.pin_memory()  # from other memory, the copy may wait for the device
        return batch.to(device, non_blocking=True), pixels

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor | None], dataloader_idx: int) -> Batch | Tensor:
        """Make a batch of images, augmented during training."""
        indices, pixels = batch
        epoch = self.trainer.current_epoch if self.trainer is not None and self.trainer.training else None
        if epoch is not None and len(indices) == self.replayed_size:
            self._parameters_of(epoch, indices.device)
            return indices
        return self.batch(indices, epoch=epoch, pixels=pixels)

    def batch(self, indices: Tensor, *, epoch: int | None = None, pixels: Tensor | None = None) -> Batch:
        """Make a batch on the device of the indices.

        Args:
            indices: Sample indices, int64 (batch,).
            epoch: Epoch, from 0, whose augmentation is applied; None for none.
            pixels: Their pixels, uint8 (batch, size, size, 3), if they are on the device already.
        """
        own = self._tensors_on(indices.device)
        if own.pixels is not None:
            pixels = own.pixels.index_select(0, indices)
        elif pixels is None:
            pixels = self._gather_on_host(indices.cpu(), indices.device)
        parameters = None
        if epoch is not None and not self._augmentation.is_identity:
            parameters = self._parameters_of(epoch, indices.device).select(indices)
        images = normalize(pixels, mean=own.mean, std=own.std, parameters=parameters, memory_format=self.memory_format)
        weights = None if own.weights is None else own.weights.index_select(0, indices)
        return Batch(images, own.targets.index_select(0, indices), indices, weights)

    def release(self) -> None:
        """Free the memory of the device."""
        self._tensors.clear()
        self._parameters = None

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to use a checkpoint without the train images."""
        return {
            "mean": self.mean,
            "std": self.std,
            "split_checksum": self.split.checksum(),
            "stain": None if self.stain is None else self.stain.to_plain(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Normalize as the network of a checkpoint was trained, after `setup`."""
        self.mean, self.std = list(state_dict["mean"]), list(state_dict["std"])
        stain = None if state_dict["stain"] is None else StainTarget.from_plain(state_dict["stain"])
        if stain != self.stain:
            self._normalize_stain(stain)
        self.release()

    def _fit_stain(self, method: str) -> StainTarget:
        """Fit the target to the train images, or read it from the file beside the cache where it was saved."""
        train = self.split.indices(Subset.TRAIN)
        key = hashlib.sha256(f"{method} {self._decoded.pixels_checksum} {train}".encode()).hexdigest()[:16]
        path = self._decoded.path.with_name(f"{self._decoded.path.stem}-{method}-{key}.json")
        if not path.is_file():
            pixels = self._decoded.pixels.numpy()
            target = fit_stain(method, (pixels[index] for index in train))
            write_text(path, json.dumps(target.to_plain()))
        return StainTarget.from_plain(json.loads(path.read_text()))

    def _normalize_stain(self, target: StainTarget | None) -> None:
        """Set the target, and the cache to the images that are normalized to it."""
        self.stain, self.cache = target, self._decoded
        if target is not None:
            key = json.dumps(target.to_plain())
            self.cache = self._decoded.transform(target.normalize, key=key, progress_bar=self.progress_bar)

    def _targets(self, indices: Sequence[int]) -> list[int]:
        return [self.dataset.records[index].target for index in indices]

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _train_sampler(self) -> tuple[Sequence[int], EpochSampler]:
        """Return the sample indices of the images to train on, and the sampler of positions in them."""
        rank, world_size = self._rank_and_world_size()
        make = partial(
            EpochSampler,
            seed=self.seed,
            epoch=lambda: 0 if self.trainer is None else self.trainer.current_epoch,
            rank=rank,
            world_size=world_size,
        )
        indices = self.split.indices(Subset.TRAIN)
        sampler = make(self._targets(indices), balance=self.data.balance)
        if self.overfit_batches == 0:
            return indices, sampler
        n_images = self.overfit_batches * self.data.batch_size * world_size
        few = [indices[position] for position in sampler.positions(0)[:n_images]]
        return few, make(self._targets(few), balance="none")  # balanced already

    def _eval_batch_size(self, device: torch.device | None) -> int:
        factor = CUDA_EVAL_FACTOR if device is not None and device.type == "cuda" else 1
        return self.data.eval_batch_size or self.data.batch_size * factor

    def _check_batches(self, n_images: int) -> None:
        """Refuse train batches that batch norm cannot use: a network reduces the smallest images to one pixel.

        Raises:
            ConfigurationError: If the last batch of an epoch is a single image.
        """
        size = self.data.batch_size
        if self.data.image_size <= MIN_IMAGE_SIZE and (n_images - 1) % size == 0:
            raise ConfigurationError(
                f"data.batch_size={size}: the last batch of {n_images} train images has a single one, which batch norm "
                f"cannot use at data.image_size={self.data.image_size}; change one of them"
            )

    def _tensors_on(self, device: torch.device) -> _DeviceTensors:
        """Return what batches are made of on a device, moved there once."""
        if device not in self._tensors:
            pixels = self.cache.pixels
            fits = device.type != "cuda" or pixels.nbytes <= MAX_MEMORY_FRACTION * torch.cuda.mem_get_info(device)[0]
            weights = [record.weight for record in self.dataset.records]
            is_resident = fits if self.data.pixels == "auto" else self.data.pixels == "device"
            self._tensors[device] = _DeviceTensors(
                pixels=pixels.to(device) if is_resident else None,
                targets=torch.tensor(self._targets(range(len(pixels))), device=device),
                weights=None if set(weights) == {1.0} else torch.tensor(weights, device=device),
                mean=torch.tensor(self.mean, device=device),
                std=torch.tensor(self.std, device=device),
            )
        return self._tensors[device]

    def _gather_on_host(self, indices: Tensor, device: torch.device) -> Tensor:
        """Gather pixels and send them to a device without waiting for it; uint8, (batch, size, size, 3)."""
        shape = (len(indices), *self.cache.pixels.shape[1:])
        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
        torch.index_select(self.cache.pixels, 0, indices, out=pixels)
        return pixels.to(device, non_blocking=True)

    def _parameters_of(self, epoch: int, device: torch.device) -> AugmentationParameters:
        """Return the augmentation of all images in an epoch, sampled once."""
        if self._parameters is None or self._parameters[:2] != (epoch, device):
            parameters = self._augmentation.sample(len(self.dataset.records), epoch, device)
            if self._parameters is not None and self._parameters[1] == device:
                parameters = self._parameters[2].fill(parameters)  # a CUDA graph reads them where they are
            self._parameters = (epoch, device, parameters)
        return self._parameters[2]


def _make_loader(indices: Sequence[int], batches: Any) -> DataLoader[Tensor]:
    """Return a loader of batches of sample indices, with a generator of its own.

    Without one, making an iterator would draw from the global generator, which training uses.
    """
    dataset: Any = np.asarray(indices)  # an array gives the sample indices at a batch of positions
    return DataLoader(dataset, sampler=batches, batch_size=None, generator=torch.Generator())
