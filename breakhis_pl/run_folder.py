"""The folder of a run: its paths, run.json, its lock, and files that are written atomically."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from breakhis_pl.config import TrainConfig, flatten, plain
from breakhis_pl.errors import ConfigurationError, RunFolderError, join_truncated

RUN_JSON = "run.json"
REPORT_PAGE = "report.html"
RESUME_KEYS = (
    "trainer.max_epochs",
    "trainer.progress_bar",
    "trainer.strategy",
    "trainer.devices",
    "trainer.num_nodes",
    "data.root",
    "data.table",
    "data.cache_dir",
    "logger",
)
"""Keys that may change when a run is resumed: none of them changes what an epoch computes in one process."""


class RunRecord(BaseModel):
    """Content of run.json: what a run is, from before its first step to its end."""

    status: Literal["running", "finished", "failed", "pruned"]
    error: str | None = None
    command: str
    started: str
    resumed: list[str] = []
    finished: str | None = None
    seconds: dict[str, float | None] | None = None
    package_version: str | None = None
    commit: str | None = None
    uncommitted_changes: bool | None = None
    versions: dict[str, str] = {}
    config: dict[str, Any]
    data: dict[str, Any] = {}
    model: dict[str, Any] = {}
    device: str | None = None
    precision: str | None = None
    no_cuda_graph: str | None = None
    torch_threads: int | None = None
    selection: dict[str, Any] | None = None
    run_ids: dict[str, str] = {}


class RunFolder:
    """Paths of the files of a run.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_json = path / RUN_JSON
        self.split_csv = path / "split.csv"
        self.history_csv = path / "history.csv"
        self.curves_png = path / "curves.png"
        self.calibration_json = path / "calibration.json"
        self.ood_npz = path / "ood.npz"
        self.report_page = path / REPORT_PAGE
        self.checkpoints = path / "checkpoints"
        self.last_checkpoint = self.checkpoints / "last.ckpt"
        self.best_checkpoint = self.checkpoints / "best.ckpt"

    def selected_checkpoint(self) -> Path:
        """Return the checkpoint whose results count: best.ckpt if there is one, else last.ckpt."""
        return self.best_checkpoint if self.best_checkpoint.is_file() else self.last_checkpoint

    def checkpoint(self, name: str) -> Path:
        """Return a checkpoint by name or path.

        Args:
            name: "auto", "best", "last", or a path.

        Raises:
            RunFolderError: If it does not exist.
        """
        named = {"auto": self.selected_checkpoint(), "best": self.best_checkpoint, "last": self.last_checkpoint}
        path = named.get(name, Path(name).expanduser())
        if not path.is_file():
            raise RunFolderError(f"checkpoint={name}: {path} is not a file; let the run finish an epoch")
        return path

    def read(self) -> RunRecord:
        """Read run.json.

        Raises:
            RunFolderError: If there is none, or it is damaged.
        """
        if not self.run_json.is_file():
            what = (
                "holds no run.json" if self.path.is_dir() else "is a file" if self.path.exists() else "does not exist"
            )
            raise RunFolderError(f"{self.path}: {what}; name a run folder that train.py wrote, below outputs/")
        try:
            return RunRecord.model_validate_json(self.run_json.read_bytes())
        except ValidationError as error:
            raise RunFolderError(f"{self.run_json}: is damaged ({error.errors()[0]['msg']})") from error

    def write(self, record: RunRecord) -> None:
        """Write run.json."""
        text = json.dumps(record.model_dump(mode="json"), indent=2, ensure_ascii=False)
        write_text(self.run_json, f"{text}\n")


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Keep every other process from writing a run folder until the block ends.

    Raises:
        RunFolderError: If another process writes there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise RunFolderError(f"{folder}: another process is writing it; wait until it has ended") from None


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which it replaces if the block ends without an error.

    Raises:
        OSError: If it cannot be written; the file name is `path` if the error has none.
    """
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.errno is not None:  # the error of a full disk names no file
            error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new temporary folder beside `path`, which it replaces if the block ends without an error.

    If another process has made `path` in the meantime, that one stays.

    Raises:
        OSError: If it cannot be written; the file name is `path` if the error has none.
    """
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if not path.exists():
            try:
                temporary.replace(path)
            except OSError:
                if not path.exists():
                    raise
    except OSError as error:
        if error.errno is not None:  # the error of a full disk names no file
            error.filename = error.filename or str(path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically; a loss of power leaves the old file or the new one."""
    with (
        atomic_write(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def check_epochs(folder: Path, stored: TrainConfig, asked: TrainConfig) -> None:
    """Check that a run may be resumed with another number of epochs.

    Raises:
        ConfigurationError: If its schedule was made for the old number.
    """
    n_stored, n_asked = stored.trainer.max_epochs, asked.trainer.max_epochs
    if n_asked != n_stored and hasattr(stored.scheduler, "T_max"):
        raise ConfigurationError(
            f"trainer.max_epochs={n_asked}: the schedule of {folder} is for {n_stored} epochs (scheduler.T_max); "
            "start a new run"
        )


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Say which values of two flat configurations differ.

    Example:
        >>> differences({"seed": 0, "data.fold": 2}, {"seed": 1, "data.fold": 2})
        ['seed (0 there, 1 here)']
    """
    keys = [key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]
    return [f"{key} ({there.get(key)} there, {here.get(key)} here)" for key in keys]


def check_same_run(folder: Path, stored: TrainConfig, asked: TrainConfig) -> None:
    """Check that the run in a folder has the configuration that a command asks for, so that it can be resumed.

    Raises:
        RunFolderError: If it has another one, with the keys that differ.
    """
    there, here = (
        {key: value for key, value in flatten(plain(config)).items() if not key.startswith(RESUME_KEYS)}
        for config in (stored, asked)
    )
    differing = differences(there, here)
    if differing:
        raise RunFolderError(f"{folder}: holds another run: {join_truncated(differing)}; choose another folder")
    check_epochs(folder, stored, asked)


def check_same_images(
    record: RunRecord, folder: Path, *, split_checksum: str, pixels_checksum: str, description: str
) -> None:
    """Check that images and split are those a run was trained on.

    Args:
        record: The run's run.json.
        folder: The run folder.
        split_checksum: Checksum of the split that is used now.
        pixels_checksum: Checksum of the decoded images.
        description: Counts of these images.

    Raises:
        RunFolderError: If they are not.
    """
    if record.data["split_checksum"] != split_checksum:
        raise RunFolderError(
            f"data.root: the images are not those of {folder} ({record.data['description']}; here {description})"
        )
    if record.data["pixels_checksum"] != pixels_checksum:
        raise RunFolderError(f"data.root: the images have the names of those of {folder}, but other pixels")
