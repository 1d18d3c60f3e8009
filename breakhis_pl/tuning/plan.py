"""What a study is to do, from the command line: checked at the door, kept in study.json, the same when it goes on."""

import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from breakhis_pl import composition
from breakhis_pl.config import TrainConfig, TuneConfig, TuningConfig
from breakhis_pl.errors import ConfigurationError, RunFolderError, listed
from breakhis_pl.files import write_text
from breakhis_pl.resuming import flat
from breakhis_pl.tuning.space import Dimension, Parameters, corners, overrides_of, read_space

STUDY_JSON = "study.json"
"""Inside the folder of a study."""

CHANGEABLE = (
    *("config.trainer.progress_bar", "config.trainer.checkpoint_share", "config.data.root", "config.data.cache_dir"),
    *("tuning.n_trials", "tuning.timeout_s", "tuning.keep_checkpoints"),
)
"""What may differ when a study goes on."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A study as the command line asks for it.

    Attributes:
        folder: Of the study.
        tuning: The keys of `tuning`.
        space: What is searched.
        overrides: Of every trial, as for train.py.
        config: What they compose without a trial's own.
    """

    folder: Path
    tuning: TuningConfig
    space: tuple[Dimension, ...]
    overrides: tuple[str, ...]
    config: TrainConfig

    @property
    def is_minimized(self) -> bool:
        """Whether less of the metric is better."""
        return self.tuning.metric == "val_loss"

    def trial_overrides(self, parameters: Parameters) -> list[str]:
        """What train.py would be given for a trial."""
        return [*self.overrides, *overrides_of(parameters)]

    def trial_config(self, parameters: Parameters) -> TrainConfig:
        """The typed configuration of a trial.

        Raises:
            ConfigurationError: If its values are not possible together.
        """
        config: TrainConfig = composition.compose_checked("train", self.trial_overrides(parameters))
        return config


def make_plan(overrides: Sequence[str]) -> Plan:
    """The plan of a command.

    A key that the command line sets is not searched, whatever the space says.

    Args:
        overrides: Of tune.py.

    Raises:
        ConfigurationError: If a key or a value is not possible, nothing is left to search, there are no validation
            images, or Optuna is not installed.
    """
    if find_spec("optuna") is None:
        raise ConfigurationError("tune.py needs Optuna, which is not installed; get it with: uv sync --extra tune")
    asked: TuneConfig = composition.compose_checked("tune", overrides)
    parsed = composition.parse_overrides(overrides)
    own = [
        override.input_line or ""
        for override in parsed
        if override.key_or_group.partition(".")[0] not in ("study", "tuning", "space", "hydra")
        or override.key_or_group == "hydra.searchpath"
    ]
    given = {override.key_or_group for override in parsed}
    space = tuple(each for each in read_space(asked.space) if each.key not in given)
    if not space:
        raise ConfigurationError(f"nothing is left to search: the command sets {listed(sorted(given))} itself")
    config: TrainConfig = composition.compose_checked("train", own)
    _check_choosable(asked, config)
    if config.trainer.is_distributed:
        raise ConfigurationError(
            f"trainer.devices={config.trainer.devices} trainer.strategy={config.trainer.strategy}: one process trains "
            "a trial; start the command several times for trials at once, each with a device of its own"
        )
    return Plan(Path(asked.study), asked.tuning, space, tuple(own), config)


def _check_choosable(asked: TuneConfig, config: TrainConfig) -> None:
    """Makes sure that trials can be chosen by images that are neither train nor test.

    Raises:
        ConfigurationError: If not.
    """
    if config.data.val_fraction == 0:
        raise ConfigurationError(
            f"tuning.metric={asked.tuning.metric} needs validation images, and nothing is chosen by train or test "
            "images; take some out of train with data.val_fraction above 0, as in data.val_fraction=0.2"
        )
    if asked.tuning.seeds_per_trial > 1 and config.data.split == "ratio":
        raise ConfigurationError(
            f"tuning.seeds_per_trial={asked.tuning.seeds_per_trial} is not possible with data.split=ratio: its test "
            "images follow the seed, so that one seed's validation images are another one's test images; "
            "use data.split=official, or one seed"
        )
    if asked.tuning.warmup_epochs >= config.trainer.max_epochs and asked.tuning.pruner != "none":
        raise ConfigurationError(
            f"tuning.warmup_epochs={asked.tuning.warmup_epochs} leaves nothing to prune of trainer.max_epochs="
            f"{config.trainer.max_epochs}; lower it, or set tuning.pruner=none"
        )


def check_corners(plan: Plan) -> None:
    """Composes the bounds of the space, so that a key that does not exist or a value out of its bounds is found now.

    Raises:
        ConfigurationError: If one is.
    """
    for parameters in corners(plan.space):
        try:
            plan.trial_config(parameters)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"{error}\nthis is a bound of the space (conf/space/): {' '.join(overrides_of(parameters))}"
            ) from error


def check_same_study(plan: Plan) -> None:
    """Makes sure that a folder holds no study, or this one.

    Raises:
        RunFolderError: If it holds another one, naming what differs.
    """
    if not (plan.folder / STUDY_JSON).exists():
        return
    there, here = flat(_read(plan.folder)["asked"]), flat(_asked(plan))
    differing = [
        f"{key.removeprefix('config.')} ({there.get(key, 'not')} there, {here.get(key, 'not')} here)"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key) and key not in CHANGEABLE
    ]
    if differing:
        raise RunFolderError(
            f"{plan.folder} holds another study: {listed(differing)}; choose another folder with study=<folder>"
        )


def name_of_study(plan: Plan) -> str:
    """The name of the study in its database; study.json is written where there is none.

    Raises:
        RunFolderError: If it holds another study, or is damaged.
        OSError: If it cannot be written.
    """
    check_same_study(plan)
    if not (plan.folder / STUDY_JSON).exists():
        name = f"{plan.folder.absolute().name}-{secrets.token_hex(4)}"
        text = json.dumps({"name": name, "asked": _asked(plan)}, indent=2, ensure_ascii=False)
        write_text(plan.folder / STUDY_JSON, text + "\n")
    return str(_read(plan.folder)["name"])


def _asked(plan: Plan) -> dict[str, Any]:
    return {
        "config": composition.plain(plan.config),
        "space": {each.key: each.plain() for each in plan.space},
        "tuning": asdict(plan.tuning),
    }


def _read(folder: Path) -> dict[str, Any]:
    path = folder / STUDY_JSON
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        is_one = isinstance(content["asked"], dict) and isinstance(content["name"], str)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise RunFolderError(f"{path} is damaged: {error!r}; start a study in another folder") from error
    if not is_one:
        raise RunFolderError(f"{path} is not the study.json of a study; start a study in another folder")
    return dict(content)
