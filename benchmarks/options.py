"""What options of training bring, on validation cases: `python -m benchmarks.options data.root=<folder> …`.

Every option is trained with several seeds, each of which takes other whole cases out of train for validation. The test
images are not looked at. What is there already in the folder is not trained again, so that a run that was cut goes on.
On a large GPU several trainings fit beside each other (`--jobs`).
"""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from types import MappingProxyType

from breakhis_pl import composition, run
from breakhis_pl.data.breakhis import Subset
from breakhis_pl.evaluation.metrics import point_values
from breakhis_pl.evaluation.predictions import read_predictions
from breakhis_pl.files import write_text
from breakhis_pl.run_json import RUN_JSON, read_run

_STRONG, _MIXUP, _EMA = ("augmentation=strong",), ("training.mixup=0.2",), ("training.ema_decay=0.98",)
_DECAY, _FROZEN, _COSINE = ("training.layer_decay=0.7",), ("training.frozen_epochs=2",), ("scheduler=warmup_cosine",)
_ADAMW = ("optimizer=adamw", "optimizer.lr=1e-4")

OPTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "report": (),
        "strong": _STRONG,
        "sampler": ("data.balance=sampler",),
        "loss": ("data.balance=loss",),
        "smoothing": ("training.label_smoothing=0.1",),
        "mixup": _MIXUP,
        "ema": _EMA,
        "layer decay": _DECAY,
        "frozen start": _FROZEN,
        "warm-up, cosine": _COSINE,
        "adamw 1e-4, cosine": (*_ADAMW, *_COSINE),
        "macenko": ("data.stain=macenko",),
        "reinhard": ("data.stain=reinhard",),
        "mixup, ema": (*_MIXUP, *_EMA),
        "mixup, ema, cosine": (*_MIXUP, *_EMA, *_COSINE),
        "mixup, ema, strong": (*_MIXUP, *_EMA, *_STRONG),
        "mixup, cosine": (*_MIXUP, *_COSINE),
        "strong, ema": (*_STRONG, *_EMA),
        "strong, cosine": (*_STRONG, *_COSINE),
        "strong, layer decay": (*_STRONG, *_DECAY),
        "strong, layer decay, mixup, ema": (*_STRONG, *_DECAY, *_MIXUP, *_EMA),
        "strong, frozen start": (*_STRONG, *_FROZEN),
        "strong, lr 1e-4": (*_STRONG, "optimizer.lr=1e-4"),
        "strong, lr 1e-4, mixup, ema": (*_STRONG, "optimizer.lr=1e-4", *_MIXUP, *_EMA),
        "strong, adamw 1e-4, cosine": (*_STRONG, *_ADAMW, *_COSINE),
        "frozen features": ("experiment=frozen", "trainer.max_epochs=1"),
    }
)
METRICS = ("auroc", "balanced_accuracy", "weighted_f1", "log_loss")


def values_of(overrides: Sequence[str], folder: Path) -> dict[str, float]:
    """Trains, unless that is done, and gives the values of `METRICS` on the validation images."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    composition.register()
    config = composition.compose_checked("train", list(overrides))
    is_there = (folder / RUN_JSON).exists()
    if is_there and read_run(folder)["status"] != "finished":
        run.resume(config, folder)
    elif not is_there:
        run.train(config, folder, evaluated=(Subset.VAL,))
    values = point_values(read_predictions(folder / Subset.VAL / "predictions.csv"))
    return {name: float(values[name] or 0.0) for name in METRICS}


def table(found: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Markdown: mean over the seeds, in parentheses the mean difference to the first option over the same seeds."""
    first = next(iter(found.values()))
    lines = ["| option | seeds | " + " | ".join(METRICS) + " |", "|---" * (len(METRICS) + 2) + "|"]
    for name, of_seeds in found.items():
        cells = []
        for metric in METRICS:
            change = fmean(here[metric] - there[metric] for here, there in zip(of_seeds, first, strict=False))
            mean = fmean(of_seed[metric] for of_seed in of_seeds)
            cells.append(f"{mean:.3f}" + ("" if of_seeds is first else f" ({change:+.3f})"))
        lines.append(f"| {name} | {len(of_seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def best_of(found: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """The option to take: of those that are better than the first in every mean, the one of the lowest log loss.

    Log loss is the only proper score of the four. If none is better in every mean, the first.
    """
    means = {name: {key: fmean(each[key] for each in of_seeds) for key in METRICS} for name, of_seeds in found.items()}
    first = next(iter(means))

    def is_better(name: str) -> bool:
        here, there = means[name], means[first]
        return all(here[key] < there[key] if key == "log_loss" else here[key] > there[key] for key in METRICS)

    return min((name for name in means if is_better(name)), key=lambda name: means[name]["log_loss"], default=first)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains every option with every seed, and writes options.md after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*", help="of train.py, for every option: data.root=…")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--only", nargs="*", default=list(OPTIONS), help="names of options; also name:key=value,…")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, a process each")
    asked = parser.parse_args(arguments)
    with ProcessPoolExecutor(asked.jobs, mp_context=get_context("spawn")) as pool:
        of_options = {}
        for text in asked.only:
            name, _, own = text.partition(":")
            overrides = own.split(",") if own else OPTIONS[name]
            place = asked.out / name.replace(" ", "_").replace(",", "")
            fixed = ["data.val_fraction=0.3", "gallery=0", *asked.overrides, *overrides]
            of_options[name] = [
                pool.submit(values_of, [*fixed, f"seed={seed}"], place / f"seed{seed}") for seed in range(asked.seeds)
            ]
        found: dict[str, list[dict[str, float]]] = {}
        for name, of_seeds in of_options.items():
            for future in of_seeds:
                found.setdefault(name, []).append(future.result())
                write_text(asked.out / "options.md", table(found))
    best = best_of(found)
    sys.stdout.write(f"{table(found)}best: {best}: {' '.join(OPTIONS.get(best, ()))}\n")


if __name__ == "__main__":
    main()
