"""Sweeps whose runs are jobs of their own."""

import csv
import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("submitit")

from hydra.core.utils import JobStatus
from hydra_plugins.hydra_submitit_launcher.config import LocalQueueConf, SlurmQueueConf
from omegaconf import OmegaConf

from breakhis_pl import composition, launchers
from breakhis_pl.errors import Stopped
from tests.programs import TINY, run_program

pytestmark = pytest.mark.extra("submitit")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs in the path in which srun is one."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "srun").write_text("#!/bin/sh\n")
    (folder / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def launcher(kind: Any, folder: Path, **keys: Any) -> Any:
    """A launcher as Hydra makes it from the keys of `hydra.launcher`."""
    defaults = SlurmQueueConf if kind is launchers.SlurmJobs else LocalQueueConf
    values = OmegaConf.to_container(OmegaConf.structured(defaults))
    values.pop("_target_")  # type: ignore[union-attr]
    made = kind(**{**values, "submitit_folder": str(folder / "%j"), "name": "train", **keys})  # type: ignore[dict-item]
    made.config = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}})
    return made


@pytest.mark.usefixtures("cluster")
def test_the_script_for_slurm_asks_for_devices_and_time_and_is_warned_before_it_ends(tmp_path: Path) -> None:
    keys = {"nodes": 10, "tasks_per_node": 8, "gpus_per_node": 8, "cpus_per_task": 4, "timeout_min": 600}
    made = launcher(launchers.SlurmJobs, tmp_path, **keys, partition="gpu", max_num_timeout=3)
    executor = made._executor()
    script = executor._executor._make_submission_file_text("python -m submitit.core._submit jobs", "0")
    lines = script.splitlines()
    for expected in (
        *("--nodes=10", "--ntasks-per-node=8", "--gpus-per-node=8", "--cpus-per-task=4", "--time=600"),
        *("--partition=gpu", "--job-name=train", "--signal=USR2@120", "--open-mode=append"),
    ):
        assert f"#SBATCH {expected}" in lines
    assert any(line.startswith("srun ") and line.endswith("submitit.core._submit jobs") for line in lines)
    assert executor._executor.max_num_timeout == 3


class FakeJob:
    """A job that is done when it was asked so often; then well, or dead."""

    def __init__(self, number: int, *, polls: int = 2, death: Exception | None = None) -> None:
        self.job_id, self.polls, self.death = str(number), polls, death
        self.paths = type("Paths", (), {"stderr": Path("job.err")})

    def done(self) -> bool:
        self.polls -= 1
        return self.polls <= 0

    def exception(self) -> Exception | None:
        assert self.polls <= 0
        return self.death


class FakeExecutor:
    """Takes jobs that are made beforehand."""

    def __init__(self, jobs: Sequence[FakeJob]) -> None:
        self.jobs = list(jobs)

    def map_array(self, _: object, *columns: Sequence[object]) -> Sequence[FakeJob]:
        assert {len(column) for column in columns} == {len(self.jobs)}
        return self.jobs

    def submit(self, *_: object) -> FakeJob:
        return self.jobs.pop(0)


def written_run(folder: Path) -> None:
    folder.mkdir()
    content = {"status": "running", "error": None, "config": {}, "data": {"split_checksum": "x"}}
    (folder / "run.json").write_text(json.dumps(content))


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("kind", [launchers.LocalJobs, launchers.SlurmJobs])
def test_a_job_that_dies_is_noted_in_its_run_and_the_others_are_waited_for(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launchers, "POLL_S", 0.0)
    composition.register(("seed",))
    for name in "01":
        written_run(tmp_path / name)
    jobs = [FakeJob(4, polls=1, death=RuntimeError("trace\nSegmentation fault\n")), FakeJob(5, polls=9)]
    made = launcher(kind, tmp_path)
    monkeypatch.setattr(made, "_executor", lambda: FakeExecutor(jobs))
    returned = made.launch([["seed=0"], ["seed=1"]], 0)
    assert [each.status for each in returned] == [JobStatus.COMPLETED] * 2
    dead, alive = (json.loads((tmp_path / name / "run.json").read_text()) for name in "01")
    assert (dead["status"], dead["error"]) == ("failed", "job 4 died: Segmentation fault; its output: job.err")
    assert alive["status"] == "running"


