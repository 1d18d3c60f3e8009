"""One process at a time in a folder; the lock goes when its process ends, however that ends."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from breakhis_pl.data.progress import write_line
from breakhis_pl.errors import DownloadError

if sys.platform != "win32":
    import fcntl

LOCK_NAME = ".BreaKHis_v1.lock"

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def only_process(folder: Path, *, say: Callable[[str], None] = write_line) -> Iterator[None]:
    """Keeps every other process that asks out of a folder until the block ends.

    Args:
        folder: The folder; made if it does not exist.
        say: Takes a line for the user, where the file system knows no locks.

    Raises:
        DownloadError: If another process is in it, or if nothing can be written there.
    """
    path = folder / LOCK_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _locked_file(path, say=say)
    except BlockingIOError:
        raise DownloadError(
            f"another process is fetching or unpacking in {folder}; wait until it has ended, "
            "or choose another folder with --to"
        ) from None
    except OSError as error:
        raise DownloadError(
            f"cannot write in {folder} ({error}); mend that, or choose another folder with --to"
        ) from error
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
        say(f"{path} cannot be locked ({error.strerror}); see to it that no other process fetches into this folder")
