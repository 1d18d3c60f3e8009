"""All keys of tune.py: type, bounds, meaning, and the rules across them."""

import importlib.util
from collections.abc import Iterator
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from breakhis_pl.config import BreakHisNamesConfig, Group, Monitor, TrainConfig, UserPath, refuse


class TuningConfig(Group):
    """Keys of `tuning`."""

    n_trials: int = Field(ge=1)
    """Trials of the study, pruned and failed ones included."""
    timeout_s: float | None = Field(gt=0)
    """Seconds after which no further trial is started."""
    metric: Monitor
    """Validation metric that is optimized."""
    seed: int = Field(ge=0)
    """Seed of Optuna's TPE sampler."""
    startup_trials: int = Field(ge=1)
    """Random trials before TPE starts."""
    warmup_epochs: int = Field(ge=1)
    """Epochs of every trial before it may be pruned."""
    warmup_trials: int = Field(ge=1)
    """Finished trials before Optuna's median pruner starts."""
    seeds_per_trial: int = Field(ge=1)
    """Trainings per trial, with consecutive seeds; their mean counts."""
    storage: str | None
    """URL of a database; null: study.db in the study's folder."""
    keep_checkpoints: bool
    """Keep the checkpoints of finished trials."""


Value: TypeAlias = str | int | float | bool | None


class Choice(Group):
    """Searched key that takes one of several values."""

    type: Literal["choice"]
    """Kind of values."""
    choices: tuple[Value, ...] = Field(min_length=2)
    """The values; options if the key is a group."""


class Range(Group):
    """Searched key that takes a number between two bounds."""

    type: Literal["float", "int"]
    """Kind of values."""
    low: float
    """Smallest number."""
    high: float
    """Largest number."""
    log: bool = False
    """Draw numbers on a logarithmic scale."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError(f"low={self.low:g}: must be {'above 0 and ' if self.log else ''}below high={self.high:g}")
        if self.type == "int" and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"low={self.low:g} high={self.high:g}: must be whole numbers with type=int")
        return self


SearchedKey: TypeAlias = Annotated[Choice | Range, Field(discriminator="type")]

SEARCHABLE = ("data.balance", "data.batch_size", "data.image_size", "data.stain", "trainer.max_epochs")
NOT_SEARCHABLE = ("data", "debug", "experiment", "gallery", "hydra", "logger", "resume", "seed", "task", "trainer")
"""Groups and keys that cannot be searched, except `SEARCHABLE`: they decide what is measured, and how."""


class TuneConfig(TrainConfig):
    """All keys of tune.py: those of train.py, which the trials share, and the search."""

    study: UserPath
    """Folder of the study."""
    tuning: TuningConfig
    search_space: dict[str, SearchedKey]
    """Values that each searched key may take."""

    @model_validator(mode="after")
    def _check_study(self) -> Self:
        refuse(_tune_rules(self))
        return self


def _tune_rules(config: TuneConfig) -> Iterator[str]:
    if importlib.util.find_spec("optuna") is None:
        yield "tune.py: needs the package optuna; run `uv sync --extra all`"
    if config.data.val_fraction == 0 and isinstance(config.data, BreakHisNamesConfig):
        yield "data.val_fraction=0: trials are compared by validation images; set data.val_fraction=0.2"
    if config.trainer.is_distributed:
        yield "trainer.strategy: a trial runs in one process; start the command several times"
    if config.resume is not None:
        yield f"resume={config.resume}: is for train.py; the same command resumes a study"
    if config.trainer.fast_dev_run:
        yield "trainer.fast_dev_run=true: writes no results to compare; drop it"
    if config.tuning.seeds_per_trial > 1 and config.data.split != "official":
        why = "without data.split=official, validation images of one seed are test images of another"
        yield f"tuning.seeds_per_trial={config.tuning.seeds_per_trial}: {why}; set it to 1"
    for key in config.search_space:
        if key.partition(".")[0] in NOT_SEARCHABLE and key not in SEARCHABLE:
            yield f"search_space.{key}: cannot be searched, because trials would not be comparable"
