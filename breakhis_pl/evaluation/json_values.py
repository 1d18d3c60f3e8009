"""Values of a run's JSON files, checked one by one: a file may be torn, or written by another version."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class DamagedFileError(ValueError):
    """A file of a run does not hold what it should."""


def json_object(path: Path) -> Mapping[str, Any]:
    """The object in a file.

    Raises:
        DamagedFileError: If it cannot be read, or holds something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedFileError(str(error)) from error
    if not isinstance(document, dict):
        raise DamagedFileError(f"it holds a {type(document).__name__}; expected an object")
    return document


def value_at(document: Mapping[str, Any], *keys: str) -> Any:
    """Value at a path of keys, None where the path ends early."""
    value: Any = document
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def number_at(document: Mapping[str, Any], *keys: str) -> float | None:
    """The finite number at a path of keys, None where there is none.

    Raises:
        DamagedFileError: If something else is there.
    """
    value = value_at(document, *keys)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DamagedFileError(f"{'.'.join(keys)} is {value!r}; expected a number")
    return float(value) if math.isfinite(value) else None


def count_at(document: Mapping[str, Any], *keys: str) -> int | None:
    """The whole number at a path of keys, None where there is none.

    Raises:
        DamagedFileError: If something else is there.
    """
    number = number_at(document, *keys)
    return None if number is None else int(number)


def text_at(document: Mapping[str, Any], *keys: str) -> str | None:
    """The text at a path of keys, None where there is none.

    Raises:
        DamagedFileError: If something else is there.
    """
    value = value_at(document, *keys)
    if value is not None and not isinstance(value, str):
        raise DamagedFileError(f"{'.'.join(keys)} is {value!r}; expected a text")
    return value


def flag_at(document: Mapping[str, Any], *keys: str) -> bool | None:
    """True or false at a path of keys, None where there is neither.

    Raises:
        DamagedFileError: If something else is there.
    """
    value = value_at(document, *keys)
    if value is not None and not isinstance(value, bool):
        raise DamagedFileError(f"{'.'.join(keys)} is {value!r}; expected true or false")
    return value
