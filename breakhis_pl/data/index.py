"""From a folder to checked records: which BreakHis images are there, and whether they are the published ones."""

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from breakhis_pl.data.breakhis import CLASS_NAMES, PUBLISHED_COUNTS, ImageName, official_patients, parse_file_name
from breakhis_pl.errors import DataFolderError, FileNameError, IncompleteDataError, SplitError, listed

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Suffixes, in lower case, of files that must have a BreakHis name; all other files are ignored."""

_WAY_OUT = (
    "set data.root to the folder that holds BreaKHis_v1, or run `python -m breakhis_pl.data.download`, "
    "or try `data=synthetic`"
)


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image file that was found, and what its name says.

    Attributes:
        name: The parsed file name.
        path: Where the file lies, below the folder that was indexed.
        n_bytes: Size of the file in bytes, behind a link that of its target.
        modified_ns: Time of the last change in nanoseconds since 1970.
    """

    name: ImageName
    path: Path
    n_bytes: int
    modified_ns: int


def index_images(root: Path, magnifications: Sequence[int]) -> tuple[ImageRecord, ...]:
    """Records of all images below a folder that have one of the magnifications, sorted by file name.

    Any tree will do: class, patient and magnification are read from the file names, not from the folders. Links to
    files and folders are followed; a folder that can be reached in two ways is visited once. Hidden files and folders,
    `__MACOSX` and files without an image suffix are ignored. No file is opened.

    Args:
        root: Folder to search.
        magnifications: Those wanted, of 40, 100, 200 and 400.

    Raises:
        DataFolderError: If the folder is missing or no folder, holds no image at these magnifications, holds
            a file name twice, or if something below it cannot be read.
        FileNameError: If images of any magnification have other names than those of BreakHis.
        SplitError: If images belong to patients that are in none of the authors' lists.
    """
    found = _named(_image_files(root), root)
    _check_no_duplicates(found, root)
    _check_patients(found)
    wanted = [record for record in found if record.name.magnification in magnifications]
    if not wanted:
        raise DataFolderError(_nothing_found(root, found, magnifications))
    return tuple(sorted(wanted, key=lambda record: record.name.file_name))


def check_complete(records: Sequence[ImageRecord], magnifications: Sequence[int]) -> None:
    """Makes sure that the numbers of images are the published ones, by class and by patient.

    Args:
        records: Images at these magnifications.
        magnifications: Those wanted, of 40, 100, 200 and 400.

    Raises:
        IncompleteDataError: If images are missing or too many are there; the text names all differences.

    Source:
        `PUBLISHED_COUNTS` and the authors' lists of folds (`official_patients`).
    """
    by_class = _count_by_class(records)
    faults = [
        f"{magnification}X {class_name}: {by_class[magnification, class_name]:,} of "
        f"{PUBLISHED_COUNTS[magnification, class_name]:,} images"
        for magnification in sorted(set(magnifications))
        for class_name in CLASS_NAMES
        if by_class[magnification, class_name] != PUBLISHED_COUNTS[magnification, class_name]
    ]
    found = Counter((record.name.patient, record.name.magnification) for record in records)
    published = _published_by_patient(magnifications)
    present = {patient for patient, _ in found}
    missing = sorted({patient for patient, _ in published} - present)
    differing = sorted(
        key for key in published.keys() | found.keys() if key[0] in present and found[key] != published.get(key, 0)
    )
    too_few = [key for key in differing if found[key] < published.get(key, 0)]
    too_many = [key for key in differing if found[key] > published.get(key, 0)]
    faults += [f"patients without any image ({len(missing)}): {listed(missing)}"] if missing else []
    for what, keys in (("too few", too_few), ("too many", too_many)):
        texts = [f"{patient} {m}X ({found[patient, m]} of {published.get((patient, m), 0)})" for patient, m in keys]
        faults += [f"{what} images of a patient ({len(texts)}): {listed(texts)}"] if texts else []
    if faults:
        raise IncompleteDataError(
            "the images are not the published ones:\n  "
            + "\n  ".join(faults)
            + "\nrun `python -m breakhis_pl.data.download` for the whole archive; "
            "`data.require_complete=false` uses what is there"
        )


def describe(records: Sequence[ImageRecord], magnifications: Sequence[int]) -> str:
    """One line on how much of the published data is there.

    Args:
        records: Images at these magnifications.
        magnifications: Those wanted, of 40, 100, 200 and 400.

    Example:
        >>> describe([], [200])
        '0 of 2,013 images at 200X (0 of 623 benign, 0 of 1,390 malignant) of 0 of 82 patients'
    """
    wanted = sorted(set(magnifications))
    found = _count_by_class(records)
    parts = [
        (
            sum(found[magnification, class_name] for magnification in wanted),
            sum(PUBLISHED_COUNTS[magnification, class_name] for magnification in wanted),
            class_name,
        )
        for class_name in CLASS_NAMES
    ]
    n_found, n_published = sum(part[0] for part in parts), sum(part[1] for part in parts)
    classes = ", ".join(f"{n:,} of {total:,} {class_name}" for n, total, class_name in parts)
    n_patients = len({record.name.patient for record in records})
    n_published_patients = len({patient for patient, _ in _published_by_patient(wanted)})
    return (
        f"{n_found:,} of {n_published:,} images at {_times(wanted)} ({classes}) "
        f"of {n_patients} of {n_published_patients} patients"
    )


