import re
import shutil
from pathlib import Path

import pytest

from breakhis_pl import composition
from breakhis_pl.composition import compose_checked, expand_sweep, parse_overrides, plain, restored, sweep_choice
from breakhis_pl.config import (
    VARIANTS,
    AdamaxConfig,
    CosineConfig,
    ExponentialConfig,
    SyntheticDataConfig,
    TrainConfig,
)
from breakhis_pl.errors import ConfigurationError

OPTIONS = sorted(
    (folder.name, option.stem)
    for folder in composition.CONF_FOLDER.iterdir()
    if folder.is_dir() and folder.name != "space"  # of tune.py: tests/tuning
    for option in folder.glob("*.yaml")
)
OF_EXTRAS = {("logger", "mlflow"): "mlflow", ("logger", "wandb"): "wandb"}


@pytest.fixture(autouse=True)
def _registered() -> None:
    composition.register()


def test_the_defaults_are_the_reports_protocol() -> None:
    config: TrainConfig = compose_checked("train", [])
    assert (config.data.magnification, config.data.image_size, config.data.batch_size) == ((200,), 224, 32)
    assert (config.data.split, config.data.fold) == ("official", 2)
    assert config.optimizer == AdamaxConfig(lr=5e-4, weight_decay=0.0)
    assert config.scheduler == ExponentialConfig(gamma=0.9)
    assert (config.model.backbone, config.model.weights, config.model.dropout) == ("resnet18", "imagenet", 0.4)
    augmentation = config.augmentation
    assert (augmentation.horizontal_flip, augmentation.vertical_flip, augmentation.rotation) == (0.5, 0.5, 20.0)


@pytest.mark.parametrize(("model", "epochs"), [("resnet18", 15), ("wide_resnet50", 5), ("resnext50", 5)])
def test_each_network_is_trained_as_long_as_in_the_report(model: str, epochs: int) -> None:
    assert compose_checked("train", [f"model={model}"]).trainer.max_epochs == epochs


@pytest.mark.parametrize(
    ("group", "option"),
    [pytest.param(*each, marks=[pytest.mark.extra(OF_EXTRAS[each])] if each in OF_EXTRAS else []) for each in OPTIONS],
)
def test_every_option_in_conf_composes(group: str, option: str) -> None:
    if group == "space":  # tune.py alone has it
        config = compose_checked("tune", [f"space={option}", "study=there", "data.val_fraction=0.2"])
    else:
        config = compose_checked("train", [f"{group}={option}"])
    assert isinstance(config, TrainConfig)


def test_every_option_starts_with_a_comment_and_is_short() -> None:
    for group, option in OPTIONS:
        lines = (composition.CONF_FOLDER / group / f"{option}.yaml").read_text().splitlines()
        assert lines[0].startswith("# "), (group, option)
        assert len(lines) <= 20, (group, option)


def test_options_with_keys_of_their_own_each_have_a_schema() -> None:
    for group, (_, variants) in VARIANTS.items():
        files = {file.stem for file in (composition.CONF_FOLDER / group).glob("*.yaml")}
        assert len(files) == len(variants), group


def test_an_experiment_overrides_its_groups() -> None:
    config = compose_checked("train", ["experiment=demo"])
    assert isinstance(config.data, SyntheticDataConfig)
    assert (config.data.image_size, config.model.weights) == (64, "none")


def test_the_command_line_overrides_an_experiment() -> None:
    assert compose_checked("train", ["experiment=demo", "data.image_size=96"]).data.image_size == 96


def test_the_cosine_schedule_ends_with_the_training() -> None:
    config = compose_checked("train", ["scheduler=cosine", "trainer.max_epochs=7"])
    assert config.scheduler == CosineConfig(T_max=7, eta_min=0.0)


@pytest.mark.parametrize("value", ["200", "200.0", "'200'", "[200]"])
def test_a_magnification_is_a_whole_number_however_it_is_written(value: str) -> None:
    (magnification,) = compose_checked("train", [f"data.magnification={value}"]).data.magnification
    assert isinstance(magnification, int)
    assert magnification == 200


