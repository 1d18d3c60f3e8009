"""Splits of a data set: the authors' folds, random splits of whole cases or patients, validation cases."""

import csv
import hashlib
import io
import logging
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from breakhis_pl.config import SharedDataConfig
from breakhis_pl.data.dataset import Dataset, ImageRecord, Subset
from breakhis_pl.errors import DataError, join_truncated
from breakhis_pl.randomness import derived_seed
from breakhis_pl.run_folder import write_text

log = logging.getLogger(__name__)

SPLIT_COLUMNS = ("image", "patient", "case", "subset")
"""Columns of split.csv."""

N_CANDIDATES = 500
"""Random splits of which the one closest to the wanted fractions is taken; within 1 percentage point on BreakHis."""


@dataclass(frozen=True, slots=True)
class Split:
    """A data set and the subset of each image.

    Attributes:
        dataset: The images.
        subsets: Subset of each record, in the same order.
    """

    dataset: Dataset
    subsets: tuple[Subset, ...]

    @property
    def records(self) -> tuple[ImageRecord, ...]:
        """Records of the data set."""
        return self.dataset.records

    def indices(self, subset: Subset) -> tuple[int, ...]:
        """Return the positions in `records` of the images of a subset, ascending."""
        return tuple(index for index, other in enumerate(self.subsets) if other == subset)

    def counts(self) -> dict[str, dict[str, int]]:
        """Count images by subset and final class, for subsets that occur."""
        parents = [self.dataset.parent_of(record.target) for record in self.records]
        found = Counter(zip(self.subsets, parents, strict=True))
        names = self.dataset.parent_classes
        return {
            subset.value: {name: found[subset, parent] for parent, name in enumerate(names)}
            for subset in Subset
            if subset in self.subsets
        }

    def checksum(self) -> str:
        """Compute the SHA-256 of the sorted lines "image,subset"; it depends on neither paths nor order."""
        lines = sorted(f"{record.image},{subset}\n" for record, subset in zip(self.records, self.subsets, strict=True))
        return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def make_split(dataset: Dataset, config: SharedDataConfig, *, seed: int) -> Split:
    """Split a data set as configured.

    Images are assigned by those of the evaluated magnifications alone, so that runs with other train magnifications are
    evaluated on the same images. Images whose subset does not use their magnification are left out.

    Args:
        dataset: Images of all magnifications of the configuration.
        config: Keys of `data`.
        seed: Seed of the run, for random splits.

    Raises:
        DataError: If a subset lacks a class; test may lack one, unless it is drawn.
    """
    evaluated = config.test_magnification or config.magnification
    has_own = any(record.subset is not None for record in dataset.records)
    if config.split == "official" or (config.split is None and has_own):
        split = official_split(dataset)
        given = {"split": config.split, "fold": config.fold}
        keys = " ".join(f"data.{key}={value}" for key, value in given.items() if value is not None)
        keys = keys or f"the split of {dataset.name}"
    else:
        split = ratio_split(
            dataset, test_fraction=config.test_fraction, seed=seed, group=config.group, counted=evaluated
        )
        keys = f"data.split=ratio data.test_fraction={config.test_fraction:g} seed={seed}"
    if config.val_fraction > 0:
        if Subset.VAL in split.subsets:
            raise DataError(f"data.val_fraction={config.val_fraction:g}: {dataset.name} has validation images; set 0")
        split = with_validation(split, fraction=config.val_fraction, seed=seed, counted=evaluated)
        keys += f" data.val_fraction={config.val_fraction:g}"
    if config.magnification is not None and evaluated is not None:
        kept = [
            (record, subset)
            for record, subset in zip(split.records, split.subsets, strict=True)
            if record.magnification in (config.magnification if subset is Subset.TRAIN else evaluated)
        ]
        records, subsets = zip(*kept, strict=True) if kept else ((), ())
        split = Split(replace(split.dataset, records=records), subsets)
    check_trainable(split, keys)
    return split


def official_split(dataset: Dataset) -> Split:
    """Split as the data set itself does: the authors' fold, or columns of a table.

    Raises:
        DataError: If it has no split.
    """
    subsets = tuple(record.subset for record in dataset.records if record.subset is not None)
    if len(subsets) < len(dataset.records):
        raise DataError(f"data.split=official: {dataset.name} comes without a split; set data.split=ratio")
    return Split(dataset, subsets)


