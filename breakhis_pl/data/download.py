"""Fetches BreakHis from its authors, unpacks it and checks it: `python -m breakhis_pl.data.download`.

Source:
    https://web.inf.ufpr.br/vri/databases/breast-cancer-histopathological-database-breakhis/
"""

import argparse
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from breakhis_pl.data.archive import FOLDER_NAME, remove_leftovers, unpack_archive
from breakhis_pl.data.breakhis import MAGNIFICATIONS
from breakhis_pl.data.fetch import ARCHIVE_NAME, download_archive, partial_bytes
from breakhis_pl.data.index import check_complete, index_images
from breakhis_pl.data.lock import only_process
from breakhis_pl.data.progress import size_text, write_line
from breakhis_pl.errors import BreakHisError, IncompleteDataError

__all__ = ["DEFAULT_URL", "download_archive", "main", "unpack_archive"]

DEFAULT_URL = "http://www.inf.ufpr.br/vri/databases/BreaKHis_v1.tar.gz"

MAX_TIMEOUT_S = 3600.0

LICENSE_AND_CITATION = """\
BreakHis is published under CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/). Whoever uses it cites:
  Spanhol, Oliveira, Petitjean, Heutte: A Dataset for Breast Cancer Histopathological Image Classification.
  IEEE Transactions on Biomedical Engineering 63(7), 1455-1462, 2016, doi:10.1109/TBME.2015.2496264
"""


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM came; what Ctrl-C cleans up is cleaned up then, too."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command, and returns its exit status: 0, 1 after an error, 130 after Ctrl-C, 143 after SIGTERM."""
    options = _parser().parse_args(argv)
    try:
        with _sigterm_as_exception():
            _make_available(options)
    except KeyboardInterrupt as stop:
        write_line(f"\ninterrupted; the same command goes on{_from_where(options.to)}")
        return 128 + (signal.SIGTERM if isinstance(stop, _TerminatedError) else signal.SIGINT)
    except BreakHisError as error:
        write_line(str(error))
        return 1
    except OSError as error:
        write_line(f"cannot use {options.to} ({error}); mend that, or choose another folder with --to")
        return 1
    return 0


@contextmanager
def _sigterm_as_exception() -> Iterator[None]:
    def stop(*_: object) -> NoReturn:
        raise _TerminatedError

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _from_where(to: Path) -> str:
    try:
        kept = partial_bytes(to)
    except OSError:
        return ""
    return f" from {size_text(kept)}" if kept > 0 else ""


def _make_available(options: argparse.Namespace) -> None:
    if _is_complete_already(options.to):
        return
    with only_process(options.to):
        if _is_complete_already(options.to):  # another process had it and has ended meanwhile
            return
        _write_out(LICENSE_AND_CITATION)
        remove_leftovers(options.to)
        _fetch_and_unpack(options)


def _fetch_and_unpack(options: argparse.Namespace) -> None:
    archive = options.to / ARCHIVE_NAME
    n_images = 0

    def check(unpacked: Path) -> None:
        nonlocal n_images
        try:
            n_images = _count_complete(unpacked)
        except BreakHisError as error:
            raise IncompleteDataError(
                f"{_fault(error, unpacked)}\n{archive} is not the published archive; nothing was unpacked; remove it, "
                "and choose a mirror with --url"
            ) from error

    was_there = archive.exists()
    download_archive(options.url, options.to, sha256=options.sha256, timeout_s=options.timeout)
    folder = unpack_archive(archive, options.to, check=check)
    if was_there or options.keep_archive:
        _write_out(f"{archive} is kept; it is not needed any more\n")
    else:
        archive.unlink()
    _write_out(f"all {n_images:,} images are in {folder}; train with data.root={options.to}\n")


def _is_complete_already(to: Path) -> bool:
    """Whether all images are below a folder, in the archive's folders or others.

    Raises:
        IncompleteDataError: If BreaKHis_v1 is there, but is not complete.
    """
    folder = to / FOLDER_NAME
    if not to.exists():
        return False
    has_folder = os.path.lexists(folder)
    try:
        n_images = _count_complete(folder if has_folder else to)
    except BreakHisError as error:
        if not has_folder:
            return False
        raise IncompleteDataError(
            f"{_fault(error, folder)}\n{folder} is left as it is; move it away and run the same command again "
            "to get it complete"
        ) from error
    _write_out(f"all {n_images:,} images are below {to} already; nothing to fetch\n")
    return True


def _count_complete(root: Path) -> int:
    """Number of images below a folder that holds exactly the published ones."""
    records = index_images(root, MAGNIFICATIONS)
    check_complete(records, MAGNIFICATIONS)
    return len(records)


def _fault(error: BreakHisError, folder: Path) -> str:
    """What is wrong with a folder, without the ways out that help those who train."""
    text, _, _ = str(error).partition("\nrun `python -m ")
    text, _, _ = text.partition("; set data.root to ")
    return text.replace(str(folder), FOLDER_NAME)


def _write_out(text: str) -> None:
    """Writes to standard output; what its encoding does not know, as file names may hold, is written as an escape."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0, at most {MAX_TIMEOUT_S:.0f}")
    return seconds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m breakhis_pl.data.download",
        description="Fetch BreakHis (7,909 images, about 4 GB, 9 GB free disk needed), unpack it and check it. "
        "A download that was cut off goes on where it ended when the same command runs again. "
        f"An archive got elsewhere is used if it lies in the folder as {ARCHIVE_NAME}.",
    )
    parser.add_argument(
        "--to", type=Path, default=Path("data"), help="folder to put BreaKHis_v1 in (default: %(default)s)"
    )
    parser.add_argument(
        "--url", default=DEFAULT_URL, help="address of the archive, http or https (default: %(default)s)"
    )
    parser.add_argument(
        "--sha256", help="checksum that the archive must have, 64 hexadecimal digits (default: not checked)"
    )
    parser.add_argument(
        "--keep-archive", action="store_true", help="keep the archive after unpacking (default: remove it)"
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=30.0,
        metavar="SECONDS",
        help="time without a byte after which to connect again (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
