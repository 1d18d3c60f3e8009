"""How long until something happens: the help, the import, the first batch with a warm store."""

from collections.abc import Callable
from typing import Any

from benchmarks.bench import REPOSITORY, Bench, data_module
from benchmarks.processes import asked, timed_python
from benchmarks.timing import Measurement, alternate

HELP = "train.py --help"
PARTS = ("python", "imports", "opening", "first batch")


def measure(bench: Bench) -> list[Measurement]:
    """Seconds from the start of a process."""
    config = bench.config(bench.plan.n_images, f"data.image_size={bench.plan.loader_size}", "data.split=ratio")
    data_module(config)  # the store is warm now
    first_batch = "first augmented batch"
    answers: list[dict[str, Any]] = []

    def ask() -> float:
        answers.append(_first_batch(bench))
        return 1

    contestants: dict[str, Callable[[], float]] = {
        HELP: _python(bench, str(REPOSITORY / "train.py"), "--help"),
        "import breakhis_pl": _python(bench, "-c", "import breakhis_pl"),
        "python alone": _python(bench, "-c", "pass"),
        first_batch: ask,
    }
    rounds = alternate(contestants, rounds=bench.plan.rounds)
    found = [Measurement(name, "s", rounds.seconds[name]) for name in contestants if name != first_batch]
    counted = answers[1:]
    found.append(Measurement(first_batch, "s", tuple(sum(answer.values()) for answer in counted)))
    parts = [Measurement(f"{first_batch}: {part}", "s", tuple(answer[part] for answer in counted)) for part in PARTS]
    return found + parts


def _python(bench: Bench, *arguments: str) -> Callable[[], float]:
    def run() -> float:
        timed_python(arguments, cwd=bench.folder)
        return 1

    return run


def _first_batch(bench: Bench) -> dict[str, Any]:
    plan = bench.plan
    return asked(
        "first_batch",
        *(str(bench.subset(plan.n_images)), str(bench.folder / "cache"), str(plan.loader_size), str(bench.device)),
    )
