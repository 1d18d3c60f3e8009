"""Data sets by configuration. A new source is a class of `DataConfig` and a case here."""

from dataclasses import replace

from breakhis_pl.config import BreakHisDataConfig, DataConfig
from breakhis_pl.data.breakhis import open_breakhis
from breakhis_pl.data.dataset import Dataset


def open_dataset(config: DataConfig, *, task: str, progress_bar: bool = True) -> Dataset:
    """Open the data set that a configuration names; synthetic images are generated if they do not exist.

    Args:
        config: Keys of `data`.
        task: "binary" or "subtype".
        progress_bar: Show a progress bar on a terminal while images are generated.

    Raises:
        DataError: If the images cannot be used.
    """
    magnifications = config.all_magnifications
    if isinstance(config, BreakHisDataConfig):
        return open_breakhis(
            config.root, task=task, magnifications=magnifications, require_complete=config.require_complete
        )
    from breakhis_pl.data.synthetic import synthetic_folder  # noqa: PLC0415 - imports scipy

    folder = synthetic_folder(
        config.cache_dir,
        magnifications=magnifications,
        images_per_patient=config.images_per_patient,
        width=config.width,
        seed=config.draw_seed,
        progress_bar=progress_bar,
    )
    dataset = open_breakhis(folder, task=task, magnifications=magnifications, require_complete=False)
    return replace(dataset, is_synthetic=True)
