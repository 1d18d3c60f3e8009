"""Damaged files."""

import random


def mutated_bytes(content: bytes, chance: random.Random) -> bytes:
    """Change, drop or repeat some bytes, or cut off the end."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8))):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.choice((0, 1, 1, 4, 60)))
        insert = chance.choice((b"", b"", chance.randbytes(chance.choice((1, 4, 40))), bytes(data[start:end]) * 2))
        data[start:end] = insert
        if chance.random() < 0.1:
            del data[chance.randrange(len(data) + 1) :]
    return bytes(data)
