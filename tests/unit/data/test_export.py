from collections.abc import Callable
from pathlib import Path

import pytest

from breakhis_pl.data.breakhis import official_patients
from breakhis_pl.data.export import main

Capture = pytest.CaptureFixture[str]
Write = Callable[..., Path]
PATIENTS = [patient for patient in official_patients() if patient.startswith(("SOB_B_F", "SOB_M_PC"))]
NAMES = [f"{patient}-200-001.png" for patient in PATIENTS]


@pytest.mark.parametrize("copy", [False, True])
def test_images_are_linked_or_copied(write_images: Write, tmp_path: Path, capsys: Capture, copy: bool) -> None:
    root, target = write_images(*NAMES), tmp_path / "moved" / "exported"
    arguments = ["--root", str(root), "--to", str(target), "--allow-incomplete", "--fold", "3"]
    assert main([*arguments, *(["--copy"] if copy else [])]) == 0
    files = sorted(target.rglob("*.png"))
    expected = {f"{official_patients()[patient].subsets[3]}/{patient[4]}/{patient}-200-001.png" for patient in PATIENTS}
    assert {path.relative_to(target).as_posix() for path in files} == expected
    for path in files:
        assert path.is_symlink() is not copy
        assert copy or not path.readlink().is_absolute()
        assert path.read_bytes() == (root / path.name).read_bytes()
    assert f"{target}/train/B: " in capsys.readouterr().out


def test_a_ratio_split_can_be_exported(write_images: Write, tmp_path: Path) -> None:
    arguments = ["--root", str(write_images(*NAMES)), "--to", str(tmp_path / "exported"), "--allow-incomplete"]
    assert main([*arguments, "--split", "ratio", "--seed", "1"]) == 0
    assert len(list((tmp_path / "exported").rglob("*.png"))) == len(NAMES)


@pytest.mark.parametrize("reason", ["incomplete", "exists", "missing"])
def test_a_refused_export_writes_nothing(write_images: Write, tmp_path: Path, capsys: Capture, reason: str) -> None:
    root, target = write_images(*NAMES), tmp_path / "exported"
    arguments = ["--root", str(tmp_path / "nowhere" if reason == "missing" else root), "--to", str(target)]
    if reason == "exists":
        arguments.append("--allow-incomplete")
        target.mkdir()
    assert main(arguments) == 1
    message = capsys.readouterr().err
    assert message
    assert not list(target.glob("*"))
    assert not list(tmp_path.glob(".exported*"))
    if reason == "incomplete":  # options of the command, not keys of a configuration
        assert "--root " in message
        assert "--allow-incomplete" in message
        assert "data.r" not in message


@pytest.mark.parametrize("option", ["--to", "--test-fraction"])
def test_impossible_options_are_refused(write_images: Write, tmp_path: Path, capsys: Capture, option: str) -> None:
    root = write_images(*NAMES)
    target = (root if option == "--to" else tmp_path) / "exported"  # below root, all images would be there twice
    arguments = ["--root", str(root), "--to", str(target), "--allow-incomplete", "--split", "ratio"]
    with pytest.raises(SystemExit):
        main([*arguments, *(["--test-fraction", "1"] if option == "--test-fraction" else [])])
    assert f"{option} " in capsys.readouterr().err.splitlines()[-1]
    assert not target.exists()
