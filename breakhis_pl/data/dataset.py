"""Interface of a data set: records of images, classes, and the subsets its authors published."""

import importlib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from breakhis_pl.config import SharedDataConfig
from breakhis_pl.errors import ConfigurationError

SYNTHETIC_NOTE = "synthetic images, no tissue"
INCOMPLETE_NOTE = "incomplete archive"
INDEPENDENT_NOTE = "images taken as independent"


class Subset(StrEnum):
    """Part of a split."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image file and its labels.

    Attributes:
        path: The file.
        image: Name of the image, unique in the data set.
        target: Index in `Dataset.classes`.
        patient: Identifier of the patient; that of the case or the name of the image if it is not known.
        case: Identifier of the case, which may have several patients; images of a case are not independent.
        magnification: Magnification of the microscope; None if unknown.
        subset: Subset in the split that the data set comes with; None if it has none.
        weight: Factor on the loss of the image in training.
    """

    path: Path
    image: str
    target: int
    patient: str
    case: str
    magnification: int | None = None
    subset: Subset | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Dataset:
    """Images of a data set and what is known about them.

    Attributes:
        name: Name of the data set, for titles.
        records: The images, sorted by name.
        classes: Classes that a network is trained on, in the order of their index; of two, the last one is positive.
        parents: Index in `parent_classes` of each class; None if the classes are final.
        parent_classes: Classes that results are about.
        description: Counts of images, in one line.
        has_patients: Whether patients or cases are known; if not, images are taken as independent.
        is_complete: Whether exactly the published images are there; None if none are published.
        n_published: Number of published images; None if there is none.
        is_synthetic: Whether the images are generated.
    """

    name: str
    records: tuple[ImageRecord, ...]
    classes: tuple[str, ...]
    parents: tuple[int, ...] | None
    parent_classes: tuple[str, ...]
    description: str
    has_patients: bool = True
    is_complete: bool | None = None
    n_published: int | None = None
    is_synthetic: bool = False

    @property
    def note(self) -> str | None:
        """What every figure of a run must say about its images; None for nothing."""
        if self.is_synthetic:
            return SYNTHETIC_NOTE
        if not self.has_patients:
            return INDEPENDENT_NOTE
        if self.is_complete or self.n_published is None:
            return None
        return f"{INCOMPLETE_NOTE}: {len(self.records):,} of {self.n_published:,} images"

    def parent_of(self, target: int) -> int:
        """Return the index in `parent_classes` of a class."""
        return target if self.parents is None else self.parents[target]


def open_dataset(config: SharedDataConfig, *, task: str, progress_bar: bool = True) -> Dataset:
    """Open the data set that a configuration names, by the function `open_dataset` of its module.

    Args:
        config: Keys of `data`; `source` is the name of a module of `breakhis_pl.data`, or, with dots, of any module.
        task: "binary" or "subtype".
        progress_bar: Show a progress bar on a terminal while images are generated.

    Raises:
        ConfigurationError: If there is no such module, or it has no such function.
        DataError: If the images cannot be used.
    """
    name = config.source if "." in config.source else f"{__package__}.{config.source}"
    try:
        function = importlib.import_module(name).open_dataset
    except (ModuleNotFoundError, AttributeError) as error:
        raise ConfigurationError(f"data.source={config.source}: {error}; name a module with open_dataset") from error
    dataset: Dataset = function(config, task=task, progress_bar=progress_bar)
    return dataset
