import os
from collections import Counter
from pathlib import Path

import pytest

from breakhis_pl.data.breakhis import (
    CLASS_NAMES,
    FOLDS,
    MAGNIFICATIONS,
    PUBLISHED_COUNTS,
    SUBTYPES,
    ImageName,
    Subset,
    archive_folder,
    official_patients,
    official_subset,
    parse_file_name,
)
from breakhis_pl.errors import FileNameError, SplitError

needs_data = pytest.mark.skipif("BREAKHIS_TEST_DATA" not in os.environ, reason="BREAKHIS_TEST_DATA is not set")


@pytest.mark.parametrize(
    ("file_name", "said"),
    [
        ("SOB_B_TA-14-4659-40-001.png", ("benign", "TA", "SOB_B_TA-14-4659", "14-4659", 40)),
        ("SOB_B_A-14-22549AB-100-012.png", ("benign", "A", "SOB_B_A-14-22549AB", "14-22549", 100)),
        ("SOB_B_A-14-22549G-200-001.png", ("benign", "A", "SOB_B_A-14-22549G", "14-22549", 200)),
        ("SOB_M_PC-15-190EF-400-015.png", ("malignant", "PC", "SOB_M_PC-15-190EF", "15-190", 400)),
        ("SOB_M_LC-14-13412-200-032.png", ("malignant", "LC", "SOB_M_LC-14-13412", "14-13412", 200)),
    ],
)
def test_a_file_name_says_class_subtype_patient_case_and_magnification(
    file_name: str, said: tuple[str, str, str, str, int]
) -> None:
    name = parse_file_name(file_name)

    assert name == ImageName(file_name, *said)
    assert name.target == ["benign", "malignant"].index(said[0])


@pytest.mark.parametrize(
    "file_name",
    [
        "",
        "cell.png",
        "SOB_B_TA-14-4659-40-001.PNG",
        "SOB_B_TA-14-4659-40-001.jpg",
        "SOB_B_TA-14-4659-40-001.png ",
        "SOB_B_TA-14-4659-40-001.png\n",
        "xSOB_B_TA-14-4659-40-001.png",
        "SOB_B_TA-14-4659-60-001.png",
        "SOB_B_TA-14-4659-40-1.png",
        "SOB_B_TA-4659-40-001.png",
        "SOB_B_TA-14-4659ABC-40-001.png",
        "SOB_B_TA-14-٤٦٥٩-40-001.png",
        "SOB_X_TA-14-4659-40-001.png",
        "SOB_B_TA_14-4659-40-001.png",
    ],
)
def test_a_name_outside_the_grammar_is_refused_with_the_form_it_should_have(file_name: str) -> None:
    with pytest.raises(FileNameError, match="no BreakHis name; expected SOB_<B or M>") as caught:
        parse_file_name(file_name)
    assert repr(file_name) in str(caught.value)


def test_an_unknown_subtype_is_refused_with_the_known_ones() -> None:
    with pytest.raises(FileNameError, match="unknown subtype XX; expected A, F, PT, TA, DC, LC, MC, PC"):
        parse_file_name("SOB_B_XX-14-4659-40-001.png")


def test_a_class_letter_that_contradicts_the_subtype_is_refused() -> None:
    with pytest.raises(FileNameError, match="says B, but DC is malignant"):
        parse_file_name("SOB_B_DC-14-4659-40-001.png")


def test_the_published_counts_add_up_to_7909() -> None:
    assert sum(PUBLISHED_COUNTS.values()) == 7909
    by_class = {name: sum(n for (_, other), n in PUBLISHED_COUNTS.items() if other == name) for name in CLASS_NAMES}
    assert by_class == {"benign": 2480, "malignant": 5429}
    by_magnification = {m: sum(n for (other, _), n in PUBLISHED_COUNTS.items() if other == m) for m in MAGNIFICATIONS}
    assert by_magnification == {40: 1995, 100: 2081, 200: 2013, 400: 1820}


def test_the_images_of_the_official_patients_add_up_to_the_published_counts() -> None:
    found: Counter[tuple[int, str]] = Counter()
    for official in official_patients().values():
        name = parse_file_name(f"{official.patient}-40-001.png")
        for magnification, n_images in official.n_images.items():
            found[magnification, name.class_name] += n_images

    assert found == PUBLISHED_COUNTS


def test_there_are_82_patients_and_70_cases() -> None:
    cases = {parse_file_name(f"{patient}-40-001.png").case for patient in official_patients()}

    assert len(official_patients()) == 82
    assert len(cases) == 70


def test_13412_falls_on_opposite_sides_in_folds_1_3_and_5_only() -> None:
    sides = {
        fold: {official_subset(patient, fold) for patient in ("SOB_M_DC-14-13412", "SOB_M_LC-14-13412")}
        for fold in FOLDS
    }

    assert [fold for fold in FOLDS if len(sides[fold]) == 2] == [1, 3, 5]


def test_the_five_test_sets_are_no_partition() -> None:
    times = Counter(
        sum(subset == Subset.TEST for subset in official.subsets.values()) for official in official_patients().values()
    )

    assert times[0] == 13
    assert times[4] == 5


@pytest.mark.parametrize("fold", [0, 6, -1])
def test_a_fold_that_does_not_exist_is_refused(fold: int) -> None:
    with pytest.raises(SplitError, match=f"fold {fold} does not exist; the authors published folds 1, 2, 3, 4, 5"):
        official_subset("SOB_M_DC-14-13412", fold)


def test_a_patient_outside_the_authors_lists_has_no_official_subset() -> None:
    with pytest.raises(SplitError, match="patient SOB_M_DC-99-1 is in none of the authors' lists"):
        official_subset("SOB_M_DC-99-1", 2)


def test_every_subtype_has_its_folder_in_the_archive() -> None:
    folders = {archive_folder(parse_file_name(f"SOB_{s.class_name[0].upper()}_{s.code}-14-1-40-001.png")).split("/")[5]
               for s in SUBTYPES.values()}  # fmt: skip

    assert folders == {subtype.folder for subtype in SUBTYPES.values()}


@needs_data
@pytest.mark.parametrize("part", ["breakhis_originals", "breakhis_200x_224px"])
def test_real_images_lie_where_archive_folder_says(part: str) -> None:
    root = Path(os.environ["BREAKHIS_TEST_DATA"]) / part
    paths = list(root.rglob("*.png"))

    assert paths
    for path in paths:
        assert path.parent.relative_to(root).as_posix() == archive_folder(parse_file_name(path.name))


@needs_data
def test_every_row_of_the_authors_lists_agrees_with_the_table() -> None:
    root = Path(os.environ["BREAKHIS_TEST_DATA"]) / "official_folds"
    n_rows = 0
    for fold in FOLDS:
        rows = [line.split("|") for line in (root / f"dsfold{fold}.txt").read_text(encoding="utf-8").splitlines()]
        n_rows += len(rows)
        n_images: Counter[tuple[str, int]] = Counter()
        for file_name, magnification, listed_fold, subset in rows:
            name = parse_file_name(file_name)
            n_images[name.patient, name.magnification] += 1
            assert (name.magnification, fold) == (int(magnification), int(listed_fold))
            assert official_subset(name.patient, fold) == subset
        assert n_images == {(o.patient, m): n for o in official_patients().values() for m, n in o.n_images.items()}

    assert n_rows == 39_545