def test_seed_0_and_a_list_of_magnifications_are_taken_as_given() -> None:
    config = compose_checked("train", ["seed=0", "data.magnification=[40,400]"])
    assert (config.seed, config.data.magnification) == (0, (40, 400))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.imge_size=3", "unknown key data.imge_size (did you mean data.image_size?); data has: balance"),
        ("+data.imge_size=3", "unknown key data.imge_size (did you mean data.image_size?); data has: balance"),
        ("++seeed=3", "unknown key seeed (did you mean seed?); the configuration has: augmentation"),
        ("modle=resnet18", "unknown key modle (did you mean model?)"),
        ("optimizer.momentum=0.5", "unknown key optimizer.momentum; optimizer has: _target_, lr, weight_decay"),
        ("model=resnet19", "model=resnet19 does not exist (did you mean model=resnet18?); options of model: resnet18"),
        ("experiment=dmo", "experiment=dmo does not exist (did you mean experiment=demo?)"),
        ("data.fold=6", "data.fold=6 is not possible; expected one of 1, 2, 3, 4, 5"),
        ("data.magnification=300", "data.magnification=300 is not possible; expected one of 40, 100, 200, 400"),
        ("data.magnification=[40,300]", "data.magnification=300 is not possible"),
        ("data.root=''", "data.root is empty; expected any folder that holds files"),
        ("scheduler.gamma=1.5", "scheduler.gamma=1.5 is not possible"),
        (
            "data.image_size=30000",
            "data.image_size=30000 is not possible; expected a number at least 32 and at most 4096",
        ),
        ("data.magnification=[]", "data.magnification=[] is not possible; expected at least one of 40"),
        ("data.magnification=[40,40]", "data.magnification=[40, 40] names one of them twice"),
        ("data.image_size=0", "data.image_size=0 is not possible; expected a number at least 32"),
        ("data.image_size=1.5", "data.image_size=1.5 is not possible"),
        ("data.batch_size=0", "data.batch_size=0 is not possible; expected a number at least 1"),
        ("data.split=random", "data.split=random is not possible; expected one of official, ratio"),
        ("data.test_fraction=1", "data.test_fraction=1.0 is not possible; expected a number above 0 and below 1"),
        ("optimizer.lr=-0.1", "optimizer.lr=-0.1 is not possible; expected a number above 0"),
        ("optimizer.lr=nan", "optimizer.lr=nan is not possible"),
        ("optimizer.lr=inf", "optimizer.lr=inf is not possible"),
        ("model.dropout=1.5", "model.dropout=1.5 is not possible; expected a number at least 0 and below 1"),
        ("model.epochs=null", "model.epochs"),
        ("seed=-1", "seed=-1 is not possible; expected a number at least 0"),
        ("seed=abc", "seed='abc' is not possible"),
        ("trainer.precision=8", "trainer.precision=8 is not possible; expected one of auto, 32-true"),
        ("trainer.max_epochs=${nowhere}", "trainer.max_epochs"),
        ("optimizer._target_=os.system", "optimizer._target_=os.system is not possible; expected one of torch.optim"),
        ("data=null", "must be a string or a list"),
        ("resnet18", "an override is key=value, as in model=resnet18"),
    ],
)
def test_an_impossible_key_or_value_is_refused_with_what_is_possible(override: str, expected: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(expected)):
        compose_checked("train", [parsed.input_line or "" for parsed in parse_overrides([override])])


def test_all_impossible_values_are_in_one_message() -> None:
    with pytest.raises(ConfigurationError) as caught:
        compose_checked("train", ["seed=-1", "data.fold=0", "optimizer.lr=0"])
    assert len(str(caught.value).splitlines()) == 3


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(ConfigurationError, match=r"optimizer\.nesterov=true needs optimizer\.momentum above 0"):
        compose_checked("train", ["optimizer=sgd", "optimizer.nesterov=true", "optimizer.momentum=0"])


def test_a_key_of_real_images_is_refused_for_drawn_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown key data\.root; data has: .*images_per_patient"):
        compose_checked("train", ["data=synthetic", "data.root=data"])


