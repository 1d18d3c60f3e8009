"""Checkpoints written by a thread while training goes on."""

import os
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from breakhis_pl.files import written_aside

_NICENESS = 10
"""Of the writing thread: where all cores train, it takes what they leave."""


class BackgroundCheckpointIO(CheckpointIO):
    """Copies the state aside and lets a thread write it; the file is always whole.

    The copies are made into the same memory every time, so one file is written at a time: `is_busy` tells, and a
    second `save_checkpoint` waits.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None
        self._copies: dict[str, Tensor] = {}

    @property
    def is_busy(self) -> bool:
        """Whether a file is being written."""
        return self._writing is not None and not self._writing.done()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Copies a checkpoint and has it written.

        Args:
            checkpoint: Plain containers and tensors.
            path: The file to make or to replace; its folder must exist.
            storage_options: Not used.

        Raises:
            OSError: If the checkpoint before this one could not be written.
        """
        self.flush()
        copied = self._copied(checkpoint, "")
        device = torch.cuda.current_stream() if torch.cuda.is_available() else None
        copies_done = device.record_event() if device is not None else None
        self._pool = self._pool or ThreadPoolExecutor(
            1, thread_name_prefix="checkpoint", initializer=_yield_to_training
        )
        self._writing = self._pool.submit(_write, copied, Path(path), copies_done)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The content of a checkpoint, on the CPU; nothing in the file is run."""
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return content

    def remove_checkpoint(self, path: str | Path) -> None:
        """Deletes a checkpoint."""
        Path(path).unlink(missing_ok=True)

    def flush(self) -> None:
        """Waits until the file is written.

        Raises:
            OSError: If it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def teardown(self) -> None:
        """Waits, and gives memory and thread back."""
        try:
            self.flush()
        finally:
            self._copies.clear()
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None

    def _copied(self, value: Any, name: str) -> Any:
        """The same containers with copies of their tensors on the host."""
        if isinstance(value, Tensor):
            return self._copy(value.detach(), name)
        if isinstance(value, Mapping):
            return {key: self._copied(part, f"{name}/{key}") for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [self._copied(part, f"{name}/{place}") for place, part in enumerate(value)]
        return value

    def _copy(self, tensor: Tensor, name: str) -> Tensor:
        copy = self._copies.get(name)
        if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
            copy = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            self._copies[name] = copy
        return copy.copy_(tensor, non_blocking=True)


def _write(content: dict[str, Any], path: Path, copies_done: torch.cuda.Event | None) -> None:
    if copies_done is not None:
        copies_done.synchronize()
    with written_aside(path) as aside:
        torch.save(content, aside)


def _yield_to_training() -> None:
    """Lowers the priority of this thread; Linux has one for each."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
