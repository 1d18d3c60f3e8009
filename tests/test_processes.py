import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from breakhis_pl import processes
from breakhis_pl.errors import ConfigurationError, TrainingError
from breakhis_pl.processes import Place, given_place, is_follower, is_shared, run_together
from tests.shared_runs import end_well, fail

TORCHRUN = {
    "RANK": "9",
    "WORLD_SIZE": "16",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "8",
    "MASTER_ADDR": "gpu1",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_JOB_ID": "4711123",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
}


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE_S", 0.3)


@pytest.mark.parametrize(
    ("environment", "address", "port"), [(TORCHRUN, "gpu1", 29500), (SRUN, "gpu07", 15_000 + 4711123 % 20_000)]
)
def test_processes_that_torchrun_or_srun_started_know_their_place(
    environment: dict[str, str], address: str, port: int
) -> None:
    place = given_place(environment, devices=8, num_nodes=2)
    assert place == Place(rank=9, n_ranks=16, local_rank=1, n_local=8, address=address, port=port)
    assert place.n_nodes == 2
    assert is_shared(environment)
    assert is_follower(environment)
    first = environment | {"RANK": "0", "SLURM_PROCID": "0"}
    assert is_shared(first)
    assert not is_follower(first)


@pytest.mark.parametrize(
    "environment", [{}, {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"}, SRUN | {"SLURM_STEP_NUM_TASKS": "1"}]
)
def test_a_process_that_was_started_alone_has_no_place(environment: dict[str, str]) -> None:
    assert given_place(environment, devices=8, num_nodes=1) is None
    assert not is_shared(environment)
    assert not is_follower(environment)


def test_another_number_of_processes_than_was_asked_for_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"16 processes were started, 8 on each of 2 machines, but trainer\.d"):
        given_place(SRUN, devices=1, num_nodes=1)


def test_several_machines_need_someone_who_starts_processes_there() -> None:
    with pytest.raises(ConfigurationError, match=r"srun --nodes=10 --ntasks-per-node=8 python train\.py"):
        given_place({}, devices=8, num_nodes=10)


def test_all_processes_do_the_work(tmp_path: Path) -> None:
    run_together(end_well, (tmp_path,), n_ranks=2)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"0": "2 0 1", "1": "2 1 1"}


@pytest.mark.parametrize(
    ("what", "error", "words"),
    [
        ("ours", TrainingError, "^the loss is nan$"),
        ("other", RuntimeError, "process 1 of 2 failed:\nTraceback(.|\n)*ZeroDivisionError: division by zero"),
        ("killed", TrainingError, "process 1 of 2 was ended by SIGKILL, and the others with it; the system does so"),
    ],
)
def test_when_one_process_fails_the_first_ends_in_order_and_one_error_is_raised(
    tmp_path: Path, what: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        run_together(fail, (tmp_path, what), n_ranks=2)
    assert (tmp_path / "end").read_text() == "Stopped"
    assert all(has_ended(tmp_path / name) for name in "01")


def test_an_interruption_ends_all_of_them(tmp_path: Path) -> None:
    def interrupt() -> None:
        wait_until(lambda: all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in "01"))
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_together(fail, (tmp_path, "nothing"), n_ranks=2)
    assert (tmp_path / "end").read_text() == "Stopped"
    assert all(has_ended(tmp_path / name) for name in "01")


def test_processes_end_when_the_one_that_started_them_is_killed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    parent = context.Process(target=run_together, args=(fail, (tmp_path, "nothing")), kwargs={"n_ranks": 2})
    parent.start()
    wait_until(lambda: all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in "01"))
    parent.kill()
    parent.join()
    wait_until(lambda: all(has_ended(tmp_path / name) for name in "01"))
    assert (tmp_path / "end").read_text() == "Stopped"


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def has_ended(note: Path) -> bool:
    """Whether the process with the number in a file is no more, or nobody has asked yet how it ended."""
    process = Path("/proc") / note.read_text()
    return not process.exists() or ") Z " in (process / "stat").read_text()