def ratio_split(
    dataset: Dataset,
    *,
    test_fraction: float,
    seed: int,
    group: Literal["case", "patient"] = "case",
    counted: Collection[int] | None = None,
) -> Split:
    """Split at random into train and test, whole cases or patients at a time.

    Args:
        dataset: The images.
        test_fraction: Fraction of the images of each class for test, in (0, 1), met as closely as possible.
        seed: Seed of the split.
        group: What is kept together; slides of one case may be of several patients.
        counted: Magnifications that the fraction refers to; groups without such images go to train. None for all.

    Raises:
        DataError: If a class has fewer than two groups.
    """
    chosen = _choose_groups(
        dataset, dataset.records, Subset.TEST, test_fraction, group, counted, derived_seed(seed, "test split")
    )
    subsets = (Subset.TEST if getattr(record, group) in chosen else Subset.TRAIN for record in dataset.records)
    return Split(dataset, tuple(subsets))


def with_validation(split: Split, *, fraction: float, seed: int, counted: Collection[int] | None = None) -> Split:
    """Move whole cases from train to validation.

    Args:
        split: A split into train and test.
        fraction: Fraction of the train images of each class, in (0, 1), met as closely as possible.
        seed: Seed of the choice.
        counted: As in `ratio_split`.

    Raises:
        DataError: If train has fewer than two cases of a class.
    """
    train = [split.records[index] for index in split.indices(Subset.TRAIN)]
    chosen = _choose_groups(
        split.dataset, train, Subset.VAL, fraction, "case", counted, derived_seed(seed, "validation split")
    )
    subsets = (
        Subset.VAL if subset is Subset.TRAIN and record.case in chosen else subset
        for record, subset in zip(split.records, split.subsets, strict=True)
    )
    return replace(split, subsets=tuple(subsets))


def check_trainable(split: Split, keys: str) -> None:
    """Check that every subset has images of all classes; log a warning if only test lacks some.

    Args:
        split: The split.
        keys: Keys and values that led to the split, for messages.

    Raises:
        DataError: If train or validation lacks a class, or test is empty.
    """
    counts = split.counts()
    absent = {
        subset: [name for name in split.dataset.parent_classes if not counts.get(subset, {}).get(name)]
        for subset in dict.fromkeys([Subset.TRAIN, *map(Subset, counts), Subset.TEST])
    }
    lacking = ", ".join(f"{subset} has no {name} image" for subset, names in absent.items() for name in names)
    if absent[Subset.TRAIN] or absent.get(Subset.VAL) or Subset.TEST not in split.subsets:
        raise DataError(f"{keys}: {lacking}; choose another split, fold, fraction or seed, or add images")
    if lacking:
        log.warning("%s (%s): its recall and metrics of all classes, such as AUROC, will be null", lacking, keys)


def write_split_csv(path: Path, split: Split) -> None:
    """Write image, patient, case and subset of each image, sorted by image."""
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(SPLIT_COLUMNS)
    writer.writerows(
        sorted(
            (record.image, record.patient, record.case, subset.value)
            for record, subset in zip(split.records, split.subsets, strict=True)
        )
    )
    write_text(path, table.getvalue())


def _choose_groups(
    dataset: Dataset,
    records: Sequence[ImageRecord],
    subset: Subset,
    fraction: float,
    group: Literal["case", "patient"],
    counted: Collection[int] | None,
    seed: int,
) -> set[str]:
    """Choose groups that hold about a fraction of the images of each class: the best of many random choices."""
    from sklearn.model_selection import GroupShuffleSplit  # noqa: PLC0415 - takes a second, and official folds do not need it

    counted_records = [record for record in records if counted is None or record.magnification in counted]
    groups = np.array([getattr(record, group) for record in counted_records])
    parents = np.array([dataset.parent_of(record.target) for record in counted_records])
    n_groups, n_classes = len(np.unique(groups)), len(dataset.parent_classes)
    single = [name for i, name in enumerate(dataset.parent_classes) if len(np.unique(groups[parents == i])) < 2]
    if single:
        raise DataError(
            f"data.{subset}_fraction={fraction:g}: {join_truncated(single)} has fewer than two "
            f"{group if dataset.has_patients else 'image'}s, and train and {subset} need one each; add images, or "
            f"{'set 0' if subset is Subset.VAL else 'remove the class'}"
        )
    n_chosen = int(np.clip(round(fraction * n_groups), min(n_classes, n_groups - 1), max(n_groups - n_classes, 1)))
    splitter = GroupShuffleSplit(N_CANDIDATES, test_size=n_chosen, random_state=seed % 2**32)
    is_class = parents == np.arange(n_classes)[:, None]  # (n_classes, n_images)

    def distance(chosen: np.typing.NDArray[np.int64]) -> float:
        fractions = is_class[:, chosen].sum(axis=1) / is_class.sum(axis=1)
        is_one_sided = (fractions == 0) | (fractions == 1)
        return float((abs(fractions - fraction) + is_one_sided).sum())

    best = min((chosen for _, chosen in splitter.split(groups, groups=groups)), key=distance)
    return set(groups[best].tolist())
