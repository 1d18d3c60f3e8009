"""What every subject is given, and the configurations they measure."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.images import MAGNIFICATION, linked, resized_copies, spread
from benchmarks.plan import Plan
from breakhis_pl import composition
from breakhis_pl.config import BreakHisDataConfig, TrainConfig
from breakhis_pl.data.datamodule import BreakHisDataModule
from breakhis_pl.data.index import ImageRecord, index_images
from breakhis_pl.errors import ConfigurationError

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Bench:
    """Images, device and room for files.

    Attributes:
        plan: Sizes.
        device: What is measured.
        precision: Lightning's name of it.
        root: Folder of the images, in any tree.
        records: All of them, sorted by file name.
        cache: Folder of copies that outlive the measurement.
        folder: For everything else; removed at the end.
    """

    plan: Plan
    device: torch.device
    precision: str
    root: Path
    records: tuple[ImageRecord, ...]
    cache: Path
    folder: Path

    def subset(self, n_images: int) -> Path:
        """A tree of so many of the images, below folders of their classes."""
        folder = self.folder / f"images-{n_images}"
        return folder if folder.is_dir() else linked(spread(self.records, n_images), folder)

    def copies(self) -> Path:
        """A tree of the images of the data path, as large as its batches want them."""
        records = spread(self.records, self.plan.n_loader_images)
        return resized_copies(records, self.cache, side=self.plan.loader_size)

    def config(self, n_images: int, *overrides: str) -> TrainConfig:
        """A configuration of `train.py` on so many of the images, with weights by chance and without pictures."""
        accelerator = "gpu" if self.device.type == "cuda" else self.device.type
        return train_config(
            self.subset(n_images),
            self.folder / "cache",
            f"trainer.accelerator={accelerator}",
            f"trainer.precision={self.precision}",
            *overrides,
        )


def train_config(root: Path, cache: Path, *overrides: str) -> TrainConfig:
    """A configuration of `train.py`.

    Args:
        root: Folder of the images.
        cache: Folder of the stores.
        overrides: As on the command line.

    Raises:
        ConfigurationError: If the overrides do not compose.
    """
    composition.register()
    fixed = ("data.require_complete=false", "model.weights=none", "gallery=0", "trainer.progress_bar=false")
    config: TrainConfig = composition.compose_checked("train", [*fixed, *overrides])
    if not isinstance(config.data, BreakHisDataConfig):
        raise ConfigurationError(f"data.source={config.data.source} is not possible; expected images from a folder")
    config.data.root, config.data.cache_dir = str(root), str(cache)  # any path, without the quoting of overrides
    return config


def data_module(config: TrainConfig) -> BreakHisDataModule:
    """The data of a configuration, ready to give batches."""
    data = BreakHisDataModule(config.data, config.augmentation, seed=config.seed, show_progress=False)
    data.setup()
    return data


def images_in(root: Path) -> Sequence[ImageRecord]:
    """The images below a folder."""
    return index_images(root, (MAGNIFICATION,))
