"""The images that are measured with: synthetic ones at the size of the originals, drawn once, or real ones."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from breakhis_pl.data.drawn import DRAWING_VERSION
from breakhis_pl.data.index import ImageRecord
from breakhis_pl.data.synthetic import write_synthetic
from breakhis_pl.errors import DataFolderError
from breakhis_pl.files import folder_aside

MAGNIFICATION = 200


def drawn_images(cache: Path, *, size: tuple[int, int], per_patient: int | None) -> Path:
    """Folder of the synthetic images; draws them if they are not there.

    Args:
        cache: Where the folder lies.
        size: Width and height, pixels.
        per_patient: Number per patient; None for all published.
    """
    width, height = size
    folder = cache / f"synthetic-v{DRAWING_VERSION}-{width}x{height}-{per_patient or 'all'}"
    if not folder.is_dir():
        with folder_aside(folder) as aside:
            write_synthetic(aside, magnifications=(MAGNIFICATION,), images_per_patient=per_patient, size=size)
            _rename(aside, folder)
    return folder


def resized_copies(records: Sequence[ImageRecord], cache: Path, *, side: int) -> Path:
    """Folder of square PNG copies of images, below folders of their classes; makes them if they are not there.

    Args:
        records: The images.
        cache: Where the folder lies.
        side: Of the copies, pixels.
    """
    facts = "\n".join(f"{record.name.file_name} {record.n_bytes} {record.modified_ns}" for record in records)
    folder = cache / f"copies-{side}px-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"
    if not folder.is_dir():
        with folder_aside(folder) as aside:

            def copy(record: ImageRecord) -> None:
                with Image.open(record.path) as image:
                    image.resize((side, side), Image.Resampling.BILINEAR).save(_place(aside, record), compress_level=6)

            with ThreadPoolExecutor(n_cores()) as pool:
                list(pool.map(copy, records))
            _rename(aside, folder)
    return folder


def linked(records: Sequence[ImageRecord], folder: Path) -> Path:
    """A folder with links to some images, below folders of their classes, as torchvision's ImageFolder wants them."""
    for record in records:
        _place(folder, record).symlink_to(record.path.resolve())
    return folder


def spread(records: Sequence[ImageRecord], n_images: int) -> list[ImageRecord]:
    """So many images, taken evenly from the sorted ones: every patient keeps about the same share.

    Args:
        records: Sorted by file name.
        n_images: At least one; all are taken if there are no more.

    Raises:
        DataFolderError: If there are none.
    """
    if not records:
        raise DataFolderError("no images to measure with; expected at least one; give another --root, or none")
    n_taken = min(n_images, len(records))
    return [records[place * len(records) // n_taken] for place in range(n_taken)]


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _place(folder: Path, record: ImageRecord) -> Path:
    place = folder / record.name.class_name / record.name.file_name
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def _rename(aside: Path, folder: Path) -> None:
    try:
        aside.replace(folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster
            raise
