"""Runs train.py and evaluate.py inside the test process, as their users would call them."""

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from PIL import Image

from breakhis_pl.command_line import main
from breakhis_pl.config import ProgramName

TINY = ("data=synthetic", "data.images_per_patient=1", "data.width=64", "data.image_size=32", "model.weights=none")
"""One drawn image per patient, as small as networks take them."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a program left behind: exit status and the two output streams."""

    status: int
    out: str
    err: str


def run_program(program: ProgramName, *arguments: str, cwd: Path, is_drawn: bool = False) -> Outcome:
    """Runs a program in a folder; a traceback in its output is never what its user should see.

    Args:
        program: Which one.
        arguments: Of the command line.
        cwd: The folder.
        is_drawn: Whether figures become pictures, which takes half the time of a small run. Else they are composed,
            and files of a single color are written in their place.
    """
    out, err = io.StringIO(), io.StringIO()
    status = 0
    arguments_before = sys.argv[:]
    blank = contextlib.nullcontext() if is_drawn else blank_figures()
    with contextlib.chdir(cwd), _logging_kept(), warnings.catch_warnings(), blank:
        sys.argv = [f"{program}.py"]
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main(program, arguments)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        finally:
            sys.argv = arguments_before
    return Outcome(status, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def blank_figures() -> Iterator[None]:
    """Figures are saved without being drawn: files of a single color are written in their place."""

    def saved(figure: object, target: BinaryIO, **_: Any) -> None:
        assert figure is not None
        Image.new("RGB", (8, 8), "white").save(target, format="png")

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", saved)
        yield


@contextlib.contextmanager
def _logging_kept() -> Iterator[None]:
    """Undoes what Hydra does to the process's logging."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        for handler in root.handlers:
            if handler not in handlers:
                handler.close()
        root.handlers, root.level = handlers, level
