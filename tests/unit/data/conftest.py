"""Data sets for tests: all published records without files, and folders of small images."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from breakhis_pl.data.breakhis import CLASS_NAMES, official_patients, parse_file_name
from breakhis_pl.data.dataset import Dataset, ImageRecord


@pytest.fixture(scope="session")
def published() -> Callable[..., Dataset]:
    """All published images of some magnifications, without files."""

    def open_published(magnifications: Sequence[int] = (200,), fold: int = 2) -> Dataset:
        names = [
            parse_file_name(f"{official.patient}-{magnification}-{number:03}.png")
            for official in official_patients().values()
            for magnification in magnifications
            for number in range(1, official.n_images[magnification] + 1)
        ]
        records = [
            ImageRecord(
                Path(name.file_name),
                name.file_name,
                name.target_of("binary"),
                name.patient,
                name.case,
                name.magnification,
                official_patients()[name.patient].subsets[fold],
            )
            for name in sorted(names, key=lambda name: name.file_name)
        ]
        return Dataset(
            name="BreakHis",
            records=tuple(records),
            classes=CLASS_NAMES,
            parents=None,
            parent_classes=CLASS_NAMES,
            is_complete=True,
            n_published=len(records),
            description="",
        )

    return open_published


@pytest.fixture
def write_images(tmp_path: Path) -> Callable[..., Path]:
    """Write images of random pixels under given names; return their folder."""

    def write(*names: str, size: tuple[int, int] = (20, 16)) -> Path:
        rng = np.random.default_rng(0)
        for name in names:
            path = tmp_path / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)
        return tmp_path / "images"

    return write
