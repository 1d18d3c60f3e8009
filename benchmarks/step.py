"""The step limit in every mode, and the share of the peak that it reaches."""

import gc
import sys
import time
from collections.abc import Callable, Iterable, Sequence

import torch

from benchmarks.bench import Bench
from benchmarks.limit import Case, Mode, Steps, forward_steps, modes, train_steps
from benchmarks.timing import Measurement, alternate, waiter

FORWARD_GFLOPS = {"resnet18": 10.9 / 3, "wide_resnet50": 68.6 / 3, "resnext50": 25.6 / 3}
"""Of an image of 224 pixels, two per multiply-add, as published; torch counts up to 1 % fewer. A train step does three
times as much."""

_PEAK = "matrix product"


def measure(bench: Bench) -> list[Measurement]:
    """Images per second of every network, batch size and mode; share of the peak of the fastest."""
    found: list[Measurement] = []
    seconds_compiling = 0.0
    for network in bench.plan.networks:
        for batch_size in bench.plan.batch_sizes:
            case = Case(network, bench.plan.image_size, batch_size, bench.precision, bench.device)
            chosen = list(modes(bench.device))
            if seconds_compiling < bench.plan.compile_budget_s:
                chosen.append(Mode.COMPILED)
            measured, seconds = _measure_case(bench, case, chosen)
            found += measured
            seconds_compiling += seconds
            free()
    return found


def fastest_mode(measurements: Iterable[Measurement], network: str, batch_size: int, *, what: str = "train") -> Mode:
    """The fastest mode by the figures of `measure`; eager and channels_last where they say nothing of this case."""
    medians = {measurement.name: measurement.median for measurement in measurements}
    found = {mode: medians[name] for mode in Mode if (name := step_name(network, batch_size, mode, what)) in medians}
    return max(found, key=found.__getitem__) if found else Mode.CHANNELS_LAST


def step_name(network: str, batch_size: int, mode: Mode, what: str) -> str:
    """Name of the speed of a mode; `what` is "train" or "forward"."""
    return f"{network}, batch {batch_size}, {what}: {mode.value}"


def share_name(network: str, batch_size: int) -> str:
    """Name of the share of the peak."""
    return f"{network}, batch {batch_size}, train: share of peak"


def flops_per_image(network: str, image_size: int) -> float:
    """Floating-point operations of a train step per image.

    Source:
        torchvision's multiply-adds at 224 pixels; convolutions grow with the area.
    """
    return 3e9 * FORWARD_GFLOPS[network] * (image_size / 224) ** 2


def free() -> None:
    """Gives back what no object holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _measure_case(bench: Bench, case: Case, chosen: Sequence[Mode]) -> tuple[list[Measurement], float]:
    """Figures of one case, and the seconds that compilation took."""
    found: list[Measurement] = []
    seconds_compiling = 0.0
    for what, make in (("train", train_steps), ("forward", forward_steps)):
        contestants: dict[str, Callable[[], float]] = {}
        for mode in chosen:
            started = time.perf_counter()
            try:
                steps = make(case, mode)
            except RuntimeError as error:  # what cannot be captured or compiled here is not the fastest
                sys.stderr.write(f"{case.network}, batch {case.batch_size}, {what}, {mode.value}: {error}\n")
                continue
            seconds = time.perf_counter() - started
            if mode is Mode.COMPILED:
                seconds_compiling += seconds
                name = f"{case.network}, batch {case.batch_size}, {what}: cold compilation"
                found.append(Measurement(name, "s", (seconds,)))
            name = step_name(case.network, case.batch_size, mode, what)
            contestants[name] = _run(steps, steps.pace(bench.plan.limit_s))
        if what == "train":
            contestants[_PEAK] = _matrix_product(bench)
        rounds = alternate(contestants, rounds=bench.plan.rounds, wait=waiter(bench.device))
        found += [Measurement(name, "images/s", rounds.rates(name)) for name in contestants if name != _PEAK]
        if what == "train":
            found += _peak(case, rounds.rates(_PEAK), found)
    return found, seconds_compiling


def _peak(case: Case, products: tuple[float, ...], speeds: Sequence[Measurement]) -> list[Measurement]:
    """Speed of the matrix product, and the share of it that the fastest mode reaches, round by round."""
    mode = fastest_mode(speeds, case.network, case.batch_size)
    name = step_name(case.network, case.batch_size, mode, "train")
    fastest = next(speed for speed in speeds if speed.name == name)
    flops = flops_per_image(case.network, case.image_size)
    shares = tuple(rate * flops / product for rate, product in zip(fastest.values, products, strict=True))
    tera = tuple(product / 1e12 for product in products)
    return [
        Measurement(f"{case.network}, batch {case.batch_size}, train: {_PEAK}", "TFLOP/s", tera),
        Measurement(share_name(case.network, case.batch_size), "", shares),
    ]


def _run(steps: Steps, n_steps: int) -> Callable[[], float]:
    return lambda: steps.run(n_steps)


def _matrix_product(bench: Bench) -> Callable[[], float]:
    """A product of random square matrices in the precision of the steps; gives the operations done."""
    side = bench.plan.matrix_side
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(bench.precision, torch.float32)
    left, right = (torch.randn((side, side), device=bench.device).to(dtype) for _ in range(2))
    n_products = 20 if bench.device.type == "cuda" else 3

    def run() -> float:
        for _ in range(n_products):
            left @ right
        return n_products * 2.0 * side**3

    return run
