"""What the top-level programs share: help at once, every job of a command checked before the first one starts.

Hydra is imported only after `--help` has been answered, torch only after the configuration was found possible.
"""

import logging
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from breakhis_pl.config import EvaluateConfig, PredictConfig, ProgramName, TrainConfig, TuneConfig
from breakhis_pl.door import asked_launcher, check_access, check_at_the_door, check_images, check_launcher, check_texts
from breakhis_pl.errors import BreakHisError, ConfigurationError, RunFolderError, Stopped, listed
from breakhis_pl.help_texts import CONF_FOLDER, help_text
from breakhis_pl.processes import is_follower
from breakhis_pl.run_json import RUN_JSON

log = logging.getLogger(__name__)

_PATIENCE_S = 30
"""Seconds in which a process that was told to end may write what it has."""


def main(program: ProgramName, arguments: Sequence[str] | None = None) -> None:
    """Runs one of the top-level programs with the arguments of the command line.

    Args:
        program: "train", "evaluate", "tune" or "predict".
        arguments: Without the program's name; those of the process if None.

    Raises:
        SystemExit: With status 1 if a configuration or a run failed; 0 after help.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "-h" in given or "--help" in given:
        text = help_text(program)
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding))
        raise SystemExit(0)
    unfinished = _Unfinished()
    try:
        with _signals_stop():
            check_texts(given)
            given = _with_repeated(program, given)
            resumed = _resumed_folder(program, given)
            if is_follower(os.environ):
                _follow(program, given, resumed)
            elif resumed is not None:
                _resume(resumed, given, unfinished)
            else:
                check_at_the_door(program, given)
                _run_hydra(program, given, unfinished)
    except BreakHisError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(1) from None
    except (KeyboardInterrupt, Stopped) as stop:
        what, status = ("stopped", 128 + stop.signum) if isinstance(stop, Stopped) else ("interrupted", 130)
        sys.stderr.write(f"{what}{unfinished.how_to_go_on()}\n")
        raise SystemExit(status) from None


@dataclass
class _Unfinished:
    """What a stopped process was at, and the command that goes on with it."""

    command: list[str] | None = None

    def how_to_go_on(self) -> str:
        return "" if self.command is None else f"; go on with: {shlex.join(self.command)}"


def _follow(program: ProgramName, given: Sequence[str], resumed: Path | None) -> None:
    """What processes that srun or torchrun has started do beside the first one, which has the folder and speaks.

    Raises:
        BreakHisError: As the first one.
    """
    from breakhis_pl import composition, jobs, resuming  # noqa: PLC0415 - imports Hydra

    composition.register()
    check_launcher(given, multirun=bool({"-m", "--multirun"} & set(given)))
    overrides = [argument for argument in given if not argument.startswith(("-", "resume="))]
    if resumed is None:
        config = composition.compose_checked(program, overrides)
    else:
        config = resuming.resumed_config(resumed, composition.parse_overrides(overrides))
        if resuming.is_finished(resumed, config):
            return
    if not (isinstance(config, EvaluateConfig) and config.runs is not None):
        jobs.start(config, resumed or Path())


@contextmanager
def _signals_stop() -> Iterator[None]:
    """SIGTERM, and SIGUSR1 with which schedulers warn, end what is running in order; what was set before comes back.

    Schedulers may send them again and again; further ones within `_PATIENCE_S` change nothing. Ctrl-C does.
    """
    names = ("SIGTERM", "SIGUSR1")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return

    first: list[float] = []

    def stop(signum: int, _: FrameType | None) -> None:
        first.append(time.monotonic())
        if first[-1] - first[0] <= _PATIENCE_S and len(first) > 1:
            return  # it ends already; the newest state is being written
        raise Stopped(signum)

    before = [(number, signal.signal(number, stop)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _resumed_folder(program: ProgramName, given: Sequence[str]) -> Path | None:
    """The run folder of resume=<run folder>; None where it is not asked for.

    Raises:
        ConfigurationError: If it is asked for in a way that cannot be.
    """
    asked = [argument for argument in given if argument.partition("=")[0].lstrip("+") == "resume"]
    if program != "train" or not asked:
        return None
    options = [argument for argument in given if argument.startswith("-")]
    folder = asked[-1].partition("=")[2].strip("'\"")
    if not folder:
        raise ConfigurationError("resume has no value; expected a run folder, as in resume=outputs/<date>/<run>")
    if options or len(asked) > 1:
        raise ConfigurationError(
            f"resume={folder} goes on with one run and takes no {listed(options or asked[:-1])}; a cut sweep goes on "
            "with its own command and hydra.sweep.dir=<its folder>"
        )
    return Path(folder)


def _with_repeated(program: ProgramName, given: Sequence[str]) -> list[str]:
    """The arguments with the overrides of a run in place of repeat=<run folder>.

    Raises:
        BreakHisError: If the folder holds no run that can be repeated.
    """
    if program != "train" or not any(argument.startswith("repeat=") for argument in given):
        return list(given)
    from breakhis_pl import repeating  # noqa: PLC0415 - imports Hydra

    return repeating.with_repeated(given)


def _resume(folder: Path, given: Sequence[str], unfinished: _Unfinished) -> None:
    """Goes on with a run, in its folder and with its configuration; Hydra has no part in it.

    Raises:
        SystemExit: With status 1 if it failed.
    """
    from breakhis_pl import composition, jobs, resuming  # noqa: PLC0415 - imports Hydra

    composition.register()
    changes = composition.parse_overrides([argument for argument in given if not argument.startswith("resume=")])
    config = resuming.resumed_config(folder, changes)
    if resuming.is_finished(folder, config):
        epoch = resuming.stopped_early_after(folder)
        stopped = "" if epoch is None else f" (it stopped after epoch {epoch}: trainer.patience)"
        results = f"its results are in {folder / 'test'}, its page is report.html"
        sys.stdout.write(f"{folder} is finished{stopped}; {results}\n")
        return
    check_access(folder)
    unfinished.command = ["python", "train.py", *given]
    try:
        with jobs.logging_to(folder / "train.log"):
            check_images(config)
            jobs.start(config, folder, goes_on=True)
    except (BreakHisError, OSError) as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        sys.stderr.write(f"{error}\n")
        raise SystemExit(1) from None


def _compare_runs(config: EvaluateConfig) -> None:
    """Writes the comparison of a sweep's runs into its folder, or of several runs, or of an ensemble, into its own."""
    from breakhis_pl.evaluation.comparison import write_comparison  # noqa: PLC0415 - imports numpy
    from breakhis_pl.evaluation.ensembles import write_ensemble  # noqa: PLC0415

    runs = [Path(run) for run in ([config.runs] if isinstance(config.runs, str) else config.runs)]
    moment = datetime.now().astimezone().strftime("%Y-%m-%d/%H-%M-%S")
    if config.ensemble:
        page = write_ensemble(Path(config.out or f"outputs/ensembles/{moment}"), runs, tta=config.tta)
    elif isinstance(config.runs, str) and config.out is None:
        page = write_comparison(runs[0])
    else:
        page = write_comparison(Path(config.out or f"outputs/comparisons/{moment}"), runs=runs)
    log.info("%s", page.read_text(encoding="utf-8"))
    log.info("%s", page.parent)


