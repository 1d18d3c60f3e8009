"""Randomness as a function of what it is for, never of what was drawn before."""

import hashlib


def derived_seed(seed: int, purpose: str, *indices: int) -> int:
    """A seed for one purpose at one place of a run, such as the shuffling of epoch 3.

    Args:
        seed: The run's seed.
        purpose: What the numbers are for, "shuffle" or "dropout".
        indices: Epoch, step or whatever else the numbers should depend on.

    Returns:
        In [0, 2**63); equal arguments give equal seeds on every machine.

    Example:
        >>> derived_seed(0, "shuffle", 1) == derived_seed(0, "shuffle", 2)
        False
    """
    text = ":".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
