"""Search for a better configuration: `uv run tune.py --help`."""

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from breakhis_pl import command_line
from breakhis_pl.tuning import tune
from breakhis_pl.tuning_config import TuneConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="tune")
def main(composed: DictConfig) -> None:
    """Run trials of a study."""
    config = command_line.start(TuneConfig, composed)
    overrides = HydraConfig.get().overrides
    tune(config, [*overrides.hydra, *overrides.task])


if __name__ == "__main__":
    command_line.prepare()
    main()
