import io

import pytest

from breakhis_pl.data.progress import LineProgress, byte_progress, size_text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_999, "1 MB"),
        (4_273_561_758, "4.27 GB"),
        (4 * 10**12, "4 TB"),
        (2 * 10**15, "2,000 TB"),
    ],
)
def test_sizes_are_short(n_bytes: int, text: str) -> None:
    assert size_text(n_bytes) == text


def test_without_a_terminal_a_line_is_written_at_every_tenth() -> None:
    stream = io.StringIO()

    with byte_progress("fetching", total=1000, stream=stream) as advance:
        for _ in range(100):
            advance(10)

    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("fetching: 100 B of 1 kB (10%), ")
    assert lines[-1].startswith("fetching: 1 kB of 1 kB (100%), ")


def test_a_slow_transfer_writes_a_line_every_30_seconds() -> None:
    stream = io.StringIO()
    now_s = 0.0
    progress = LineProgress("fetching", total=10_000, initial=2_000, stream=stream, clock=lambda: now_s)

    for _ in range(90):
        now_s += 1.0
        progress.advance(10)

    assert stream.getvalue().splitlines() == [
        "fetching: 2.3 kB of 10 kB (23%), 10 B/s, 12:50 left",
        "fetching: 2.6 kB of 10 kB (26%), 10 B/s, 12:20 left",
        "fetching: 2.9 kB of 10 kB (29%), 10 B/s, 11:50 left",
    ]


def test_a_transfer_of_unknown_size_shows_bytes_and_rate() -> None:
    stream = io.StringIO()
    now_s = 0.0
    progress = LineProgress("fetching", total=None, initial=0, stream=stream, clock=lambda: now_s)

    now_s = 40.0
    progress.advance(4_000)

    assert stream.getvalue() == "fetching: 4 kB, 100 B/s\n"


def test_a_terminal_gets_a_bar() -> None:
    stream = Terminal()

    with byte_progress("fetching", total=1000, initial=500, stream=stream) as advance:
        advance(500)

    assert "fetching: 100%" in stream.getvalue()
    assert "1.00k/1.00k" in stream.getvalue()
