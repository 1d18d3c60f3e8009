"""The command against a server, an archive or a folder that misbehaves: it gets there, or says why not."""

import functools
import gzip
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from breakhis_pl.data import archive as archive_module
from breakhis_pl.data import download
from breakhis_pl.data.download import main
from breakhis_pl.data.fetch import download_archive
from breakhis_pl.data.index import check_complete
from tests.data.misbehaving_server import (
    Answer,
    MisbehavingServer,
    claim_length,
    connect_plainly,
    cut_after,
    cut_response_after,
    cut_without_length,
    redirect,
    reset_after,
    short_length,
    stall_after,
    status,
    without_length,
)
from tests.data.tiny_archives import SMALL_TREE, files_below, tree_archive

ARCHIVE = tree_archive(SMALL_TREE)


@pytest.fixture(autouse=True)
def plain_connections(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    connect_plainly(monkeypatch, tmp_path_factory.mktemp("empty"))


@pytest.fixture(autouse=True)
def waits_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the command would have waited; it does not wait, and three images are enough for it."""
    waits_s: list[float] = []
    monkeypatch.setattr(download, "download_archive", functools.partial(download_archive, sleep=waits_s.append))
    monkeypatch.setattr(download, "check_complete", lambda *_: None)
    return waits_s


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    with MisbehavingServer(ARCHIVE) as running:
        yield running


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "data"


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "answers",
    [
        [cut_after(0), cut_after(100), cut_after(1)],
        [cut_response_after(0), cut_response_after(30), cut_response_after(100)],
        [reset_after(200)],
        [stall_after(200)],
        [status(500), cut_after(200), status(502)],
        [status(503, Retry_After="20"), status(429), status(408)],
        [redirect("/elsewhere")],
        [claim_length(len(ARCHIVE) + 1000)],
        [claim_length(len(ARCHIVE) + 1000), status(416)],
        [without_length],
        [cut_without_length(200)],
    ],
)
def test_the_command_gets_there_in_spite_of(
    server: MisbehavingServer, to: Path, answers: list[Answer], capsys: pytest.CaptureFixture[str]
) -> None:
    server.answers = list(answers)

    assert main(["--to", str(to), "--url", server.url, "--timeout", "0.3"]) == 0

    assert server.answers == []
    assert files_below(to) == SMALL_TREE
    assert "all 3 images are in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answers", "fault", "left"),
    [
        ([status(404)], "the server answered 404 Not Found; check the address, or choose a mirror", []),
        ([status(500)] * 6, "gave up after 6 attempts, the last one: the server answered 500", []),
        ([stall_after(0)] * 6, "gave up after 6 attempts, the last one: no answer in time; nothing came yet", []),
        ([status(503, Retry_After="7200")], "wants to be left alone for 7200 s", []),
        ([redirect("/elsewhere")] * 21, "Exceeded maximum allowed redirects", []),
        ([redirect("file:///etc/passwd")], "redirected to file://", []),
        ([redirect("ftp://127.0.0.1/a")], "redirected to ftp://127.0.0.1/a", []),
        ([claim_length(10**15)] * 6, "2,100 TB needed on the disk of", []),
        (
            [cut_after(200), *[status(500)] * 5],
            "200 B are kept in {to}/BreaKHis_v1.tar.gz.part, the same command goes on from there",
            ["BreaKHis_v1.tar.gz.part", "BreaKHis_v1.tar.gz.part.json"],
        ),
        (
            [short_length(200)],
            "{to}/BreaKHis_v1.tar.gz is damaged or no tar.gz file (Compressed file ended before",
            ["BreaKHis_v1.tar.gz"],
        ),
    ],
)
def test_the_command_says_in_one_line_what_the_server_did(
    server: MisbehavingServer,
    to: Path,
    answers: list[Answer],
    fault: str,
    left: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.answers = list(answers)

    assert main(["--to", str(to), "--url", server.url, "--timeout", "0.3"]) == 1

    last_line = capsys.readouterr().err.splitlines()[-1]
    assert fault.format(to=to) in last_line
    assert server.answers == [] or "TB needed" in last_line
    assert names_in(to) == left


def test_the_command_takes_no_web_page_for_the_archive(
    server: MisbehavingServer, to: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.content, server.content_type = b"<html>moved</html>", "text/html"
    assert main(["--to", str(to), "--url", server.url]) == 1
    server.content_type = "application/gzip"
    assert main(["--to", str(to), "--url", server.url]) == 1

    error = capsys.readouterr().err
    assert "a web page came (text/html), no tar.gz file" in error
    assert "b'<html>moved</html>' … (application/gzip) came, no tar.gz file" in error
    assert names_in(to) == []


def test_a_file_that_changed_between_two_commands_is_fetched_anew(server: MisbehavingServer, to: Path) -> None:
    server.answers = [cut_after(200), *[status(500)] * 5]
    assert main(["--to", str(to), "--url", server.url]) == 1
    tree = {**SMALL_TREE, "BreaKHis_v1/new.txt": b"new"}
    server.content = tree_archive(tree)
    server.headers = {"ETag": '"second"', "Last-Modified": "Sun, 02 Oct 2022 10:00:00 GMT"}

    assert main(["--to", str(to), "--url", server.url]) == 0
    assert files_below(to) == tree


def test_parts_of_two_files_that_nothing_tells_apart_are_never_unpacked(
    server: MisbehavingServer, to: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.headers = {}
    server.content = gzip.compress(gzip.decompress(ARCHIVE), compresslevel=0, mtime=0)
    server.answers = [cut_after(5000), *[status(500)] * 5]
    assert main(["--to", str(to), "--url", server.url]) == 1
    other = {name: content[:-1] + b"?" for name, content in SMALL_TREE.items()}
    server.content = gzip.compress(gzip.decompress(tree_archive(other)), compresslevel=0, mtime=0)

    assert main(["--to", str(to), "--url", server.url]) == 1

    assert "CRC check failed" in capsys.readouterr().err
    assert names_in(to) == ["BreaKHis_v1.tar.gz"]


def test_a_wrong_checksum_is_one_line_and_nothing_is_unpacked(
    server: MisbehavingServer, to: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--to", str(to), "--url", server.url, "--sha256", "0" * 64]) == 1

    assert f"expected {'0' * 64}; remove it" in capsys.readouterr().err.splitlines()[-1]
    assert names_in(to) == []


def test_a_disk_too_small_for_unpacking_is_noticed_before(to: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to.mkdir()
    archive = to / "BreaKHis_v1.tar.gz"
    with archive.open("wb") as file:
        file.truncate(shutil.disk_usage(to).free)  # a sparse file, which takes no room itself

    assert main(["--to", str(to), "--url", "http://127.0.0.1:9/"]) == 1

    assert f"needed on the disk of {to}" in capsys.readouterr().err.splitlines()[-1]
    assert names_in(to) == ["BreaKHis_v1.tar.gz"]


def test_a_damaged_archive_that_lies_there_is_named_each_time(to: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to.mkdir()
    (to / "BreaKHis_v1.tar.gz").write_bytes(ARCHIVE[:-1])

    for _ in range(2):
        assert main(["--to", str(to), "--url", "http://127.0.0.1:9/"]) == 1
        assert f"remove {to / 'BreaKHis_v1.tar.gz'} and fetch it again" in capsys.readouterr().err
        assert names_in(to) == ["BreaKHis_v1.tar.gz"]


def test_a_folder_that_vanishes_while_it_is_fetched_is_named(
    server: MisbehavingServer, to: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = cut_after(200)

    def remove_and_cut(handler: object) -> None:
        shutil.rmtree(to)
        cut(handler)

    server.answers = [remove_and_cut]

    assert main(["--to", str(to), "--url", server.url]) == 1

    assert f"cannot write {to / 'BreaKHis_v1.tar.gz'} " in capsys.readouterr().err.splitlines()[-1]
    assert not to.exists()


def test_a_folder_that_vanishes_while_it_is_unpacked_does_not_come_back_in_part(
    server: MisbehavingServer, to: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(download, "check_complete", check_complete)
    check_member, n_checked = archive_module._check_member, 0

    def check_and_vanish(member: tarfile.TarInfo) -> None:
        nonlocal n_checked
        n_checked += 1
        check_member(member)
        if n_checked == 2:
            shutil.rmtree(to)

    monkeypatch.setattr(archive_module, "_check_member", check_and_vanish)

    assert main(["--to", str(to), "--url", server.url]) == 1

    assert f"{to / 'BreaKHis_v1.tar.gz'} is not the published archive" in capsys.readouterr().err
    assert files_below(to) == {}


@pytest.mark.parametrize("name", ["file", "file/below", "/proc/data"])
def test_a_folder_that_cannot_be_made_is_one_line(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()

    assert main(["--to", str(tmp_path / name), "--url", "http://127.0.0.1:9/"]) == 1

    error = capsys.readouterr().err
    assert str(tmp_path / name) in error
    assert "choose another folder with --to" in error
    assert error.count("\n") == 1


def test_a_link_that_leads_nowhere_is_noticed_before_anything_is_fetched(
    server: MisbehavingServer, to: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to.mkdir()
    (to / "BreaKHis_v1").symlink_to("missing")

    assert main(["--to", str(to), "--url", server.url]) == 1

    assert f"{to / 'BreaKHis_v1'} is left as it is; move it away" in capsys.readouterr().err
    assert server.ranges == []
