"""Configurations for tests, composed from conf/ as the programs compose them."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from breakhis_pl.command_line import config_groups
from breakhis_pl.config import TrainConfig, validate
from breakhis_pl.job import run_name

CONF = Path(__file__).resolve().parent.parent / "conf"


def train_config(*overrides: str) -> TrainConfig:
    """Compose conf/train.yaml."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return validate(TrainConfig, compose("train", overrides=list(overrides)))


def compose_all(program: str, *overrides: str) -> DictConfig:
    """Compose the configuration of a program with the settings of Hydra, as callbacks receive it."""
    for resolver in (run_name, config_groups):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(program, overrides=list(overrides), return_hydra_config=True)
