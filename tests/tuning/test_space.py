import re
from typing import Any

import pytest

from breakhis_pl import composition
from breakhis_pl.errors import ConfigurationError
from breakhis_pl.tuning.space import Dimension, Parameters, Value, corners, overrides_of, read_space

LR = {"type": "float", "low": 1e-5, "high": 1e-2, "log": True}


def test_a_space_is_read_in_the_order_of_the_file() -> None:
    space = read_space(
        {
            "optimizer.lr": LR,
            "trainer.max_epochs": {"type": "int", "low": 2, "high": 9},
            "optimizer": {"type": "choice", "choices": ["adamax", "sgd"]},
        }
    )
    assert space == (
        Dimension("optimizer.lr", "float", low=1e-5, high=1e-2, log=True),
        Dimension("trainer.max_epochs", "int", low=2, high=9),
        Dimension("optimizer", "choice", choices=("adamax", "sgd")),
    )
    assert [each.is_group for each in space] == [False, False, True]
    assert read_space({each.key: each.plain() for each in space}) == space


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("optimizer.lr", 3, "space: optimizer.lr has type None; expected {type: float, low: …, high: …}"),
        ("optimizer.lr", {"type": "real"}, "space: optimizer.lr has type real"),
        ("optimizer.lr", LR | {"step": 2}, "space: optimizer.lr has step; of type float it takes low, high, log"),
        ("optimizer.lr", LR | {"low": "a"}, "space: optimizer.lr has low=a; expected a number"),
        ("optimizer.lr", LR | {"high": float("inf")}, "space: optimizer.lr has high=inf; expected a number"),
        ("optimizer.lr", LR | {"low": 1}, "space: optimizer.lr has low=1 and high=0.01; expected low below high"),
        ("optimizer.lr", LR | {"low": 0}, "space: optimizer.lr has log=true and low=0; expected low above 0"),
        ("optimizer.lr", LR | {"log": 1}, "space: optimizer.lr has log=1; expected true or false"),
        ("data.batch_size", {"type": "int", "low": 1.5, "high": 3}, "has low=1.5; expected a whole number"),
        ("model", {"type": "choice", "choices": ["resnet18"]}, "space: model has choices=['resnet18']"),
        ("model", {"type": "choice", "choices": [[1], [2]]}, "space: model has the choice [1]; expected texts"),
        ("model", {"type": "choice", "choices": ["a", "a"]}, "space: model names a choice twice: ['a', 'a']"),
        ("data.fold", {"type": "choice", "choices": [1, 2]}, "space: data.fold cannot be searched: it decides on"),
        ("seed", {"type": "int", "low": 0, "high": 9}, "space: seed cannot be searched"),
    ],
)
def test_what_is_no_dimension_is_refused(key: str, given: object, expected: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(expected)):
        read_space({key: given})


def test_all_faults_of_a_space_come_in_one_message() -> None:
    with pytest.raises(ConfigurationError, match=r"(?s)seed cannot be searched.*optimizer.lr has type None"):
        read_space({"seed": 1, "optimizer.lr": 1})


@pytest.mark.parametrize("values", [None, {}, "default"])
def test_an_empty_space_is_refused(values: Any) -> None:
    with pytest.raises(ConfigurationError, match="searches nothing"):
        read_space(values)


@pytest.mark.parametrize(
    "value", ["adamw", "a b", "it's", "a\\", "null", "true", "1", "nan", "/x/y,z=1", "", 1, 1e-5, 0.1, True, None]
)
def test_a_value_means_the_same_to_hydra(value: Value) -> None:
    (text,) = overrides_of({"model.weights": value})
    (override,) = composition.parse_overrides([text])
    assert override.value() == value
    assert type(override.value()) is type(value)


def test_corners_hold_every_choice_and_both_bounds_with_each_option_of_a_group() -> None:
    space = (
        Dimension("optimizer", "choice", choices=("adamax", "adamw", "sgd")),
        Dimension("optimizer.lr", "float", low=0.1, high=0.2),
        Dimension("data.batch_size", "choice", choices=(1, 2, 3, 4, 5)),
    )
    found: list[Parameters] = list(corners(space))
    assert {(each["optimizer"], each["optimizer.lr"]) for each in found} == {
        (option, bound) for option in ("adamax", "adamw", "sgd") for bound in (0.1, 0.2)
    }
    assert {each["data.batch_size"] for each in found} == {1, 2, 3, 4, 5}
