import threading
from pathlib import Path

import pytest
import torch

from breakhis_pl.errors import Stopped, StorageError
from breakhis_pl.training import background
from breakhis_pl.training.background import BackgroundCheckpointIO


@pytest.fixture
def writer() -> BackgroundCheckpointIO:
    return BackgroundCheckpointIO()


def test_what_is_written_is_the_state_of_the_moment_it_was_given(
    writer: BackgroundCheckpointIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, save = threading.Event(), torch.save
    monkeypatch.setattr(background.torch, "save", lambda *arguments: (gate.wait(10), save(*arguments)))
    weights = torch.zeros(3)
    writer.save_checkpoint({"weights": weights, "states": [{"step": torch.tensor(1)}], "epoch": 0}, tmp_path / "a.ckpt")
    assert writer.is_busy
    weights += 1  # training goes on
    assert not (tmp_path / "a.ckpt").exists()
    gate.set()
    writer.flush()
    assert not writer.is_busy
    content = writer.load_checkpoint(tmp_path / "a.ckpt")
    assert content["weights"].tolist() == [0, 0, 0]
    assert (content["states"][0]["step"].item(), content["epoch"]) == (1, 0)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.ckpt"]
    writer.teardown()


def test_while_a_file_is_written_the_newest_state_waits(
    writer: BackgroundCheckpointIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, save, written = threading.Event(), torch.save, []

    def slow(content: dict[str, torch.Tensor], path: Path) -> None:
        gate.wait(10)
        written.append(content["epoch"].tolist())
        save(content, path)

    monkeypatch.setattr(background.torch, "save", slow)
    epoch = torch.zeros(2)
    for _ in range(5):
        epoch += 1
        writer.save_checkpoint({"epoch": epoch}, tmp_path / "a.ckpt")
        while writer._waiting and not written and epoch[0] == 1:
            pass  # until the thread has taken the first
    gate.set()
    writer.flush()
    assert written == [[1, 1], [5, 5]]
    assert writer.load_checkpoint(tmp_path / "a.ckpt")["epoch"].tolist() == [5, 5]
    writer.teardown()


def test_writing_takes_no_more_than_its_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, save, written = [100.0], torch.save, []

    def slow(content: dict[str, int], path: Path) -> None:
        now[0] += 1.0
        written.append(content["epoch"])
        save(content, path)

    monkeypatch.setattr(background.torch, "save", slow)
    monkeypatch.setattr(background.time, "monotonic", lambda: now[0])
    writer = BackgroundCheckpointIO(share=0.1)
    for epoch in range(30):
        writer.save_checkpoint({"epoch": epoch}, tmp_path / "a.ckpt")
        while writer.is_busy:
            pass
        now[0] += 1.0
    assert written == [0, 9, 18, 27]  # a second of ten
    writer.flush()
    assert written[4:] == [29]
    writer.teardown()


def test_states_of_other_shapes_follow_each_other(writer: BackgroundCheckpointIO, tmp_path: Path) -> None:
    for value in (torch.arange(3), torch.arange(4), torch.arange(4).double(), torch.ones((2, 3)).t()):
        writer.save_checkpoint({"value": value}, tmp_path / "a.ckpt")
        writer.flush()
        found = writer.load_checkpoint(tmp_path / "a.ckpt")["value"]
        assert torch.equal(found, value)
        assert found.dtype == value.dtype
    writer.teardown()


def test_a_file_that_cannot_be_written_is_said_at_the_next_moment(
    writer: BackgroundCheckpointIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.save_checkpoint({"value": 1}, tmp_path / "a.ckpt")
    writer.flush()

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(background.torch, "save", full_disk)
        writer.save_checkpoint({"value": 2}, tmp_path / "a.ckpt")
        with pytest.raises(StorageError, match=r"a\.ckpt cannot be written .*No space left.*the checkpoint before it"):
            writer.flush()
    assert writer.load_checkpoint(tmp_path / "a.ckpt") == {"value": 1}
    assert list(tmp_path.iterdir()) == [tmp_path / "a.ckpt"]
    writer.teardown()


@pytest.mark.parametrize("end", [KeyboardInterrupt, Stopped])
def test_a_signal_while_a_state_is_copied_costs_no_state(
    end: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, copied, signals = BackgroundCheckpointIO(), background._copied, [end("SIGTERM")]
    writer._not_before = float("inf")  # everything waits

    def interrupted(value: object, copies: dict[str, torch.Tensor], name: str) -> object:
        if name == "/value" and signals:
            raise signals.pop()
        return copied(value, copies, name)

    writer.save_checkpoint({"value": 1}, tmp_path / "a.ckpt")
    monkeypatch.setattr(background, "_copied", interrupted)
    with pytest.raises(end):
        writer.save_checkpoint({"value": 2}, tmp_path / "a.ckpt")
    writer.teardown()
    assert writer.load_checkpoint(tmp_path / "a.ckpt") == {"value": 2}


def test_a_failure_that_nobody_has_asked_about_is_said_after_the_newest_state_is_written(
    writer: BackgroundCheckpointIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    gate, save = threading.Event(), torch.save
    monkeypatch.setattr(background.torch, "save", lambda *_: (gate.wait(10), full_disk()))
    writer.save_checkpoint({"value": 1}, tmp_path / "a.ckpt", storage_options=tmp_path / "b.ckpt")
    writer.save_checkpoint({"value": 2}, tmp_path / "a.ckpt")
    gate.set()
    while writer.is_busy:
        pass
    monkeypatch.setattr(background.torch, "save", save)
    with pytest.raises(StorageError, match=r"a\.ckpt cannot be written"):
        writer.flush()
    assert writer.load_checkpoint(tmp_path / "a.ckpt") == {"value": 2}
    writer.teardown()


def test_the_thread_that_writes_gives_way_to_training(writer: BackgroundCheckpointIO, tmp_path: Path) -> None:
    import os
    import sys

    if sys.platform != "linux":
        pytest.skip("threads have no priority of their own")
    writer.save_checkpoint({"value": 1}, tmp_path / "a.ckpt")
    writer.flush()
    names = {thread.name: thread.native_id for thread in threading.enumerate()}
    (thread,) = (native for name, native in names.items() if name.startswith("checkpoint"))
    assert thread is not None
    assert os.getpriority(os.PRIO_PROCESS, thread) > os.getpriority(os.PRIO_PROCESS, 0)
    writer.teardown()
