import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision import models

from breakhis_pl import command_line, composition
from breakhis_pl.composition import CONF_FOLDER
from breakhis_pl.errors import Stopped
from breakhis_pl.help_texts import help_text
from tests.conftest import REPOSITORY
from tests.programs import TINY, Outcome, run_program

B, M = "SOB_B_A-14-22549G", "SOB_M_DC-14-14926"  # in fold 2: test, and one of train


def started(*arguments: str, cwd: Path) -> tuple[subprocess.CompletedProcess[str], float]:
    """A program as a process of its own, and the seconds of processor time it took."""
    before = os.times()
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / arguments[0]), *arguments[1:]],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return done, seconds


def test_help_takes_under_a_second_and_names_every_option(tmp_path: Path) -> None:
    done, seconds = started("train.py", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert seconds < 1
    for folder in (path for path in CONF_FOLDER.iterdir() if path.is_dir() and path.name != "space"):
        assert f"  {folder.name}=" in done.stdout
        for option in folder.glob("*.yaml"):
            assert re.search(rf"^(  {folder.name}=)?\s*{option.stem}\*?\s+\w+", done.stdout, re.MULTILINE)
    examples = re.findall(r"^  python train\.py .*", done.stdout, re.MULTILINE)
    assert len(examples) >= 5
    assert list(tmp_path.iterdir()) == []


def test_every_key_that_help_names_exists() -> None:
    composition.register()
    config = composition.compose_checked("train", [])
    for program in ("train", "evaluate", "predict", "tune"):
        named = re.findall(r"\b((?:data|model|augmentation|training|trainer)\.\w+)=", help_text(program))
        for name in named:
            group, _, key = name.partition(".")
            assert hasattr(getattr(config, group), key), (program, name)


def test_a_misspelt_key_fails_in_under_five_seconds_without_a_trace(tmp_path: Path) -> None:
    done, seconds = started("train.py", "data.imge_size=96", cwd=tmp_path)
    assert done.returncode == 1
    assert seconds < 5
    assert done.stderr.startswith("unknown key data.imge_size (did you mean data.image_size?)")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_several_values_without_m_hand_back_the_command(tmp_path: Path) -> None:
    outcome = run_program("train", "model=resnet18,resnext50", cwd=tmp_path)
    assert outcome.status == 1
    assert outcome.err.strip().endswith("python train.py -m model=resnet18,resnext50")


def test_a_launcher_that_is_not_installed_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "submitit" else find(name, *more)
    )
    outcome = run_program("train", *TINY, "-m", "hydra/launcher=submitit_local", "seed=0,1", cwd=tmp_path)
    assert outcome.status == 1
    assert "needs a package that is not installed: uv sync --extra slurm" in outcome.err


def test_a_sweep_is_refused_as_a_whole_if_one_of_its_runs_is_not_possible(tmp_path: Path) -> None:
    outcome = run_program("train", "-m", "data.fold=1,6", *TINY, cwd=tmp_path)
    assert outcome.status == 1
    assert "data.fold=6 is not possible" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_whose_runs_would_share_a_folder_is_refused(tmp_path: Path) -> None:
    outcome = run_program("train", "-m", "seed=1,1", *TINY, cwd=tmp_path)
    assert outcome.status == 1
    assert "several runs of the sweep would share a folder: 1" in outcome.err


def test_evaluate_is_no_sweep(tmp_path: Path) -> None:
    outcome = run_program("evaluate", "-m", "run=a,b", cwd=tmp_path)
    assert outcome.status == 1
    assert "runs=<sweep folder> compares several" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_not_touched_by_a_refused_one(finished_run: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()}
    outcome = run_program("train", *TINY, f"hydra.run.dir={finished_run}", "data.fold=5", cwd=tmp_path)
    assert outcome.status == 1
    assert "holds a run already" in outcome.err
    assert {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()} == before


def test_a_run_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outcome = run_program("train", *TINY, "hydra.run.dir=file/run", cwd=tmp_path)
    assert outcome.status == 1
    assert "file/run cannot be written: no access to" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outcome = run_program("train", *TINY, "data.cache_dir=file/cache", "hydra.run.dir=run", cwd=tmp_path)
    assert outcome.status == 1
    assert "file" in outcome.err
    assert "Traceback" not in outcome.err


