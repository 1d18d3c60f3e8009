"""Curves and results beside a run's own files: the same names in every logger."""

import csv
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from breakhis_pl.composition import compose_checked
from breakhis_pl.config import MlflowLoggerConfig, WandbLoggerConfig
from breakhis_pl.config_faults import faults
from breakhis_pl.errors import ConfigurationError
from breakhis_pl.training.csv_log import CsvLog
from breakhis_pl.training.logger_choice import make_logger
from breakhis_pl.training.loggers import Forgiving, result_values
from breakhis_pl.training.tensorboard import SubsetWriters
from tests.programs import TINY, run_program

METRICS = {
    "n_images": 3,
    "accuracy": {"value": 0.5, "ci95": [0.2, 0.8]},
    "auroc": {"value": None, "ci95": None},
    "per_class": {"benign": {}},
}


def names_of(folder: Path) -> set[str]:
    with (folder / "metrics.csv").open() as table:
        return {row["name"] for row in csv.DictReader(table)}


def test_metrics_without_a_value_are_left_out() -> None:
    assert result_values(METRICS) == {"accuracy": 0.5}


def test_a_table_goes_on_after_the_epochs_that_count(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    first = CsvLog(path)
    for epoch in (1, 2, 3):
        first.add_scalar("train", "loss", epoch / 10, epoch=epoch)
        first.flush()
    again = CsvLog(path, first_epoch=3)
    again.add_scalar("train", "loss", 0.7, epoch=3)
    again.add_results("test", METRICS, epoch=3)
    assert (
        path.read_text()
        == "epoch,name,value\n1,train/loss,0.1\n2,train/loss,0.2\n3,train/loss,0.7\n3,test/accuracy,0.5\n"
    )


def test_points_of_a_run_that_begins_again_take_the_place_of_those_before(tmp_path: Path) -> None:
    for values in ((0.5, 0.4), (0.9,)):  # killed after two epochs, of which no checkpoint was written
        writers = SubsetWriters(tmp_path)
        for epoch, value in enumerate(values, start=1):
            writers.add_scalar("train", "loss", value, epoch=epoch)
        writers.close()
    events = EventAccumulator(str(tmp_path / "train")).Reload().Scalars("loss")
    assert [(event.step, round(event.value, 3)) for event in events] == [(1, 0.9)]


def test_a_damaged_table_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"\x00\xff,nothing")
    again = CsvLog(path, first_epoch=2)
    again.add_scalar("test", "loss", 1.0, epoch=2)
    again.flush()
    assert path.read_text() == "epoch,name,value\n2,test/loss,1\n"


def test_a_logger_that_fails_is_named_once_and_not_called_again(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def fail() -> None:
        calls.append(1)
        raise ConnectionError("gone")

    forgiving = Forgiving("mlflow")
    forgiving(fail)
    forgiving(fail)
    assert len(calls) == 1
    assert [record.message for record in caplog.records] == [
        "logger=mlflow: gone; the run goes on without it, its own files hold everything"
    ]


def test_a_package_that_is_missing_is_named_at_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = compose_checked("train", [])
    asked.logger = WandbLoggerConfig()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    (fault,) = faults(asked)
    assert fault.startswith("logger=wandb needs a package that is not installed: uv sync --extra wandb")


def test_what_is_no_logger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="logger=5 is not possible"):
        make_logger(5, tmp_path, configuration={})  # type: ignore[arg-type]


