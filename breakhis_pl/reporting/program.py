"""Parts of the programs that need no torch: pages, comparison of runs, metrics of a table."""

import logging
import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from breakhis_pl.config import EvaluateConfig
from breakhis_pl.errors import ConfigurationError
from breakhis_pl.metrics.evaluation import METRICS_JSON, classification_report, evaluate_table, write_metrics
from breakhis_pl.metrics.predictions import PREDICTIONS_CSV, read_predictions
from breakhis_pl.reporting.checks import Check, run_checks
from breakhis_pl.reporting.comparison import write_comparison
from breakhis_pl.reporting.ensemble import write_ensemble
from breakhis_pl.reporting.index import write_index
from breakhis_pl.reporting.run_report import write_report
from breakhis_pl.reporting.runs import Run

log = logging.getLogger(__name__)

OUTPUTS = Path("outputs")


def report(folder: Path) -> None:
    """Write report.html of a run and outputs/index.html; log their paths and the checks that the run did not pass."""
    page, checks = write_report(folder)
    log_checks(checks)
    log.info("report: %s", page)
    if OUTPUTS.resolve() in folder.resolve().parents:
        log.info("all runs: %s", write_index(OUTPUTS))


def log_checks(checks: Iterable[Check]) -> None:
    """Log the checks that a run did not pass."""
    for check in checks:
        log.warning("%s", check)


def compare(config: EvaluateConfig) -> None:
    """Write the comparison of a sweep, of several runs, or of an ensemble and its members."""
    if config.runs is None:
        raise ConfigurationError("runs: set runs=<sweep folder> or runs=[<run folder>,<run folder>]")
    runs = config.runs if isinstance(config.runs, list) else [config.runs]
    moment = datetime.now().astimezone().strftime("%Y-%m-%d/%H-%M-%S")
    if config.ensemble:
        path, _ = write_ensemble(config.out or Path("outputs/ensembles", moment), runs, tta=config.tta)
    elif not isinstance(config.runs, list) and config.out is None:
        path, _ = write_comparison(runs[0])
    else:
        path, _ = write_comparison(config.out or Path("outputs/comparisons", moment), runs=runs)
    text = re.sub(r"\[([^]]*)\]\(<[^>]*>\)", r"\1", path.read_text(encoding="utf-8"))  # links
    log.info("%s\n%s", re.sub(r"\\([^\w\s])", r"\1", text).replace("**", ""), path.with_suffix(".html"))


def evaluate_predictions(path: Path) -> None:
    """Compute the metrics of a table; write metrics.json beside predictions.csv, x_metrics.json beside x.csv."""
    metrics = evaluate_table(path)
    out = path.with_name(METRICS_JSON if path.name == PREDICTIONS_CSV else f"{path.stem}_{METRICS_JSON}")
    write_metrics(out, metrics)
    run = Run(path.name, path.parent, None, "finished", metrics=metrics, predictions=read_predictions(path))
    log_checks(run_checks(run))
    log.info("%s\n\n%s", classification_report(metrics), out)
