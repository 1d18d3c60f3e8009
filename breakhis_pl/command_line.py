"""Part of every program around `@hydra.main`: options, messages, signals, Hydra callback.

Imports no torch, so that a wrong configuration is refused within two seconds.
"""

import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf, flag_override

from breakhis_pl.config import Group, TrainConfig
from breakhis_pl.errors import ConfigurationError, RunFolderError, join_truncated, pluralize
from breakhis_pl.job import check_inputs, key_of, load, run_name
from breakhis_pl.messages import explain, mask_password
from breakhis_pl.run_folder import RunFolder

log = logging.getLogger(__name__)

PROGRAMS = {
    "train": "breakhis_pl.config.TrainConfig",
    "evaluate": "breakhis_pl.config.EvaluateConfig",
    "predict": "breakhis_pl.config.PredictConfig",
    "app": "breakhis_pl.config.AppConfig",
    "tune": "breakhis_pl.tuning_config.TuneConfig",
}
"""Import path of the configuration of each program."""
CHDIR_FAULT = "hydra.job.chdir=true: relative paths would change their meaning; drop it"

STOP_SIGNALS = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
"""Names of the signals by which terminals, containers and job schedulers end a process; Windows has SIGTERM alone."""


def prepare() -> None:
    """Set up a program before `@hydra.main` starts: folder names, home folders, signals, errors without traceback.

    Raises:
        SystemExit: If the command line has an unknown option.
    """
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    OmegaConf.register_new_resolver("config_groups", config_groups, replace=True)
    RunCallback.show_tracebacks = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise instead of printing
    sys.path.append(str(Path.cwd()))  # parts of the user's own, by import path
    logging.raiseExceptions = False  # continue if the terminal is closed, or the disk of train.log is full
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by a service, or pythonw
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - until the process ends
    os.environ["MPLBACKEND"] = "Agg"  # figures are only saved; notebooks export backends that cannot be imported here

    def report(kind: type[BaseException], error: BaseException, tb: TracebackType | None) -> None:
        message = explain(error)
        if message is None or RunCallback.show_tracebacks:
            traceback.print_exception(kind, error, tb)
        else:
            sys.stderr.write(f"{message}\n")

    sys.excepthook = report
    sys.argv[1:] = [_with_home(argument) for argument in sys.argv[1:]]
    if any(argument.startswith("resume=") for argument in sys.argv[1:]):
        # Hydra composes data=breakhis, which lacks the key; `load` takes its value to the configuration of the run
        sys.argv[1:] = [re.sub(r"^data\.table=", "++data.table=", argument) for argument in sys.argv[1:]]
    options, unknown = get_args_parser().parse_known_intermixed_args(sys.argv[1:])
    if unknown:
        sys.exit(f"{unknown[0]}: unknown option; keys are written key=value, for example trainer.max_epochs=2")
    # Hydra's parser refuses options between overrides
    others = [argument for argument in sys.argv[1:] if argument not in options.overrides]
    sys.argv[1:] = [*options.overrides, *others]
    for name in ("SIGINT", *STOP_SIGNALS):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, _stop)


def _stop(number: int, _: FrameType | None) -> None:
    """End the program in order with status 128 + signal; a second Ctrl-C ends it at once."""
    for name in STOP_SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with suppress(OSError):  # the terminal is gone
        sys.stderr.write(f"\nstopped by {signal.Signals(number).name}{RunCallback.resume_hint}\n")
    raise SystemExit(128 + number)


def _with_home(argument: str) -> str:
    """Replace ~ at the beginning of a value by the home folder; Hydra's grammar does not have it."""
    key, separator, value = argument.partition("=")
    if not value.startswith(("~/", "'~/", '"~/')) and value != "~":
        return argument
    return f"{key}{separator}{value.replace('~', str(Path.home()), 1)}"


def config_groups(program: str) -> str:
    """List the groups of a program and their options, for --help."""
    conf = Path(__file__).resolve().parent.parent / "conf"
    others = {"hydra", *(() if program == "tune" else ("search_space",))}
    lines = []
    for group in sorted(path for path in conf.iterdir() if path.is_dir() and path.name not in others):
        options = sorted(path.stem for path in group.glob("*.yaml") if not path.stem.startswith("_"))
        lines.append(f"  {group.name}: {', '.join(options)}")
    return "\n".join(lines)


def start(model: type[Any], composed: DictConfig) -> Any:
    """Return the typed configuration of a job whose inputs exist.

    Raises:
        BreakHisError: If a value is not possible or an input is missing.
    """
    config = load(model, composed, HydraConfig.get().overrides.task)
    check_inputs(config)
    return config


