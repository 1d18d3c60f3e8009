from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from breakhis_pl.data import breakhis
from breakhis_pl.data.dataset import Dataset
from breakhis_pl.errors import DataError

Write = Callable[..., Path]
ADENOSIS = "SOB_B_A-14-22549AB-200-001.png"
DUCTAL = "SOB_M_DC-14-13412-200-001.png"


@pytest.mark.parametrize(
    ("file_name", "content"),
    [
        ("SOB_B_TA-14-4659-40-001.png", ("benign", "TA", "SOB_B_TA-14-4659", "14-4659", 40)),
        ("SOB_B_A-14-22549AB-100-012.png", ("benign", "A", "SOB_B_A-14-22549AB", "14-22549", 100)),
        ("SOB_M_PC-15-190EF-400-015.png", ("malignant", "PC", "SOB_M_PC-15-190EF", "15-190", 400)),
    ],
)
def test_a_file_name_is_parsed(file_name: str, content: tuple[str, str, str, str, int]) -> None:
    assert breakhis.parse_file_name(file_name) == breakhis.ImageName(file_name, *content)
    assert breakhis.parse_file_name(file_name.replace("png", "PNG")) == breakhis.ImageName(file_name, *content)


@pytest.mark.parametrize(
    "file_name",
    [
        *("", "cell.png", "SOB_B_TA-14-4659-40-001.jpg", "SOB_B_TA-14-4659-40-001.png\n"),
        *("xSOB_B_TA-14-4659-40-001.png", "SOB_B_TA-14-4659-60-001.png", "SOB_B_TA-14-4659-40-1.png"),
        *("SOB_B_TA-14-٤٦٥٩-40-001.png", "SOB_X_TA-14-4659-40-001.png", "SOB_B_XX-14-4659-40-001.png"),
        "SOB_B_DC-14-4659-40-001.png",  # ductal carcinoma is malignant
    ],
)
def test_a_malformed_or_contradictory_name_is_refused(file_name: str) -> None:
    with pytest.raises(DataError) as caught:
        breakhis.parse_file_name(file_name)
    assert repr(file_name) in str(caught.value)


def test_published_counts_are_those_of_the_authors_patients() -> None:
    by_class: Counter[tuple[int, str]] = Counter()
    for official in breakhis.official_patients().values():
        class_name = breakhis.parse_file_name(f"{official.patient}-40-001.png").class_name
        by_class.update({(m, class_name): official.n_images[m] for m in breakhis.MAGNIFICATIONS})
    assert by_class == Counter(breakhis.PUBLISHED_COUNTS)
    assert sum(breakhis.PUBLISHED_COUNTS.values()) == 7909
    assert len(breakhis.official_patients()) == 82


def test_official_subsets_are_the_39545_rows_of_the_authors_lists(real_data: Path) -> None:
    n_rows = 0
    for fold in breakhis.FOLDS:
        lines = (real_data / "official_folds" / f"dsfold{fold}.txt").read_text(encoding="utf-8").splitlines()
        for line in lines:
            file_name, magnification, _, subset = line.split("|")
            name = breakhis.parse_file_name(file_name)
            official = breakhis.official_patients()[name.patient].subsets[fold]
            assert (name.magnification, official) == (int(magnification), subset)
        n_rows += len(lines)
    assert n_rows == 39_545


def test_the_archive_folder_names_class_subtype_slide_and_magnification() -> None:
    assert breakhis.archive_folder(breakhis.parse_file_name(DUCTAL)).endswith(
        "/malignant/SOB/ductal_carcinoma/SOB_M_DC_14-13412/200X"
    )


def test_images_are_found_at_any_depth_behind_links(write_images: Write, tmp_path: Path) -> None:
    root = write_images(f"a/b/{DUCTAL}", ADENOSIS.replace("png", "PNG"))
    (root / "._ignored.png").write_bytes(b"resource fork of macOS")
    (root / "notes.txt").write_bytes(b"")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "BreaKHis_v1").symlink_to(root)
    for folder in (root, tmp_path / "linked"):
        images = breakhis.index_images(folder, [200])
        assert [image.name.file_name for image in images] == [ADENOSIS, DUCTAL]
        assert all(image.path.is_file() for image in images)
    assert breakhis.index_images(root, [40]) == ()


def test_all_faults_of_a_folder_are_named_at_once(write_images: Write) -> None:
    root = write_images("cell.png", f"a/{DUCTAL}", f"b/{DUCTAL}", "SOB_B_A-99-1-200-001.png")
    with pytest.raises(DataError) as caught:
        breakhis.open_breakhis(root, task="binary", magnifications=[200], require_complete=True)
    copies = (str(Path("a", DUCTAL)), str(Path("b", DUCTAL)))
    for name in ("cell.png", *copies, "SOB_B_A-99-1", "require_complete"):
        assert name in str(caught.value)


@pytest.mark.parametrize("folder", ["missing", "empty", "file"])
def test_a_folder_without_images_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"data\.root"):
        breakhis.open_breakhis(tmp_path / folder, task="binary", magnifications=[200], require_complete=False)


def test_a_magnification_without_images_is_refused(write_images: Write) -> None:
    with pytest.raises(DataError, match="40X"):
        breakhis.open_breakhis(write_images(DUCTAL), task="binary", magnifications=[40, 200], require_complete=False)


def test_missing_and_additional_images_are_not_complete(published: Callable[..., Dataset]) -> None:
    images = [
        breakhis.IndexedImage(record.path, breakhis.parse_file_name(record.image))
        for record in published([40, 200]).records
    ]
    extra = breakhis.IndexedImage(Path(), breakhis.parse_file_name("SOB_B_A-14-22549AB-200-999.png"))
    breakhis.check_complete(images, [40, 200])
    for other in (images[1:], [*images, extra]):
        with pytest.raises(DataError, match="SOB_B_A-14-22549AB"):
            breakhis.check_complete(other, [40, 200])


def test_subtypes_have_the_classes_as_parents(write_images: Write) -> None:
    root = write_images(ADENOSIS, DUCTAL)
    binary, subtype = (
        breakhis.open_breakhis(root, task=task, magnifications=[200], require_complete=False)
        for task in ("binary", "subtype")
    )
    assert [record.target for record in binary.records] == [0, 1]
    assert [subtype.classes[record.target] for record in subtype.records] == ["A", "DC"]
    assert [subtype.parent_of(record.target) for record in subtype.records] == [0, 1]
    assert subtype.parents is not None
    classes = {
        code: breakhis.CLASS_NAMES[parent] for code, parent in zip(subtype.classes, subtype.parents, strict=True)
    }
    assert classes == {code: each.class_name for code, each in breakhis.SUBTYPES.items()}
    assert (binary.is_complete, binary.n_published) == (False, 2013)
    assert "2 of 2,013" in binary.description
