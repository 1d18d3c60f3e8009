"""Evaluate tables of predictions: `python -m breakhis_pl.evaluation predictions.csv`."""

import argparse
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from breakhis_pl.errors import BreakHisError
from breakhis_pl.evaluation.conclusions import conclusions, p_value_text, signed
from breakhis_pl.evaluation.intervals import N_DRAWS
from breakhis_pl.evaluation.metrics import classification_report, write_metrics
from breakhis_pl.evaluation.paired import METRICS, PairedComparison, compare_runs, distinct_names
from breakhis_pl.evaluation.predictions import read_predictions
from breakhis_pl.evaluation.run_metrics import evaluate_table
from breakhis_pl.evaluation.texts import visible

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate the tables named at the command line; the exit status.

    Args:
        arguments: What follows the program's name; by default `sys.argv`.
    """
    options = _parser().parse_args(arguments)
    try:
        _evaluate_all(options)
    except (BreakHisError, OSError) as error:
        print(visible(str(error)), file=sys.stderr)
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
    labels = distinct_names(options.tables)
    tables = {label: read_predictions(path) for label, path in zip(labels, options.tables, strict=True)}
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    for path, label in zip(options.tables, labels, strict=True):
        metrics = evaluate_table(
            path, with_intervals=not options.no_intervals, seed=options.seed, n_draws=options.draws
        )
        out = _out_path(path, label, options.tables, options.out)
        write_metrics(out, metrics)
        text = f"{path}\n\n{classification_report(metrics)}\n\n{_estimates(metrics)}\n\nwritten to {out}\n"
        print(visible(text))
    if len(tables) > 1 and not options.no_intervals:
        comparisons = compare_runs(list(tables.items()), seed=options.seed, n_draws=options.draws)
        print(visible(_comparison_text(comparisons)))


def _out_path(path: Path, label: str, paths: Sequence[Path], out: Path | None) -> Path:
    folder = path.parent if out is None else out
    sharing = [other for other in paths if out is not None or other.resolve().parent == path.resolve().parent]
    return folder / ("metrics.json" if len(sharing) == 1 else f"{label}.metrics.json")


def _estimates(metrics: dict[str, Any]) -> str:
    unit = f"{metrics['n_images']} images, {metrics['n_patients']} patients, {metrics['n_cases']} cases"
    lines = [f"{unit}; in brackets 95 % intervals over cases"]
    lines += [f"{name:<25} {_estimate(metrics[name])}" for name in _SHOWN]
    rest = metrics.get("without_siblings")
    if rest is not None:
        lines += ["", f"without the images of cases that train or validation holds as well: {rest['n_images']} images"]
        lines += [f"{name:<25} {_estimate(rest[name])}" for name in METRICS]
    return "\n".join(lines)


def _estimate(estimate: dict[str, Any]) -> str:
    if estimate["value"] is None:
        return f"not defined: {estimate['reason']}" if "reason" in estimate else "not defined"
    limits = estimate["ci95"]
    interval = "" if limits is None else f"  [{limits[0]:.3f}, {limits[1]:.3f}]"
    return f"{estimate['value']:.3f}{interval}"


def _comparison_text(comparisons: Sequence[PairedComparison]) -> str:
    """Every pair with its differences, then a sentence for each; pairs that are not compared have the sentence only."""
    lines = [
        "paired differences, first minus second; in brackets 95 % intervals over cases;",
        "p two-sided, then corrected by Holm's method for the number of pairs",
    ]
    for (first, second), of_pair in groupby(comparisons, key=lambda each: (each.first, each.second)):
        rows = list(of_pair)
        p_of_images = rows[0].mcnemar_p
        if p_of_images is None:
            continue
        lines += ["", f"{first} - {second}: {rows[0].n_images} images, {rows[0].n_cases} cases"]
        lines += [f"{each.metric:<25} {_difference(each)}{_cases(each, rows[0].n_cases)}" for each in rows]
        p_text = p_value_text(p_of_images)
        lines.append(f"{'McNemar':<25} p {p_text} (exact; takes images as independent, not corrected)")
    return "\n".join([*lines, "", *conclusions(comparisons)])


def _cases(comparison: PairedComparison, n_stated: int) -> str:
    """The cases behind a difference, where they are not those stated for the pair."""
    return "" if comparison.n_cases in (0, n_stated) else f"  ({comparison.n_cases} cases, of the rarer class)"


def _difference(comparison: PairedComparison) -> str:
    if comparison.difference is None:
        return comparison.reason or "not defined"
    text = signed(comparison.difference)
    if comparison.ci95 is None or comparison.p is None or comparison.p_holm is None:
        return f"{text}  {comparison.reason}"
    low, high = map(signed, comparison.ci95)
    return f"{text}  [{low}, {high}]  p {p_value_text(comparison.p)}, {p_value_text(comparison.p_holm)}"


if __name__ == "__main__":
    sys.exit(main())
