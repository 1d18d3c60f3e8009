"""Going on with a run: which configuration it has, and what of it may change; without torch."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from breakhis_pl import composition
from breakhis_pl.config import TrainConfig
from breakhis_pl.errors import ConfigurationError, RunFolderError, listed
from breakhis_pl.run_json import REPORT_PAGE, RUN_JSON, read_run

CHANGEABLE = (
    "trainer.max_epochs",
    "trainer.progress_bar",
    "trainer.checkpoint_share",
    "trainer.strategy",
    "trainer.devices",
    "trainer.num_nodes",
    "data.root",
    "data.cache_dir",
    "logger",
)
"""Keys that may have another value when a run goes on; none of them changes what an epoch computes, but for the number
of processes, which batch norm and dropout see."""


def resumed_config(folder: Path, changes: Sequence[Override]) -> TrainConfig:
    """The configuration a run goes on with: its own, with the changes asked for.

    Args:
        folder: The run folder.
        changes: Overrides of the command line besides `resume`.

    Raises:
        RunFolderError: If the folder is none of a run.
        ConfigurationError: If a key may not change, naming it, or a value is not possible.
    """
    values = OmegaConf.create(read_run(folder)["config"])
    refused = [change.get_key_element() for change in changes if not _may_change(change.key_or_group)]
    if refused:
        raise ConfigurationError(
            f"resume={folder} goes on with the configuration in its {RUN_JSON}; {listed(refused)} cannot change "
            f"(only {', '.join(CHANGEABLE)} can)"
        )
    for change in changes:
        if change.is_sweep_override() or change.is_delete():
            raise ConfigurationError(f"resume={folder} takes one value for each key, not {change.input_line}")
        if change.key_or_group == "logger":
            option = composition.compose_checked("train", [change.input_line or ""]).logger
            OmegaConf.update(values, "logger", composition.plain(option), merge=False)
        else:
            OmegaConf.update(values, change.key_or_group, change.value(), force_add=False)
    own: TrainConfig = composition.restored("train", read_run(folder)["config"])
    config: TrainConfig = composition.restored("train", OmegaConf.to_container(values))  # type: ignore[arg-type]
    _check_epochs(folder, own, config)
    return config


def _may_change(key: str) -> bool:
    """Whether a key may have another value when a run goes on."""
    return key in CHANGEABLE or key.startswith("logger.")


def is_finished(folder: Path, config: TrainConfig) -> bool:
    """Whether a run has all the epochs, results and the page that it is to have.

    Args:
        folder: The run folder.
        config: What it is to be.
    """
    run = read_run(folder)
    own: TrainConfig = composition.restored("train", run["config"])
    is_enough = own.trainer.max_epochs >= config.trainer.max_epochs or stopped_early_after(folder) is not None
    is_cut_before_its_page = not (folder / REPORT_PAGE).exists() and (folder / "checkpoints").exists()
    return run.get("status") == "finished" and is_enough and not is_cut_before_its_page


def stopped_early_after(folder: Path) -> int | None:
    """Epoch after which patience ran out in a finished run; None where it did not.

    Args:
        folder: The run folder.
    """
    selection = read_run(folder).get("selection")
    epoch = selection.get("stopped_after") if isinstance(selection, dict) else None
    return epoch if isinstance(epoch, int) else None


def check_same(folder: Path, config: TrainConfig) -> None:
    """Makes sure that the run in a folder is the one that a command asks for, so that it can go on.

    Args:
        folder: The run folder.
        config: What the command composes.

    Raises:
        RunFolderError: If it is another one, naming the keys that differ.
    """
    there, here = (
        flat(composition.plain(each)) for each in (composition.restored("train", read_run(folder)["config"]), config)
    )
    differing = [
        f"{key} ({there.get(key)} there, {here.get(key)} here)"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key) and not _may_change(key)
    ]
    if differing:
        raise RunFolderError(
            f"{folder} holds a run of another configuration: {listed(differing)}; choose another folder"
        )
    _check_epochs(folder, composition.restored("train", read_run(folder)["config"]), config)


def _check_epochs(folder: Path, own: TrainConfig, asked: TrainConfig) -> None:
    """The number of epochs may change, but for a schedule that was made for it.

    Raises:
        ConfigurationError: If it may not.
    """
    if asked.trainer.max_epochs == own.trainer.max_epochs:
        return
    if hasattr(own.scheduler, "T_max"):
        raise ConfigurationError(
            f"trainer.max_epochs={asked.trainer.max_epochs} is not possible for {folder}: its schedule was made for "
            f"{own.trainer.max_epochs} epochs (scheduler.T_max); train anew"
        )
    n_done = _n_epochs_done(folder)
    if asked.trainer.max_epochs < n_done:
        raise ConfigurationError(
            f"trainer.max_epochs={asked.trainer.max_epochs} is not possible for {folder}: {n_done} epochs are done"
        )


def _n_epochs_done(folder: Path) -> int:
    """Rows of history.csv, which is never behind the checkpoint."""
    path = folder / "history.csv"
    return max(0, path.read_bytes().count(b"\n") - 1) if path.is_file() else 0


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Values by dotted key, as JSON, so that what was read and what was composed compare."""
    return dict(_leaves(values, prefix))


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.dumps(value)
