"""The Markdown page that compares the runs of a sweep, as text."""

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from breakhis_pl.data.breakhis import CLASS_NAMES
from breakhis_pl.errors import listed
from breakhis_pl.evaluation import confusion
from breakhis_pl.evaluation.published import REPORT_RESULTS
from breakhis_pl.evaluation.run_summary import Estimate, RunSummary

MAIN_METRICS = ("accuracy", "balanced_accuracy", "weighted_f1", "auroc", "mcc", "patient_recognition_rate")
REPORT_METRICS = ("accuracy", "weighted_f1", "f1_benign", "f1_malignant")
CLASS_METRICS = tuple(f"{metric}_{name}" for name in CLASS_NAMES for metric in ("precision", "recall", "f1"))
HEADINGS = {
    "auroc": "AUROC",
    "mcc": "MCC",
    "weighted_f1": "weighted F1",
    **{f"f1_{name}": f"F1 {name}" for name in CLASS_NAMES},
}
REPORT_SPLIT = ("official", 2, (200,))
"""Split, fold and magnification of the report."""

N_REPORT_TEST_IMAGES = 597
LONGEST_REASON = 300
"""Characters of an error that a table row shows; the run folder has the rest."""

ABSENT = "-"


def comparison_markdown(runs: Sequence[RunSummary]) -> str:
    """The page that compares runs, with a section only where there is something to say.

    Args:
        runs: Runs of a sweep, at least one.
    """
    with_result = [run for run in runs if run.metrics]
    sections = [
        ["# Comparison", "", *_data_lines(runs)],
        _result_section(with_result),
        _class_section(with_result),
        _overtraining_section(with_result),
        _report_section(with_result),
        _failure_section(runs),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def escaped(text: object) -> str:
    r"""Text from a name, a file or an error, for a cell of a Markdown table: one line, nothing in it is markup.

    Example:
        >>> escaped("a|b`c\nd")
        'a\\|b\\`c d'
    """
    one_line = re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in str(text))).strip()
    one_line = re.sub(r"([\\|`*\[\]~])|(?<![A-Za-z0-9])(_)|(_)(?![A-Za-z0-9])", r"\\\g<0>", one_line)
    return one_line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _data_lines(runs: Sequence[RunSummary]) -> list[str]:
    """What was trained and tested on, a sentence per kind of data, and what to beware of."""
    kinds: dict[tuple[bool | None, tuple[int, ...], str | None], list[RunSummary]] = defaultdict(list)
    for run in runs:
        if run.split is not None or run.is_synthetic is not None:
            kinds[run.is_synthetic, run.magnification, run.split].append(run)
    lines = [_data_sentence(group) for group in kinds.values()] or ["No run says what data it was given."]
    n_with_result = sum(bool(run.metrics) for run in runs)
    lines.append(f"{n_with_result} of {len(runs)} run{'' if len(runs) == 1 else 's'} with a result.")
    if any(run.is_synthetic for run in runs):
        lines += ["", "**Warning: synthetic images, no tissue. These numbers say nothing about pathology.**"]
    incomplete = [run.name for run in runs if run.is_complete is False and not run.is_synthetic]
    if incomplete:
        lines += [
            "",
            "**Warning: the archive was incomplete; images are missing, and results are not comparable with "
            f"published ones** ({escaped(listed(incomplete))}).",
        ]
    if len({run.split_checksum for run in runs if run.metrics and run.split_checksum is not None}) > 1:
        lines += ["", "The runs have different train and test images (fold, seed or data differ)."]
    return lines


def _data_sentence(runs: Sequence[RunSummary]) -> str:
    first = runs[0]
    source = {True: "Synthetic images", False: "BreakHis", None: "Images of unknown origin"}[first.is_synthetic]
    magnification = ", ".join(f"{m}X" for m in first.magnification) or "unknown magnification"
    folds = sorted({run.fold for run in runs if run.fold is not None})
    match first.split:
        case "official":
            split = (
                f"the authors' fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds)) or 'of unknown number'}"
            )
        case "ratio":
            split = "a split by case"
        case _:
            split = "an unknown split"
    n_train = _range(run.n_train_images for run in runs)
    n_test = _range(run.n_test_images for run in runs)
    return f"{source} at {magnification}, {split}: {n_train} train and {n_test} test images."


