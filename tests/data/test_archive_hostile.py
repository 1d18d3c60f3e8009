"""Archives that somebody made to do harm, or that fell apart: refused, and nothing is left anywhere."""

import gzip
import random
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from breakhis_pl.data.archive import unpack_archive
from breakhis_pl.data.download import main
from breakhis_pl.errors import ArchiveError, DownloadError
from tests.data.tiny_archives import (
    SMALL_TREE,
    TINY_PNG,
    file_member,
    files_below,
    special_member,
    tar_gz,
    tree_archive,
)

Member = tuple[tarfile.TarInfo, bytes]
FOLDER = special_member("BreaKHis_v1/", tarfile.DIRTYPE)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "outside" / "data" / "BreaKHis_v1.tar.gz"


def check_refused(archive: Path, content: bytes, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Lets the command unpack an archive in its folder, and checks that nothing but the archive is there."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    archive.write_bytes(content)

    assert main(["--to", str(archive.parent), "--url", "http://127.0.0.1:9/"]) == 1

    error = capsys.readouterr().err
    assert fault in error.splitlines()[-1]
    assert f"remove {archive} and fetch it again" in error
    assert "Traceback" not in error
    assert sorted(archive.parents[1].rglob("*")) == [archive.parent, archive]
    assert archive.read_bytes() == content


def pax_member(name: str, content: bytes = TINY_PNG, **headers: str) -> bytes:
    """Blocks of a file whose values stand in an extended header; names of headers with _ for a dot."""
    member, _ = file_member(name, content)
    member.pax_headers = {key.replace("_", "."): value for key, value in headers.items()}
    padding = bytes(-len(content) % tarfile.BLOCKSIZE)
    return member.tobuf(tarfile.PAX_FORMAT) + content + padding


def with_mtime(mtime_s: int) -> Member:
    member, content = file_member("BreaKHis_v1/a.png")
    member.mtime = mtime_s
    return member, content


@pytest.mark.parametrize(
    ("members", "fault"),
    [
        ([file_member("BreaKHis_v1/../../evil.png")], "'BreaKHis_v1/../../evil.png' would lie outside its folder"),
        ([file_member("../evil.png")], "'../evil.png' would lie outside its folder"),
        ([file_member("{to}/../evil.png")], "would lie outside its folder"),
        ([special_member("BreaKHis_v1/..", tarfile.DIRTYPE)], "'BreaKHis_v1/..' would lie outside its folder"),
        ([special_member("BreaKHis_v1", tarfile.SYMTYPE, "..")], "'BreaKHis_v1' is a link to '..'"),
        (
            [special_member("BreaKHis_v1/up", tarfile.SYMTYPE, "../.."), file_member("BreaKHis_v1/up/evil.png")],
            "'BreaKHis_v1/up' is a link to '../..'",
        ),
        (
            [special_member("BreaKHis_v1/a.png", tarfile.LNKTYPE, "../BreaKHis_v1.tar.gz")],
            "'BreaKHis_v1/a.png' is a link to '../BreaKHis_v1.tar.gz'",
        ),
        ([special_member("BreaKHis_v1/null", tarfile.CHRTYPE)], "'BreaKHis_v1/null' is neither a file nor a folder"),
        ([special_member("BreaKHis_v1/disk", tarfile.BLKTYPE)], "'BreaKHis_v1/disk' is neither a file nor a folder"),
        ([special_member("BreaKHis_v1/pipe", tarfile.FIFOTYPE)], "'BreaKHis_v1/pipe' is neither a file nor a folder"),
        ([file_member("BreaKHis_v1/a.png")] * 2, "'BreaKHis_v1/a.png' is in the way of 'BreaKHis_v1/a.png'"),
        (
            [file_member("BreaKHis_v1/a.png"), file_member("./BreaKHis_v1//a.png")],
            "'./BreaKHis_v1//a.png' is in the way of 'BreaKHis_v1/a.png'",
        ),
        (
            [file_member("BreaKHis_v1/a"), file_member("BreaKHis_v1/a/b.png")],
            "'BreaKHis_v1/a/b.png' is in the way of 'BreaKHis_v1/a'",
        ),
        (
            [file_member("BreaKHis_v1/a/b.png"), file_member("BreaKHis_v1/a")],
            "'BreaKHis_v1/a' is in the way of 'BreaKHis_v1/a'",
        ),
        (
            [file_member("BreaKHis_v1/a"), special_member("BreaKHis_v1/a", tarfile.DIRTYPE)],
            "'BreaKHis_v1/a' is in the way of 'BreaKHis_v1/a'",
        ),
        (
            [file_member("BreaKHis_v1/a.png"), file_member("BreaKHis_v1/A.png")],
            "members 'BreaKHis_v1/a.png' and 'BreaKHis_v1/A.png' differ in letter case alone",
        ),
        (
            [file_member("BreaKHis_v1/SOB/a.png"), file_member("BreaKHis_v1/sob/b.png")],
            "members 'BreaKHis_v1/SOB' and 'BreaKHis_v1/sob' differ in letter case alone",
        ),
        ([file_member("breakhis_v1/a.png")], "'breakhis_v1/a.png' is not in BreaKHis_v1/"),
        ([file_member("BreaKHis_v1/a\nb.png")], r"'BreaKHis_v1/a\nb.png' has characters that cannot be printed"),
        ([file_member("BreaKHis_v1/\x1b[2Ja.png")], r"'BreaKHis_v1/\x1b[2Ja.png' has characters that"),
        ([file_member("BreaKHis_v1/a\udcff.png")], r"'BreaKHis_v1/a\udcff.png' has characters that"),
        ([file_member("BreaKHis_v1/\u202egnp.exe")], r"'BreaKHis_v1/\u202egnp.exe' has characters that"),
        ([file_member("BreaKHis_v1/" + "a/" * 300 + "b.png")], "has a name of more than 400 characters"),
        ([with_mtime(1 << 70)], "has an impossible size or time of change (68 B, 1180591620717411303424 s)"),
        ([with_mtime(-1)], "has an impossible size or time of change (68 B, -1 s)"),
    ],
)
def test_a_hostile_member_is_named_and_nothing_is_left(
    archive: Path, members: list[Member], fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for member, _ in members:
        member.name = member.name.replace("{to}", str(archive.parent))
    content = tar_gz([FOLDER, file_member(next(iter(SMALL_TREE))), *members, file_member("BreaKHis_v1/later.png")])

    check_refused(archive, content, fault, capsys)


@pytest.mark.parametrize(
    ("headers", "fault"),
    [
        ({"path": "../evil.png"}, "'../evil.png' would lie outside its folder"),
        ({"path": "/evil.png"}, "'/evil.png' would lie outside its folder"),
        ({"size": "9" * 400}, "has an impossible size or time of change (9999999999999999999999999 B"),
        ({"size": "60000000"}, "'BreaKHis_v1/a.png' has 60 MB, at most 50 MB are expected"),
        ({"size": "-1024"}, "has an impossible size or time of change (-1024 B"),
        ({"mtime": "inf"}, "has an impossible size or time of change (68 B, inf s)"),
        ({"mtime": "nan"}, "has an impossible size or time of change (68 B, nan s)"),
        ({"GNU_sparse_map": "0,10", "GNU_sparse_size": "9" * 15}, "'BreaKHis_v1/a.png' is neither a file nor a folder"),
    ],
)
def test_an_extended_header_gets_nothing_past_the_checks(
    archive: Path, headers: dict[str, str], fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check_refused(archive, gzip.compress(pax_member("BreaKHis_v1/a.png", **headers) + bytes(1024)), fault, capsys)


def test_a_folder_may_be_named_twice(archive: Path, tmp_path: Path) -> None:
    archive.parent.mkdir(parents=True)
    archive.write_bytes(
        tar_gz([FOLDER, file_member("BreaKHis_v1/a/b.png"), FOLDER, special_member("BreaKHis_v1/a", tarfile.DIRTYPE)])
    )

    assert files_below(unpack_archive(archive, tmp_path / "to")) == {"a/b.png": TINY_PNG}


def test_a_compressed_file_far_larger_than_its_archive_is_refused(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = tar_gz([file_member(f"BreaKHis_v1/{number}.png", bytes(30_000_000)) for number in range(2)])
    assert len(content) < 500_000

    limit_mb = (50_000_000 + 3 * len(content)) / 1e6
    check_refused(archive, content, f"more than {limit_mb:.3g} MB unpacked", capsys)


def test_a_member_that_is_shorter_than_it_says_is_refused(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = tarfile.TarInfo("BreaKHis_v1/a.png")
    header.size = 40_000_000

    check_refused(archive, gzip.compress(header.tobuf() + bytes(5000)), "unexpected end of data", capsys)


def test_an_archive_that_ends_between_two_members_is_not_unpacked(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = gzip.decompress(tree_archive(SMALL_TREE))
    archive.parent.mkdir(parents=True)
    archive.write_bytes(gzip.compress(packed[: 4 * tarfile.BLOCKSIZE]))

    assert main(["--to", str(archive.parent), "--url", "http://127.0.0.1:9/"]) == 1

    assert "is not the published archive; nothing was unpacked" in capsys.readouterr().err
    assert list(archive.parent.iterdir()) == [archive]


@pytest.mark.parametrize(("position", "fault"), [(-8, "CRC check failed"), (-1, "Incorrect length of data produced")])
def test_a_gzip_file_with_another_checksum_or_length_is_refused(
    archive: Path, position: int, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray(tree_archive(SMALL_TREE))
    content[position] ^= 1

    check_refused(archive, bytes(content), fault, capsys)


def test_a_gzip_file_with_more_behind_it_is_refused(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_refused(archive, tree_archive(SMALL_TREE) + b"more", "Not a gzipped file (b'mo')", capsys)


def test_an_archive_cut_off_at_any_byte_is_refused(archive: Path, tmp_path: Path) -> None:
    packed = tree_archive(SMALL_TREE)
    archive.parent.mkdir(parents=True)
    to = tmp_path / "to"
    for n_bytes in range(len(packed)):
        archive.write_bytes(packed[:n_bytes])
        with pytest.raises(ArchiveError, match="is damaged or no tar"):
            unpack_archive(archive, to)
        assert list(to.iterdir()) == []


def write_empty_files(path: Path, *, n_members: int) -> None:
    """Writes an archive of empty files, 512 MB unpacked for a million, without a TarInfo for each."""
    header = bytearray(tarfile.TarInfo(f"BreaKHis_v1/{0:07d}").tobuf(tarfile.USTAR_FORMAT))
    checksum = sum(header[:148]) + 8 * ord(" ") + sum(header[156:])
    with gzip.open(path, "wb", compresslevel=1) as file:
        for number in range(n_members):
            digits = f"{number:07d}".encode()
            header[12:19] = digits
            header[148:154] = f"{checksum + sum(digits) - 7 * ord('0'):06o}".encode()
            file.write(header)
        file.write(bytes(1024))


@pytest.mark.slow
def test_a_million_members_are_refused_soon_and_in_little_memory(archive: Path) -> None:
    archive.parent.mkdir(parents=True)
    write_empty_files(archive, n_members=1_000_000)
    limits = "import resource, sys; from breakhis_pl.data.download import main; " + (
        "status = main(sys.argv[1:]); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(status)"
    )
    started_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", limits, "--to", str(archive.parent), "--url", "http://127.0.0.1:9/"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 1
    assert f"{archive}: more than 20,000 members; nothing was unpacked" in done.stderr
    assert time.monotonic() - started_s < 30
    assert int(done.stdout.splitlines()[-1]) < 200_000 * (1024 if sys.platform == "darwin" else 1)
    assert list(archive.parent.iterdir()) == [archive]


def damaged_tar(packed: bytes, rng: random.Random) -> bytes:
    """A tar file with some bytes of its headers changed, the headers' checksums made right again where they were."""
    damaged = bytearray(packed)
    for _ in range(rng.randint(1, 6)):
        block = rng.randrange(len(damaged) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        match rng.randrange(4):
            case 0:
                damaged[block + rng.randrange(512)] = rng.randrange(256)
            case 1:
                damaged[block + 156] = rng.choice(b"01234567xgLKSXVDMN\0")
            case 2:
                field = rng.choice([100, 108, 116, 124, 136, 329, 337])  # mode, ids, size, mtime, device
                damaged[block + field : block + field + 8] = rng.choice([b"\x80", b"\xff"]) + rng.randbytes(7)
            case 3:
                other = rng.randrange(len(damaged) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                damaged[block : block + 512] = damaged[other : other + 512]
        if rng.random() < 0.9:
            head = damaged[block : block + 512]
            checksum = sum(head[:148]) + 8 * ord(" ") + sum(head[156:])
            damaged[block + 148 : block + 156] = f"{checksum:06o}\0 ".encode()
    return bytes(damaged)


def try_damaged(archive: Path, *, seeds: range) -> tuple[int, int]:
    """Unpacks damaged archives, and returns how many of them were unpacked and how many refused."""
    headers = {"path": "BreaKHis_v1/" + "long" * 40 + ".png", "mtime": "1664618400.5"}
    long_name = file_member("BreaKHis_v1/" + "name" * 40 + ".png")
    members = [FOLDER, long_name, file_member("BreaKHis_v1/b/c.png"), file_member("BreaKHis_v1/d.png", bytes(5000))]
    packed = pax_member("BreaKHis_v1/a.png", **headers) + gzip.decompress(tar_gz(members))
    to = archive.parent / "to"
    n_unpacked = n_refused = 0
    for seed in seeds:
        archive.write_bytes(gzip.compress(damaged_tar(packed, random.Random(seed)), compresslevel=1))
        try:
            folder = unpack_archive(archive, to)
        except (ArchiveError, DownloadError):
            n_refused += 1
            assert list(to.iterdir()) == [], seed
        else:
            n_unpacked += 1
            assert list(to.iterdir()) == [folder], seed
            for path in sorted(folder.rglob("*"), reverse=True):
                assert not path.is_symlink(), seed
                assert path.is_dir() or path.is_file(), seed
                path.rmdir() if path.is_dir() else path.unlink()
            folder.rmdir()
        assert sorted(path.name for path in archive.parent.iterdir()) == [archive.name, "to"], seed
    return n_unpacked, n_refused


def test_damaged_archives_are_unpacked_or_refused(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive.parent.mkdir(parents=True)

    n_unpacked, n_refused = try_damaged(archive, seeds=range(200))

    capsys.readouterr()
    assert min(n_unpacked, n_refused) > 20


@pytest.mark.slow
def test_ten_thousand_damaged_archives_are_unpacked_or_refused(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive.parent.mkdir(parents=True)

    n_unpacked, n_refused = try_damaged(archive, seeds=range(1000, 11_000))

    capsys.readouterr()
    assert min(n_unpacked, n_refused) > 1000
