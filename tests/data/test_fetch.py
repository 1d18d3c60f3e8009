import errno
import gzip
import hashlib
import json
import re
import shutil
import socket
import tracemalloc
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from breakhis_pl.data import fetch as fetch_module
from breakhis_pl.data.fetch import download_archive
from breakhis_pl.errors import DownloadError
from tests.data.misbehaving_server import (
    Answer,
    MisbehavingServer,
    claim_length,
    connect_plainly,
    cut_after,
    cut_without_length,
    other_range,
    redirect,
    reset_after,
    stall_after,
    status,
    whole,
    without_length,
)


def random_bytes(n_bytes: int, *, seed: bytes = b"0") -> bytes:
    """The same bytes for the same seed; they cannot be compressed."""
    return hashlib.shake_128(seed).digest(n_bytes)


CONTENT = gzip.compress(random_bytes(200_000))
SHA256 = hashlib.sha256(CONTENT).hexdigest()

DiskUsage = namedtuple("DiskUsage", "total used free")


@pytest.fixture(autouse=True)
def plain_connections(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    connect_plainly(monkeypatch, tmp_path_factory.mktemp("empty"))


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    with MisbehavingServer(CONTENT) as running:
        yield running


@dataclass
class Download:
    """Calls download_archive without waiting, and remembers what it said and how long it would have waited."""

    to: Path
    waits_s: list[float] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def __call__(self, url: str, *, timeout_s: float = 10.0, max_attempts: int = 6, sha256: str | None = None) -> bytes:
        archive = download_archive(
            url,
            self.to,
            sha256=sha256,
            timeout_s=timeout_s,
            max_attempts=max_attempts,
            sleep=self.waits_s.append,
            say=self.said.append,
        )
        assert archive == self.to / "BreaKHis_v1.tar.gz"
        assert [path.name for path in self.to.iterdir()] == [archive.name]
        return archive.read_bytes()

    @property
    def part(self) -> Path:
        return self.to / "BreaKHis_v1.tar.gz.part"

    @property
    def note(self) -> Path:
        return self.to / "BreaKHis_v1.tar.gz.part.json"

    def leave_part(self, server: MisbehavingServer, n_bytes: int) -> None:
        """Leaves what a download leaves that ended after some bytes."""
        server.answers = [cut_after(n_bytes)]
        with pytest.raises(DownloadError, match="gave up after 1 attempts"):
            self(server.url, max_attempts=1)
        assert self.part.stat().st_size == n_bytes
        server.ranges.clear()
        server.if_ranges.clear()
        self.said.clear()


@pytest.fixture
def download(tmp_path: Path) -> Download:
    return Download(tmp_path / "data")


def test_a_file_is_fetched_as_it_is(server: MisbehavingServer, download: Download) -> None:
    assert download(server.url, sha256=SHA256.upper()) == CONTENT
    assert server.ranges == [None]
    assert download.waits_s == []


def test_the_name_in_the_address_does_not_matter(server: MisbehavingServer, download: Download) -> None:
    assert download(server.url.replace("BreaKHis_v1.tar.gz", "%2e%2e/mirror?file=7")) == CONTENT


@pytest.mark.parametrize("n_bytes", [1, 2, 3, 65_536, len(CONTENT) - 1])
def test_a_download_that_was_cut_off_goes_on_at_that_byte(
    server: MisbehavingServer, download: Download, n_bytes: int
) -> None:
    server.answers = [cut_after(n_bytes)]

    assert download(server.url) == CONTENT
    # the first two bytes show what came: before they are there, nothing is kept
    assert server.ranges == [None, f"bytes={n_bytes}-" if n_bytes > 1 else None]
    assert server.if_ranges[1] == ('"first"' if n_bytes > 1 else None)
    assert download.waits_s == [1.0]


def test_a_download_goes_on_over_many_cuts(server: MisbehavingServer, download: Download) -> None:
    server.answers = [cut_after(30_000), cut_after(1), cut_after(50_000), cut_after(0)]

    assert download(server.url, sha256=SHA256) == CONTENT
    assert server.ranges == [None, "bytes=30000-", "bytes=30001-", "bytes=80001-", "bytes=80001-"]
    assert download.waits_s == [1.0, 2.0, 4.0, 8.0]


def test_attempts_that_get_further_are_not_counted(
    server: MisbehavingServer, download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_module, "_NEW_GROUND_BYTES", 20_000)
    server.answers = [cut_after(20_000)] * 9

    assert download(server.url, max_attempts=2) == CONTENT
    assert download.waits_s == [1.0] * 9


def test_a_second_call_goes_on_where_the_first_one_ended(server: MisbehavingServer, download: Download) -> None:
    download.leave_part(server, 100_000)

    assert download(server.url) == CONTENT
    assert server.ranges == ["bytes=100000-"]


def test_a_whole_part_needs_no_request(server: MisbehavingServer, download: Download) -> None:
    download.leave_part(server, 100_000)
    download.part.write_bytes(CONTENT)

    assert download(server.url) == CONTENT
    assert server.ranges == []


def test_an_archive_that_is_there_is_used(server: MisbehavingServer, download: Download) -> None:
    download.to.mkdir()
    (download.to / "BreaKHis_v1.tar.gz").write_bytes(CONTENT)

    assert download(server.url, sha256=SHA256) == CONTENT
    assert server.ranges == []
    assert "is there already (200 kB)" in download.said[0]


def test_an_archive_that_is_there_with_another_checksum_is_refused_and_kept(download: Download) -> None:
    download.to.mkdir()
    archive = download.to / "BreaKHis_v1.tar.gz"
    archive.write_bytes(b"something else")

    with pytest.raises(DownloadError, match=f"expected {SHA256}"):
        download("http://127.0.0.1:9/", sha256=SHA256)

    assert archive.exists()


def test_a_reset_connection_is_tried_again(server: MisbehavingServer, download: Download) -> None:
    server.answers = [reset_after(50_000), reset_after(0)]

    assert download(server.url) == CONTENT
    assert len(download.waits_s) == 2


def test_a_stall_ends_after_the_timeout(server: MisbehavingServer, download: Download) -> None:
    server.answers = [stall_after(50_000)]

    assert download(server.url, timeout_s=0.2) == CONTENT
    assert server.ranges == [None, "bytes=50000-"]
    assert download.said == ["no answer in time; attempt 2 of 6 in 1 s"]


def test_a_server_error_is_tried_again(server: MisbehavingServer, download: Download) -> None:
    server.answers = [status(500), cut_after(10_000), status(503)]

    assert download(server.url) == CONTENT
    assert server.ranges == [None, None, "bytes=10000-", "bytes=10000-"]
    assert download.said[0] == "the server answered 500 Internal Server Error; attempt 2 of 6 in 1 s"


def test_a_server_that_asks_for_time_gets_it(server: MisbehavingServer, download: Download) -> None:
    server.answers = [status(503, Retry_After="7"), status(429, Retry_After="600"), status(503, Retry_After="soon")]

    assert download(server.url) == CONTENT
    assert download.waits_s == [7.0, 600.0, 4.0]
    assert download.said[0] == (
        "the server answered 503 Service Unavailable and wants to be left alone for 7 s; attempt 2 of 6 in 7 s"
    )


def test_a_server_that_asks_for_more_than_ten_minutes_is_left_to_the_user(
    server: MisbehavingServer, download: Download
) -> None:
    download.leave_part(server, 70_000)
    server.answers = [status(503, Retry_After="601")]

    with pytest.raises(DownloadError, match=r"gave up .*to be left alone for 601 s; 70 kB are kept in .*goes on"):
        download(server.url)

    assert download.waits_s == []
    assert download.part.read_bytes() == CONTENT[:70_000]


def test_a_server_that_stays_broken_is_given_up(server: MisbehavingServer, download: Download) -> None:
    download.leave_part(server, 70_000)
    server.answers = [status(502)] * 4

    with pytest.raises(DownloadError, match=r"gave up after 4 attempts.*502 Bad Gateway; 70 kB are kept in .*\.part"):
        download(server.url, max_attempts=4)

    assert download.waits_s == [1.0, 2.0, 4.0]
    assert download.part.read_bytes() == CONTENT[:70_000]


def test_a_refused_connection_is_tried_again_and_named(download: Download) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"

        with pytest.raises(DownloadError, match=rf"{url}: gave up after 3 attempts, the last one: .*refused"):
            download(url, max_attempts=3)

    assert download.waits_s == [1.0, 2.0]


@pytest.mark.parametrize("code", [401, 403, 404, 410, 204, 304])
def test_a_refusal_ends_the_download_at_once(server: MisbehavingServer, download: Download, code: int) -> None:
    server.answers = [status(code)]

    with pytest.raises(DownloadError, match=rf"{server.url}: the server answered {code} .*mirror with --url"):
        download(server.url)

    assert download.waits_s == []


def test_a_redirect_is_followed(server: MisbehavingServer, download: Download) -> None:
    server.answers = [redirect("/elsewhere"), cut_after(10), redirect("/elsewhere")]

    assert download(server.url) == CONTENT
    assert server.ranges == [None, None, "bytes=10-", "bytes=10-"]


def test_an_encrypted_address_does_not_lead_to_an_open_one() -> None:
    client = fetch_module._client("https://127.0.0.1/a", timeout_s=1.0)
    with client, pytest.raises(DownloadError, match=r"redirected to http://127.0.0.1/b, which is not .* https://"):
        client.event_hooks["request"][0](httpx.Request("GET", "http://127.0.0.1/b"))


@pytest.mark.parametrize(("name", "value"), [("HTTP_PROXY", "gopher://proxy"), ("SSL_CERT_FILE", "missing.pem")])
def test_an_environment_that_allows_no_connection_is_named(
    server: MisbehavingServer, download: Download, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(DownloadError, match=rf"no connection to {server.url} can be set up .*{name}"):
        download(server.url)


def test_a_redirect_loop_ends_the_download_at_once(server: MisbehavingServer, download: Download) -> None:
    server.answers = [redirect(server.url)] * 50

    with pytest.raises(DownloadError, match=rf"{server.url}: Exceeded maximum allowed redirects"):
        download(server.url)

    assert download.waits_s == []


def test_a_redirect_to_a_file_is_refused(server: MisbehavingServer, download: Download) -> None:
    server.answers = [redirect("file:///etc/passwd")]

    with pytest.raises(DownloadError, match=rf"{server.url}: redirected to file://.*/etc/passwd, which is not fetched"):
        download(server.url)


def test_a_server_without_ranges_sends_everything_again(server: MisbehavingServer, download: Download) -> None:
    server.knows_ranges = False
    server.answers = [cut_after(150_000)]

    assert download(server.url) == CONTENT
    assert server.ranges == [None, "bytes=150000-"]
    assert download.said[-1] == f"{server.url}: the server cannot go on in a file; starting again"


@pytest.mark.parametrize("removed", [["ETag"], ["ETag", "Last-Modified"], []])
def test_a_file_that_changed_between_two_parts_is_fetched_anew(
    server: MisbehavingServer, download: Download, removed: list[str]
) -> None:
    for name in removed:
        del server.headers[name]
    download.leave_part(server, 100_000)
    server.content = gzip.compress(random_bytes(150_000, seed=b"1"))
    for name, value in (("ETag", '"second"'), ("Last-Modified", "Sun, 02 Oct 2022 10:00:00 GMT")):
        if name not in removed:
            server.headers[name] = value

    assert download(server.url) == server.content
    assert any("changed" in line and "starting again" in line for line in download.said)


def test_a_changed_file_is_noticed_without_help_of_if_range(server: MisbehavingServer, download: Download) -> None:
    server.headers = {"ETag": 'W/"weak"'}
    download.leave_part(server, 100_000)
    server.content = gzip.compress(random_bytes(200_000, seed=b"1"))
    server.headers = {"ETag": 'W/"other"'}

    assert download(server.url) == server.content
    assert server.ranges == ["bytes=100000-", None]
    assert server.if_ranges == [None, None]


def test_a_file_that_got_shorter_than_the_part_is_fetched_anew(server: MisbehavingServer, download: Download) -> None:
    server.headers.clear()
    download.leave_part(server, 100_000)
    server.content = gzip.compress(b"short")

    assert download(server.url) == server.content
    assert "ends before byte 100000; starting again" in download.said[0]


OTHER_RANGES = [f"bytes 0-0/{len(CONTENT)}", f"bytes 7-7/{len(CONTENT)}", "nonsense", f"bytes 100000-1/{'9' * 5000}"]


@pytest.mark.parametrize("content_range", OTHER_RANGES)
def test_another_range_than_asked_for_is_not_written(
    server: MisbehavingServer, download: Download, content_range: str
) -> None:
    download.leave_part(server, 100_000)
    server.answers = [other_range(content_range)]

    assert download(server.url) == CONTENT
    assert server.ranges == ["bytes=100000-", "bytes=100000-"]


def test_a_server_that_sends_another_range_twice_is_asked_for_all(
    server: MisbehavingServer, download: Download
) -> None:
    download.leave_part(server, 100_000)
    server.answers = [other_range("nonsense"), other_range("nonsense"), cut_after(50_000)]

    assert download(server.url) == CONTENT
    assert server.ranges == ["bytes=100000-", "bytes=100000-", None, "bytes=50000-"]


def test_a_part_of_another_address_is_not_used(server: MisbehavingServer, download: Download) -> None:
    download.leave_part(server, 100_000)

    assert download(f"{server.url}?mirror=2") == CONTENT
    assert server.ranges == [None]
    assert f"is no part of {server.url}?mirror=2; starting again" in download.said[0]


@pytest.mark.parametrize("note", ["", "[1]", '{"url": 1}', '{"url": "", "etag": 1, "last_modified": 2, "total": "3"}'])
def test_a_part_with_a_damaged_note_is_not_used(server: MisbehavingServer, download: Download, note: str) -> None:
    download.leave_part(server, 100_000)
    download.note.write_text(note)

    assert download(server.url) == CONTENT
    assert server.ranges == [None]


def test_a_part_longer_than_the_whole_is_not_used(server: MisbehavingServer, download: Download) -> None:
    download.leave_part(server, 100_000)
    download.part.write_bytes(CONTENT + b"more")

    assert download(server.url) == CONTENT
    assert server.ranges == [None]


def test_the_note_says_what_the_part_belongs_to(server: MisbehavingServer, download: Download) -> None:
    download.leave_part(server, 100_000)

    assert json.loads(download.note.read_text()) == {
        "url": server.url,
        "etag": '"first"',
        "last_modified": "Sat, 01 Oct 2022 10:00:00 GMT",
        "total": len(CONTENT),
    }


def test_a_wrong_length_once_is_tried_again(server: MisbehavingServer, download: Download) -> None:
    server.answers = [claim_length(len(CONTENT) + 1000), status(416)]

    assert download(server.url) == CONTENT
    assert server.ranges == [None, f"bytes={len(CONTENT)}-", None]


def test_a_file_that_is_whole_after_all_is_not_fetched_again(server: MisbehavingServer, download: Download) -> None:
    server.answers = [claim_length(len(CONTENT) + 1000)]

    assert download(server.url) == CONTENT
    assert server.ranges == [None, f"bytes={len(CONTENT)}-"]


def test_a_wrong_length_every_time_is_an_error(server: MisbehavingServer, download: Download) -> None:
    server.knows_ranges = False
    server.answers = [claim_length(len(CONTENT) + 1000)] * 6

    with pytest.raises(DownloadError, match=r"gave up after 6 attempts, the last one: .*without sending complete"):
        download(server.url)


def test_a_file_without_stated_length_is_fetched(server: MisbehavingServer, download: Download) -> None:
    server.answers = [without_length]

    assert download(server.url) == CONTENT
    assert server.ranges == [None]


@pytest.mark.parametrize("n_bytes", [2, 9, 100_000, len(CONTENT) - 8, len(CONTENT) - 1])
def test_a_file_without_stated_length_that_was_cut_off_goes_on(
    server: MisbehavingServer, download: Download, n_bytes: int
) -> None:
    server.answers = [cut_without_length(n_bytes)]

    assert download(server.url) == CONTENT
    assert server.ranges == [None, f"bytes={n_bytes}-"]
    assert f"the file ended after {n_bytes} bytes, which is too early" in download.said[-1]


@pytest.mark.parametrize("answer", [whole, without_length])
def test_a_file_without_end_is_not_fetched(
    server: MisbehavingServer, download: Download, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_module, "MAX_UNPACKED_BYTES", 100_000)
    server.answers = [answer]

    with pytest.raises(DownloadError, match=r"the file has more than 100 kB, the published archive has 4.27 GB"):
        download(server.url)

    n_written = download.part.stat().st_size if download.part.exists() else 0
    assert n_written == 0 if answer is whole else n_written <= 100_000


def test_a_web_page_is_refused_by_its_type(server: MisbehavingServer, download: Download) -> None:
    server.content_type = "text/html; charset=utf-8"

    with pytest.raises(DownloadError, match=r"a web page came \(text/html\), no tar.gz file; .*mirror with --url"):
        download(server.url)

    assert list(download.to.iterdir()) == []


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><title>Moved</title>", b"\x1f", b""])
def test_what_is_no_gzip_file_is_refused_by_its_first_bytes(
    server: MisbehavingServer, download: Download, content: bytes
) -> None:
    server.content = content

    with pytest.raises(DownloadError, match=r"came, no tar.gz file; choose a mirror with --url") as caught:
        download(server.url)

    assert (repr(content) if content else "nothing") in str(caught.value)
    assert list(download.to.iterdir()) == []


@pytest.mark.parametrize("content_type", ["text/html", "application/octet-stream"])
def test_a_login_page_does_not_destroy_the_part(
    server: MisbehavingServer, download: Download, content_type: str
) -> None:
    download.leave_part(server, 100_000)
    server.content, server.content_type, server.headers = b"<html>log in first</html>" * 9000, content_type, {}
    server.knows_ranges = False

    with pytest.raises(DownloadError, match=r"no tar\.gz file"):
        download(server.url)

    assert download.part.read_bytes() == CONTENT[:100_000]


def test_a_wrong_checksum_is_an_error_and_the_file_goes(server: MisbehavingServer, download: Download) -> None:
    with pytest.raises(DownloadError, match=f"has the SHA-256 checksum {SHA256}, expected {'0' * 64}"):
        download(server.url, sha256="0" * 64)

    assert list(download.to.iterdir()) == []


@pytest.mark.parametrize("sha256", ["abc", "g" * 64, ""])
def test_a_malformed_checksum_is_refused(server: MisbehavingServer, download: Download, sha256: str) -> None:
    with pytest.raises(DownloadError, match=f"'{sha256}' is no SHA-256 checksum"):
        download(server.url, sha256=sha256)

    assert server.ranges == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/a.tar.gz", "BreaKHis_v1.tar.gz", "http://", ""])
def test_only_addresses_of_the_web_are_fetched(download: Download, url: str) -> None:
    with pytest.raises(DownloadError, match=f"'{url}' cannot be fetched; expected an address with http:// or https://"):
        download(url)


@pytest.mark.parametrize("url", ["http://host:port/", "http://host/\udcff", "http://host/\x00"])
def test_a_malformed_address_is_refused(download: Download, url: str) -> None:
    with pytest.raises(DownloadError, match=f"^{re.escape(repr(url))} is no address"):
        download(url)


def test_a_small_disk_is_noticed_before_anything_is_fetched(
    server: MisbehavingServer, download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(10**9, 0, 300_000))

    with pytest.raises(DownloadError, match=r"420 kB needed .*\(200 kB to fetch, 220 kB to unpack\), 300 kB free"):
        download(server.url)

    assert list(download.to.iterdir()) == []


def test_what_was_fetched_before_needs_no_room_again(
    server: MisbehavingServer, download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    download.leave_part(server, 190_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(10**9, 0, 300_000))

    assert download(server.url) == CONTENT


def test_a_folder_that_cannot_be_made_is_named(server: MisbehavingServer, download: Download) -> None:
    download.to.write_text("a file")

    with pytest.raises(DownloadError, match=r"cannot write .*data.*(exists|Not a directory)"):
        download_archive(server.url, download.to)


def test_a_full_disk_in_between_keeps_the_part(
    server: MisbehavingServer, download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers = [whole]

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(DownloadError, match=r"No space left on device.*the same command goes on"):
            download(server.url)

    assert download(server.url) == CONTENT
    assert server.ranges == [None]


def test_memory_does_not_grow_with_the_file(server: MisbehavingServer, download: Download) -> None:
    server.content = gzip.compress(random_bytes(20_000_000, seed=b"2"), compresslevel=1)
    tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        download_archive(server.url, download.to, say=download.said.append)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak - before < 10_000_000
