import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from breakhis_pl.data.breakhis import MAGNIFICATIONS, parse_file_name
from breakhis_pl.data.index import ImageRecord, check_complete, describe, index_images
from breakhis_pl.errors import DataFolderError, FileNameError, IncompleteDataError, SplitError

NAME = "SOB_B_F-14-14134-200-001.png"
Published = Callable[[Sequence[int]], list[ImageRecord]]
ToRecords = Callable[..., list[ImageRecord]]

FILE_NAMES = st.one_of(
    st.from_regex(
        r"SOB_[BM]_(A|F|PT|TA|DC|LC|MC|PC|XX)-[0-9]{2}-[0-9]{1,6}[A-Z]{0,3}-(40|60|100|200)-[0-9]{3}\.png",
        fullmatch=True,
    ),
    st.binary(min_size=1, max_size=40).map(lambda name: os.fsdecode(name.translate(None, b"\0/") + b".png")),
    st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=40).map(
        lambda name: f"{name}.png"
    ),
)
"""File names of images: after the grammar and beside it, of any characters and of bytes that are no text."""

needs_data = pytest.mark.skipif("BREAKHIS_TEST_DATA" not in os.environ, reason="BREAKHIS_TEST_DATA is not set")


def touch(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names_of(records: Sequence[ImageRecord]) -> list[str]:
    return [record.name.file_name for record in records]


@pytest.mark.parametrize("magnification", MAGNIFICATIONS)
def test_the_archive_tree_is_found_whole_and_strays_are_ignored(fake_tree: Any, magnification: int) -> None:
    records = index_images(fake_tree.root, [magnification])

    assert names_of(records) == fake_tree.file_names[magnification]


def test_several_magnifications_come_together_sorted_by_file_name(fake_tree: Any) -> None:
    records = index_images(fake_tree.root, MAGNIFICATIONS)

    assert names_of(records) == sorted(chain(*fake_tree.file_names.values()))
    assert fake_tree.truncated in names_of(records)


def test_a_record_holds_path_size_and_time_of_its_file(tmp_path: Path) -> None:
    path = touch(tmp_path / "deep" / NAME, b"12345")
    os.utime(path, ns=(7, 1_600_000_000_000_000_000))

    (record,) = index_images(tmp_path, [200])

    assert (record.path, record.n_bytes, record.modified_ns) == (path, 5, 1_600_000_000_000_000_000)


@pytest.mark.parametrize("folder", [".", "train/B", "test/M", "BreaKHis_v1/BreaKHis_v1/histology_slides", "malignant"])
def test_any_tree_will_do_since_the_class_comes_from_the_name(tmp_path: Path, folder: str) -> None:
    touch(tmp_path / folder / NAME)

    (record,) = index_images(tmp_path, [200])

    assert record.name.class_name == "benign"


def test_a_relative_and_hidden_root_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / ".cache" / NAME)
    monkeypatch.chdir(tmp_path / ".cache")

    assert names_of(index_images(Path(), [200])) == [NAME]
    assert names_of(index_images(tmp_path / ".cache", [200])) == [NAME]


def test_an_empty_file_is_a_record_since_no_file_is_opened(tmp_path: Path) -> None:
    touch(tmp_path / NAME, b"")

    assert index_images(tmp_path, [200])[0].n_bytes == 0


def test_links_to_files_and_folders_are_followed(tmp_path: Path) -> None:
    first = touch(tmp_path / "elsewhere" / "one" / NAME, b"123")
    second = touch(tmp_path / "store" / "d41d8cd9", b"12345")
    root = tmp_path / "root"
    root.mkdir()
    (root / "linked").symlink_to(first.parent)
    (root / "SOB_B_F-14-14134-200-002.png").symlink_to(second)

    records = index_images(root, [200])

    assert [(record.name.file_name, record.n_bytes) for record in records] == [
        (NAME, 3),
        ("SOB_B_F-14-14134-200-002.png", 5),
    ]


