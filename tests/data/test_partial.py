import gzip
from pathlib import Path

import pytest

from breakhis_pl.data.partial import Part

CONTENT = gzip.compress(bytes(5_000_000), mtime=0)


@pytest.fixture
def part(tmp_path: Path) -> Part:
    return Part.of(tmp_path / "a.tar.gz")


@pytest.mark.parametrize("n_missing", [1, 8, 1000])
def test_a_gzip_file_that_should_go_on_is_cut_short(part: Part, n_missing: int) -> None:
    part.path.write_bytes(CONTENT[:-n_missing])

    assert part.is_cut_short(max_bytes=10_000_000)


def test_a_whole_gzip_file_is_not_cut_short(part: Part) -> None:
    part.path.write_bytes(CONTENT)

    assert not part.is_cut_short(max_bytes=10_000_000)


def test_a_file_that_unpacks_to_too_much_is_not_read_to_its_end(part: Part) -> None:
    part.path.write_bytes(CONTENT[:-1])

    assert not part.is_cut_short(max_bytes=2_000_000)


@pytest.mark.parametrize("position", [0, 100, -6])
def test_a_damaged_file_is_not_one_that_is_cut_short(part: Part, position: int) -> None:
    damaged = bytearray(gzip.compress(bytes(range(256)) * 10, compresslevel=0, mtime=0))
    damaged[position] ^= 1
    part.path.write_bytes(damaged)

    assert not part.is_cut_short(max_bytes=10_000_000)


def test_broken_compression_is_not_cut_short(part: Part) -> None:
    part.path.write_bytes(CONTENT[:10] + b"\xff" * 100)

    assert not part.is_cut_short(max_bytes=10_000_000)
