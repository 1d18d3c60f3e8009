"""Evaluate tables of predictions: `python -m breakhis_pl.evaluation predictions.csv`."""

import argparse
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from breakhis_pl.data.breakhis import Subset
from breakhis_pl.errors import BreakHisError, PredictionsError, listed
from breakhis_pl.evaluation.intervals import N_DRAWS, PairedDifference, align, holm, mcnemar, paired_differences
from breakhis_pl.evaluation.metrics import classification_report, evaluate, write_metrics
from breakhis_pl.evaluation.predictions import Predictions, read_predictions
from breakhis_pl.evaluation.siblings import siblings_from_split

_SHOWN = (
    "accuracy",
    "balanced_accuracy",
    "weighted_f1",
    "macro_f1",
    "mcc",
    "auroc",
    "average_precision",
    "brier",
    "log_loss",
    "ece",
    "patient_recognition_rate",
    "case_accuracy",
    "sensitivity",
    "specificity",
)
_COMPARED = ("accuracy", "weighted_f1", "balanced_accuracy", "auroc")


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate the tables named at the command line; the exit status.

    Args:
        arguments: What follows the program's name; by default `sys.argv`.
    """
    options = _parser().parse_args(arguments)
    try:
        _evaluate_all(options)
    except (BreakHisError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m breakhis_pl.evaluation",
        description="Compute every metric from tables of predictions, print the main ones, and write metrics.json.",
        epilog="Several tables of the same images are compared, with paired intervals over cases.",
    )
    parser.add_argument("tables", nargs="+", type=Path, metavar="predictions.csv", help="tables, one row per image")
    parser.add_argument("--out", type=Path, help="folder for metrics.json (default: beside each table)")
    parser.add_argument("--no-intervals", action="store_true", help="leave out the 95 %% intervals and comparisons")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")
    parser.add_argument("--draws", type=int, default=N_DRAWS, help=f"draws of the bootstrap (default: {N_DRAWS})")
    return parser


def _evaluate_all(options: argparse.Namespace) -> None:
    labels = _labels(options.tables)
    tables = {label: read_predictions(path) for label, path in zip(labels, options.tables, strict=True)}
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    for path, (label, predictions) in zip(options.tables, tables.items(), strict=True):
        metrics = evaluate(
            predictions,
            subset=_subset(path),
            with_intervals=not options.no_intervals,
            seed=options.seed,
            n_draws=options.draws,
            siblings=_siblings(path),
        )
        out = _out_path(path, label, options.tables, options.out)
        write_metrics(out, metrics)
        print(f"{path}\n\n{classification_report(metrics)}\n\n{_estimates(metrics)}\n\nwritten to {out}\n")
    if len(tables) > 1 and not options.no_intervals:
        print(_comparison(tables, seed=options.seed, n_draws=options.draws))


def _labels(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path that tell the paths apart, joined by "_"."""
    resolved = [path.resolve() for path in paths]
    twice = [str(path) for path, full in zip(paths, resolved, strict=True) if resolved.count(full) > 1]
    if twice:
        raise PredictionsError(f"{listed(dict.fromkeys(twice))} is given more than once; name every table once")
    deepest = max(len(path.parts) for path in resolved)
    for n_parts in range(1, deepest):
        labels = ["_".join(path.with_suffix("").parts[-n_parts:]) for path in resolved]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{label}_{i}" for i, label in enumerate(labels, start=1)]


def _out_path(path: Path, label: str, paths: Sequence[Path], out: Path | None) -> Path:
    folder = path.parent if out is None else out
    sharing = [other for other in paths if out is not None or other.resolve().parent == path.resolve().parent]
    return folder / ("metrics.json" if len(sharing) == 1 else f"{label}.metrics.json")


def _subset(path: Path) -> str:
    """The folder's name if it is one of a subset, else test."""
    name = path.resolve().parent.name
    return name if name in tuple(Subset) else Subset.TEST.value


def _siblings(path: Path) -> frozenset[str]:
    split = path.resolve().parent.parent / "split.csv"
    return siblings_from_split(split) if split.is_file() else frozenset()


def _estimates(metrics: dict[str, Any]) -> str:
    unit = f"{metrics['n_images']} images, {metrics['n_patients']} patients, {metrics['n_cases']} cases"
    lines = [f"{unit}; in brackets 95 % intervals over cases"]
    lines += [f"{name:<25} {_estimate(metrics[name])}" for name in _SHOWN]
    rest = metrics.get("without_siblings")
    if rest is not None:
        lines += ["", f"without the images of cases that train holds as well: {rest['n_images']} images"]
        lines += [f"{name:<25} {_estimate(rest[name])}" for name in _COMPARED]
    return "\n".join(lines)


def _estimate(estimate: dict[str, Any]) -> str:
    if estimate["value"] is None:
        return "not defined"
    limits = estimate["ci95"]
    interval = "" if limits is None else f"  [{limits[0]:.3f}, {limits[1]:.3f}]"
    return f"{estimate['value']:.3f}{interval}"


def _comparison(tables: dict[str, Predictions], *, seed: int, n_draws: int) -> str:
    pairs = list(combinations(tables, 2))
    try:
        differences = [
            paired_differences(tables[a], tables[b], metrics=_COMPARED, seed=seed, n_draws=n_draws) for a, b in pairs
        ]
    except PredictionsError as error:
        return f"no paired comparison: {error}"
    lines = ["paired differences; in brackets 95 % intervals over cases; p: two-sided, by Holm's method over the pairs"]
    adjusted = [holm([_p_value(of_pair[k]) for of_pair in differences]) for k in range(len(_COMPARED))]
    for i, (a, b) in enumerate(pairs):
        lines += ["", f"{a} - {b}"]
        for difference, p_values in zip(differences[i], adjusted, strict=True):
            limits = difference.ci95
            interval = "no interval" if limits is None else f"[{limits[0]:+.3f}, {limits[1]:+.3f}]  p {p_values[i]:.3f}"
            lines.append(f"{difference.metric:<25} {difference.difference:+.3f}  {interval}")
        p_of_images = mcnemar(tables[a].correct, align(tables[b], tables[a]).correct)
        lines.append(f"{'McNemar':<25} p {p_of_images:.3g} (exact; takes images as independent, not adjusted)")
    return "\n".join(lines)


def _p_value(difference: PairedDifference) -> float:
    return 1.0 if difference.p_value is None else difference.p_value


if __name__ == "__main__":
    sys.exit(main())
