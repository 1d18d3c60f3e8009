"""Properties of a download: whatever byte it is cut off at, whatever the server says, the file is whole or an error."""

import gzip
import hashlib
import json
import random
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from breakhis_pl.data.fetch import download_archive
from breakhis_pl.data.partial import Part, Source
from breakhis_pl.errors import DownloadError
from tests.data.misbehaving_server import (
    Handler,
    MisbehavingServer,
    connect_plainly,
    cut_response_after,
    cut_without_length,
    raw,
    response_bytes,
    whole,
)

CONTENT = gzip.compress(hashlib.shake_128(b"0").digest(1500), mtime=0)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MisbehavingServer]:
    with pytest.MonkeyPatch.context() as monkeypatch, MisbehavingServer(CONTENT) as running:
        connect_plainly(monkeypatch, tmp_path_factory.mktemp("empty"))
        yield running


@pytest.fixture(scope="module")
def response(server: MisbehavingServer, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Status line, headers and body of a good answer."""
    seen: list[bytes] = []

    def look(handler: Handler) -> None:
        seen.append(response_bytes(whole, handler))
        handler.wfile.write(seen[0])
        handler.close_connection = True

    server.answers = [look]
    fetched(server, tmp_path_factory.mktemp("look"))
    assert seen[0].startswith(b"HTTP/1.0 200 OK\r\n")
    assert seen[0].endswith(b"\r\n\r\n" + CONTENT)
    return seen[0]


def fetched(server: MisbehavingServer, to: Path, *, sha256: str | None = None) -> bytes:
    archive = download_archive(server.url, to, sha256=sha256, timeout_s=10.0, sleep=lambda _: None, say=lambda _: None)
    assert [path.name for path in to.iterdir()] == [archive.name]
    return archive.read_bytes()


def check_cut(server: MisbehavingServer, response: bytes, n_sent: int) -> None:
    """Cuts off the first answer after some bytes, and checks that the second request asks for the rest alone."""
    server.answers, server.ranges = [cut_response_after(n_sent)], []
    n_kept = max(n_sent - (len(response) - len(CONTENT)), 0)
    with tempfile.TemporaryDirectory() as to:
        assert fetched(server, Path(to)) == CONTENT
    if n_sent < len(response):
        # the first two bytes show what came: before they are there, nothing is kept
        assert server.ranges == [None, f"bytes={n_kept}-" if n_kept > 1 else None]


@given(share=st.floats(0, 1))
@example(share=0)
@example(share=1)
@settings(deadline=None, max_examples=60)
def test_a_download_cut_off_at_any_byte_of_the_answer_goes_on_there(
    server: MisbehavingServer, response: bytes, share: float
) -> None:
    check_cut(server, response, round(share * len(response)))


@pytest.mark.slow
def test_a_download_cut_off_at_each_byte_of_the_answer_goes_on_there(
    server: MisbehavingServer, response: bytes
) -> None:
    for n_sent in range(len(response) + 1):
        check_cut(server, response, n_sent)


@given(cuts=st.lists(st.integers(0, 2500), min_size=2, max_size=5))
@settings(deadline=None, max_examples=40)
def test_a_download_goes_on_over_any_five_cuts(server: MisbehavingServer, cuts: list[int]) -> None:
    server.answers = [cut_response_after(n_sent) for n_sent in cuts]
    with tempfile.TemporaryDirectory() as to:
        assert fetched(server, Path(to)) == CONTENT
    server.answers = []


@given(n_sent=st.integers(2, len(CONTENT)))
@settings(deadline=None, max_examples=40)
def test_a_download_without_stated_length_goes_on_after_any_cut(server: MisbehavingServer, n_sent: int) -> None:
    server.answers, server.ranges = [cut_without_length(n_sent)], []
    with tempfile.TemporaryDirectory() as to:
        assert fetched(server, Path(to)) == CONTENT
    assert server.ranges == [None, f"bytes={n_sent}-"][: 1 if n_sent == len(CONTENT) else 2]


@given(n_sent=st.integers(0, len(CONTENT) - 1))
@settings(deadline=None, max_examples=30)
def test_a_download_in_chunks_goes_on_after_any_cut(server: MisbehavingServer, n_sent: int) -> None:
    head = b'HTTP/1.1 200 OK\r\nETag: "first"\r\nTransfer-Encoding: chunked\r\n\r\n'
    size_line = f"{len(CONTENT):x}\r\n".encode()
    server.answers, server.ranges = [raw(head + size_line + CONTENT[:n_sent])], []
    with tempfile.TemporaryDirectory() as to:
        assert fetched(server, Path(to)) == CONTENT
    assert server.ranges == [None, f"bytes={n_sent}-" if n_sent > 1 else None]


@given(part_share=st.floats(0, 1), note_share=st.one_of(st.just(1.0), st.floats(0, 1)))
@example(part_share=0, note_share=0)
@example(part_share=1, note_share=1)
@settings(deadline=None, max_examples=60)
def test_whatever_a_killed_process_has_written_the_next_one_gets_it_whole(
    server: MisbehavingServer, part_share: float, note_share: float
) -> None:
    source = Source(server.url, server.headers["ETag"], server.headers["Last-Modified"], len(CONTENT))
    note = json.dumps(asdict(source), indent=2) + "\n"
    server.answers, server.ranges = [], []
    with tempfile.TemporaryDirectory() as to:
        part = Part.of(Path(to) / "BreaKHis_v1.tar.gz")
        part.path.write_bytes(CONTENT[: round(part_share * len(CONTENT))])
        part.note.write_text(note[: round(note_share * len(note))])
        n_kept = part.n_bytes
        assert fetched(server, Path(to)) == CONTENT
    if note_share == 1 and 0 < n_kept < len(CONTENT):
        assert server.ranges == [f"bytes={n_kept}-"]


def mutated(response: bytes, rng: random.Random) -> bytes:
    """A response with some bytes of its head changed, taken out or put in."""
    head, end, body = response.partition(b"\r\n\r\n")
    damaged = bytearray(head + end)
    for _ in range(rng.randint(1, 8)):
        position = rng.randrange(len(damaged))
        match rng.randrange(3):
            case 0:
                damaged[position] = rng.randrange(256)
            case 1:
                del damaged[position : position + rng.randint(1, 20)]
            case 2:
                damaged[position:position] = rng.choice([b"9", b"\r\n", b"\0", b":", b"-", b"\xff"]) * rng.randint(1, 9)
    return bytes(damaged) + body


@given(rng=st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=100)
def test_an_answer_with_a_damaged_head_gives_the_file_or_an_error(
    server: MisbehavingServer, response: bytes, rng: random.Random
) -> None:
    server.answers = [raw(mutated(response, rng)) for _ in range(3)]
    with tempfile.TemporaryDirectory() as to:
        try:
            assert fetched(server, Path(to), sha256=SHA256) == CONTENT
        except DownloadError:
            assert not (Path(to) / "BreaKHis_v1.tar.gz").exists()
    server.answers = []


@pytest.mark.parametrize("n_bytes", [2, 700, len(CONTENT) - 1])
def test_a_length_that_is_too_short_is_noticed_by_the_checksum(
    server: MisbehavingServer, response: bytes, tmp_path: Path, n_bytes: int
) -> None:
    short = response.replace(f"Content-Length: {len(CONTENT)}".encode(), f"Content-Length: {n_bytes}".encode())
    assert short != response
    server.answers = [raw(short)]

    with pytest.raises(DownloadError, match=rf"expected {SHA256}"):
        fetched(server, tmp_path, sha256=SHA256)

    assert list(tmp_path.iterdir()) == []