def _image_files(root: Path) -> list[tuple[os.DirEntry[str], os.stat_result]]:
    """All visible image files below a folder."""
    try:
        is_folder = stat.S_ISDIR(root.stat().st_mode)
    except FileNotFoundError:
        raise DataFolderError(f"{_visible(root)} does not exist; {_WAY_OUT}") from None
    except OSError as error:
        raise DataFolderError(f"{_visible(root)} cannot be read ({error.strerror}); {_WAY_OUT}") from None
    if not is_folder:
        raise DataFolderError(f"{_visible(root)} is no folder; {_WAY_OUT}")
    unreadable: list[str] = []
    files = list(_walk(root, unreadable))
    if unreadable:
        raise DataFolderError(
            f"what cannot be read under {_visible(root)} ({len(unreadable)}): {listed(sorted(unreadable))}; "
            "give access to it, or repair or remove it"
        )
    return files


def _walk(root: Path, unreadable: list[str]) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
    """Yields image files; what cannot be read is added to `unreadable` instead."""
    seen: set[tuple[int, int]] = set()
    waiting = [os.fspath(root)]
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(folder)  # noqa: PTH116 - a Path for each folder takes longer than the call
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                visible = [entry for entry in entries if not entry.name.startswith(".") and entry.name != "__MACOSX"]
        except OSError as error:
            unreadable.append(f"{_below(root, folder)} ({error.strerror})")
            continue
        folders = []
        for entry in visible:
            try:
                if _is_folder(entry):
                    folders.append(entry.path)
                elif _is_image_file(entry):
                    yield entry, entry.stat()
            except OSError as error:
                unreadable.append(f"{_below(root, entry.path)} ({error.strerror})")
        waiting += sorted(folders, reverse=True)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder to look into.

    Raises:
        OSError: If it is one with the suffix of an image; what should have been the image is missing.
    """
    if not entry.is_dir():
        return False
    if PurePath(entry.name).suffix.lower() in IMAGE_SUFFIXES:
        raise OSError(errno.EISDIR, "a folder")
    return True


def _is_image_file(entry: os.DirEntry[str]) -> bool:
    """Whether an entry that is no folder has the suffix of an image.

    Raises:
        OSError: If the entry is a link that leads nowhere (it could have been anything), or an image that is no file.
    """
    is_image = PurePath(entry.name).suffix.lower() in IMAGE_SUFFIXES
    if not entry.is_file() and (is_image or entry.is_symlink()):
        raise OSError(errno.ENOENT, "leads nowhere" if entry.is_symlink() else "no regular file")
    return is_image


def _named(files: Iterable[tuple[os.DirEntry[str], os.stat_result]], root: Path) -> list[ImageRecord]:
    """Records of files, all of which must have BreakHis names."""
    records, strangers = [], {}
    for entry, status in files:
        try:
            name = parse_file_name(entry.name)
        except FileNameError as error:
            strangers[_below(root, entry.path)] = str(error)
            continue
        records.append(ImageRecord(name, Path(entry.path), status.st_size, status.st_mtime_ns))
    if strangers:
        first = min(strangers)
        raise FileNameError(
            f"image files without a BreakHis name under {_visible(root)} ({len(strangers)}): "
            f"{listed(sorted(strangers))}; the first: {strangers[first]}; rename them, or move them out of data.root"
        )
    return records


def _check_no_duplicates(records: Sequence[ImageRecord], root: Path) -> None:
    paths: dict[str, list[Path]] = {}
    for record in records:
        paths.setdefault(record.name.file_name, []).append(record.path)
    twice = [" = ".join(sorted(_below(root, str(path)) for path in same)) for same in paths.values() if len(same) > 1]
    if twice:
        raise DataFolderError(
            f"file names that occur more than once under {_visible(root)} ({len(twice)}): {listed(sorted(twice))}; "
            "remove one copy of each, or set data.root to one of the folders"
        )


def _check_patients(records: Sequence[ImageRecord]) -> None:
    unknown = sorted({record.name.patient for record in records} - official_patients().keys())
    if len(unknown) == 1:
        raise SplitError(f"patient {unknown[0]} is in none of the authors' lists; correct or remove its files")
    if unknown:
        raise SplitError(
            f"patients {', '.join(unknown)} are in none of the authors' lists; correct or remove their files"
        )


def _nothing_found(root: Path, records: Sequence[ImageRecord], magnifications: Sequence[int]) -> str:
    if not records:
        return f"no BreaKHis images under {_visible(root)}; {_WAY_OUT}"
    there = Counter(record.name.magnification for record in records)
    counts = ", ".join(f"{there[magnification]:,} at {magnification}X" for magnification in sorted(there))
    wanted = _times(sorted(set(magnifications))) if magnifications else "no magnification"
    return (
        f"no BreaKHis images at {wanted} under {_visible(root)}, but {counts}; "
        "set data.magnification to one that is there"
    )


def _count_by_class(records: Sequence[ImageRecord]) -> Counter[tuple[int, str]]:
    return Counter((record.name.magnification, record.name.class_name) for record in records)


def _published_by_patient(magnifications: Sequence[int]) -> Mapping[tuple[str, int], int]:
    """Number of published images by patient and magnification, without zeros."""
    return {
        (official.patient, magnification): official.n_images[magnification]
        for official in official_patients().values()
        for magnification in magnifications
        if official.n_images[magnification] > 0
    }


def _below(root: Path, path: str) -> str:
    """A path relative to a folder, for texts."""
    return _visible(Path(path).relative_to(root).as_posix())


def _visible(text: object) -> str:
    r"""A path in which line breaks, bytes that are no text and whatever else cannot be seen are escapes.

    Example:
        >>> _visible("a\nb\udcff.png")
        'a\\nb\\udcff.png'
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in str(text)
    )


def _times(magnifications: Sequence[int]) -> str:
    """'40X, 100X and 200X'."""
    *most, last = [f"{magnification}X" for magnification in magnifications]
    return f"{', '.join(most)} and {last}" if most else last
