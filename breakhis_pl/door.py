"""What is checked at the door: every job of a command and where its results would go, before the first one starts."""

import importlib.util
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from breakhis_pl.config import BreakHisDataConfig, ProgramName, TrainConfig, all_magnifications
from breakhis_pl.errors import ConfigurationError, RunFolderError, StorageError, listed
from breakhis_pl.processes import given_place, is_shared
from breakhis_pl.run_json import RUN_JSON

_OWN_COMPOSITION = {"--config-name", "-cn", "--config-path", "-cp", "--config-dir", "-cd", "--experimental-rerun"}
_HYDRA_ANSWERS = {"--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc", "--resolve"}


def check_texts(texts: Sequence[str]) -> None:
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
    check_launcher(given, multirun=multirun)
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
        if not asked_launcher(given):  # else processes start elsewhere
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
        check_access(folder)
    if program == "predict":
        check_access(composition.output_folder(program, jobs[0], multirun=False))


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
    check_access(plan.folder)


def check_launcher(given: Sequence[str], *, multirun: bool) -> None:
    """Makes sure that what starts runs, or has started this process, fits the command.

    Raises:
        ConfigurationError: If it does not.
    """
    launcher = asked_launcher(given)
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


def check_access(folder: Path) -> None:
    """Makes sure that a run can go into a folder, before anything is written into it.

    Raises:
        StorageError: If it could not be written to.
    """
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise StorageError(f"{folder} cannot be written: no access to {there}; set hydra.run.dir to a folder elsewhere")


def asked_launcher(given: Sequence[str]) -> str:
    """What starts the runs of a sweep, as the command line says; empty where it does not."""
    asked = [argument.partition("=")[2] for argument in given if argument.startswith("hydra/launcher=")]
    return asked[-1] if asked else ""


def check_images(config: Any) -> None:
    """Makes sure that a training's folder of images is one, before torch is imported.

    Raises:
        BreakHisError: If it is not.
    """
    if isinstance(config, TrainConfig) and isinstance(config.data, BreakHisDataConfig):
        from breakhis_pl.data.index import index_images  # noqa: PLC0415

        index_images(Path(config.data.root), all_magnifications(config.data))
