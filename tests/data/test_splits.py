import csv
import hashlib
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from breakhis_pl.data.breakhis import CLASS_NAMES, FOLDS, MAGNIFICATIONS, Subset, official_patients
from breakhis_pl.data.index import ImageRecord, index_images
from breakhis_pl.data.splits import (
    Split,
    at_magnifications,
    check_trainable,
    check_usable,
    official_split,
    ratio_split,
    shared_cases,
    with_validation,
    write_split_csv,
)
from breakhis_pl.errors import ShapeError, SplitError

SEEDS = range(80)
Published = Callable[[Sequence[int]], list[ImageRecord]]
ToRecords = Callable[..., list[ImageRecord]]

needs_data = pytest.mark.skipif("BREAKHIS_TEST_DATA" not in os.environ, reason="BREAKHIS_TEST_DATA is not set")


@pytest.fixture(scope="module")
def at_200x(published: Published) -> list[ImageRecord]:
    return published([200])


def cases_by_subset(split: Split) -> dict[Subset, set[str]]:
    return {subset: {split.records[index].name.case for index in split.indices(subset)} for subset in Subset}


def subset_by_name(split: Split) -> dict[str, Subset]:
    return {record.name.file_name: subset for record, subset in zip(split.records, split.subsets, strict=True)}


def share(split: Split, subset: Subset, class_name: str, *, of: Sequence[Subset] = tuple(Subset)) -> float:
    counts = split.counts()
    return counts[subset][class_name] / sum(counts[other][class_name] for other in of if other in counts)


def test_fold_2_at_200x_has_the_counts_of_the_report(at_200x: list[ImageRecord]) -> None:
    split = official_split(at_200x, fold=2)

    assert split.counts() == {
        "train": {"benign": 455, "malignant": 961},
        "test": {"benign": 168, "malignant": 429},
    }
    patients = {s: {split.records[i].name.patient for i in split.indices(s)} for s in (Subset.TRAIN, Subset.TEST)}
    assert [len(ids) for ids in patients.values()] == [54, 28]


def test_six_cases_of_fold_2_lie_in_train_and_in_test(at_200x: list[ImageRecord]) -> None:
    split = official_split(at_200x, fold=2)
    shared = shared_cases(split)

    siblings = [split.records[i] for i in split.indices(Subset.TEST) if split.records[i].name.case in shared]
    assert shared == ("14-14134", "14-15570", "14-16184", "14-18842", "14-22549", "14-29960")
    assert len(siblings) == 163
    assert sum(record.name.class_name == "benign" for record in siblings) == 92


def test_case_13412_is_shared_in_folds_1_3_and_5(to_records: ToRecords) -> None:
    records = to_records("SOB_M_DC-14-13412-200-001.png", "SOB_M_LC-14-13412-200-001.png")

    assert [shared_cases(official_split(records, fold=fold)) for fold in FOLDS] == [
        ("14-13412",),
        (),
        ("14-13412",),
        (),
        ("14-13412",),
    ]


