"""Download BreakHis from its authors, unpack it and check it: `python -m breakhis_pl.data.download`.

Source:
    https://web.inf.ufpr.br/vri/databases/breast-cancer-histopathological-database-breakhis/
"""

import argparse
import gzip
import shutil
import stat
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import filelock
import httpx
from tqdm import tqdm

from breakhis_pl.data.breakhis import MAGNIFICATIONS, check_complete, index_images
from breakhis_pl.errors import BreakHisError, DataError

URL = "http://www.inf.ufpr.br/vri/databases/BreaKHis_v1.tar.gz"
FOLDER_NAME = "BreaKHis_v1"
ARCHIVE_NAMES = ("BreaKHis_v1.tar.gz", "BreaKHis_v1.tar", "BreaKHis_v1.zip", "archive.zip")
"""Archives in the target folder that replace a download: the authors', gunzipped, and Kaggle's (archive.zip)."""

MAX_FAILURES = 5  # attempts in a row without further bytes
RETRY_WAIT_S = 2.0
UNPACKED_FACTOR = 1.1  # unpacked size over archive size, rounded up: PNG files hardly compress further

LICENSE = """\
BreakHis is published under CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/). Cite it as:
  Spanhol, Oliveira, Petitjean, Heutte: A Dataset for Breast Cancer Histopathological Image Classification.
  IEEE Transactions on Biomedical Engineering 63(7), 1455-1462, 2016, doi:10.1109/TBME.2015.2496264"""

# Errors of the address or the proxy settings, which another attempt would repeat.
_INVALID = (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.TooManyRedirects, ValueError, ImportError)
# What tarfile and zipfile raise on damaged archives. RuntimeError: an encrypted ZIP file.
_DAMAGED = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error),
    *(EOFError, ValueError, OverflowError, RuntimeError),
)


