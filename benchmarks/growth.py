"""Seconds and memory of everything at several numbers of images: nothing may grow faster than they do."""

from itertools import pairwise
from typing import Any

from benchmarks.bench import Bench
from benchmarks.processes import asked
from benchmarks.timing import Measurement

PHASES = ("store", "opening", "data path", "training")


def measure(bench: Bench) -> list[Measurement]:
    """Each phase in a process of its own; its peak memory, and how it grows."""
    sizes = [n_images for n_images in bench.plan.growth if n_images <= len(bench.records)]
    found: list[Measurement] = []
    for phase in bench.plan.growth_phases:
        answers = {n_images: _ask(bench, phase, n_images) for n_images in sizes}
        for n_images, answer in answers.items():
            found += _figures(f"{phase}, {n_images:,} images", answer)
        for first, last in [*pairwise(sizes), (sizes[0], sizes[-1])]:
            found += _growth(phase, answers, first, last)
    return list({measurement.name: measurement for measurement in found}.values())


def time_name(phase: str) -> str:
    """Name of the growth in time, from the fewest to the most images."""
    return f"{phase}: growth of time over growth of images"


def memory_name(phase: str) -> str:
    """Name of the growth in memory, likewise."""
    return f"{phase}: growth of memory over growth of images"


def _ask(bench: Bench, phase: str, n_images: int) -> dict[str, Any]:
    plan = bench.plan
    folder = bench.folder / f"growth-{n_images}"  # what one phase has built, the next one opens
    rounds = 1 if phase == "store" else plan.rounds
    size = plan.image_size if phase == "training" else plan.loader_size
    arguments = (phase, str(bench.subset(n_images)), str(folder), str(size), str(rounds), str(bench.device))
    module = "probe" if phase in {"store", "opening"} else "training_probe"
    return asked(module, *arguments, bench.precision)


def _figures(name: str, answer: dict[str, Any]) -> list[Measurement]:
    found = [
        Measurement(name, "s", tuple(answer["seconds"])),
        Measurement(f"{name}: peak memory", "MB", (answer["peak_mb"],)),
        Measurement(f"{name}: of it above the imports", "MB", (answer["peak_mb"] - answer["base_mb"],)),
    ]
    if answer["device_mb"] is not None:
        found.append(Measurement(f"{name}: peak device memory", "MB", (answer["device_mb"],)))
    return found


def _growth(phase: str, answers: dict[int, dict[str, Any]], first: int, last: int) -> list[Measurement]:
    times = last / first
    few, many = answers[first], answers[last]
    is_whole = (first, last) == (min(answers), max(answers))
    note = "" if is_whole else f", {first:,} to {last:,} images"
    seconds = tuple(b / a / times for a, b in zip(few["seconds"], many["seconds"], strict=True))
    memory = [(answer["peak_mb"] - answer["base_mb"]) for answer in (few, many)]
    return [
        Measurement(f"{time_name(phase)}{note}", "", seconds),
        Measurement(f"{memory_name(phase)}{note}", "", (memory[1] / max(memory[0], 1.0) / times,)),
    ]
