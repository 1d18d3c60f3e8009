import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from breakhis_pl import doctor


def test_versions_images_weights_and_extras_are_listed(
    write_images: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = write_images("SOB_B_A-14-22549AB-200-001.png", "SOB_M_DC-14-13412-200-001.png")
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    (tmp_path / "hub/checkpoints/resnet18-f37072fd.pth").touch()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    assert doctor.main(["--root", str(root)]) == 0
    out = capsys.readouterr().out
    assert f"torch {torch.__version__}" in out
    assert re.search(r"200X +2 of 2,013", out)
    assert re.search(r"40X +0 of 1,995", out)
    assert [line.split()[2] for line in out.splitlines() if line.startswith("weights")] == ["in", "will", "will"]
    assert "timm" in out


def test_a_folder_that_does_not_exist_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--root", str(tmp_path / "nowhere")]) == 0
    assert len([line for line in capsys.readouterr().out.splitlines() if "nowhere" in line]) == 1
