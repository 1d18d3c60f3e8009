"""Contestants measured in turn, so that whatever else the machine does hits all of them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from breakhis_pl.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Measurement:
    """A quantity that was measured several times.

    Attributes:
        name: What it is, within its subject.
        unit: Of the values; "" for shares and ratios.
        values: One per round, in the order of the rounds.
    """

    name: str
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle of the values."""
        return median(self.values)

    def plain(self) -> dict[str, Any]:
        """As it goes into the JSON file."""
        return {
            "unit": self.unit,
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "values": list(self.values),
        }


@dataclass(frozen=True, slots=True)
class Rounds:
    """What `alternate` found.

    Attributes:
        amounts: How much each contestant did in each round, by its name.
        seconds: How long that took.
    """

    amounts: Mapping[str, tuple[float, ...]]
    seconds: Mapping[str, tuple[float, ...]]

    def rates(self, name: str) -> tuple[float, ...]:
        """Amount per second in each round."""
        return tuple(amount / seconds for amount, seconds in zip(self.amounts[name], self.seconds[name], strict=True))

    def ratios(self, name: str, other: str) -> tuple[float, ...]:
        """How many times as fast as another contestant, in each round."""
        return tuple(own / its for own, its in zip(self.rates(name), self.rates(other), strict=True))


def alternate(
    contestants: Mapping[str, Callable[[], float]],
    *,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    wait: Callable[[], None] = lambda: None,
) -> Rounds:
    """Runs all contestants in turn; every second round backwards, so that none is always the first.

    Args:
        contestants: By name; each does its work once and tells how much it was.
        rounds: At least one; another one comes before them and is not counted.
        clock: In seconds.
        wait: Waits until the device is done.

    Raises:
        ConfigurationError: If there is no round.
    """
    if rounds < 1:
        raise ConfigurationError(f"rounds {rounds} is not possible; expected 1 or more")
    amounts: dict[str, list[float]] = {name: [] for name in contestants}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        names = list(contestants)
        for name in names if number % 2 == 0 else reversed(names):
            wait()
            started = clock()
            amount = contestants[name]()
            wait()
            if number > 0:
                seconds[name].append(clock() - started)
                amounts[name].append(amount)
    return Rounds(
        amounts={name: tuple(values) for name, values in amounts.items()},
        seconds={name: tuple(values) for name, values in seconds.items()},
    )


def waiter(device: torch.device) -> Callable[[], None]:
    """What waits until a device is done; on a CPU nothing is to be waited for."""
    if device.type == "cuda":
        return torch.cuda.synchronize
    return lambda: None
