"""Files and folders that are whole or not there: made aside in the same folder, then renamed."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A path to write a file to; it takes the place of `path` when the block ends without an error.

    Args:
        path: The file to make or to replace; its folder must exist.

    Raises:
        OSError: If the folder or the disk does not allow it; what stood at `path` is then untouched.
    """
    aside = _beside(path)
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def folder_aside(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`; whoever has filled it renames it, else it is deleted when the block ends.

    Args:
        folder: The folder to make; the one that holds it is made if need be.

    Raises:
        OSError: If it cannot be made.
    """
    aside = _beside(folder)
    aside.mkdir(parents=True)
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_text(path: Path, text: str, *, errors: str = "strict") -> None:
    """Writes a text file in UTF-8; line ends are kept as they are.

    Args:
        path: The file to make or to replace.
        text: Its content.
        errors: What becomes of characters that are none, as in `str.encode`; file names may hold such.

    Raises:
        OSError: As `written_aside`.
    """
    with written_aside(path) as aside:
        aside.write_bytes(text.encode("utf-8", errors=errors))


def _beside(path: Path) -> Path:
    """A hidden name in the same folder that nobody else uses."""
    return path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
