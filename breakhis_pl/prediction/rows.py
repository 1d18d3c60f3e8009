"""Rows of what predict.py writes, one per image, and the tables that grow by them (no torch)."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from breakhis_pl.data.breakhis import CLASS_NAMES
from breakhis_pl.evaluation.calibration import at_temperature
from breakhis_pl.evaluation.csv_tables import csv_lines
from breakhis_pl.prediction.facts import Float32Array, NetworkFacts
from breakhis_pl.prediction.stream import Decoded

COLUMNS = (
    *("image", "width", "height", "prob_benign", "prob_malignant", "predicted"),
    *("prob_malignant_calibrated", "decision"),
    *("out_of_domain", "out_of_domain_score", "out_of_domain_reason", "gradcam"),
)
UNREADABLE_COLUMNS = ("image", "reason")


class GrowingTable:
    """A table in CSV format that is written as its rows come, and bears its name only when it is whole.

    Until `finish` it lies beside that name as `<stem>.partial.csv`, which stays if the process ends early: every row
    in it is a whole one, unless the system itself went down.

    Args:
        path: The file to make; its folder exists.
        columns: Names of the columns.

    Raises:
        OSError: If it cannot be written.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        self.partial = path.with_suffix(".partial.csv")
        # names of files may hold bytes that are no text
        self._file = self.partial.open("w", encoding="utf-8", errors="surrogateescape", newline="")
        self.n_rows = 0
        self._file.write(csv_lines([columns]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, rows: Iterable[Sequence[object]]) -> None:
        """Writes rows, all the way to the system."""
        rows = list(rows)
        self._file.write(csv_lines(rows))
        self._file.flush()
        self.n_rows += len(rows)

    def finish(self) -> None:
        """Gives the table its name."""
        self._file.close()
        self.partial.replace(self.path)


def softmax(logits: Float32Array) -> npt.NDArray[np.float64]:
    """Probabilities in double precision.

    Args:
        logits: float32, (n, n_classes).

    Example:
        >>> softmax(np.zeros((1, 2), dtype=np.float32)).tolist()
        [[0.5, 0.5]]
    """
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    exponential = np.exp(shifted)
    probabilities: npt.NDArray[np.float64] = exponential / exponential.sum(axis=1, keepdims=True)
    return probabilities


def rows_of(
    batch: Sequence[Decoded], probabilities: npt.NDArray[np.float64], facts: NetworkFacts, pictures: Sequence[str]
) -> Iterator[tuple[str, ...]]:
    """The rows of a batch; cells that nothing is known for are empty.

    Args:
        batch: Images that could be read.
        probabilities: float64, (n, 2), columns as in `CLASS_NAMES`.
        facts: Of the network.
        pictures: Name of each image's overlay, empty where there is none.
    """
    calibration = facts.calibration
    calibrated = None if calibration is None else at_temperature(probabilities, calibration.temperature)[:, 1]
    for index, image in enumerate(batch):
        decision = ("", "")
        if calibration is not None and calibrated is not None:
            is_called = calibrated[index] >= calibration.threshold
            decision = (f"{calibrated[index]:.9g}", CLASS_NAMES[int(is_called)])
        yield (
            image.path,
            str(image.width),
            str(image.height),
            *(f"{value:.9g}" for value in probabilities[index]),
            CLASS_NAMES[int(probabilities[index].argmax())],
            *decision,
            *_domain_cells(image, facts),
            pictures[index],
        )


def _domain_cells(image: Decoded, facts: NetworkFacts) -> tuple[str, str, str]:
    """Flag, score and reason; the reason is empty where an image is not flagged."""
    if facts.domain is None:
        return "", "", ""
    score = facts.domain.score(image.features)
    is_out = score > 1
    return str(is_out).lower(), f"{score:.4g}", facts.domain.reason(image.features) if is_out else ""
