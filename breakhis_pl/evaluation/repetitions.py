"""Runs that repeat one configuration with other seeds or on other folds: their means and standard deviations.

A fold is one value: where several runs (seeds) share it, their mean. The spread over folds is that of these values, so
that a fold with more seeds weighs no more than another.
"""

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from breakhis_pl.evaluation.run_summary import Estimate, RunSummary
from breakhis_pl.evaluation.texts import one_line

_SAME_TRAINING = frozenset(
    {
        *("seed", "data.fold", "gallery", "data.cache_dir", "data.verify"),
        *("trainer.progress_bar", "trainer.checkpoint_share"),
    }
)
"""Keys by which repetitions may differ: what is repeated, and what changes no network."""

_NAMED_FIRST = "model.backbone"

_N_FURTHER = 2
"""Keys of a group of the configuration that a name takes along."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation of a metric.

    Attributes:
        mean: Of the values.
        deviation: Their sample standard deviation, with n - 1 below.
        n: Number of values, 2 or more.
    """

    mean: float
    deviation: float
    n: int

    def __str__(self) -> str:
        """As papers write it, "0.893 ± 0.021"."""
        return f"{self.mean:.3f} \N{PLUS-MINUS SIGN} {self.deviation:.3f}"


@dataclass(frozen=True, slots=True)
class Repetitions:
    """Runs of one configuration.

    Attributes:
        name: The network, and the keys by which the configuration differs from the others that are compared.
        runs: Finished ones with a result, in their order.
        others: Those without, which failed or are not finished.
    """

    name: str
    runs: tuple[RunSummary, ...]
    others: tuple[RunSummary, ...]

    @property
    def folds(self) -> tuple[int, ...]:
        """The authors' folds with a result, ascending."""
        return tuple(sorted({run.fold for run in self.runs if run.fold is not None}))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the runs with a result, ascending."""
        return tuple(sorted({run.seed for run in self.runs if run.seed is not None}))

    @property
    def has_several_runs_a_fold(self) -> bool:
        """Whether a fold has more than one run."""
        return any(len(self.of_fold(fold)) > 1 for fold in self.folds)

    def of_fold(self, fold: int) -> list[RunSummary]:
        """The runs with a result on a fold."""
        return [run for run in self.runs if run.fold == fold]

    def on_fold(self, fold: int, metric: str) -> Estimate | None:
        """A metric's mean over the runs of a fold; None where one of them lacks it.

        The limits of its interval are the means of theirs. The interval is not narrower than one of the mean itself,
        whose standard error over cases is at most the mean of the runs' (triangle inequality).
        """
        found = [run.metrics.get(metric) for run in self.of_fold(fold)]
        estimates = [estimate for estimate in found if estimate is not None]
        if not estimates or len(estimates) < len(found):
            return None
        intervals = [estimate.interval for estimate in estimates if estimate.interval is not None]
        limits = None
        if len(intervals) == len(estimates):
            limits = statistics.fmean(low for low, _ in intervals), statistics.fmean(high for _, high in intervals)
        return Estimate(statistics.fmean(estimate.value for estimate in estimates), limits)

    def over_folds(self, metric: str) -> Spread | None:
        """A metric over the folds on which it is defined; None where there are fewer than two."""
        return spread([found.value for fold in self.folds if (found := self.on_fold(fold, metric)) is not None])

    def over_runs(self, metric: str) -> Spread | None:
        """A metric over all runs, which then should differ in seed alone; None where fewer than two have it."""
        return spread([run.metrics[metric].value for run in self.runs if metric in run.metrics])

    def over_seeds(self, metric: str) -> float | None:
        """Standard deviation over the runs of a fold, pooled over the folds with several; None where there is none."""
        samples = [[run.metrics[metric].value for run in self.of_fold(f) if metric in run.metrics] for f in self.folds]
        samples = [sample for sample in samples if len(sample) > 1]
        if not samples:
            return None
        squares = sum((len(sample) - 1) * statistics.variance(sample) for sample in samples)
        return math.sqrt(squares / sum(len(sample) - 1 for sample in samples))


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and sample standard deviation; None of fewer than two values.

    Example:
        >>> str(spread([0.87, 0.89, 0.91])), spread([0.87])
        ('0.890 ± 0.020', None)
    """
    return Spread(statistics.fmean(values), statistics.stdev(values), len(values)) if len(values) > 1 else None


