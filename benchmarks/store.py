"""Seconds to build the store and to open it, against one thread that only decodes."""

import itertools
import time
from collections.abc import Callable

from PIL import Image

from benchmarks.bench import Bench
from benchmarks.images import n_cores, spread
from benchmarks.timing import Measurement, alternate
from breakhis_pl.data.store import open_store

SHARE = "building against decoding times cores"


def measure(bench: Bench) -> list[Measurement]:
    """Speed of building as a share of what decoding alone allows; seconds for all images."""
    plan = bench.plan
    building, decoding = "building", "decoding, one thread"
    contestants = {building: _building(bench, plan.n_store_images), decoding: _decoding(bench, plan.n_decoded)}
    rounds = alternate(contestants, rounds=plan.rounds)
    shares = tuple(ratio / n_cores() for ratio in rounds.ratios(building, decoding))
    n_all = len(bench.records)
    started = time.perf_counter()
    _open(bench)
    seconds = time.perf_counter() - started
    again = alternate({"again": lambda: _open(bench)}, rounds=plan.rounds)
    return [
        *(Measurement(name, "images/s", rounds.rates(name)) for name in contestants),
        Measurement(SHARE, "", shares),
        Measurement(f"building, {n_all:,} images", "s", (seconds,)),
        Measurement(f"opening, {n_all:,} images", "s", again.seconds["again"]),
    ]


def _building(bench: Bench, n_images: int) -> Callable[[], float]:
    records = spread(bench.records, n_images)
    numbers = itertools.count()

    def run() -> float:
        folder = bench.folder / f"built-{n_images}-{next(numbers)}"
        open_store(records, image_size=bench.plan.loader_size, cache_dir=folder, show_progress=False)
        return len(records)

    return run


def _open(bench: Bench) -> float:
    folder = bench.folder / "opened"
    open_store(bench.records, image_size=bench.plan.loader_size, cache_dir=folder, show_progress=False)
    return len(bench.records)


def _decoding(bench: Bench, n_images: int) -> Callable[[], float]:
    records = spread(bench.records, n_images)

    def run() -> float:
        for record in records:
            with Image.open(record.path) as image:
                image.load()
        return len(records)

    return run
