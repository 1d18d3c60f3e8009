"""Variables that notebooks, clusters and desktops set, home folders, several runs of one second."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from breakhis_pl.command_line import RunCallback
from tests.configs import compose_all
from tests.conftest import REPOSITORY
from tests.programs import TINY, run_program

TABLE = REPOSITORY / "results" / "839_images" / "resnet18_seed0" / "test" / "predictions.csv"


@pytest.mark.parametrize(
    "variables",
    [
        {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
        {"MPLBACKEND": "nonsense", "DISPLAY": ":99", "LANG": "C", "LC_ALL": "C", "TMPDIR": "/nonexistent"},
    ],
)
def test_variables_of_the_environment_change_nothing(variables: dict[str, str], tmp_path: Path) -> None:
    shutil.copy(TABLE, tmp_path / "predictions.csv")
    command = [sys.executable, str(REPOSITORY / "evaluate.py"), "predictions=predictions.csv"]
    environment = os.environ | variables
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "metrics.json").is_file()


def test_a_program_whose_pipe_is_closed_ends_in_order(tmp_path: Path) -> None:
    shutil.copy(TABLE, tmp_path / "predictions.csv")
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, str(REPOSITORY / "evaluate.py"), "predictions=predictions.csv"]
    done = subprocess.run(command, cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert "Traceback" not in done.stderr
    assert (tmp_path / "metrics.json").is_file()


@pytest.mark.parametrize("quote", ["", "'", '"'])
@pytest.mark.parametrize(
    ("program", "key", "further"),
    [
        ("train", "data.root", []),
        ("train", "model.weights", ["experiment=demo"]),
        ("train", "resume", []),
        ("evaluate", "run", []),
        ("predict", "run", ["images=a.png"]),
    ],
)
def test_a_tilde_is_the_home_folder(
    program: str, key: str, further: list[str], quote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    outcome = run_program(program, *further, f"{key}={quote}~/nowhere{quote}", cwd=tmp_path)
    assert outcome.status == 1
    assert f"{tmp_path}/home/nowhere" in outcome.err
    assert not (tmp_path / "~").exists()


def test_two_runs_of_one_second_get_two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = []
    for _ in range(2):
        config = compose_all("train", *TINY)
        config.hydra.run.dir = "outputs/12-00-00_resnet18"
        RunCallback().on_run_start(config, config_name="train")
        folders.append(config.hydra.run.dir)
    assert folders == ["outputs/12-00-00_resnet18", "outputs/12-00-00_resnet18_2"]


def test_options_of_hydra_stand_anywhere_and_its_logging_may_be_off(tmp_path: Path, synthetic_cache: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    sgd = "_target_: torch.optim.SGD\nlr: 0.125\nmomentum: 0.0\nnesterov: false\nweight_decay: 0.0\n"
    (tmp_path / "optimizer" / "mine.yaml").write_text(sgd)
    options = ("--config-dir", str(tmp_path), "optimizer=mine", "hydra/job_logging=disabled", "debug=fast_dev_run")
    outcome = run_program("train", *TINY, f"data.cache_dir={synthetic_cache}", *options, cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    shown = run_program("train", *TINY, *options, "--cfg", "job", cwd=tmp_path)
    assert "lr: 0.125" in shown.out