def test_a_run_writes_a_table_and_goes_on_with_another_logger(drawn_cache: Path, tmp_path: Path) -> None:
    common = (*TINY, f"data.cache_dir={drawn_cache}", "trainer=cpu", "gallery=0", "hydra.run.dir=run")
    outcome = run_program("train", *common, "trainer.max_epochs=1", "logger=csv", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    assert {"train/loss", "test/accuracy", "train/learning_rate", "test/weighted_f1"} <= names_of(tmp_path / "run")
    assert not (tmp_path / "run" / "tensorboard").exists()
    outcome = run_program("train", "resume=run", "trainer.max_epochs=2", "logger=tensorboard", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    assert (tmp_path / "run" / "tensorboard" / "test").is_dir()
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (run["status"], run["config"]["logger"]) == ("finished", {"kind": "tensorboard"})


def told(folder: Path, asked: MlflowLoggerConfig | WandbLoggerConfig, *, epochs: range) -> None:
    """Tells a logger of a few epochs and, after the third, of the end."""
    logger = make_logger(asked, folder, configuration={"model": {"backbone": "resnet18"}, "seed": 0})
    for epoch in epochs:
        logger.add_scalar("train", "loss", 1 / epoch, epoch=epoch)
        logger.add_scalar("test", "accuracy", epoch / 10, epoch=epoch)
        logger.flush()
    if epochs.stop > 3:
        logger.add_text("test", "classification_report", "benign 1.00")
        logger.add_image("test", "confusion_matrix", np.zeros((8, 8, 3), dtype=np.uint8), epoch=3)
        logger.add_results("test", METRICS, epoch=3)
    logger.close()


def check_mlflow(uri: str, folder: Path) -> None:
    """A run that was cut after two epochs and told again from the second on is one run with three."""
    from mlflow import MlflowClient

    asked = MlflowLoggerConfig(tracking_uri=uri, experiment="tests")
    told(folder, asked, epochs=range(1, 3))
    client = MlflowClient(tracking_uri=uri)
    run_id = json.loads((folder / "mlflow.json").read_text())["run_id"]
    assert client.get_run(run_id).info.status == "FAILED"
    told(folder, asked, epochs=range(2, 4))
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"model.backbone": "resnet18", "seed": "0"}
    assert [point.step for point in client.get_metric_history(run_id, "train/loss")] == [1, 2, 3]
    assert run.data.metrics["test/accuracy"] == 0.5
    assert {file.path for file in client.list_artifacts(run_id, "test")} == {
        "test/classification_report.md",
        "test/confusion_matrix.png",
    }
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 1


@pytest.mark.slow
@pytest.mark.extra("mlflow")
@pytest.mark.filterwarnings("ignore")  # of MLflow and what it is made of
def test_mlflow_keeps_one_run_in_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    check_mlflow(f"sqlite:///{tmp_path}/in/mlflow.db", tmp_path / "run")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A real MLflow server on loopback, with SQLite behind it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = [
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/server.db",
        "--artifacts-destination",
        str(tmp_path / "art"),
    ]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen([*command, *stores], stdout=log, stderr=log, cwd=tmp_path, start_new_session=True)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


@pytest.mark.slow
@pytest.mark.extra("mlflow")
@pytest.mark.filterwarnings("ignore")  # of MLflow and what it is made of
def test_mlflow_keeps_one_run_on_a_server(server: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    check_mlflow(server, tmp_path / "run")


@pytest.mark.extra("mlflow")
@pytest.mark.filterwarnings("ignore")  # of MLflow and what it is made of
def test_a_server_that_is_not_there_is_named_before_the_training(tmp_path: Path) -> None:
    asked = MlflowLoggerConfig(tracking_uri="http://127.0.0.1:9")
    with pytest.raises(ConfigurationError, match=r"logger\.tracking_uri=http://127\.0\.0\.1:9: no MLflow there"):
        make_logger(asked, tmp_path, configuration={})


@pytest.mark.extra("wandb")
@pytest.mark.filterwarnings("ignore")  # of wandb and what it is made of
def test_wandb_keeps_a_run_offline_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    script = f"""
import json, sys
from pathlib import Path
from breakhis_pl.config import WandbLoggerConfig
from tests.training.test_loggers import told
told(Path({str(tmp_path / "run")!r}), WandbLoggerConfig(), epochs=range(1, 4))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=200, check=False, cwd=Path.cwd()
    )
    assert done.returncode == 0, done.stderr
    (kept,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    content = kept.read_bytes()
    for name in (b"train/loss", b"test/accuracy", b"test/confusion_matrix", b"model", b"resnet18"):
        assert name in content