class RunCallback(Callback):
    """Hydra callback: refuse a command before it writes anything, and compare the runs of a sweep.

    Hydra turns exceptions of callbacks into warnings, so a refusal prints its message and exits.
    """

    show_tracebacks = False
    n_failed = 0
    n_left = 0
    pages: subprocess.Popen[bytes] | None = None
    resume_hint = ""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Validate a single run, check its inputs and reserve its folder."""
        program = str(kwargs["config_name"])
        with _refusal():
            if config.hydra.job.chdir:
                raise ConfigurationError(CHDIR_FAULT)
            if program not in PROGRAMS:
                raise ConfigurationError(
                    f"--config-name={program}: is not one of {', '.join(PROGRAMS)}; put your keys in "
                    "<folder>/experiment/<name>.yaml and set --config-dir=<folder> experiment=<name>"
                )
            typed = load(get_class(PROGRAMS[program]), config, config.hydra.overrides.task)
            ranks = [os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID")]
            # Lightning, torchrun or srun has started this process as another than the first one
            is_further = isinstance(typed, TrainConfig) and typed.trainer.is_distributed and set(ranks) != {"0"}
            if not is_further:
                check_inputs(typed)
            self._choose_folder(config, typed, program, is_further=is_further)
        if is_further:
            return
        if program == "train":
            folder = Path(config.hydra.run.dir)
            RunCallback.resume_hint = f"; resume with: uv run train.py resume={shlex.quote(folder.as_posix())}"
            sys.stdout.write(f"{typed.model.backbone} in {folder}; importing torch\n")
            sys.stdout.flush()
        elif program == "tune":
            RunCallback.resume_hint = "; the same command resumes the study"

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Validate every run of a sweep before the first one starts."""
        program = str(kwargs["config_name"])
        with _refusal():
            if config.hydra.job.chdir:
                raise ConfigurationError(CHDIR_FAULT)
            if program != "train":
                raise ConfigurationError(f"-m: {program}.py has no sweeps")
            loader = GlobalHydra.instance().config_loader()
            parameters = OmegaConf.select(config, "hydra.sweeper.params") or {}
            swept = [f"{key}={value}" for key, value in parameters.items()]
            overrides = OverridesParser.create().parse_overrides([*swept, *config.hydra.overrides.task])
            jobs = BasicSweeper.split_arguments(overrides, max_batch_size=None)[0]
            names, faults = [], []
            for job in jobs:
                composed = loader.load_configuration(program, [*job, *config.hydra.overrides.hydra], RunMode.RUN)
                try:
                    typed: TrainConfig = load(TrainConfig, composed, job)
                except ConfigurationError as error:
                    faults += str(error).splitlines()
                    continue
                if typed.trainer.is_distributed:
                    raise ConfigurationError(
                        "trainer.strategy=ddp: each of its processes would start the whole sweep; start single runs"
                    )
                names.append(run_name(typed.model.backbone, job))
            if faults:
                raise ConfigurationError("\n".join(dict.fromkeys(faults)))
            if len(set(names)) < len(names):
                raise ConfigurationError(f"-m: two runs are the same: {join_truncated(names)}")
            _check_access(Path(config.hydra.sweep.dir))
            if "hydra.sweep.dir" not in map(key_of, config.hydra.overrides.hydra):
                _set_folder(config.hydra.sweep, "dir", _new_folder(Path(config.hydra.sweep.dir)))
            sweep = Path(config.hydra.sweep.dir).as_posix()
            arguments = [argument for argument in sys.argv[1:] if key_of(argument) != "hydra.sweep.dir"]
            command = shlex.join(["train.py", *arguments, f"hydra.sweep.dir='{sweep}'"])
            RunCallback.resume_hint = f"; resume with: uv run {command}"
        RunCallback.n_left = len(jobs)
        sys.stdout.write(f"{pluralize(len(jobs), 'run')} in {sweep}; importing torch\n")
        sys.stdout.flush()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Report a failed job; in a sweep, also write the comparison of the runs so far."""
        error = job_return._return_value  # the property raises it
        job_return.overrides = [mask_password(each) for each in job_return.overrides or ()]  # Hydra prints them
        has_failed = job_return.status is JobStatus.FAILED
        message = explain(error) if has_failed else None
        if config.hydra.mode != RunMode.MULTIRUN:
            if message is not None and not RunCallback.show_tracebacks:
                _remove_empty_run(Path(config.hydra.run.dir), f"{config.hydra.job.name}.log")
                sys.stderr.write(f"{message}\n")
                raise SystemExit(1)
            return
        if has_failed:
            RunCallback.n_failed += 1
            log.error("%s: %s", config.hydra.sweep.subdir, message or "".join(traceback.format_exception(error)))
            if "BasicLauncher" in config.hydra.launcher._target_:  # others return to a process without this count
                job_return.status, job_return.return_value = JobStatus.COMPLETED, None  # lets the sweep end in order
        if RunCallback.pages is not None:
            RunCallback.pages.wait()
        sweep = Path(config.hydra.sweep.dir)
        if pages_follow():
            finished = [] if has_failed else [str(sweep / config.hydra.sweep.subdir)]
            command = [sys.executable, "-m", "breakhis_pl.reporting", str(sweep), *finished]
            RunCallback.pages = subprocess.Popen(command, start_new_session=True)  # noqa: S603 - Ctrl-C ends only us
        else:
            from breakhis_pl.reporting.comparison import write_comparison  # noqa: PLC0415 - imports matplotlib

            with suppress(RunFolderError):  # no run has begun
                log.info("comparison: %s", write_comparison(sweep)[0].with_suffix(".html"))
        RunCallback.n_left -= 1

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Exit with status 1 if a run of the sweep failed."""
        if RunCallback.n_failed > 0:
            sys.stderr.write(f"{pluralize(RunCallback.n_failed, 'run')} of {config.hydra.sweep.dir} failed\n")
            raise SystemExit(1)

    def _choose_folder(self, config: DictConfig, typed: Group, program: str, *, is_further: bool) -> None:
        """Set hydra.run.dir to the folder of the run; refuse one that holds a run already.

        A further process of a distributed run takes the folder that the first one has chosen.
        """
        folder = Path(config.hydra.run.dir)
        is_default = "hydra.run.dir" not in map(key_of, config.hydra.overrides.hydra)
        if isinstance(typed, TrainConfig) and typed.resume is not None:
            _set_folder(config.hydra.run, "dir", typed.resume)
            _set_folder(config.hydra, "output_subdir", None)  # keep the .hydra of the first start
            _check_access(typed.resume)
            return
        if program in ("tune", "evaluate", "app"):
            return
        is_launched = not {"TORCHELASTIC_RUN_ID", "SLURM_PROCID"}.isdisjoint(os.environ)
        if is_launched and is_default and isinstance(typed, TrainConfig) and typed.trainer.is_distributed:
            raise ConfigurationError("hydra.run.dir: set it, so that all processes of torchrun or srun agree on it")
        if is_further:
            return
        _check_access(folder)
        if is_default:
            _set_folder(config.hydra.run, "dir", _new_folder(folder))
        elif isinstance(typed, TrainConfig) and RunFolder(folder).run_json.exists():
            raise RunFolderError(f"{folder}: holds a run; resume={folder} resumes it, or choose another hydra.run.dir")


