"""How far a long transfer is: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from tqdm import tqdm

LINE_SHARE = 0.1
LINE_INTERVAL_S = 30.0


def size_text(n_bytes: int) -> str:
    """A number of bytes for reading.

    Example:
        >>> size_text(4_270_000_000)
        '4.27 GB'
    """
    value = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB" if value < 999.5 else f"{value:,.0f} TB"


def write_line(text: str) -> None:
    """Writes a line to standard error."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


class LineProgress:
    """Writes a line after every tenth of the whole, and after 30 s without one.

    Args:
        what: What is going on, the first words of each line.
        total: Bytes of the whole, None if that is not known.
        initial: Bytes that were there before.
        stream: Where lines go.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        what: str,
        *,
        total: int | None,
        initial: int,
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._total = total
        self._initial = initial
        self._stream = stream
        self._clock = clock
        self._n_bytes = initial
        self._started_s = self._line_s = clock()
        self._line_tenth = self._tenth()

    def advance(self, n_bytes: int) -> None:
        """Counts bytes that came, and writes a line if it is time for one."""
        self._n_bytes += n_bytes
        now_s = self._clock()
        if self._tenth() > self._line_tenth or now_s - self._line_s >= LINE_INTERVAL_S:
            self._line_tenth, self._line_s = self._tenth(), now_s
            self._stream.write(f"{self._line(now_s - self._started_s)}\n")
            self._stream.flush()

    def _tenth(self) -> int:
        return int(self._n_bytes / self._total / LINE_SHARE) if self._total else 0

    def _line(self, elapsed_s: float) -> str:
        rate = (self._n_bytes - self._initial) / elapsed_s if elapsed_s > 0 else 0.0
        parts = [f"{self._what}: {size_text(self._n_bytes)}"]
        if self._total:
            parts = [f"{parts[0]} of {size_text(self._total)} ({self._n_bytes / self._total:.0%})"]
        if rate > 0:
            parts.append(f"{size_text(int(rate))}/s")
        if rate > 0 and self._total:
            parts.append(f"{tqdm.format_interval((self._total - self._n_bytes) / rate)} left")
        return ", ".join(parts)


@contextmanager
def byte_progress(
    what: str, *, total: int | None, initial: int = 0, stream: TextIO | None = None
) -> Iterator[Callable[[int], object]]:
    """A function to call with the number of bytes that came, which shows how far the whole is.

    Args:
        what: What is going on, such as "fetching".
        total: Bytes of the whole, None if that is not known.
        initial: Bytes that were there before.
        stream: Where to show it, standard error by default: a bar on a terminal, lines elsewhere.
    """
    shown = sys.stderr if stream is None else stream
    if not shown.isatty():
        yield LineProgress(what, total=total, initial=initial, stream=shown).advance
        return
    with tqdm(
        desc=what, total=total, initial=initial, unit="B", unit_scale=True, file=shown, dynamic_ncols=True
    ) as bar:
        yield bar.update
