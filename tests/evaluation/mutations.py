"""Files as damage, other programs and malice leave them: changed bytes, changed cells, changed values."""

import json
import random
from collections.abc import Callable
from typing import Any

ODD_TEXTS = (
    *(
        "",
        " ",
        "nan",
        "-inf",
        "1e999",
        "-1",
        "0x10",
        "1_000",
        "٣",
        "=cmd|' /C calc'!A0",
        '"',
        "'",
        ",",
        "\r",
        "\n",
        "\0",
    ),
    *("<script>alert(1)</script>", "\u202eevil", "\u2028", "\x07", "\x1b[31m", "bad\udcff", "x" * 5000, "{{ 7 * 7 }}"),
)
ODD_VALUES = (
    *(None, True, False, 0, -1, 1.5, 10**400, -(10**400), 1e308, float("nan"), float("inf"), [], {}, [[]], [1, 2, 3]),
    *([[1, 2], [3]], {"value": "x"}, {"value": 1, "ci95": [10**400, 1]}, {"value": None, "ci95": [0, 1]}, "\ud800"),
    *(each for each in ODD_TEXTS if "\udcff" not in each),
)


def mutated_bytes(content: bytes, chance: random.Random) -> bytes:
    """Some bytes are changed, left out, repeated, or the end is cut off."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8))):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.choice((0, 1, 1, 4, 60)))
        insert = chance.choice((b"", b"", chance.randbytes(chance.choice((1, 4, 40))), bytes(data[start:end]) * 2))
        data[start:end] = insert
        if chance.random() < 0.1:
            del data[chance.randrange(len(data) + 1) :]
    return bytes(data)


def mutated_csv(content: bytes, chance: random.Random) -> bytes:
    """A cell is replaced by an odd one, a row or a column is repeated or left out; else bytes are changed."""
    if chance.random() < 0.3:
        return mutated_bytes(content, chance)
    lines = content.decode("utf-8").split("\n")[:-1]
    row = chance.randrange(len(lines))
    cells = lines[row].split(",")
    place = chance.randrange(len(cells))
    match chance.randrange(5):
        case 0:
            lines.insert(chance.randrange(len(lines) + 1), lines[row])
        case 1:
            del lines[row]
        case 2:
            del cells[place]
            lines[row] = ",".join(cells)
        case _:
            odd = chance.choice(ODD_TEXTS)
            cells[place] = f'"{odd}"' if chance.random() < 0.5 else odd
            lines[row] = ",".join(cells)
    return "\n".join([*lines, ""]).encode("utf-8", errors="surrogateescape")


def mutated_json(content: bytes, chance: random.Random) -> bytes:
    """A value anywhere in the document is replaced by an odd one or left out; else bytes are changed."""
    if chance.random() < 0.25:
        return mutated_bytes(content, chance)
    document = json.loads(content)
    for _ in range(chance.choice((1, 1, 1, 3))):
        places = _places(document)
        if not places:
            break
        chance.choice(places)(chance)
    if chance.random() < 0.02:
        return b"[" * chance.choice((10, 1000, 100_000)) + json.dumps(document).encode()
    return json.dumps(document).encode()


def _places(value: Any) -> list[Callable[[random.Random], None]]:
    """What changes each value inside a document."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    found: list[Callable[[random.Random], None]] = []
    for key in keys:
        found += [lambda chance, key=key: _change(value, key, chance), *_places(value[key])]  # type: ignore[misc]
    return found


def _change(container: Any, key: Any, chance: random.Random) -> None:
    if chance.random() < 0.2:
        del container[key]
    elif chance.random() < 0.15 and isinstance(container, dict):
        container[chance.choice(ODD_TEXTS).encode("utf-8", "replace").decode()] = container.pop(key)
    else:
        container[key] = chance.choice(ODD_VALUES)
