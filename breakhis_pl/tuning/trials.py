"""The trials of a study as plain records, and study.csv; without torch and Optuna."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from breakhis_pl.evaluation.csv_tables import csv_text
from breakhis_pl.tuning.space import Dimension, Parameters

State: TypeAlias = Literal["complete", "pruned", "failed", "running"]

FEWEST_FOR_IMPORTANCES = 10
"""Complete trials from which on importances are computed; of fewer, the best fifth would be a single one."""


@dataclass(frozen=True, slots=True)
class TrialRow:
    """A trial.

    Attributes:
        number: From 0 on, also the name of its folder.
        state: What became of it.
        value: Of the metric; of a pruned trial that of its last epoch; None where there is none.
        epochs: Value of the metric by epoch, from 1 on.
        seconds: From its start to its end; None while it runs.
        parameters: Its own values.
        reason: Why it was pruned or has failed.
    """

    number: int
    state: State
    value: float | None
    epochs: Mapping[int, float]
    seconds: float | None
    parameters: Parameters
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StudySummary:
    """A study so far.

    Attributes:
        name: Of its folder.
        metric: What is searched for.
        is_minimized: Whether less is better.
        n_trials: How many there are to be.
        space: What is searched.
        trials: By number.
        importances: Share by key, of 1 in all; empty where there are too few trials.
    """

    name: str
    metric: str
    is_minimized: bool
    n_trials: int
    space: Sequence[Dimension]
    trials: Sequence[TrialRow]
    importances: Mapping[str, float] = field(default_factory=dict)

    @property
    def complete(self) -> list[TrialRow]:
        """Trials with a value of all their epochs."""
        return [each for each in self.trials if each.state == "complete" and each.value is not None]

    @property
    def best(self) -> TrialRow | None:
        """The first trial with the best value; None while none is complete."""
        if not self.complete:
            return None
        return min(self.complete, key=lambda each: self.loss(each.value))

    def loss(self, value: float | None) -> float:
        """A value, turned so that less is better; what is missing is worst."""
        if value is None:
            return math.inf
        return value if self.is_minimized else -value

    def counts(self) -> str:
        """How many trials are in each state, in words."""
        return ", ".join(f"{self.count(state)} {state}" for state in get_args(State) if self.count(state))

    def count(self, state: State) -> int:
        """Number of trials in a state."""
        return sum(each.state == state for each in self.trials)


def study_csv(study: StudySummary) -> str:
    """study.csv: a row per trial, with all digits."""
    keys = [each.key for each in study.space]
    rows = [
        [
            *(each.number, each.state, each.value, len(each.epochs), each.seconds, each.reason),
            *(_cell(each.parameters.get(key)) for key in keys),
        ]
        for each in study.trials
    ]
    return csv_text(["number", "state", study.metric, "epochs", "seconds", "reason", *keys], rows)


def _cell(value: object) -> object:
    return str(value).lower() if isinstance(value, bool) else value
