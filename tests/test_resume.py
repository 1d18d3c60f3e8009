import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from breakhis_pl.errors import Stopped
from breakhis_pl.training.history import History
from tests.conftest import REPOSITORY
from tests.programs import TINY, Outcome, run_program

N_EPOCHS = 4


@pytest.fixture(scope="module")
def arguments(drawn_cache: Path) -> tuple[str, ...]:
    """A run of four epochs with everything that draws numbers: shuffling, augmentation, dropout, a schedule."""
    return (*TINY, f"data.cache_dir={drawn_cache}", f"trainer.max_epochs={N_EPOCHS}", "trainer=cpu", "gallery=0")


@pytest.fixture(scope="module")
def uninterrupted(arguments: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    outcome = run_program("train", *arguments, "hydra.run.dir=run", cwd=folder)
    assert outcome.status == 0, outcome.err
    return folder / "run"


class Cut:
    """Ends the process in order, or with an error, when the history of some epoch is to be written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def at(self, epoch: int, error: BaseException, *, hook: str = "on_train_epoch_end") -> None:
        """Before (`on_train_epoch_start`), or after the epoch's training."""
        original = getattr(History, hook)

        def cut(history: History, trainer: object, pl_module: object) -> None:
            if len(history.rows) == epoch:
                raise error
            original(history, trainer, pl_module)

        self.monkeypatch.setattr(History, hook, cut)

    def no_more(self) -> None:
        self.monkeypatch.undo()


@pytest.fixture
def cut() -> Iterator[Cut]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield Cut(monkeypatch)


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open() as table:
        return [{name: row[name] for name in row if name != "images_per_second"} for row in csv.DictReader(table)]


def assert_equal_runs(folder: Path, expected: Path) -> None:
    """Weights, rows, metrics and curves are the same, bit for bit."""
    ours, theirs = (torch.load(each / "checkpoints" / "last.ckpt")["state_dict"] for each in (folder, expected))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for name in ("test/predictions.csv", "test/metrics.json", "split.csv"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    assert history(folder) == history(expected)
    for subset in ("train", "test"):
        assert points(folder, subset) == points(expected, subset)
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    assert not [path for path in folder.rglob(".*") if path.name != ".hydra"]


def points(folder: Path, subset: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard" / subset)).Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")]


def interrupted(arguments: tuple[str, ...], cwd: Path, *more: str) -> Outcome:
    return run_program("train", *arguments, "hydra.run.dir=run", *more, cwd=cwd)


@pytest.mark.parametrize(
    ("epoch", "hook"),
    [
        (0, "on_train_epoch_start"),
        (2, "on_train_epoch_start"),
        pytest.param(0, "on_train_epoch_end", marks=pytest.mark.slow),
        pytest.param(3, "on_train_epoch_end", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_cut_ends_as_if_it_never_was(
    arguments: tuple[str, ...], uninterrupted: Path, tmp_path: Path, cut: Cut, epoch: int, hook: str
) -> None:
    cut.at(epoch, KeyboardInterrupt(), hook=hook)
    outcome = interrupted(arguments, tmp_path)
    assert outcome.status == 130
    assert outcome.err.strip().endswith(f"go on with: python train.py resume={tmp_path / 'run'}")
    hydra = {path: path.read_bytes() for path in (tmp_path / "run" / ".hydra").iterdir()}
    cut.no_more()

    outcome = run_program("train", "resume=run", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    assert ("goes on after epoch" in outcome.out) == (epoch > 0)
    assert_equal_runs(tmp_path / "run", uninterrupted)
    assert {path: path.read_bytes() for path in (tmp_path / "run" / ".hydra").iterdir()} == hydra
    content = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (len(content["resumed"]), content["seconds"]["total"]) == (1, None)
    assert content["seconds"]["training"] > 0


def test_curves_that_cannot_be_drawn_cost_no_epoch(arguments: tuple[str, ...], tmp_path: Path, cut: Cut) -> None:
    (tmp_path / "run" / "curves.png").mkdir(parents=True)
    cut.at(2, KeyboardInterrupt(), hook="on_train_epoch_start")
    outcome = interrupted(arguments, tmp_path, "trainer.checkpoint_share=1e-6")  # all but the first epoch share a file
    assert outcome.status == 130
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt")["epoch"] == 1


def test_a_run_that_is_cut_twice_ends_as_if_it_never_was(
    arguments: tuple[str, ...], uninterrupted: Path, tmp_path: Path, cut: Cut
) -> None:
    cut.at(1, KeyboardInterrupt())
    assert interrupted(arguments, tmp_path).status == 130
    cut.no_more()
    cut.at(3, Stopped(signal.SIGTERM))
    assert run_program("train", "resume=run", cwd=tmp_path).status == 143
    cut.no_more()
    assert run_program("train", "resume=run", cwd=tmp_path).status == 0
    assert_equal_runs(tmp_path / "run", uninterrupted)


def test_a_run_that_was_cut_after_its_last_epoch_is_only_evaluated(uninterrupted: Path, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "test")
    (tmp_path / "run" / "report.html").unlink()
    content = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(content | {"status": "running"}))
    outcome = run_program("train", "resume=run", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    assert "epoch 4/4" not in outcome.out
    assert_equal_runs(tmp_path / "run", uninterrupted)
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_finished_run_says_so_and_nothing_is_touched(uninterrupted: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")}
    outcome = run_program("train", f"resume={uninterrupted}", cwd=uninterrupted.parent)
    assert outcome.status == 0
    assert f"{uninterrupted} is finished" in outcome.out
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")} == before


def test_a_finished_run_goes_on_for_more_epochs_where_its_schedule_allows_it(
    arguments: tuple[str, ...], uninterrupted: Path, tmp_path: Path
) -> None:
    assert interrupted(arguments, tmp_path, "trainer.max_epochs=2").status == 0
    outcome = run_program("train", "resume=run", f"trainer.max_epochs={N_EPOCHS}", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    assert_equal_runs(tmp_path / "run", uninterrupted)
    outcome = run_program("train", "resume=run", "trainer.max_epochs=3", cwd=tmp_path)
    assert (outcome.status, outcome.out) == (1, "")
    assert "trainer.max_epochs=3 is not possible for run: 4 epochs are done" in outcome.err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("data.batch_size=7",), "data.batch_size cannot change (only trainer.max_epochs"),
        (("seed=1", "model=resnext50"), "seed, model cannot change"),
        (("+extra=1",), "extra cannot change"),
        (("-m",), "takes no -m"),
        (("resume=other",), "takes no resume="),
        (("trainer.max_epochs=2,3",), "takes one value for each key"),
        (("trainer.max_epochs=many",), "trainer.max_epochs='many' is not possible"),
        (("data.root=elsewhere",), "unknown key data.root"),  # the run is on drawn images
        (("data.cache_dir=",), "data.cache_dir is empty"),
    ],
)
def test_what_cannot_change_is_named(uninterrupted: Path, given: tuple[str, ...], words: str) -> None:
    outcome = run_program("train", f"resume={uninterrupted}", *given, cwd=uninterrupted.parent)
    assert outcome.status == 1
    assert words in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("folder", "words"),
    [("nothing", "nothing does not exist"), (".", "holds no run.json"), ("", "resume has no value")],
)
def test_what_is_no_run_cannot_go_on(tmp_path: Path, folder: str, words: str) -> None:
    outcome = run_program("train", f"resume={folder}", cwd=tmp_path)
    assert outcome.status == 1
    assert words in outcome.err


STRANGE_RUNS = [
    ("endless nesting", lambda _: "[" * 100_000, "is damaged: "),
    ("resumed", lambda run: json.dumps(run | {"resumed": 5}), "resumed or precision is of another kind"),
    ("precision", lambda run: json.dumps(run | {"precision": {"a": 1}}), "resumed or precision is of another kind"),
    (
        "a reference",
        lambda run: json.dumps(run).replace('"weights": "none"', '"weights": "${oc.env:HOME}"'),
        "model.weights=${oc.env:HOME} refers to something else; expected plain values",
    ),
    (
        "a zero byte",
        lambda run: json.dumps(run).replace('"cache_dir": "', '"cache_dir": "\\u0000'),
        "holds a zero byte",
    ),
    (
        "far too much",
        lambda run: json.dumps(run).replace('"width": 64', '"width": 10000000'),
        "data.width=10000000 is not",
    ),
]


@pytest.mark.parametrize("program", ["train", "evaluate"])
@pytest.mark.parametrize(("change", "words"), [row[1:] for row in STRANGE_RUNS], ids=[row[0] for row in STRANGE_RUNS])
def test_a_strangers_run_json_is_refused_in_a_line(
    uninterrupted: Path, tmp_path: Path, program: str, change: Callable[[dict[str, Any]], str], words: str
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(change(json.loads((uninterrupted / "run.json").read_text())))
    key = "resume" if program == "train" else "run"
    outcome = run_program(program, f"{key}={folder}", cwd=tmp_path)  # type: ignore[arg-type]
    assert outcome.status == 1
    assert words in outcome.err
    assert outcome.err.count("\n") == 1
    assert [path.name for path in folder.iterdir()] == ["run.json"]


def test_a_history_that_is_no_text_is_written_anew(uninterrupted: Path, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    content = json.loads((tmp_path / "run" / "run.json").read_text()) | {"status": "running"}
    (tmp_path / "run" / "run.json").write_text(json.dumps(content))
    (tmp_path / "run" / "history.csv").write_bytes(b"\xff\xfe\n")
    assert run_program("train", "resume=run", "trainer.max_epochs=4", cwd=tmp_path).status == 0
    assert_equal_runs(tmp_path / "run", uninterrupted)


def test_a_log_that_cannot_be_written_is_named(uninterrupted: Path, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    (tmp_path / "run" / "train.log").unlink()
    (tmp_path / "run" / "train.log").mkdir()
    outcome = run_program("train", "resume=run", "trainer.max_epochs=5", cwd=tmp_path)
    assert outcome.status == 1
    assert outcome.err == f"[Errno 21] Is a directory: '{tmp_path / 'run' / 'train.log'}'\n"


def test_a_schedule_that_was_made_for_its_epochs_keeps_them(
    arguments: tuple[str, ...], tmp_path: Path, cut: Cut
) -> None:
    cut.at(1, KeyboardInterrupt())
    assert interrupted(arguments, tmp_path, "scheduler=cosine").status == 130
    cut.no_more()
    outcome = run_program("train", "resume=run", "trainer.max_epochs=9", cwd=tmp_path)
    assert outcome.status == 1
    assert "its schedule was made for 4 epochs (scheduler.T_max)" in outcome.err


def test_a_cut_sweep_goes_on_with_the_same_command(
    arguments: tuple[str, ...], uninterrupted: Path, tmp_path: Path, cut: Cut
) -> None:
    command = ("-m", *arguments, "seed=1,0,2", "trainer.max_epochs=4", "hydra.sweep.dir=sweep")
    original = History.on_train_epoch_end

    def cut_second(history: History, trainer: object, pl_module: object) -> None:
        if history.folder.name == "0" and len(history.rows) == 2:
            raise KeyboardInterrupt
        original(history, trainer, pl_module)  # type: ignore[arg-type]

    cut.monkeypatch.setattr(History, "on_train_epoch_end", cut_second)
    outcome = run_program("train", *command, cwd=tmp_path)
    assert outcome.status == 130
    assert outcome.err.strip().endswith("hydra.sweep.dir=sweep")
    assert not (tmp_path / "sweep" / "2").exists()
    cut.no_more()
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep" / "1" / "test").rglob("*")}

    outcome = run_program("train", *command, cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    assert "finished already" in outcome.out
    assert "goes on after epoch 2" in outcome.out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep" / "1" / "test").rglob("*")} == first
    assert_equal_runs(tmp_path / "sweep" / "0", uninterrupted)
    assert (tmp_path / "sweep" / "2" / "test" / "metrics.json").is_file()

    other = [argument.replace("image_size=32", "image_size=33") for argument in command]
    outcome = run_program("train", *other, cwd=tmp_path)
    assert outcome.status == 1
    assert "holds a run of another configuration: data.image_size (32 there, 33 here)" in outcome.err


def test_other_images_are_noticed_before_a_run_goes_on(uninterrupted: Path, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    content = json.loads((tmp_path / "run" / "run.json").read_text()) | {"status": "running"}
    for key, words in (("split_checksum", "the images are not those of run"), ("pixels_checksum", "but other pixels")):
        changed = content | {"data": content["data"] | {key: "sha256:0"}}
        (tmp_path / "run" / "run.json").write_text(json.dumps(changed))
        outcome = run_program("train", "resume=run", cwd=tmp_path)
        assert outcome.status == 1
        assert words in outcome.err


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("number", "status"),
    [
        ("SIGTERM", 143),
        pytest.param("SIGINT", 130, marks=pytest.mark.slow),
        pytest.param("SIGUSR1", 138, marks=pytest.mark.slow),
    ],
)
def test_signals_end_a_sweep_in_order_and_a_second_process_is_kept_out(
    arguments: tuple[str, ...], tmp_path: Path, number: str, status: int
) -> None:
    command = [sys.executable, str(REPOSITORY / "train.py"), "-m", *arguments, "trainer.max_epochs=500"]
    command += ["seed=0,1", "hydra.sweep.dir=sweep"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        run = tmp_path / "sweep" / "0"
        deadline = time.monotonic() + 120
        while not (run / "checkpoints" / "last.ckpt").exists():
            assert started.poll() is None, started.stderr.read()  # type: ignore[union-attr]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        if number == "SIGTERM":
            second = run_program("train", f"resume={run}", cwd=tmp_path)
            assert second.status == 1
            assert f"another process writes {run}" in second.err
        started.send_signal(getattr(signal, number))
        out, err = started.communicate(timeout=60)
    assert started.returncode == status, err
    assert "Traceback" not in out + err
    assert err.strip().splitlines()[-1].endswith("hydra.sweep.dir=sweep")
    assert not (tmp_path / "sweep" / "1").exists()
    torch.load(run / "checkpoints" / "last.ckpt")
    assert json.loads((run / "run.json").read_text())["error"] == "interrupted"
