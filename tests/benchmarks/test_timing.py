import pytest

from benchmarks.timing import Measurement, alternate
from breakhis_pl.errors import ConfigurationError


class FakeClock:
    """Time that passes only when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


def test_contestants_take_turns_and_every_second_round_goes_backwards() -> None:
    clock, order = FakeClock(), []

    def contestant(name: str) -> float:
        order.append(name)
        clock.pass_by(1)
        return 1

    alternate({name: (lambda name=name: contestant(name)) for name in "abc"}, rounds=3, clock=clock)
    assert "".join(order) == "abc" + "cba" + "abc" + "cba"


def test_the_first_round_is_not_counted() -> None:
    clock = FakeClock()
    seconds = iter([100.0, 2.0, 4.0])

    def work() -> float:
        clock.pass_by(next(seconds))
        return 8

    rounds = alternate({"ours": work}, rounds=2, clock=clock)
    assert rounds.seconds["ours"] == (2.0, 4.0)
    assert rounds.rates("ours") == (4.0, 2.0)


def test_a_ratio_is_taken_within_each_round() -> None:
    clock = FakeClock()
    speed = iter([1.0, 1.0, 1.0, 10.0])  # the machine is ten times slower in the last round

    def work(amount: float) -> float:
        slowness = next(pace)
        clock.pass_by(slowness)
        return amount

    pace = (each for each in speed for _ in range(2))
    rounds = alternate({"ours": lambda: work(6), "theirs": lambda: work(2)}, rounds=3, clock=clock)
    assert rounds.rates("ours") == pytest.approx((6.0, 6.0, 0.6))
    assert rounds.ratios("ours", "theirs") == pytest.approx((3.0, 3.0, 3.0))


def test_the_device_is_waited_for_before_each_reading_of_the_clock() -> None:
    clock = FakeClock()
    queued = [0.0]

    def wait() -> None:
        clock.pass_by(queued.pop() if queued else 0.0)

    def launch() -> float:
        queued.append(3.0)
        return 6

    rounds = alternate({"device": launch}, rounds=2, clock=clock, wait=wait)
    assert rounds.rates("device") == (2.0, 2.0)


def test_no_round_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="rounds 0 is not possible"):
        alternate({"ours": lambda: 1}, rounds=0)


def test_a_measurement_says_its_median_and_spread() -> None:
    plain = Measurement("ours", "images/s", (3.0, 1.0, 2.0)).plain()
    assert plain == {"unit": "images/s", "median": 2.0, "min": 1.0, "max": 3.0, "values": [3.0, 1.0, 2.0]}