def _compare(sweep: Path) -> None:
    """Writes the comparison of all runs so far; Hydra has no hook that is called after a failed run."""
    from breakhis_pl.evaluation.comparison import write_comparison  # noqa: PLC0415 - imports numpy

    log.info("comparison: %s", write_comparison(sweep))


def _run_hydra(program: ProgramName, given: Sequence[str], unfinished: _Unfinished) -> None:
    """Hands over to Hydra, which calls the job once per run.

    Raises:
        SystemExit: With status 1 if a run failed; the others of a sweep are run all the same.
    """
    import hydra  # noqa: PLC0415 - after the answer to --help

    from breakhis_pl import composition, jobs  # noqa: PLC0415 - imports Hydra

    job = jobs.Job(program, composition.swept_by_command(), partial(_go_on, program, tuple(given)), _run_job, _compare)
    sweep = _sweep_elsewhere(program, given)
    sys.argv[1:] = given if sweep is None else [*given, f"hydra.sweep.dir={_quoted(str(sweep))}"]
    try:
        if sweep is not None:
            unfinished.command = _go_on(program, tuple(given), Path(), str(sweep))
        hydra.main(version_base="1.3", config_path=str(CONF_FOLDER), config_name=program)(job)()
        failures = job.failures if sweep is None else _failures_there(sweep, given)
    except BaseException:
        unfinished.command = job.unfinished or unfinished.command
        raise
    finally:
        if sweep is not None and sweep.is_dir():
            with suppress(RunFolderError):  # no run has begun
                _compare(sweep)
    if failures:
        head = f"{len(failures)} runs failed:\n" if len(failures) > 1 else ""
        sys.stderr.write(head + "\n".join(failures) + "\n")
        raise SystemExit(1)


