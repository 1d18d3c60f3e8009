import errno
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import lightning.pytorch as L
import pandas as pd
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from breakhis_pl.run_folder import RunFolder
from breakhis_pl.train import train
from breakhis_pl.training.callbacks import MovableCheckpoint, learning_rate
from breakhis_pl.training.loggers import SubsetTensorBoardLogger, log_results
from breakhis_pl.training.trainer import make_loggers, make_trainer
from tests.configs import train_config
from tests.programs import TINY


@pytest.mark.parametrize("frozen_epochs", [0, 1])
def test_ddp_looks_for_unused_parameters_if_the_backbone_is_frozen_at_first(tmp_path: Path, frozen_epochs: int) -> None:
    config = train_config("trainer=ddp", "trainer.devices=2", f"training.frozen_epochs={frozen_epochs}")
    trainer = make_trainer(config, RunFolder(tmp_path), device="cpu", precision="32-true")
    assert isinstance(trainer.strategy, DDPStrategy)
    assert trainer.strategy._ddp_kwargs.get("find_unused_parameters", False) is (frozen_epochs > 0)


def test_a_resumed_run_keeps_the_metrics_of_the_csv_logger(tmp_path: Path) -> None:
    config = train_config("logger=csv")
    for start in range(2):
        (logger,) = make_loggers(config, tmp_path, run_ids={"csv": "csv"} if start else {}).values()
        logger.log_metrics({"train_loss": 1.0 - start}, step=start)
        logger.save()
        log_results([logger], {"seed": 0}, {"test_auroc": 0.9})
    tables = [pd.read_csv(path) for path in sorted(tmp_path.glob("*/metrics.csv"))]
    assert [table["train_loss"].dropna().tolist() for table in tables] == [[1.0], [0.0]]
    assert all(table["hp/test_auroc"].dropna().tolist() == [0.9] for table in tables)


@pytest.mark.parametrize(
    ("option", "names"), [("logger=none", []), ("logger=[]", []), ("logger=[tensorboard,csv]", ["tensorboard", "csv"])]
)
def test_any_number_of_loggers_is_possible(option: str, names: list[str], tmp_path: Path) -> None:
    assert list(make_loggers(train_config(option), tmp_path, run_ids={})) == names


def test_the_learning_rate_is_the_highest_of_all_groups() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    groups = [{"params": [parameter], "lr": 1e-4}, {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1e-3}]
    optimizer = torch.optim.SGD(groups)
    assert learning_rate(cast("L.Trainer", SimpleNamespace(optimizers=[optimizer]))) == 1e-3
    assert learning_rate(cast("L.Trainer", SimpleNamespace(optimizers=[]))) == 0


def test_the_best_score_survives_a_move_of_the_run_folder(tmp_path: Path) -> None:
    def checkpoint(folder: str) -> MovableCheckpoint:
        return MovableCheckpoint(
            tmp_path / folder, filename="best", monitor="val_loss", mode="min", enable_version_counter=False
        )

    before, after = checkpoint("before"), checkpoint("after")
    best = str(tmp_path / "before" / "best.ckpt")
    before.best_model_path = before.kth_best_model_path = best
    before.best_model_score = before.kth_value = torch.tensor(0.25)
    before.best_k_models = {best: torch.tensor(0.25)}
    after.load_state_dict(before.state_dict())
    assert after.best_model_score == 0.25
    assert after.best_model_path == str(tmp_path / "after" / "best.ckpt")
    assert list(after.best_k_models) == [after.best_model_path]


def test_a_full_disk_leaves_the_last_checkpoint_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(path: Path, _content: object) -> None:
        path.write_text("half a checkpoint")
        raise OSError(errno.ENOSPC, "No space left on device")

    trainer = make_trainer(train_config("trainer=cpu"), RunFolder(tmp_path), device="cpu", precision="32-true")
    path = tmp_path / "checkpoints" / "last.ckpt"
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "a full TMPDIR"))
    trainer.strategy.checkpoint_io.save_checkpoint({"epoch": 1}, path)
    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(OSError, match=r"last\.ckpt"):
        trainer.strategy.checkpoint_io.save_checkpoint({"epoch": 2}, path)
    monkeypatch.undo()
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.filterwarnings("ignore:Total length of")  # Lightning's, on no validation loader
def test_a_run_may_train_without_evaluating_anything(tmp_path: Path, synthetic_cache: Path) -> None:
    few = (f"data.cache_dir={synthetic_cache}", "trainer.max_epochs=1", "trainer.limit_train_batches=1")
    assert not train(train_config(*TINY, *few), tmp_path / "run", evaluate_on=())
    (row,) = pd.read_csv(tmp_path / "run" / "history.csv").to_dict("records")
    assert {"train_loss", "train_accuracy", "images_per_second"} <= row.keys()
    assert not any(name.startswith(("val_", "test_")) for name in row)


def test_a_resumed_run_replaces_points_after_its_checkpoint(tmp_path: Path) -> None:
    for steps in ((1, 2, 3), (2, 3)):
        logger = SubsetTensorBoardLogger(str(tmp_path))
        for step in steps:
            logger.log_metrics({"test_loss": float(len(steps))}, step=step)
        logger.close()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "test")).Reload().Scalars("loss")
    assert [(each.step, each.value) for each in events] == [(1, 3.0), (2, 2.0), (3, 2.0)]
