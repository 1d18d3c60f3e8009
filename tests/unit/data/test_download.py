"""Downloads from a server on loopback, and archives that must or must not be unpacked."""

import io
import signal
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import filelock
import pytest

from breakhis_pl.data import download
from breakhis_pl.data.download import main
from breakhis_pl.errors import DataError

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
IMAGES = {f"BreaKHis_v1/SOB_B_TA-14-3411F-40-00{n}.png": bytes([n]) * 50_000 for n in range(1, 5)}


def tar(files: dict[str, bytes], mode: str = "w:gz", *, special: bytes | None = None, target: str = "") -> bytes:
    with tarfile.open(fileobj=(packed := io.BytesIO()), mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        if special is not None:
            member = tarfile.TarInfo("BreaKHis_v1/special.png")
            member.type, member.linkname = special, target
            archive.addfile(member)
    return packed.getvalue()


def zipped(files: dict[str, bytes], *, mode: int = 0o644) -> bytes:
    with zipfile.ZipFile(packed := io.BytesIO(), "w") as archive:
        for name, content in files.items():
            archive.writestr(member := zipfile.ZipInfo(name), content)
            member.external_attr = mode << 16  # written with the directory, when the file is closed
    return packed.getvalue()


UNUSABLE = {
    "tar_parent": tar(IMAGES | {"BreaKHis_v1/../../evil.png": b""}),
    "tar_symlink": tar(IMAGES, special=tarfile.SYMTYPE, target="/etc/passwd"),
    "tar_symlink_inside": tar(IMAGES, special=tarfile.SYMTYPE, target="SOB_B_TA-14-3411F-40-001.png"),
    "tar_hardlink": tar(IMAGES, special=tarfile.LNKTYPE, target=next(iter(IMAGES))),
    "tar_device": tar(IMAGES, special=tarfile.CHRTYPE),
    "zip_parent": zipped(IMAGES | {"../evil.png": b""}),
    "zip_absolute": zipped(IMAGES | {"/evil.png": b""}),
    "zip_symlink": zipped(IMAGES, mode=0o120777),
    "other_folder": tar({"elsewhere/image.png": b""}),
    "truncated_gzip": tar(IMAGES)[:-100],
    "wrong_checksum": tar(IMAGES)[:-8] + b"12345678",
    "truncated_tar": tar(IMAGES, "w")[:70_000],
    "web_page": b"<html>",
}


class Server(ThreadingHTTPServer):
    """Serve one file. `ranges`: Range header of each request; `cuts`: bytes of the next responses before a cut."""

    content, status, knows_ranges = tar(IMAGES, "w"), 200, True  # uncompressed, so that cuts fall inside
    url: str
    ranges: list[str | None]
    cuts: list[int]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked, size = self.headers["Range"], len(self.server.content)
        self.server.ranges.append(asked)
        is_valid = asked and self.server.knows_ranges and self.headers["If-Range"] == '"1"'
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if is_valid else 0
        self.send_response(206 if start else self.server.status)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(size - start))
        self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()
        self.wfile.write(self.server.content[start:][: self.server.cuts.pop(0) if self.server.cuts else None])


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.url, running.ranges, running.cuts = f"http://127.0.0.1:{running.server_port}/", [], []
        threading.Thread(target=running.serve_forever, args=(0.01,)).start()
        yield running
        running.shutdown()


