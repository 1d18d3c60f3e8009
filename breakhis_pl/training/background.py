"""Checkpoints written by a thread while training goes on."""

import os
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from breakhis_pl.errors import StorageError
from breakhis_pl.files import written_aside
from breakhis_pl.models.tensor_files import read_tensor_file

_Copies: TypeAlias = dict[str, Tensor]

_NICENESS = 10
"""Of the writing thread: where all cores train, it takes what they leave."""


class BackgroundCheckpointIO(CheckpointIO):
    """Copies the state aside and lets a thread write it; the file is always whole.

    A state that comes while a file is written, or so soon after one that writing would take more than its share of the
    time, waits in memory; a newer one takes its place. `flush` writes what waits.

    Args:
        share: Of the time that writing may take, in (0, 1]; 1 writes whenever no file is being written.
    """

    def __init__(self, *, share: float = 1.0) -> None:
        self.share = share
        self._not_before = 0.0
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None
        self._waiting: _State | None = None
        self._copies: tuple[_Copies, _Copies] = ({}, {})  # of the state that is written, and of the one that waits
        self._in_use = 0
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
            storage_options: Not used.

        Raises:
            StorageError: If the checkpoint before this one could not be written.
        """
        if self._writing is not None and self._writing.done():
            writing, self._writing = self._writing, None
            writing.result()
        with self._lock:
            copied = _copied(checkpoint, self._copies[1 - self._in_use], "")
            copies_done = torch.cuda.current_stream().record_event() if torch.cuda.is_available() else None
            self._waiting = _State(copied, Path(path), copies_done)
            if time.monotonic() >= self._not_before:
                self._start_writing()

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
            StorageError: If it could not be written.
        """
        with self._lock:
            if self._waiting is not None:
                self._start_writing()
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def teardown(self) -> None:
        """Waits, and gives memory and thread back."""
        try:
            self.flush()
        finally:
            self._copies = ({}, {})
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
        except BaseException:
            self._is_writing = False
            raise

    def _taken(self) -> "_State | None":
        """The state that waits; None ends the writing."""
        with self._lock:
            state, self._waiting = self._waiting, None
            if state is None:
                self._is_writing = False
            else:
                self._in_use = 1 - self._in_use
            return state


@dataclass(frozen=True, slots=True)
class _State:
    """A copied checkpoint, where it goes, and when the copies are there."""

    content: Any
    path: Path
    copies_done: torch.cuda.Event | None

    def write(self) -> None:
        if self.copies_done is not None:
            self.copies_done.synchronize()
        try:
            with written_aside(self.path, lasting=True) as aside:
                torch.save(self.content, aside)
        except (OSError, RuntimeError) as error:  # torch's writer says nothing of a full disk but that it failed
            raise StorageError(
                f"{self.path} cannot be written ({error}); the checkpoint before it is kept: "
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
