"""Options of conf/ and commands of the documentation compose."""

import re
import shlex

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from breakhis_pl.errors import ConfigurationError
from tests.configs import CONF, train_config
from tests.conftest import REPOSITORY

OPTIONS = sorted(
    f"{path.parent.name}={path.stem}"
    for path in CONF.glob("*/*.yaml")
    if not path.stem.startswith("_") and path.parent.name not in ("hydra", "search_space")
)
NEEDED = {"data=table": ["data.table=images.csv"]}
PAGES = sorted((REPOSITORY / "docs").glob("*.md"))
COMMANDS = [
    pytest.param(line, id=f"{page.stem}: {line[:60]}")
    for page in PAGES
    for line in re.findall(
        r"^(?: {4})?uv run (?:torchrun .*)?train\.py (.*)", page.read_text(encoding="utf-8"), re.MULTILINE
    )
    if not re.search(r"resume=|my_conf|hydra/launcher|best_trial|weights=encoder|--|\\$", line)
]


def check(*overrides: str) -> None:
    try:
        train_config(*overrides)
    except ConfigurationError as error:
        if "needs the package" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes(option: str) -> None:
    check(option, *NEEDED.get(option, []))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_training_command_of_the_documentation_composes(command: str) -> None:
    words = [word for word in shlex.split(command, comments=True) if not word.startswith("hydra.")]
    overrides = OverridesParser.create().parse_overrides([word for word in words if word != "-m"])
    for job in BasicSweeper.split_arguments(overrides, max_batch_size=None)[0]:
        check(*job)
