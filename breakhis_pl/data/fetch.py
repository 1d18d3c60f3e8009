"""Fetches one large file by HTTP: in constant memory, over broken connections, going on where an earlier try ended."""

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from breakhis_pl.data.answer import (
    TransientError,
    WrongRangeError,
    check_status,
    checked_chunks,
    first_byte,
    source_of,
    total_bytes,
)
from breakhis_pl.data.archive import MAX_UNPACKED_BYTES, UNPACKED_FACTOR, check_disk
from breakhis_pl.data.partial import Part, Source
from breakhis_pl.data.progress import byte_progress, size_text, write_line
from breakhis_pl.errors import BreakHisError, DownloadError

ARCHIVE_NAME = "BreaKHis_v1.tar.gz"
MAX_ATTEMPTS = 6
MAX_WAIT_S = 60.0
MAX_ASKED_WAIT_S = 600.0
"""Longest wait that a server may ask for; it is for the user to decide on a longer one."""

MAX_WRONG_RANGES = 2
"""Answers with another part than asked for, after which all is fetched anew."""

_NEW_GROUND_BYTES = 1 << 20
_FINAL_ERRORS = (httpx.TooManyRedirects, httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.InvalidURL)


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
    except (httpx.InvalidURL, UnicodeError) as error:
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
    n_failed = n_wrong_ranges = 0
    with _client(url, timeout_s=timeout_s) as client:
        while True:
            try:
                _attempt(client, url, part, say=say)
            except _FINAL_ERRORS as error:
                raise DownloadError(
                    f"{url}: {_reason(error)}; check the address, or choose a mirror with --url"
                ) from error
            except (TransientError, httpx.TransportError) as error:
                new_ground = part.n_bytes - furthest >= _NEW_GROUND_BYTES
                furthest = max(furthest, part.n_bytes)
                n_failed = 1 if new_ground else n_failed + 1
                n_wrong_ranges += isinstance(error, WrongRangeError)
                wait_s = _wait_s(error, n_failed)
                if n_failed >= max_attempts or wait_s > MAX_ASKED_WAIT_S:
                    raise DownloadError(
                        f"{url}: gave up after {n_failed} attempts, the last one: {_reason(error)}; "
                        f"{_kept(part)}if it fails again, choose a mirror with --url"
                    ) from error
                if n_wrong_ranges == MAX_WRONG_RANGES:
                    n_wrong_ranges = 0
                    part.discard()
                say(f"{_reason(error)}; attempt {n_failed + 1} of {max_attempts} in {wait_s:.0f} s")
                sleep(wait_s)
            else:
                return


def _client(url: str, *, timeout_s: float) -> httpx.Client:
    """A client that follows redirects, but neither out of the web nor from an encrypted address to an open one.

    Raises:
        DownloadError: If the settings of the environment do not allow one.
    """
    scheme = httpx.URL(url).scheme

    def check_scheme(request: httpx.Request) -> None:
        if request.url.scheme not in (scheme, "https"):
            raise DownloadError(
                f"{url}: redirected to {request.url}, which is not fetched; expected an address with "
                f"{scheme}://; choose a mirror with --url"
            )

    try:
        return httpx.Client(follow_redirects=True, timeout=timeout_s, event_hooks={"request": [check_scheme]})
    except (OSError, ValueError, ImportError) as error:
        raise DownloadError(
            f"no connection to {url} can be set up ({error}); check the environment variables HTTP_PROXY, HTTPS_PROXY, "
            "ALL_PROXY, NO_PROXY, SSL_CERT_FILE and SSL_CERT_DIR"
        ) from error


def _wait_s(error: Exception, n_failed: int) -> float:
    """Seconds to wait before the next attempt: ever longer, and at least as long as the server asks for."""
    asked_s = error.wait_s if isinstance(error, TransientError) else None
    return max(min(2.0 ** (n_failed - 1), MAX_WAIT_S), asked_s or 0.0)


def _kept(part: Part) -> str:
    if part.n_bytes == 0:
        return "nothing came yet; "
    return f"{size_text(part.n_bytes)} are kept in {part.path}, the same command goes on from there; "


def _reason(error: Exception) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    text = str(error) or type(error).__name__
    if isinstance(error, TransientError) and error.wait_s is not None:
        return f"{text} and wants to be left alone for {error.wait_s:.0f} s"
    return text


def _attempt(client: httpx.Client, url: str, part: Part, *, say: Callable[[str], None]) -> None:
    """One request, for what is missing of the part or for all of it, and its answer written to the end."""
    known = part.source()
    start = _usable_bytes(part, known, url, say=say)
    if known is not None and start > 0 and start == known.total:
        return
    with client.stream("GET", url, headers=_request_headers(known, start)) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and start > 0:
            if total_bytes(response) == start:
                return
            part.discard()
            raise TransientError(f"the file on the server ends before byte {start}; starting again")
        check_status(response, url, start=start)
        found = source_of(response, url, known)
        if response.status_code == httpx.codes.OK and start > 0:
            changed = known is not None and known.differs_from(found)
            say(f"{url}: {'the file changed' if changed else 'the server cannot go on in a file'}; starting again")
            start = 0
        elif start > 0:
            _check_goes_on(response, part, known, found, start=start)
        chunks = response.iter_raw()
        if start == 0:
            chunks = checked_chunks(chunks, response, url)
        if found.total is not None:
            check_disk(
                part.path.parent,
                n_fetched=max(found.total - part.n_bytes, 0),
                n_unpacked=int(found.total * UNPACKED_FACTOR),
            )
            _check_size(found.total, url)
        _write(chunks, part, found, start=start)
    if found.total is None:
        say(f"the server did not say how long the file is; reading {part.path} to its end")
        if part.is_cut_short(max_bytes=MAX_UNPACKED_BYTES):
            raise TransientError(f"the file ended after {part.n_bytes} bytes, which is too early")


def _check_goes_on(response: httpx.Response, part: Part, known: Source | None, found: Source, *, start: int) -> None:
    """Checks that a partial answer is of the same file, and begins where the part ends.

    Raises:
        TransientError: If it is of another one, and the part of no use; WrongRangeError if it begins elsewhere.
    """
    if known is None or known.differs_from(found):
        part.discard()
        raise TransientError("the file on the server changed since the download began; starting again")
    if first_byte(response) != start:
        raise WrongRangeError(f"the server sent another part than the one from byte {start} on")


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


def _write(chunks: Iterator[bytes], part: Part, source: Source, *, start: int) -> None:
    n_bytes = start
    with part.path.open("r+b" if start > 0 else "wb") as file:
        if start == 0:
            part.write_note(source)
        file.seek(start)
        with byte_progress("fetching", total=source.total, initial=start) as advance:
            for chunk in chunks:
                n_bytes += len(chunk)
                _check_size(n_bytes, source.url)
                file.write(chunk)
                advance(len(chunk))
    if source.total is not None and n_bytes != source.total:
        raise TransientError(f"the file ended after {n_bytes} of {source.total} bytes")


def _check_size(n_bytes: int, url: str) -> None:
    if n_bytes > MAX_UNPACKED_BYTES:
        raise DownloadError(
            f"{url}: the file has more than {size_text(MAX_UNPACKED_BYTES)}, the published archive has 4.27 GB; "
            "choose a mirror with --url"
        )
