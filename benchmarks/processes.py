"""Other Python processes: started in the repository, timed from outside, their answers read."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench import REPOSITORY
from breakhis_pl.errors import TrainingError


def timed_python(arguments: Sequence[str], *, cwd: Path = REPOSITORY) -> tuple[float, str]:
    """Runs Python and waits for it.

    Args:
        arguments: Behind "python".
        cwd: Where it runs.

    Returns:
        Seconds from start to end, and what it wrote to its standard output.

    Raises:
        TrainingError: If it fails; with the end of what it said.
    """
    paths = os.pathsep.join(each for each in (str(REPOSITORY), os.environ.get("PYTHONPATH")) if each)
    started = time.perf_counter()
    answer = subprocess.run(  # noqa: S603 - the project's own commands
        [sys.executable, *arguments], cwd=cwd, env=os.environ | {"PYTHONPATH": paths}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    if answer.returncode != 0:
        raise TrainingError(
            f"python {' '.join(arguments)} ended with status {answer.returncode}; expected 0: {answer.stderr[-2000:]}"
        )
    return seconds, answer.stdout


def asked(module: str, *arguments: str) -> dict[str, Any]:
    """The JSON object that a module of the benchmarks prints last.

    Raises:
        TrainingError: If it fails.
    """
    _, out = timed_python(["-m", f"benchmarks.{module}", *arguments])
    answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    return answer
