"""Values of a run's JSON files, checked one by one: a file may be torn, of another version, or of another hand."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from breakhis_pl.evaluation.file_texts import DamagedFileError, text_of
from breakhis_pl.evaluation.texts import quoted

MOST_LEVELS = 40
"""Of objects and lists inside each other; a configuration has three."""

LARGEST_COUNT = 10**15
"""Beyond it, whatever was counted here was not."""


def json_document(path: Path) -> Any:
    """What is in a file.

    Raises:
        DamagedFileError: If it cannot be read, or is no JSON of at most `MOST_LEVELS`.
    """
    try:
        document = json.loads(text_of(path))
    except OSError as error:
        raise DamagedFileError(f"it cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(str(error)) from error
    _check_levels(document)
    return document


def json_object(path: Path) -> Mapping[str, Any]:
    """The object in a file.

    Raises:
        DamagedFileError: If it cannot be read, or holds something else.
    """
    document = json_document(path)
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
    if not is_number(value):
        raise _unexpected(keys, value, "a number")
    return float(value) if math.isfinite(value) else None


def count_at(document: Mapping[str, Any], *keys: str) -> int | None:
    """The whole number, 0 or more, at a path of keys, None where there is none.

    Raises:
        DamagedFileError: If something else is there.
    """
    number = number_at(document, *keys)
    if number is None:
        return None
    if not number.is_integer() or not 0 <= number <= LARGEST_COUNT:
        raise _unexpected(keys, value_at(document, *keys), "a number of things")
    return int(number)


def text_at(document: Mapping[str, Any], *keys: str) -> str | None:
    """The text at a path of keys, None where there is none.

    Raises:
        DamagedFileError: If something else is there.
    """
    value = value_at(document, *keys)
    if value is not None and not isinstance(value, str):
        raise _unexpected(keys, value, "a text")
    return value


def flag_at(document: Mapping[str, Any], *keys: str) -> bool | None:
    """True or false at a path of keys, None where there is neither.

    Raises:
        DamagedFileError: If something else is there.
    """
    value = value_at(document, *keys)
    if value is not None and not isinstance(value, bool):
        raise _unexpected(keys, value, "true or false")
    return value


def object_at(document: Mapping[str, Any], *keys: str) -> Mapping[str, Any] | None:
    """The object at a path of keys, None where there is none.

    Raises:
        DamagedFileError: If something else is there.
    """
    value = value_at(document, *keys)
    if value is not None and not isinstance(value, Mapping):
        raise _unexpected(keys, value, "an object")
    return value


def counts_at(document: Mapping[str, Any], *keys: str) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """The confusion matrix at a path of keys, None where there is none.

    Raises:
        DamagedFileError: If something else is there.
    """
    match value_at(document, *keys):
        case None:
            return None
        case [[int(a), int(b)], [int(c), int(d)]] if all(0 <= n <= LARGEST_COUNT for n in (a, b, c, d)):
            return (a, b), (c, d)
        case value:
            raise _unexpected(keys, value, "rows of counts")


def is_number(value: object) -> bool:
    """Whether a value of a JSON document is a number that a float can hold.

    Example:
        >>> is_number(1), is_number(True), is_number(10**400)
        (True, False, False)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


def _unexpected(keys: Iterable[str], value: object, expected: str) -> DamagedFileError:
    return DamagedFileError(f"{'.'.join(keys)} is {quoted(value)}; expected {expected}")


def _check_levels(document: object) -> None:
    """Refuses what is so deep that walking it would end in an error of Python's own.

    Raises:
        DamagedFileError: If it is deeper than `MOST_LEVELS`.
    """
    level = [document]
    for _ in range(MOST_LEVELS + 1):
        inside: list[object] = []
        for value in level:
            if isinstance(value, dict):
                inside += value.values()
            elif isinstance(value, list):
                inside += value
        if not inside:
            return
        level = inside
    raise DamagedFileError(f"it nests more than {MOST_LEVELS} objects and lists; expected a file of a run")
