import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from breakhis_pl.data import download
from breakhis_pl.data.breakhis import PUBLISHED_COUNTS
from breakhis_pl.data.download import main
from tests.data.misbehaving_server import MisbehavingServer, connect_plainly, cut_after, status
from tests.data.tiny_archives import SMALL_TREE, file_member, files_below, published_tree, tar_gz, tree_archive


@pytest.fixture(autouse=True)
def plain_connections(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    connect_plainly(monkeypatch, tmp_path_factory.mktemp("empty"))


@pytest.fixture(scope="module")
def published_archive() -> bytes:
    return tree_archive(published_tree())


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def small_server() -> Iterator[MisbehavingServer]:
    with MisbehavingServer(tree_archive(SMALL_TREE)) as running:
        yield running


def test_the_command_fetches_unpacks_and_checks_all_images_and_then_has_nothing_to_do(
    published_archive: bytes, to: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with MisbehavingServer(published_archive) as server:
        first = main(["--to", str(to), "--url", server.url])
        first_output = capsys.readouterr()
        second = main(["--to", str(to), "--url", server.url])
        second_output = capsys.readouterr()
        n_requests = len(server.ranges)

    assert (first, second) == (0, 0)
    assert n_requests == 1
    assert [path.name for path in to.iterdir()] == ["BreaKHis_v1"]
    assert len(files_below(to)) == sum(PUBLISHED_COUNTS.values()) == 7909
    assert first_output.out.count("CC BY 4.0") == first_output.out.count("doi:10.1109/TBME.2015.2496264") == 1
    assert f"all 7,909 images are in {to / 'BreaKHis_v1'}; train with data.root={to}" in first_output.out
    assert "fetching" in first_output.err
    assert "unpacking" in first_output.err
    assert second_output.out == f"all 7,909 images are below {to} already; nothing to fetch\n"
    assert second_output.err == ""


def test_images_that_are_complete_in_other_folders_are_enough(
    to: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(download, "check_complete", lambda *_: None)
    (to / "train" / "B").mkdir(parents=True)
    (to / "train" / "B" / Path(next(iter(SMALL_TREE))).name).touch()

    assert main(["--to", str(to), "--url", "http://127.0.0.1:9/"]) == 0
    assert "nothing to fetch" in capsys.readouterr().out


def test_the_archive_is_kept_if_asked_for(
    small_server: MisbehavingServer, to: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(download, "check_complete", lambda *_: None)

    assert main(["--to", str(to), "--url", small_server.url, "--keep-archive"]) == 0

    assert (to / "BreaKHis_v1.tar.gz").read_bytes() == small_server.content
    assert "BreaKHis_v1.tar.gz is kept" in capsys.readouterr().out


def test_an_archive_that_was_there_before_is_used_and_kept(
    to: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(download, "check_complete", lambda *_: None)
    to.mkdir()
    (to / "BreaKHis_v1.tar.gz").write_bytes(tree_archive(SMALL_TREE))

    assert main(["--to", str(to), "--url", "http://127.0.0.1:9/"]) == 0

    assert (to / "BreaKHis_v1.tar.gz").exists()
    assert "all 3 images are in" in capsys.readouterr().out


def test_images_elsewhere_below_the_folder_do_not_stop_the_download(small_server: MisbehavingServer, to: Path) -> None:
    (to / "few").mkdir(parents=True)
    (to / "few" / Path(next(iter(SMALL_TREE))).name).touch()

    assert main(["--to", str(to), "--url", small_server.url]) == 1
    assert len(small_server.ranges) == 1


def test_an_incomplete_archive_is_an_error_that_names_the_way_out(
    small_server: MisbehavingServer, to: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--to", str(to), "--url", small_server.url]) == 1

    error = capsys.readouterr().err
    assert "1 of 625" in error  # benign images at 40X
    assert "BreaKHis_v1.tar.gz is not the published archive; nothing was unpacked; remove it, and choose" in error
    assert "run `python -m" not in error
    assert ".unpacking-" not in error
    assert "Traceback" not in error
    assert [path.name for path in to.iterdir()] == ["BreaKHis_v1.tar.gz"]


def test_an_archive_without_images_is_named_without_a_folder_that_is_gone(
    to: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with MisbehavingServer(tar_gz([file_member("BreaKHis_v1/README.txt")])) as server:
        assert main(["--to", str(to), "--url", server.url]) == 1

    last_lines = capsys.readouterr().err.splitlines()[-2:]
    assert last_lines[0] == "no BreaKHis images under BreaKHis_v1"
    assert last_lines[1].startswith(f"{to / 'BreaKHis_v1.tar.gz'} is not the published archive; nothing was unpacked")


def test_an_incomplete_folder_is_left_as_it_is(
    small_server: MisbehavingServer, to: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in SMALL_TREE.items():
        (to / name).parent.mkdir(parents=True)
        (to / name).write_bytes(content)

    assert main(["--to", str(to), "--url", small_server.url]) == 1

    assert f"{to / 'BreaKHis_v1'} is left as it is; move it away" in capsys.readouterr().err
    assert small_server.ranges == []
    assert files_below(to) == SMALL_TREE


@pytest.mark.parametrize(
    "options", [["--url", "file:///etc/passwd"], ["--url", "http://127.0.0.1:9/", "--sha256", "1"]]
)
def test_impossible_options_are_one_line_and_exit_1(
    to: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--to", str(to), *options]) == 1

    error = capsys.readouterr().err
    assert options[-1] in error
    assert error.count("\n") == 1


def test_a_dangerous_archive_is_one_message_and_nothing_outside(to: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MisbehavingServer(tar_gz([file_member("../evil.png")])) as server:
        assert main(["--to", str(to), "--url", server.url]) == 1

    assert "'../evil.png' would lie outside its folder" in capsys.readouterr().err
    assert [path.name for path in to.iterdir()] == ["BreaKHis_v1.tar.gz"]
    assert [path.name for path in to.parent.iterdir()] == ["data"]


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "1e300", "3601", "soon"])
def test_an_impossible_timeout_is_refused(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([f"--timeout={seconds}"])

    assert caught.value.code == 2
    assert f"{seconds} is no number of seconds above 0, at most 3600" in capsys.readouterr().err


def test_help_names_every_option_with_its_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as caught:
        main(["--help"])

    text = capsys.readouterr().out
    assert caught.value.code == 0
    for part in ("--to", "(default: data)", "--url", download.DEFAULT_URL, "--sha256", "--keep-archive", "30.0"):
        assert part in text


def test_the_command_runs_without_torch_and_ends_without_traceback(small_server: MisbehavingServer, to: Path) -> None:
    small_server.answers = [cut_after(100), status(404)]
    code = (
        "import sys; from breakhis_pl.data.download import main; status = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, "--to", str(to), "--url", small_server.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    assert f"{small_server.url}: the server answered 404 Not Found" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_another_process_has_finished_meanwhile_is_not_fetched_again(
    to: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def finished_by_another(folder: Path) -> Iterator[None]:
        for name, content in SMALL_TREE.items():
            (folder / name).parent.mkdir(parents=True)
            (folder / name).write_bytes(content)
        yield

    monkeypatch.setattr(download, "check_complete", lambda *_: None)
    monkeypatch.setattr(download, "only_process", finished_by_another)

    assert main(["--to", str(to), "--url", "http://127.0.0.1:9/"]) == 0
    assert capsys.readouterr().out == f"all 3 images are below {to} already; nothing to fetch\n"


def test_sigterm_means_afterwards_what_it_meant_before(to: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)

    assert main(["--to", str(to), "--url", "file:///etc/passwd"]) == 1

    assert signal.getsignal(signal.SIGTERM) is before


def test_a_thread_that_cannot_set_signals_can_download(
    small_server: MisbehavingServer, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "check_complete", lambda *_: None)
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(main(["--to", str(to), "--url", small_server.url])))
    thread.start()
    thread.join()

    assert statuses == [0]


def test_ctrl_c_is_no_traceback_even_where_the_part_is_out_of_reach(
    to: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def fail(_: Path) -> int:
        raise PermissionError

    monkeypatch.setattr(download, "download_archive", interrupt)
    monkeypatch.setattr(download, "partial_bytes", fail)

    assert main(["--to", str(to)]) == 130
    assert capsys.readouterr().err == "\ninterrupted; the same command goes on\n"
