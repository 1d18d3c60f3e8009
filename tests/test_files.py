import errno
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from breakhis_pl import files
from breakhis_pl.files import (
    clear_leftovers,
    folder_aside,
    force_to_disk,
    open_file,
    put_in_place,
    write_text,
    written_aside,
)


def leftover(folder: Path, *, name: str = "a.ckpt", place: str | None = None, process: int, age_s: float = 0) -> Path:
    """What a process leaves that is killed while it makes a file."""
    path = folder / f".{name}-{files._place() if place is None else place}-{process}-01234567"
    path.touch()
    moment = time.time() - age_s
    os.utime(path, (moment, moment))
    return path


@pytest.fixture
def ended() -> int:
    """Number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_what_is_made_aside_says_whose_it_is(tmp_path: Path) -> None:
    with written_aside(tmp_path / "a.ckpt") as aside:
        match = files._ASIDE.fullmatch(aside.name)
        assert match is not None
        assert (match["name"], match["place"], match["process"]) == ("a.ckpt", files._place(), str(os.getpid()))
        aside.touch()
        clear_leftovers(tmp_path, of="*")
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody can tell whether a process has ended")
def test_leftovers_of_ended_processes_go_and_all_others_stay(tmp_path: Path, ended: int) -> None:
    gone = {
        leftover(tmp_path, process=ended),
        leftover(tmp_path, name="old.ckpt", place="89abcdef", process=1, age_s=90_000),
    }
    link = leftover(tmp_path, name="link.ckpt", process=ended)
    link.unlink()
    link.symlink_to(tmp_path)
    stay = {
        leftover(tmp_path, process=os.getpid()),
        leftover(tmp_path, process=1),
        leftover(tmp_path, place="89abcdef", process=ended),  # of another machine or container
        leftover(tmp_path, place="0" * 8, process=ended),  # of nobody knows where
        leftover(tmp_path, place="0" * 8, process=ended, age_s=80_000),
        leftover(tmp_path, name="b.txt", process=ended),
        tmp_path / ".a.ckpt-hand-made",
        tmp_path / "a.ckpt",
    }
    for path in stay:
        path.touch() if not path.exists() else None

    clear_leftovers(tmp_path, of="*.ckpt")

    assert set(tmp_path.iterdir()) == stay
    assert not any(path.exists() for path in gone)


def test_a_folder_in_which_anything_changed_today_stays(tmp_path: Path) -> None:
    paths = [tmp_path / f".32px-a-89abcdef-7-0123456{number}" for number in range(2)]
    for path in paths:
        (path / "deep").mkdir(parents=True)
        (path / "deep" / "pixels.npy").touch()
        for each in (path / "deep" / "pixels.npy", path / "deep", path):
            os.utime(each, (1, 1))
    os.utime(paths[1] / "deep" / "pixels.npy")

    clear_leftovers(tmp_path, of="*px-*")

    assert list(tmp_path.iterdir()) == [paths[1]]
    clear_leftovers(tmp_path / "nowhere", of="*")


def test_no_process_is_asked_where_numbers_mean_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_place", lambda: "0" * 8)
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("on Windows this would end the process"))
    path = leftover(tmp_path, process=os.getpid())

    clear_leftovers(tmp_path, of="*")

    assert path.exists()


def filled(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "content").write_text(text)
    return folder


@pytest.mark.parametrize("in_place", ["nothing", "damaged", "a file", "a link to nowhere"])
def test_a_folder_takes_the_place_of_what_is_not_whole(tmp_path: Path, in_place: str) -> None:
    place = tmp_path / "place"
    match in_place:
        case "damaged":
            filled(place, "old")
        case "a file":
            place.touch()
        case "a link to nowhere":
            place.symlink_to("nowhere")
    put_in_place(filled(tmp_path / "new", "new"), place, is_whole=lambda: False)
    assert (place / "content").read_text() == "new"
    assert list(tmp_path.iterdir()) == [place]


def test_a_whole_folder_stays_in_its_place(tmp_path: Path) -> None:
    place, new = filled(tmp_path / "place", "old"), filled(tmp_path / "new", "new")
    put_in_place(new, place, is_whole=lambda: True)
    assert (place / "content").read_text() == "old"


def test_a_folder_that_others_keep_filling_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, new = filled(tmp_path / "place", "old"), filled(tmp_path / "new", "new")
    rmtree = shutil.rmtree

    def refill(folder: Path, **options: bool) -> None:
        rmtree(folder, **options)
        filled(place, "old")

    monkeypatch.setattr(shutil, "rmtree", refill)
    with pytest.raises(OSError, match=r"other processes keep replacing it.*place"):
        put_in_place(new, place, is_whole=lambda: False)


def test_a_folder_that_has_gone_cannot_be_put_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        put_in_place(tmp_path / "gone", tmp_path / "place", is_whole=lambda: False)
    with folder_aside(tmp_path / "place") as aside:
        aside.rmdir()
    assert list(tmp_path.iterdir()) == []


def test_pipes_and_folders_are_no_files_to_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"content")
    with open_file(tmp_path / "file") as file:
        assert file.read() == b"content"
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match="no regular file"):
            open_file(path)


def test_what_is_to_last_is_forced_onto_the_disk_before_and_after_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced: list[tuple[str, str | None]] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        there = (tmp_path / "a.txt").read_text() if (tmp_path / "a.txt").exists() else None
        forced.append(("folder" if path == tmp_path else path.read_text(), there))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    write_text(tmp_path / "a.txt", "old")
    assert forced == []
    write_text(tmp_path / "a.txt", "new", lasting=True)
    assert forced == [("new", "old"), ("folder", "new")]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EINVAL])
def test_a_disk_that_cannot_take_a_file_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refused(_: int) -> None:
        raise OSError(number, os.strerror(number))

    write_text(tmp_path / "a.txt", "old")
    monkeypatch.setattr(os, "fsync", refused)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        write_text(tmp_path / "a.txt", "new", lasting=True)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_folders_that_cannot_be_forced_are_left_to_their_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refused)
    number = errno.EINVAL
    force_to_disk(tmp_path)
    number = errno.EIO
    with pytest.raises(OSError, match=re.escape(os.strerror(errno.EIO))):
        force_to_disk(tmp_path)
    monkeypatch.setattr("sys.platform", "win32")
    force_to_disk(tmp_path)
