"""What the top-level programs share: help at once, every job of a command checked before the first one starts.

Hydra is imported only after `--help` has been answered, torch only after the configuration was found possible.
"""

import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from breakhis_pl.config import BreakHisDataConfig, EvaluateConfig, ProgramName, TrainConfig
from breakhis_pl.errors import BreakHisError, ConfigurationError, RunFolderError, Stopped, StorageError, listed
from breakhis_pl.run_json import RUN_JSON

log = logging.getLogger(__name__)

_CONF_FOLDER = Path(__file__).resolve().parent.parent / "conf"
_OWN_COMPOSITION = {"--config-name", "-cn", "--config-path", "-cp", "--config-dir", "-cd", "--experimental-rerun"}
_HYDRA_ANSWERS = {"--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc", "--resolve"}

_HELP = {
    "train": """\
train.py trains a network to tell benign from malignant breast tumors (BreakHis) and evaluates it.

usage: python train.py [group=option …] [key=value …]
       python train.py -m key=value,value …          one run per combination of values

Examples
  python train.py experiment=demo                    a minute on drawn images, no download
  python train.py model=resnet18 data.root=data      the report's ResNet-18 on the real images
  python train.py -m model=resnet18,wide_resnet50,resnext50        the report's three networks, compared
  python train.py experiment=frozen                  frozen features, linear head: the baseline to beat, in minutes
  python train.py model=torchvision model.backbone=convnext_tiny         any network of torchvision or timm
  python train.py model=resnet18 optimizer=sgd optimizer.lr=0.01 trainer.max_epochs=30
  python train.py -m data.split=ratio data.test_fraction=0.2 seed=0,1,2        80/20, three splits

The real images: python -m breakhis_pl.data.download fetches them (4 GB) into data/.

Groups and their options (* is the default)
{groups}

Keys used most
  data.root=data              folder with the images, in any arrangement
  data.fold=2                 the authors' fold, 1 to 5
  data.magnification=200      40, 100, 200, 400 or a list: '[40,200]'
  data.image_size=224         side in pixels;  data.batch_size=32
  data.require_complete=false use an incomplete folder of images
  data.val_fraction=0.2       take whole cases out of train for validation: calibration, threshold
  model.weights=imagenet      none, or a file with a state dict (.pth, for model=timm also .safetensors)
  model.backbone=resnet50     any name of torchvision (model=torchvision) or timm (model=timm)
  model.arguments             how timm builds the network, a dict; examples: docs/networks.md
  model.head=report           linear, or svm: one layer, with hinge loss;  model.dropout=0.4 (report)
  model.freeze=true           train the head alone; with augmentation=none and one layer it is solved for (model.l2)
  trainer.max_epochs=15       seed=0
  hydra.run.dir=<folder>      where the run goes; else outputs/<date>/<time>_<model>/
  resume=<run folder>         go on with a run that was cut; a sweep: its command with hydra.sweep.dir=<folder>

All keys with their values: python train.py --cfg job     Hydra's own options: python train.py --hydra-help
Afterwards: python evaluate.py run=<run folder>           tensorboard --logdir outputs
""",
    "evaluate": """\
evaluate.py evaluates a checkpoint of a run again and writes the results into the run's folder.

usage: python evaluate.py run=<run folder> [key=value …]

Examples
  python evaluate.py run=outputs/2026-01-31/12-00-00_resnet18
  python evaluate.py run=<run folder> data.root=/elsewhere/BreaKHis_v1   the images have moved
  python evaluate.py run=<run folder> subset=train                       on the train images, into <run folder>/train/
  python evaluate.py run=<run folder> checkpoint=some/other.ckpt
  python evaluate.py run=<run folder> calibrate=true sensitivity=0.99    temperature and threshold, where there is a val
  python evaluate.py runs=outputs/sweeps/2026-01-31/12-00-00             compare the runs of a sweep again
  python evaluate.py 'runs=[<run folder>,<run folder>]'                  compare any runs
  python -m breakhis_pl.evaluation <run folder>/test/predictions.csv     the numbers alone, without torch

Keys
  run                  run folder to evaluate; or
  runs                 folder of a sweep, or list of run folders, to compare; out=<folder> says where to
  checkpoint=last      last, or the path of a checkpoint
  subset=test          test, val or train
  calibrate=false      fit temperature and threshold on the run's validation images again, for sensitivity (0.95)
  gallery=8            pictures of each kind that Grad-CAM explains, 0 for none
  data.root            folder of the images, where they have moved
  data.cache_dir       folder of the stores of decoded images; the run's own unless given
  data.batch_size      images per step; the run's own unless given
  trainer.accelerator=auto   auto, cpu, gpu or mps;  trainer.precision=auto
""",
}


