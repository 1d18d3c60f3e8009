from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.limit import Mode
from benchmarks.stopwatch import LimitRates, Stopwatch

OWN, FASTER = Mode.CONTIGUOUS, Mode.COMPILED


class FakeLimits:
    """Rounds of the limit with given speeds."""

    def __init__(self, train: Iterator[float]) -> None:
        self.train = train

    def round(self) -> LimitRates:
        rate = next(self.train)
        return LimitRates(train={OWN: rate, FASTER: 2 * rate}, test={OWN: 100.0, FASTER: 100.0})


class FakeTraining:
    """Calls the hooks of a stopwatch as Lightning does; epochs take given seconds."""

    def __init__(self, watch: Stopwatch, clock: list[float]) -> None:
        self.watch, self.clock = watch, clock
        writer = SimpleNamespace(is_busy=False)
        self.trainer: Any = SimpleNamespace(strategy=SimpleNamespace(checkpoint_io=writer))
        self.module: Any = SimpleNamespace(device=torch.device("cpu"))

    def run(self, epochs: list[tuple[float, float, float]]) -> None:
        self.watch.on_train_start(self.trainer, self.module)
        for train, test, rest in epochs:
            self.watch.on_train_epoch_start(self.trainer, self.module)
            for size in (32, 8):
                self.watch.on_train_batch_end(self.trainer, self.module, None, (None, [0] * size), 0)
            self.clock[0] += train
            self.watch.on_validation_start(self.trainer, self.module)
            self.watch.on_validation_batch_end(self.trainer, self.module, None, (None, [0] * 10), 0)
            self.clock[0] += test
            self.watch.on_validation_end(self.trainer, self.module)
            self.clock[0] += rest
        self.watch.on_train_end(self.trainer, self.module)


def timed(block: int, epochs: list[tuple[float, float, float]], rates: list[float]) -> Stopwatch:
    clock = [0.0]
    watch = Stopwatch(
        block=block,
        make_limits=lambda _trainer, _module: FakeLimits(iter(rates)),  # type: ignore[arg-type, return-value]
        clock=lambda: clock[0],
    )
    FakeTraining(watch, clock).run(epochs)
    return watch


def test_an_epoch_lasts_until_the_next_one_begins() -> None:
    watch = timed(1, [(9.0, 9.0, 9.0), (4.0, 0.5, 0.5)], [10.0, 10.0, 10.0])
    epoch = watch.epochs[1]
    assert (epoch.train, epoch.test, epoch.whole) == (4.0, 0.5, 5.0)
    assert (epoch.n_train, epoch.n_test) == (40, 10)


def test_the_first_block_and_the_first_epoch_after_a_pause_are_not_counted() -> None:
    slow, fast = (70.0, 1.0, 1.0), (4.0, 0.5, 0.5)
    watch = timed(2, [slow, slow, slow, fast, slow, fast], [10.0, 10.0, 10.0, 10.0])
    assert [each.images_per_second for each in watch.rounds()] == [8.0, 8.0]


def test_a_share_is_the_time_that_the_limit_needs_over_the_time_taken() -> None:
    watch = timed(1, [(9.0, 9.0, 9.0), (4.0, 0.5, 0.5)], [1.0, 8.0, 12.0])
    (timed_round,) = watch.rounds()  # the limit is the mean of 8 and 12 images a second
    assert timed_round.train_share([OWN]) == pytest.approx(40 / 10 / 4.0)
    assert timed_round.test_share([OWN]) == pytest.approx(10 / 100 / 0.5)
    assert timed_round.share([OWN]) == pytest.approx((40 / 10 + 10 / 100) / 5.0)


def test_the_fastest_of_several_modes_is_the_limit() -> None:
    watch = timed(1, [(9.0, 9.0, 9.0), (4.0, 0.5, 0.5)], [10.0, 10.0, 10.0])
    (timed_round,) = watch.rounds()
    assert watch.modes == (OWN, FASTER)
    assert timed_round.train_share(watch.modes) == pytest.approx(timed_round.train_share([OWN]) / 2)


def test_the_limit_is_measured_once_between_blocks() -> None:
    watch = timed(3, [(1.0, 1.0, 1.0)] * 6, [10.0, 20.0, 30.0])
    assert [rates.train[OWN] for rates in watch.rates] == [10.0, 20.0, 30.0]
