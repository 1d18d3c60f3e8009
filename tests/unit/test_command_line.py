import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from omegaconf import DictConfig

from breakhis_pl.command_line import RunCallback, config_groups, prepare
from breakhis_pl.messages import explain
from breakhis_pl.run_folder import RunFolder
from tests.configs import compose_all
from tests.programs import TINY, process_state_kept

Patch = pytest.MonkeyPatch
Variables = dict[str, str]


def hydra_config(*overrides: str) -> DictConfig:
    return compose_all("train", *TINY, *overrides)


@pytest.mark.parametrize("variables", [{"LOCAL_RANK": "1"}, {"RANK": "2", "LOCAL_RANK": "0"}, {"SLURM_PROCID": "1"}])
def test_a_further_process_takes_the_first_folder(variables: Variables, finished_run: Path, monkeypatch: Patch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = hydra_config("trainer.strategy=ddp", "trainer.devices=2", f"hydra.run.dir={finished_run}")
    RunCallback().on_run_start(config, config_name="train")  # refused for the first process, which finds a run there
    resumed = compose_all("train", f"resume={finished_run}", "trainer.strategy=ddp", "trainer.devices=2")
    RunCallback().on_run_start(resumed, config_name="train")
    assert resumed.hydra.run.dir == str(finished_run)


@pytest.mark.parametrize("variables", [{}, {"SLURM_PROCID": "1"}])  # srun alone makes no distributed run
def test_a_first_process_takes_no_folder_of_a_run(variables: Variables, finished_run: Path, monkeypatch: Patch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert RunFolder(finished_run).run_json.exists()
    with pytest.raises(SystemExit):
        RunCallback().on_run_start(hydra_config(f"hydra.run.dir={finished_run}"), config_name="train")


@pytest.mark.parametrize("variables", [{"LOCAL_RANK": "0"}, {"LOCAL_RANK": "1"}])
def test_torchrun_needs_a_folder_known_to_all(variables: Variables, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {"TORCHELASTIC_RUN_ID": "none", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        RunCallback().on_run_start(hydra_config("trainer.strategy=ddp", "trainer.devices=2"), config_name="train")


def test_hydra_prints_no_password_when_a_job_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [f"study={tmp_path}", "data.val_fraction=0.2", "tuning.storage='postgresql://alice:secret@host/x'"]
    failed = JobReturn(overrides=overrides, status=JobStatus.FAILED)
    failed.return_value = RuntimeError("a fault that needs a traceback")
    RunCallback().on_job_end(compose_all("tune", *overrides), failed)
    with pytest.raises(RuntimeError):
        _ = failed.return_value
    assert "tuning.storage" in (shown := capsys.readouterr().err)
    assert "secret" not in shown


def test_an_override_that_cannot_be_parsed_is_shown_without_its_password() -> None:
    with pytest.raises(HydraException) as caught:
        OverridesParser.create().parse_overrides(["tuning.storage=postgresql://alice:secret@host/x;y"])
    assert "secret" in str(caught.value)
    assert "secret" not in str(explain(caught.value))


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("server.port=8000", "port"), ("trainer.acelerator=cpu", "trainer.accelerator")],
)
def test_a_misspelled_key_is_answered_with_one_that_exists(wrong: str, meant: str) -> None:
    with pytest.raises(HydraException) as caught:
        compose_all("app", wrong)
    assert str(explain(caught.value)).endswith(f"did you mean {meant}?")


@pytest.mark.extra("optuna")
def test_an_interrupted_study_names_its_way_to_resume(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(RunCallback, "resume_hint", "")
    config = compose_all("tune", *TINY, f"study={tmp_path}", "data.val_fraction=0.2")
    RunCallback().on_run_start(config, config_name="tune")
    assert RunCallback.resume_hint


@pytest.mark.parametrize("program", ["train", "tune"])
def test_help_lists_the_options_of_a_program(program: str) -> None:
    groups = {
        line.split(":")[0].strip(): line.split(":")[1].split(", ") for line in config_groups(program).splitlines()
    }
    assert {"data", "model", "optimizer", "scheduler"} <= set(groups)
    assert ("search_space" in groups) is (program == "tune")
    assert "hydra" not in groups
    assert not [option for options in groups.values() for option in options if option.strip().startswith("_")]


def test_a_process_without_output_streams_writes_to_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with process_state_kept():
        prepare()
        for stream in (sys.stdout, sys.stderr):
            stream.write("an epoch")  # as progress bars do
            stream.close()
