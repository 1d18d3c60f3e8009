"""Interface of a data set: records of images, classes, and the subsets its authors published."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

SYNTHETIC_NOTE = "synthetic images, no tissue"
INCOMPLETE_NOTE = "incomplete archive"


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
        image: Name of the file, unique in the data set.
        target: Index in `Dataset.classes`.
        patient: Identifier of the patient.
        case: Identifier of the case, which may have several patients; images of a case are not independent.
        magnification: Magnification of the microscope; None if unknown.
    """

    path: Path
    image: str
    target: int
    patient: str
    case: str
    magnification: int | None


@dataclass(frozen=True, slots=True)
class Dataset:
    """Images of a data set and what is known about them.

    Attributes:
        records: The images, sorted by name.
        classes: Classes that a network is trained on, in the order of their index.
        parents: Index in `parent_classes` of each class; None if the classes are final.
        parent_classes: Classes that results are about.
        is_complete: Whether exactly the published images are there.
        n_published: Number of published images; None if there is none.
        description: Counts of images, in one line.
        is_synthetic: Whether the images are generated.
        official_subset: Published subset of an image, by record and fold.
    """

    records: tuple[ImageRecord, ...]
    classes: tuple[str, ...]
    parents: tuple[int, ...] | None
    parent_classes: tuple[str, ...]
    is_complete: bool
    n_published: int | None
    description: str
    is_synthetic: bool
    official_subset: Callable[[ImageRecord, int], Subset]

    @property
    def note(self) -> str | None:
        """What every figure of a run must say about its images; None for the published ones."""
        if self.is_synthetic:
            return SYNTHETIC_NOTE
        if self.is_complete or self.n_published is None:
            return None
        return f"{INCOMPLETE_NOTE}: {len(self.records):,} of {self.n_published:,} images"

    def parent_of(self, target: int) -> int:
        """Return the index in `parent_classes` of a class."""
        return target if self.parents is None else self.parents[target]
