"""The best trial as an experiment file for train.py: what differs from its defaults, and nothing else."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from breakhis_pl import composition
from breakhis_pl.files import write_text
from breakhis_pl.tuning.plan import Plan
from breakhis_pl.tuning.trials import StudySummary, TrialRow

BEST_YAML = Path("experiment") / "best_trial.yaml"
"""Inside the folder of a study, where Hydra looks for experiments; a name that conf/experiment has would hide it."""

_PLAIN = re.compile(r"[A-Za-z0-9_/.:+-]+")
"""What Hydra reads without quotes."""


def write_best(plan: Plan, study: StudySummary, best: TrialRow) -> None:
    """Writes the experiment file of the best trial; an older one is replaced.

    Args:
        plan: The study.
        study: So far.
        best: Its best trial.
    """
    (plan.folder / BEST_YAML).parent.mkdir(exist_ok=True)
    write_text(plan.folder / BEST_YAML, experiment_text(plan, study, best))


def command_for_best(folder: Path) -> str:
    """What trains the best configuration and evaluates it on test, for a shell, from any folder."""
    place = f"file://{folder.absolute()}"
    if not _PLAIN.fullmatch(place):
        place = "'" + place.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return shlex.join(["python", "train.py", f"hydra.searchpath=[{place}]", f"experiment={BEST_YAML.stem}"])


def experiment_text(plan: Plan, study: StudySummary, best: TrialRow) -> str:
    """An experiment that composes to the configuration of a trial.

    Args:
        plan: The study.
        study: So far.
        best: The trial.
    """
    overrides = plan.trial_overrides(best.parameters)
    usual, chosen = composition.chosen_options([]), composition.chosen_options(overrides)
    groups = {group: option for group, option in chosen.items() if usual.get(group) != option}
    there = composition.plain(composition.compose_checked("train", [f"{name}={each}" for name, each in groups.items()]))
    differing = _differing(composition.plain(plan.trial_config(best.parameters)), there)
    content: dict[str, Any] = {}
    if groups:
        content["defaults"] = [{f"override /{group}": option} for group, option in groups.items()]
    lines = [
        "# @package _global_",
        f"# trial {best.number} of study {study.name}: {study.metric} {best.value:.6g}, the best of "
        f"{len(study.complete)} complete trials, on validation images",
        yaml.safe_dump(content | differing, sort_keys=False, allow_unicode=True) if content or differing else "",
    ]
    return "\n".join(lines)


def _differing(values: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Values that others do not share, in groups as they are."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        other = others.get(name)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            inside = _differing(value, other)
            if inside:
                found[name] = inside
        elif value != other or name not in others:
            found[name] = value
    return found
