import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from breakhis_pl.data import export
from breakhis_pl.data.breakhis import Subset
from breakhis_pl.data.export import export_split, main
from breakhis_pl.data.index import index_images
from breakhis_pl.data.splits import Split, official_split, ratio_split, with_validation
from breakhis_pl.errors import DataFolderError

FOLDERS = ["train/B", "train/M", "test/B", "test/M"]
Run = Callable[..., int]


@pytest.fixture
def split(fake_tree: Any) -> Split:
    return official_split(index_images(fake_tree.root, [200]), fold=2)


@pytest.fixture
def run(fake_tree: Any) -> Run:
    """The command on the fake tree, which is incomplete."""

    def command(*arguments: object) -> int:
        return main(["--root", str(fake_tree.root), "--allow-incomplete", *(str(argument) for argument in arguments)])

    return command


def test_images_are_linked_into_the_folders_of_the_report(split: Split, tmp_path: Path) -> None:
    target = tmp_path / "new" / "export"

    counts = export_split(split, target, copy=False)

    assert counts == {"train/B": 8, "train/M": 6, "test/B": 2, "test/M": 4}
    assert list(counts) == FOLDERS
    for record, subset in zip(split.records, split.subsets, strict=True):
        path = target / subset / record.name.class_name[0].upper() / record.name.file_name
        assert path.is_symlink()
        assert not path.readlink().is_absolute()
        assert path.samefile(record.path)
    assert [entry.name for entry in target.parent.iterdir()] == ["export"]


def test_links_survive_when_images_and_folders_move_together(fake_tree: Any, tmp_path: Path) -> None:
    records = index_images(fake_tree.root, [200])
    export_split(official_split(records, fold=2), tmp_path / "export", copy=False)

    moved = tmp_path / "elsewhere" / "deep"
    moved.mkdir(parents=True)
    fake_tree.root.rename(moved / "archive")
    (tmp_path / "export").rename(moved / "export")

    assert len(index_images(moved / "export", [200])) == len(records)


def test_links_lead_to_the_images_where_folders_are_links_themselves(fake_tree: Any, tmp_path: Path) -> None:
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "data").symlink_to(fake_tree.root)
    (tmp_path / "near").symlink_to(tmp_path / "far" / "away")
    split = official_split(index_images(tmp_path / "data", [200]), fold=2)

    export_split(split, tmp_path / "near" / "export", copy=False)

    assert len(index_images(tmp_path / "far" / "away" / "export", [200])) == len(split.records)


def test_copies_are_files_of_their_own(split: Split, tmp_path: Path) -> None:
    export_split(split, tmp_path / "export", copy=True)

    records = index_images(tmp_path / "export", [200])
    assert [record.name for record in records] == [record.name for record in split.records]
    for copied, original in zip(records, split.records, strict=True):
        assert not copied.path.is_symlink()
        assert copied.path.read_bytes() == original.path.read_bytes()


def test_a_validation_set_gets_folders_of_its_own(fake_tree: Any, tmp_path: Path) -> None:
    records = index_images(fake_tree.root, [200])
    split = with_validation(official_split(records, fold=5), fraction=0.4, seed=0)

    counts = export_split(split, tmp_path / "export", copy=False)

    assert list(counts) == ["train/B", "train/M", "val/B", "val/M", "test/B", "test/M"]


