"""Fetches one large file by HTTP: in constant memory, over broken connections, going on where an earlier try ended."""

import hashlib
import itertools
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from breakhis_pl.data.archive import UNPACKED_FACTOR, check_disk
from breakhis_pl.data.partial import Part, Source
from breakhis_pl.data.progress import byte_progress, size_text, write_line
from breakhis_pl.errors import BreakHisError, DownloadError

ARCHIVE_NAME = "BreaKHis_v1.tar.gz"
MAX_ATTEMPTS = 6
MAX_WAIT_S = 60.0

_GZIP_MAGIC = b"\x1f\x8b"
_NEW_GROUND_BYTES = 1 << 20
_CONTENT_RANGE = re.compile(r"bytes (?P<first>[0-9]+)-[0-9]+/(?P<total>[0-9]+|\*)")
_FINAL_ERRORS = (httpx.TooManyRedirects, httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.InvalidURL)


class _TransientError(Exception):
    """An attempt failed in a way that another one may not."""


def download_archive(
    url: str,
    to: Path,
    *,
    sha256: str | None = None,
    timeout_s: float = 30.0,
    max_attempts: int = MAX_ATTEMPTS,
    sleep: Callable[[float], None] = time.sleep,
    say: Callable[[str], None] = write_line,
) -> Path:
    """Fetches the archive of BreakHis into a folder, and returns it; one that is there already is used.

    Until it is whole the file is `BreaKHis_v1.tar.gz.part`. Whatever ends a download, the next call goes on from there
    if the server can do that and still has the same file.

    Args:
        url: Address of the archive, http or https.
        to: Folder to put it in; made if it does not exist.
        sha256: Checksum that the file must have, 64 hexadecimal digits; None to check none.
        timeout_s: Seconds without a byte after which a connection counts as lost.
        max_attempts: Failed attempts in a row, none of which got further, after which to give up.
        sleep: Waits for a number of seconds.
        say: Takes a line for the user.

    Raises:
        DownloadError: If the address or checksum is malformed, the server refuses or has something else, the
            connection breaks again and again, the checksum differs, or the disk is too small or cannot be written.
    """
    _check_arguments(url, sha256)
    archive = to / ARCHIVE_NAME
    part = Part.of(archive)
    try:
        if archive.exists():
            say(f"{archive} is there already ({size_text(archive.stat().st_size)}) and is used as it is")
            _check_checksum(archive, sha256, say=say)
            return archive
        to.mkdir(parents=True, exist_ok=True)
        _fetch(url, part, timeout_s=timeout_s, max_attempts=max_attempts, sleep=sleep, say=say)
        try:
            _check_checksum(part.path, sha256, say=say)
        except DownloadError:
            part.discard()
            raise
        part.path.replace(archive)
        part.note.unlink(missing_ok=True)
    except BreakHisError:
        raise
    except OSError as error:
        raise DownloadError(
            f"cannot write {archive} ({error}); when that is mended, the same command goes on"
        ) from error
    return archive


def partial_bytes(to: Path) -> int:
    """Bytes of the archive that an unfinished download has left in a folder."""
    return Part.of(to / ARCHIVE_NAME).n_bytes


def _check_arguments(url: str, sha256: str | None) -> None:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise DownloadError(f"{url!r} is no address ({error}); expected one with http:// or https://") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise DownloadError(f"{url!r} cannot be fetched; expected an address with http:// or https://")
    if sha256 is not None and re.fullmatch(r"[0-9a-fA-F]{64}", sha256) is None:
        raise DownloadError(f"{sha256!r} is no SHA-256 checksum; expected 64 hexadecimal digits")


def _check_checksum(file: Path, sha256: str | None, *, say: Callable[[str], None]) -> None:
    if sha256 is None:
        return
    say(f"computing the SHA-256 checksum of {file}")
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256.lower():
        raise DownloadError(
            f"{file} has the SHA-256 checksum {found}, expected {sha256.lower()}; remove it if it is still there, "
            "and check where the two come from"
        )


def _fetch(
    url: str,
    part: Part,
    *,
    timeout_s: float,
    max_attempts: int,
    sleep: Callable[[float], None],
    say: Callable[[str], None],
) -> None:
    """Attempts until the part is whole; attempts that got further than any before are not counted."""
    furthest = part.n_bytes
    n_failed = 0
    with httpx.Client(follow_redirects=True, timeout=timeout_s) as client:
        while True:
            try:
                _attempt(client, url, part, say=say)
            except _FINAL_ERRORS as error:
                raise DownloadError(
                    f"{url}: {_reason(error)}; check the address, or choose a mirror with --url"
                ) from error
            except (_TransientError, httpx.TransportError) as error:
                new_ground = part.n_bytes - furthest >= _NEW_GROUND_BYTES
                furthest = max(furthest, part.n_bytes)
                n_failed = 1 if new_ground else n_failed + 1
                if n_failed >= max_attempts:
                    raise DownloadError(
                        f"{url}: gave up after {n_failed} attempts, the last one: {_reason(error)}; "
                        f"{size_text(part.n_bytes)} are kept in {part.path}, the same command goes on from there; "
                        "if it fails again, choose a mirror with --url"
                    ) from error
                wait_s = min(2.0 ** (n_failed - 1), MAX_WAIT_S)
                say(f"{_reason(error)}; attempt {n_failed + 1} of {max_attempts} in {wait_s:.0f} s")
                sleep(wait_s)
            else:
                return