def test_links_to_folders_above_make_no_endless_loop(tmp_path: Path) -> None:
    touch(tmp_path / "a" / NAME)
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "here").symlink_to(tmp_path / "a")
    (tmp_path / "again").symlink_to(tmp_path / "a")

    assert names_of(index_images(tmp_path, [200])) == [NAME]


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    touch(tmp_path / NAME)
    (tmp_path / "200X").symlink_to(tmp_path / "unmounted")

    with pytest.raises(DataFolderError, match=r"cannot be read under .*\(1\): 200X \(leads nowhere\)"):
        index_images(tmp_path, [200])


def test_a_link_to_itself_is_named(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")

    with pytest.raises(DataFolderError, match=r"loop \(.+\)"):
        index_images(tmp_path, [200])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_under_the_name_of_an_image_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / NAME)

    with pytest.raises(DataFolderError, match=r"001\.png \(no regular file\)"):
        index_images(tmp_path, [200])


def test_a_folder_without_access_is_named_and_not_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / NAME)
    closed = tmp_path / "closed"
    closed.mkdir()
    scandir = os.scandir

    def refuse(path: str) -> Any:  # a real chmod does not stop root
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)

    with pytest.raises(DataFolderError, match=r"closed \(Permission denied\); give access"):
        index_images(tmp_path, [200])


def test_a_folder_under_the_name_of_an_image_is_named(tmp_path: Path) -> None:
    touch(tmp_path / NAME / "SOB_B_F-14-14134-200-002.png")

    with pytest.raises(DataFolderError, match=r"\(1\): SOB_B_F-14-14134-200-001\.png \(a folder\); give access"):
        index_images(tmp_path, [200])


@given(name=FILE_NAMES)
@example(name=NAME)
def test_any_name_is_ignored_refused_on_one_line_or_indexed(name: str, tmp_path_factory: Any) -> None:
    root = tmp_path_factory.mktemp("any", numbered=True)
    try:
        touch(root / name)
    except OSError:  # longer than the system allows
        assume(False)

    try:
        (record,) = index_images(root, MAGNIFICATIONS)
    except (FileNameError, SplitError, DataFolderError) as error:
        text = str(error)
    else:
        text = record.name.file_name
        assert text == name
    finally:
        shutil.rmtree(root)

    assert text.isprintable()
    assert text.encode()


@given(name=FILE_NAMES | st.text())
def test_any_text_is_a_breakhis_name_in_all_its_parts_or_refused_on_one_line(name: str) -> None:
    try:
        parsed = parse_file_name(name)
    except FileNameError as error:
        text = str(error)
        assert text.isprintable()
    else:
        assert f"{parsed.patient}-{parsed.magnification}-{name[-7:-4]}.png" == name
        assert parsed.patient.startswith(f"SOB_{parsed.class_name[0].upper()}_{parsed.subtype}-{parsed.case}")


def test_image_files_with_other_names_are_refused_together(tmp_path: Path) -> None:
    touch(tmp_path / NAME)
    for number in range(11):
        touch(tmp_path / "mine" / f"cell{number:02}.JPG")

    with pytest.raises(FileNameError, match=r"\(11\): mine/cell00\.JPG, .*mine/cell09\.JPG and 1 more; the first: 'ce"):
        index_images(tmp_path, [200])


@pytest.mark.parametrize("suffix", ["png", "PNG", "jpg", "jpeg", "bmp", "tif", "TIFF", "gif", "webp"])
def test_every_kind_of_image_file_needs_a_breakhis_name(tmp_path: Path, suffix: str) -> None:
    touch(tmp_path / f"cell.{suffix}")

    with pytest.raises(FileNameError, match=rf"cell\.{suffix}"):
        index_images(tmp_path, [200])


def test_a_name_whose_class_contradicts_its_subtype_is_refused_with_the_reason(tmp_path: Path) -> None:
    touch(tmp_path / "SOB_B_DC-14-2980-40-001.png")

    with pytest.raises(FileNameError, match="says B, but DC is malignant"):
        index_images(tmp_path, [200])


