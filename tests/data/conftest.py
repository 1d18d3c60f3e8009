"""A small tree of files with true names that holds every known trap, and the published images as records."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from breakhis_pl.data.breakhis import (
    MAGNIFICATIONS,
    archive_folder,
    official_patients,
    parse_file_name,
)
from breakhis_pl.data.index import ImageRecord

FAKE_PATIENTS = (
    "SOB_B_A-14-22549AB",  # three slides of one case; in fold 2, G is in test and the others are in train
    "SOB_B_A-14-22549CD",
    "SOB_B_A-14-22549G",
    "SOB_B_F-14-14134",
    "SOB_B_TA-14-3411F",
    "SOB_M_DC-14-13412",  # one case under two subtypes, on opposite sides in folds 1, 3 and 5
    "SOB_M_LC-14-13412",
    "SOB_M_MC-14-12773",
    "SOB_M_MC-14-18842D",
    "SOB_M_PC-15-190EF",  # the only case of another year; here without images at 100X
)


@dataclass(frozen=True, slots=True)
class FakeTree:
    """What must be found in a fake tree: file names by magnification; and the one file that is cut short."""

    root: Path
    file_names: dict[int, list[str]]
    truncated: str


def write_fake_tree(root: Path) -> FakeTree:
    """Writes two 8x8 images of each patient and magnification in the archive's folders, and the usual strays."""
    file_names: dict[int, list[str]] = {magnification: [] for magnification in MAGNIFICATIONS}
    for index, patient in enumerate(FAKE_PATIENTS):
        for magnification in MAGNIFICATIONS:
            if (patient, magnification) == ("SOB_M_PC-15-190EF", 100):
                continue
            for number in (1, 2):
                name = parse_file_name(f"{patient}-{magnification}-{number:03}.png")
                folder = root / archive_folder(name)
                folder.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (20 * index, 100, 10 * number)).save(folder / name.file_name)
                file_names[magnification].append(name.file_name)
    cut = parse_file_name(file_names[400][0])
    path = root / archive_folder(cut) / cut.file_name
    path.write_bytes(path.read_bytes()[:40])
    _write_strays(root)
    return FakeTree(root, {m: sorted(names) for m, names in file_names.items()}, cut.file_name)


def _write_strays(root: Path) -> None:
    inner = root / "BreaKHis_v1" / "histology_slides"
    strays = (
        root / ".DS_Store",
        root / "__MACOSX" / "SOB_B_F-14-14134-200-001.png",
        root / ".trash" / "SOB_B_F-14-14134-200-001.png",
        inner / "._SOB_B_F-14-14134-200-001.png",
        inner / "Thumbs.db",
        inner / "README.txt",
        inner / "mkfold.tar.gz",
        inner / "folds.csv",
        inner / "no_suffix",
    )
    for path in strays:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"stray")


@pytest.fixture
def fake_tree(tmp_path: Path) -> FakeTree:
    root = tmp_path / "archive"
    root.mkdir()
    return write_fake_tree(root)


@pytest.fixture(scope="session")
def to_records() -> Callable[..., list[ImageRecord]]:
    """Records of files that do not exist, from their names."""

    def records(*file_names: str) -> list[ImageRecord]:
        return [ImageRecord(parse_file_name(file_name), Path(file_name), 1, 1) for file_name in file_names]

    return records


@pytest.fixture(scope="session")
def published(to_records: Callable[..., list[ImageRecord]]) -> Callable[[Sequence[int]], list[ImageRecord]]:
    """Records of all published images at some magnifications, numbered from 001."""

    def records(magnifications: Sequence[int]) -> list[ImageRecord]:
        return to_records(
            *(
                f"{official.patient}-{magnification}-{number:03}.png"
                for official in official_patients().values()
                for magnification in magnifications
                for number in range(1, official.n_images[magnification] + 1)
            )
        )

    return records
