"""What a web server's answer says about a file that is to be fetched, and what becomes of the attempt."""

import email.utils
import itertools
import re
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx

from breakhis_pl.data.partial import Source
from breakhis_pl.errors import DownloadError

_GZIP_MAGIC = b"\x1f\x8b"
_COUNT = r"[0-9]{1,18}"
_CONTENT_RANGE = re.compile(rf"bytes (?:(?P<first>{_COUNT})-{_COUNT}|\*)/(?P<total>{_COUNT}|\*)")
_FOR_THE_MOMENT = (httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_EARLY, httpx.codes.TOO_MANY_REQUESTS)


class TransientError(Exception):
    """An attempt failed in a way that another one may not.

    Args:
        reason: What went wrong.
        wait_s: Seconds that the server wants to be left alone, None if it does not say.
    """

    def __init__(self, reason: str, *, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class WrongRangeError(TransientError):
    """A server sent another part of the file than it was asked for."""


def check_status(response: httpx.Response, url: str, *, start: int) -> None:
    """Checks that an answer brings the file, or what is missing of it.

    Args:
        response: The answer, its body not yet read.
        url: Address as the user gave it.
        start: Bytes that are there, and were not asked for.

    Raises:
        TransientError: If the server cannot answer at the moment.
        DownloadError: If it refuses, or has a web page instead.
    """
    status = response.status_code
    came = f"the server answered {status} {response.reason_phrase}".rstrip()
    if response.is_server_error or status in _FOR_THE_MOMENT:
        raise TransientError(came, wait_s=retry_after_s(response.headers.get("Retry-After"), now=datetime.now(UTC)))
    if status != httpx.codes.OK and not (status == httpx.codes.PARTIAL_CONTENT and start > 0):
        raise DownloadError(f"{url}: {came}; check the address, or choose a mirror with --url")
    media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type in ("text/html", "application/xhtml+xml"):
        raise DownloadError(f"{url}: a web page came ({media_type}), no tar.gz file; choose a mirror with --url")


def retry_after_s(header: str | None, *, now: datetime) -> float | None:
    """Seconds that a server wants to be left alone, None if it does not say so in a form that is known.

    Args:
        header: Header Retry-After: seconds, or a date.
        now: Time to count a date from, with its zone.

    Source:
        RFC 9110, section 10.2.3.

    Example:
        >>> retry_after_s("120", now=datetime.now(UTC))
        120.0
    """
    text = (header or "").strip()
    if re.fullmatch(_COUNT, text, re.ASCII):
        return float(text)
    try:
        date = email.utils.parsedate_to_datetime(text)
        date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
        return max((date - now).total_seconds(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None


def source_of(response: httpx.Response, url: str, known: Source | None) -> Source:
    """What the server says about the file; for a part of it, with what was known before."""
    total = response.headers.get("Content-Length")
    if response.status_code == httpx.codes.PARTIAL_CONTENT:
        total = _content_range(response, "total")
        if total is None and known is not None and known.total is not None:
            total = str(known.total)
    return Source(
        url=url,
        etag=response.headers.get("ETag"),
        last_modified=response.headers.get("Last-Modified"),
        total=None if total is None else int(total),
    )


def first_byte(response: httpx.Response) -> int | None:
    """Position of the first byte that a partial answer brings, None if it does not say."""
    first = _content_range(response, "first")
    return None if first is None else int(first)


def total_bytes(response: httpx.Response) -> int | None:
    """Length of the whole file by the header Content-Range, None if it does not say."""
    total = _content_range(response, "total")
    return None if total is None else int(total)


def _content_range(response: httpx.Response, part: str) -> str | None:
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return None if match is None or match[part] == "*" else match[part]


def checked_chunks(chunks: Iterator[bytes], response: httpx.Response, url: str) -> Iterator[bytes]:
    """The same chunks, once the first bytes show that they are of a gzip file.

    Raises:
        DownloadError: If they are not.
    """
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