def test_an_empty_target_is_taken(split: Split, tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()

    export_split(split, tmp_path / "export", copy=False)

    assert sorted(entry.name for entry in (tmp_path / "export").iterdir()) == ["test", "train"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_target_in_use_is_refused_and_left_alone(split: Split, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "export"
    kept = target / "mine.txt" if kind == "folder" else target
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine", encoding="utf-8")

    with pytest.raises(DataFolderError, match="export exists and is no empty folder; choose another one"):
        export_split(split, target, copy=True)
    assert kept.read_text(encoding="utf-8") == "mine"


def test_without_links_the_error_names_copy_and_nothing_is_left(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    before = sorted(tmp_path.iterdir())

    with pytest.raises(DataFolderError, match=rf"can be made in {tmp_path} \(Operation not permitted\); use --copy"):
        export_split(split, tmp_path / "export", copy=False)
    assert sorted(tmp_path.iterdir()) == before


def test_a_full_disk_leaves_nothing_behind(split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n_copied = 0
    copyfile = shutil.copyfile

    def fill(source: Path, target: Path) -> None:
        nonlocal n_copied
        n_copied += 1
        if n_copied == 5:
            raise OSError(28, "No space left on device")
        copyfile(source, target)

    monkeypatch.setattr(shutil, "copyfile", fill)
    before = sorted(tmp_path.iterdir())

    with pytest.raises(DataFolderError, match=r"export cannot be written: .*No space left on device"):
        export_split(split, tmp_path / "export", copy=True)
    assert sorted(tmp_path.iterdir()) == before


def test_a_target_below_a_file_cannot_be_written(split: Split, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")

    with pytest.raises(DataFolderError, match=r"cannot be written: .*Not a directory"):
        export_split(split, tmp_path / "file" / "export", copy=False)


def test_the_command_prints_a_line_for_each_folder(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "export"

    assert run("--to", target) == 0

    assert capsys.readouterr() == (
        f"{target / 'train/B'}: 8 images\n{target / 'train/M'}: 6 images\n"
        f"{target / 'test/B'}: 2 images\n{target / 'test/M'}: 4 images\n",
        "",
    )


def test_the_command_takes_fold_and_magnifications(run: Run, fake_tree: Any, tmp_path: Path) -> None:
    assert run("--to", tmp_path / "export", "--fold", 5, "--magnification", 40, 100) == 0

    expected = official_split(index_images(fake_tree.root, [40, 100]), fold=5)
    for subset in (Subset.TRAIN, Subset.TEST):
        found = {record.name for record in index_images(tmp_path / "export" / subset, [40, 100])}
        assert found == {expected.records[index].name for index in expected.indices(subset)}


def test_the_command_takes_ratio_fraction_and_seed(run: Run, fake_tree: Any, tmp_path: Path) -> None:
    options = ("--split", "ratio", "--test-fraction", 0.5, "--seed", 7, "--copy")

    assert run("--to", tmp_path / "export", *options) == 0

    expected = ratio_split(index_images(fake_tree.root, [200]), test_fraction=0.5, seed=7)
    found = {record.name for record in index_images(tmp_path / "export" / "test", [200])}
    assert found == {expected.records[index].name for index in expected.indices(Subset.TEST)}


def test_an_incomplete_archive_is_refused_with_the_name_of_the_option(
    fake_tree: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--root", str(fake_tree.root), "--to", str(tmp_path / "export")]) == 1

    text = capsys.readouterr().err
    assert "200X benign: 10 of 623 images" in text
    assert text.endswith("`--allow-incomplete` uses what is there\n")
    assert not (tmp_path / "export").exists()


def test_a_missing_root_is_refused_in_the_words_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--root", str(tmp_path / "nowhere"), "--to", str(tmp_path / "export")]) == 1

    text = capsys.readouterr().err
    assert "nowhere does not exist; set --root to the folder that holds BreaKHis_v1" in text
    assert "data.root" not in text
    assert "data=synthetic" not in text


@pytest.mark.parametrize("inside", [".", "export", "BreaKHis_v1/.export"])
def test_a_target_inside_the_images_is_refused_with_the_reason(
    run: Run, fake_tree: Any, inside: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--to", fake_tree.root / inside) == 1

    assert "would be found as duplicates; choose a folder outside" in capsys.readouterr().err
    assert len(index_images(fake_tree.root, [200])) == len(fake_tree.file_names[200])


def test_a_target_inside_the_images_by_way_of_a_link_is_refused(
    run: Run, fake_tree: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to(fake_tree.root)

    assert run("--to", tmp_path / "link" / "export") == 1
    assert "would be found as duplicates" in capsys.readouterr().err


def test_a_split_without_both_classes_is_refused_with_what_was_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "few"
    root.mkdir()
    (root / "SOB_B_A-14-22549G-200-001.png").write_bytes(b"x")

    assert main(["--root", str(root), "--to", str(tmp_path / "export"), "--allow-incomplete"]) == 1
    assert "test has no malignant image (--fold 2)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "the following arguments are required: --to"),
        (["--to", "x", "--fold", "9"], "--fold: invalid choice: 9"),
        (["--to", "x", "--magnification", "50"], "--magnification: invalid choice: 50"),
        (["--to", "x", "--split", "random"], "--split: invalid choice: 'random'"),
        (["--to", "x", "--split", "ratio", "--test-fraction", "1.5"], "1.5 is no number between 0 and 1"),
        (["--to", "x", "--split", "ratio", "--test-fraction", "third"], "third is no number between 0 and 1"),
        (["--to", "x", "--split", "ratio", "--fold", "2"], "--fold belongs to --split official"),
        (["--to", "x", "--seed", "0"], "--test-fraction and --seed belong to --split ratio"),
        (["--to", "x", "--test-fraction", "0.3"], "--test-fraction and --seed belong to --split ratio"),
    ],
)
def test_wrong_usage_exits_with_status_2(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(arguments)
    assert text in capsys.readouterr().err


def test_an_interrupt_leaves_nothing_and_exits_with_130(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "_link", interrupt)
    before = sorted(tmp_path.iterdir())

    assert run("--to", tmp_path / "export") == 130
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_the_module_runs_from_the_command_line(fake_tree: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "breakhis_pl.data.export", "--root", str(fake_tree.root), "--to", "export"]

    refused = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    done = subprocess.run([*command, "--allow-incomplete"], check=False, capture_output=True, text=True, cwd=tmp_path)

    assert (refused.returncode, done.returncode) == (1, 0)
    assert "Traceback" not in refused.stderr
    assert done.stdout.splitlines()[0] == f"{Path('export/train/B')}: 8 images"
