"""A small disk for tests of full ones."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest


def on_small_disk(folder: Path, script: str, *, size: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a script with a small disk mounted on a folder, in a namespace of its own that ends with it.

    Args:
        folder: Where the disk is mounted.
        script: For the shell.
        size: As mount takes it, "8m".
        cwd: Where the script runs.
    """
    mount = f"mount -t tmpfs -o size={size} tmpfs {shlex.quote(str(folder))}"
    space = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*space, mount], capture_output=True, check=False).returncode != 0
    ):
        pytest.skip("this system lets nobody mount a disk in a namespace")
    return subprocess.run(
        [*space, f"{mount}\n{script}"], capture_output=True, text=True, timeout=240, check=False, cwd=cwd
    )
