import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from breakhis_pl import composition
from breakhis_pl.config import TuneConfig, TuningConfig
from breakhis_pl.door import check_at_the_door
from breakhis_pl.errors import ConfigurationError, RunFolderError
from breakhis_pl.help_texts import help_text
from breakhis_pl.tuning import plan as plans
from breakhis_pl.tuning.plan import STUDY_JSON, check_corners, check_same_study, make_plan, name_of_study
from breakhis_pl.tuning.space import Dimension

SPACES = sorted(file.stem for file in (composition.CONF_FOLDER / "space").glob("*.yaml"))
VALIDATED = "data.val_fraction=0.2"


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    composition.register()
    monkeypatch.setattr(plans, "find_spec", lambda _: True)  # a plan is made without Optuna, which runs it


def defaults(program: str) -> list[object]:
    content = OmegaConf.load(composition.CONF_FOLDER / f"{program}.yaml")
    return [each for each in content.defaults if not str(each).startswith("schema/") and "space" not in each]


def test_tune_has_the_groups_of_train_in_their_order() -> None:
    assert defaults("tune") == defaults("train")


@pytest.mark.parametrize("space", SPACES)
def test_every_space_in_conf_is_possible(space: str, tmp_path: Path) -> None:
    plan = make_plan([f"study={tmp_path}", f"space={space}", VALIDATED])
    check_corners(plan)
    assert len(plan.space) >= 2
    lines = (composition.CONF_FOLDER / "space" / f"{space}.yaml").read_text().splitlines()
    assert lines[0].startswith("# ")
    assert f"{space}" in help_text("tune")


def test_every_key_of_tuning_is_named_in_the_help() -> None:
    for name in TuningConfig.__dataclass_fields__:
        assert f"tuning.{name}" in help_text("tune")


def test_what_the_command_sets_is_not_searched(tmp_path: Path) -> None:
    plan = make_plan([f"study={tmp_path}", "optimizer.lr=0.1", "model.dropout=0.3", VALIDATED])
    assert [each.key for each in plan.space] == ["optimizer.weight_decay", "data.batch_size", "augmentation.rotation"]
    assert plan.overrides == ("optimizer.lr=0.1", "model.dropout=0.3", VALIDATED)
    config = plan.trial_config({"data.batch_size": 16})
    assert (config.optimizer.lr, config.data.batch_size) == (0.1, 16)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.val_fraction=0"], "tuning.metric=val_loss needs validation images"),
        ([], "in data.val_fraction=0.2"),
        ([VALIDATED, "tuning.n_trials=0"], "tuning.n_trials=0 is not possible; expected a number at least 1"),
        ([VALIDATED, "tuning.metric=test_loss"], "tuning.metric=test_loss is not possible; expected one of val_loss"),
        ([VALIDATED, "tuning.pruner=x"], "tuning.pruner=x is not possible; expected one of median, hyperband, none"),
        ([VALIDATED, "tuning.sampler=x"], "tuning.sampler=x is not possible; expected one of tpe, random"),
        ([VALIDATED, "tuning.n_trial=3"], "unknown key tuning.n_trial (did you mean tuning.n_trials?)"),
        ([VALIDATED, "space=x"], "space=x does not exist; options of space: default"),
        ([VALIDATED, "tuning.seeds_per_trial=2", "data.split=ratio"], "is not possible with data.split=ratio"),
        ([VALIDATED, "trainer.max_epochs=2"], "tuning.warmup_epochs=2 leaves nothing to prune of trainer.max_epochs=2"),
        (
            [VALIDATED, "space=optimizer", "optimizer=sgd", "scheduler=cosine", "optimizer.lr=1"],
            "nothing is left to search: the command sets",
        ),
        ([VALIDATED, "~space", "+space={}"], "space"),
    ],
)
def test_what_is_not_possible_is_refused_at_the_door(overrides: list[str], expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(expected)):
        check_at_the_door("tune", [f"study={tmp_path}/study", *overrides])
    assert list(tmp_path.iterdir()) == []


