"""Train a network and evaluate it: `uv run train.py --help`."""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from breakhis_pl import command_line
from breakhis_pl.config import TrainConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(composed: DictConfig) -> None:
    """Run one training."""
    config = command_line.start(TrainConfig, composed)

    from breakhis_pl.train import show_batch, train  # noqa: PLC0415 - imports torch

    folder = Path(HydraConfig.get().runtime.output_dir)
    if config.trainer.show_batch:
        show_batch(config, folder)
    elif train(config, folder) and not command_line.pages_follow():
        from breakhis_pl.reporting.program import report  # noqa: PLC0415 - imports matplotlib

        report(folder)


if __name__ == "__main__":
    command_line.prepare()
    main()
