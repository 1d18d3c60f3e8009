"""CONTRIBUTING.md: its recipes, as they stand there, make one run on a copy of the checkout."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE, re.DOTALL))


def test_the_recipes_make_a_run(tmp_path: Path) -> None:
    for name in ("breakhis_pl", "conf", "train.py"):
        source, ignore = REPOSITORY / name, shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, tmp_path / name, ignore=ignore) if source.is_dir() else shutil.copy(source, tmp_path)
    entry = FILES.pop("_ENTRIES")
    registry = tmp_path / "breakhis_pl" / "metrics" / "registry.py"
    registry.write_text(registry.read_text().replace("_ENTRIES = (\n", f"_ENTRIES = (\n{entry}"))
    for name, content in FILES.items():
        assert content.count("\n") <= 20
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_text(content)
    (tmp_path / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for number in range(30):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{'abc'[number % 3]}_p{number // 2}-{number % 3}_1.png")
    options = ("model=shufflenet", "optimizer=rmsprop", "augmentation=gamma", "logger=lines", "data=flat_folder")
    settings = ("model.weights=none", "data.image_size=32", "trainer=cpu", "trainer.max_epochs=1", "hydra.run.dir=run")
    command = [sys.executable, "train.py", *options, *settings, "gallery=0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "test" / "metrics.json").read_text())
    assert metrics["class_names"] == ["a", "b", "c"]
    assert metrics["geometric_mean"]["value"] is not None
    assert "Geometric mean" in (tmp_path / "run" / "report.html").read_text()
    assert (tmp_path / "run" / "lines").is_dir()
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert config["augmentation"]["own"] == {"_target_": "breakhis_pl.data.gamma.Gamma"}
