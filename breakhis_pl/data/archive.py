"""Unpacks the archive of BreakHis: everything that is allowed in it, or nothing at all."""

import gzip
import os
import shutil
import tarfile
import tempfile
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from breakhis_pl.data.progress import byte_progress, size_text, write_line
from breakhis_pl.errors import ArchiveError, BreakHisError, DownloadError

FOLDER_NAME = "BreaKHis_v1"
"""The one folder at the top of the authors' archive."""

MAX_MEMBERS = 20_000
MAX_MEMBER_BYTES = 50_000_000
MAX_UNPACKED_BYTES = 20_000_000_000
MAX_EXPANSION = 3
"""Unpacked size over archive size, from 50 MB on, that no archive of PNG files reaches."""

UNPACKED_FACTOR = 1.1
"""Unpacked size over archive size, on the safe side: PNG files hardly compress any further."""

_MAX_NAME_LENGTH = 400
_MAX_SIZE_BYTES = 1 << 63
_MAX_MTIME_S = 1 << 33
_HEADER_ALLOWANCE = 1 << 16
_TAIL_ALLOWANCE = 1 << 26
_UNPACKING_PREFIX = f".{FOLDER_NAME}.unpacking-"
_DAMAGE = (tarfile.TarError, zlib.error, gzip.BadGzipFile, EOFError, ValueError, RecursionError)


class _BoundedGzip(gzip.GzipFile):
    """A gzip file that is read as far as its allowance: tarfile takes headers into memory, and they may be endless.

    Attributes:
        allowance: Bytes that may still be read.
    """

    allowance = _HEADER_ALLOWANCE

    def read(self, size: int | None = -1) -> bytes:
        """The next bytes, as `gzip.GzipFile.read`.

        Raises:
            ArchiveError: If they go beyond the allowance.
        """
        data = super().read(size)
        self.allowance -= len(data)
        if self.allowance < 0:
            raise ArchiveError("a header or the tail of the archive is far too long")
        return data


def check_disk(folder: Path, *, n_unpacked: int, n_fetched: int = 0) -> None:
    """Checks that a disk has room for what is to come.

    Args:
        folder: An existing folder on that disk.
        n_unpacked: Bytes that unpacking will write.
        n_fetched: Bytes of the archive that have yet to be fetched.

    Raises:
        DownloadError: If less is free.
    """
    needed = n_fetched + n_unpacked
    free = shutil.disk_usage(folder).free
    if free < needed:
        parts = [f"{size_text(n_fetched)} to fetch"] * (n_fetched > 0) + [f"{size_text(n_unpacked)} to unpack"]
        raise DownloadError(
            f"{size_text(needed)} needed on the disk of {folder} ({', '.join(parts)}), {size_text(free)} free; "
            "make room, or choose a folder on another disk with --to"
        )


def remove_leftovers(to: Path, *, say: Callable[[str], None] = write_line) -> None:
    """Removes what unpackings have left that were killed; no other process may be unpacking into that folder.

    Args:
        to: Folder that they unpacked into.
        say: Takes a line for the user.

    Raises:
        ArchiveError: If it cannot be removed.
    """
    for leftover in sorted(to.glob(f"{_UNPACKING_PREFIX}*")):
        say(f"{leftover} is from an unpacking that was killed; removing it")
        try:
            shutil.rmtree(leftover)
        except OSError as error:
            raise ArchiveError(f"cannot remove {leftover} ({error}); remove it by hand") from error


def unpack_archive(archive: Path, to: Path, *, check: Callable[[Path], object] | None = None) -> Path:
    """Unpacks a BreaKHis_v1.tar.gz, and returns the folder BreaKHis_v1 that came out of it.

    The folder appears when all of it is there and checked. Until then files lie in a hidden folder beside it, which
    goes when anything fails.

    Args:
        archive: The archive, a tar file compressed by gzip.
        to: Folder to unpack into; made if it does not exist.
        check: Gets the unpacked folder before it has its name; what it raises is passed on, and nothing is unpacked.

    Raises:
        ArchiveError: If the folder exists already, or if the archive is damaged, cannot be written, or holds anything
            but folders and files inside BreaKHis_v1, or too many or too large ones.
        DownloadError: If the disk has no room for it.
    """
    target = to / FOLDER_NAME
    if os.path.lexists(target):
        raise ArchiveError(f"{target} exists; move it away or choose another folder, nothing is merged into it")
    try:
        to.mkdir(parents=True, exist_ok=True)
        check_disk(to, n_unpacked=int(archive.stat().st_size * UNPACKED_FACTOR))
        with tempfile.TemporaryDirectory(prefix=_UNPACKING_PREFIX, dir=to) as unpacking:
            _extract(archive, Path(unpacking))
            unpacked = Path(unpacking) / FOLDER_NAME
            if not unpacked.is_dir():
                raise ArchiveError(f"{archive} holds no folder {FOLDER_NAME}; {_remedy(archive)}")
            if check is not None:
                check(unpacked)
            unpacked.rename(target)
    except BreakHisError:
        raise
    except _DAMAGE as error:
        raise ArchiveError(f"{archive} is damaged or no tar.gz file ({error}); {_remedy(archive)}") from error
    except OSError as error:
        raise ArchiveError(f"cannot unpack {archive} into {to} ({error}); nothing was left there") from error
    return target