def test_names_that_are_no_text_are_refused_before_anything_is_written(finished_run: Path, tmp_path: Path) -> None:
    for program, argument in (
        ("train", "hydra.run.dir=a\udcff"),
        ("train", "resume=a\udcff"),
        ("train", "data.root=a\udcff"),
        ("evaluate", "run=a\udcff"),
    ):
        outcome = run_program(program, *(() if program == "evaluate" else TINY), argument, cwd=tmp_path)  # type: ignore[arg-type]
        assert outcome.status == 1
        assert outcome.err.startswith(
            f"{argument[:-1]!r}"[:-1] + "\\udcff' holds bytes that are no text in UTF-8; rename"
        )
        assert outcome.err.count("\n") == 1
    folder = tmp_path / "a\udcff"
    folder.mkdir()
    outcome = run_program("evaluate", f"run={finished_run}", cwd=folder)
    assert "holds bytes that are no text in UTF-8" in outcome.err
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_second_signal_does_not_break_off_what_the_first_one_has_written(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with command_line._signals_stop():
        with pytest.raises(Stopped, match=f"signal {signal.SIGTERM:d}"):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        monkeypatch.setattr(command_line, "_PATIENCE_S", 0)
        with pytest.raises(Stopped, match=f"signal {signal.SIGUSR1:d}"):
            os.kill(os.getpid(), signal.SIGUSR1)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_path_that_needs_quotes_is_told_so(tmp_path: Path) -> None:
    outcome = run_program("train", "data.root=/my data/x=(1)", cwd=tmp_path)
    assert outcome.status == 1
    assert "needs quotes inside quotes" in outcome.err


def images_at(root: Path, *names: str) -> None:
    """Small true images: the first of a patient of each class in train and in test of fold 2."""
    from PIL import Image

    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.effect_noise((64, 48), 50).convert("RGB").save(root / name)


def good_tree(root: Path) -> list[str]:
    """Two images of two patients of each class on each side of fold 2."""
    from breakhis_pl.data.breakhis import official_patients

    names = []
    for letter in "BM":
        for subset in ("train", "test"):
            patients = [
                patient
                for patient, official in official_patients().items()
                if patient.startswith(f"SOB_{letter}") and official.subsets[2] == subset
            ][:2]
            names += [f"{patient}-200-{number:03d}.png" for patient in patients for number in (1, 2)]
    images_at(root, *names)
    return names


def refused(tmp_path: Path, *arguments: str) -> Outcome:
    """Runs train.py on tmp_path/data and checks what is left behind."""
    outcome = run_program(
        "train",
        "data.root=data",
        "data.require_complete=false",
        "data.image_size=32",
        "model.weights=none",
        "data.cache_dir=cache",
        "hydra.run.dir=run",
        "trainer.max_epochs=1",
        *arguments,
        cwd=tmp_path,
    )
    assert outcome.status == 1
    assert "Traceback" not in outcome.err + outcome.out
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    written = {name for name in left if name.startswith(("run/", "outputs/", "cache/"))}
    allowed = {"run/.hydra/config.yaml", "run/.hydra/hydra.yaml", "run/.hydra/overrides.yaml", "run/train.log"}
    assert written <= allowed, written - allowed
    return outcome


def test_a_good_tree_is_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good_tree(tmp_path / "data")
    outcome = run_program(
        "train",
        "data.root=data",
        "data.require_complete=false",
        "data.image_size=32",
        "model.weights=none",
        "data.cache_dir=cache",
        "hydra.run.dir=run",
        "trainer.max_epochs=1",
        "trainer=cpu",
        cwd=tmp_path,
    )
    assert outcome.status == 0, outcome.err
    assert "incomplete archive: 16 of 2,013 images at 200X" in outcome.out
    assert capsys.readouterr().err == ""


def test_a_missing_root_says_what_to_do(tmp_path: Path) -> None:
    outcome = refused(tmp_path)
    assert "data" in outcome.err
    assert "python -m breakhis_pl.data.download" in outcome.err
    assert "data=synthetic" in outcome.err


def test_a_root_without_images_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert "python -m breakhis_pl.data.download" in refused(tmp_path).err


def test_an_incomplete_tree_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    good_tree(tmp_path / "data")
    outcome = refused(tmp_path, "data.require_complete=true")
    assert "8 of 623" in outcome.err.replace(" published", "") or "623" in outcome.err
    assert "data.require_complete=false" in outcome.err


@pytest.mark.parametrize("damage", ["truncated", "zero bytes", "text"])
def test_files_that_are_no_images_are_named_before_anything_is_trained(tmp_path: Path, damage: str) -> None:
    names = good_tree(tmp_path / "data")
    path = tmp_path / "data" / names[3]
    content = {"truncated": path.read_bytes()[:500], "zero bytes": b"", "text": b"not an image"}[damage]
    path.write_bytes(content)
    assert names[3] in refused(tmp_path).err


def test_a_file_without_a_breakhis_name_is_refused(tmp_path: Path) -> None:
    good_tree(tmp_path / "data")
    images_at(tmp_path / "data", "holiday.png")
    assert "holiday.png" in refused(tmp_path).err


def test_a_patient_of_no_official_list_is_refused(tmp_path: Path) -> None:
    good_tree(tmp_path / "data")
    images_at(tmp_path / "data", "SOB_B_A-14-99999-200-001.png")
    assert "SOB_B_A-14-99999" in refused(tmp_path).err


def test_the_same_name_twice_is_refused(tmp_path: Path) -> None:
    names = good_tree(tmp_path / "data")
    images_at(tmp_path / "data" / "again", names[0])
    assert names[0] in refused(tmp_path).err


@pytest.mark.parametrize("kept", ["SOB_B", "SOB_M"])
def test_one_class_only_is_refused(tmp_path: Path, kept: str) -> None:
    for name in good_tree(tmp_path / "data"):
        if not name.startswith(kept):
            (tmp_path / "data" / name).unlink()
    text = refused(tmp_path).err
    assert "benign" in text or "malignant" in text


@pytest.mark.parametrize("subset", ["train", "test"])
def test_no_image_left_in_a_subset_is_refused(tmp_path: Path, subset: str) -> None:
    from breakhis_pl.data.breakhis import official_subset

    for name in good_tree(tmp_path / "data"):
        if official_subset(name.rsplit("-", 2)[0], 2) == subset:
            (tmp_path / "data" / name).unlink()
    assert subset in refused(tmp_path).err


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    good_tree(tmp_path / "data")
    assert "missing.pth does not exist" in refused(tmp_path, "model.weights=missing.pth").err
    (tmp_path / "text.pth").write_text("no weights")
    assert "is no state dict" in refused(tmp_path, "model.weights=text.pth").err
    torch.save(models.resnet34().state_dict(), tmp_path / "other.pth")
    assert "belongs to another network than resnet18" in refused(tmp_path, "model.weights=other.pth").err


def test_values_that_are_not_possible_leave_nothing(tmp_path: Path) -> None:
    for argument in ("data.fold=6", "data.magnification=300", "seed=-1", "model.dropout=1.5", "+nonsense=1"):
        refused(tmp_path, argument)
    assert list(tmp_path.iterdir()) == []


def test_a_last_batch_of_one_tiny_image_is_refused_at_the_door(tmp_path: Path) -> None:
    good_tree(tmp_path / "data")
    outcome = refused(tmp_path, "data.batch_size=7")
    assert "data.batch_size=7 leaves a batch of a single image (8 train images)" in outcome.err


def evaluate_refused(tmp_path: Path, *arguments: str) -> str:
    before = sorted(path for path in tmp_path.rglob("*"))
    outcome = run_program("evaluate", *arguments, cwd=tmp_path)
    assert outcome.status == 1
    assert "Traceback" not in outcome.err
    assert sorted(path for path in tmp_path.rglob("*")) == before
    return outcome.err


def test_evaluate_refuses_what_is_no_run(tmp_path: Path) -> None:
    assert "run=nowhere does not exist" in evaluate_refused(tmp_path, "run=nowhere")
    (tmp_path / "empty").mkdir()
    assert "run=empty holds no run.json" in evaluate_refused(tmp_path, "run=empty")
    (tmp_path / "empty" / "run.json").write_text("{")
    assert "run.json is damaged" in evaluate_refused(tmp_path, "run=empty")


def test_evaluate_refuses_a_run_without_checkpoint_and_checkpoints_of_something_else(
    finished_run: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    checkpoint = copy / "checkpoints" / "last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    checkpoint.unlink()
    assert "last.ckpt does not exist" in evaluate_refused(tmp_path, "run=run")
    checkpoint.write_bytes(b"something else")
    assert "is no checkpoint" in evaluate_refused(tmp_path, "run=run")
    torch.save({"state_dict": {}}, checkpoint)
    assert "is no checkpoint of breakhis_pl" in evaluate_refused(tmp_path, "run=run")
    torch.save(content | {"state_dict": {}}, checkpoint)
    assert "does not hold a network of breakhis_pl" in evaluate_refused(tmp_path, "run=run")
    assert "other.ckpt does not exist" in evaluate_refused(tmp_path, "run=run", "checkpoint=other.ckpt")


def test_evaluate_refuses_other_images_than_the_runs(finished_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    facts = json.loads((copy / "run.json").read_text())
    facts["data"]["split_checksum"] = "sha256:0"
    (copy / "run.json").write_text(json.dumps(facts))
    checkpoint = copy / "checkpoints" / "last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    content["BreakHisDataModule"]["split_checksum"] = "sha256:0"
    torch.save(content, checkpoint)
    assert "the images are not those of run" in evaluate_refused(tmp_path, "run=run")
    assert "drawn images, which have no folder" in evaluate_refused(tmp_path, "run=run", "data.root=data")
