"""Files that may be pictures, from folders and patterns."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from breakhis_pl.data.images import SLIDE_SUFFIXES
from breakhis_pl.errors import DataError, join_truncated

SUFFIXES = SLIDE_SUFFIXES | frozenset(
    (
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".tif", ".tiff", ".bmp", ".dib", ".webp", ".gif"),
        *(".jp2", ".j2k", ".jpx", ".jpf", ".avif", ".avifs", ".ppm", ".pgm", ".pbm", ".pnm", ".pcx", ".sgi", ".qoi"),
    )
)
"""Suffixes of the files that are taken from a folder, in lower case."""


def find_pictures(images: Sequence[Path]) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Find the pictures that files, folders and glob patterns name; no file is opened.

    A file is taken whatever its suffix is. A folder is searched for the suffixes of pictures, without hidden files.

    Returns:
        The pictures, each once, and the folders that cannot be read, with the reason.

    Raises:
        DataError: If one of the names leads to nothing.
    """
    found: dict[Path, None] = {}
    unreadable: list[tuple[Path, str]] = []
    missing = []
    for name in images:
        if os.path.lexists(name) and not name.is_dir():
            paths = [name]
        elif name.is_dir():
            paths = list(_walk(name, unreadable))
        else:
            matches = glob.iglob(str(name), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
            paths = sorted(path for path in map(Path, matches) if path.is_file())
        found |= dict.fromkeys(paths)
        if not paths:
            missing.append(name)
    if missing:
        raise DataError(
            f"images={join_truncated(missing)}: no picture found; set a file, a folder with pictures "
            f"({', '.join(sorted(suffix[1:] for suffix in SUFFIXES))}), or a pattern in quotes: 'images=slides/*.png'"
        )
    return list(found), unreadable


def _walk(root: Path, unreadable: list[tuple[Path, str]]) -> Iterator[Path]:
    """Yield the pictures below a folder in the order of their names."""

    def skip(error: OSError) -> None:
        unreadable.append((Path(error.filename), f"folder cannot be read ({error.strerror})"))

    for folder, subfolders, files in os.walk(root, onerror=skip):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith((".", "__MACOSX")))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(folder, name)
