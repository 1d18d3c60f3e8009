from collections import Counter
from typing import Literal

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from breakhis_pl.data.sampling import EpochSampler, class_weights, distribute_batches
from breakhis_pl.errors import ConfigurationError

TARGETS = [0] * 10 + [1] * 3 + [2] * 8
Balance = Literal["none", "downsample", "sampler", "loss"]
BALANCES: tuple[Balance, ...] = ("none", "loss", "downsample", "sampler")


def make_sampler(balance: Balance = "none", *, epoch: int = 0, seed: int = 0, **ranks: int) -> EpochSampler:
    return EpochSampler(TARGETS, balance=balance, seed=seed, epoch=lambda: epoch, **ranks)


@pytest.mark.parametrize("balance", BALANCES)
def test_the_order_is_a_function_of_seed_and_epoch(balance: Balance) -> None:
    orders = [tuple(make_sampler(balance, epoch=epoch, seed=seed)) for epoch in (0, 1) for seed in (0, 1)]
    assert len(set(orders)) == 4
    assert orders == [tuple(make_sampler(balance, epoch=epoch, seed=seed)) for epoch in (0, 1) for seed in (0, 1)]


@pytest.mark.parametrize(
    ("balance", "expected"), [("none", [10, 3, 8]), ("loss", [10, 3, 8]), ("downsample", [3] * 3), ("sampler", [7] * 3)]
)
def test_classes_are_balanced_and_images_repeated_equally_often(balance: Balance, expected: list[int]) -> None:
    sampler = make_sampler(balance)
    positions = list(sampler)
    assert len(positions) == len(sampler)
    assert Counter(TARGETS[position] for position in positions) == dict(enumerate(expected))
    times = Counter(positions)
    for target in range(3):
        of_class = [times[position] for position, other in enumerate(TARGETS) if other == target]
        assert max(of_class) - min(of_class) <= 1


def test_downsampling_selects_other_images_in_every_epoch() -> None:
    selections = [{p for p in make_sampler("downsample", epoch=epoch) if TARGETS[p] == 0} for epoch in range(20)]
    assert set().union(*selections) == set(range(10))


def test_epochs_take_turns_in_which_class_gets_the_remainder() -> None:
    targets = [0, 0, 0, 1, 1]
    counts = [
        Counter(targets[p] for p in EpochSampler(targets, balance="sampler", seed=0, epoch=lambda e=e: e))  # type: ignore[misc]
        for e in (0, 1)
    ]
    assert counts == [{0: 3, 1: 2}, {0: 2, 1: 3}]


@pytest.mark.parametrize("world_size", [2, 4, 30])
@pytest.mark.parametrize("balance", BALANCES)
def test_ranks_share_the_positions_of_an_epoch_and_have_equally_many(balance: Balance, world_size: int) -> None:
    alone = list(make_sampler(balance))
    shares = [list(make_sampler(balance, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert {len(share) for share in shares} == {-(-len(alone) // world_size)}
    interleaved = [position for step in zip(*shares, strict=True) for position in step]
    assert interleaved[: len(alone)] == alone
    assert set(interleaved) == set(alone)


def test_the_epoch_is_read_when_the_first_position_is_drawn() -> None:
    epoch = 0
    sampler = EpochSampler(TARGETS, balance="none", seed=0, epoch=lambda: epoch)
    iterator = iter(sampler)
    epoch = 4
    assert list(iterator) == sampler.positions(4)


def test_class_weights_are_those_of_scikit_learn() -> None:
    expected = compute_class_weight("balanced", classes=np.arange(3), y=TARGETS)
    weights = class_weights(TARGETS, n_classes=4)
    assert weights.tolist() == pytest.approx([*expected, 0])
    assert weights[torch.tensor(TARGETS)].mean() == pytest.approx(1)


@pytest.mark.parametrize("n_samples", [8, 9, 33, 64, 65])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_evaluation_batches_cover_every_position_once_in_equally_many_batches(n_samples: int, world_size: int) -> None:
    ranks = [distribute_batches(n_samples, 8, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    assert all(0 < len(batch) <= 8 for batches in ranks for batch in batches)
    assert sorted(position for batches in ranks for batch in batches for position in batch) == list(range(n_samples))


def test_fewer_images_than_ranks_are_refused_by_all_ranks() -> None:
    for rank in range(4):
        with pytest.raises(ConfigurationError, match=r"trainer\.devices"):
            distribute_batches(3, 8, rank=rank, world_size=4)
