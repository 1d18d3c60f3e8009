"""Errors that the package raises on purpose; the command line shows them as one message, without a traceback."""

from collections.abc import Iterable


class BreakHisError(Exception):
    """Base class. The message says what is wrong, what was expected and what to do next."""


class ConfigurationError(BreakHisError, ValueError):
    """A key or value of the configuration is not possible."""


class DataError(BreakHisError, ValueError):
    """A data folder, its file names or its images cannot be used, or cannot be split as asked."""


class WeightsError(BreakHisError, ValueError):
    """Pretrained weights are missing, unreadable or made for another network."""


class CheckpointError(BreakHisError, ValueError):
    """A checkpoint is missing, unreadable or not one of this package."""


class RunFolderError(BreakHisError, FileNotFoundError):
    """A folder is not a run folder, or a run cannot be written into it."""


class PredictionsError(BreakHisError, ValueError):
    """A table of predictions is malformed."""


class ShapeError(BreakHisError, ValueError):
    """Arrays are empty, or their shapes do not match."""


class TrainingError(BreakHisError, ArithmeticError):
    """A training diverged or ran out of memory."""


def pluralize(n: int, noun: str) -> str:
    """Return a number with its noun, which takes an s unless the number is 1.

    Example:
        >>> pluralize(1, "run"), pluralize(2000, "run")
        ('1 run', '2,000 runs')
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def join_truncated(names: Iterable[object], limit: int = 10) -> str:
    """Join the first names with commas and count the rest.

    Args:
        names: What to list, in order.
        limit: Number of names that are spelled out.

    Example:
        >>> join_truncated(["a", "b", "c"], limit=2)
        'a, b and 1 more'
    """
    texts = [str(name) for name in names]
    shown = ", ".join(texts[:limit])
    return shown if len(texts) <= limit else f"{shown} and {len(texts) - limit} more"
