"""Where curves and results of a run are kept beside its own files: one interface, the same names everywhere.

A quantity of a subset is `train/loss`, `test/accuracy`; TensorBoard has a folder per subset, so that train and test of
one quantity share a chart. The step is the epoch, from 1. What a run writes into its folder does not depend on the
logger, and a logger that stops answering in the midst of a run does not stop the run.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

log = logging.getLogger(__name__)


class RunLogger(Protocol):
    """What a run tells a logger."""

    def add_scalar(self, subset: str, quantity: str, value: float, *, epoch: int) -> None:
        """A value after an epoch (from 1)."""

    def add_image(self, subset: str, name: str, pixels: npt.NDArray[np.uint8], *, epoch: int) -> None:
        """A picture: uint8, (height, width, channels)."""

    def add_text(self, subset: str, name: str, text: str) -> None:
        """A text in Markdown."""

    def add_results(self, subset: str, metrics: Mapping[str, Any], *, epoch: int) -> None:
        """The content of metrics.json, after the last epoch."""

    def flush(self) -> None:
        """The epoch is over: keeps what was told."""

    def close(self) -> None:
        """The run is over, in whatever way."""


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted key.

    Example:
        >>> dict(flat({"data": {"fold": 2}, "seed": 0}))
        {'data.fold': 2, 'seed': 0}
    """
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def result_values(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a metrics.json that have one value and an interval, by name; those not defined are left out.

    Args:
        metrics: Its content.
    """
    return {
        name: float(of["value"])
        for name, of in metrics.items()
        if isinstance(of, Mapping) and "ci95" in of and of.get("value") is not None
    }


class Forgiving:
    """Calls that may fail without stopping a run: the first failure is said, and nothing is called after it.

    Args:
        what: The logger's name, for the text.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.has_failed = False

    def __call__(self, call: Callable[[], Any]) -> None:
        """Calls, unless a call has failed before."""
        if self.has_failed:
            return
        try:
            call()
        except Exception as error:  # whatever its package raises
            self.has_failed = True
            log.warning("logger=%s: %s; the run goes on without it, its own files hold everything", self.what, error)
