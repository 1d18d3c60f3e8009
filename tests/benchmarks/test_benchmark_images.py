from pathlib import Path

import pytest
from PIL import Image

from benchmarks.images import drawn_images, linked, resized_copies, spread
from breakhis_pl.data.index import ImageRecord, index_images
from breakhis_pl.errors import DataFolderError


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def records(cache: Path) -> tuple[ImageRecord, ...]:
    return index_images(drawn_images(cache, size=(35, 23), per_patient=1), (200,))


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}


def test_images_are_drawn_and_copied_once(cache: Path, records: tuple[ImageRecord, ...]) -> None:
    folder, copies = drawn_images(cache, size=(35, 23), per_patient=1), resized_copies(records, cache, side=16)
    before = times(folder) | times(copies)
    assert len(before) == 2 * 82
    assert drawn_images(cache, size=(35, 23), per_patient=1) == folder
    assert resized_copies(records, cache, side=16) == copies
    assert times(folder) | times(copies) == before
    assert {path.name for path in cache.iterdir()} == {folder.name, copies.name}


def test_copies_are_square_and_lie_with_their_class(cache: Path, records: tuple[ImageRecord, ...]) -> None:
    copies = resized_copies(records, cache, side=16)
    for record in records[::20]:
        with Image.open(copies / record.name.class_name / record.name.file_name) as image:
            assert image.size == (16, 16)


def test_other_images_have_other_copies(cache: Path, records: tuple[ImageRecord, ...]) -> None:
    assert resized_copies(records[:3], cache, side=16) != resized_copies(records, cache, side=16)
    assert resized_copies(records[:3], cache, side=17) != resized_copies(records[:3], cache, side=16)


def test_a_linked_tree_holds_the_same_images(tmp_path: Path, records: tuple[ImageRecord, ...]) -> None:
    found = index_images(linked(records[:10], tmp_path / "tree"), (200,))
    assert [record.name for record in found] == [record.name for record in records[:10]]
    assert {path.name for path in (tmp_path / "tree").iterdir()} <= {"benign", "malignant"}


def test_images_are_taken_evenly_from_all(records: tuple[ImageRecord, ...]) -> None:
    taken = spread(records, 41)
    assert taken == list(records[::2])
    assert {record.name.class_name for record in taken} == {"benign", "malignant"}
    assert spread(records, 1000) == list(records)


def test_no_images_are_refused() -> None:
    with pytest.raises(DataFolderError, match="no images to measure with"):
        spread([], 3)
