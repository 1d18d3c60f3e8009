"""What the top-level programs share: help at once, every job of a command checked before the first one starts.

Hydra is imported only after `--help` has been answered, torch only after the configuration was found possible.
"""

import importlib.util
import logging
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from breakhis_pl.config import (
    BreakHisDataConfig,
    EvaluateConfig,
    PredictConfig,
    ProgramName,
    TrainConfig,
    TuneConfig,
    all_magnifications,
)
from breakhis_pl.errors import BreakHisError, ConfigurationError, RunFolderError, Stopped, StorageError, listed
from breakhis_pl.processes import given_place, is_follower, is_shared
from breakhis_pl.run_json import RUN_JSON

log = logging.getLogger(__name__)

_CONF_FOLDER = Path(__file__).resolve().parent.parent / "conf"
_OWN_COMPOSITION = {"--config-name", "-cn", "--config-path", "-cp", "--config-dir", "-cd", "--experimental-rerun"}
_HYDRA_ANSWERS = {"--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc", "--resolve"}

_PATIENCE_S = 30
"""Seconds in which a process that was told to end may write what it has."""

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
  python train.py 'data.magnification=[40,100,200,400]' data.test_magnification=200

The real images: python -m breakhis_pl.data.download fetches them (4 GB) into data/.

Groups and their options (* is the default)
{groups}