def test_a_study_needs_a_folder_and_takes_no_sweep() -> None:
    with pytest.raises(ConfigurationError, match="study has no value; set it, as in study="):
        check_at_the_door("tune", [VALIDATED])
    with pytest.raises(ConfigurationError, match=r"tune\.py takes one value for each key, not several of -m"):
        check_at_the_door("tune", ["-m", "study=a", VALIDATED])
    with pytest.raises(ConfigurationError, match=r"not several of optimizer\.lr"):
        check_at_the_door("tune", ["study=a", "optimizer.lr=1,2", VALIDATED])


def test_a_missing_optuna_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match="uv sync --extra tune"):
        make_plan([f"study={tmp_path}", VALIDATED])


@pytest.mark.parametrize(
    ("dimension", "expected"),
    [
        (Dimension("optimizer.momentum", "float", low=0.1, high=0.9), "unknown key optimizer.momentum"),
        (Dimension("model.dropout", "float", low=0.1, high=1.5), "model.dropout=1.5 is not possible"),
        (Dimension("data.batch_size", "float", low=1.5, high=9.5), "data.batch_size=1.5 is not possible"),
        (Dimension("optimizer", "choice", choices=("sgd", "adam")), "optimizer=adam does not exist"),
    ],
)
def test_a_key_that_does_not_exist_and_a_bound_beyond_the_keys_own_are_refused(
    dimension: Dimension, expected: str, tmp_path: Path
) -> None:
    plan = replace(make_plan([f"study={tmp_path}", VALIDATED]), space=(dimension,))
    with pytest.raises(ConfigurationError, match=f"(?s){re.escape(expected)}.*this is a bound of the space"):
        check_corners(plan)


def test_another_study_in_the_folder_is_refused_naming_what_differs(tmp_path: Path) -> None:
    plan = make_plan([f"study={tmp_path}", VALIDATED])
    name = name_of_study(plan)
    more = make_plan([f"study={tmp_path}", VALIDATED, "tuning.n_trials=99", "data.root=moved"])
    assert name_of_study(more) == name
    with pytest.raises(RunFolderError, match=r"holds another study: data.fold \(2 there, 3 here\); choose another"):
        check_same_study(make_plan([f"study={tmp_path}", VALIDATED, "data.fold=3"]))
    with pytest.raises(RunFolderError, match=r"space.model.dropout.high \(0.6 there, not here\)"):
        check_same_study(make_plan([f"study={tmp_path}", VALIDATED, "model.dropout=0.1"]))
    with pytest.raises(RunFolderError, match=r"tuning.metric .*val_loss.* there, .*val_auroc.* here"):
        check_at_the_door("tune", [f"study={tmp_path}", VALIDATED, "tuning.metric=val_auroc"])


@pytest.mark.parametrize("text", ["{", '{"name": 1}', '{"name": 1, "asked": {}}'])
def test_a_damaged_study_json_is_said(text: str, tmp_path: Path) -> None:
    plan = make_plan([f"study={tmp_path}", VALIDATED])
    (tmp_path / STUDY_JSON).write_text(text)
    with pytest.raises(RunFolderError, match=r"study.json is (damaged|not the study.json)"):
        check_same_study(plan)


def test_study_json_holds_what_was_asked_for(tmp_path: Path) -> None:
    name_of_study(make_plan([f"study={tmp_path}", VALIDATED, "tuning.seed=5"]))
    content = json.loads((tmp_path / STUDY_JSON).read_text())
    assert content["asked"]["tuning"]["seed"] == 5
    assert content["asked"]["space"]["data.batch_size"] == {"type": "choice", "choices": [16, 32, 64]}
    assert isinstance(composition.compose_checked("tune", [f"study={tmp_path}"]), TuneConfig)


def test_several_processes_for_one_trial_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"trainer\.devices=2 .*: one process trains a trial"):
        make_plan([f"study={tmp_path}", "trainer=ddp", "trainer.devices=2", VALIDATED])
