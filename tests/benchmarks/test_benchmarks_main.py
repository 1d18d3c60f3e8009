import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from benchmarks.__main__ import SUBJECTS, main
from benchmarks.timing import Measurement
from tests.conftest import REPOSITORY


def run(*arguments: str, cwd: Path) -> dict[str, object]:
    """What `python -m benchmarks` writes; its temporary files go below the folder it runs in."""
    temporary = cwd / "temporary"
    temporary.mkdir()
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "benchmarks", "--tiny", "--device", "cpu", "--out", "out.json", *arguments]
    answer = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert list(temporary.iterdir()) == []
    assert {path.name for path in cwd.iterdir()} == {"out.json", "temporary"}
    content: dict[str, object] = json.loads((cwd / "out.json").read_text())
    assert "tiny sizes, not judged" in answer.stdout or "not measured" in answer.stdout
    return content


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["cpu", "gpu"])
def test_every_subject_of_a_plan_is_measured_and_nothing_is_left_behind(plan: str, tmp_path: Path) -> None:
    content = run("--plan", plan, cwd=tmp_path)
    subjects = content["subjects"]
    assert list(subjects) == list(SUBJECTS)
    assert bool(subjects.pop("sweep")) == (plan == "gpu")
    for figures in subjects.values():
        assert figures
        assert all(len(figure["values"]) >= 1 and figure["median"] >= 0 for figure in figures.values())
    assert content["failures"] == {}
    assert content["plan"]["name"] == plan
    assert {"cpu", "cores", "commit", "uncommitted_changes", "versions"} <= content["machine"].keys()
    assert "tiny sizes, not judged" in {goal["outcome"] for goal in content["goals"]}


def test_a_single_subject_is_measured_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.setenv("TRITON_CACHE_DIR", "")
    monkeypatch.setattr("benchmarks.__main__.keep_freed_memory", lambda: True)
    out = tmp_path / "out.json"
    assert main(["--tiny", "--device", "cpu", "--only", "store", "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    assert list(content["subjects"]) == ["store"]
    assert content["subjects"]["store"]["building"]["unit"] == "images/s"
    assert content["goals"][0]["outcome"] == "not measured"
    assert list(temporary.iterdir()) == []
    printed = capsys.readouterr()
    assert "building against decoding times cores" in printed.out
    assert "store: " in printed.err


def test_a_subject_that_fails_does_not_cost_the_others_their_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> list[Measurement]:
        raise RuntimeError("no such mode")

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.setenv("TRITON_CACHE_DIR", "")
    monkeypatch.setattr("benchmarks.__main__.keep_freed_memory", lambda: True)
    monkeypatch.setattr("benchmarks.__main__.step.measure", fail)
    out = tmp_path / "out.json"
    assert main(["--tiny", "--device", "cpu", "--only", "step", "store", "--out", str(out)]) == 1
    content = json.loads(out.read_text())
    assert list(content["subjects"]) == ["store"]
    assert content["failures"]["step"].endswith("RuntimeError: no such mode\n")
    assert "step failed: no such mode" in capsys.readouterr().err


def test_a_folder_without_images_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tiny", "--device", "cpu", "--root", str(tmp_path), "--out", str(tmp_path / "out.json")]) == 1
    assert f"no BreaKHis images under {tmp_path}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
