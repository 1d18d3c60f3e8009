"""One process at a time; the system lets a lock go when its process ends, however that ends."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def locked(path: Path, *, say: Callable[[str], None]) -> Iterator[None]:
    """Keeps every other process that asks for the same file out until the block ends; then the file is gone.

    Args:
        path: The file that is locked; made for it.
        say: Takes a line for the user, where the file system knows no locks.

    Raises:
        BlockingIOError: If another process has it.
        OSError: If it cannot be made.
    """
    file = _locked_file(path, say=say)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is let go: whoever opened it meanwhile sees that it is gone
        os.close(file)


def _locked_file(path: Path, *, say: Callable[[str], None]) -> int:
    """Descriptor of the file, locked and still the one at that path.

    Raises:
        OSError: If it cannot be written; BlockingIOError if another process has it.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(file, path, say=say)
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _lock(file: int, path: Path, *, say: Callable[[str], None]) -> None:
    try:
        if sys.platform == "win32":
            raise OSError(errno.ENOLCK, "no locks on this system")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        say(f"{path} cannot be locked ({error.strerror}); see to it that no other process works in {path.parent}")
