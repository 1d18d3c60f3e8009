"""Which image is for training, validation or test: the authors' folds, ratio splits, validation by case.

Where test has other magnifications than train, sides are chosen by the images at test's magnifications alone
(`counted`), so that a run has the test and validation images of a run at these magnifications; `at_magnifications`
then leaves out what is on neither side.
"""

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from breakhis_pl.data.breakhis import CLASS_NAMES, MAGNIFICATIONS, Subset, official_subset
from breakhis_pl.data.index import ImageRecord
from breakhis_pl.errors import ShapeError, SplitError, listed
from breakhis_pl.files import write_text

SPLIT_COLUMNS = ("image", "patient", "case", "subset")
"""Columns of split.csv."""


@dataclass(frozen=True, slots=True)
class Split:
    """Images, and the subset of each.

    Attributes:
        records: Images in the order they came in.
        subsets: Subset of each image, in the same order.
    """

    records: tuple[ImageRecord, ...]
    subsets: tuple[Subset, ...]

    def __post_init__(self) -> None:
        if len(self.records) != len(self.subsets):
            raise ShapeError(f"{len(self.records)} records, but {len(self.subsets)} subsets; expected one for each")

    def indices(self, subset: Subset) -> tuple[int, ...]:
        """Positions in `records` of the images of a subset, ascending."""
        return tuple(index for index, other in enumerate(self.subsets) if other == subset)

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of images by subset and class; only subsets that occur."""
        found = self._count_by_class()
        return {
            subset.value: {class_name: found[subset, class_name] for class_name in CLASS_NAMES}
            for subset in Subset
            if subset in self.subsets
        }

    def checksum(self) -> str:
        """SHA-256 of the lines "file name,subset", sorted; the same for the same split, wherever the files lie."""
        lines = sorted(
            f"{record.name.file_name},{subset.value}\n"
            for record, subset in zip(self.records, self.subsets, strict=True)
        )
        return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"

    def _count_by_class(self) -> Counter[tuple[Subset, str]]:
        return Counter(
            (subset, record.name.class_name) for record, subset in zip(self.records, self.subsets, strict=True)
        )


def official_split(records: Sequence[ImageRecord], *, fold: int) -> Split:
    """One of the authors' five divisions into train and test, by patient.

    Args:
        records: Images, in any order.
        fold: 1 to 5.

    Raises:
        SplitError: If there is no such fold, or a patient is in none of the authors' lists.

    Source:
        dsfold1.txt to dsfold5.txt of the authors' mkfold.tar.gz.
    """
    return Split(tuple(records), tuple(official_subset(record.name.patient, fold) for record in records))


def ratio_split(
    records: Sequence[ImageRecord],
    *,
    test_fraction: float,
    seed: int,
    group: str = "case",
    counted: Collection[int] = MAGNIFICATIONS,
) -> Split:
    """A random division into train and test that keeps all images of a case together, stratified by class.

    Args:
        records: Images, in any order.
        test_fraction: Share of the images of each class that goes to test, in (0, 1); met as nearly as whole
            cases allow.
        seed: Chooses the split.
        group: What keeps together: "case", or "patient", which lets slides of one case lie on both sides.
        counted: Magnifications whose images the fraction is of; what has none of them goes to train.

    Raises:
        SplitError: If the fraction is outside (0, 1).
    """
    if not 0 < test_fraction < 1:
        raise SplitError(
            f"a test fraction of {test_fraction} leaves a side empty; set data.test_fraction within (0, 1)"
        )
    considered = [record for record in records if record.name.magnification in counted]
    chosen = _choose_groups(considered, fraction=test_fraction, key=f"test,{seed}", group=group)
    subsets = (Subset.TEST if _group_of(record, group) in chosen else Subset.TRAIN for record in records)
    return Split(tuple(records), tuple(subsets))


def with_validation(split: Split, *, fraction: float, seed: int, counted: Collection[int] = MAGNIFICATIONS) -> Split:
    """The split with whole cases of train turned into a validation set, stratified by class.

    Args:
        split: One without a validation set.
        fraction: Share of the train images of each class, in [0, 1); 0 leaves the split as it is.
        seed: Chooses the cases.
        counted: Magnifications whose images the fraction is of; cases that have none of them stay in train.

    Raises:
        SplitError: If the fraction is outside [0, 1), there is a validation set already, or train has too few cases.
    """
    if not 0 <= fraction < 1:
        raise SplitError(f"a validation fraction of {fraction} is impossible; set data.val_fraction within [0, 1)")
    if Subset.VAL in split.subsets:
        raise SplitError("the split has a validation set already; make one from a split into train and test")
    if fraction == 0:
        return split
    train = [
        split.records[index]
        for index in split.indices(Subset.TRAIN)
        if split.records[index].name.magnification in counted
    ]
    for class_name in CLASS_NAMES:
        cases = sorted({record.name.case for record in train if record.name.class_name == class_name})
        if len(cases) < 2:
            raise SplitError(
                f"{class_name} cases in train: {listed(cases) or 'none'}; train and validation need one each; "
                "set data.val_fraction=0, or use more images"
            )
    chosen = _choose_groups(train, fraction=fraction, key=f"val,{seed}", group="case")
    subsets = tuple(
        Subset.VAL if subset == Subset.TRAIN and record.name.case in chosen else subset
        for record, subset in zip(split.records, split.subsets, strict=True)
    )
    return Split(split.records, subsets)


def at_magnifications(split: Split, *, train: Collection[int], evaluated: Collection[int]) -> Split:
    """The split without images at magnifications that their subset is not to have.

    Args:
        split: Of images at any magnifications.
        train: Magnifications of train images.
        evaluated: Magnifications of validation and test images.
    """
    kept = [
        (record, subset)
        for record, subset in zip(split.records, split.subsets, strict=True)
        if record.name.magnification in (train if subset is Subset.TRAIN else evaluated)
    ]
    return Split(tuple(record for record, _ in kept), tuple(subset for _, subset in kept))


def check_trainable(split: Split, asked: str) -> tuple[str, ...]:
    """Makes sure that a network can be trained and evaluated on a split; test may lack a class, not both.

    Metrics that need both classes are null then. Nothing can be learned from a single class, nor fitted on it.

    Args:
        split: The split to check.
        asked: The settings that led to it, for the text: "data.split=official data.fold=2".

    Returns:
        Classes without an image in test: none or one.

    Raises:
        SplitError: If a class is absent from train or validation, or test is empty.
    """
    absent = _absent_classes(split)
    of_test = tuple(class_name for subset, class_name in absent if subset == Subset.TEST.value)
    if len(absent) > len(of_test) or len(of_test) == len(CLASS_NAMES):
        check_usable(split, asked)
    return of_test


def check_usable(split: Split, asked: str) -> None:
    """Makes sure that train, test and, where there is one, validation have images of both classes.

    Args:
        split: The split to check.
        asked: The settings that led to it, for the text: "data.split=official data.fold=2".

    Raises:
        SplitError: If a class is absent from a subset.
    """
    absent = [f"{subset} has no {class_name} image" for subset, class_name in _absent_classes(split)]
    if absent:
        raise SplitError(
            f"{', '.join(absent)} ({asked}); both classes are needed in each subset: "
            "take another fold, fraction or seed, or more images"
        )


def shared_cases(split: Split) -> tuple[str, ...]:
    """Cases with images in test and also in train or validation, sorted."""
    sides: dict[bool, set[str]] = {True: set(), False: set()}
    for record, subset in zip(split.records, split.subsets, strict=True):
        sides[subset == Subset.TEST].add(record.name.case)
    return tuple(sorted(sides[True] & sides[False]))


def write_split_csv(path: Path, split: Split) -> None:
    """Writes image, patient, case and subset of each image, sorted by file name."""
    rows = sorted(
        (record.name.file_name, record.name.patient, record.name.case, subset.value)
        for record, subset in zip(split.records, split.subsets, strict=True)
    )
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(SPLIT_COLUMNS)
    writer.writerows(rows)
    write_text(path, table.getvalue())


def _absent_classes(split: Split) -> list[tuple[str, str]]:
    """Subset and class, for every class that a subset has no image of."""
    counts = split.counts()
    return [
        (subset, class_name)
        for subset in dict.fromkeys([Subset.TRAIN.value, *counts, Subset.TEST.value])
        for class_name in CLASS_NAMES
        if counts.get(subset, {}).get(class_name, 0) == 0
    ]


def _group_of(record: ImageRecord, group: str) -> str:
    match group:
        case "case":
            return record.name.case
        case "patient":
            return record.name.patient
        case _:
            raise SplitError(f"data.group={group} is not possible; expected case or patient")


def _choose_groups(records: Sequence[ImageRecord], *, fraction: float, key: str, group: str) -> frozenset[str]:
    """Cases (or patients) that together hold about a fraction of the images of each class.

    Cases are taken in random order as long as each brings the counts nearer to the wanted ones. Then one or two cases
    at a time are moved to the other side, always those that help most, until nothing does.

    Args:
        records: Images, in any order.
        fraction: Share of the images of each class, in (0, 1).
        key: Determines the random order.
        group: "case" or "patient".
    """
    if not records:
        return frozenset()
    n_images = Counter((_group_of(record, group), record.name.class_name) for record in records)
    cases = sorted({case for case, _ in n_images}, key=lambda case: _random_rank(case, key))
    sizes = np.array([[n_images[case, name] for name in CLASS_NAMES] for case in cases])  # (n_cases, n_classes)
    is_chosen = np.zeros(len(cases), dtype=np.bool_)
    distance = _distance(is_chosen, sizes, fraction)
    single = np.eye(len(cases), dtype=np.bool_)
    for case in single:
        nearer = _distance(is_chosen | case, sizes, fraction)
        if nearer < distance:
            is_chosen, distance = is_chosen | case, nearer
    first, second = np.triu_indices(len(cases), k=1)
    moves = np.concatenate([single, single[first] | single[second]])  # (n_moves, n_cases)
    while True:
        distances = _distance(is_chosen ^ moves, sizes, fraction)
        best = int(np.argmin(distances))
        if distances[best] >= distance:
            return frozenset(case for case, chosen in zip(cases, is_chosen, strict=True) if chosen)
        is_chosen, distance = is_chosen ^ moves[best], distances[best]


def _random_rank(case: str, key: str) -> bytes:
    # A hash and not a generator: the same on every version of every library, whichever other cases are there.
    return hashlib.sha256(f"{key},{case}".encode()).digest()


def _distance(is_chosen: NDArray[np.bool_], sizes: NDArray[np.int64], fraction: float) -> NDArray[np.float64]:
    """How far choices of cases are from what is wanted.

    Args:
        is_chosen: bool, (..., n_cases).
        sizes: Number of images, (n_cases, n_classes).
        fraction: Wanted share of the images of each class.

    Returns:
        float, (...): sum over classes of the distance between the chosen share and the wanted one, each in [0, 1];
        10 is added for each class that has two cases or more and all of them on one side.
    """
    totals = sizes.sum(axis=0)
    n_chosen = is_chosen @ sizes  # (..., n_classes)
    one_sided = ((n_chosen == 0) | (n_chosen == totals)) & ((sizes > 0).sum(axis=0) >= 2)
    off = np.abs(n_chosen / np.maximum(totals, 1) - fraction) * (totals > 0)
    return np.asarray((off + 10.0 * one_sided).sum(axis=-1), dtype=np.float64)