def pages_follow() -> bool:
    """Whether another process writes the pages of this run while the next one trains: on a GPU, before the last run.

    On a CPU, the two would share the cores.
    """
    import torch  # noqa: PLC0415 - a run has imported it

    return RunCallback.n_left > 1 and torch.cuda.is_available()


@contextmanager
def _refusal() -> Iterator[None]:
    """Print the message of an error and exit with status 1."""
    try:
        yield
    except Exception as error:
        message = explain(error)
        sys.stderr.write(traceback.format_exc() if message is None else f"{message}\n")
        raise SystemExit(1) from None


def _set_folder(node: DictConfig, key: str, value: Path | None) -> None:
    with flag_override(node, ["readonly", "struct"], False):
        node[key] = None if value is None else str(value)


def _new_folder(folder: Path) -> Path:
    """Make a folder that no other process has; the second one of the same second gets _2 behind its name."""
    number = 1
    while True:
        candidate = folder if number == 1 else folder.with_name(f"{folder.name}_{number}")
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return candidate


def _remove_empty_run(folder: Path, log_name: str) -> None:
    """Remove what Hydra wrote for a run that ended before its first step, and its folder if that is empty."""
    if RunFolder(folder).run_json.exists() or not (folder / ".hydra").is_dir():
        return
    with suppress(OSError):  # other files are there, or Windows keeps the log open
        shutil.rmtree(folder / ".hydra")
        for path in (folder / log_name, folder / ".lock"):
            path.unlink(missing_ok=True)
        folder.rmdir()
        folder.parent.rmdir()
        folder.parent.parent.rmdir()


def _check_access(folder: Path) -> None:
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "no permission" if existing.is_dir() else "it is a file"
        raise RunFolderError(f"{folder}: cannot be written below {existing} ({reason}); choose another folder")
