from collections import Counter

import pytest

from breakhis_pl.data.balance import TrainOrder, class_weights
from breakhis_pl.errors import ConfigurationError

TARGETS = (0,) * 5 + (1,) * 12
SEEDS = range(20)


def order(balance: str, seed: int = 0, targets: tuple[int, ...] = TARGETS) -> TrainOrder:
    return TrainOrder(targets, balance=balance, seed=seed)


def classes(positions: list[int]) -> Counter[int]:
    return Counter(TARGETS[position] for position in positions)


@pytest.mark.parametrize("balance", ["none", "loss"])
def test_without_balance_every_image_comes_once(balance: str) -> None:
    for seed in SEEDS:
        assert sorted(order(balance, seed).positions(seed)) == list(range(17))


def test_downsampling_shows_all_of_the_rare_class_and_as_many_of_the_other_once() -> None:
    for seed in SEEDS:
        positions = order("downsample", seed).positions(3)
        assert len(positions) == len(set(positions)) == len(order("downsample", seed)) == 10
        assert set(range(5)) <= set(positions)
        assert classes(positions) == {0: 5, 1: 5}


def test_downsampling_draws_anew_for_every_epoch_so_that_every_image_gets_its_turn() -> None:
    shown = [frozenset(order("downsample").positions(epoch)) for epoch in range(20)]
    assert len(set(shown)) > 10
    assert set().union(*shown) == set(range(17))


def test_the_sampler_shows_classes_equally_often_and_as_many_images_as_there_are() -> None:
    for seed in SEEDS:
        for epoch in range(4):
            positions = order("sampler", seed).positions(epoch)
            counts = classes(positions)
            assert len(positions) == len(order("sampler", seed)) == 17
            assert abs(counts[0] - counts[1]) == 1
            times = Counter(positions)
            assert {times[position] for position in range(5)} <= {1, 2}
            assert {times[position] for position in range(5, 17)} <= {0, 1}


def test_the_image_that_cannot_be_divided_goes_round_with_the_epochs() -> None:
    assert [classes(order("sampler").positions(epoch))[0] for epoch in range(4)] == [9, 8, 9, 8]


@pytest.mark.parametrize("balance", ["none", "downsample", "sampler"])
def test_the_order_is_a_function_of_seed_and_epoch_alone(balance: str) -> None:
    there = order(balance)
    first = there.positions(2)
    there.positions(7)
    assert there.positions(2) == first
    assert there.positions(3) != first
    assert order(balance, seed=1).positions(2) != first
    assert first != sorted(first)


@pytest.mark.parametrize("balance", ["downsample", "sampler"])
def test_a_class_without_images_is_left_out(balance: str) -> None:
    assert Counter(order(balance, targets=(0, 0, 2, 2, 2, 2)).positions(0)[:6]).total() == len(
        order(balance, targets=(0, 0, 2, 2, 2, 2))
    )
    assert len(order(balance, targets=(1, 1, 1))) == 3


def test_an_unknown_balance_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"data\.balance=magic is not possible"):
        len(order("magic"))


def test_weights_give_every_class_the_same_sum_and_a_mean_of_one() -> None:
    weights = class_weights(TARGETS)
    assert weights[0] * 5 == pytest.approx(weights[1] * 12)
    assert weights[0] * 5 + weights[1] * 12 == pytest.approx(17)
    assert class_weights((1, 1)) == (0.0, 1.0)
