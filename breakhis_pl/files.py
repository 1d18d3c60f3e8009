"""Files and folders that are whole or not there: made aside in the same folder, then renamed."""

import contextlib
import errno
import hashlib
import io
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

ABANDONED_S = 24 * 3600
"""Seconds without a change after which a folder made aside is abandoned, whoever made it."""

_PATIENCE = 10
"""How often a folder is put in its place while other processes do the same."""

_NOT_FOR_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_NO_PLACE = "0" * 8
_ASIDE = re.compile(r"\.(?P<name>.+)-(?P<place>[0-9a-f]{8})-(?P<process>[0-9]{1,9})-[0-9a-f]{8}")


@contextmanager
def written_aside(path: Path, *, lasting: bool = False) -> Iterator[Path]:
    """A path to write a file to; it takes the place of `path` when the block ends without an error.

    Args:
        path: The file to make or to replace; its folder must exist.
        lasting: Wait until the disk has it, so that a loss of power leaves the file of before or this one.

    Raises:
        OSError: If the folder or the disk does not allow it; what stood at `path` is then untouched.
    """
    aside = _beside(path)
    try:
        yield aside
        if lasting:
            force_to_disk(aside)
        aside.replace(path)
        if lasting:
            force_to_disk(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def force_to_disk(path: Path) -> None:
    """Waits until the disk has what was written to a file, or which names a folder holds.

    Windows cannot do it for a folder, some network file systems neither; then it is left to them.

    Raises:
        OSError: If the disk cannot take it.
    """
    is_folder = path.is_dir()
    if is_folder and sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not is_folder or error.errno not in _NOT_FOR_FOLDERS:
            raise
    finally:
        os.close(descriptor)


def put_same(source: Path, path: Path) -> None:
    """A file with the content of another, which must never be changed in place: they share it where they can.

    Args:
        source: The file to repeat.
        path: The file to make or to replace.

    Raises:
        OSError: As `written_aside`.
    """
    with written_aside(path) as aside:
        try:
            aside.hardlink_to(source)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, aside)


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


def put_in_place(aside: Path, folder: Path, *, is_whole: Callable[[], bool]) -> None:
    """Renames a folder that was made aside; a damaged one in its place goes, a whole one of another process stays.

    Args:
        aside: From `folder_aside`, filled.
        folder: Its place.
        is_whole: Whether what is in that place can be used.

    Raises:
        OSError: If it cannot be renamed.
    """
    for _ in range(_PATIENCE):
        try:
            aside.replace(folder)
        except OSError:
            if not os.path.lexists(folder):
                raise
            if is_whole():
                return
            with folder_aside(folder) as away, contextlib.suppress(FileNotFoundError):
                folder.replace(away / "damaged")
        else:
            return
    raise OSError(errno.EBUSY, "other processes keep replacing it", str(folder))


def clear_leftovers(folder: Path, *, of: str) -> None:
    """Deletes what killed processes have left beside the files and folders they were making.

    Whose process has ended on this machine goes at once. Of others nobody here can tell whether they live (another
    machine on a shared file system, another container), so their files stay until nothing in them was changed for a
    day. What cannot be looked at or deleted stays.

    Args:
        folder: Where to look; need not exist.
        of: What was being made, as a pattern of names: "*.ckpt".
    """
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            match = _ASIDE.fullmatch(path.name)
            if match is None or not fnmatchcase(match["name"], of):
                continue
            if _has_ended(match["place"], int(match["process"])) or _is_abandoned(path):
                with contextlib.suppress(OSError):
                    path.unlink() if path.is_symlink() or not path.is_dir() else shutil.rmtree(path, ignore_errors=True)


def open_file(path: Path) -> io.BufferedReader:
    """A regular file, open for reading; does not wait for the other end of a pipe.

    Raises:
        OSError: If there is none, or it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return os.fdopen(descriptor, "rb")


def write_text(path: Path, text: str, *, errors: str = "strict", lasting: bool = False) -> None:
    """Writes a text file in UTF-8; line ends are kept as they are.

    Args:
        path: The file to make or to replace.
        text: Its content.
        errors: What becomes of characters that are none, as in `str.encode`; file names may hold such.
        lasting: As for `written_aside`.

    Raises:
        OSError: As `written_aside`.
    """
    with written_aside(path, lasting=lasting) as aside:
        aside.write_bytes(text.encode("utf-8", errors=errors))


def _beside(path: Path) -> Path:
    """A hidden name in the same folder that nobody else uses, and that says whose it is."""
    return path.with_name(f".{path.name}-{_place()}-{os.getpid()}-{secrets.token_hex(4)}")


@cache
def _place() -> str:
    """Where process numbers mean the same: this start of this machine and this container; zeros if nobody can tell."""
    try:
        facts = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii") + str(
            Path("/proc/self/ns/pid").readlink()
        )
    except OSError:
        return _NO_PLACE
    return hashlib.sha256(facts.encode()).hexdigest()[:8]


def _has_ended(place: str, process: int) -> bool:
    """Whether a process has surely ended."""
    if place == _NO_PLACE or place != _place():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _is_abandoned(path: Path) -> bool:
    """Whether nothing in a file or folder was changed for long."""
    newest = path.lstat().st_mtime
    for folder, _, names in os.walk(path):
        newest = max(newest, *(os.lstat(os.path.join(folder, name)).st_mtime for name in (".", *names)))  # noqa: PTH118
    return time.time() - newest > ABANDONED_S
