"""docs/yours.md: its files, as they stand there, train and evaluate a run."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.programs import TINY, run_program

PAGE = (REPOSITORY / "docs" / "yours.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"`(\S+)`:\n\n```(?:python|yaml)\n(.*?)```", PAGE, re.DOTALL))


def test_the_files_of_the_page_train_a_network_and_evaluate_it(
    tmp_path: Path, synthetic_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, content in FILES.items():
        assert content.count("\n") < 15
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    command = re.search(r"uv run train.py (.*hydra.*)", PAGE)
    assert command is not None
    tiny = [each for each in TINY if not each.startswith("model")]
    settings = (f"data.cache_dir={synthetic_cache}", "trainer.max_epochs=1", "hydra.run.dir=run")
    outcome = run_program("train", *shlex.split(command[1]), *tiny, *settings, cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert config["model"]["backbone"] == "my_nets.Small"
    assert config["augmentation"]["own"] == {"_target_": "my_transforms.Dim"}
    outcome = run_program("evaluate", "run=run", "gallery=0", cwd=tmp_path)
    assert outcome.status == 0, outcome.err


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["model.library=python", "model.backbone=os.system"], "model.backbone=os.system"),
        (["model.library=python", "model.backbone=nowhere.Net"], "model.backbone=nowhere.Net"),
        (["+augmentation.own._target_=nowhere.Transform"], "augmentation.own"),
        (["model.library=python", "model.weights=imagenet"], "model.weights"),
    ],
)
def test_parts_that_cannot_be_used_are_refused(
    tmp_path: Path, synthetic_cache: Path, arguments: list[str], key: str
) -> None:
    settings = (*TINY, f"data.cache_dir={synthetic_cache}", "hydra.run.dir=run")
    outcome = run_program("train", *settings, *arguments, cwd=tmp_path)
    assert outcome.status == 1
    assert key in outcome.err
    assert "Traceback" not in outcome.err
