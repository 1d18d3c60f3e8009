"""Predict pictures with a trained network: `uv run predict.py --help`."""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from breakhis_pl import command_line
from breakhis_pl.config import PredictConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="predict")
def main(composed: DictConfig) -> None:
    """Predict pictures."""
    config = command_line.start(PredictConfig, composed)

    from breakhis_pl.inference.predict import predict  # noqa: PLC0415 - imports torch

    predict(config, Path(HydraConfig.get().runtime.output_dir))


if __name__ == "__main__":
    command_line.prepare()
    main()
