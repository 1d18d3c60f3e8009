"""Names of runs."""

import pytest

from breakhis_pl.job import run_name


@pytest.mark.parametrize("key", ["trainer.limit_train_batches", "trainer.max_epochs", "training.mixup", "data.fold"])
def test_what_is_computed_is_part_of_a_name(key: str) -> None:
    assert run_name("resnet18", [f"{key}=1"]) != run_name("resnet18", [f"{key}=2"])


@pytest.mark.parametrize(
    "override", ["trainer=cpu", "trainer.devices=2", "trainer.progress_bar=false", "data.root=x", "logger=csv"]
)
def test_where_and_how_it_is_computed_is_not(override: str) -> None:
    assert run_name("resnet18", [override]) == "resnet18"
