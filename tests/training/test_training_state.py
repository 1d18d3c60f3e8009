import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch

from breakhis_pl.composition import restored
from breakhis_pl.engine import make_optimizers, make_trainer
from breakhis_pl.errors import CheckpointError
from breakhis_pl.models.classifier import Classifier
from breakhis_pl.run_json import read_run
from breakhis_pl.training.averaging import OWN_WEIGHTS, AveragedWeights
from breakhis_pl.training.checkpoints import LAST_CHECKPOINT
from breakhis_pl.training.training_state import check_training_state
from tests.models.hostile_files import nested
from tests.programs import run_program

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def whole(finished_run: Path) -> dict[str, Any]:
    """What a run of two epochs wrote."""
    content: dict[str, Any] = torch.load(finished_run / LAST_CHECKPOINT, weights_only=True)
    return content


@pytest.fixture(scope="module")
def going_on(finished_run: Path) -> tuple[L.Trainer, Classifier]:
    """What that run would go on with."""
    config = restored("train", read_run(finished_run)["config"])
    trainer = make_trainer(config, accelerator="cpu", precision="32-true", callbacks=[])
    make = lambda parameters: make_optimizers(config, parameters)  # noqa: E731
    return trainer, Classifier("resnet18", dropout=0.4, make_optimizers=make)


def check(content: dict[str, Any], going_on: tuple[L.Trainer, Classifier]) -> None:
    trainer, classifier = going_on
    check_training_state(content, Path("a.ckpt"), trainer=trainer, classifier=classifier, history="History")


def put(value: object, *place: Any) -> Change:
    """Puts a value in some place of a checkpoint."""

    def change(content: dict[str, Any]) -> None:
        inner: Any = content
        for part in place[:-1]:
            inner = inner[part]
        inner[place[-1]] = value

    return change


def drop(*place: Any) -> Change:
    """Takes a value out."""

    def change(content: dict[str, Any]) -> None:
        inner: Any = content
        for part in place[:-1]:
            inner = inner[part]
        del inner[place[-1]]

    return change


ROWS = ("callbacks", "History", "rows")
OPTIMIZER = ("optimizer_states", 0)
KEPT = (*OPTIMIZER, "state", 3)
GROUP = (*OPTIMIZER, "param_groups", 0)
FIT = ("loops", "fit_loop")
TARGET = {"_target_": "os.mkdir", "path": "ran"}


def test_what_a_run_wrote_is_gone_on_with(whole: dict[str, Any], going_on: tuple[L.Trainer, Classifier]) -> None:
    before = copy.deepcopy(whole)
    check(whole, going_on)
    assert before.keys() == whole.keys()
    more = copy.deepcopy(whole)
    put(None, *FIT, "of a later Lightning")(more)
    drop("lr_schedulers", 0, "_is_initial")(more)  # older releases of torch have none
    check(more, going_on)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (drop("pytorch-lightning_version"), "its version of Lightning is None, not 2.x"),
        (put("1.9.5", "pytorch-lightning_version"), "its version of Lightning is '1.9.5'"),
        (put("2.\x1b", "pytorch-lightning_version"), r"its version of Lightning is '2\.\\x1b'"),
        (put(7, "epoch"), "it is of epoch 8, counts 2 epochs, and has a history of 2"),
        (drop("loops"), "loops is None, not a dict"),
        (put("x", *FIT), "fit_loop is 'x', not a dict"),
        (drop(*FIT, "epoch_progress", "total", "ready"), "fit_loop.epoch_progress.total has no 'ready'"),
        (put("x" * 1000, *FIT, "epoch_progress", "total", "ready"), r"total\.ready is 'x{60}…' \(1,000 characters\)"),
        (put(True, *FIT, "epoch_progress", "total", "ready"), r"total\.ready is True"),
        (put(9, *FIT, "epoch_progress", "current", "processed"), "it is of epoch 2, counts 9 epochs"),
        (put(TARGET, "callbacks"), "History is None, not a dict"),
        (put("soon", "callbacks", "History", "train_seconds"), "History holds no rows, or no time"),
        (put(10**400, "callbacks", "History", "train_seconds"), "History holds no rows, or no time"),
        (put(nested(list), *ROWS), "History row 1 is a list, not a dict"),
        (put([], *ROWS), "it is of epoch 2, counts 2 epochs, and has a history of 0"),
        (put({"epoch": 1}, *ROWS, 0), "History row 1 has other columns than epoch, images_per_second"),
        (put(0.5, *ROWS, 1, "more"), "History row 2 has other columns than"),
        (put(3, *ROWS, 1, "epoch"), "History row 2 is no row of that epoch"),
        (put(float("nan"), *ROWS, 0, "test_loss"), "History row 1 is no row of that epoch"),
        (put([], "optimizer_states"), "optimizer_states is no list of 1"),
        (put([TARGET], "optimizer_states"), "optimizer_states has no 1 groups of parameters"),
        (put(TARGET, *GROUP), "param_groups has a strange '_target_'"),
        (drop(*GROUP, "betas"), "param_groups has no 'betas'"),
        (put([0.9], *GROUP, "betas"), r"param_groups\.betas is no list of 2"),
        (put((0.5, 0.999), *GROUP, "betas"), "its optimizer has betas=a tuple, not a tuple"),
        (put(1.0, *GROUP, "weight_decay"), r"its optimizer has weight_decay=1\.0, not 0\.0"),
        (put(float("nan"), *GROUP, "lr"), r"param_groups\.lr is nan"),
        (put(-1.0, *GROUP, "lr"), r"its learning rate is -1\.0"),
        (put(5.0, *GROUP, "lr"), "its schedule is not that of its optimizer after 2 epochs"),
        (put({}, *OPTIMIZER, "state"), "its optimizer keeps nothing"),
        (put({}, *OPTIMIZER, "state", 999), "its optimizer keeps something of parameter 999"),
        (drop(*KEPT, "exp_inf"), "its optimizer keeps other things of parameter 3 than step, exp_avg, exp_inf"),
        (put(torch.zeros(3), *KEPT, "exp_avg"), "exp_avg of parameter 3 is no tensor of shape"),
        (put(torch.zeros(3), *KEPT, "step"), r"step of parameter 3 is no tensor of shape \(\)"),
        (put(torch.tensor(torch.inf), *KEPT, "step"), "step of parameter 3 is not finite"),
        (drop("lr_schedulers"), "lr_schedulers is no list of 1"),
        (put("x", "lr_schedulers", 0, "get_lr"), "lr_schedulers has a strange 'get_lr'"),
        (put("0.9", "lr_schedulers", 0, "gamma"), r"lr_schedulers\.gamma is '0\.9'"),
        (put(5, "lr_schedulers", 0, "last_epoch"), "its schedule is not that of its optimizer"),
    ],
)
def test_what_a_run_never_writes_is_named(
    whole: dict[str, Any], going_on: tuple[L.Trainer, Classifier], change: Change, text: str
) -> None:
    content = copy.deepcopy(whole)
    change(content)
    with pytest.raises(CheckpointError, match=text) as caught:
        check(content, going_on)
    assert str(caught.value).startswith("a.ckpt cannot be gone on with: ")
    assert str(caught.value).endswith("or delete the file, and the run starts from its first epoch")
    assert str(caught.value).isprintable()