def test_local_jobs_wait_for_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "POLL_S", 0.0)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    jobs = [FakeJob(number, polls=4) for number in range(5)]
    started: list[FakeJob] = []
    made = launcher(launchers.LocalJobs, tmp_path, cpus_per_task=4)
    for _ in made._submitted(FakeExecutor(jobs), [()] * 5, started):
        assert sum(job.polls > 0 for job in started) <= 2
    assert len(started) == 5


def test_local_jobs_end_with_the_command_and_those_of_a_cluster_do_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launchers, "POLL_S", 0.01)
    with subprocess.Popen(["sleep", "60"]) as process:  # noqa: S607 - whichever sleep there is
        job = FakeJob(process.pid)
        monkeypatch.setattr(job, "done", lambda: process.poll() is not None)
        made = launcher(launchers.LocalJobs, tmp_path)
        monkeypatch.setattr(made, "_executor", lambda: FakeExecutor([job]))
        monkeypatch.setattr(made, "_submitted", interrupted)
        with pytest.raises(KeyboardInterrupt):
            made.launch([["seed=0"]], 0)
    assert process.returncode == -signal.SIGTERM
    made = launcher(launchers.SlurmJobs, tmp_path)
    monkeypatch.setattr(made, "_executor", lambda: FakeExecutor([FakeJob(7), FakeJob(8)]))
    monkeypatch.setattr(made, "_submitted", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made.launch([["seed=0"], ["seed=1"]], 0)
    assert "scancel 7 8 ends them" in caplog.text


def interrupted(executor: FakeExecutor, _: object, jobs: list[FakeJob]) -> Any:
    jobs += executor.jobs
    for job in jobs:
        job.polls = 9
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_job_that_is_told_to_end_ends_in_order(name: str) -> None:
    before = signal.getsignal(getattr(signal, name))
    with pytest.raises(Stopped) as stopped, launchers.ended_in_order():
        os.kill(os.getpid(), getattr(signal, name))
    assert stopped.value.signum == getattr(signal, name)
    assert signal.getsignal(getattr(signal, name)) == before


def test_a_job_whose_time_is_up_keeps_what_it_has_before_it_is_queued_again() -> None:
    order: list[str] = []
    before = signal.signal(signal.SIGUSR2, lambda *_: order.append("queued again"))
    try:
        with launchers.ended_in_order():
            try:
                os.kill(os.getpid(), signal.SIGUSR2)
            except Stopped:
                order.append("kept")
                raise
        assert order == ["kept", "queued again"]
    finally:
        signal.signal(signal.SIGUSR2, before)


@pytest.mark.slow
def test_a_sweep_of_local_jobs_is_compared_and_says_what_failed(tmp_path: Path, drawn_cache: Path) -> None:
    arguments = [argument for argument in TINY if not argument.startswith("model.weights")]
    outcome = run_program(
        "train",
        *("-m", "hydra/launcher=submitit_local", "model.weights=none,missing.pth", "hydra.sweep.dir=sweep"),
        *(*arguments, f"data.cache_dir={drawn_cache}", "trainer=cpu", "trainer.max_epochs=1", "gallery=0"),
        cwd=tmp_path,
    )
    assert outcome.status == 1
    assert outcome.err.splitlines()[-1].endswith(
        "model.weights=missing.pth does not exist; expected imagenet, none or the path of a torchvision state dict"
    )
    with (tmp_path / "sweep" / "comparison.csv").open() as table:
        rows = {row["run"]: row["status"] for row in csv.DictReader(table)}
    assert sorted(rows.values()) == ["finished", "refused"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("hydra/launcher=submitit_local",), "hydra/launcher=submitit_local starts the runs of a sweep; add -m"),
        (("-m", "hydra/launcher=submitit_slurm", "seed=0,1"), "no srun here; start the sweep on a machine of the"),
    ],
)
def test_launchers_that_cannot_be_used_are_refused_at_the_door(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    outcome = run_program("train", *TINY, *arguments, cwd=tmp_path)
    assert outcome.status == 1
    assert words in outcome.err
    assert list(tmp_path.iterdir()) == []
