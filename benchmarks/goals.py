"""What is to be reached, and whether it was."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import data_path, end_to_end, growth, start, step, store, sweep
from benchmarks.timing import Measurement

NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound on a figure.

    Attributes:
        plan: Name of the plan that measures it.
        subject: Where the figure is found.
        figure: Its name there.
        at_least: The lower bound; None for none.
        at_most: The upper one.
    """

    plan: str
    subject: str
    figure: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def bound(self) -> str:
        """For reading, as in ">= 0.97"."""
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"

    def is_met(self, measurement: Measurement) -> bool:
        """Whether the median keeps the bound."""
        is_high_enough = self.at_least is None or measurement.median >= self.at_least
        return is_high_enough and (self.at_most is None or measurement.median <= self.at_most)


def goals() -> Iterator[Goal]:
    """All goals, for a CPU of two cores and for a data-center GPU."""
    yield Goal("cpu", "data_path", f"ours against {data_path.FOLDER}", at_least=8)
    yield Goal("cpu", "data_path", f"ours against {data_path.COPIES}", at_least=2)
    yield Goal("cpu", "end_to_end", end_to_end.train_part_name("resnet18", 32), at_least=0.97)
    yield Goal("cpu", "store", store.SHARE, at_least=0.9)
    yield Goal("cpu", "start", start.HELP, at_most=1.0)
    for phase in ("store", "opening", "data path"):
        yield Goal("cpu", "growth", growth.time_name(phase), at_most=1.1)
        yield Goal("cpu", "growth", growth.memory_name(phase), at_most=1.1)
    networks = ("resnet18", "wide_resnet50", "resnext50")
    for network in networks:
        for batch_size in (32, 256):
            yield Goal("gpu", "end_to_end", end_to_end.train_part_name(network, batch_size), at_least=0.95)
    for network, times in zip(networks, (15, 5, 8), strict=True):
        yield Goal("gpu", "end_to_end", end_to_end.plain_name(network, 32), at_least=times)
    for network, share in zip(networks, (0.15, 0.15, 0.1), strict=True):
        yield Goal("gpu", "step", step.share_name(network, 256), at_least=share)
    yield Goal("gpu", "sweep", sweep.WHOLE, at_most=60)


def judge(goal: Goal, plan: str, results: Mapping[str, Sequence[Measurement]], *, is_tiny: bool = False) -> str:
    """What became of a goal: "met", "missed", or why there is nothing to say.

    Args:
        goal: To judge.
        plan: Name of the plan that was measured.
        results: Figures by subject.
        is_tiny: Whether sizes were tiny.
    """
    found = measured(goal, plan, results)
    if found is None:
        return NOT_MEASURED if goal.plan == plan else f"{NOT_MEASURED}, needs --plan {goal.plan}"
    if is_tiny:
        return "tiny sizes, not judged"
    return "met" if goal.is_met(found) else "missed"


def measured(goal: Goal, plan: str, results: Mapping[str, Sequence[Measurement]]) -> Measurement | None:
    """The figure of a goal; None if it was not measured."""
    if goal.plan != plan:
        return None
    return next((found for found in results.get(goal.subject, ()) if found.name == goal.figure), None)


def plain(goal: Goal, plan: str, results: Mapping[str, Sequence[Measurement]], *, is_tiny: bool) -> dict[str, Any]:
    """A judged goal as it goes into the JSON file."""
    found = measured(goal, plan, results)
    return {
        "plan": goal.plan,
        "subject": goal.subject,
        "figure": goal.figure,
        "goal": goal.bound,
        "median": None if found is None else found.median,
        "outcome": judge(goal, plan, results, is_tiny=is_tiny),
    }
