import errno
import os
import sys
from pathlib import Path

import pytest

from breakhis_pl.data.lock import LOCK_NAME, only_process
from breakhis_pl.errors import DownloadError

if sys.platform == "win32":
    pytest.skip("locks of POSIX", allow_module_level=True)

import fcntl


def test_the_folder_is_made_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"

    with only_process(folder):
        assert [path.name for path in folder.iterdir()] == [LOCK_NAME]

    assert list(folder.iterdir()) == []


def test_the_second_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    with only_process(tmp_path):
        for _ in range(2):
            with (
                pytest.raises(DownloadError, match=f"another process is .* in {tmp_path}; wait"),
                only_process(tmp_path),
            ):
                pass
        assert (tmp_path / LOCK_NAME).exists()

    with only_process(tmp_path):
        pass


def test_an_error_inside_lets_go(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), only_process(tmp_path):
        raise KeyboardInterrupt

    with only_process(tmp_path):
        pass


def test_a_file_that_a_killed_process_left_locks_nobody_out(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).touch()

    with only_process(tmp_path):
        pass

    assert list(tmp_path.iterdir()) == []


def test_a_lock_on_a_file_that_is_gone_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ends, and removes its file, between the second's opening and locking of it."""
    flock, n_locks = fcntl.flock, 0

    def remove_and_lock(file: int, operation: int) -> None:
        nonlocal n_locks
        n_locks += 1
        if n_locks == 1:
            (tmp_path / LOCK_NAME).unlink()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", remove_and_lock)

    with only_process(tmp_path):
        assert n_locks == 2
        with pytest.raises(DownloadError, match="another process"), only_process(tmp_path):
            pass


def test_a_file_system_without_locks_is_named_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fail)
    said: list[str] = []

    with only_process(tmp_path, say=said.append):
        pass

    assert said == [
        f"{tmp_path / LOCK_NAME} cannot be locked (No locks available); "
        f"see to it that no other process works in {tmp_path}"
    ]


def test_another_fault_of_locking_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", fail)

    with (
        pytest.raises(DownloadError, match=rf"cannot write in {tmp_path} .*Input/output error"),
        only_process(tmp_path),
    ):
        pass


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    def n_open() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    if not Path("/proc/self/fd").exists():
        pytest.skip("descriptors are counted in /proc")
    before = n_open()
    with only_process(tmp_path):
        for _ in range(5):
            with pytest.raises(DownloadError, match="another process"), only_process(tmp_path):
                pass
    assert n_open() == before
