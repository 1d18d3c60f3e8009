"""Checkpoints written by a thread while training goes on."""

import os
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from breakhis_pl.errors import Stopped, StorageError
from breakhis_pl.files import put_same, written_aside
from breakhis_pl.models.tensor_files import read_tensor_file

_Copies: TypeAlias = dict[str, Tensor]

_NICENESS = 10
"""Of the writing thread: where all cores train, it takes what they leave."""


class BackgroundCheckpointIO(CheckpointIO):
    """Copies the state aside and lets a thread write it; the file is always whole.

    A state that comes while a file is written, or so soon after one that writing would take more than its share of the
    time, waits in memory; a newer one takes its place if it goes into all files that the waiting one goes into. `flush`
    writes what waits, the oldest first.

    A state may go into two files (`storage_options`: a path), the second with the first. A killed process leaves the
    second file as it was before or as the first one is, so whoever knows that the first should be in both can mend it.

    Args:
        share: Of the time that writing may take, in (0, 1]; 1 writes whenever no file is being written.
    """

    def __init__(self, *, share: float = 1.0) -> None:
        self.share = share
        self._not_before = 0.0
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None
        self._waiting: list[_State] = []  # two at most: one for two files, and a newer one for the first of them
        self._spare: list[_Copies] = []  # memory of states that are written or were replaced
        self._is_writing = False

    @property
    def is_busy(self) -> bool:
        """Whether a file is being written."""
        return self._is_writing

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Copies a checkpoint and has it written.

        Args:
            checkpoint: Plain containers and tensors.
            path: The file to make or to replace; its folder must exist.
            storage_options: Path of a second file that is to hold the same; None for none.

        Raises:
            StorageError: If the checkpoint before this one could not be written.
        """
        if self._writing is not None and self._writing.done():
            writing, self._writing = self._writing, None
            writing.result()
        paths = (Path(path), *([] if storage_options is None else [Path(storage_options)]))
        with self._lock:
            try:
                self._take(checkpoint, paths)
            except (KeyboardInterrupt, Stopped):
                self._take(checkpoint, paths)  # for the state that waited has gone
                raise
            if time.monotonic() >= self._not_before:
                self._start_writing()

    def _take(self, checkpoint: Mapping[str, Any], paths: tuple[Path, ...]) -> None:
        """Has a copy of a checkpoint wait, in place of those that it makes needless; under the lock."""
        self._spare += [state.copies for state in self._waiting if set(state.paths) <= set(paths)]
        self._waiting = [state for state in self._waiting if not set(state.paths) <= set(paths)]
        copies = self._spare.pop() if self._spare else {}
        copied = _copied(checkpoint, copies, "")
        copies_done = torch.cuda.current_stream().record_event() if torch.cuda.is_available() else None
        self._waiting.append(_State(copied, paths, copies_done, copies))

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The content of a checkpoint, on the CPU; nothing in the file is run."""
        return read_tensor_file(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Deletes a checkpoint."""
        Path(path).unlink(missing_ok=True)

    def flush(self) -> None:
        """Waits until the newest state is written.

        Raises:
            StorageError: If it, or one before that nobody has asked about, could not be written.
        """
        with self._lock:
            before = self._writing
            if self._waiting:
                self._start_writing()
        writing, self._writing = self._writing, None
        if writing is not None:
            wait([writing])
        for each in (before, writing):
            if each is not None:
                each.result()

    def teardown(self) -> None:
        """Waits, and gives memory and thread back."""
        try:
            self.flush()
        finally:
            self._waiting, self._spare = [], []
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None

    def _start_writing(self) -> None:
        """Has the thread write, unless it does; under the lock."""
        if self._is_writing:
            return
        self._is_writing = True
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint", initializer=_yield_to_training)
        self._writing = self._pool.submit(self._write_what_waits)

    def _write_what_waits(self) -> None:
        try:
            while (state := self._taken()) is not None:
                started = time.monotonic()
                state.write()
                ended = time.monotonic()
                self._not_before = ended + (ended - started) * (1 / self.share - 1)
                with self._lock:
                    self._spare.append(state.copies)
        except BaseException:
            self._is_writing = False
            raise

    def _taken(self) -> "_State | None":
        """The state that waits; None ends the writing."""
        with self._lock:
            if self._waiting:
                return self._waiting.pop(0)
            self._is_writing = False
            return None


@dataclass(frozen=True, slots=True)
class _State:
    """A copied checkpoint, where it goes, when the copies are there, and their memory."""

    content: Any
    paths: tuple[Path, ...]
    copies_done: torch.cuda.Event | None
    copies: _Copies

    def write(self) -> None:
        if self.copies_done is not None:
            self.copies_done.synchronize()
        first, *others = self.paths
        try:
            with written_aside(first, lasting=True) as aside:
                torch.save(self.content, aside)
            for other in others:
                put_same(first, other)
        except (OSError, RuntimeError) as error:  # torch's writer says nothing of a full disk but that it failed
            raise StorageError(
                f"{first} cannot be written ({error}); the checkpoint before it is kept: "
                "make room on the disk, or bring its folder back"
            ) from error


def _copied(value: Any, copies: _Copies, name: str) -> Any:
    """The same containers with copies of their tensors on the host, in memory that is used again."""
    if isinstance(value, Tensor):
        return _copy(value.detach(), copies, name)
    if isinstance(value, Mapping):
        return {key: _copied(part, copies, f"{name}/{key}") for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(part, copies, f"{name}/{place}") for place, part in enumerate(value))
    return value


def _copy(tensor: Tensor, copies: _Copies, name: str) -> Tensor:
    copy = copies.get(name)
    if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
        copy = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        copies[name] = copy
    return copy.copy_(tensor, non_blocking=True)


def _yield_to_training() -> None:
    """Lowers the priority of this thread; Linux has one for each."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
