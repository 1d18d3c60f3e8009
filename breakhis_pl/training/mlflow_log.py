"""logger=mlflow: a server, or a database, that holds the runs of many."""

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from breakhis_pl.config import MlflowLoggerConfig
from breakhis_pl.errors import ConfigurationError
from breakhis_pl.evaluation.file_texts import DamagedFileError
from breakhis_pl.evaluation.json_values import json_object
from breakhis_pl.files import write_text
from breakhis_pl.training.loggers import Forgiving, flat, result_values

MLFLOW_JSON = "mlflow.json"
"""In the run folder: which run of which server it is."""

LONGEST_PARAMETER = 500
"""Characters that older servers take."""


class MlflowLog:
    """Curves, configuration, results and confusion matrices in an MLflow run; a run that goes on keeps its own.

    Args:
        config: Where to.
        folder: The run folder.
        configuration: All keys of the run, as plain values.

    Raises:
        ConfigurationError: If nobody answers at the address.
    """

    def __init__(self, config: MlflowLoggerConfig, folder: Path, *, configuration: Mapping[str, Any]) -> None:
        # a server that is not there would be asked for minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow import MlflowClient  # noqa: PLC0415 - slow
        from mlflow.entities import Metric  # noqa: PLC0415

        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._metric = Metric
        self._try = Forgiving("mlflow")
        try:
            if config.tracking_uri.startswith("sqlite:///"):
                Path(config.tracking_uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            self.client = MlflowClient(tracking_uri=config.tracking_uri)
            self.run_id, self._last_epoch = self._run(config, folder, configuration)
        except Exception as error:  # of requests, SQLAlchemy and MLflow itself
            raise ConfigurationError(
                f"logger.tracking_uri={config.tracking_uri}: no MLflow there ({_first_line(error)}); start a server, "
                "as in `mlflow server --backend-store-uri sqlite:///mlflow.db`, or take logger=tensorboard"
            ) from error
        self._metrics: list[Any] = []
        self._is_done = False

    def _run(self, config: MlflowLoggerConfig, folder: Path, configuration: Mapping[str, Any]) -> tuple[str, int]:
        """The run of before where there is one at this address, and its last epoch; else a new one."""
        before = _before(folder)
        if before.get("tracking_uri") == config.tracking_uri and isinstance(before.get("run_id"), str):
            run_id = str(before["run_id"])
            self.client.update_run(run_id, status="RUNNING")
            history = self.client.get_metric_history(run_id, "train/loss")
            return run_id, max((int(point.step) for point in history), default=0)
        experiment = self.client.get_experiment_by_name(config.experiment)
        experiment_id = (
            self.client.create_experiment(config.experiment) if experiment is None else experiment.experiment_id
        )
        run_id = self.client.create_run(experiment_id, run_name=folder.resolve().name).info.run_id
        for name, value in flat(configuration):
            self.client.log_param(run_id, name.replace("_target_", "target"), str(value)[:LONGEST_PARAMETER])
        self.client.set_tag(run_id, "run_folder", str(folder.resolve()))
        write_text(folder / MLFLOW_JSON, _json(config.tracking_uri, run_id))
        return run_id, 0

    def add_scalar(self, subset: str, quantity: str, value: float, *, epoch: int) -> None:
        """Adds a point, unless the run has it from before."""
        if epoch > self._last_epoch:
            self._metrics.append(self._metric(f"{subset}/{quantity}", float(value), _milliseconds(), epoch))

    def add_image(self, subset: str, name: str, pixels: npt.NDArray[np.uint8], *, epoch: int) -> None:
        """Adds a picture as an artifact."""
        self._try(lambda: self.client.log_image(self.run_id, pixels, artifact_file=f"{subset}/{name}.png"))

    def add_text(self, subset: str, name: str, text: str) -> None:
        """Adds a text as an artifact."""
        self._try(lambda: self.client.log_text(self.run_id, text, artifact_file=f"{subset}/{name}.md"))

    def add_results(self, subset: str, metrics: Mapping[str, Any], *, epoch: int) -> None:
        """Adds the metrics of the last epoch."""
        for name, value in result_values(metrics).items():
            self._metrics.append(self._metric(f"{subset}/{name}", value, _milliseconds(), epoch))
        self.flush()
        self._is_done = True

    def flush(self) -> None:
        """Sends what was added."""
        metrics, self._metrics = self._metrics, []
        if metrics:
            self._try(lambda: self.client.log_batch(self.run_id, metrics=metrics))

    def close(self) -> None:
        """Says how the run ended."""
        self.flush()
        self._try(lambda: self.client.set_terminated(self.run_id, "FINISHED" if self._is_done else "FAILED"))


def _before(folder: Path) -> Mapping[str, Any]:
    try:
        return json_object(folder / MLFLOW_JSON)
    except (OSError, DamagedFileError):
        return {}


def _json(tracking_uri: str, run_id: str) -> str:
    return json.dumps({"tracking_uri": tracking_uri, "run_id": run_id}, indent=2) + "\n"


def _milliseconds() -> int:
    return int(time.time() * 1000)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
