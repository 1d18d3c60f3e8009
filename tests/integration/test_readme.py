"""What the README promises: its commands compose, its demo learns, its links lead somewhere."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from tests.configs import train_config
from tests.conftest import REPOSITORY
from tests.programs import Outcome, run_program

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line and not line.startswith("#")
]
TRAINING = [line for line in COMMANDS if "train.py" in line]
ON_A_RUN = [line for line in TRAINING if "<run folder>" in line]


def arguments_of(command: str, program: str) -> list[str]:
    """Return what stands behind the program's name."""
    words = shlex.split(command, comments=True)
    return words[words.index(program) + 1 :]


def test_one_command_sets_everything_up_and_one_runs_the_tests() -> None:
    assert "pip install uv && uv run train.py experiment=demo" in COMMANDS
    assert "uv run pytest" in COMMANDS


@pytest.mark.parametrize("command", [line for line in TRAINING if line not in ON_A_RUN and "--help" not in line])
def test_every_training_command_composes(command: str, tmp_path: Path) -> None:
    arguments = arguments_of(command.replace("<sweep folder>", str(tmp_path)), "train.py")
    overrides = [argument for argument in arguments if argument != "-m" and not argument.startswith("hydra.")]
    jobs = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(overrides), max_batch_size=None)[0]
    assert len(jobs) > 1 or "-m" not in arguments
    for job in jobs if "-m" in arguments else [overrides]:
        train_config(*job)  # raises if a key or value is wrong


@pytest.mark.parametrize("command", ON_A_RUN)
def test_every_training_command_on_a_run_works(command: str, finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    outcome = run_program("train", *arguments_of(command.replace("<run folder>", str(run)), "train.py"), cwd=tmp_path)
    assert outcome.status == 0, outcome.err


@pytest.mark.parametrize("command", [line for line in COMMANDS if " -m breakhis_pl." in line])
def test_every_module_that_is_run_explains_itself(command: str) -> None:
    module, *options = arguments_of(command, "-m")
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    for option in (option for option in options if option.startswith("--")):
        assert option in done.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The README's first command on half of its images, run in a folder of its own."""
    folder = tmp_path_factory.mktemp("demo")
    arguments = ("experiment=demo", "data.images_per_patient=4", "hydra.run.dir=outputs/demo")
    return folder, run_program("train", *arguments, cwd=folder, draw_figures=True)


def test_the_demo_learns_and_says_that_its_images_are_synthetic(demo: tuple[Path, Outcome]) -> None:
    folder, outcome = demo
    assert outcome.status == 0, outcome.err
    assert "synthetic" in outcome.out.lower()
    metrics = json.loads((folder / "outputs" / "demo" / "test" / "metrics.json").read_text())
    assert metrics["weighted_f1"]["value"] > 0.7  # 0.55 if every image is called malignant


def test_figures_are_pictures(demo: tuple[Path, Outcome]) -> None:
    folder, _ = demo
    for name in ("curves.png", "test/confusion_matrix.png"):
        with Image.open(folder / "outputs" / "demo" / name) as image:
            assert min(image.size) > 300


def test_the_evaluation_commands_work_on_the_demo(demo: tuple[Path, Outcome]) -> None:
    folder, _ = demo
    shutil.copytree(folder / "outputs" / "demo", folder / "outputs" / "another")
    places = {
        "<run folder>": "outputs/demo",
        "<another run folder>": "outputs/another",
        "<sweep folder>": "outputs",
        "<run folder with validation>": "outputs/demo",
    }
    evaluations = [line for line in COMMANDS if "evaluate.py" in line]
    assert len(evaluations) == 5
    for command in evaluations:
        filled = command
        for name, place in places.items():
            filled = filled.replace(name, place)
        outcome = run_program("evaluate", *arguments_of(filled, "evaluate.py"), cwd=folder)
        if "with validation" in command:  # the demo has none
            assert "val_fraction" in outcome.err
        else:
            assert outcome.status == 0, (command, outcome.err)


def test_links_to_files_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README):
        if not target.startswith("http"):
            assert (REPOSITORY / target).exists(), target
