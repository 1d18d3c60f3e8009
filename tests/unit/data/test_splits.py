import csv
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from breakhis_pl.data import splits
from breakhis_pl.data.breakhis import FOLDS, MAGNIFICATIONS
from breakhis_pl.data.dataset import Dataset, Subset
from breakhis_pl.errors import DataError
from tests.configs import train_config

Log = pytest.LogCaptureFixture
Published = Callable[..., Dataset]
CHECKSUMS = {
    1: "sha256:7984ab7540a1a0f8d46a634821d8c95c91d1d3d0ab2bc4ff3bf70a521b1e5bfd",
    2: "sha256:25ddf8855ee1edf2e08ce932275409c48af2fd09593ab767aa403db976f93781",
    3: "sha256:c96da7a00788a9411ccd6e6819e30d092711ed79ba7e9f36987f77df5d0b7d50",
    4: "sha256:0b19df5e08ea8366c8f2e0dd757848219d38e65df7e221e52b141373db25be1a",
    5: "sha256:5a76429648a391649aef228497ff7ee3718ee60e414156ebb323ebcf3072c556",
}
"""Of the official folds at 200X, as the first release computed them."""


def groups(split: splits.Split, subset: Subset, group: Literal["case", "patient"] = "case") -> set[str]:
    return {getattr(split.records[index], group) for index in split.indices(subset)}


def fraction(split: splits.Split, subset: Subset, class_name: str, among: tuple[Subset, ...]) -> float:
    counts = split.counts()
    return counts[subset][class_name] / sum(counts[other][class_name] for other in among)


def test_fold_2_at_200x_has_the_counts_of_the_report(published: Published) -> None:
    split = splits.official_split(published())
    assert split.counts() == {"train": {"benign": 455, "malignant": 961}, "test": {"benign": 168, "malignant": 429}}
    assert [len(groups(split, subset, "patient")) for subset in (Subset.TRAIN, Subset.TEST)] == [54, 28]
    shared = {"14-14134", "14-15570", "14-16184", "14-18842", "14-22549", "14-29960"}
    assert groups(split, Subset.TRAIN) & groups(split, Subset.TEST) == shared


def test_checksums_of_the_official_folds_do_not_change(published: Published) -> None:
    dataset = published()
    backwards = replace(dataset, records=dataset.records[::-1])
    assert {fold: splits.official_split(published(fold=fold)).checksum() for fold in FOLDS} == CHECKSUMS
    assert splits.official_split(backwards).checksum() == CHECKSUMS[2]


@pytest.mark.parametrize("group", ["case", "patient"])
@pytest.mark.parametrize("test_fraction", [0.1, 0.3, 0.5])
def test_a_ratio_split_keeps_groups_together_and_meets_the_fraction_of_each_class(
    published: Published, test_fraction: float, group: Literal["case", "patient"]
) -> None:
    for seed in range(5):
        split = splits.ratio_split(published(), test_fraction=test_fraction, seed=seed, group=group)
        assert not groups(split, Subset.TRAIN, group) & groups(split, Subset.TEST, group)
        for name in split.dataset.classes:
            assert fraction(split, Subset.TEST, name, tuple(Subset)[::2]) == pytest.approx(test_fraction, abs=0.02)


@pytest.mark.parametrize("fold", FOLDS)
def test_validation_takes_whole_cases_of_train_and_leaves_test_alone(published: Published, fold: int) -> None:
    before = splits.official_split(published(fold=fold))
    after = splits.with_validation(before, fraction=0.2, seed=fold)
    assert after.indices(Subset.TEST) == before.indices(Subset.TEST)
    assert not groups(after, Subset.TRAIN) & groups(after, Subset.VAL)
    for name in after.dataset.classes:
        assert fraction(after, Subset.VAL, name, (Subset.TRAIN, Subset.VAL)) == pytest.approx(0.2, abs=0.03)