def _range(counts: Iterable[int | None]) -> str:
    known = [count for count in counts if count is not None]
    if not known:
        return "an unknown number of"
    low, high = min(known), max(known)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _result_section(runs: Sequence[RunSummary]) -> list[str]:
    if not runs:
        return []
    lead = ["run", "model", "fold", "seed", "test images"]
    rows = [
        [*_identity(run), _count(run.n_test_images), *(_estimate(run, name) for name in MAIN_METRICS)] for run in runs
    ]
    rows += [
        [
            _group_name(group),
            escaped(group[0].model),
            "",
            "",
            "",
            *(_mean_and_deviation(group, m) for m in MAIN_METRICS),
        ]
        for group in _repetitions(runs)
    ]
    lines = ["## Results on the test images", "", *_table([*lead, *map(_heading, MAIN_METRICS)], rows)]
    if any(estimate.interval for run in runs for estimate in run.metrics.values()):
        lines += ["", "In parentheses: 95 % interval, cases resampled."]
    if _repetitions(runs):
        lines += [
            "",
            "±: standard deviation over runs that differ in fold or seed alone. Test sets of the authors' folds "
            "overlap: it is no standard error.",
        ]
    return lines


def _class_section(runs: Sequence[RunSummary]) -> list[str]:
    if not runs:
        return []
    rows = [[escaped(run.name), *(_estimate(run, name) for name in CLASS_METRICS)] for run in runs]
    rows += [
        [_group_name(group), *(_mean_and_deviation(group, m) for m in CLASS_METRICS)] for group in _repetitions(runs)
    ]
    return ["## By class", "", *_table(["run", *map(_heading, CLASS_METRICS)], rows)]


def _overtraining_section(runs: Sequence[RunSummary]) -> list[str]:
    if not runs:
        return []
    headings = [
        "run",
        "model",
        "parameters",
        "train accuracy",
        "test accuracy",
        "train minus test accuracy",
        "seconds of training",
        "seconds in all",
        "images per second",
    ]
    rows = [
        [
            escaped(run.name),
            escaped(run.model or ABSENT),
            _count(run.n_parameters),
            _number(run.train_accuracy, "{:.3f}"),
            _number(run.test_accuracy, "{:.3f}"),
            _number(run.train_minus_test_accuracy, "{:+.3f}"),
            _number(run.seconds, "{:,.1f}"),
            _number(run.seconds_total, "{:,.1f}"),
            _number(run.images_per_second, "{:,.0f}"),
        ]
        for run in runs
    ]
    return [
        "## Size, overtraining, time",
        "",
        *_table(headings, rows),
        "",
        "Accuracy of the last epoch; that of train is measured while training, on augmented images.",
        "",
        _overtraining_sentence(runs),
    ]


def _overtraining_sentence(runs: Sequence[RunSummary]) -> str:
    """What the runs say about the report's claim."""
    claim = "The report claims that the two larger networks overtrain (train better than test)"
    gaps: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        if run.model is not None and run.train_minus_test_accuracy is not None:
            gaps[run.model].append(run.train_minus_test_accuracy)
    means = {model: statistics.fmean(gaps[model]) for model in REPORT_RESULTS if gaps[model]}
    larger = [model for model in means if model != "resnet18"]
    if "resnet18" not in means or not larger:
        return f"{claim}; these runs cannot say, as ResNet-18 or the larger networks are missing."
    values = ", ".join(f"{mean:+.3f} for {REPORT_RESULTS[model].network}" for model, mean in means.items())
    wider = [REPORT_RESULTS[model].network for model in larger if means[model] > means["resnet18"]]
    verdict = (
        f"larger than ResNet-18's for {' and '.join(wider)}" if wider else "larger than ResNet-18's for none of them"
    )
    return f"{claim}; here, train minus test accuracy is {values}: {verdict}."