def _extract(archive: Path, folder: Path) -> None:
    """Checks and writes one member after the other, then reads to the end, where gzip keeps its checksum."""
    with (
        archive.open("rb") as file,
        _BoundedGzip(fileobj=file, mode="rb") as stream,
        byte_progress("unpacking", total=archive.stat().st_size) as advance,
    ):
        try:
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                _extract_members(
                    tar,
                    folder,
                    stream=stream,
                    max_bytes=min(MAX_MEMBER_BYTES + MAX_EXPANSION * archive.stat().st_size, MAX_UNPACKED_BYTES),
                    on_member=_position_reporter(file, advance),
                )
            stream.allowance = _TAIL_ALLOWANCE
            while stream.read(1 << 20):
                pass
        except ArchiveError as error:
            raise ArchiveError(f"{archive}: {error}; nothing was unpacked; {_remedy(archive)}") from error


def _extract_members(
    tar: tarfile.TarFile, folder: Path, *, stream: _BoundedGzip, max_bytes: int, on_member: Callable[[], None]
) -> None:
    n_unpacked = 0
    names = _Names()
    for n_members, member in enumerate(tar, start=1):
        _check_member(member)
        names.add(member)
        n_unpacked += member.size
        if n_members > MAX_MEMBERS:
            raise ArchiveError(f"more than {MAX_MEMBERS:,} members")
        if n_unpacked > max_bytes:
            raise ArchiveError(f"more than {size_text(max_bytes)} unpacked")
        stream.allowance = member.size + _HEADER_ALLOWANCE
        if not _is_beside_folder(member):
            tar.extract(member, folder, filter="data")
        on_member()


def _check_member(member: tarfile.TarInfo) -> None:
    """Checks that a member is a folder or a file of possible size inside BreaKHis_v1.

    Raises:
        ArchiveError: If it is not.
    """
    name = f"member {member.name[:_MAX_NAME_LENGTH]!r}"
    path = PurePosixPath(member.name)
    if len(member.name) > _MAX_NAME_LENGTH:
        raise ArchiveError(f"{name}… has a name of more than {_MAX_NAME_LENGTH} characters")
    if not member.name.isprintable():
        raise ArchiveError(f"{name} has characters that cannot be printed")
    if path.is_absolute() or ".." in path.parts or any(letter in member.name for letter in "\\:\0"):
        raise ArchiveError(f"{name} would lie outside its folder")
    if member.issym() or member.islnk():
        raise ArchiveError(
            f"{name} is a link to {member.linkname[:_MAX_NAME_LENGTH]!r}; only files and folders are unpacked"
        )
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) or member.issparse():
        raise ArchiveError(f"{name} is neither a file nor a folder")
    if not (0 <= member.size < _MAX_SIZE_BYTES and 0 <= member.mtime < _MAX_MTIME_S):
        values = f"{member.size!s:.25} B, {member.mtime!s:.25} s"
        raise ArchiveError(f"{name} has an impossible size or time of change ({values})")
    if member.size > MAX_MEMBER_BYTES:
        raise ArchiveError(f"{name} has {size_text(member.size)}, at most {size_text(MAX_MEMBER_BYTES)} are expected")
    if path.parts[:1] != (FOLDER_NAME,) and not _is_beside_folder(member):
        raise ArchiveError(f"{name} is not in {FOLDER_NAME}/, where all of BreakHis lies")


class _Names:
    """Paths in an archive, none of which may stand in another one's way, on file systems without case neither."""

    def __init__(self) -> None:
        self._spelling: dict[str, str] = {}
        self._files: set[str] = set()

    def add(self, member: tarfile.TarInfo) -> None:
        """Takes up the path of a member, and those of the folders that it lies in.

        Raises:
            ArchiveError: If the path is there as a file already, is a folder now and a file before or the other way
                round, or has another spelling.
        """
        path = PurePosixPath(member.name)
        for folder_or_file in (*reversed(path.parents), path):
            name = str(folder_or_file)
            key = unicodedata.normalize("NFC", name).casefold()
            is_new = key not in self._spelling
            spelling = self._spelling.setdefault(key, name)
            if spelling != name:
                raise ArchiveError(f"members {spelling!r} and {name!r} differ in letter case alone")
            if key in self._files or not (is_new or member.isdir() or folder_or_file != path):
                raise ArchiveError(f"member {member.name!r} is in the way of {spelling!r}, which came before")
        if not member.isdir():
            self._files.add(key)


def _is_beside_folder(member: tarfile.TarInfo) -> bool:
    """Whether a member is "./" itself, or a file in which macOS keeps what belongs to the folder ("._BreaKHis_v1")."""
    parts = PurePosixPath(member.name).parts
    return not parts or (len(parts) == 1 and parts[0].startswith("._"))


def _position_reporter(file: BinaryIO, advance: Callable[[int], object]) -> Callable[[], None]:
    reported = 0

    def report() -> None:
        nonlocal reported
        position = file.tell()
        advance(position - reported)
        reported = position

    return report


def _remedy(archive: Path) -> str:
    return f"remove {archive} and fetch it again, if need be from a mirror with --url"
