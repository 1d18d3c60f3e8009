"""Commands that are refused: one message that names the key, exit status 1, nothing left behind."""

from pathlib import Path

import pytest

from tests.programs import TINY, run_program

REFUSED = {
    "optimizer.learning_rte": ["experiment=demo", "optimizer.learning_rte=1"],
    "optimizer.learning_rat": ["experiment=demo", "+optimizer.learning_rat=1"],
    "resnet19": ["model=resnet19"],
    "model.backbone=efficientnet_b0": ["model=efficientnet_b0"],
    "modle": ["modle=resnet18"],
    "data.fold": ["experiment=demo", "data.fold=6"],
    "data.image_size": ["experiment=demo", "data.image_size=0"],
    "the last batch of 54": [*TINY, "data.batch_size=53"],
    "model.dropout": ["model.dropout=1"],
    "data.root=nowhere": ["data.root=nowhere"],
    "optimizer.lr=0.001": ["optimizer.lr=0,001"],
    "--epochs": ["--epochs", "2"],
    "seed=1,2": ["seed=1,2"],
    "nowhere.pth": ["experiment=demo", "model.weights=nowhere.pth"],
    "trainer.monitor": ["experiment=demo", "trainer.monitor=val_loss"],
    "trainer.patience": ["experiment=demo", "trainer.patience=3"],
    "resume": ["resume=nowhere"],
    "is a file": [f"resume={Path(__file__)}"],
    "quotes inside quotes": ["experiment=demo", "hydra.run.dir=with a space/ü"],
    "logger.mlflow.tracking_uri": [
        *("experiment=demo", "logger=mlflow"),
        "logger.mlflow.tracking_uri=http://alice:S3CRET@localhost",
    ],
    "hydra.job.chdir": ["experiment=demo", "hydra.job.chdir=true"],
    "hydra.mode=NONSENSE": ["experiment=demo", "hydra.mode=NONSENSE"],
    "hydra/launcher=joblib": ["experiment=demo", "-m", "seed=0,1", "hydra/launcher=joblib"],
    "--resolve": ["experiment=demo", "--resolve"],
    "NoneType": ["model=null"],
    "optimizer._target_": ["experiment=demo", "optimizer._target_=torch.optim.Nonsense"],
    "model.backbone=resnet1": ["experiment=demo", "model=torchvision", "model.backbone=resnet1"],
    "trainer.strategy": ["-m", "experiment=demo", "trainer=ddp", "seed=0,1"],
    "data.fold=7": ["-m", "experiment=demo", "seed=0,1", "data.fold=1,7"],
}


@pytest.mark.parametrize(("key", "arguments"), REFUSED.items(), ids=list(REFUSED))
def test_a_wrong_command_is_refused(tmp_path: Path, key: str, arguments: list[str], synthetic_cache: Path) -> None:
    outcome = run_program(
        "train", *arguments, f"data.cache_dir={synthetic_cache}", "trainer.progress_bar=false", cwd=tmp_path
    )
    assert outcome.status == 1
    assert key in outcome.err
    assert "S3CRET" not in outcome.err + outcome.out
    assert "Traceback" not in outcome.err + outcome.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("program", "arguments", "key"),
    [
        ("evaluate", [], "run"),
        ("evaluate", ["run=nowhere"], "nowhere"),
        ("evaluate", ["runs=nowhere"], "nowhere"),
        ("evaluate", ["predictions=nowhere.csv"], "nowhere.csv"),
        ("evaluate", ["run=a", "runs=b"], "runs"),
        ("evaluate", ["run=a", "sensitivity=0.9"], "sensitivity"),
        ("evaluate", ["run=a", "ensemble=true"], "ensemble"),
        ("evaluate", ["runs=a", "tta=flips"], "tta=flips"),
        ("evaluate", ["predictions=a.csv", "calibrate=true"], "calibrate: has no effect"),
        ("evaluate", ["predictions=a.csv", "tta=flips"], "tta: has no effect"),
        ("evaluate", ["runs=a", "subset=val"], "subset: has no effect"),
        ("evaluate", ["runs=a", "checkpoint=last"], "checkpoint: has no effect"),
        ("evaluate", ["run=a", "out=b"], "out=b"),
        ("predict", [], "run"),
        ("predict", ["run=nowhere", "images=a.png"], "nowhere"),
        ("predict", ["run=nowhere", "images=a.png", "trainer=cpu"], "trainer.accelerator"),
        ("evaluate", ["run=nowhere", "trainer=cpu"], "trainer.accelerator"),
        ("tune", [], "study"),
    ],
)
def test_the_other_programs_refuse_too(tmp_path: Path, program: str, arguments: list[str], key: str) -> None:
    outcome = run_program(program, *arguments, cwd=tmp_path)
    assert outcome.status == 1
    assert key in outcome.err
    assert "Traceback" not in outcome.err + outcome.out
    assert not list(tmp_path.iterdir())


def test_a_configuration_of_another_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [train]\n")
    outcome = run_program("train", *TINY, "--config-dir", str(tmp_path), "--config-name", "mine", cwd=tmp_path)
    assert outcome.status == 1
    assert "--config-name=mine" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_malformed_file_of_the_user_is_named(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("seed: [5\n")
    outcome = run_program("train", "--config-dir", str(tmp_path), "experiment=mine", cwd=tmp_path)
    assert outcome.status == 1
    assert "mine.yaml" in outcome.err
    assert "Traceback" not in outcome.err


def test_all_faults_are_in_one_message(tmp_path: Path) -> None:
    outcome = run_program("train", "data.fold=6", "seed=-1", "model.dropout=2", cwd=tmp_path)
    assert [line.partition("=")[0] for line in outcome.err.splitlines()] == ["data.fold", "model.dropout", "seed"]


def test_a_folder_that_holds_a_run_is_not_written_to(finished_run: Path, tmp_path: Path) -> None:
    before = (finished_run / "run.json").read_bytes()
    outcome = run_program("train", *TINY, f"hydra.run.dir={finished_run}", cwd=tmp_path)
    assert outcome.status == 1
    assert str(finished_run) in outcome.err
    assert (finished_run / "run.json").read_bytes() == before


def test_a_training_that_diverges_stops_before_it_saves(tmp_path: Path, synthetic_cache: Path) -> None:
    arguments = (
        *TINY,
        f"data.cache_dir={synthetic_cache}",
        "optimizer=sgd",
        "optimizer.lr=1e30",
        "trainer.max_epochs=3",
    )
    outcome = run_program("train", *arguments, "hydra.run.dir=run", cwd=tmp_path)
    assert outcome.status == 1
    assert "optimizer.lr" in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
