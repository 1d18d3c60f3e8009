"""One download at a time in a folder."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from breakhis_pl.data.progress import write_line
from breakhis_pl.errors import DownloadError
from breakhis_pl.locks import locked

LOCK_NAME = ".BreaKHis_v1.lock"


@contextmanager
def only_process(folder: Path, *, say: Callable[[str], None] = write_line) -> Iterator[None]:
    """Keeps every other process that asks out of a folder until the block ends.

    Args:
        folder: The folder; made if it does not exist.
        say: Takes a line for the user, where the file system knows no locks.

    Raises:
        DownloadError: If another process is in it, or if nothing can be written there.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder / LOCK_NAME, say=say))
        except BlockingIOError:
            raise DownloadError(
                f"another process is fetching or unpacking in {folder}; wait until it has ended, "
                "or choose another folder with --to"
            ) from None
        except OSError as error:
            raise DownloadError(
                f"cannot write in {folder} ({error}); mend that, or choose another folder with --to"
            ) from error
        yield
