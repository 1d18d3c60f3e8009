"""Configurations for tests, composed from conf/ as the programs compose them."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from breakhis_pl.config import TrainConfig, validate

CONF = Path(__file__).resolve().parent.parent / "conf"


def train_config(*overrides: str) -> TrainConfig:
    """Compose conf/train.yaml."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return validate(TrainConfig, compose("train", overrides=list(overrides)))