def repetitions(runs: Sequence[RunSummary]) -> list[Repetitions]:
    """The runs by configuration, whatever their fold and seed; those that say no configuration are left out.

    Args:
        runs: With a result or without, in any order; the configurations keep the order of their first runs.
    """
    groups: dict[tuple[tuple[str, str], ...], list[RunSummary]] = {}
    for run in runs:
        if run.model is not None and run.config:
            groups.setdefault(tuple(sorted(_flat(run.config))), []).append(run)
    names = _names([dict(key) for key in groups], [group[0].model or "" for group in groups.values()])
    return [
        Repetitions(
            name=name,
            runs=tuple(run for run in group if run.status == "finished" and run.metrics),
            others=tuple(run for run in group if run.status != "finished" or not run.metrics),
        )
        for name, group in zip(names, groups.values(), strict=True)
    ]


def over_folds(runs: Sequence[RunSummary]) -> list[Repetitions]:
    """Configurations with a result on one of the authors' folds or more; none where no configuration has two.

    Args:
        runs: As `repetitions` takes them.
    """
    found = [group for group in repetitions(runs) if group.folds]
    return found if any(len(group.folds) > 1 for group in found) else []


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys of a configuration and their values as text."""
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{key}.")
        elif key not in _SAME_TRAINING:
            yield key, value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _names(configs: Sequence[Mapping[str, str]], models: Sequence[str]) -> list[str]:
    """A name for each configuration: its network, then the first keys that tell it from those of the same name.

    A key is named only where it divides what the keys before it have not, as trainer.max_epochs does not where each
    network has its own; but of every other group in which configurations of one network differ, a key or two are too.
    """
    names = [one_line(model) for model in models]
    keys = [key for key in dict.fromkeys(key for config in configs for key in config) if key != _NAMED_FIRST]
    named: list[list[str]] = [[] for _ in configs]
    for key in keys:
        values = [config.get(key, "absent") for config in configs]
        if len(set(zip(names, values, strict=True))) > len(set(names)):
            is_alike = [len({v for n, v in zip(names, values, strict=True) if n == name}) == 1 for name in names]
            for place, (alike, value) in enumerate(zip(is_alike, values, strict=True)):
                if not alike:
                    names[place] += f", {_named_value(key, value)}"
                    named[place].append(key)
    for place, config in enumerate(configs):
        if named[place]:
            same_network = [other for other, model in zip(configs, models, strict=True) if model == models[place]]
            names[place] += _further(config, same_network, keys, named[place])
    return names


def _further(
    config: Mapping[str, str], alike: Sequence[Mapping[str, str]], keys: Sequence[str], named: Sequence[str]
) -> str:
    """What is to be added to a name: keys of groups in which those of one network differ and of which none is named."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        if len({other.get(key, "absent") for other in alike}) > 1:
            groups.setdefault(key.split(".", 1)[0], []).append(key)
    for key in named:
        groups.pop(key.split(".", 1)[0], None)
    added = [_named_value(key, config.get(key, "absent")) for found in groups.values() for key in found[:_N_FURTHER]]
    return "".join(f", {each}" for each in added)


def _named_value(key: str, value: str) -> str:
    """A key with its value as one would type it.

    Example:
        >>> _named_value("optimizer._target_", "torch.optim.SGD"), _named_value("optimizer.lr", "0.01")
        ('optimizer=SGD', 'optimizer.lr=0.01')
    """
    if key.endswith("._target_"):
        return f"{key.removesuffix('._target_')}={one_line(value.rpartition('.')[2])}"
    return f"{one_line(key)}={one_line(value)}"
