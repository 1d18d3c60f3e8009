import math

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from breakhis_pl.training.schedules import WarmupCosine, warmup_cosine


def rates(optimizer: torch.optim.Optimizer, schedule: LRScheduler, n_epochs: int) -> list[list[float]]:
    found = []
    for _ in range(n_epochs):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return found


def two_groups() -> SGD:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    return SGD([{"params": first.parameters(), "lr": 0.1}, {"params": second.parameters(), "lr": 0.02}], lr=0.1)


@pytest.mark.parametrize("n_warmup", [1, 3])
def test_rates_are_those_of_torchs_linear_and_cosine_schedule_one_after_the_other(n_warmup: int) -> None:
    ours, theirs = two_groups(), two_groups()
    expected = SequentialLR(
        theirs,
        [
            LinearLR(theirs, start_factor=1 / (n_warmup + 1), total_iters=n_warmup),
            CosineAnnealingLR(theirs, T_max=10 - n_warmup, eta_min=0.001),
        ],
        milestones=[n_warmup],
    )
    schedule = WarmupCosine(ours, T_max=10, warmup_epochs=n_warmup, eta_min=0.001)
    for own, other in zip(rates(ours, schedule, 10), rates(theirs, expected, 10), strict=True):
        assert own == pytest.approx(other, rel=1e-9)


def test_five_epochs_by_hand() -> None:
    found = [warmup_cosine(epoch, 0.3, T_max=5, n_warmup=2) for epoch in range(7)]
    half = 0.15
    assert found == pytest.approx(
        [0.1, 0.2, 0.3, half * (1 + math.cos(math.pi / 3)), half * (1 + math.cos(2 * math.pi / 3)), 0, 0]
    )


def test_without_warm_up_it_is_the_cosine() -> None:
    ours, theirs = two_groups(), two_groups()
    found = rates(ours, WarmupCosine(ours, T_max=6, warmup_epochs=0), 6)
    for own, other in zip(found, rates(theirs, CosineAnnealingLR(theirs, T_max=6), 6), strict=True):
        assert own == pytest.approx(other, rel=1e-9)


def test_a_schedule_that_goes_on_has_the_same_bits() -> None:
    whole = two_groups()
    expected = rates(whole, WarmupCosine(whole, T_max=8, warmup_epochs=2), 8)
    first = two_groups()
    schedule = WarmupCosine(first, T_max=8, warmup_epochs=2)
    rates(first, schedule, 3)
    second = two_groups()
    again = WarmupCosine(second, T_max=8, warmup_epochs=2)
    second.load_state_dict(first.state_dict())
    again.load_state_dict(schedule.state_dict())
    assert rates(second, again, 5) == expected[3:]
