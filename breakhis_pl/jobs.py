"""One run: in this process or in several, and wherever Hydra's launcher has put it (no torch until it runs)."""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from breakhis_pl import composition
from breakhis_pl.config import EvaluateConfig, ProgramName, TrainConfig
from breakhis_pl.errors import BreakHisError, Stopped
from breakhis_pl.processes import Place, be_quiet_unless_first, given_place, is_follower, run_together
from breakhis_pl.run_json import beginning, note_failure

log = logging.getLogger(__name__)


def start(config: TrainConfig | EvaluateConfig, folder: Path, *, goes_on: bool = False) -> None:
    """Trains, goes on or evaluates, in as many processes as are asked for.

    Args:
        config: The typed configuration.
        folder: The run folder; of an evaluation that in the configuration counts.
        goes_on: Whether a run that is in the folder goes on.

    Raises:
        BreakHisError: If it cannot be done.
    """
    place = given_place(os.environ, devices=config.trainer.devices, num_nodes=config.trainer.num_nodes)
    if place is not None:
        be_quiet_unless_first(place)
        take_part(config, folder, goes_on, place)
    elif not config.trainer.is_distributed:
        do(config, folder, goes_on=goes_on)
    else:
        before = beginning(folder)
        try:
            run_together(live, (config, folder, goes_on), n_ranks=config.trainer.devices)
        except (Exception, KeyboardInterrupt, Stopped) as error:
            if isinstance(config, TrainConfig) and beginning(folder) != before:  # else it is another's run
                stopped = isinstance(error, KeyboardInterrupt | Stopped)
                note_failure(folder, "interrupted" if stopped else str(error))
            raise


def do(config: TrainConfig | EvaluateConfig, folder: Path, *, goes_on: bool) -> None:
    """The run itself, as this process sees it.

    Raises:
        BreakHisError: If it cannot be done.
    """
    from breakhis_pl import evaluating, run  # noqa: PLC0415 - they import torch

    if isinstance(config, EvaluateConfig):
        evaluating.evaluate(config)
    elif goes_on:
        run.resume(config, folder)
    else:
        run.train(config, folder)


def take_part(config: TrainConfig | EvaluateConfig, folder: Path, goes_on: bool, place: Place) -> None:
    """The run, as one of several processes that do it together; the first one knows the folder.

    Raises:
        BreakHisError: If it cannot be done.
    """
    from breakhis_pl.training import distributed  # noqa: PLC0415 - imports torch

    with distributed.joined(place, config.trainer.accelerator):
        folder, goes_on = distributed.told((folder, goes_on))
        do(config, folder, goes_on=goes_on)


def live(config: TrainConfig | EvaluateConfig, folder: Path, goes_on: bool, place: Place) -> None:
    """As `take_part`, in a process that was started for it.

    Raises:
        BreakHisError: If it cannot be done.
    """
    if place.rank > 0:
        take_part(config, folder, goes_on, place)
        return
    with logging_to(folder / "train.log" if isinstance(config, TrainConfig) else None):
        take_part(config, folder, goes_on, place)


@dataclass
class Job:
    """What Hydra calls for each run of a command; it may travel to another process.

    Attributes:
        program: Its name.
        swept: Keys that the command gives several values.
        go_on: From a run's folder, and the sweep's where it is of one, to the command that goes on with it.
        run: Does one run: its typed configuration, its folder, the overrides that gave it.
        compare: Writes the comparison of the runs in a sweep's folder.
        unfinished: The command that goes on with what is running; None where nothing is.
        failures: What went wrong, a text for each run that failed, of the runs in this process.
        n_runs: How many there were in this process.
    """

    program: ProgramName
    swept: tuple[str, ...]
    go_on: Callable[[Path, str | None], list[str]]
    run: Callable[[Any, Path, Sequence[str]], None]
    compare: Callable[[Path], None]
    unfinished: list[str] | None = None
    failures: list[str] = field(default_factory=list)
    n_runs: int = 0
    home: int = field(default_factory=os.getpid)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrives in another process, where names of folders have to be found again."""
        self.__dict__.update(state)
        composition.register(self.swept)

    def __call__(self, composed: Any) -> None:
        """One run, with what Hydra composed; errors of ours are noted, not raised."""
        if os.getpid() == self.home:
            self._do(composed)
            return
        from breakhis_pl import launchers  # noqa: PLC0415 - needs an extra

        with launchers.ended_in_order():
            self._do(composed)

    def _do(self, composed: Any) -> None:
        settings = HydraConfig.get()
        sweep = settings.sweep.dir if settings.mode == RunMode.MULTIRUN else None
        folder = Path(settings.runtime.output_dir)
        is_train, speaks = self.program == "train", not is_follower(os.environ)
        self.n_runs += 1
        if self.program in ("train", "tune"):
            self.unfinished = self.go_on(folder, sweep)
        try:
            self.run(composition.typed(self.program, composed), folder, list(settings.overrides.task))
            self.unfinished = None if sweep is None else self.unfinished
        except (BreakHisError, OSError) as error:
            if os.environ.get("HYDRA_FULL_ERROR"):
                raise
            self.failures.append(str(error) if sweep is None else f"{folder.name}: {error}")
            if sweep is not None and speaks:  # said now, and in the run's log, where the comparison finds it
                log.error("%s", error)
        finally:
            if sweep is not None and is_train and speaks:
                self.compare(Path(sweep))


@contextmanager
def logging_to(file: Path | None) -> Iterator[None]:
    """Logging as Hydra sets it up for a run: lines on the terminal, with their times in a file.

    Args:
        file: None for the terminal alone.
    """
    root = logging.getLogger()
    level = root.level
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if file is not None:
        handlers.append(logging.FileHandler(file, encoding="utf-8"))
        handlers[1].setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"))
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
            if isinstance(handler, logging.FileHandler):
                handler.close()
