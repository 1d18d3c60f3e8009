"""The data of a run as Lightning wants them: split, normalization statistics, augmentation, loaders.

The loaders hand out rows of the store. The pixels lie on the device of the network, or on the host if they do not fit;
each batch is augmented and normalized on the device, in `on_after_batch_transfer`.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader

from breakhis_pl.config import (
    SMALLEST_IMAGE,
    AugmentationConfig,
    BreakHisDataConfig,
    DataConfig,
    SyntheticDataConfig,
    all_magnifications,
    evaluated_magnifications,
)
from breakhis_pl.cores import n_cores
from breakhis_pl.data.augment import Augmentation, augmentation_of_epoch, changes_anything, to_network_input
from breakhis_pl.data.balance import TrainOrder, class_weights
from breakhis_pl.data.breakhis import TASKS, Subset
from breakhis_pl.data.domain import appearances, fit_domain, plain_domain
from breakhis_pl.data.drawn import synthetic_folder
from breakhis_pl.data.index import ImageRecord, check_complete, describe, index_images
from breakhis_pl.data.row_loading import DealtBatches, Rows, SharedBatches, ShuffledSampler, as_they_are
from breakhis_pl.data.splits import (
    Split,
    at_magnifications,
    check_trainable,
    official_split,
    ratio_split,
    with_validation,
)
from breakhis_pl.data.stain import StainTarget
from breakhis_pl.data.stained_store import fit_stain, open_stained_store
from breakhis_pl.data.store import Store, channel_statistics, open_store, verify_store
from breakhis_pl.errors import ConfigurationError, DataFolderError, ImageError, IncompleteDataError
from breakhis_pl.processes import ALONE

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """What a network is given.

    Attributes:
        images: float32, (batch, 3, size, size), normalized.
        targets: int64, (batch,), index of the class.
        rows: int64, (batch,), rows of the store.
    """

    images: Tensor
    targets: Tensor
    rows: Tensor


class BreakHisDataModule(L.LightningDataModule):
    """Images, split and statistics of a run.

    Args:
        data: The keys of `data`.
        augmentation: The keys of `augmentation`; used for train batches only.
        seed: The run's seed: of a ratio split, the order of train images, and augmentation.
        show_progress: Whether bars are shown while images are drawn or decoded.
        task: A key of `TASKS`; targets are of its classes.

    Attributes:
        records: All images that train, validation or test have, in the order of the store's rows.
        n_found: Number of images at the wanted magnifications; more than records where test has magnifications of its
            own: then those of its patients at train's are left out, and the other way round.
        split: Subset of each record.
        is_complete: Whether these are exactly the published images.
        description: One line on what is there.
        mean: Of red, green and blue over all pixels of all train images, each once whatever data.balance is, after
            stain normalization; values in [0, 1].
        std: Likewise, the population standard deviation.
        evaluated: Subsets that `val_dataloader` gives, in this order: val where there is one, and test, unless another
            choice is made after `index`.
        memory_format: Of the images of a batch.
        is_resident: Whether the pixels lie on the device; if not, each batch is gathered on the host and sent there.
        eval_batch_size: Rows per batch of `val_dataloader`.
        place: Of this process among those that share every batch.
        stain: What the stains of all images are brought to; None where they stay as they are. Fitted by `setup` to the
            train images unless it was set before, as from a checkpoint.
        n_stain_unchanged: Number of images without stains that can be told apart, which stay as they are.
    """

    records: tuple[ImageRecord, ...]
    n_found: int
    split: Split
    is_complete: bool
    description: str
    store: Store
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __init__(
        self,
        data: DataConfig,
        augmentation: AugmentationConfig,
        *,
        seed: int,
        show_progress: bool = True,
        task: str = "binary",
    ) -> None:
        super().__init__()
        self.data = data
        self.augmentation = augmentation
        self.seed = seed
        self.task = task
        self.show_progress = show_progress
        self.evaluated: tuple[Subset, ...] = (Subset.TEST,)
        self.memory_format = torch.channels_last
        self.is_resident = True
        self.eval_batch_size = data.eval_batch_size or data.batch_size
        self.place = ALONE
        self.stain: StainTarget | None = None
        self.n_stain_unchanged = 0
        self._is_set_up = False
        self._plain_domain: tuple[dict[str, Any] | None] | None = None
        self._resident: dict[torch.device, _Resident] = {}
        self._augmentation: tuple[int, torch.device, Augmentation] | None = None

    def index(self) -> None:
        """Finds the images and splits them; draws them first if they are synthetic.

        Raises:
            BreakHisError: If the folder, the images in it or the split are not usable.
        """
        wanted = all_magnifications(self.data)
        found = index_images(self._root(), wanted)
        self.n_found = len(found)
        self.description = describe(found, wanted) + self._described_magnifications()
        self.is_complete = True
        try:
            check_complete(found, wanted)
        except IncompleteDataError:
            if isinstance(self.data, BreakHisDataConfig) and self.data.require_complete:
                raise
            self.is_complete = False
        self._check_magnifications(found)
        self.split = self._make_split(found)
        self.records = self.split.records
        self.evaluated = tuple(subset for subset in (Subset.VAL, Subset.TEST) if subset in self.split.subsets)

    def prepare_data(self) -> None:
        """Builds the store if it is not there; Lightning calls this in one process only."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Opens the store and computes the statistics; a second call does nothing.

        Raises:
            BreakHisError: As `index`, and if images cannot be read.
        """
        if self._is_set_up:
            return
        if not hasattr(self, "split"):
            self.index()
        self.store = open_store(
            self.records,
            image_size=self.data.image_size,
            cache_dir=Path(self.data.cache_dir),
            show_progress=self.show_progress,
        )
        if self.data.verify and not self.store.built:
            verify_store(self.store, self.records, show_progress=self.show_progress)
        rows = list(self.split.indices(Subset.TRAIN))
        if self.data.stain != "none":
            if self.stain is None:
                self.stain = fit_stain(self.data.stain, self.store, rows, show_progress=self.show_progress)
            plain = self.store
            self.store = open_stained_store(plain, self.records, self.stain, show_progress=self.show_progress)
            self.n_stain_unchanged = sum(
                before == after for before, after in zip(plain.checksums, self.store.checksums, strict=True)
            )
        self.mean, self.std = channel_statistics(self.store.sums[rows], n_pixels=len(rows) * self.data.image_size**2)
        self._check_contrast()
        self._is_set_up = True

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Rows of the train images, in an order that follows seed and epoch."""
        sampler = ShuffledSampler(self.train_order(), epoch=self._current_epoch)
        whole = BatchSampler(sampler, self.data.batch_size, drop_last=False)
        return DataLoader(
            Rows(self.split.indices(Subset.TRAIN)),
            batch_sampler=SharedBatches(whole, self.place),
            collate_fn=as_they_are,
            generator=torch.Generator(),  # else every pass draws from the global stream
        )

    def _current_epoch(self) -> int:
        """The trainer's, from 0; 0 without one."""
        return 0 if self.trainer is None else self.trainer.current_epoch

    def train_order(self) -> TrainOrder:
        """Which train images an epoch shows, in which order."""
        return TrainOrder(self._train_targets(), balance=self.data.balance, seed=self.seed)

    def class_weights(self) -> tuple[float, ...] | None:
        """Weights of the classes in the loss of training; None where all are 1."""
        return (
            class_weights(self._train_targets(), n_classes=len(TASKS[self.task]))
            if self.data.balance == "loss"
            else None
        )

    def val_dataloader(self) -> list[DataLoader[Tensor]]:
        """Rows of the images of every subset in `evaluated`, in the order of the records."""
        return [
            DataLoader(
                rows,
                batch_sampler=DealtBatches(
                    BatchSampler(range(len(rows)), self.eval_batch_size, drop_last=False), self.place
                ),
                collate_fn=as_they_are,
                generator=torch.Generator(),
            )
            for rows in (Rows(self.split.indices(subset)) for subset in self.evaluated)
        ]

    @property
    def n_train_images(self) -> int:
        """Of an epoch, in all processes together."""
        return len(self.train_order())

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Rows on the device, and their pixels where these do not lie there."""
        if self.is_resident:
            return batch.to(device)
        return batch.to(device, non_blocking=True), self._gathered_on_host(batch, device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """The batch of images for a batch of rows, augmented during training."""
        is_training = self.trainer is not None and self.trainer.training
        epoch = self.trainer.current_epoch if self.trainer is not None and is_training else None
        rows, pixels = (batch, None) if self.is_resident else batch
        return self.batch(rows, epoch=epoch, pixels=pixels)

    def batch(self, rows: Tensor, *, epoch: int | None = None, pixels: Tensor | None = None) -> Batch:
        """Images as the network takes them, on the device of `rows`.

        Args:
            rows: int64, (batch,), rows of the store.
            epoch: Augment as in this epoch, counted from 0; None does not augment.
            pixels: uint8, (batch, size, size, 3), of these rows; None takes them from the store.
        """
        resident = self._on_device(rows.device)
        if pixels is None:
            pixels = (
                self._gathered_on_host(rows.cpu(), rows.device)
                if resident.pixels is None
                else resident.pixels.index_select(0, rows)
            )
        augmentation = None
        if epoch is not None and changes_anything(self.augmentation):
            augmentation = self._augmentation_of(epoch, rows.device).of(rows)
        images = to_network_input(
            pixels, mean=resident.mean, std=resident.std, augmentation=augmentation, memory_format=self.memory_format
        )
        return Batch(images=images, targets=resident.targets.index_select(0, rows), rows=rows)

    def release(self) -> None:
        """Forgets what lies on a device."""
        self._resident.clear()
        self._augmentation = None

    def state_dict(self) -> dict[str, Any]:
        """Statistics for the checkpoint, so that it can be used without the train images."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "image_size": self.data.image_size,
            "split_checksum": self.split.checksum(),
            "domain": self._domain(),
            **({} if self.stain is None else {"stain": self.stain.plain()}),
        }

    def _domain(self) -> dict[str, Any] | None:
        """What the train images look like, computed once, when the first checkpoint is written."""
        if self._plain_domain is None:
            rows = self.split.indices(Subset.TRAIN)
            features = appearances(self.store.pixels, rows, n_threads=n_cores())
            domain = fit_domain(features, [self.records[row].name.case for row in rows])
            self._plain_domain = (None if domain is None else plain_domain(domain),)
        return self._plain_domain[0]

    def _root(self) -> Path:
        match self.data:
            case BreakHisDataConfig(root=root):
                return Path(root)
            case SyntheticDataConfig() as config:
                return synthetic_folder(config, show_progress=self.show_progress)
            case _:
                raise ConfigurationError(f"data.source={self.data.source} is not possible")

    def _train_targets(self) -> tuple[int, ...]:
        return tuple(self.records[row].name.target_of(self.task) for row in self.split.indices(Subset.TRAIN))

    def _described_magnifications(self) -> str:
        if self.data.test_magnification is None:
            return ""
        return f"; train at {_times(self.data.magnification)}, test at {_times(self.data.test_magnification)}"

    def _make_split(self, found: Sequence[ImageRecord]) -> Split:
        """Subsets of the images found; without those that no subset has at their magnification."""
        counted = evaluated_magnifications(self.data)
        if self.data.split == "official":
            split = official_split(found, fold=self.data.fold)
            asked = f"data.split=official data.fold={self.data.fold}"
        else:
            split = ratio_split(
                found, test_fraction=self.data.test_fraction, seed=self.seed, group=self.data.group, counted=counted
            )
            asked = f"data.split=ratio data.test_fraction={self.data.test_fraction} seed={self.seed}"

        def kept(of: Split) -> Split:
            return at_magnifications(of, train=self.data.magnification, evaluated=counted)

        lacking = check_trainable(kept(split), asked)
        if lacking:
            log.warning(
                "test has no %s image (%s): metrics that need both classes, as AUROC, will be null", lacking[0], asked
            )
        if self.data.val_fraction == 0:
            return kept(split)
        split = kept(with_validation(split, fraction=self.data.val_fraction, seed=self.seed, counted=counted))
        check_trainable(split, f"{asked} data.val_fraction={self.data.val_fraction:g}")
        return split

    def check_train_batches(self, *, limit: int | None = None) -> None:
        """Makes sure that batch norm can take every train batch: it needs more than one value per channel.

        Of an image of 32 pixels a single value is left at the end; so small a batch must have two images.

        Args:
            limit: Train batches per epoch; None takes all.

        Raises:
            ConfigurationError: If a train batch is a single image that small.
        """
        if self.data.image_size <= SMALLEST_IMAGE and self.has_single_images(limit=limit):
            raise ConfigurationError(
                f"{self.single_images}, which batch norm cannot take at data.image_size={self.data.image_size}; "
                "change either of them"
            )

    def has_single_images(self, *, limit: int | None) -> bool:
        """Whether any process gets a single image of a train batch; `limit` as in `check_train_batches`."""
        size, n_ranks = self.data.batch_size, self.place.n_ranks
        n_full, rest = divmod(self.n_train_images, size)
        batches = [*([size] if n_full > 0 else []), *([rest] if limit is None or limit > n_full else [])]
        return any(1 in (n_images // n_ranks, -(-n_images // n_ranks)) for n_images in batches)

    @property
    def single_images(self) -> str:
        """Says of a message what `has_single_images` has found."""
        processes = "" if self.place.n_ranks == 1 else f" to one of {self.place.n_ranks} processes"
        return (
            f"data.batch_size={self.data.batch_size} leaves a batch of a single image{processes} "
            f"({self.n_train_images} train images)"
        )

    def _check_magnifications(self, found: Sequence[ImageRecord]) -> None:
        """Makes sure that every magnification asked for has an image, so that none is missing from what is reported.

        Raises:
            DataFolderError: If one has none.
        """
        counts = Counter(record.name.magnification for record in found)
        for key in ("magnification", "test_magnification"):
            asked = getattr(self.data, key) or ()
            lacking = [magnification for magnification in asked if counts[magnification] == 0]
            if lacking:
                there = ",".join(str(magnification) for magnification in sorted(counts))
                raise DataFolderError(
                    f"data.{key}={list(asked)}: no image at "
                    f"{', '.join(f'{magnification}X' for magnification in lacking)}; expected some at each; "
                    f"set 'data.{key}=[{there}]', or add the missing images"
                )

    def _check_contrast(self) -> None:
        """Makes sure that images can be normalized: the standard deviation is what they are divided by.

        Raises:
            ImageError: If a color channel is the same all over the train images.
        """
        colors = ("red", "green", "blue")
        flat = [f"{name}={mean:g}" for name, mean, std in zip(colors, self.mean, self.std, strict=True) if std == 0]
        if flat:
            raise ImageError(
                f"all pixels of all train images have {', '.join(flat)} (of 1); expected images that differ; "
                "look at the files under data.root"
            )

    def _on_device(self, device: torch.device) -> "_Resident":
        """What batches are made of on a device, moved there once."""
        if device not in self._resident:
            self._resident[device] = _Resident(
                pixels=torch.from_numpy(self.store.pixels).to(device) if self.is_resident else None,
                targets=torch.tensor([record.name.target_of(self.task) for record in self.records], device=device),
                mean=torch.tensor(self.mean, dtype=torch.float32, device=device),
                std=torch.tensor(self.std, dtype=torch.float32, device=device),
            )
        return self._resident[device]

    def _gathered_on_host(self, rows: Tensor, device: torch.device) -> Tensor:
        """Pixels of some rows on a device, sent there while the host goes on; uint8, (batch, size, size, 3)."""
        size = self.data.image_size
        gathered = torch.empty((len(rows), size, size, 3), dtype=torch.uint8, pin_memory=device.type == "cuda")
        torch.index_select(torch.from_numpy(self.store.pixels), 0, rows, out=gathered)
        return gathered.to(device, non_blocking=True)

    def _augmentation_of(self, epoch: int, device: torch.device) -> Augmentation:
        """What happens to all images in an epoch, drawn once."""
        if self._augmentation is None or self._augmentation[:2] != (epoch, device):
            drawn = augmentation_of_epoch(
                len(self.records), self.augmentation, seed=self.seed, epoch=epoch, device=device
            )
            self._augmentation = (epoch, device, drawn)
        return self._augmentation[2]


class _Resident(NamedTuple):
    """What lies on a device: pixels of all images (None: too many), their targets, mean and standard deviation."""

    pixels: Tensor | None
    targets: Tensor
    mean: Tensor
    std: Tensor


def _times(magnifications: Sequence[int]) -> str:
    return "+".join(f"{magnification}X" for magnification in magnifications)
