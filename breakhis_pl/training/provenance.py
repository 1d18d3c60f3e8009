"""run.json: what a run was, from before its first step to its end."""

import contextlib
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch

from breakhis_pl.files import write_text
from breakhis_pl.run_json import RUN_JSON

_PACKAGES = ("torchvision", "lightning", "torchmetrics", "hydra-core", "omegaconf", "numpy", "pillow")


class RunRecord:
    """The run.json of a run, written anew with every change of its status.

    Args:
        folder: The run folder.
        facts: What is known before the first step: configuration, data, model, device.
        before: What the file held, where a run goes on; None for a new one.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], *, before: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        command, now = shlex.join(["python", *sys.argv]), _now()
        self.content: dict[str, Any] = {
            "status": "running",
            "error": None,
            "command": command if before is None else before.get("command"),
            "started": now if before is None else before.get("started"),
            "resumed": [] if before is None else [*before.get("resumed", []), now],
            "finished": None,
            "seconds": None,
            **source_state(),
            "versions": versions(),
            **facts,
        }
        self.write()

    def finish(self, *, seconds_total: float, seconds_training: float, **facts: Any) -> None:
        """Says that the run is complete; how long it took in all is not known of one that was cut and went on."""
        total = None if self.content["resumed"] else round(seconds_total, 3)
        seconds = {"total": total, "training": round(seconds_training, 3)}
        self.content |= {"status": "finished", "finished": _now(), "seconds": seconds, **facts}
        self.write()

    def fail(self, reason: str, *, status: Literal["failed", "pruned"] = "failed") -> None:
        """Says that the run ended early, and why, if it can be written; the reason itself is raised elsewhere."""
        self.content |= {"status": status, "error": reason, "finished": _now()}
        with contextlib.suppress(OSError):
            self.write()

    def write(self) -> None:
        """Writes the file; bytes of names that are no text become JSON's escapes."""
        content = json.dumps(self.content, indent=2, ensure_ascii=False) + "\n"
        write_text(self.folder / RUN_JSON, content, errors="backslashreplace", lasting=True)


def source_state() -> dict[str, Any]:
    """Version of the package, and the commit it was run from; null where that is no git checkout."""
    folder = Path(__file__).resolve().parent
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {
        "package_version": _package_version(),
        "commit": commit,
        "uncommitted_changes": None if changes is None else changes != "",
    }


def _package_version() -> str | None:
    """None where the checkout is used without being installed."""
    try:
        return metadata.version("breakhis-pl")
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    packages = {name: metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "torch": torch.__version__, **packages}


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command on the checkout that holds a folder; None if there is no git or no checkout."""
    try:
        answer = subprocess.run(  # noqa: S603 - fixed arguments
            ["git", "-C", str(folder), *arguments],  # noqa: S607 - whichever git the user has
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
