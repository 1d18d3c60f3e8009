"""The command as a process: stopped, killed, twice at a time, on full disks and in folders that cannot be written."""

import gzip
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from breakhis_pl.data.download import main
from breakhis_pl.data.index import index_images
from breakhis_pl.errors import DataFolderError
from tests.data.misbehaving_server import (
    MisbehavingServer,
    connect_plainly,
    cut_without_length,
    drip,
    stall_after,
    without_length,
)
from tests.data.tiny_archives import files_below, published_tree, tree_archive
from tests.small_disk import on_small_disk

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and locks of POSIX")

NAME = "BreaKHis_v1.tar.gz"
PART, NOTE = f"{NAME}.part", f"{NAME}.part.json"


@pytest.fixture(scope="module")
def tree() -> dict[str, bytes]:
    return published_tree()


@pytest.fixture(scope="module")
def content(tree: dict[str, bytes]) -> bytes:
    """An archive of all images, each one pixel; 16 MB, because it is not compressed."""
    return gzip.compress(gzip.decompress(tree_archive(tree)), compresslevel=0, mtime=0)


@pytest.fixture(autouse=True)
def plain_connections(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    connect_plainly(monkeypatch, tmp_path_factory.mktemp("empty"))


@pytest.fixture
def server(content: bytes) -> Iterator[MisbehavingServer]:
    with MisbehavingServer(content) as running:
        yield running


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def start(to: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts the command; what is still running when the test ends is killed."""
    started: list[subprocess.Popen[str]] = []

    def run(url: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command(to, url), stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield run
    for process in started:
        with process:  # closes its pipes, too
            process.kill()


def command(to: Path | str, url: str) -> list[str]:
    return [sys.executable, "-m", "breakhis_pl.data.download", "--to", str(to), "--url", url]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def wait_until(is_so: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline_s = time.monotonic() + 60
    while not is_so():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def n_fetched(to: Path) -> int:
    return (to / PART).stat().st_size if (to / PART).exists() else 0


def is_unpacking(to: Path) -> bool:
    return any(len(list(folder.rglob("*.png"))) > 50 for folder in to.glob(".BreaKHis_v1.unpacking-*"))


@pytest.mark.parametrize(
    ("stop", "exit_status"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_download_that_is_stopped_keeps_its_part_and_the_same_command_goes_on(
    server: MisbehavingServer,
    to: Path,
    start: Callable[[str], subprocess.Popen[str]],
    tree: dict[str, bytes],
    stop: signal.Signals,
    exit_status: int,
) -> None:
    server.answers = [stall_after(5_000_000)]
    process = start(server.url)
    wait_until(lambda: n_fetched(to) > 4_000_000, process)
    process.send_signal(stop)
    _, error = process.communicate(timeout=60)
    kept = (to / PART).read_bytes()

    assert process.returncode == exit_status
    assert names_in(to) == [PART, NOTE]
    assert kept == server.content[: len(kept)]
    assert f"interrupted; the same command goes on from {len(kept) / 1e6:.3g} MB" in error
    assert "Traceback" not in error
    assert main(["--to", str(to), "--url", server.url]) == 0
    assert server.ranges == [None, f"bytes={len(kept)}-"]
    assert names_in(to) == ["BreaKHis_v1"]
    assert files_below(to) == tree


@pytest.mark.parametrize(("stop", "exit_status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_unpacking_that_is_stopped_leaves_the_archive_alone(
    server: MisbehavingServer,
    to: Path,
    start: Callable[[str], subprocess.Popen[str]],
    stop: signal.Signals,
    exit_status: int,
) -> None:
    process = start(server.url)
    wait_until(lambda: is_unpacking(to), process)
    process.send_signal(stop)
    _, error = process.communicate(timeout=60)

    assert process.returncode == exit_status
    assert error.endswith("\ninterrupted; the same command goes on\n")
    assert names_in(to) == [NAME]
    assert (to / NAME).read_bytes() == server.content


def test_an_unpacking_that_is_killed_never_looks_whole_and_the_next_command_clears_up(
    server: MisbehavingServer,
    to: Path,
    start: Callable[[str], subprocess.Popen[str]],
    tree: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    process = start(server.url)
    wait_until(lambda: is_unpacking(to), process)
    process.kill()
    process.wait(timeout=60)

    assert is_unpacking(to)
    with pytest.raises(DataFolderError, match="no BreaKHis images under"):
        index_images(to, [200])
    assert main(["--to", str(to), "--url", server.url]) == 0
    assert "is from an unpacking that was killed; removing it" in capsys.readouterr().err
    assert server.ranges == [None]
    assert names_in(to) == ["BreaKHis_v1", NAME]
    assert files_below(to / "BreaKHis_v1") == {name.removeprefix("BreaKHis_v1/"): tree[name] for name in tree}


@pytest.mark.slow
def test_a_download_killed_at_ten_random_moments_ends_up_whole(
    server: MisbehavingServer, to: Path, start: Callable[[str], subprocess.Popen[str]], tree: dict[str, bytes]
) -> None:
    rng = random.Random(0)
    server.answers = [drip(50_000, pause_s=0.005)] * 10  # 1.6 s for all
    for _ in range(10):
        before = n_fetched(to)
        process = start(server.url)
        wait_until(lambda before=before: n_fetched(to) != before, process)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.wait(timeout=60)
        part = (to / PART).read_bytes()
        assert part == server.content[: len(part)]
        assert len(part) > before

    assert main(["--to", str(to), "--url", server.url]) == 0
    assert names_in(to) == ["BreaKHis_v1"]
    assert files_below(to) == tree
    assert server.ranges[0] is None
    assert all(wanted is not None for wanted in server.ranges[1:])


def test_a_second_process_is_refused_and_does_not_disturb_the_first(
    server: MisbehavingServer, to: Path, start: Callable[[str], subprocess.Popen[str]], tree: dict[str, bytes]
) -> None:
    server.answers = [stall_after(5_000_000)]
    first = start(server.url)
    wait_until(lambda: n_fetched(to) > 4_000_000, first)

    second = start(server.url)
    _, error = second.communicate(timeout=60)
    server.released.set()
    _, first_error = first.communicate(timeout=60)

    assert second.returncode == 1
    assert error == (
        f"another process is fetching or unpacking in {to}; wait until it has ended, "
        "or choose another folder with --to\n"
    )
    assert first.returncode == 0, first_error
    assert names_in(to) == ["BreaKHis_v1"]
    assert files_below(to) == tree


def test_a_file_size_limit_in_the_midst_keeps_the_part(server: MisbehavingServer, to: Path) -> None:
    """Fails as a full disk does, in the midst of a write, and needs no disk of its own."""
    limited = f"ulimit -f 10000; exec {shlex.join(command(to, server.url))}"
    done = subprocess.run(["/bin/sh", "-c", limited], capture_output=True, text=True, timeout=60, check=False)

    n_kept = n_fetched(to)
    assert done.returncode == 1
    assert f"cannot write {to / NAME} ([Errno 27] File too large" in done.stderr
    assert "the same command goes on" in done.stderr
    assert "Traceback" not in done.stderr
    assert 0 < n_kept < len(server.content)
    assert main(["--to", str(to), "--url", server.url]) == 0
    assert server.ranges == [None, f"bytes={n_kept}-"]


def test_a_full_disk_stops_fetching_and_unpacking_and_the_same_command_goes_on(
    server: MisbehavingServer, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    server.answers = [without_length, cut_without_length(12_000_000)]  # so that nobody knows how much there is to come
    run = shlex.join(command(disk, server.url))
    grow = f"mount -o remount,size={{}} {shlex.quote(str(disk))}"
    look = f"ls -A {shlex.quote(str(disk))}"
    script = "\n".join((run, look, grow.format("20m"), run, look, grow.format("100m"), run, look))

    done = on_small_disk(disk, script, size="8m", cwd=Path.cwd())

    assert done.returncode == 0, done.stderr
    assert done.stderr.count("No space left on device") == 1
    assert done.stderr.count("needed on the disk of") == 1
    assert "Traceback" not in done.stderr
    listings = [line for line in done.stdout.splitlines() if "BreaKHis_v1" in line and " " not in line]
    assert listings == [PART, NOTE, PART, NOTE, "BreaKHis_v1"]
    assert list(disk.iterdir()) == []


def test_a_disk_that_fills_up_while_unpacking_is_left_clean(tmp_path: Path, tree: dict[str, bytes]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    archive = tmp_path / NAME
    archive.write_bytes(tree_archive({name: bytes(5000) for name in tree}))  # 40 MB on a disk of 8 MB
    assert archive.stat().st_size < 2_000_000
    there = shlex.quote(str(disk / NAME))
    run = shlex.join(command(disk, "http://127.0.0.1:9/"))
    script = f"cp {shlex.quote(str(archive))} {there}\n{run}\nstatus=$?\nls -A {shlex.quote(str(disk))}\nexit $status"

    done = on_small_disk(disk, script, size="8m", cwd=Path.cwd())

    assert done.returncode == 1
    assert f"cannot unpack {disk / NAME} into {disk} ([Errno 28] No space left on device" in done.stderr
    assert "nothing was left there" in done.stderr
    assert done.stdout.splitlines()[-1] == NAME


def test_a_folder_that_must_not_be_written_is_one_line(server: MisbehavingServer, to: Path) -> None:
    to.mkdir(mode=0o500)
    done = subprocess.run(
        [*without_root(), *command(to, server.url)], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 1
    assert done.stderr.startswith(f"cannot write in {to} ([Errno 13] Permission denied")
    assert done.stderr.count("\n") == 1
    assert server.ranges == []


def test_a_folder_that_must_not_be_read_is_one_line(server: MisbehavingServer, to: Path) -> None:
    to.mkdir(mode=0o000)
    done = subprocess.run(
        [*without_root(), *command(to, server.url)], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 1
    assert str(to) in done.stderr
    assert "Permission denied" in done.stderr
    assert done.stderr.count("\n") == 1


def test_images_in_a_folder_that_must_not_be_written_are_enough(to: Path, tree: dict[str, bytes]) -> None:
    for name in tree:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        (to / name).touch()
    to.chmod(0o500)
    try:
        done = subprocess.run(
            [*without_root(), *command(to, "http://127.0.0.1:9/")],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        to.chmod(0o700)

    assert (done.returncode, done.stderr) == (0, "")
    assert "all 7,909 images are below" in done.stdout


def test_a_folder_whose_name_is_no_text_is_written_as_an_escape(tmp_path: Path, tree: dict[str, bytes]) -> None:
    to = tmp_path / os.fsdecode(b"\xff")
    for name in tree:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        (to / name).touch()

    done = subprocess.run(
        command(to, "http://127.0.0.1:9/"),
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
    )

    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"images are below " + bytes(tmp_path) + rb"/\udcff already" in done.stdout


def without_root() -> list[str]:
    """What to put before a command so that it has no more rights than other users."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root may write everywhere, and there is no setpriv to do without that")
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
