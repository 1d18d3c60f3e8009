"""The job that a command line asks for: its name, its typed configuration, and whether its inputs exist.

Imports no torch, so that a wrong configuration is refused within two seconds.
"""

import hashlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from breakhis_pl.config import (
    AppConfig,
    EvaluateConfig,
    Group,
    PredictConfig,
    SyntheticDataConfig,
    TrainConfig,
    validate,
)
from breakhis_pl.errors import ConfigurationError, RunFolderError, join_truncated
from breakhis_pl.run_folder import RESUME_KEYS, RunFolder, check_epochs

_NOT_IN_NAMES = (
    "hydra",
    "logger",
    "gallery",
    "debug",
    "data.root",
    "data.cache_dir",
    "data.require_complete",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.fast_dev_run",
    "trainer.keep_memory",
    "trainer.num_nodes",
    "trainer.progress_bar",
    "trainer.show_batch",
    "trainer.strategy",
)
"""Overrides that say where or how a run is computed, not what: they are no part of a folder's name."""


def run_name(backbone: str, overrides: ListConfig | Sequence[str]) -> str:
    """Name a run by what differs from the default configuration.

    Args:
        backbone: The network, which every name begins with.
        overrides: Overrides of the run, as in "optimizer.lr=0.01".

    Returns:
        At most 120 characters of A-Z, a-z, 0-9 and "_.+-"; another value of a key gives another name.

    Example:
        >>> run_name("resnet18", ["model=resnet18", "experiment=frozen", "seed=1", "trainer=cpu"])
        'resnet18_frozen_seed1'
    """
    words = [backbone]
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key in ("model", "trainer") or key.startswith(_NOT_IN_NAMES):
            continue
        is_option = key in ("experiment", "augmentation", "optimizer", "scheduler", "data")
        word = value if is_option else f"{key.rpartition('.')[2]}{value}"
        plain_word = re.sub(r"[^A-Za-z0-9_.+-]+", "-", Path(word).name if "/" in word else word).strip("-.")
        words.append(plain_word if plain_word == word else f"{plain_word}-{_digest(override)}")
    name = "_".join(words)
    return name if len(name) <= 120 else f"{name[:110]}-{_digest(name)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def load(model: type[Any], composed: DictConfig, overrides: Sequence[str]) -> Any:
    """Return the typed configuration of a job.

    Args:
        model: `TrainConfig` or another program's model.
        composed: What Hydra composed. With resume=<run folder>, the configuration in its run.json is used, with the
            keys of `RESUME_KEYS` that the command line sets.
        overrides: The command line's, as in "seed=1".

    Raises:
        ConfigurationError: One line per fault.
        RunFolderError: If resume= names no run folder.
    """
    resume = OmegaConf.select(composed, "resume")
    if model is not TrainConfig or resume is None:
        return validate(model, composed)
    folder = Path(str(resume)).expanduser()
    try:
        record = RunFolder(folder).read()
    except RunFolderError as error:
        raise RunFolderError(f"resume={error}") from error
    stored = validate(model, record.config)
    resumed = OmegaConf.create(record.config)
    keys = [key for key in map(key_of, overrides) if key != "resume"]
    refused = [key for key in keys if not key.startswith(RESUME_KEYS)]
    if refused:
        raise ConfigurationError(
            f"{join_truncated(refused)}: cannot change on resume; drop it, only {', '.join(RESUME_KEYS)} can"
        )
    for key in keys:
        name = "logger" if key.startswith("logger") else key
        OmegaConf.update(resumed, name, OmegaConf.select(composed, name), merge=False)
    changed: TrainConfig = validate(model, resumed)
    check_epochs(folder, stored, changed)
    return changed.model_copy(update={"resume": folder})


def key_of(override: str) -> str:
    """Return the key of an override, as in "+seed=1"."""
    return override.lstrip("+~").partition("=")[0]


def check_inputs(config: Group) -> None:
    """Check everything outside the configuration that can be checked without torch: folders, files, devices.

    Raises:
        BreakHisError: If something is missing.
    """
    accelerator = getattr(getattr(config, "trainer", None), "accelerator", "auto")
    gpu_devices = ("nvidia0", "nvidiactl", "kfd", "dxg")
    if (
        accelerator == "gpu"
        and sys.platform == "linux"
        and not any(Path("/dev", name).exists() for name in gpu_devices)
    ):
        raise ConfigurationError("trainer.accelerator=gpu: this machine has no GPU; set trainer=cpu or trainer=auto")
    if isinstance(config, TrainConfig):
        path = config.model.weights_file
        if path is not None and not path.is_file():
            raise ConfigurationError(f"model.weights={path}: is not a file; set it to imagenet, none or a file")
        if not isinstance(config.data, SyntheticDataConfig):
            from breakhis_pl.data.dataset import open_dataset  # noqa: PLC0415

            open_dataset(config.data, task=config.task)
    elif isinstance(config, EvaluateConfig):
        runs = [] if config.runs is None else config.runs if isinstance(config.runs, list) else [config.runs]
        for key, wanted in (("predictions", config.predictions), *(("runs", run) for run in runs)):
            if wanted is not None and not wanted.exists():
                raise RunFolderError(f"{key}={wanted}: does not exist")
        if config.run is not None:
            RunFolder(config.run).read()
    elif isinstance(config, PredictConfig | AppConfig):
        RunFolder(config.run).read()
