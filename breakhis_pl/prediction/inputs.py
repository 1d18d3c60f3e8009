"""Which pictures are meant by a file, a folder, a pattern or a list of these (no torch). No file is opened."""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from breakhis_pl.data.pictures import SUFFIXES
from breakhis_pl.errors import DataFolderError, listed
from breakhis_pl.evaluation.texts import named

IGNORED_FOLDERS = frozenset({"__MACOSX"})


@dataclass(frozen=True, slots=True)
class Inputs:
    """What was found.

    Attributes:
        paths: As given, or below the folder that was given; every one once, in the order found.
        unreadable: Folders that could not be looked into, each with its reason.
        n_others: Number of files in folders that are no pictures by their suffix, by suffix.
    """

    paths: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...]
    n_others: Counter[str]


def find_inputs(wanted: str | Sequence[str]) -> Inputs:
    """The pictures that are meant; only their names are held.

    A file is taken whatever its suffix. Folders are searched to any depth, links to folders included, each once;
    hidden files and folders and files without a suffix of a picture are left out. A pattern may hold `*`, `?`, `[…]`,
    and `**` for any depth; a file or folder of exactly that name comes first.

    Args:
        wanted: A file, folder or pattern, or several.

    Raises:
        DataFolderError: If one of them leads to nothing, all such in one message.
    """
    unreadable: list[tuple[str, str]] = []
    others: Counter[str] = Counter()
    found: dict[str, None] = {}
    nothing = []
    for text in [wanted] if isinstance(wanted, str) else wanted:
        n_before = len(unreadable)
        paths = list(_meant(text, unreadable, others))
        found |= dict.fromkeys(paths)
        if not paths and len(unreadable) == n_before:
            nothing.append(f"{named(text)} ({_why_nothing(text)})")
    if nothing:
        raise DataFolderError(
            f"no picture found for images={listed(nothing)}; expected a file, a folder with pictures "
            f"({', '.join(sorted(suffix[1:] for suffix in SUFFIXES))}), or a pattern in quotes, as in "
            "'images=slides/*.png'"
        )
    return Inputs(tuple(found), tuple(unreadable), others)


def _why_nothing(text: str) -> str:
    if _is_folder(text):
        return "a folder without pictures"
    return "nothing fits this pattern" if glob.has_magic(text) else "does not exist"


def _is_folder(text: str) -> bool:
    return os.path.isdir(text)  # noqa: PTH112 - Path.is_dir raises where a name is too long


def _meant(text: str, unreadable: list[tuple[str, str]], others: Counter[str]) -> Iterator[str]:
    """The paths that one text means; what cannot be looked into is added to `unreadable`."""
    if _is_folder(text):
        yield from _below(text, unreadable, others)
    elif os.path.lexists(text):
        yield text
    else:
        for path in sorted(glob.iglob(text, recursive=True)):  # noqa: PTH207 - Path.glob takes no absolute pattern
            if not _is_folder(path):
                yield path


def _below(root: str, unreadable: list[tuple[str, str]], others: Counter[str]) -> Iterator[str]:
    """The pictures in a folder, sorted: those of a folder before those of the folders in it."""
    seen: set[tuple[int, int]] = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(folder)  # noqa: PTH116 - a Path for each folder takes longer than the call
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            unreadable.append((folder, f"a folder that cannot be read ({error.strerror})"))
            continue
        folders = []
        for entry in visible:
            suffix = PurePath(entry.name).suffix.lower()
            try:
                is_folder = entry.is_dir()
            except OSError as error:  # a link that leads round to itself, as one that leads nowhere does not
                unreadable.append((entry.path, f"a link that cannot be followed ({error.strerror})"))
                continue
            if is_folder:
                folders += [] if entry.name in IGNORED_FOLDERS else [entry.path]
            elif suffix in SUFFIXES:
                yield entry.path
            else:
                others[suffix or "without suffix"] += 1
        waiting += reversed(folders)