@needs_data
@pytest.mark.parametrize("fold", FOLDS)
def test_the_official_split_is_that_of_the_authors_lists(fold: int, to_records: ToRecords) -> None:
    lists = Path(os.environ["BREAKHIS_TEST_DATA"]) / "official_folds" / f"dsfold{fold}.txt"
    rows = [line.split("|") for line in lists.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 7909

    for magnification in MAGNIFICATIONS:
        of_it = {row[0]: row[3] for row in rows if row[1] == str(magnification)}
        split = official_split(to_records(*of_it), fold=fold)
        assert subset_by_name(split) == of_it


@needs_data
def test_the_real_part_has_its_known_counts_in_fold_2() -> None:
    records = index_images(Path(os.environ["BREAKHIS_TEST_DATA"]) / "breakhis_200x_224px", [200])

    assert official_split(records, fold=2).counts() == {
        "train": {"benign": 89, "malignant": 434},
        "test": {"benign": 113, "malignant": 203},
    }


def test_a_fold_outside_1_to_5_is_refused(at_200x: list[ImageRecord]) -> None:
    with pytest.raises(SplitError, match="fold 6 does not exist"):
        official_split(at_200x, fold=6)


def test_a_patient_outside_the_lists_has_no_official_split(to_records: ToRecords) -> None:
    with pytest.raises(SplitError, match="SOB_B_TA-99-1 is in none"):
        official_split(to_records("SOB_B_TA-99-1-40-001.png"), fold=2)


@pytest.mark.parametrize("test_fraction", [0.2, 0.3, 0.5])
def test_images_of_one_case_never_cross_subsets(at_200x: list[ImageRecord], test_fraction: float) -> None:
    for seed in SEEDS:
        split = ratio_split(at_200x, test_fraction=test_fraction, seed=seed)
        cases = cases_by_subset(split)
        assert not cases[Subset.TRAIN] & cases[Subset.TEST]
        assert shared_cases(split) == ()
        check_usable(split, f"seed {seed}")


@pytest.mark.parametrize("test_fraction", [0.2, 0.3, 0.5])
def test_the_share_of_each_class_is_within_one_percent_point(at_200x: list[ImageRecord], test_fraction: float) -> None:
    for seed in SEEDS:
        split = ratio_split(at_200x, test_fraction=test_fraction, seed=seed)
        for class_name in CLASS_NAMES:
            assert abs(share(split, Subset.TEST, class_name) - test_fraction) < 0.01, seed


@pytest.mark.parametrize("test_fraction", [1e-9, 0.01, 0.99, 1 - 1e-9])
def test_no_side_is_empty_however_small_the_share(at_200x: list[ImageRecord], test_fraction: float) -> None:
    for seed in range(20):
        check_usable(ratio_split(at_200x, test_fraction=test_fraction, seed=seed), f"seed {seed}")


def test_a_case_keeps_together_across_magnifications(published: Published) -> None:
    split = ratio_split(published(MAGNIFICATIONS), test_fraction=0.3, seed=3)

    assert shared_cases(split) == ()
    for class_name in CLASS_NAMES:
        assert abs(share(split, Subset.TEST, class_name) - 0.3) < 0.01


def test_the_same_seed_gives_the_same_split_and_others_differ(at_200x: list[ImageRecord]) -> None:
    checksums = [ratio_split(at_200x, test_fraction=0.3, seed=seed).checksum() for seed in SEEDS]

    assert checksums == [ratio_split(at_200x, test_fraction=0.3, seed=seed).checksum() for seed in SEEDS]
    assert len(set(checksums)) == len(SEEDS)


def test_every_case_is_in_test_for_some_seed_and_in_train_for_some(at_200x: list[ImageRecord]) -> None:
    in_test = [cases_by_subset(ratio_split(at_200x, test_fraction=0.3, seed=seed))[Subset.TEST] for seed in SEEDS]

    times = {record.name.case: sum(record.name.case in cases for cases in in_test) for record in at_200x}
    assert len(times) == 70
    assert min(times.values()) > 0.15 * len(SEEDS)
    assert max(times.values()) < 0.6 * len(SEEDS)


def test_the_split_of_seed_0_stays_what_it_is_on_every_machine(at_200x: list[ImageRecord]) -> None:
    split = ratio_split(at_200x, test_fraction=0.3, seed=0)

    assert split.counts()["test"] == {"benign": 187, "malignant": 417}
    assert split.checksum() == "sha256:8cac22b5a8d7a00a0f0c8d976267e139d3a0b0861c818adf46c61586bcda7afc"


@settings(max_examples=10, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.randoms(use_true_random=False), seed=st.integers(min_value=-(2**63), max_value=2**64))
def test_the_order_of_the_records_does_not_matter(at_200x: list[ImageRecord], order: random.Random, seed: int) -> None:
    shuffled = order.sample(at_200x, len(at_200x))

    one = with_validation(ratio_split(at_200x, test_fraction=0.3, seed=seed), fraction=0.2, seed=seed)
    other = with_validation(ratio_split(shuffled, test_fraction=0.3, seed=seed), fraction=0.2, seed=seed)

    assert other.records == tuple(shuffled)
    assert subset_by_name(one) == subset_by_name(other)
    assert one.checksum() == other.checksum()


@settings(max_examples=40, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    patients=st.sets(st.sampled_from(sorted(official_patients())), min_size=1),
    test_fraction=st.floats(min_value=0.01, max_value=0.99),
    seed=st.integers(min_value=0, max_value=1000),
)
def test_a_class_of_two_cases_or_more_is_on_both_sides_of_any_part_of_the_data(
    at_200x: list[ImageRecord], patients: set[str], test_fraction: float, seed: int
) -> None:
    records = [record for record in at_200x if record.name.patient in patients]

    split = ratio_split(records, test_fraction=test_fraction, seed=seed)

    assert shared_cases(split) == ()
    for class_name in CLASS_NAMES:
        of_class = [r.name.class_name == class_name for r in records]
        sides = {subset for subset, is_it in zip(split.subsets, of_class, strict=True) if is_it}
        cases = {r.name.case for r in records if r.name.class_name == class_name}
        assert len(sides) == min(len(cases), 2)


def test_the_two_subtypes_of_13412_stay_together_in_ratio_splits(at_200x: list[ImageRecord]) -> None:
    for seed in SEEDS:
        subsets = subset_by_name(ratio_split(at_200x, test_fraction=0.5, seed=seed))
        assert subsets["SOB_M_DC-14-13412-200-001.png"] == subsets["SOB_M_LC-14-13412-200-001.png"]


def test_four_equal_cases_of_each_class_are_halved(to_records: ToRecords) -> None:
    patients = [f"SOB_{code}-14-{number}" for code in ("B_A", "M_DC") for number in (10, 20, 30, 40)]
    patients = [p if p.startswith("SOB_B") else f"{p}1" for p in patients]  # other numbers, hence other cases
    records = to_records(*(f"{patient}-40-{number:03}.png" for patient in patients for number in range(3)))

    split = ratio_split(records, test_fraction=0.5, seed=1)

    assert split.counts() == {"train": {"benign": 6, "malignant": 6}, "test": {"benign": 6, "malignant": 6}}


def test_no_records_make_an_empty_split() -> None:
    split = ratio_split([], test_fraction=0.3, seed=0)

    assert (split.records, split.counts()) == ((), {})


@pytest.mark.parametrize("test_fraction", [0.0, 1.0, -0.3, 30.0, float("nan")])
def test_a_test_fraction_outside_0_and_1_is_refused(at_200x: list[ImageRecord], test_fraction: float) -> None:
    with pytest.raises(
        SplitError, match=rf"test fraction of {test_fraction} .*set data\.test_fraction within \(0, 1\)"
    ):
        ratio_split(at_200x, test_fraction=test_fraction, seed=0)


@pytest.mark.parametrize("fold", FOLDS)
def test_validation_takes_whole_cases_out_of_train_and_leaves_test_alone(at_200x: list[ImageRecord], fold: int) -> None:
    before = official_split(at_200x, fold=fold)
    for seed in range(30):
        after = with_validation(before, fraction=0.2, seed=seed)
        cases = cases_by_subset(after)
        assert after.indices(Subset.TEST) == before.indices(Subset.TEST)
        assert not cases[Subset.TRAIN] & cases[Subset.VAL]
        check_usable(after, f"seed {seed}")
        for class_name in CLASS_NAMES:
            assert abs(share(after, Subset.VAL, class_name, of=(Subset.TRAIN, Subset.VAL)) - 0.2) < 0.05


def test_validation_follows_its_seed(at_200x: list[ImageRecord]) -> None:
    before = official_split(at_200x, fold=2)
    checksums = {with_validation(before, fraction=0.2, seed=seed).checksum() for seed in range(30)}

    assert len(checksums) == 30
    assert with_validation(before, fraction=0.2, seed=5).checksum() in checksums


def test_a_validation_fraction_of_0_leaves_the_split_as_it_is(at_200x: list[ImageRecord]) -> None:
    before = official_split(at_200x, fold=2)

    assert with_validation(before, fraction=0.0, seed=0) is before


@pytest.mark.parametrize("fraction", [1.0, -0.1, float("nan")])
def test_a_validation_fraction_outside_0_to_1_is_refused(at_200x: list[ImageRecord], fraction: float) -> None:
    with pytest.raises(SplitError, match=rf"validation fraction of {fraction} is impossible; set data\.val_fraction"):
        with_validation(official_split(at_200x, fold=2), fraction=fraction, seed=0)


def test_a_second_validation_set_is_refused(at_200x: list[ImageRecord]) -> None:
    split = with_validation(official_split(at_200x, fold=2), fraction=0.2, seed=0)

    with pytest.raises(SplitError, match="has a validation set already"):
        with_validation(split, fraction=0.2, seed=0)


def test_validation_needs_two_cases_of_each_class(to_records: ToRecords) -> None:
    names = ["SOB_B_A-14-22549AB-200-001.png", "SOB_B_A-14-22549CD-200-001.png"]
    train = to_records(*names, "SOB_M_DC-14-13412-200-001.png")

    with pytest.raises(SplitError, match=r"benign cases in train: 14-22549; .*set data\.val_fraction=0"):
        with_validation(Split(tuple(train), (Subset.TRAIN,) * 3), fraction=0.2, seed=0)
    with pytest.raises(SplitError, match="benign cases in train: none;"):
        with_validation(Split(tuple(train), (Subset.TEST, Subset.TEST, Subset.TRAIN)), fraction=0.2, seed=0)


def three_images(to_records: ToRecords) -> tuple[ImageRecord, ...]:
    return tuple(
        to_records("SOB_M_DC-14-13412-200-001.png", "SOB_B_A-14-22549AB-200-001.png", "SOB_B_A-14-22549G-200-001.png")
    )


def test_indices_and_counts_of_three_images(to_records: ToRecords) -> None:
    split = Split(three_images(to_records), (Subset.TEST, Subset.TRAIN, Subset.TEST))

    assert split.indices(Subset.TEST) == (0, 2)
    assert split.indices(Subset.VAL) == ()
    assert split.counts() == {"train": {"benign": 1, "malignant": 0}, "test": {"benign": 1, "malignant": 1}}
    assert list(split.counts()) == ["train", "test"]


def test_the_checksum_is_that_of_the_sorted_lines(to_records: ToRecords) -> None:
    split = Split(three_images(to_records), (Subset.TEST, Subset.TRAIN, Subset.VAL))

    lines = (
        "SOB_B_A-14-22549AB-200-001.png,train\nSOB_B_A-14-22549G-200-001.png,val\nSOB_M_DC-14-13412-200-001.png,test\n"
    )
    assert split.checksum() == "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


def test_a_case_in_validation_and_test_is_shared(to_records: ToRecords) -> None:
    records = three_images(to_records)

    assert shared_cases(Split(records, (Subset.TRAIN, Subset.VAL, Subset.TEST))) == ("14-22549",)
    assert shared_cases(Split(records, (Subset.TEST, Subset.VAL, Subset.TRAIN))) == ()


def test_records_and_subsets_of_different_length_are_refused(to_records: ToRecords) -> None:
    with pytest.raises(ShapeError, match="3 records, but 1 subsets"):
        Split(three_images(to_records), (Subset.TEST,))


@pytest.mark.parametrize(
    ("subsets", "text"),
    [
        ("train train test", "test has no malignant image"),
        ("test train train", "train has no malignant image, test has no benign image"),
        ("train train train", "test has no benign image, test has no malignant image"),
        ("train val test", "train has no benign image, val has no malignant image, test has no malignant image"),
    ],
)
def test_a_class_that_is_absent_from_a_subset_is_told_with_what_was_asked(
    to_records: ToRecords, subsets: str, text: str
) -> None:
    split = Split(three_images(to_records), tuple(Subset(subset) for subset in subsets.split()))

    with pytest.raises(SplitError, match=rf"^{text} \(data\.split=official data\.fold=2\); both classes"):
        check_usable(split, "data.split=official data.fold=2")


@pytest.mark.parametrize(
    ("subsets", "lacking"), [("test train train", ("benign",)), ("train train test", ("malignant",))]
)
def test_training_allows_a_test_set_of_one_class_and_says_which_is_lacking(
    to_records: ToRecords, subsets: str, lacking: tuple[str, ...]
) -> None:
    more = to_records("SOB_M_DC-14-2523-200-001.png", "SOB_B_A-14-22549CD-200-001.png")
    split = Split(
        (*three_images(to_records), *more), (*(Subset(name) for name in subsets.split()), *[Subset.TRAIN] * 2)
    )

    assert check_trainable(split, "data.fold=2") == lacking
    with pytest.raises(SplitError, match=rf"^test has no {lacking[0]} image \(data\.fold=2\)"):
        check_usable(split, "data.fold=2")


def test_training_needs_nothing_more_than_both_classes_in_each_subset(at_200x: list[ImageRecord]) -> None:
    assert check_trainable(with_validation(official_split(at_200x, fold=2), fraction=0.2, seed=0), "fold 2") == ()


@pytest.mark.parametrize(
    ("subsets", "text"),
    [
        ("test train train", "train has no malignant image, test has no benign image"),
        ("train train train", "test has no benign image, test has no malignant image"),
        ("train val test", "train has no benign image, val has no malignant image, test has no malignant image"),
    ],
)
def test_training_refuses_a_class_that_is_absent_from_train_or_validation_and_an_empty_test_set(
    to_records: ToRecords, subsets: str, text: str
) -> None:
    split = Split(three_images(to_records), tuple(Subset(subset) for subset in subsets.split()))

    with pytest.raises(SplitError, match=rf"^{text} \(data\.fold=2\); both classes"):
        check_trainable(split, "data.fold=2")


def test_an_empty_split_is_not_usable() -> None:
    with pytest.raises(SplitError, match="train has no benign image"):
        check_usable(Split((), ()), "data.split=ratio")


def test_split_csv_says_image_patient_case_and_subset(tmp_path: Path, to_records: ToRecords) -> None:
    path = tmp_path / "split.csv"
    path.write_text("old", encoding="utf-8")

    write_split_csv(path, Split(three_images(to_records), (Subset.TEST, Subset.TRAIN, Subset.VAL)))

    assert path.read_text(encoding="utf-8").splitlines() == [
        "image,patient,case,subset",
        "SOB_B_A-14-22549AB-200-001.png,SOB_B_A-14-22549AB,14-22549,train",
        "SOB_B_A-14-22549G-200-001.png,SOB_B_A-14-22549G,14-22549,val",
        "SOB_M_DC-14-13412-200-001.png,SOB_M_DC-14-13412,14-13412,test",
    ]
    assert [entry.name for entry in tmp_path.iterdir()] == ["split.csv"]


def test_a_split_csv_that_cannot_be_finished_leaves_the_old_one(
    tmp_path: Path, to_records: ToRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "split.csv"
    path.write_text("old", encoding="utf-8")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(csv, "writer", full)

    with pytest.raises(OSError, match="No space left"):
        write_split_csv(path, Split(three_images(to_records), (Subset.TEST,) * 3))
    assert [(entry.name, entry.read_text(encoding="utf-8")) for entry in tmp_path.iterdir()] == [("split.csv", "old")]


def patients_of(split: Split, subset: Subset) -> set[str]:
    return {split.records[index].name.patient for index in split.indices(subset)}


def test_by_patient_no_patient_crosses_subsets_and_siblings_may(at_200x: list[ImageRecord]) -> None:
    n_shared = 0
    for seed in SEEDS:
        split = ratio_split(at_200x, test_fraction=0.3, seed=seed, group="patient")
        assert not patients_of(split, Subset.TRAIN) & patients_of(split, Subset.TEST)
        n_shared += len(shared_cases(split))
        for class_name in CLASS_NAMES:
            assert abs(share(split, Subset.TEST, class_name) - 0.3) < 0.01, seed
    assert n_shared > 0


def test_validation_takes_whole_cases_whatever_test_is_divided_by(at_200x: list[ImageRecord]) -> None:
    for seed in range(30):
        test = ratio_split(at_200x, test_fraction=0.3, seed=seed, group="patient")
        cases = cases_by_subset(with_validation(test, fraction=0.2, seed=seed))
        assert not cases[Subset.TRAIN] & cases[Subset.VAL]


def test_an_unknown_group_is_refused(at_200x: list[ImageRecord]) -> None:
    with pytest.raises(SplitError, match=r"data\.group=slide is not possible"):
        ratio_split(at_200x, test_fraction=0.3, seed=0, group="slide")


@pytest.mark.parametrize("kind", ["official", "case", "patient"])
@pytest.mark.parametrize(("train", "evaluated"), [((40, 100, 200, 400), (200,)), ((40, 100), (400,)), ((200,), (200,))])
def test_other_test_magnifications_keep_every_subset_apart(
    published: Published, kind: str, train: tuple[int, ...], evaluated: tuple[int, ...]
) -> None:
    records = published(sorted({*train, *evaluated}))
    for seed in range(3):
        if kind == "official":
            before = official_split(records, fold=seed % 5 + 1)
        else:
            before = ratio_split(records, test_fraction=0.3, seed=seed, group=kind, counted=evaluated)
        split = at_magnifications(
            with_validation(before, fraction=0.2, seed=seed, counted=evaluated), train=train, evaluated=evaluated
        )
        wanted = {Subset.TRAIN: set(train), Subset.VAL: set(evaluated), Subset.TEST: set(evaluated)}
        for subset, magnifications in wanted.items():
            assert {split.records[index].name.magnification for index in split.indices(subset)} == magnifications
        cases = cases_by_subset(split)
        assert not patients_of(split, Subset.TRAIN) & patients_of(split, Subset.TEST)
        assert not cases[Subset.TRAIN] & cases[Subset.VAL]
        if kind == "case":
            assert not cases[Subset.TRAIN] & cases[Subset.TEST]
        kept = {record.name.file_name for record in split.records}
        assert split.records == tuple(record for record in records if record.name.file_name in kept)


@pytest.mark.parametrize("kind", ["official", "ratio"])
def test_more_train_magnifications_leave_the_test_and_validation_images_as_they_are(
    published: Published, at_200x: list[ImageRecord], kind: str
) -> None:
    for seed in range(2):

        def split(records: list[ImageRecord], seed: int = seed) -> Split:
            before = (
                official_split(records, fold=2)
                if kind == "official"
                else ratio_split(records, test_fraction=0.3, seed=seed, counted=(200,))
            )
            after = with_validation(before, fraction=0.2, seed=seed, counted=(200,))
            return at_magnifications(after, train=MAGNIFICATIONS, evaluated=(200,))

        alone, together = subset_by_name(split(at_200x)), subset_by_name(split(published(MAGNIFICATIONS)))
        assert {name: together[name] for name in alone} == alone
        assert set(together.values()) == set(Subset)
        assert all(subset is Subset.TRAIN for name, subset in together.items() if name not in alone)


def test_a_case_without_an_image_at_the_test_magnification_stays_in_train(to_records: ToRecords) -> None:
    pairs = [("SOB_B_A-14-10", 1), ("SOB_B_A-14-20", 1), ("SOB_M_DC-14-30", 1), ("SOB_M_DC-14-40", 1)]
    records = to_records(*(f"{patient}-200-001.png" for patient, _ in pairs), "SOB_B_A-14-50-40-001.png")
    for seed in range(10):
        split = ratio_split(records, test_fraction=0.5, seed=seed, counted=(200,))
        after = with_validation(split, fraction=0.0, seed=seed, counted=(200,))
        assert subset_by_name(after)["SOB_B_A-14-50-40-001.png"] is Subset.TRAIN


def test_the_split_by_patient_of_seed_0_stays_what_it_is_on_every_machine(at_200x: list[ImageRecord]) -> None:
    split = ratio_split(at_200x, test_fraction=0.2, seed=0, group="patient")

    assert split.checksum() == "sha256:0669e49e769a7bba55cc8fe8753231cf3089119bf47509285cec205448beee4e"
