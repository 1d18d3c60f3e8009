"""Tries one thing after another that may make a run faster, alone and together, and prints a Markdown table.

    uv run python -m benchmarks.trials [--device cpu|cuda] [--only <word> ...] [--rounds 3] [--seconds 2]

Every round of every variant is a process of its own; the variants of a group take turns. All of it takes half an hour
on two cores, most of it imports and compilation; `--only compiled` takes the variants whose group or name has the word,
and the first of their groups.
"""

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.__main__ import CACHE, keep_compiled_code_in
from benchmarks.bench import images_in
from benchmarks.images import drawn_images, spread
from benchmarks.plan import cpu_plan
from benchmarks.processes import asked
from benchmarks.table import number
from benchmarks.variants import Variant, cpu_variants, cuda_variants
from breakhis_pl.errors import BreakHisError

Answers = Sequence[tuple[Variant, Sequence[Mapping[str, float]]]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Tries what the command line asks for; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trials", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", nargs="+", help="words in the names of groups or variants")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="that a round lasts about, imports not counted")
    parser.add_argument("--list", action="store_true", help="only name the variants")
    options = parser.parse_args(arguments)
    try:
        variants = chosen(_variants(options.device, is_listed=options.list), options.only)
        if options.list:
            sys.stdout.write("".join(f"{variant.group}: {variant.name}\n" for variant in variants))
            return 0
        with tempfile.TemporaryDirectory(prefix="trials-") as folder:
            answers = _try(variants, options.rounds, options.seconds, Path(folder))
    except BreakHisError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(as_markdown(answers))
    return 0


def chosen(variants: Iterable[Variant], words: Sequence[str] | None) -> list[Variant]:
    """The variants with one of the words in group or name, and the first of each of their groups; None takes all."""
    everything = list(variants)
    if words is None:
        return everything
    named = [each for each in everything if any(word in f"{each.group}: {each.name}" for word in words)]
    groups = {each.group for each in named}
    first = {each.group: each for each in reversed(everything) if each.group in groups}
    return [each for each in everything if each in named or each is first.get(each.group)]


def as_markdown(answers: Answers) -> str:
    """A row per variant: speed, spread, and how many times that of the first of its group, round by round."""
    lines = ["| group | variant | images/s | spread | against the first | cold s |", "|---|---|---|---|---|---|"]
    first: dict[str, Sequence[float]] = {}
    for variant, rounds in answers:
        rates = [each["rate"] for each in rounds]
        reference = first.setdefault(variant.group, rates)
        against = median(own / its for own, its in zip(rates, reference, strict=True))
        spread_text = f"{number(min(rates))} to {number(max(rates))}"
        cold = number(median(each["cold_s"] for each in rounds))
        cells = (variant.group, variant.name, number(median(rates)), spread_text, f"{against:.2f}", cold)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _variants(device: str, *, is_listed: bool) -> list[Variant]:
    if device == "cuda":
        return list(cuda_variants())
    if is_listed:
        return list(cpu_variants([]))
    plan = cpu_plan()
    root = drawn_images(CACHE, size=plan.drawn_size, per_patient=plan.drawn_per_patient)
    return list(cpu_variants([record.path for record in spread(images_in(root), 32)]))


def _try(variants: Sequence[Variant], n_rounds: int, seconds: float, folder: Path) -> Answers:
    """Rounds of every group in turn; every process compiles from nothing."""
    found: dict[int, list[dict[str, Any]]] = {place: [] for place in range(len(variants))}
    for group in dict.fromkeys(variant.group for variant in variants):
        places = [place for place, variant in enumerate(variants) if variant.group == group]
        for number_of_round in range(n_rounds):
            for place in places if number_of_round % 2 == 0 else reversed(places):
                keep_compiled_code_in(folder / f"{place}-{number_of_round}")
                settings = {"seconds": seconds, **variants[place].settings}
                found[place].append(asked("trial", json.dumps(settings)))
        sys.stderr.write(f"{group}\n")
    return [(variants[place], rounds) for place, rounds in found.items()]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary files are removed
    sys.exit(main())