def main(program: ProgramName, arguments: Sequence[str] | None = None) -> None:
    """Runs one of the top-level programs with the arguments of the command line.

    Args:
        program: "train" or "evaluate".
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
            resumed = _resumed_folder(program, given)
            if resumed is not None:
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


@contextmanager
def _signals_stop() -> Iterator[None]:
    """SIGTERM, and SIGUSR1 with which schedulers warn, end what is running in order; what was set before comes back."""
    names = ("SIGTERM", "SIGUSR1")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return

    def stop(signum: int, _: FrameType | None) -> None:
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


def _resume(folder: Path, given: Sequence[str], unfinished: _Unfinished) -> None:
    """Goes on with a run, in its folder and with its configuration; Hydra has no part in it.

    Raises:
        SystemExit: With status 1 if it failed.
    """
    from breakhis_pl import composition, resuming  # noqa: PLC0415 - imports Hydra

    composition.register()
    changes = composition.parse_overrides([argument for argument in given if not argument.startswith("resume=")])
    config = resuming.resumed_config(folder, changes)
    if resuming.is_finished(folder, config):
        sys.stdout.write(f"{folder} is finished; its results are in {folder / 'test'}, its page is report.html\n")
        return
    _check_access(folder)
    unfinished.command = ["python", "train.py", *given]
    with _logging_to(folder / "train.log"):
        try:
            _check_images(config)
            from breakhis_pl import run  # noqa: PLC0415 - imports torch

            run.resume(config, folder)
        except (BreakHisError, OSError) as error:
            if os.environ.get("HYDRA_FULL_ERROR"):
                raise
            log.debug("%s", error)
            sys.stderr.write(f"{error}\n")
            raise SystemExit(1) from None


@contextmanager
def _logging_to(file: Path) -> Iterator[None]:
    """Logging as Hydra sets it up for a run: lines on the terminal, with their times in a file."""
    root = logging.getLogger()
    level = root.level
    to_file, to_terminal = logging.FileHandler(file, encoding="utf-8"), logging.StreamHandler(sys.stdout)
    to_file.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"))
    handlers = (to_file, to_terminal)
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
        to_file.close()


def help_text(program: ProgramName) -> str:
    """What `--help` prints; needs no third-party package."""
    text = _HELP[program]
    return text.format(groups=_groups()) if "{groups}" in text else text


def _groups() -> str:
    """Every group with its options and what they are for, from the first comment of their files."""
    chosen = _defaults()
    lines = []
    for folder in sorted((path for path in _CONF_FOLDER.iterdir() if path.is_dir()), key=lambda path: path.name):
        for index, option in enumerate(sorted(folder.glob("*.yaml"))):
            mark = "*" if chosen.get(folder.name) == option.stem else " "
            start = f"{folder.name}=" if index == 0 else ""
            lines.append(f"  {start:<14}{option.stem + mark:<16}{_first_comment(option)}")
    return "\n".join(lines)


def _defaults() -> dict[str, str]:
    """Option by group in the defaults list of train.yaml."""
    pairs = (line.strip().removeprefix("- ").partition(": ") for line in _read_lines(_CONF_FOLDER / "train.yaml"))
    return {group: option for group, separator, option in pairs if separator}


def _first_comment(file: Path) -> str:
    comments = (line[2:] for line in _read_lines(file) if line.startswith("# ") and not line.startswith("# @"))
    return next(comments, "")


def _read_lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def check_at_the_door(program: ProgramName, given: Sequence[str]) -> None:
    """Checks the configuration of every job of the command, and where its results would go.

    Raises:
        ConfigurationError: If any job's configuration is not possible.
        RunFolderError: If the run folder holds a run already.
        StorageError: If it could not be written to.
    """
    from breakhis_pl import composition  # noqa: PLC0415 - imports Hydra

    composition.register()
    options = {argument.partition("=")[0] for argument in given if argument.startswith("-")}
    if options & (_OWN_COMPOSITION | _HYDRA_ANSWERS):
        return  # Hydra answers by itself, or composes what only it can; jobs are checked again when they start
    multirun = bool(options & {"-m", "--multirun"})
    if multirun and program == "evaluate":
        raise ConfigurationError("evaluate.py evaluates one run at a time; runs=<sweep folder> compares several")
    overrides = composition.parse_overrides([argument for argument in given if not argument.startswith("-")])
    swept = composition.swept_keys(overrides)
    if "runs" in swept:
        values = next(override.input_line or "" for override in overrides if override.key_or_group == "runs")
        raise ConfigurationError(f"several runs are written as a list: 'runs=[{values.partition('=')[2]}]'")
    if swept and not multirun:
        command = shlex.join(["python", f"{program}.py", "-m", *given])
        raise ConfigurationError(
            f"{', '.join(swept)} has several values (one value with a comma needs quotes inside quotes: "
            f"\"data.root='/a,b'\"); for one run each: {command}"
        )
    composition.register(swept)
    jobs = composition.expand_sweep(overrides)
    for job in jobs:
        composition.compose_checked(program, job)
    folders = [composition.sweep_choice(job) for job in jobs]
    shared = sorted({folder for folder in folders if folders.count(folder) > 1})
    if multirun and shared:
        raise ConfigurationError(f"several runs of the sweep would share a folder: {listed(shared)}; drop equal values")
    if program == "train":
        folder = composition.output_folder(program, jobs[0], multirun=multirun)
        if (folder / RUN_JSON).exists():
            raise RunFolderError(
                f"{folder} holds a run already; resume={folder} goes on with it, another hydra.run.dir starts anew"
            )
        if multirun:
            _check_runs_there(folder, dict(zip(folders, jobs, strict=True)))
        _check_access(folder)


def _check_runs_there(sweep: Path, jobs: Mapping[str, Sequence[str]]) -> None:
    """Makes sure that what a sweep's folder holds already are runs of this sweep, which then goes on.

    Raises:
        RunFolderError: If one of them is another run.
    """
    from breakhis_pl import composition, resuming  # noqa: PLC0415 - imports Hydra

    for name, job in jobs.items():
        if (sweep / name / RUN_JSON).exists():
            resuming.check_same(sweep / name, composition.compose_checked("train", job))


def _check_access(folder: Path) -> None:
    """Makes sure that a run can go into a folder, before anything is written into it.

    Raises:
        StorageError: If it could not be written to.
    """
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise StorageError(f"{folder} cannot be written: no access to {there}; set hydra.run.dir to a folder elsewhere")


def _compare_runs(config: EvaluateConfig) -> None:
    """Writes the comparison of a sweep's runs into its folder, or of several runs into a folder of their own."""
    from breakhis_pl.evaluation.comparison import write_comparison  # noqa: PLC0415 - imports numpy

    if isinstance(config.runs, str) and config.out is None:
        page = write_comparison(Path(config.runs))
    else:
        runs = [config.runs] if isinstance(config.runs, str) else config.runs
        moment = datetime.now().astimezone().strftime("%Y-%m-%d/%H-%M-%S")
        folder = Path(config.out or f"outputs/comparisons/{moment}")
        page = write_comparison(folder, runs=[Path(run) for run in runs])
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
    from hydra.core.hydra_config import HydraConfig  # noqa: PLC0415
    from hydra.types import RunMode  # noqa: PLC0415

    from breakhis_pl import composition  # noqa: PLC0415

    failures: list[str] = []

    def job(composed: Any) -> None:
        settings = HydraConfig.get()
        in_sweep = settings.mode == RunMode.MULTIRUN
        folder = Path(settings.runtime.output_dir)
        if program == "train":
            again = [argument for argument in given if not argument.startswith("hydra.sweep.dir=")]
            sweep = [*again, f"hydra.sweep.dir={shlex.quote(settings.sweep.dir)}"]
            unfinished.command = ["python", "train.py", *(sweep if in_sweep else [f"resume={folder}"])]
        try:
            _run_job(composition.typed(program, composed), folder)
            unfinished.command = unfinished.command if in_sweep else None
        except (BreakHisError, OSError) as error:
            if os.environ.get("HYDRA_FULL_ERROR"):
                raise
            failures.append(f"{folder.name}: {error}" if in_sweep else str(error))
            if in_sweep:  # said now, and in the run's log, where the comparison finds it
                log.error("%s", error)
        finally:
            if in_sweep and program == "train":
                _compare(Path(settings.sweep.dir))

    sys.argv[1:] = given
    hydra.main(version_base="1.3", config_path=str(_CONF_FOLDER), config_name=program)(job)()
    if failures:
        head = f"{len(failures)} runs failed:\n" if len(failures) > 1 else ""
        sys.stderr.write(head + "\n".join(failures) + "\n")
        raise SystemExit(1)


def _run_job(config: Any, folder: Path) -> None:
    """One job with its typed configuration.

    Raises:
        BreakHisError: If it cannot be done.
        OSError: If a file cannot be read or written.
    """
    if isinstance(config, EvaluateConfig) and config.runs is not None:
        _compare_runs(config)
        return
    is_there = isinstance(config, TrainConfig) and (folder / RUN_JSON).exists()
    if is_there:
        from breakhis_pl import resuming  # noqa: PLC0415 - imports Hydra

        resuming.check_same(folder, config)
        if resuming.is_finished(folder, config):
            log.info("%s is finished already", folder)
            return
    _check_images(config)
    from breakhis_pl import run  # noqa: PLC0415 - imports torch

    if not isinstance(config, TrainConfig):
        run.evaluate(config)
    elif is_there:
        run.resume(config, folder)
    else:
        run.train(config, folder)


def _check_images(config: Any) -> None:
    """Makes sure that a training's folder of images is one, before torch is imported.

    Raises:
        BreakHisError: If it is not.
    """
    if isinstance(config, TrainConfig) and isinstance(config.data, BreakHisDataConfig):
        from breakhis_pl.data.index import index_images  # noqa: PLC0415

        index_images(Path(config.data.root), config.data.magnification)
