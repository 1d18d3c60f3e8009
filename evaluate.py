"""Evaluate a run again, or compare runs: `uv run evaluate.py --help`."""

import hydra
from omegaconf import DictConfig

from breakhis_pl import command_line
from breakhis_pl.config import EvaluateConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(composed: DictConfig) -> None:
    """Evaluate a run, compare runs, or compute the metrics of a table."""
    config = command_line.start(EvaluateConfig, composed)
    if config.run is not None:
        from breakhis_pl.evaluate import evaluate  # noqa: PLC0415 - imports torch

        evaluate(config)
    elif config.runs is not None:
        from breakhis_pl.reporting.program import compare  # noqa: PLC0415 - imports matplotlib

        compare(config)
    elif config.predictions is not None:
        from breakhis_pl.reporting.program import evaluate_predictions  # noqa: PLC0415 - imports matplotlib

        evaluate_predictions(config.predictions)


if __name__ == "__main__":
    command_line.prepare()
    main()