def test_a_run_with_averaged_weights_finds_its_own_beside_them(
    whole: dict[str, Any], going_on: tuple[L.Trainer, Classifier], finished_run: Path
) -> None:
    config = restored("train", read_run(finished_run)["config"])
    trainer = make_trainer(config, accelerator="cpu", precision="32-true", callbacks=[AveragedWeights(0.9)])
    averaging = (trainer, going_on[1])
    content = copy.deepcopy(whole)
    with pytest.raises(CheckpointError, match="weights_before_averaging is None, not a dict"):
        check(content, averaging)
    content[OWN_WEIGHTS] = dict(content["state_dict"])
    with pytest.raises(CheckpointError, match="averaged weights is None, not a dict"):
        check(content, averaging)
    content["callbacks"]["AveragedWeights"] = {"n_steps": 4}
    check(content, averaging)
    with pytest.raises(CheckpointError, match="it has weights_before_averaging, and this run averages none"):
        check(content, going_on)
    for n_steps in (0, True, 1.5, 10**400, None):
        content["callbacks"]["AveragedWeights"] = {"n_steps": n_steps}
        with pytest.raises(CheckpointError, match=r"it counts .* averaged steps"):
            check(content, averaging)
    content["callbacks"]["AveragedWeights"] = {"n_steps": 4}
    for name, value in (("network.conv1.weight", torch.zeros(2)), ("network.bn1.weight", torch.full((64,), torch.nan))):
        broken = content | {OWN_WEIGHTS: content[OWN_WEIGHTS] | {name: value}}
        with pytest.raises(CheckpointError, match=f"weights_before_averaging does not fit resnet18; .*{name}"):
            check(broken, averaging)


def test_a_classifier_that_is_not_trained_cannot_go_on(
    whole: dict[str, Any], going_on: tuple[L.Trainer, Classifier]
) -> None:
    with pytest.raises(TypeError, match="expected an optimizer and a schedule, got NoneType"):
        check(whole, (going_on[0], Classifier("resnet18", dropout=0.4)))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])  # adamax: tests/test_resume.py
def test_every_optimizer_and_schedule_goes_on(optimizer: str, finished_run: Path, tmp_path: Path) -> None:
    scheduler = {"adamw": "cosine", "sgd": "constant"}[optimizer]
    cache = read_run(finished_run)["config"]["data"]["cache_dir"]
    own = ("hydra.run.dir=run", f"optimizer={optimizer}", f"scheduler={scheduler}", f"data.cache_dir={cache}")
    repeated = run_program("train", f"repeat={finished_run}", "gallery=0", *own, cwd=tmp_path)
    assert repeated.status == 0, repeated.err
    (tmp_path / "run" / "report.html").unlink()  # as if it had been killed before its page
    resumed = run_program("train", "resume=run", cwd=tmp_path)
    assert (resumed.status, resumed.err) == (0, "")
    assert "goes on after epoch 2" in resumed.out
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_strangers_training_state_ends_in_one_line(finished_run: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    content = copy.deepcopy(whole)
    content["lr_schedulers"][0]["step"] = TARGET
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "run.json").write_bytes((finished_run / "run.json").read_bytes())
    torch.save(content, folder / LAST_CHECKPOINT)
    outcome = run_program("train", "resume=run", "trainer.max_epochs=3", cwd=tmp_path)
    assert outcome.status == 1
    assert outcome.err.startswith(
        "run/checkpoints/last.ckpt cannot be gone on with: lr_schedulers has a strange 'step'"
    )
    assert outcome.err.count("\n") == 1
