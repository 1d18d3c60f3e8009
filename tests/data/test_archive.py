import gzip
import shutil
import tarfile
from collections import namedtuple
from pathlib import Path

import pytest

from breakhis_pl.data import archive as archive_module
from breakhis_pl.data.archive import check_disk, remove_leftovers, unpack_archive
from breakhis_pl.errors import ArchiveError, DownloadError
from tests.data.tiny_archives import SMALL_TREE, file_member, files_below, special_member, tar_gz, tree_archive

FIRST_FILE = next(iter(SMALL_TREE))

DiskUsage = namedtuple("DiskUsage", "total used free")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "BreaKHis_v1.tar.gz"


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "data"


def test_unpacking_gives_the_files_of_the_archive_and_nothing_else(archive: Path, to: Path) -> None:
    archive.write_bytes(tree_archive(SMALL_TREE))

    folder = unpack_archive(archive, to)

    assert folder == to / "BreaKHis_v1"
    assert files_below(to) == SMALL_TREE
    assert [path.name for path in to.iterdir()] == ["BreaKHis_v1"]


def test_folders_and_files_of_macos_beside_the_folder_do_no_harm(archive: Path, to: Path) -> None:
    members = [
        special_member("./", tarfile.DIRTYPE),
        file_member("./._BreaKHis_v1", b"attributes"),
        special_member("./BreaKHis_v1/", tarfile.DIRTYPE),
        file_member("./BreaKHis_v1/README.txt", b"read me"),
        special_member("./BreaKHis_v1/empty/", tarfile.DIRTYPE),
    ]
    archive.write_bytes(tar_gz(members))

    folder = unpack_archive(archive, to)

    assert files_below(to) == {"BreaKHis_v1/README.txt": b"read me"}
    assert (folder / "empty").is_dir()


def test_unpacked_files_can_be_read_and_are_not_executable(archive: Path, to: Path) -> None:
    member, content = file_member("BreaKHis_v1/a.png")
    member.mode = 0o4077
    archive.write_bytes(tar_gz([(member, content)]))

    folder = unpack_archive(archive, to)

    assert (folder / "a.png").stat().st_mode & 0o7733 == 0o600


@pytest.mark.parametrize(
    ("member", "fault"),
    [
        (file_member("/etc/evil.png"), "'/etc/evil.png' would lie outside"),
        (file_member("BreaKHis_v1/../../evil.png"), r"'BreaKHis_v1/../../evil.png' would lie outside"),
        (file_member("..\\evil.png"), "evil.png' would lie outside"),
        (file_member("C:evil.png"), "'C:evil.png' would lie outside"),
        (file_member("other/evil.png"), "'other/evil.png' is not in BreaKHis_v1"),
        (file_member("BreaKHis_v10/evil.png"), "'BreaKHis_v10/evil.png' is not in BreaKHis_v1"),
        (special_member("BreaKHis_v1/a", tarfile.SYMTYPE, "/etc"), "a' is a link to '/etc'"),
        (special_member("BreaKHis_v1/a", tarfile.SYMTYPE, "b"), "a' is a link to 'b'"),
        (special_member("._a", tarfile.SYMTYPE, "/etc"), "a' is a link to '/etc'"),
        (special_member("BreaKHis_v1/a", tarfile.LNKTYPE, "../../b"), r"a' is a link to '\.\./\.\./b'"),
        (special_member("BreaKHis_v1/a", tarfile.FIFOTYPE), "a' is neither a file nor a folder"),
        (special_member("BreaKHis_v1/a", tarfile.CHRTYPE), "a' is neither a file nor a folder"),
        (special_member("BreaKHis_v1/a", tarfile.BLKTYPE), "a' is neither a file nor a folder"),
        (special_member("BreaKHis_v1/a", b"Z"), "a' is neither a file nor a folder"),
    ],
)
def test_a_dangerous_member_is_refused_and_nothing_is_left(
    archive: Path, to: Path, member: tuple[tarfile.TarInfo, bytes], fault: str
) -> None:
    archive.write_bytes(tar_gz([file_member(FIRST_FILE), member, file_member("BreaKHis_v1/later.png")]))

    with pytest.raises(ArchiveError, match=fault):
        unpack_archive(archive, to)

    assert list(to.iterdir()) == []
    assert sorted(path.name for path in to.parent.iterdir()) == ["BreaKHis_v1.tar.gz", "data"]


