"""How fast everything is, beside what a user would pick instead and beside what the hardware can do.

    uv run python -m benchmarks [--device auto|cpu|cuda] [--root <images>] [--only <subject> ...] [--out <file>]

Prints a table and writes a JSON file. Synthetic images are drawn once (two minutes on two cores). `--tiny` shows in
seconds that everything runs; `--plan gpu --device cpu --tiny` does so for what is measured on a GPU.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks import data_path, end_to_end, growth, start, step, store, sweep
from benchmarks.bench import Bench, images_in
from benchmarks.goals import goals, plain
from benchmarks.images import drawn_images
from benchmarks.machine import describe_machine
from benchmarks.plan import Plan, cpu_plan, cuda_plan
from benchmarks.quiet import quiet
from benchmarks.table import figures_table, goals_table
from benchmarks.timing import Measurement
from breakhis_pl.errors import BreakHisError
from breakhis_pl.files import write_text
from breakhis_pl.training.device import resolve_device
from breakhis_pl.training.speed import keep_freed_memory

SUBJECTS = ("data_path", "step", "end_to_end", "store", "start", "growth", "sweep")
CACHE = Path("outputs") / "cache" / "benchmarks"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what the command line asks for; gives the exit status."""
    options = _parser().parse_args(arguments)
    try:
        device_name, precision = resolve_device("gpu" if options.device == "cuda" else options.device, "auto")
        plan = _chosen_plan(options, device_name)
        out = options.out or Path("outputs") / "benchmarks" / f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%SZ}.json"
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmarks-")))
            stack.enter_context(quiet())
            keep_compiled_code_in(folder)
            bench = _bench(options, plan, torch.device(device_name), precision, folder)
            machine = describe_machine(bench.device)
            if bench.device.type == "cpu":
                keep_freed_memory()  # as training does
            out.parent.mkdir(parents=True, exist_ok=True)
            for results, seconds, failures in _measure(bench, options.only):
                write_text(out, _as_json(plan, precision, machine, results, seconds, failures))
    except BreakHisError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    total = f"{sum(seconds.values()):.0f} s: " + ", ".join(f"{name} {each:.0f} s" for name, each in seconds.items())
    sys.stdout.write(f"{figures_table(results)}\n")
    sys.stdout.write(f"{goals_table(goals(), plan.name, results, is_tiny=plan.is_tiny)}\n{total}\n{out}\n")
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--plan", choices=("cpu", "gpu"), help="sizes; those of the device if not given")
    parser.add_argument("--root", type=Path, help="folder of real images; synthetic ones are drawn if not given")
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, default=list(SUBJECTS), help="subjects to measure")
    parser.add_argument("--out", type=Path, help="JSON file to write, below outputs/benchmarks if not given")
    parser.add_argument("--rounds", type=int, help="of every measurement, 5 if not given")
    parser.add_argument("--tiny", action="store_true", help="sizes that take seconds and say nothing")
    return parser


def _chosen_plan(options: argparse.Namespace, device_name: str) -> Plan:
    name = options.plan or ("gpu" if device_name == "cuda" else "cpu")
    plan = cuda_plan() if name == "gpu" else cpu_plan()
    if options.rounds is not None:
        plan = replace(plan, rounds=options.rounds)
    return plan.tiny() if options.tiny else plan


def keep_compiled_code_in(folder: Path) -> None:
    """Compilation starts cold, and leaves nothing behind."""
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        os.environ[name] = str(folder / name.lower())


def _bench(options: argparse.Namespace, plan: Plan, device: torch.device, precision: str, folder: Path) -> Bench:
    cache = folder / "kept" if plan.is_tiny else CACHE
    started = time.perf_counter()
    root = options.root or drawn_images(cache, size=plan.drawn_size, per_patient=plan.drawn_per_patient)
    bench = Bench(
        plan=plan,
        device=device,
        precision=precision,
        root=root,
        records=tuple(images_in(root)),
        cache=cache,
        folder=folder,
    )
    if "data_path" in options.only:
        bench.copies()
    _say(f"images: {len(bench.records):,} in {time.perf_counter() - started:.0f} s")
    return bench


def _measure(
    bench: Bench, subjects: Sequence[str]
) -> Iterator[tuple[dict[str, list[Measurement]], dict[str, float], dict[str, str]]]:
    """Figures, seconds and failures by subject, in the order of `SUBJECTS`; what is there after each of them."""
    failures: dict[str, str] = {}
    results: dict[str, list[Measurement]] = {}
    seconds: dict[str, float] = {}
    for subject in SUBJECTS:
        if subject not in subjects:
            continue
        started = time.perf_counter()
        try:
            results[subject] = _measure_subject(bench, subject, results)
        except Exception as error:  # one that fails must not cost the others their figures
            failures[subject] = "".join(traceback.format_exception(error))
            _say(f"{subject} failed: {error}")
        seconds[subject] = time.perf_counter() - started
        _say(f"{subject}: {seconds[subject]:.0f} s")
        yield results, seconds, failures


def _measure_subject(bench: Bench, subject: str, results: Mapping[str, Sequence[Measurement]]) -> list[Measurement]:
    match subject:
        case "data_path":
            found = data_path.measure(bench)
        case "step":
            found = step.measure(bench)
        case "end_to_end":
            found = end_to_end.measure(bench, results.get("step", ()))
        case "store":
            found = store.measure(bench)
        case "start":
            found = start.measure(bench)
        case "growth":
            found = growth.measure(bench)
        case "sweep":
            found = sweep.measure(bench)
        case _:
            raise ValueError(f"subject {subject} is not possible; expected one of {SUBJECTS}")
    return found


def _as_json(
    plan: Plan,
    precision: str,
    machine: dict[str, object],
    results: dict[str, list[Measurement]],
    seconds: dict[str, float],
    failures: dict[str, str],
) -> str:
    judged = [plain(goal, plan.name, results, is_tiny=plan.is_tiny) for goal in goals()]
    content = {
        "machine": machine,
        "precision": precision,
        "plan": asdict(plan),
        "seconds": seconds,
        "failures": failures,
        "subjects": {name: {each.name: each.plain() for each in found} for name, found in results.items()},
        "goals": judged,
    }
    return json.dumps(content, indent=2) + "\n"


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary files are removed
    sys.exit(main())