def _quoted(value: str) -> str:
    """A value for the command line that Hydra takes as it is."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _go_on(program: ProgramName, given: Sequence[str], folder: Path, sweep: str | None) -> list[str]:
    """The command that goes on with a run, with its sweep, or with a study."""
    if program == "tune":
        return ["python", "tune.py", *given]
    if sweep is None:
        return ["python", "train.py", f"resume={folder}"]
    again = [argument for argument in given if not argument.startswith("hydra.sweep.dir=")]
    return ["python", "train.py", *again, f"hydra.sweep.dir={shlex.quote(sweep)}"]


def _sweep_elsewhere(program: ProgramName, given: Sequence[str]) -> Path | None:
    """Folder of a sweep whose runs are jobs of their own, with all that they need there; None of any other command."""
    from breakhis_pl import composition  # noqa: PLC0415 - imports Hydra

    if not asked_launcher(given).startswith("submitit") or not {"-m", "--multirun"} & set(given):
        return None
    from breakhis_pl import launchers  # noqa: PLC0415 - needs an extra

    launchers.use()
    here = str(CONF_FOLDER.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    overrides = composition.parse_overrides([argument for argument in given if not argument.startswith("-")])
    return composition.output_folder(program, composition.expand_sweep(overrides)[0], multirun=True).absolute()


def _failures_there(sweep: Path, given: Sequence[str]) -> list[str]:
    """What went wrong in the runs of a sweep that other processes did, from their folders."""
    from breakhis_pl import composition  # noqa: PLC0415 - imports Hydra
    from breakhis_pl.evaluation.run_summary import summarize_run  # noqa: PLC0415 - imports numpy

    overrides = composition.parse_overrides([argument for argument in given if not argument.startswith("-")])
    names = map(composition.sweep_choice, composition.expand_sweep(overrides))
    runs = [summarize_run(sweep / name) for name in names]
    return [f"{run.name}: {run.error or run.status}" for run in runs if run.status != "finished"]


def _run_job(config: Any, folder: Path, overrides: Sequence[str]) -> None:
    """One job with its typed configuration, and the overrides that gave it.

    Raises:
        BreakHisError: If it cannot be done.
        OSError: If a file cannot be read or written.
    """
    if isinstance(config, EvaluateConfig) and config.runs is not None:
        _compare_runs(config)
        return
    if isinstance(config, TuneConfig):
        _tune(config, overrides)
        return
    if isinstance(config, PredictConfig):
        from breakhis_pl.prediction import program  # noqa: PLC0415 - imports numpy and Pillow

        program.predict(config, folder)
        return
    is_there = isinstance(config, TrainConfig) and (folder / RUN_JSON).exists()
    if is_there:
        from breakhis_pl import resuming  # noqa: PLC0415 - imports Hydra

        resuming.check_same(folder, config)
        if resuming.is_finished(folder, config):
            log.info("%s is finished already", folder)
            return
    check_images(config)
    from breakhis_pl import jobs  # noqa: PLC0415 - imports Hydra

    jobs.start(config, folder, goes_on=is_there)


def _tune(config: TuneConfig, overrides: Sequence[str]) -> None:
    """Runs the trials of a study."""
    from breakhis_pl.tuning.plan import make_plan  # noqa: PLC0415 - imports Hydra

    check_images(config)
    plan = make_plan(overrides)
    from breakhis_pl.tuning.worker import tune  # noqa: PLC0415 - imports torch and Optuna

    tune(plan)
