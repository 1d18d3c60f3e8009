import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from breakhis_pl import composition, repeating
from breakhis_pl.errors import BreakHisError, ConfigurationError, RunFolderError
from breakhis_pl.repeating import repeating_overrides, with_repeated
from breakhis_pl.run_json import read_run
from tests.programs import run_program


def written(folder: Path, *overrides: str) -> dict[str, Any]:
    """A run.json of a configuration; gives the configuration."""
    composition.register()
    config = composition.plain(composition.compose_checked("train", overrides))
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"config": config, "data": {"split_checksum": ""}}))
    return config


def test_a_run_repeated_from_its_run_json_gives_the_same_bits(finished_run: Path, tmp_path: Path) -> None:
    outcome = run_program("train", f"repeat={finished_run}", "hydra.run.dir=again", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    again = tmp_path / "again"
    for name in ("test/predictions.csv", "test/metrics.json", "split.csv"):
        assert (again / name).read_bytes() == (finished_run / name).read_bytes(), name
    ours, theirs = (torch.load(each / "checkpoints/last.ckpt")["state_dict"] for each in (again, finished_run))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert read_run(again)["config"] == read_run(finished_run)["config"]
    assert "repeat=" not in read_run(again)["command"]
    assert "train.py repeat=" in (again / "report.html").read_text()


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        (
            "data.magnification=[40,200]",
            "data.val_fraction=0.25",
            "data.split=ratio",
            "seed=3",
            "data.eval_batch_size=4",
        ),
        ("model=resnext50", "optimizer=sgd", "scheduler=cosine", "augmentation=none", "trainer=gpu"),
        ("experiment=demo", "trainer.max_epochs=7"),
        ("optimizer=adamw", "optimizer.lr=1e-05", "scheduler=constant", "trainer.limit_train_batches=3"),
    ],
)
def test_any_configuration_is_composed_again(overrides: tuple[str, ...], tmp_path: Path) -> None:
    config = written(tmp_path / "run", *overrides)
    found = repeating_overrides(tmp_path / "run")
    assert composition.plain(composition.compose_checked("train", found)) == config
    assert len(found) < 20


@given(st.text(st.characters(exclude_characters="\0"), min_size=1))
def test_any_text_is_written_so_that_hydra_reads_it(text: str) -> None:
    (override,) = composition.parse_overrides([f"data.root={repeating._written(text)}"])
    assert override.value() == text


def test_keys_given_besides_win(tmp_path: Path) -> None:
    written(tmp_path / "run", "seed=3", "optimizer.lr=0.25")
    given = with_repeated(["-m", f"repeat={tmp_path / 'run'}", "seed=4,5", "model=resnext50"])
    assert (given[0], given[-2:]) == ("-m", ["seed=4,5", "model=resnext50"])
    assert "optimizer.lr=0.25" in given
    assert "seed=3" not in given
    assert "model=resnet18" not in given


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (["repeat="], ConfigurationError, "repeat takes one run folder"),
        (["repeat=a", "repeat=b"], ConfigurationError, "repeat takes one run folder"),
        (["repeat=nothing"], RunFolderError, "run=nothing does not exist"),
    ],
)
def test_what_is_no_run_cannot_be_repeated(arguments: list[str], error: type[BreakHisError], text: str) -> None:
    with pytest.raises(error, match=text):
        with_repeated(arguments)


def test_a_configuration_that_composes_to_another_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "run", "seed=3")
    monkeypatch.setattr(repeating, "_written", lambda _: "4")
    with pytest.raises(RunFolderError, match=r"run\.json cannot be composed: seed would differ"):
        repeating_overrides(tmp_path / "run")
