"""Protocols as their users ask for them: at the door, in a run's files, through a cut, and evaluated again."""

import csv
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from breakhis_pl import composition
from breakhis_pl.config import TrainConfig, all_magnifications, evaluated_magnifications
from breakhis_pl.door import check_at_the_door
from breakhis_pl.errors import ConfigurationError
from breakhis_pl.outcome import run_title
from breakhis_pl.training.history import History
from tests.conftest import REPOSITORY
from tests.programs import TINY, run_program

MONITOR, PATIENCE = "val_auroc", 2


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    composition.register()


def composed(*overrides: str) -> TrainConfig:
    config: TrainConfig = composition.compose_checked("train", overrides)
    return config


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("data.test_magnification=50",), "data.test_magnification=50 is not possible; expected one of 40, 100"),
        (("data.test_magnification=[]",), "data.test_magnification=[] is not possible"),
        (("data.test_magnification=[40,40]",), "data.test_magnification=[40, 40] names one of them twice"),
        (("data.group=patient",), "data.group=patient has no effect on data.split=official"),
        (("data.test_fraction=0.2",), "data.test_fraction=0.2 has no effect on data.split=official"),
        (("data.split=ratio", "data.fold=3"), "data.fold=3 has no effect on data.split=ratio, which draws cases"),
        (("data.group=slide", "data.split=ratio"), "data.group=slide is not possible; expected one of case, patient"),
        (("data.balance=up",), "data.balance=up is not possible; expected one of none, downsample, sampler, loss"),
        (("data.stain=vahadane",), "data.stain=vahadane is not possible; expected one of none, macenko, reinhard"),
        (
            ("trainer.monitor=test_loss", "data.val_fraction=0.2"),
            "trainer.monitor=test_loss is not possible; expected one of val_loss",
        ),
        (
            ("trainer.monitor=val_loss",),
            "trainer.monitor=val_loss needs validation images, and nothing is chosen on test images; "
            "set data.val_fraction above 0",
        ),
        (
            ("trainer.patience=3", "data.val_fraction=0.2"),
            "trainer.patience=3 needs a value to watch; expected trainer.",
        ),
        (
            ("trainer.patience=0", "trainer.monitor=val_loss", "data.val_fraction=0.2"),
            "trainer.patience=0 is not possible; expected a number at least 1",
        ),
    ],
)
def test_what_cannot_be_is_refused_at_the_door(overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        composed(*overrides)
    assert words in str(error.value)


def test_several_faults_are_said_together() -> None:
    with pytest.raises(ConfigurationError) as error:
        composed(
            "data.group=patient", "data.test_magnification=[40,40]", "trainer.patience=2", "trainer.monitor=val_loss"
        )
    assert str(error.value).count("\n") == 2


@pytest.mark.parametrize("checkpoint", ["auto", "best", "last"])
def test_calibration_is_for_the_checkpoint_that_counts(checkpoint: str) -> None:
    composition.compose_checked("evaluate", ["run=a", "calibrate=true", f"checkpoint={checkpoint}"])
    with pytest.raises(ConfigurationError, match=r"calibrate=true checkpoint=a\.ckpt: what is kept with a run"):
        composition.compose_checked("evaluate", ["run=a", "calibrate=true", "checkpoint=a.ckpt"])


@pytest.mark.parametrize("asked", ["200", "[200]", "'200'"])
def test_magnifications_of_test_are_one_or_a_list(asked: str) -> None:
    data = composed("data.magnification=[40,100]", f"data.test_magnification={asked}").data
    assert evaluated_magnifications(data) == (200,)
    assert all_magnifications(data) == (40, 100, 200)
    assert evaluated_magnifications(composed("data.magnification=[40,100]").data) == (40, 100)


def test_the_title_says_what_a_run_was() -> None:
    def title(*overrides: str) -> str:
        return run_title("ResNet-18", composed(*overrides).data)

    assert title() == "ResNet-18, 200X, fold 2"
    assert title("data.magnification=[40,100]", "data.test_magnification=200", "data.stain=macenko") == (
        "ResNet-18, 40X+100X, tested at 200X, fold 2, Macenko stains"
    )
    assert title("data.split=ratio", "data.test_fraction=0.2") == "ResNet-18, 200X, ratio split, 0.2 test"
    assert title("data.split=ratio", "data.group=patient") == "ResNet-18, 200X, ratio split by patient, 0.3 test"


@pytest.fixture(scope="module")
def arguments(drawn_cache: Path) -> tuple[str, ...]:
    """Everything of these protocols at once."""
    return (
        *TINY,
        *(f"data.cache_dir={drawn_cache}", "trainer=cpu", "gallery=0", "trainer.max_epochs=8"),
        *("data.magnification=[40,200]", "data.test_magnification=100", "data.val_fraction=0.3"),
        *("data.balance=sampler", "data.stain=reinhard"),
        *(f"trainer.monitor={MONITOR}", f"trainer.patience={PATIENCE}"),
    )


@pytest.fixture(scope="module")
def chosen(arguments: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chosen")
    outcome = run_program("train", *arguments, "hydra.run.dir=run", cwd=folder)
    assert outcome.status == 0, outcome.err
    return folder / "run"


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield monkeypatch


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as table:
        return list(csv.DictReader(table))


def epoch_of(checkpoint: Path) -> int:
    return int(torch.load(checkpoint)["epoch"]) + 1


def assert_equal_runs(run: Path, expected: Path) -> None:
    for name in ("test/predictions.csv", "test/metrics.json", "val/predictions.csv", "calibration.json", "split.csv"):
        assert (run / name).read_bytes() == (expected / name).read_bytes(), name
    for name in ("best", "last"):
        ours, theirs = (torch.load(each / "checkpoints" / f"{name}.ckpt") for each in (run, expected))
        assert ours["epoch"] == theirs["epoch"]
        assert all(torch.equal(ours["state_dict"][key], value) for key, value in theirs["state_dict"].items())
    selections = [json.loads((each / "run.json").read_text())["selection"] for each in (run, expected)]
    assert selections[0] == selections[1]
    assert len(rows_of(run / "history.csv")) == len(rows_of(expected / "history.csv"))


def test_the_first_best_epoch_counts_and_patience_ends_the_training(chosen: Path) -> None:
    values = [float(row[MONITOR]) for row in rows_of(chosen / "history.csv")]
    best = values.index(max(values)) + 1
    selection = json.loads((chosen / "run.json").read_text())["selection"]
    assert (selection["monitor"], selection["best_epoch"]) == (MONITOR, best)
    assert selection["best_value"] == pytest.approx(max(values), rel=1e-8)
    assert len(values) == min(8, best + PATIENCE)
    assert epoch_of(chosen / "checkpoints/best.ckpt") == best
    assert epoch_of(chosen / "checkpoints/last.ckpt") == len(values)
    metrics = json.loads((chosen / "test/metrics.json").read_text())
    row = rows_of(chosen / "history.csv")[best - 1]
    assert metrics["accuracy"]["value"] == pytest.approx(float(row["test_accuracy"]), abs=1e-6)
    page = (chosen / "report.html").read_text()
    assert f"Epoch {best} of {len(values)} counts, the best by {MONITOR}" in page
    assert "at 40X and 200X, tested at 100X" in page


def test_images_of_each_subset_have_its_magnifications_and_no_patient_crosses(chosen: Path) -> None:
    found: dict[str, set[str]] = {}
    patients: dict[str, set[str]] = {}
    for row in rows_of(chosen / "split.csv"):
        found.setdefault(row["subset"], set()).add(row["image"].split("-")[-2])
        patients.setdefault(row["subset"], set()).add(row["patient"])
    assert found == {"train": {"40", "200"}, "val": {"100"}, "test": {"100"}}
    assert not patients["train"] & patients["test"]
    assert {row["magnification"] for row in rows_of(chosen / "test/predictions.csv")} == {"100"}
    assert "train at 40X+200X, test at 100X" in json.loads((chosen / "run.json").read_text())["data"]["description"]


def test_evaluate_takes_the_epoch_that_counts_and_names_others_after_their_checkpoint(
    chosen: Path, tmp_path: Path
) -> None:
    shutil.copytree(chosen, tmp_path / "run")
    before = (chosen / "test/predictions.csv").read_bytes()
    (tmp_path / "run/test/predictions.csv").unlink()
    outcome = run_program("evaluate", "run=run", "gallery=0", "trainer.accelerator=cpu", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    assert (tmp_path / "run/test/predictions.csv").read_bytes() == before
    last = run_program("evaluate", "run=run", "checkpoint=last", "gallery=0", "trainer.accelerator=cpu", cwd=tmp_path)
    assert last.status == 0, last.err
    assert (tmp_path / "run/test_last/metrics.json").is_file()
    assert (tmp_path / "run/test/predictions.csv").read_bytes() == before
    refused = run_program("evaluate", "run=run", "checkpoint=last", "calibrate=true", cwd=tmp_path)
    assert refused.status == 1
    assert "is fitted for the checkpoint that counts, best.ckpt; drop checkpoint" in refused.err


def test_a_checkpoint_of_other_stains_is_refused(chosen: Path, finished_run: Path, tmp_path: Path) -> None:
    content = torch.load(chosen / "checkpoints/best.ckpt")
    del content["BreakHisDataModule"]["stain"]
    torch.save(content, tmp_path / "plain.ckpt")
    outcome = run_program("evaluate", f"run={chosen}", f"checkpoint={tmp_path / 'plain.ckpt'}", cwd=tmp_path)
    assert outcome.status == 1
    assert "plain.ckpt needs data.stain=none, the run" in outcome.err
    content["BreakHisDataModule"]["stain"] = {"method": "reinhard", "mean": "x"}
    torch.save(content, tmp_path / "strange.ckpt")
    outcome = run_program("evaluate", f"run={chosen}", f"checkpoint={tmp_path / 'strange.ckpt'}", cwd=tmp_path)
    assert "strange.ckpt does not hold a network of breakhis_pl: stain.mean is not" in outcome.err
    refused = run_program("evaluate", f"run={finished_run}", "checkpoint=best", cwd=tmp_path)
    assert "nothing was chosen in that run; take checkpoint=last" in refused.err


@pytest.mark.parametrize("moment", ["between the two files", "after an epoch", "before the results"])
def test_a_run_that_was_cut_chooses_as_if_it_never_was(
    arguments: tuple[str, ...], chosen: Path, tmp_path: Path, patch: pytest.MonkeyPatch, moment: str
) -> None:
    run = tmp_path / "run"
    if moment == "before the results":
        shutil.copytree(chosen, run)
        content = json.loads((run / "run.json").read_text()) | {"status": "running"}
        (run / "run.json").write_text(json.dumps(content))
        shutil.rmtree(run / "test")
    else:
        best = json.loads((chosen / "run.json").read_text())["selection"]["best_epoch"]
        n_epochs = best if moment == "between the two files" else best + 1
        original = History.on_train_epoch_end

        def cut(history: History, trainer: object, pl_module: object) -> None:
            if len(history.rows) == n_epochs:
                raise KeyboardInterrupt
            original(history, trainer, pl_module)  # type: ignore[arg-type]

        patch.setattr(History, "on_train_epoch_end", cut)
        assert run_program("train", *arguments, "hydra.run.dir=run", cwd=tmp_path).status == 130
        patch.undo()
        assert epoch_of(run / "checkpoints/last.ckpt") == n_epochs
        if moment == "between the two files":
            (run / "checkpoints/best.ckpt").unlink()
    outcome = run_program("train", "resume=run", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    assert_equal_runs(run, chosen)
    again = run_program("train", "resume=run", "trainer.max_epochs=20", cwd=tmp_path)
    stopped = json.loads((chosen / "run.json").read_text())["selection"]["stopped_after"]
    if stopped is not None:
        assert f"is finished (it stopped after epoch {stopped}: trainer.patience)" in again.out


def documented_commands() -> list[str]:
    page = (REPOSITORY / "docs" / "protocols.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    return [line for line in lines if "train.py" in line]


@pytest.mark.parametrize("command", documented_commands())
def test_every_command_of_the_page_composes(command: str) -> None:
    check_at_the_door("train", shlex.split(command)[2:])
