"""Runs that repeat one configuration with other seeds or on other folds: means and standard deviations.

The value of a fold is the mean of its runs, so that a fold with more seeds weighs no more than another. A copy of a run
counts once.
"""

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from breakhis_pl.config import flatten
from breakhis_pl.reporting.pages import Estimate
from breakhis_pl.reporting.runs import Run

NOT_COMPARED = (
    "seed",
    "data.fold",
    "gallery",
    "data.cache_dir",
    "data.root",
    "data.verify",
    "trainer.progress_bar",
    "logger",
)
"""Keys in which repetitions may differ: what is repeated, and what changes no network."""


class Spread(NamedTuple):
    """Mean and sample standard deviation."""

    mean: float
    deviation: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.deviation:.3f}"


@dataclass(frozen=True, eq=False)
class Repeats:
    """Runs of one configuration.

    Attributes:
        name: The network, and the keys in which the configuration differs from the others.
        runs: Runs with a result.
    """

    name: str
    runs: tuple[Run, ...]

    @property
    def folds(self) -> tuple[int | str, ...]:
        """Folds with a result."""
        return tuple(sorted({run.fold for run in self.runs if run.fold is not None}, key=str))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds with a result."""
        return tuple(sorted({run.seed for run in self.runs if run.seed is not None}))

    def of_fold(self, fold: int | str) -> list[Run]:
        """Return the runs of a fold."""
        return [run for run in self.runs if run.fold == fold]

    def on_fold(self, fold: int | str, metric: str) -> Estimate | None:
        """Return the mean of a metric over the runs of a fold, with the mean limits of their intervals.

        The interval is not narrower than that of the mean, whose standard error is at most the mean of the runs'.
        """
        found = [run.estimate(metric) for run in self.of_fold(fold)]
        estimates = [estimate for estimate in found if estimate is not None]
        if len(estimates) < len(found):
            return None
        limits = [estimate["ci95"] for estimate in estimates if estimate["ci95"] is not None]
        means = [statistics.fmean(ends) for ends in zip(*limits, strict=True)] if len(limits) == len(found) else None
        return {"value": statistics.fmean(estimate["value"] for estimate in estimates), "ci95": means}

    def over_folds(self, metric: str) -> Spread | None:
        """Return mean and deviation over the folds; None of fewer than two."""
        return spread([found["value"] for fold in self.folds if (found := self.on_fold(fold, metric)) is not None])

    def seed_deviation(self, metric: str) -> float | None:
        """Return the standard deviation over the runs of a fold, pooled over the folds that have several."""
        values = [[e["value"] for run in self.of_fold(fold) if (e := run.estimate(metric))] for fold in self.folds]
        squares = [((len(each) - 1) * statistics.variance(each), len(each) - 1) for each in values if len(each) > 1]
        return math.sqrt(sum(s for s, _ in squares) / sum(n for _, n in squares)) if squares else None

    def over_seeds(self, metric: str) -> Spread | None:
        """Return mean and deviation over all runs, which then should differ in their seed only."""
        return spread([found["value"] for run in self.runs if (found := run.estimate(metric)) is not None])

    @property
    def remark(self) -> str:
        """What to know about a mean over the runs: other test images, networks that predict one class."""
        n_splits = len({frozenset(run.predictions.image) for run in self.runs if run.predictions is not None})
        n_one_class = sum(run.one_class is not None for run in self.runs)
        remarks = [
            f"{n_splits} splits" if n_splits > max(1, len(self.folds)) else "",
            f"{n_one_class} of {len(self.runs)} runs predict one class, or almost" if n_one_class else "",
        ]
        return "".join(f"; {each}" for each in remarks if each)


def spread(values: Sequence[float]) -> Spread | None:
    """Return mean and sample standard deviation; None of fewer than two values.

    Example:
        >>> str(spread([0.87, 0.89, 0.91])), spread([0.87])
        ('0.890 ± 0.020', None)
    """
    return Spread(statistics.fmean(values), statistics.stdev(values)) if len(values) > 1 else None


def repeats(runs: Sequence[Run]) -> list[Repeats]:
    """Group runs by configuration; runs without one are left out."""
    groups: dict[str, list[Run]] = {}
    configs: dict[str, dict[str, str]] = {}
    known: set[tuple[object, ...]] = set()
    for run in runs:
        if run.config:
            config = _compared(run, NOT_COMPARED)
            key = json.dumps(config, sort_keys=True)
            result = run.metrics and run.metrics["predictions_checksum"]
            if result is not None and (key, run.fold, run.seed, result) in known:
                continue
            known.add((key, run.fold, run.seed, result))
            configs[key] = config
            groups.setdefault(key, []).append(run)
    names = _names([group[0].model or "" for group in groups.values()], list(configs.values()))
    return [
        Repeats(name, tuple(run for run in group if run.status == "finished" and run.metrics is not None))
        for name, group in zip(names, groups.values(), strict=True)
    ]


def with_names(runs: Sequence[Run]) -> list[Run]:
    """Name runs by network and what distinguishes their configurations, as in "resnet18 fold 1 seed 0".

    Runs of the same configuration, and runs without one, keep their names.
    """
    named = [run for run in runs if run.config]
    kept = tuple(key for key in NOT_COMPARED if key not in ("seed", "data.fold"))
    names = _names([run.model or "" for run in named], [_compared(run, kept) for run in named])
    counts = Counter(names)
    by_run = {id(run): name for run, name in zip(named, names, strict=True) if counts[name] == 1}
    for run in runs:
        if not run.config and run.model is not None:
            by_run[id(run)] = f"{run.name} ({run.model})"  # an ensemble
    return [replace(run, name=by_run.get(id(run), run.name)) for run in runs]


def _compared(run: Run, not_compared: tuple[str, ...]) -> dict[str, str]:
    """Return the configuration of a run without some keys, as text."""
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in flatten(run.config).items()
        if not key.startswith(not_compared)
    }


def _names(models: Sequence[str], configs: Sequence[Mapping[str, str]]) -> list[str]:
    """Name each configuration: its network, then the keys that distinguish it from others of this name."""
    names = list(models)
    for key in dict.fromkeys(key for config in configs for key in config):
        values = [config.get(key, "none") for config in configs]
        if len(set(zip(names, values, strict=True))) > len(set(names)):
            differing = [
                len({other for model, other in zip(names, values, strict=True) if model == name}) > 1 for name in names
            ]
            words = {"data.fold": "fold ", "seed": "seed "}
            short = words.get(key, f"{key.removesuffix('._target_')}=")
            is_class = key.endswith("._target_")
            names = [
                f"{name} {short}{value.rpartition('.')[2] if is_class else value}" if differs else name
                for name, value, differs in zip(names, values, differing, strict=True)
            ]
    return names


def over_folds(runs: Sequence[Run]) -> list[Repeats]:
    """Return the configurations, if one of them has results on two folds."""
    found = [group for group in repeats(runs) if group.folds]
    return found if any(len(group.folds) > 1 for group in found) else []
