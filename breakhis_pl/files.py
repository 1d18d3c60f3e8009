"""Files that are whole or not there: written aside in the same folder, then renamed."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A path to write to; it takes the place of `path` when the block ends without an error, else it is deleted.

    Args:
        path: The file to make or to replace; its folder must exist.

    Raises:
        OSError: If the folder or the disk does not allow it; what stood at `path` is then untouched.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(descriptor)
    aside = Path(name)
    try:
        yield aside
        aside.chmod(0o666 & ~_umask())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8; line ends are kept as they are.

    Raises:
        OSError: As `written_aside`.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file.

    Raises:
        OSError: As `written_aside`.
    """
    with written_aside(path) as aside:
        aside.write_bytes(content)


def _umask() -> int:
    """The process's mask for new files; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
