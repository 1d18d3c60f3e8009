"""Parts of evaluate.py that need no torch: comparison of runs, metrics of a table."""

import logging
from datetime import datetime
from pathlib import Path

from breakhis_pl.config import EvaluateConfig
from breakhis_pl.errors import ConfigurationError
from breakhis_pl.evaluation.comparison import write_comparison
from breakhis_pl.evaluation.ensembles import write_ensemble
from breakhis_pl.evaluation.metrics import classification_report, write_metrics
from breakhis_pl.evaluation.run_metrics import evaluate_table

log = logging.getLogger(__name__)


def compare(config: EvaluateConfig) -> None:
    """Write the comparison of a sweep, of several runs, or of an ensemble and its members."""
    if config.runs is None:
        raise ConfigurationError("runs: set runs=<sweep folder> or runs=[<run folder>,<run folder>]")
    runs = config.runs if isinstance(config.runs, list) else [config.runs]
    moment = datetime.now().astimezone().strftime("%Y-%m-%d/%H-%M-%S")
    if config.ensemble:
        page = write_ensemble(config.out or Path("outputs/ensembles", moment), runs, tta=config.tta)
    elif not isinstance(config.runs, list) and config.out is None:
        page = write_comparison(runs[0])
    else:
        page = write_comparison(config.out or Path("outputs/comparisons", moment), runs=runs)
    log.info("%s\n%s", page.read_text(encoding="utf-8"), page.parent)


def evaluate_table_again(config: EvaluateConfig) -> None:
    """Compute the metrics of a predictions.csv and write metrics.json beside it."""
    if config.predictions is None:
        raise ConfigurationError("predictions: set predictions=<predictions.csv>")
    metrics = evaluate_table(config.predictions)
    path = config.predictions.with_name("metrics.json")
    write_metrics(path, metrics)
    log.info("%s\n\n%s", classification_report(metrics), path)