def _reason(error: Exception) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    return str(error) or type(error).__name__


def _attempt(client: httpx.Client, url: str, part: Part, *, say: Callable[[str], None]) -> None:
    """One request, for what is missing of the part or for all of it, and its answer written to the end."""
    known = part.source()
    start = _usable_bytes(part, known, url, say=say)
    if known is not None and start > 0 and start == known.total:
        return
    with client.stream("GET", url, headers=_request_headers(known, start)) as response:
        _check_status(response, url, part, start=start)
        found = _source_of(response, url, known)
        if response.status_code == httpx.codes.OK and start > 0:
            changed = known is not None and known.differs_from(found)
            say(f"{url}: {'the file changed' if changed else 'the server cannot go on in a file'}; starting again")
            start = 0
        elif start > 0 and (known is None or known.differs_from(found) or _first_byte(response) != start):
            part.discard()
            raise _TransientError("the file on the server changed since the download began; starting again")
        chunks = response.iter_raw()
        if start == 0:
            chunks = _checked_chunks(chunks, response, url)
        if found.total is not None:
            check_disk(
                part.path.parent,
                n_fetched=max(found.total - part.n_bytes, 0),
                n_unpacked=int(found.total * UNPACKED_FACTOR),
            )
        _write(chunks, part, found, start=start)


def _usable_bytes(part: Part, known: Source | None, url: str, *, say: Callable[[str], None]) -> int:
    """Bytes of the part to go on from, 0 to begin again."""
    n_bytes = part.n_bytes
    if n_bytes == 0:
        return 0
    if known is None or known.url != url or (known.total is not None and n_bytes > known.total):
        say(f"{part.path} is no part of {url}; starting again")
        return 0
    return n_bytes


def _request_headers(known: Source | None, start: int) -> dict[str, str]:
    headers = {"Accept-Encoding": "identity"}
    if known is not None and start > 0:
        headers["Range"] = f"bytes={start}-"
        strong_etag = known.etag if known.etag is not None and not known.etag.startswith("W/") else None
        validator = strong_etag or known.last_modified
        if validator is not None:
            headers["If-Range"] = validator
    return headers


def _check_status(response: httpx.Response, url: str, part: Part, *, start: int) -> None:
    status = response.status_code
    if response.is_server_error:
        raise _TransientError(f"the server answered {status} {response.reason_phrase}")
    if status == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and start > 0:
        part.discard()
        raise _TransientError(f"the file on the server ends before byte {start}; starting again")
    if status != httpx.codes.OK and not (status == httpx.codes.PARTIAL_CONTENT and start > 0):
        raise DownloadError(
            f"{url}: the server answered {status} {response.reason_phrase}; check the address, "
            "or choose a mirror with --url"
        )
    media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type in ("text/html", "application/xhtml+xml"):
        raise DownloadError(f"{url}: a web page came ({media_type}), no tar.gz file; choose a mirror with --url")


def _source_of(response: httpx.Response, url: str, known: Source | None) -> Source:
    """What the server says about the file; for a part of it, with what was known before."""
    total = response.headers.get("Content-Length")
    if response.status_code == httpx.codes.PARTIAL_CONTENT:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        total = match["total"] if match is not None and match["total"] != "*" else None
        if total is None and known is not None and known.total is not None:
            total = str(known.total)
    return Source(
        url=url,
        etag=response.headers.get("ETag"),
        last_modified=response.headers.get("Last-Modified"),
        total=None if total is None else int(total),
    )


def _first_byte(response: httpx.Response) -> int | None:
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return None if match is None else int(match["first"])


def _checked_chunks(chunks: Iterator[bytes], response: httpx.Response, url: str) -> Iterator[bytes]:
    """The same chunks, once the first bytes show that they are of a gzip file."""
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= len(_GZIP_MAGIC):
            break
    if not head.startswith(_GZIP_MAGIC):
        came = f"{head[:40]!r} …" if head else "nothing"
        kind = response.headers.get("Content-Type", "no Content-Type")
        raise DownloadError(f"{url}: {came} ({kind}) came, no tar.gz file; choose a mirror with --url")
    return itertools.chain((head,), chunks)


def _write(chunks: Iterator[bytes], part: Part, source: Source, *, start: int) -> None:
    n_bytes = start
    with part.path.open("r+b" if start > 0 else "wb") as file:
        if start == 0:
            part.write_note(source)
        file.seek(start)
        with byte_progress("fetching", total=source.total, initial=start) as advance:
            for chunk in chunks:
                file.write(chunk)
                n_bytes += len(chunk)
                advance(len(chunk))
    if source.total is not None and n_bytes != source.total:
        raise _TransientError(f"the file ended after {n_bytes} of {source.total} bytes")