def test_a_file_name_that_occurs_twice_is_refused_with_both_paths(tmp_path: Path) -> None:
    touch(tmp_path / "train" / "B" / "SOB_B_F-14-14134-40-001.png")
    touch(tmp_path / "BreaKHis_v1" / "SOB_B_F-14-14134-40-001.png")
    touch(tmp_path / NAME)

    with pytest.raises(DataFolderError, match=r"\(1\): BreaKHis_v1/SOB_\S+40-001\.png = train/B/SOB_\S+40-001\.png"):
        index_images(tmp_path, [200])


def test_only_ten_duplicates_are_spelt_out(tmp_path: Path) -> None:
    for number in range(12):
        for folder in "ab":
            touch(tmp_path / folder / f"SOB_B_F-14-14134-200-{number:03}.png")

    with pytest.raises(DataFolderError, match=r"\(12\): .* and 2 more; remove one copy"):
        index_images(tmp_path, [200])


def test_13412_as_ductal_and_as_lobular_is_no_duplicate(tmp_path: Path) -> None:
    touch(tmp_path / "SOB_M_DC-14-13412-200-001.png")
    touch(tmp_path / "SOB_M_LC-14-13412-200-001.png")

    assert len(index_images(tmp_path, [200])) == 2


def test_a_patient_outside_the_authors_lists_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / NAME)
    touch(tmp_path / "SOB_B_TA-99-4659-40-001.png")

    with pytest.raises(SplitError, match="patient SOB_B_TA-99-4659 is in none of the authors' lists"):
        index_images(tmp_path, [200])


def test_all_unknown_patients_are_listed(tmp_path: Path) -> None:
    for number in range(12):
        touch(tmp_path / f"SOB_B_TA-99-{number:02}-40-001.png")

    with pytest.raises(SplitError, match=r"SOB_B_TA-99-00, .*SOB_B_TA-99-11 are in none of the authors' lists"):
        index_images(tmp_path, [200])


def test_a_missing_folder_is_refused_with_three_ways_out(tmp_path: Path) -> None:
    with pytest.raises(DataFolderError, match=r"nowhere does not exist; set data\.root to the folder") as caught:
        index_images(tmp_path / "nowhere", [200])
    assert str(caught.value).endswith(
        "set data.root to the folder that holds BreaKHis_v1, or run `python -m breakhis_pl.data.download`, "
        "or try `data=synthetic`"
    )


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataFolderError, match=r"archive\.tar\.gz is no folder; set data\.root"):
        index_images(touch(tmp_path / "archive.tar.gz"), [200])


def test_a_root_below_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataFolderError, match=r"BreaKHis_v1 cannot be read \(Not a directory\)"):
        index_images(touch(tmp_path / "file") / "BreaKHis_v1", [200])


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "README.txt")

    with pytest.raises(
        DataFolderError, match=r"no BreaKHis images under .*; set data\.root .* or try `data=synthetic`"
    ):
        index_images(tmp_path, [200])


def test_a_folder_without_the_wanted_magnification_is_refused_with_those_there(tmp_path: Path) -> None:
    touch(tmp_path / "SOB_B_F-14-14134-400-001.png")
    touch(tmp_path / "SOB_B_F-14-14134-40-001.png")
    touch(tmp_path / "SOB_B_F-14-14134-40-002.png")

    with pytest.raises(DataFolderError, match=r"at 100X and 200X under .*, but 2 at 40X, 1 at 400X; set"):
        index_images(tmp_path, [200, 100])
    with pytest.raises(DataFolderError, match="at no magnification"):
        index_images(tmp_path, [])


