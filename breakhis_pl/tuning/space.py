"""The space of a study: which values each searched key may have; without torch and Optuna."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, TypeAlias

from breakhis_pl.errors import ConfigurationError, listed

Value: TypeAlias = str | int | float | bool | None
Parameters: TypeAlias = Mapping[str, Value]
"""Value by dotted configuration key, or option by group."""

_KEYS = {"float": ("low", "high", "log"), "int": ("low", "high", "log"), "choice": ("choices",)}

FIXED_KEYS = (
    *("experiment", "space", "seed", "task", "logger", "gallery"),
    *("data", "data.source", "data.root", "data.cache_dir", "data.verify"),
    *("data.magnification", "data.test_magnification", "data.split", "data.fold", "data.group", "data.test_fraction"),
    *("data.val_fraction", "data.require_complete", "data.images_per_patient", "data.width", "data.draw_seed"),
)
"""Keys that decide on which images a value is measured, or change nothing about it: values would not compare."""


@dataclass(frozen=True, slots=True)
class Dimension:
    """A searched key.

    Attributes:
        key: Dotted configuration key, or name of a group.
        kind: Of the values.
        low: Least value of a number.
        high: Largest value of a number.
        log: Whether a number is searched on a logarithmic scale.
        choices: Values of a choice.
    """

    key: str
    kind: Literal["float", "int", "choice"]
    low: float = 0
    high: float = 0
    log: bool = False
    choices: tuple[Value, ...] = ()

    @property
    def is_group(self) -> bool:
        """Whether options of a group are searched; keys of the configuration stand inside groups."""
        return "." not in self.key

    def plain(self) -> dict[str, Any]:
        """As it stands in a file of conf/space/."""
        if self.kind == "choice":
            return {"type": self.kind, "choices": list(self.choices)}
        return {"type": self.kind, "low": self.low, "high": self.high, "log": self.log}


def read_space(values: object) -> tuple[Dimension, ...]:
    """The dimensions of a space, in the order of the file.

    Args:
        values: What Hydra composed: a mapping from keys to their values.

    Raises:
        ConfigurationError: With all faults in one message.
    """
    if not isinstance(values, Mapping) or not values:
        raise ConfigurationError(f"space={values} searches nothing; expected keys with their values, as space=default")
    faults = list(chain.from_iterable(_faults(str(key), given) for key, given in values.items()))
    if faults:
        raise ConfigurationError("\n".join(faults))
    return tuple(_dimension(str(key), given) for key, given in values.items())


def _dimension(key: str, given: Mapping[str, Any]) -> Dimension:
    if given["type"] == "choice":
        return Dimension(key, "choice", choices=tuple(given["choices"]))
    number = int if given["type"] == "int" else float
    return Dimension(
        key, given["type"], low=number(given["low"]), high=number(given["high"]), log=given.get("log", False)
    )


def _faults(key: str, given: object) -> Iterator[str]:
    """A sentence for everything that is wrong with a dimension."""
    name = f"space: {key}"
    if key in FIXED_KEYS:
        yield f"{name} cannot be searched: it decides on which images a value is measured, or changes nothing about it"
        return
    kind = given.get("type") if isinstance(given, Mapping) else None
    if not isinstance(given, Mapping) or kind not in _KEYS:
        yield (
            f"{name} has type {kind}; expected {{type: float, low: …, high: …}}, the same with int, "
            "or {type: choice, choices: […]}"
        )
        return
    strange = [str(each) for each in given if each not in ("type", *_KEYS[kind])]
    if strange:
        yield f"{name} has {listed(strange)}; of type {kind} it takes {', '.join(_KEYS[kind])}"
    elif kind == "choice":
        yield from _choice_faults(name, given.get("choices"))
    else:
        yield from _number_faults(name, kind, given)


def _choice_faults(name: str, choices: object) -> Iterator[str]:
    if not isinstance(choices, list | tuple) or len(choices) < 2:
        yield f"{name} has choices={choices}; expected a list of at least two"
        return
    other = [each for each in choices if not (each is None or isinstance(each, str | int | float | bool))]
    if other:
        yield f"{name} has the choice {other[0]}; expected texts, numbers, true, false or null"
    elif len(set(choices)) < len(choices):
        yield f"{name} names a choice twice: {list(choices)}"


def _number_faults(name: str, kind: str, given: Mapping[str, Any]) -> Iterator[str]:
    low, high, log = given.get("low"), given.get("high"), given.get("log", False)
    for bound, value in (("low", low), ("high", high)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            yield f"{name} has {bound}={value}; expected a number"
            return
        if kind == "int" and value != int(value):
            yield f"{name} has {bound}={value}; expected a whole number"
            return
    if not low < high:  # type: ignore[operator]  # numbers, as checked above
        yield f"{name} has low={low} and high={high}; expected low below high"
    if not isinstance(log, bool):
        yield f"{name} has log={log}; expected true or false"
    elif log and not low > 0:  # type: ignore[operator]
        yield f"{name} has log=true and low={low}; expected low above 0"


def overrides_of(parameters: Parameters) -> list[str]:
    """What a command line would say for these values, so that they mean the same to Hydra.

    Example:
        >>> overrides_of({"optimizer": "adamw", "optimizer.lr": 1e-05, "data.eval_batch_size": None})
        ['optimizer=adamw', 'optimizer.lr=1e-05', 'data.eval_batch_size=null']
    """
    return [f"{key}={_written(value)}" for key, value in parameters.items()]


def _written(value: Value) -> str:
    if isinstance(value, str):
        is_word = value.replace("_", "").replace("-", "").isalnum() and not _is_special(value)
        return value if is_word else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return repr(value) if isinstance(value, float) else json.dumps(value)


def _is_special(word: str) -> bool:
    """Whether Hydra reads a word as something else than a text."""
    try:
        float(word)
    except ValueError:
        return word.lower() in ("null", "true", "false")
    return True


def corners(space: Sequence[Dimension]) -> Iterator[Parameters]:
    """Few sets of parameters in which every choice and every bound comes up, each option of a group with both bounds.

    Args:
        space: The dimensions.
    """
    n_options = max((len(each.choices) for each in space if each.is_group), default=1)
    n_choices = max((len(each.choices) for each in space), default=1)
    for step in range(max(2 * n_options, n_choices)):
        yield {each.key: _at(each, step) for each in space}


def _at(dimension: Dimension, step: int) -> Value:
    if dimension.kind != "choice":
        return dimension.low if step % 2 == 0 else dimension.high
    place = step // 2 if dimension.is_group else step
    return dimension.choices[place % len(dimension.choices)]