@pytest.fixture
def to(tmp_path: Path, monkeypatch: Patch) -> Path:
    """An empty target folder; the four images count as complete."""

    def count_four(root: Path) -> int:
        if {path.name for path in root.rglob("*.png")} != {Path(name).name for name in IMAGES}:
            raise DataError("incomplete")
        return len(IMAGES)

    monkeypatch.setattr(download, "count_images", count_four)
    monkeypatch.setattr(download, "RETRY_WAIT_S", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def files(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.endswith(".lock")}


def test_a_download_is_unpacked_and_a_second_call_requests_nothing(server: Server, to: Path) -> None:
    assert [main(["--to", str(to), "--url", server.url]) for _ in range(2)] == [0, 0]
    assert files(to) == IMAGES
    assert server.ranges == [None]


def test_a_cut_connection_is_resumed_from_the_last_byte(server: Server, to: Path) -> None:
    server.cuts = [70_000, 20_000]
    assert main(["--to", str(to), "--url", server.url, "--keep-archive"]) == 0
    assert server.ranges == [None, "bytes=70000-", "bytes=90000-"]
    assert files(to) == IMAGES | {"BreaKHis_v1.tar.gz": server.content}


@pytest.mark.parametrize("obstacle", ["no ranges", "new ETag", "no sidecar"])
def test_a_download_that_cannot_be_resumed_starts_over(server: Server, to: Path, obstacle: str) -> None:
    (to / "BreaKHis_v1.tar.gz.part").write_bytes(b"an older file")
    if obstacle != "no sidecar":
        (to / "BreaKHis_v1.tar.gz.part.etag").write_text('"0"' if obstacle == "new ETag" else '"1"')
    server.knows_ranges = obstacle != "no ranges"
    assert main(["--to", str(to), "--url", server.url]) == 0
    assert server.ranges == [None if obstacle == "no sidecar" else "bytes=13-"]
    assert files(to) == IMAGES


@pytest.mark.parametrize(("status", "n_requests"), [(404, 1), (503, download.MAX_FAILURES)])
def test_only_passing_errors_are_retried(server: Server, to: Path, status: int, n_requests: int) -> None:
    server.status = status
    with pytest.raises(download.DownloadError, match=str(status)):
        download.download_archive(server.url, to)
    assert len(server.ranges) == n_requests


@pytest.mark.parametrize("url", ["file:///etc/passwd", "no address", "http://[", "http://127.0.0.1:9/a"])
def test_an_impossible_url_is_one_line(url: str, to: Path, capsys: Capture) -> None:
    assert main(["--to", str(to), "--url", url]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(url)


@pytest.mark.parametrize("content", [tar(IMAGES), tar(IMAGES, "w"), zipped(IMAGES)], ids=["tar.gz", "tar", "zip"])
@pytest.mark.parametrize("options", [[], ["--archive", "given"]])
def test_a_local_archive_is_used_and_kept(to: Path, content: bytes, options: list[str], monkeypatch: Patch) -> None:
    monkeypatch.chdir(to.parent)
    archive = "given" if options else "data/BreaKHis_v1.tar.gz"
    Path(archive).write_bytes(content)
    assert main(options) == 0
    assert files(to.parent) == {f"data/{name}": image for name, image in IMAGES.items()} | {archive: content}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_damaged_or_unsafe_archive_is_one_line_and_leaves_nothing(to: Path, kind: str, capsys: Capture) -> None:
    (to / "archive.zip").write_bytes(UNUSABLE[kind])
    assert main(["--to", str(to)]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"{to / 'archive.zip'}")
    assert files(to.parent) == {"data/archive.zip": UNUSABLE[kind]}
    assert not list(to.glob(".*unpacking*"))


def test_an_incomplete_archive_is_unpacked_and_reported_and_not_overwritten(to: Path) -> None:
    (to / "archive.zip").write_bytes(zipped({"BreaKHis_v1/one.png": b"1"}))
    assert [main(["--to", str(to)]) for _ in range(2)] == [1, 1]
    assert (to / "BreaKHis_v1/one.png").exists()


def test_a_second_process_is_refused(server: Server, to: Path) -> None:
    with filelock.FileLock(to / ".BreaKHis_v1.lock"):
        assert main(["--to", str(to), "--url", server.url]) == 1
    assert server.ranges == []


def test_disk_space_is_checked_before_the_download(server: Server, to: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(download, "UNPACKED_FACTOR", 1e15)
    assert main(["--to", str(to), "--url", server.url]) == 1
    assert files(to) == {}


def test_ctrl_c_keeps_the_partial_download(server: Server, to: Path, monkeypatch: Patch) -> None:
    server.cuts = [70_000]
    monkeypatch.setattr("time.sleep", lambda _: signal.raise_signal(signal.SIGINT))
    assert [main(["--to", str(to), "--url", server.url]) for _ in range(2)] == [130, 0]
    assert server.ranges == [None, "bytes=70000-"]
