"""Origin of a run: command, commit, versions."""

import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

PACKAGES = ("torchvision", "lightning", "torchmetrics", "hydra-core", "omegaconf", "numpy", "pillow", "scikit-learn")


def command_line() -> str:
    """Return the command that repeats this run in a new folder, ready to paste; of a sweep, that of the one run."""
    arguments = sys.argv[1:]
    if HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN:
        arguments = list(HydraConfig.get().overrides.task)
    arguments = [each for each in arguments if not each.startswith(("hydra.run.dir=", "hydra.sweep.dir="))]
    return shlex.join(["uv", "run", Path(sys.argv[0]).name, *arguments])


def now() -> str:
    """Return the time in ISO format, UTC, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def source_state() -> dict[str, Any]:
    """Return version of the package and commit of its checkout; null if it does not lie in its own."""
    root = Path(__file__).resolve().parents[2]
    top = _git(root, "rev-parse", "--show-toplevel")
    is_own = top is not None and Path(top).resolve() == root  # the project may lie unpacked in another repository
    is_installed = any(True for _ in metadata.distributions(name="breakhis-pl"))  # a checkout may be used without
    changes = _git(root, "status", "--porcelain", "--untracked-files=no") if is_own else None
    return {
        "package_version": metadata.version("breakhis-pl") if is_installed else None,
        "commit": _git(root, "rev-parse", "HEAD") if is_own else None,
        "uncommitted_changes": None if changes is None else changes != "",
    }


def versions() -> dict[str, str]:
    """Return versions of Python and of the packages that results depend on."""
    packages = {name: metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "torch": torch.__version__, **packages}


def _git(folder: Path, *arguments: str) -> str | None:
    """Return the output of a git command; None without git or a repository."""
    try:
        done = subprocess.run(  # noqa: S603
            ["git", "-C", str(folder), *arguments],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
