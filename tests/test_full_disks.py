"""Trainings on disks that fill up, in folders that must not be written, through the commands."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch

from breakhis_pl.training.history import History
from tests.conftest import REPOSITORY
from tests.programs import TINY, run_program
from tests.small_disk import on_small_disk

if sys.platform == "win32":
    pytest.skip("disks and rights of POSIX", allow_module_level=True)


def test_a_disk_that_fills_up_stops_the_run_and_keeps_its_checkpoint(drawn_cache: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    train = [sys.executable, str(REPOSITORY / "train.py")]
    arguments = (*TINY, f"data.cache_dir={drawn_cache}", "trainer=cpu", "trainer.max_epochs=2", "gallery=0")
    first = shlex.join([*train, *arguments, f"hydra.run.dir={disk / 'run'}"])
    resume = shlex.join([*train, f"resume={disk / 'run'}"])
    script = "\n".join(
        (
            f"{first}; echo status $?",  # the second checkpoint has no room beside the first
            f"ls -A {disk / 'run' / 'checkpoints'}; cp {disk / 'run' / 'run.json'} .",
            f"cp {disk / 'run' / 'checkpoints' / 'last.ckpt'} .",
            f"mount -o remount,size=600m {disk}",
            f"{resume}; echo status $?",
            f"cp {disk / 'run' / 'test' / 'predictions.csv'} .",
        )
    )
    done = on_small_disk(disk, script, size="200m", cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr or "cannot be written" in done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("status")] == ["status 1", "status 0"]
    assert "last.ckpt" in lines
    assert not [line for line in lines if line.startswith(".last.ckpt")]
    assert torch.load(tmp_path / "last.ckpt")["epoch"] == 0
    assert json.loads((tmp_path / "run.json").read_text())["status"] in {"failed", "running"}

    outcome = run_program("train", *arguments, "hydra.run.dir=whole", cwd=tmp_path)
    assert outcome.status == 0
    whole = tmp_path / "whole" / "test" / "predictions.csv"
    assert (tmp_path / "predictions.csv").read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("place", ["history.csv", pytest.param("curves.png", marks=pytest.mark.slow), "test"])
def test_a_file_that_cannot_be_written_in_the_midst_is_named(
    drawn_cache: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def refused(path: Path, target: Path) -> Path:
        if place in Path(target).parts:
            raise OSError(30, "Read-only file system", str(target))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refused)
    arguments = (*TINY, f"data.cache_dir={drawn_cache}", "trainer=cpu", "trainer.max_epochs=1", "gallery=0")
    outcome = run_program("train", *arguments, "hydra.run.dir=run", cwd=tmp_path)
    assert outcome.status == 1
    assert f"{place}" in outcome.err
    assert "Read-only file system; what was finished before is kept: mend that, then resume=" in outcome.err
    assert "Traceback" not in outcome.err
    monkeypatch.undo()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
    assert run_program("train", "resume=run", cwd=tmp_path).status == 0


def test_a_run_folder_that_must_not_be_written_is_known_before_the_work(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    disk = tmp_path / "disk"
    disk.mkdir()
    evaluate = shlex.join([sys.executable, str(REPOSITORY / "evaluate.py"), "run=run", "hydra.run.dir=disk/elsewhere"])
    done = on_small_disk(
        disk, f"mount --bind run run\nmount -o remount,bind,ro run\n{evaluate}", size="8m", cwd=tmp_path
    )
    assert done.returncode == 1, done.stderr
    assert "cannot write in run (Read-only file system)" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_folder_that_vanishes_is_named(
    drawn_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = History.write_table

    def vanish(history: History) -> None:
        if len(history.rows) == 2:
            history.folder.rename(tmp_path / "elsewhere")
        write(history)

    monkeypatch.setattr(History, "write_table", vanish)
    arguments = (*TINY, f"data.cache_dir={drawn_cache}", "trainer=cpu", "trainer.max_epochs=3", "gallery=0")
    outcome = run_program("train", *arguments, "hydra.run.dir=run", cwd=tmp_path)
    assert outcome.status == 1
    assert str(tmp_path / "run") in outcome.err
    assert "is kept" in outcome.err
    assert "Traceback" not in outcome.err
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    (tmp_path / "elsewhere").rename(tmp_path / "run")
    assert run_program("train", "resume=run", cwd=tmp_path).status == 0
