"""Which logger a run has."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from breakhis_pl.config import (
    CsvLoggerConfig,
    LoggerConfig,
    MlflowLoggerConfig,
    TensorBoardLoggerConfig,
    WandbLoggerConfig,
)
from breakhis_pl.errors import ConfigurationError
from breakhis_pl.training.loggers import RunLogger


def make_logger(
    config: LoggerConfig, folder: Path, *, configuration: Mapping[str, Any], first_epoch: int = 1
) -> RunLogger:
    """The logger that is asked for.

    Args:
        config: The keys of `logger`.
        folder: The run folder.
        configuration: All keys of the run, as plain values.
        first_epoch: Of those that this process trains.

    Raises:
        ConfigurationError: If nobody answers.
    """
    match config:
        case TensorBoardLoggerConfig():
            from breakhis_pl.training.tensorboard import SubsetWriters  # noqa: PLC0415 - imports TensorBoard

            return SubsetWriters(folder / "tensorboard", first_epoch=first_epoch)
        case CsvLoggerConfig():
            from breakhis_pl.training.csv_log import CsvLog  # noqa: PLC0415

            return CsvLog(folder / "metrics.csv", first_epoch=first_epoch)
        case MlflowLoggerConfig():
            from breakhis_pl.training.mlflow_log import MlflowLog  # noqa: PLC0415 - an extra

            return MlflowLog(config, folder, configuration=configuration)
        case WandbLoggerConfig():
            from breakhis_pl.training.wandb_log import WandbLog  # noqa: PLC0415 - an extra

            return WandbLog(config, folder, configuration=configuration)
        case _:
            raise ConfigurationError(f"logger={config} is not possible")