@pytest.mark.parametrize(
    ("file", "overrides"),
    [
        ("train.yaml", []),
        ("data/breakhis.yaml", []),
        ("model/resnet18.yaml", []),
        ("optimizer/sgd.yaml", ["optimizer=sgd"]),
        ("experiment/demo.yaml", ["experiment=demo"]),
    ],
)
def test_a_misspelt_key_in_a_file_is_refused(
    file: str, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(composition.CONF_FOLDER, conf)
    with (conf / file).open("a") as option:
        option.write("\nmisspelt: 1\n")
    monkeypatch.setattr(composition, "CONF_FOLDER", conf)
    with pytest.raises(ConfigurationError, match=r"unknown key .*misspelt.* has: "):
        compose_checked("train", overrides)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "nothing to evaluate: set run=<run folder>, or runs="),
        (["run=a", "runs=b"], "run and runs are both set"),
        (["runs=[]"], r"runs=\[\] is not possible"),
        (["runs=[1,2]"], r"runs=\[1, 2\] is not possible"),
        (["run=a", "subset=nonsense"], "subset=nonsense is not possible; expected one of test, val, train"),
        (["run=a", "sensitivity=1", "calibrate=true"], "sensitivity=1.0 is not possible"),
        (["run=a", "sensitivity=0.9"], "sensitivity=0.9 is for calibrate=true"),
        (["run=a", "tta=turns"], "tta=turns is not possible; expected one of none, flips, dihedral"),
        (["run=a", "tta=flips", "calibrate=true"], "calibrate=true tta=flips: calibration.json is for single views"),
        (["run=a", "checkpoint=x/my_flips.ckpt"], "checkpoint=x/my_flips.ckpt: its results would lie where those of"),
        (["runs=a", "tta=flips"], "runs and tta=flips: a comparison takes the tables in test/"),
        (["run=a", "ensemble=true"], "ensemble=true averages several runs; set runs="),
        (["runs=a", "ensemble=true", "checkpoint=b.ckpt"], "ensemble=true checkpoint=b.ckpt: the test tables"),
        (["runs=a", "ensemble=true", "subset=val"], "ensemble=true subset=val: the test tables"),
        (["runs=a", "ensemble=true", "calibrate=true"], "ensemble=true calibrate=true: the test tables"),
        (
            ["run=a", "trainer=cpu"],
            r"trainer has no options in evaluate\.py; set its keys, as in trainer\.accelerator=",
        ),
        (["run=a", "model=resnet18"], "unknown key model; the configuration has: calibrate"),
        (["run=a", "data.rooot=b"], r"unknown key data\.rooot \(did you mean data\.root\?\); data has: batch_size"),
    ],
)
def test_evaluate_is_told_what_it_needs(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        compose_checked("evaluate", overrides)


def test_a_configuration_survives_run_json() -> None:
    config = compose_checked("train", ["data=synthetic", "optimizer=sgd", "data.magnification=[40,200]", "seed=3"])
    assert restored("train", plain(config)) == config


def test_folders_of_a_sweep_are_named_after_the_swept_values_alone() -> None:
    composition.register(["model", "data.fold"])
    assert sweep_choice(["model=resnet18", "seed=3", "data.fold=2"]) == "resnet18_2"


def test_values_that_fit_no_folder_name_are_replaced_and_kept_apart() -> None:
    composition.register(["model.weights", "data.magnification"])
    names = {
        sweep_choice([f"model.weights={path}", "data.magnification=[40,200]"])
        for path in ("a/b.pth", "a_b.pth", "a=b.pth", "a,b.pth")
    }
    assert len(names) == 4
    assert not any(set(name) & set("=,/[] ") for name in names)


def test_a_sweep_expands_to_every_combination() -> None:
    overrides = parse_overrides(["model=resnet18,resnext50", "seed=range(2)", "data.fold=1"])
    assert expand_sweep(overrides) == [
        ["model=resnet18", "seed=0", "data.fold=1"],
        ["model=resnet18", "seed=1", "data.fold=1"],
        ["model=resnext50", "seed=0", "data.fold=1"],
        ["model=resnext50", "seed=1", "data.fold=1"],
    ]
