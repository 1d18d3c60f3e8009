"""Try a trained network in a browser: `uv run app.py --help`."""

import hydra
from omegaconf import DictConfig

from breakhis_pl import command_line
from breakhis_pl.config import AppConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="app")
def main(composed: DictConfig) -> None:
    """Serve the page until Ctrl-C."""
    config = command_line.start(AppConfig, composed)

    from breakhis_pl.inference.app import serve  # noqa: PLC0415 - imports torch

    serve(config)


if __name__ == "__main__":
    command_line.prepare()
    main()
