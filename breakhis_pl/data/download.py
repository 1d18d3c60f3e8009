"""Fetches BreakHis from its authors, unpacks it and checks it: `python -m breakhis_pl.data.download`.

Source:
    https://web.inf.ufpr.br/vri/databases/breast-cancer-histopathological-database-breakhis/
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from breakhis_pl.data.archive import FOLDER_NAME, unpack_archive
from breakhis_pl.data.breakhis import MAGNIFICATIONS
from breakhis_pl.data.fetch import ARCHIVE_NAME, download_archive, partial_bytes
from breakhis_pl.data.index import check_complete, index_images
from breakhis_pl.data.progress import size_text, write_line
from breakhis_pl.errors import BreakHisError, IncompleteDataError

__all__ = ["DEFAULT_URL", "download_archive", "main", "unpack_archive"]

DEFAULT_URL = "http://www.inf.ufpr.br/vri/databases/BreaKHis_v1.tar.gz"

LICENSE_AND_CITATION = """\
BreakHis is published under CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/). Whoever uses it cites:
  Spanhol, Oliveira, Petitjean, Heutte: A Dataset for Breast Cancer Histopathological Image Classification.
  IEEE Transactions on Biomedical Engineering 63(7), 1455-1462, 2016, doi:10.1109/TBME.2015.2496264
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command, and returns its exit status: 0, 1 after an error, 130 after Ctrl-C."""
    options = _parser().parse_args(argv)
    try:
        _make_available(options)
    except KeyboardInterrupt:
        kept = partial_bytes(options.to)
        where = f" from {size_text(kept)}" if kept > 0 else ""
        write_line(f"\ninterrupted; the same command goes on{where}")
        return 130
    except (BreakHisError, OSError) as error:
        write_line(str(error))
        return 1
    return 0


def _make_available(options: argparse.Namespace) -> None:
    folder = options.to / FOLDER_NAME
    archive = options.to / ARCHIVE_NAME
    if _is_complete_already(options.to):
        return
    sys.stdout.write(LICENSE_AND_CITATION)
    sys.stdout.flush()
    was_there = archive.exists()
    download_archive(options.url, options.to, sha256=options.sha256, timeout_s=options.timeout)
    unpack_archive(archive, options.to)
    try:
        n_images = _count_complete(folder)
    except BreakHisError as error:
        raise IncompleteDataError(
            f"{error}\n{archive} is not the published archive; remove it and {folder}, and choose a mirror with --url"
        ) from error
    if was_there or options.keep_archive:
        sys.stdout.write(f"{archive} is kept; it is not needed any more\n")
    else:
        archive.unlink()
    sys.stdout.write(f"all {n_images:,} images are in {folder}; train with data.root={options.to}\n")


def _is_complete_already(to: Path) -> bool:
    """Whether all images are below a folder, in the archive's folders or others.

    Raises:
        IncompleteDataError: If BreaKHis_v1 is there, but is not complete.
    """
    folder = to / FOLDER_NAME
    if not to.exists():
        return False
    try:
        n_images = _count_complete(folder if folder.exists() else to)
    except BreakHisError as error:
        if not folder.exists():
            return False
        raise IncompleteDataError(
            f"{error}\n{folder} is left as it is; move it away and run the same command again to get it complete"
        ) from error
    sys.stdout.write(f"all {n_images:,} images are below {to} already; nothing to fetch\n")
    return True


def _count_complete(root: Path) -> int:
    """Number of images below a folder that holds exactly the published ones."""
    records = index_images(root, MAGNIFICATIONS)
    check_complete(records, MAGNIFICATIONS)
    return len(records)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not (math.isfinite(seconds) and seconds > 0):
        raise argparse.ArgumentTypeError(f"{text} is no positive number of seconds")
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