def test_all_7909_files_are_indexed_in_half_a_second(tmp_path: Path, published: Published) -> None:
    for record in published(MAGNIFICATIONS):
        folder = tmp_path / record.name.patient
        folder.mkdir(exist_ok=True)
        os.close(os.open(folder / record.name.file_name, os.O_CREAT))

    taken_s = []
    for _ in range(3):  # the fastest one counts: processor time, too, grows where other tests use the same caches
        began_s = time.process_time()
        records = index_images(tmp_path, MAGNIFICATIONS)
        taken_s.append(time.process_time() - began_s)

    assert len(records) == 7909
    check_complete(records, MAGNIFICATIONS)
    assert min(taken_s) < 0.5


def test_the_published_images_are_complete(published: Published) -> None:
    for magnification in MAGNIFICATIONS:
        check_complete(published([magnification]), [magnification])


def test_missing_images_are_told_by_class_and_by_patient(published: Published) -> None:
    without = [record for record in published([200]) if record.name.subtype != "PC"][1:]

    with pytest.raises(IncompleteDataError) as caught:
        check_complete(without, [200])

    text = str(caught.value)
    assert "200X benign: 622 of 623 images" in text
    assert "200X malignant: 1,255 of 1,390 images" in text
    assert "patients without any image (6): SOB_M_PC-14-12465, SOB_M_PC-14-15687B" in text
    assert "too few images of a patient (1): SOB_B_A-14-22549AB 200X (31 of 32)" in text
    assert "too many" not in text
    assert text.endswith("`data.require_complete=false` uses what is there")


def test_only_ten_missing_patients_are_spelt_out() -> None:
    with pytest.raises(IncompleteDataError, match=r"patients without any image \(82\): .* and 72 more"):
        check_complete([], [40, 100])


def test_too_many_images_of_a_patient_are_told(published: Published, to_records: ToRecords) -> None:
    records = published([40]) + to_records("SOB_M_PC-15-190EF-40-999.png")

    with pytest.raises(
        IncompleteDataError, match=r"1,371 of 1,370 images\n  too many .*\(1\): SOB_M_PC-15-190EF 40X \(20 of 19\)"
    ):
        check_complete(records, [40])


def test_differences_between_patients_are_told_where_the_sums_agree(
    published: Published, to_records: ToRecords
) -> None:
    records = published([40])[1:] + to_records("SOB_B_F-14-14134-40-999.png")

    with pytest.raises(IncompleteDataError) as caught:
        check_complete(records, [40])

    assert str(caught.value).splitlines()[1:3] == [
        "  too few images of a patient (1): SOB_B_A-14-22549AB 40X (28 of 29)",
        "  too many images of a patient (1): SOB_B_F-14-14134 40X (37 of 36)",
    ]


def test_a_patient_without_one_magnification_is_no_missing_patient(published: Published) -> None:
    records = [r for r in published([40, 100]) if (r.name.patient, r.name.magnification) != ("SOB_M_PC-15-190EF", 100)]

    with pytest.raises(IncompleteDataError, match=r"100X \(0 of 16\)") as caught:
        check_complete(records, [40, 100])
    assert "without any image" not in str(caught.value)


def test_describe_counts_images_classes_and_patients(published: Published, to_records: ToRecords) -> None:
    assert describe(published([40, 400]), [400, 40]) == (
        "3,815 of 3,815 images at 40X and 400X (1,213 of 1,213 benign, 2,602 of 2,602 malignant) of 82 of 82 patients"
    )
    assert describe(to_records(NAME), [200, 40, 100]) == (
        "1 of 6,089 images at 40X, 100X and 200X (1 of 1,892 benign, 0 of 4,197 malignant) of 1 of 82 patients"
    )


@needs_data
def test_the_real_part_is_described() -> None:
    records = index_images(Path(os.environ["BREAKHIS_TEST_DATA"]) / "breakhis_200x_224px", [200])

    assert describe(records, [200]) == (
        "839 of 2,013 images at 200X (202 of 623 benign, 637 of 1,390 malignant) of 48 of 82 patients"
    )


def test_index_splits_and_export_import_no_torch() -> None:
    code = "import sys, breakhis_pl.data.export as _; sys.exit('torch' in sys.modules or 'PIL' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