Keys used most
  data.root=data              folder with the images, in any arrangement
  data.fold=2                 the authors' fold, 1 to 5
  data.magnification=200      40, 100, 200, 400 or a list: '[40,200]'
  data.image_size=224         side in pixels;  data.batch_size=32
  data.require_complete=false use an incomplete folder of images
  data.test_magnification=200 test at other magnifications than train;  data.group=patient (split=ratio)
  data.val_fraction=0.2       take whole cases out of train for validation: calibration, threshold
  data.balance=sampler        or downsample, loss: train images of unequal classes;  data.stain=macenko, reinhard
  trainer.monitor=val_loss    the best epoch on validation images counts; trainer.patience=5 stops early
  model.weights=imagenet      none, or a file with a state dict (.pth, for model=timm also .safetensors)
  model.backbone=resnet50     any name of torchvision (model=torchvision) or timm (model=timm)
  model.arguments             how timm builds the network, a dict; examples: docs/networks.md
  model.head=report           linear, or svm: one layer, with hinge loss;  model.dropout=0.4 (report)
  model.freeze=true           train the head alone; with augmentation=none and one layer it is solved for (model.l2)
  trainer.max_epochs=15       seed=0
  task=subtype                tell the eight tumor types apart; evaluated as benign or malignant, and by type
  augmentation.stain=0.2      one transform alone: zoom, shift, stain, hue, blur, …; augmentation=strong has them all
  training.label_smoothing=0  training.mixup=0  training.ema_decay=null (0.999)  scheduler=warmup_cosine
  training.layer_decay=1      training.frozen_epochs=0: learning rates by layer, the head alone at first
  trainer=ddp trainer.devices=8    on 8 GPUs; data.batch_size is that of all together (docs/scaling.md)
  -m hydra/launcher=submitit_slurm seed=0,1    each run of a sweep a job of a cluster; submitit_local: of this machine
  hydra.run.dir=<folder>      where the run goes; else outputs/<date>/<time>_<model>/
  logger=tensorboard          csv, mlflow (logger.tracking_uri=http://…) or wandb: docs/loggers.md
  resume=<run folder>         go on with a run that was cut; a sweep: its command with hydra.sweep.dir=<folder>
  repeat=<run folder>         train anew with the configuration in its run.json; more keys change it

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
  python evaluate.py 'runs=[<run folder>,<run folder>]' ensemble=true    average their probabilities, compare with each
  python evaluate.py run=<run folder> tta=dihedral                       average over the eight flips and quarter turns
  python -m breakhis_pl.evaluation <run folder>/test/predictions.csv     the numbers alone, without torch
  python predict.py run=<run folder> images=<file or folder>             pictures that belong to no data set

Keys
  run                  run folder to evaluate; or
  runs                 folder of a sweep, or list of run folders, to compare; out=<folder> says where to
  ensemble=false       average the runs' probabilities for the same test images, into out or outputs/ensembles/
  tta=none             none, flips (4 views) or dihedral (8), into <run folder>/test_<tta>/; ensemble: of these tables
  checkpoint=auto      best where an epoch was chosen (trainer.monitor), else last; best, last, or a path
  subset=test          test, val or train
  calibrate=false      fit temperature and threshold on the run's validation images again, for sensitivity (0.95)
  gallery=8            pictures of each kind that Grad-CAM explains, 0 for none
  data.root            folder of the images, where they have moved
  data.cache_dir       folder of the stores of decoded images; the run's own unless given
  data.batch_size      images per step; the run's own unless given
  trainer.accelerator=auto   auto, cpu, gpu or mps;  trainer.precision=auto;  trainer.devices=1 GPUs share the work
""",
    "tune": """\
tune.py searches for a better configuration by the validation images alone; test images are not looked at.

usage: python tune.py study=<folder> data.val_fraction=<share> [group=option …] [key=value …]

Needs Optuna: uv sync --extra tune

Examples
  python tune.py study=studies/first data.val_fraction=0.2                  20 trials of the report's ResNet-18
  python tune.py study=studies/demo data.val_fraction=0.2 experiment=demo tuning.n_trials=8       on drawn images
  python tune.py study=studies/sgd data.val_fraction=0.2 space=optimizer tuning.metric=val_auroc
  python tune.py study=studies/lr data.val_fraction=0.2 model.dropout=0.4   a key that is set here is not searched

The same command goes on with a study that was cut, also from several processes at once.

Groups and their options (* is the default)
{groups}

Keys
  study                       folder of the study: page, table, database, a run folder for each trial
  space=default               what is searched: a file in conf/space/
  tuning.n_trials=20          trials in all, pruned and failed ones included;  tuning.timeout_s starts none after it
  tuning.metric=val_loss      or val_balanced_accuracy, val_auroc, val_accuracy
  tuning.sampler=tpe          or random;  tuning.startup_trials=10 are random for tpe as well;  tuning.seed=0
  tuning.pruner=median        or hyperband, none;  tuning.warmup_epochs=2, tuning.warmup_trials=5 are left alone
  tuning.seeds_per_trial=1    trainings per trial, whose mean value counts
  tuning.storage              URL of a database instead of study.db in the study's folder
  tuning.keep_checkpoints=false
  and all keys of train.py, for every trial: python train.py --help

Afterwards: study.html in the study's folder says how to train the best configuration and evaluate it on test.
""",
    "predict": """\
predict.py predicts pictures with a trained network: a table with a row for each, in a folder of its own.

usage: python predict.py run=<run folder or exported network> images=<file, folder or pattern> [key=value …]

Examples
  python predict.py run=outputs/2026-01-31/12-00-00_resnet18 images=slides
  python predict.py run=<run folder> images=picture.jpg hydra.run.dir=answer
  python predict.py run=<run folder> 'images=slides/**/*.tif' gradcam=20   and what speaks for the first 20 answers
  python predict.py run=<run folder> 'images=[slides,other/picture.png]'
  python -m breakhis_pl.export_onnx run=<run folder> out=network.onnx      one file, to be run without torch
  python predict.py run=network.onnx images=slides

Keys
  run                  run folder, or a file that breakhis_pl.export_onnx wrote
  images               file, folder (searched to any depth), pattern, or a list of these; PNG, JPEG, TIFF, BMP, WebP, …
  checkpoint=auto      best where an epoch was chosen, else last; best, last, or a path
  batch_size=32        images per step;  threads: that decode images, one per core unless given
  gradcam=false        true, or for how many images to draw what speaks for the answer
  trainer.accelerator=auto   auto, cpu, gpu or mps;  trainer.precision=auto
  hydra.run.dir=<folder>     where the table goes; else outputs/<date>/<time>_predict/

Pictures that cannot be read are listed in unreadable.csv; the exit status is 1 then.
This is research software, not a medical device. What the columns mean: docs/predict.md
""",
}


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
            _check_texts(given)
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
    _check_launcher(given, multirun=bool({"-m", "--multirun"} & set(given)))
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


def _check_texts(texts: Sequence[str]) -> None:
    """Makes sure that given names, and that of this folder, can be written into tables, curves and Hydra's files.

    Raises:
        ConfigurationError: If one holds bytes that are no UTF-8.
    """
    for text in (*texts, str(Path.cwd())):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ConfigurationError(
                f"{text!a} holds bytes that are no text in UTF-8; rename that file or folder, "
                "or reach it by a link of another name"
            ) from None


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
    _check_access(folder)
    unfinished.command = ["python", "train.py", *given]
    try:
        with jobs.logging_to(folder / "train.log"):
            _check_images(config)
            jobs.start(config, folder, goes_on=True)
    except (BreakHisError, OSError) as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        sys.stderr.write(f"{error}\n")
        raise SystemExit(1) from None


def help_text(program: ProgramName) -> str:
    """What `--help` prints; needs no third-party package."""
    text = _HELP[program]
    return text.format(groups=_groups(program)) if "{groups}" in text else text


def _groups(program: ProgramName) -> str:
    """Every group of a program with its options and what they are for, from the first comment of their files."""
    chosen = _defaults(program)
    lines = []
    groups = (path for path in _CONF_FOLDER.iterdir() if path.is_dir() and (path.name != "space" or program == "tune"))
    for folder in sorted(groups, key=lambda path: path.name):
        for index, option in enumerate(sorted(folder.glob("*.yaml"))):
            mark = "*" if chosen.get(folder.name) == option.stem else " "
            start = f"{folder.name}=" if index == 0 else ""
            lines.append(f"  {start:<14}{option.stem + mark:<16}{_first_comment(option)}")
    return "\n".join(lines)


def _defaults(program: ProgramName) -> dict[str, str]:
    """Option by group in the defaults list of a program."""
    file = _CONF_FOLDER / f"{program}.yaml"
    pairs = (line.strip().removeprefix("- ").partition(": ") for line in _read_lines(file))
    return {group: option for group, separator, option in pairs if separator}


def _first_comment(file: Path) -> str:
    comments = (line[2:] for line in _read_lines(file) if line.startswith("# ") and not line.startswith("# @"))
    return next(comments, "")


def _read_lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


_ONE_AT_A_TIME = {
    "evaluate": "evaluate.py evaluates one run at a time; runs=<sweep folder> compares several",
    "predict": "predict.py predicts with one run at a time; images=[…] takes several folders",
}
"""Programs without sweeps, and what to do instead."""


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
    _check_launcher(given, multirun=multirun)
    if multirun and program in _ONE_AT_A_TIME:
        raise ConfigurationError(_ONE_AT_A_TIME[program])
    overrides = composition.parse_overrides([argument for argument in given if not argument.startswith("-")])
    if program == "tune":
        _check_study(overrides, multirun=multirun)
        return
    swept = composition.swept_keys(overrides)
    for name in {"runs", "images"} & set(swept):
        values = next(override.input_line or "" for override in overrides if override.key_or_group == name)
        raise ConfigurationError(f"several {name} are written as a list: '{name}=[{values.partition('=')[2]}]'")
    if swept and not multirun:
        command = shlex.join(["python", f"{program}.py", "-m", *given])
        raise ConfigurationError(
            f"{', '.join(swept)} has several values (one value with a comma needs quotes inside quotes: "
            f"\"data.root='/a,b'\"); for one run each: {command}"
        )
    composition.register(swept)
    jobs = composition.expand_sweep(overrides)
    for job in jobs:
        trainer = composition.compose_checked(program, job).trainer
        if not _asked_launcher(given):  # else processes start elsewhere
            given_place(os.environ, devices=trainer.devices, num_nodes=trainer.num_nodes)
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
    if program == "predict":
        _check_access(composition.output_folder(program, jobs[0], multirun=False))


def _check_study(overrides: Sequence[Any], *, multirun: bool) -> None:
    """Checks the bounds of a study, and that its folder is its own.

    Raises:
        BreakHisError: If anything is not possible.
    """
    from breakhis_pl import composition  # noqa: PLC0415 - imports Hydra
    from breakhis_pl.tuning import plan as studies  # noqa: PLC0415

    swept = composition.swept_keys(overrides)
    if multirun or swept:
        raise ConfigurationError(
            f"tune.py takes one value for each key, not several of {listed(swept or ['-m'])}: what it is to search "
            "stands in a file of conf/space/"
        )
    plan = studies.make_plan([override.input_line or "" for override in overrides])
    studies.check_corners(plan)
    studies.check_same_study(plan)
    _check_access(plan.folder)


def _check_launcher(given: Sequence[str], *, multirun: bool) -> None:
    """Makes sure that what starts runs, or has started this process, fits the command.

    Raises:
        ConfigurationError: If it does not.
    """
    launcher = _asked_launcher(given)
    if launcher and not multirun:
        raise ConfigurationError(f"hydra/launcher={launcher} starts the runs of a sweep; add -m")
    if launcher.startswith("submitit") and importlib.util.find_spec("submitit") is None:
        raise ConfigurationError(
            f"hydra/launcher={launcher} needs a package that is not installed: uv sync --extra slurm"
        )
    if launcher == "submitit_slurm" and shutil.which("srun") is None:
        raise ConfigurationError(
            "hydra/launcher=submitit_slurm: no srun here; start the sweep on a machine of the cluster, or use "
            "hydra/launcher=submitit_local"
        )
    if multirun and not launcher and is_shared(os.environ):
        raise ConfigurationError(
            "srun or torchrun has started several processes, which do one run together; for a sweep start the command "
            "once, with hydra/launcher=submitit_slurm for jobs of their own"
        )


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
        hydra.main(version_base="1.3", config_path=str(_CONF_FOLDER), config_name=program)(job)()
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

    if not _asked_launcher(given).startswith("submitit") or not {"-m", "--multirun"} & set(given):
        return None
    from breakhis_pl import launchers  # noqa: PLC0415 - needs an extra

    launchers.use()
    here = str(_CONF_FOLDER.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    overrides = composition.parse_overrides([argument for argument in given if not argument.startswith("-")])
    return composition.output_folder(program, composition.expand_sweep(overrides)[0], multirun=True).absolute()


def _asked_launcher(given: Sequence[str]) -> str:
    asked = [argument.partition("=")[2] for argument in given if argument.startswith("hydra/launcher=")]
    return asked[-1] if asked else ""


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
    _check_images(config)
    from breakhis_pl import jobs  # noqa: PLC0415 - imports Hydra

    jobs.start(config, folder, goes_on=is_there)


def _tune(config: TuneConfig, overrides: Sequence[str]) -> None:
    """Runs the trials of a study."""
    from breakhis_pl.tuning.plan import make_plan  # noqa: PLC0415 - imports Hydra

    _check_images(config)
    plan = make_plan(overrides)
    from breakhis_pl.tuning.worker import tune  # noqa: PLC0415 - imports torch and Optuna

    tune(plan)


def _check_images(config: Any) -> None:
    """Makes sure that a training's folder of images is one, before torch is imported.

    Raises:
        BreakHisError: If it is not.
    """
    if isinstance(config, TrainConfig) and isinstance(config.data, BreakHisDataConfig):
        from breakhis_pl.data.index import index_images  # noqa: PLC0415

        index_images(Path(config.data.root), all_magnifications(config.data))