def test_a_link_and_a_file_behind_it_do_not_leave_the_folder(archive: Path, to: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    members = [
        special_member("BreaKHis_v1/door", tarfile.SYMTYPE, str(victim)),
        file_member("BreaKHis_v1/door/evil.png"),
    ]
    archive.write_bytes(tar_gz(members))

    with pytest.raises(ArchiveError, match="is a link to"):
        unpack_archive(archive, to)

    assert list(victim.iterdir()) == []


def test_more_than_20000_members_are_refused(archive: Path, to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert archive_module.MAX_MEMBERS == 20_000
    monkeypatch.setattr(archive_module, "MAX_MEMBERS", 2)
    archive.write_bytes(tree_archive(SMALL_TREE))

    with pytest.raises(ArchiveError, match="more than 2 members"):
        unpack_archive(archive, to)

    assert list(to.iterdir()) == []


def test_a_member_over_50_mb_is_refused_before_it_is_read(archive: Path, to: Path) -> None:
    header = tarfile.TarInfo("BreaKHis_v1/big.png")
    header.size = 50_000_001
    archive.write_bytes(gzip.compress(header.tobuf()))

    with pytest.raises(ArchiveError, match=r"big.png' has 50 MB, at most 50 MB"):
        unpack_archive(archive, to)


def test_more_than_20_gb_are_refused(archive: Path, to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert archive_module.MAX_UNPACKED_BYTES == 20_000_000_000
    monkeypatch.setattr(archive_module, "MAX_UNPACKED_BYTES", 100)
    archive.write_bytes(tree_archive(SMALL_TREE))

    with pytest.raises(ArchiveError, match="more than 100 B unpacked"):
        unpack_archive(archive, to)

    assert list(to.iterdir()) == []


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_never_ends_is_not_read_into_memory(archive: Path, to: Path, kind: bytes) -> None:
    header = tarfile.TarInfo("x")
    header.type = kind
    header.size = 1 << 40
    archive.write_bytes(gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20)))

    with pytest.raises(ArchiveError, match="header or the tail of the archive is far too long"):
        unpack_archive(archive, to)


def test_a_tail_that_never_ends_is_not_read(archive: Path, to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "_TAIL_ALLOWANCE", 1 << 20)
    packed = gzip.decompress(tree_archive(SMALL_TREE))
    archive.write_bytes(gzip.compress(packed + bytes(1 << 22)))

    with pytest.raises(ArchiveError, match="tail of the archive is far too long"):
        unpack_archive(archive, to)

    assert list(to.iterdir()) == []


def test_an_archive_cut_off_anywhere_is_refused(archive: Path, to: Path) -> None:
    packed = tree_archive(SMALL_TREE)
    for n_bytes in (0, 1, 9, 20, len(packed) // 2, len(packed) - 8, len(packed) - 1):
        archive.write_bytes(packed[:n_bytes])
        with pytest.raises(ArchiveError, match=r"BreaKHis_v1.tar.gz is damaged or no tar.gz file .* remove"):
            unpack_archive(archive, to)
        assert list(to.iterdir()) == []


def test_a_flipped_bit_is_noticed_wherever_it_is(archive: Path, to: Path) -> None:
    stored = gzip.compress(gzip.decompress(tree_archive(SMALL_TREE)), compresslevel=0)
    for position in range(10, len(stored), 499):
        damaged = bytearray(stored)
        damaged[position] ^= 0b100
        archive.write_bytes(damaged)
        with pytest.raises(ArchiveError, match=r"BreaKHis_v1\.tar\.gz"):
            unpack_archive(archive, to)
        assert list(to.iterdir()) == []


@pytest.mark.parametrize("content", [b"<html>not found</html>", gzip.compress(b"no tar file" * 100, mtime=0)])
def test_what_is_no_tar_gz_is_refused(archive: Path, to: Path, content: bytes) -> None:
    archive.write_bytes(content)

    with pytest.raises(ArchiveError, match=r"is damaged or no tar\.gz file"):
        unpack_archive(archive, to)


def test_an_archive_without_the_folder_is_refused(archive: Path, to: Path) -> None:
    archive.write_bytes(tar_gz([]))

    with pytest.raises(ArchiveError, match=r"holds no folder BreaKHis_v1"):
        unpack_archive(archive, to)


def test_a_missing_archive_is_named(archive: Path, to: Path) -> None:
    with pytest.raises(ArchiveError, match=r"cannot unpack .*BreaKHis_v1.tar.gz into .*No such file"):
        unpack_archive(archive, to)


def test_nothing_is_merged_into_a_folder_that_exists(archive: Path, to: Path) -> None:
    archive.write_bytes(tree_archive(SMALL_TREE))
    (to / "BreaKHis_v1").mkdir(parents=True)

    with pytest.raises(ArchiveError, match=r"BreaKHis_v1 exists; move it away"):
        unpack_archive(archive, to)

    assert files_below(to) == {}


def test_a_link_that_leads_nowhere_is_a_folder_that_exists(archive: Path, to: Path) -> None:
    archive.write_bytes(tree_archive(SMALL_TREE))
    to.mkdir()
    (to / "BreaKHis_v1").symlink_to("missing")

    with pytest.raises(ArchiveError, match=r"BreaKHis_v1 exists; move it away"):
        unpack_archive(archive, to)


def test_what_a_killed_unpacking_left_is_removed_and_named(to: Path) -> None:
    leftover = to / ".BreaKHis_v1.unpacking-abc"
    (leftover / "BreaKHis_v1").mkdir(parents=True)
    (leftover / "BreaKHis_v1" / "a.png").touch()
    (to / "other").mkdir()
    said: list[str] = []

    remove_leftovers(to, say=said.append)

    assert [path.name for path in to.iterdir()] == ["other"]
    assert said == [f"{leftover} is from an unpacking that was killed; removing it"]


def test_what_cannot_be_removed_is_named(to: Path) -> None:
    leftover = to / ".BreaKHis_v1.unpacking-abc"
    to.mkdir()
    leftover.touch()

    with pytest.raises(ArchiveError, match=r"cannot remove .*unpacking-abc .*; remove it by hand"):
        remove_leftovers(to)


def test_what_does_not_pass_the_check_gets_no_name(archive: Path, to: Path) -> None:
    archive.write_bytes(tree_archive(SMALL_TREE))

    def refuse(unpacked: Path) -> None:
        raise ArchiveError(f"{len(files_below(unpacked))} files")

    with pytest.raises(ArchiveError, match=r"^3 files$"):
        unpack_archive(archive, to, check=refuse)

    assert list(to.iterdir()) == []


def test_ctrl_c_leaves_nothing_half_unpacked(archive: Path, to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive.write_bytes(tree_archive(SMALL_TREE))
    n_checked = 0
    check_member = archive_module._check_member

    def interrupt(member: tarfile.TarInfo) -> None:
        nonlocal n_checked
        n_checked += 1
        if n_checked == 3:
            raise KeyboardInterrupt
        check_member(member)

    monkeypatch.setattr(archive_module, "_check_member", interrupt)

    with pytest.raises(KeyboardInterrupt):
        unpack_archive(archive, to)

    assert list(to.iterdir()) == []


def test_a_full_disk_is_noticed_before_anything_is_unpacked(
    archive: Path, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.write_bytes(tree_archive(SMALL_TREE))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(1000, 990, 10))

    with pytest.raises(DownloadError, match=r"needed on the disk of .*data .* 10 B free"):
        unpack_archive(archive, to)


def test_the_disk_check_names_what_is_needed_and_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(10**10, 0, 3_000_000_000))
    check_disk(tmp_path, n_fetched=1_000_000_000, n_unpacked=2_000_000_000)

    with pytest.raises(DownloadError, match=r"8.4 GB needed .*\(4 GB to fetch, 4.4 GB to unpack\), 3 GB free"):
        check_disk(tmp_path, n_fetched=4_000_000_000, n_unpacked=4_400_000_000)