class DownloadError(BreakHisError, OSError):
    """A download failed, or the archive is damaged or unsafe to unpack."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 1 after an error, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="uv run python -m breakhis_pl.data.download",
        description="Download BreakHis (7,909 images, about 4 GB, 9 GB of free disk space), unpack it and check it. "
        "The same command resumes an interrupted download.",
    )
    parser.add_argument("--to", type=Path, default=Path("data"), help="folder to put BreaKHis_v1 in (default: data)")
    parser.add_argument("--url", default=URL, help="address of the archive (default: %(default)s)")
    parser.add_argument(
        "--archive",
        type=Path,
        help=f"local tar or ZIP file to unpack (default: {' or '.join(ARCHIVE_NAMES)} in --to, if present)",
    )
    parser.add_argument("--keep-archive", action="store_true", help="keep the downloaded archive")
    options = parser.parse_args(argv)
    try:
        _prepare(options.to, url=options.url, archive=options.archive, keep_archive=options.keep_archive)
    except KeyboardInterrupt:
        tqdm.write("\ninterrupted; run the same command again to resume", file=sys.stderr)
        return 130
    except (BreakHisError, OSError) as error:
        hint = "" if isinstance(error, BreakHisError) else "; correct this, or choose another folder with --to"
        tqdm.write(f"{error}{hint}", file=sys.stderr)
        return 1
    return 0


def count_images(root: Path) -> int:
    """Check that exactly the published images are below a folder, and return their number.

    Raises:
        DataError: If images are missing, unknown or duplicate.
    """
    images = index_images(root, MAGNIFICATIONS)
    check_complete(images, MAGNIFICATIONS)
    return len(images)


def _prepare(to: Path, *, url: str, archive: Path | None, keep_archive: bool) -> None:
    folder = to / FOLDER_NAME
    if to.is_dir():
        try:
            n_images = count_images(folder if folder.exists() else to)
            tqdm.write(f"all {n_images:,} images are already in {to}; nothing to download")
            return
        except DataError as error:
            if folder.exists():
                raise DownloadError(f"{error}\n{folder} is incomplete; move it away and try again") from error
    tqdm.write(LICENSE)
    to.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(to / f".{FOLDER_NAME}.lock", timeout=0):
            local = archive or next((to / name for name in ARCHIVE_NAMES if (to / name).is_file()), None)
            packed = local or download_archive(url, to)
            unpack_archive(packed, to)
            n_images = count_images(folder)
            if local is None and not keep_archive:
                packed.unlink()
    except filelock.Timeout:
        raise DownloadError(f"{to} is in use by another download; wait for it, or choose another --to") from None
    tqdm.write(f"all {n_images:,} images are in {folder}; train with data.root={to}")


def download_archive(url: str, to: Path) -> Path:
    """Download the archive into a folder, resuming an interrupted download, and return its path.

    Until it is complete, the file is called `<name>.part`; `<name>.part.etag` holds the server's validator of it.

    Raises:
        DownloadError: If the address is invalid, the server refuses, the connection keeps failing or the disk is full.
    """
    archive = to / ARCHIVE_NAMES[0]
    part = to / f"{archive.name}.part"
    n_failures, largest = 0, 0
    while True:
        try:
            _request_missing_bytes(url, part)
            break
        except _INVALID as error:
            raise DownloadError(f"{url}: {error}; check the address (--url) and the proxy settings") from error
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            size = part.stat().st_size if part.exists() else 0
            n_failures, largest = (1, size) if size > largest else (n_failures + 1, largest)
            if n_failures == MAX_FAILURES:
                raise DownloadError(
                    f"{url}: {reason} ({n_failures} attempts); run the same command again to resume, or download the "
                    f"archive first: curl -L -C - -o {archive} {url}"
                ) from error
            tqdm.write(f"{reason}; trying again", file=sys.stderr)
            time.sleep(RETRY_WAIT_S * n_failures)
    part.replace(archive)
    part.with_name(f"{part.name}.etag").unlink(missing_ok=True)
    return archive


def _request_missing_bytes(url: str, part: Path) -> None:
    """Request the missing bytes of a partial download and append them, or start over if it cannot be resumed.

    Source:
        RFC 9110, sections 13.1.5 (If-Range takes a strong ETag or a date) and 14 (range requests).
    """
    sidecar = part.with_name(f"{part.name}.etag")
    validator = sidecar.read_text() if sidecar.exists() else ""
    start = part.stat().st_size if validator and part.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    headers |= {"Range": f"bytes={start}-", "If-Range": validator} if start > 0 else {}
    with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=30.0) as response:
        code, content_range = response.status_code, response.headers.get("Content-Range", "")
        etag = response.headers.get("ETag", "W/")
        found = response.headers.get("Last-Modified", "") if etag.startswith("W/") else etag
        continues = content_range.startswith(f"bytes {start}-") and found in ("", validator)
        if code == 416 or (code == 206 and not continues):
            sidecar.unlink(missing_ok=True)
            raise httpx.RemoteProtocolError(f"the server cannot resume at byte {start:,}")
        if response.is_server_error or code in (408, 429):
            raise httpx.RemoteProtocolError(f"the server responded {code} {response.reason_phrase}")
        kind = response.headers.get("Content-Type", "")
        if code not in (200, 206) or kind.startswith("text/html"):
            raise DownloadError(f"{url}: the server responded {code} {kind}; check the address, or change --url")
        start = start if code == 206 else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        if total is not None:
            _check_free_space(part.parent, total - start + int(UNPACKED_FACTOR * total))
        interval_s = 0.1 if sys.stderr.isatty() else 30.0  # few lines in a log file
        with (
            part.open("ab" if start > 0 else "wb") as file,
            tqdm(desc="download", total=total, initial=start, unit="B", unit_scale=True, mininterval=interval_s) as bar,
        ):
            if start == 0:
                sidecar.write_text(found)
            for chunk in response.iter_raw():
                bar.update(file.write(chunk))


def _check_free_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DownloadError(
            f"{folder} has {free / 1e9:.1f} GB of free disk space, {needed / 1e9:.1f} GB are needed; "
            "free some, or choose a folder on another disk with --to"
        )


def unpack_archive(archive: Path, to: Path) -> Path:
    """Unpack a tar or ZIP file of BreakHis completely or not at all, and return the folder BreaKHis_v1.

    Raises:
        DownloadError: If the archive is damaged or unsafe, holds no folder BreaKHis_v1, or the disk is full.
    """
    _check_free_space(to, int(UNPACKED_FACTOR * archive.stat().st_size))
    folder, temporary = to / FOLDER_NAME, to / f".{FOLDER_NAME}.unpacking"
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    temporary.mkdir()
    try:
        extract = _extract_zip if zipfile.is_zipfile(archive) else _extract_tar
        extract(archive, temporary)
        if not (temporary / FOLDER_NAME).is_dir():
            raise tarfile.ReadError(f"no folder {FOLDER_NAME} in it")
        (temporary / FOLDER_NAME).rename(folder)
    except _DAMAGED as error:
        reason = str(error).partition("\n")[0]
        raise DownloadError(
            f"{archive} is damaged, unsafe or not BreakHis ({reason}); nothing was unpacked; "
            "complete or remove it, and run the command again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _extract_tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as packed:
        for member in tqdm(packed, desc="unpack", unit=" files", mininterval=1.0):
            if not (member.isfile() or member.isdir()):
                raise tarfile.FilterError(f"{member.name!r} is neither a file nor a folder")
            packed.extract(member, folder, filter="data")
        while packed.fileobj is not None and packed.fileobj.read(1 << 20):
            pass  # up to the end, where gzip checks the sum


def _extract_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        for member in tqdm(packed.infolist(), desc="unpack", unit=" files", mininterval=1.0):
            path = PurePosixPath(member.filename.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts or stat.S_ISLNK(member.external_attr >> 16):
                raise zipfile.BadZipFile(f"{member.filename!r} is a link or outside of the folder")
            packed.extract(member, folder)


if __name__ == "__main__":
    sys.exit(main())