def _report_section(runs: Sequence[RunSummary]) -> list[str]:
    """The report's results beside those of runs on its split."""
    comparable = [
        run for run in runs if (run.split, run.fold, run.magnification) == REPORT_SPLIT and run.is_synthetic is False
    ]
    if not comparable:
        return []
    rows = []
    for model, result in REPORT_RESULTS.items():
        rows.append([f"{result.network}, the report", *_report_cells(result.confusion_matrix)])
        rows += [
            [escaped(run.name), *(_estimate(run, name) for name in REPORT_METRICS), _matrix(run.confusion_matrix)]
            for run in comparable
            if run.model == model
        ]
    lines = [
        "## Beside the report",
        "",
        *_table(["", *map(_heading, REPORT_METRICS), "confusion matrix"], rows),
        "",
        "Rows of a matrix are the truth. The report's figures follow from its confusion matrices. With 28 test "
        "patients, differences below five points mean nothing without a paired test.",
    ]
    others = [
        run for run in comparable if run.is_complete is False or run.n_test_images not in (None, N_REPORT_TEST_IMAGES)
    ]
    if others:
        names = escaped(listed(f"{run.name}: {_count(run.n_test_images)}" for run in others))
        lines += ["", f"**The test images are not the report's {N_REPORT_TEST_IMAGES}** ({names})."]
    return lines


def _report_cells(matrix: Sequence[Sequence[int]]) -> list[str]:
    counts = np.array(matrix)
    f1 = confusion.f1(counts)
    values = (confusion.accuracy(counts), confusion.weighted(f1, counts), *f1)
    return [*(f"{float(value):.3f}" for value in values), _matrix(matrix)]


def _failure_section(runs: Sequence[RunSummary]) -> list[str]:
    rows = [
        [escaped(run.name), escaped(run.status), escaped(run.model or ABSENT), escaped(_reason(run))]
        for run in runs
        if run.status != "finished" or not run.metrics or run.error is not None
    ]
    return ["## Runs without a full result", "", *_table(["run", "status", "model", "reason"], rows)] if rows else []


def _reason(run: RunSummary) -> str:
    if run.error is not None:
        line = next((line for line in run.error.splitlines() if line.strip()), "no reason given")
        return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]}…"
    if run.status == "finished":
        return "holds no test/metrics.json"
    return "still going on, or cut off" if run.status == "running" else "no reason given"


def _repetitions(runs: Sequence[RunSummary]) -> list[list[RunSummary]]:
    """Groups of at least two finished runs whose configurations differ in fold or seed alone."""
    groups: dict[str, list[RunSummary]] = defaultdict(list)
    for run in runs:
        if run.status == "finished" and run.model is not None:
            groups[_repeated_configuration(run)].append(run)
    return [group for group in groups.values() if len({(run.fold, run.seed) for run in group}) > 1]


def _repeated_configuration(run: RunSummary) -> str:
    config = {key: value for key, value in run.config.items() if key != "seed"}
    data = config.get("data")
    if isinstance(data, dict):
        config["data"] = {key: value for key, value in data.items() if key not in {"fold", "cache_dir"}}
    return json.dumps(config, sort_keys=True, default=str)


def _group_name(group: Sequence[RunSummary]) -> str:
    return escaped(f"mean ± sd, n = {len(group)}: {listed(run.name for run in group)}")


def _mean_and_deviation(group: Sequence[RunSummary], metric: str) -> str:
    """Mean and sample standard deviation as text, with n where not every run has the metric."""
    values = [run.metrics[metric].value for run in group if metric in run.metrics]
    if len(values) < 2:
        return ABSENT
    text = f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"
    return text if len(values) == len(group) else f"{text} (n = {len(values)})"


def _identity(run: RunSummary) -> list[str]:
    return [escaped(run.name), escaped(run.model or ABSENT), _number(run.fold, "{}"), _number(run.seed, "{}")]


def _estimate(run: RunSummary, metric: str) -> str:
    match run.metrics.get(metric):
        case None:
            return ABSENT
        case Estimate(value, None):
            return f"{value:.3f}"
        case Estimate(value, (low, high)):
            return f"{value:.3f} ({low:.2f} to {high:.2f})"
        case other:
            raise TypeError(f"metric {metric} of {run.name} is {other!r}; expected an Estimate")


def _heading(metric: str) -> str:
    return HEADINGS.get(metric, metric.replace("_", " "))


def _count(value: int | None) -> str:
    return ABSENT if value is None else f"{value:,}"


def _number(value: float | None, form: str) -> str:
    return ABSENT if value is None else form.format(value)


def _matrix(matrix: Sequence[Sequence[int]] | None) -> str:
    return ABSENT if matrix is None else "; ".join(", ".join(str(count) for count in row) for row in matrix)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [_line(headings), _line(["---"] * len(headings)), *(_line(row) for row in rows)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