def test_random_splits_are_a_function_of_the_seed_and_not_of_the_order(published: Published) -> None:
    dataset = published()

    def checksum(seed: int, *, backwards: bool = False) -> str:
        records = dataset.records[::-1] if backwards else dataset.records
        split = splits.ratio_split(replace(dataset, records=records), test_fraction=0.3, seed=seed)
        return splits.with_validation(split, fraction=0.2, seed=seed).checksum()

    checksums = [checksum(seed) for seed in range(5)]
    assert [checksum(seed, backwards=True) for seed in range(5)] == checksums
    assert len(set(checksums)) == 5


def test_a_class_of_two_cases_is_in_both_subsets_at_any_fraction(published: Published) -> None:
    dataset = published()
    first = {record.case: record for record in reversed(dataset.records)}.values()
    few = [[record for record in first if record.target == target] for target in (0, 1)]
    split = splits.ratio_split(replace(dataset, records=(*few[0][:2], *few[1][:10])), test_fraction=0.2, seed=0)
    assert split.counts()["test"]["benign"] == 1


def test_a_single_case_cannot_be_split(published: Published) -> None:
    dataset = published()
    one = replace(dataset, records=tuple(record for record in dataset.records if record.case == "14-22549"))
    with pytest.raises(DataError, match=r"data\.test_fraction=0\.3: "):
        splits.ratio_split(one, test_fraction=0.3, seed=0)


def test_a_class_of_a_single_case_is_refused_where_the_split_is_drawn(published: Published) -> None:
    dataset = published()
    case = next(record.case for record in dataset.records if record.target == 0)
    few = replace(dataset, records=tuple(each for each in dataset.records if each.target == 1 or each.case == case))
    for keys in (["data.split=ratio"], ["data.val_fraction=0.2"]):
        with pytest.raises(DataError, match=r"data\.(test|val)_fraction=0\.\d: benign has fewer than two cases"):
            splits.make_split(few, train_config(*keys).data, seed=0)


def test_the_evaluated_images_do_not_depend_on_the_train_magnifications(published: Published) -> None:
    keys = ("data.split=ratio", "data.val_fraction=0.2")
    same = splits.make_split(published(), train_config(*keys).data, seed=1)
    other_config = train_config(*keys, "data.magnification=[40,100]", "data.test_magnification=200").data
    other = splits.make_split(published(MAGNIFICATIONS[:3]), other_config, seed=1)
    for subset in (Subset.VAL, Subset.TEST):
        assert [other.records[i].image for i in other.indices(subset)] == [
            same.records[i].image for i in same.indices(subset)
        ]
    assert {other.records[i].magnification for i in other.indices(Subset.TRAIN)} == {40, 100}
    assert groups(other, Subset.TRAIN) == groups(same, Subset.TRAIN)


def test_a_subset_without_a_class_is_refused_or_reported(published: Published, caplog: Log) -> None:
    dataset = published()

    def split_of(**classes: str) -> splits.Split:
        letters = {Subset(name): tuple(f"SOB_{letter}" for letter in each) for name, each in classes.items()}
        split = splits.official_split(dataset)
        kept = [i for i, subset in enumerate(split.subsets) if split.records[i].image.startswith(letters[subset])]
        records = tuple(split.records[i] for i in kept)
        return splits.Split(replace(dataset, records=records), tuple(split.subsets[i] for i in kept))

    with pytest.raises(DataError, match="train"):
        splits.check_trainable(split_of(train="B", test="BM"), "data.fold=2")
    with pytest.raises(DataError, match="test"):
        splits.check_trainable(split_of(train="BM", test=""), "data.fold=2")
    with caplog.at_level(logging.WARNING):
        splits.check_trainable(split_of(train="BM", test="M"), "data.fold=2")
    assert "benign" in caplog.text


def test_split_csv_has_a_row_per_image(published: Published, tmp_path: Path) -> None:
    split = splits.official_split(published([400], fold=1))
    splits.write_split_csv(tmp_path / "split.csv", split)
    with (tmp_path / "split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == splits.SPLIT_COLUMNS
    assert [(row["image"], row["patient"], row["case"], row["subset"]) for row in rows] == [
        (record.image, record.patient, record.case, subset)
        for record, subset in zip(split.records, split.subsets, strict=True)
    ]
