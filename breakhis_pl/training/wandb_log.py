"""logger=wandb: Weights & Biases, offline unless asked otherwise."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from breakhis_pl.config import WandbLoggerConfig
from breakhis_pl.errors import ConfigurationError
from breakhis_pl.training.loggers import Forgiving, result_values


class WandbLog:
    """Curves, configuration, results and confusion matrices; offline into `wandb/` in the run folder.

    The id follows the run folder, so that a run that goes on is the same run.

    Args:
        config: Where to.
        folder: The run folder.
        configuration: All keys of the run, as plain values.

    Raises:
        ConfigurationError: If the run cannot be started, as online without an account.
    """

    def __init__(self, config: WandbLoggerConfig, folder: Path, *, configuration: Mapping[str, Any]) -> None:
        import wandb  # noqa: PLC0415 - slow

        self._wandb = wandb
        self._try = Forgiving("wandb")
        try:
            self.run = wandb.init(
                project=config.project,
                entity=config.entity,
                mode=config.mode,  # type: ignore[arg-type]  # one of config's choices
                dir=str(folder),
                name=folder.resolve().name,
                id=hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16],
                resume="allow" if config.mode == "online" else None,
                config=dict(configuration),
                settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, save_code=False),
            )
        except Exception as error:  # of its own process, the account, the network
            raise ConfigurationError(
                f"logger.mode={config.mode} logger.project={config.project}: Weights & Biases cannot start "
                f"({(str(error).splitlines() or [type(error).__name__])[0][:200]}); log in with `wandb login`, or take "
                "logger.mode=offline"
            ) from error
        self._values: dict[str, Any] = {}
        self._epoch = 0
        self._is_done = False

    def add_scalar(self, subset: str, quantity: str, value: float, *, epoch: int) -> None:
        """Adds a point."""
        self._epoch = epoch
        self._values[f"{subset}/{quantity}"] = float(value)

    def add_image(self, subset: str, name: str, pixels: npt.NDArray[np.uint8], *, epoch: int) -> None:
        """Adds a picture."""
        self._epoch = epoch
        self._values[f"{subset}/{name}"] = self._wandb.Image(pixels)

    def add_text(self, subset: str, name: str, text: str) -> None:
        """Adds a text to the summary."""
        self._try(lambda: self.run.summary.update({f"{subset}/{name}": text}))

    def add_results(self, subset: str, metrics: Mapping[str, Any], *, epoch: int) -> None:
        """Adds the metrics of the last epoch to the summary."""
        self.flush()
        values = {f"{subset}/{name}": value for name, value in result_values(metrics).items()}
        self._try(lambda: self.run.summary.update(values))
        self._is_done = True

    def flush(self) -> None:
        """Hands on what was added."""
        values, self._values = self._values, {}
        if values:
            self._try(lambda: self.run.log(values, step=self._epoch))

    def close(self) -> None:
        """Ends the run; what is offline lies in the folder."""
        self.flush()
        self._try(lambda: self.run.finish(exit_code=0 if self._is_done else 1))
