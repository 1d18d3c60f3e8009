import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from breakhis_pl.door import check_at_the_door
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


def words(command: str) -> list[str]:
    """A command's words without its comment."""
    return shlex.split(command, comments=True)


def test_two_commands_set_everything_up() -> None:
    assert "pip install uv && uv run train.py experiment=demo" in COMMANDS
    assert "uv run pytest" in COMMANDS


@pytest.mark.parametrize("command", TRAINING)
def test_every_training_command_composes(command: str, finished_run: Path, tmp_path: Path) -> None:
    filled = command.replace("<run folder>", str(finished_run)).replace("<sweep folder>", str(tmp_path / "sweep"))
    arguments = words(filled)[words(filled).index("train.py") + 1 :]
    if any(argument.startswith(("resume=", "repeat=")) for argument in arguments):
        assert run_program("train", *arguments, cwd=tmp_path).status == 0
    elif "--help" not in arguments:
        check_at_the_door("train", arguments)  # raises if anything is wrong


@pytest.mark.parametrize("command", [line for line in COMMANDS if " -m breakhis_pl." in line])
def test_every_module_that_is_run_explains_itself(command: str) -> None:
    parts = words(command)
    module = parts[parts.index("-m") + 1]
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    assert done.returncode == 0
    for option in (part for part in parts if part.startswith("--")):
        assert option in done.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The README's first command, run to its end in a folder of its own."""
    folder = tmp_path_factory.mktemp("demo")
    arguments = (
        "experiment=demo",
        "data.images_per_patient=4",
        "data.width=350",
        "hydra.run.dir=outputs/demo",
    )  # a sixth
    return folder, run_program("train", *arguments, cwd=folder, is_drawn=True)


def test_the_demo_learns_and_says_that_its_images_are_drawn(demo: tuple[Path, Outcome]) -> None:
    folder, outcome = demo
    assert outcome.status == 0, outcome.err
    assert "drawn images, no tissue" in outcome.out
    metrics = json.loads((folder / "outputs" / "demo" / "test" / "metrics.json").read_text())
    assert metrics["weighted_f1"]["value"] > 0.8


def test_pictures_are_pictures(demo: tuple[Path, Outcome]) -> None:
    folder, _ = demo
    for name in ("curves.png", "test/confusion_matrix.png"):
        with Image.open(folder / "outputs" / "demo" / name) as image:
            assert min(image.size) > 300


def test_the_readmes_commands_on_a_run_work_on_the_demo(demo: tuple[Path, Outcome]) -> None:
    folder, _ = demo
    run = "outputs/demo"
    shutil.copytree(folder / run, folder / "outputs" / "another")
    places = {
        "<run folder>": run,
        "<another run folder>": "outputs/another",
        "<sweep folder>": "outputs",
        "<run folder with validation>": run,
    }
    evaluations = [line for line in COMMANDS if "evaluate.py" in line]
    assert len(evaluations) == 4
    for command in evaluations:
        filled = command
        for name, place in places.items():
            filled = filled.replace(name, place)
        arguments = words(filled)[words(filled).index("evaluate.py") + 1 :]
        outcome = run_program("evaluate", *arguments, cwd=folder)
        if "with validation" in command:  # the demo has none; tests/test_validation.py runs it on a run that has
            assert "has no validation images" in outcome.err
        else:
            assert outcome.status == 0, (command, outcome.err)
    tables = [line for line in COMMANDS if "breakhis_pl.evaluation" in line]
    assert tables
    for command in tables:
        arguments = words(command.replace("<run folder>", run))
        done = subprocess.run(
            [sys.executable, *arguments[arguments.index("-m") :]],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (command, done.stderr)


def test_links_to_files_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (REPOSITORY / target).exists(), target
