"""Run the programs inside the test process, as their users would call them."""

import contextlib
import io
import logging
import os
import runpy
import signal
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from breakhis_pl import command_line

TINY = (
    "data=synthetic",
    "data.images_per_patient=1",
    "data.width=64",
    "data.image_size=32",
    "model.weights=none",
    "trainer=cpu",
    "trainer.progress_bar=false",
)
"""One generated image per patient, as small as the networks take them."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Exit status and output of a program."""

    status: int
    out: str
    err: str


def run_program(program: str, *arguments: str, cwd: Path, draw_figures: bool = False) -> Outcome:
    """Run a program in a folder.

    Args:
        program: "train", "evaluate", "predict" or "tune".
        arguments: Command line.
        cwd: Working directory.
        draw_figures: Draw figures, which takes half the time of a small run; else save blank files in their place.
    """
    out, err = io.StringIO(), io.StringIO()
    status = 0
    blank = contextlib.nullcontext() if draw_figures else blank_figures()
    with contextlib.chdir(cwd), process_state_kept(), warnings.catch_warnings(), blank:
        sys.argv = [f"{program}.py", *arguments]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_path(str(Path(__file__).resolve().parent.parent / f"{program}.py"), run_name="__main__")
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
                if isinstance(end.code, str):
                    err.write(f"{end.code}\n")
            except Exception as error:
                status = 1
                sys.excepthook(type(error), error, error.__traceback__)
    return Outcome(status, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def blank_figures() -> Iterator[None]:
    """Save blank files in place of figures."""

    def save(figure: object, target: BinaryIO, **_: Any) -> None:
        assert figure is not None
        Image.new("RGB", (8, 8), "white").save(target, format="png")

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", save)
        yield


@contextlib.contextmanager
def process_state_kept() -> Iterator[None]:
    """Restore what a program changes in its process: arguments, environment, logging, signals, Hydra."""
    root, argv, environment, hook = logging.getLogger(), sys.argv[:], os.environ.copy(), sys.excepthook
    raises = logging.raiseExceptions
    handlers, level = root.handlers[:], root.level
    numbers = (signal.SIGINT, *(getattr(signal, name) for name in command_line.STOP_SIGNALS))
    signals = [(number, signal.getsignal(number)) for number in numbers]
    path = sys.path[:]
    GlobalHydra.instance().clear()  # other tests of the process may have used it
    try:
        yield
    finally:
        for handler in root.handlers:
            if handler not in handlers:
                handler.close()
        root.handlers, root.level = handlers, level
        sys.argv, sys.excepthook, logging.raiseExceptions = argv, hook, raises
        sys.path[:] = path
        os.environ.clear()
        os.environ.update(environment)
        for number, handler in signals:
            signal.signal(number, handler)
        GlobalHydra.instance().clear()
        command_line.RunCallback.n_failed = 0
        command_line.RunCallback.resume_hint = ""
