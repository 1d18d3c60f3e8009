"""Student's t distribution for whole degrees of freedom: numpy has none, and scipy is no dependency of the package."""

import math

from breakhis_pl.errors import ShapeError


def two_sided_p(t: float, *, df: int) -> float:
    """Probability that a t-distributed variable is at least as far from 0 as `t`.

    Args:
        t: Any number.
        df: Degrees of freedom, 1 or more.

    Raises:
        ShapeError: If there is no degree of freedom.

    Source:
        Abramowitz and Stegun, Handbook of Mathematical Functions 1964, 26.7.3 and 26.7.4.

    Example:
        >>> round(two_sided_p(2.0555, df=26), 4)
        0.05
    """
    if df < 1:
        raise ShapeError(f"{df} degrees of freedom; expected at least 1, from two or more cases")
    angle = math.atan(abs(t) / math.sqrt(df))
    cos, sin = math.cos(angle), math.sin(angle)
    is_odd = df % 2 == 1
    term = cos if is_odd else 1.0
    total = 0.0
    for k in range(df % 2, df, 2):  # powers cos^k
        total += term
        term *= cos * cos * (k + 1) / (k + 2)
    inside = 2 / math.pi * (angle + sin * total) if is_odd else sin * total
    return max(0.0, 1 - inside)


def quantile_95(df: int) -> float:
    """The t that leaves 2.5 % beyond it on each side.

    Args:
        df: Degrees of freedom, 1 or more.

    Raises:
        ShapeError: If there is no degree of freedom.

    Example:
        >>> round(quantile_95(26), 3)
        2.056
    """
    low, high = 1.9, 13.0  # the normal distribution's 1.96 and 12.71 of one degree of freedom lie inside
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided_p(middle, df=df) > 0.05 else (low, middle)
    return (low + high) / 2
