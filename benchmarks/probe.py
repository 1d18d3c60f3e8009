"""Builds or opens a store in a process of its own; prints seconds and memory as JSON.

python -m benchmarks.probe store|opening <images> <cache> <image size> <rounds> <device> <precision>
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.images import MAGNIFICATION
from benchmarks.memory import MemoryWatch
from breakhis_pl.data.index import index_images
from breakhis_pl.data.store import open_store


def main() -> None:
    """Prints seconds of every round, peak memory, and memory before the first round."""
    phase, root, cache, size, rounds, *_ = sys.argv[1:]
    watch = MemoryWatch()

    def work() -> None:
        records = index_images(Path(root), (MAGNIFICATION,))
        store = open_store(records, image_size=int(size), cache_dir=Path(cache), show_progress=False)
        if store.built != (phase == "store"):
            raise ValueError(f"store {store.folder} was {'built' if store.built else 'there already'} in phase {phase}")

    answer(timed(work, int(rounds), warm_up=phase == "opening"), watch)


def timed(work: Callable[[], None], rounds: int, *, warm_up: bool) -> list[float]:
    """Seconds of every round of some work.

    Args:
        work: To do.
        rounds: That count.
        warm_up: Whether one that does not count comes first.
    """
    seconds = []
    for _ in range(rounds + warm_up):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return seconds[int(warm_up) :]


def answer(seconds: list[float], watch: MemoryWatch, *, device_mb: float | None = None) -> None:
    """Prints what a probe found."""
    facts = {"seconds": seconds, "peak_mb": watch.peak_mb(), "base_mb": watch.base_mb, "device_mb": device_mb}
    sys.stdout.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
