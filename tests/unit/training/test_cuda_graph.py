"""Captured train steps, on a CPU: a tape stands for the CUDA graph.

Like a graph, the tape keeps the operations of a step with the tensors that they read and write, and all numbers as
constants. Recording changes nothing, reading a value on the host is an error, and a replay runs the same operations.
"""

import copy
import csv
import importlib
import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_leaves

from breakhis_pl.models.classifier import Classifier, mix
from breakhis_pl.training import cuda_graph
from breakhis_pl.training.cuda_graph_callback import CudaGraphs
from tests.programs import TINY, run_program

aten = torch.ops.aten
READS_ON_HOST = (aten._local_scalar_dense.default, aten.nonzero.default, aten.lift_fresh.default)


class SmallNetwork(nn.Sequential):
    """Batch norm between two convolutions; ten times as fast as a ResNet."""

    def __init__(self) -> None:
        middle = (nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2))
        super().__init__(*middle, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Tape(TorchDispatchMode):
    """Operations of a step, and what the tensors that they overwrite held before."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        if function in READS_ON_HOST:
            raise RuntimeError(f"{function}: operation not permitted when stream is capturing")
        names = [each.name for each in function._schema.arguments]
        given = dict(zip(names, arguments, strict=False)) | keywords
        written = [each.name for each in function._schema.arguments if each.alias_info and each.alias_info.is_write]
        if "running_mean" in given and given.get("training", given.get("train")):
            written += ["running_mean", "running_var"]  # which the schema does not tell
        for tensor in tree_iter([given[name] for name in written if name in given]):
            if isinstance(tensor, Tensor):
                self.before.append((tensor, tensor.clone()))
        result = function(*arguments, **keywords)
        self.calls.append((function, arguments, keywords, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for function, arguments, keywords, result in self.calls:
            again = function(*arguments, **keywords)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def record(step: Callable[[], Tensor], _: object) -> tuple[Callable[[], None], Tensor]:
    """Stand for `cuda_graph.capture`."""
    tape = Tape()
    try:
        with tape:
            result = step()
    finally:
        cuda_graph.restore(tape.before[::-1])
    return tape.replay, result


def rerun(step: Callable[[], Tensor], _: object) -> tuple[Callable[[], None], Tensor]:
    """Stand for `cuda_graph.capture` without recording: a replay runs the step anew, with the constants of the day."""
    loss = torch.zeros(())
    return lambda: loss.copy_(step()), loss


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Capture on the CPU; the list grows by the sample indices of every replay."""
    indices: list[Tensor] = []
    original = cuda_graph.StepGraph.__call__

    def call(graph: cuda_graph.StepGraph, batch: Tensor) -> Tensor:
        indices.append(batch)
        return original(graph, batch)

    monkeypatch.setattr(cuda_graph.StepGraph, "__call__", call)
    monkeypatch.setattr(cuda_graph, "capture", record)
    monkeypatch.setattr(cuda_graph, "side_stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda _: None)
    for name in ("adamax", "adam"):
        module = importlib.import_module(f"torch.optim.{name}")
        monkeypatch.setattr(module, "_get_capturable_supported_devices", lambda **_: ["cpu"])
    monkeypatch.setattr("breakhis_pl.train.reason_against_cuda_graph", lambda _, **__: None)
    return indices


@pytest.fixture
def arguments(synthetic_cache: Path) -> tuple[str, ...]:
    """Two epochs of seven steps or so, the last one of fewer images."""
    network = ("model.library=python", f"model.backbone=tests.unit.training.test_cuda_graph.{SmallNetwork.__name__}")
    few = (
        *network,
        "trainer.max_epochs=2",
        "data.batch_size=9",
        "trainer.limit_train_batches=null",
        "optimizer.lr=1e-3",
    )
    return (*TINY, f"data.cache_dir={synthetic_cache}", "gallery=0", *few)


def train(cwd: Path, *arguments: str, run: str) -> Path:
    outcome = run_program("train", *arguments, f"hydra.run.dir={run}", cwd=cwd)
    assert outcome.status == 0, outcome.err
    return cwd / run


def column(run: Path, name: str) -> list[float]:
    with (run / "history.csv").open() as table:
        return [float(row[name]) for row in csv.DictReader(table)]


def weights(run: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return state


STRONG = (
    "augmentation=strong",
    "training.mixup=0.4",
    "model.dropout=0.5",
    "training.ema_decay=0.9",
    "data.balance=loss",
)

HEAD_FIRST = ("training.frozen_epochs=1",)


def test_replayed_steps_train_as_steps_do(tmp_path: Path, arguments: tuple[str, ...], request: Any) -> None:
    plain = train(tmp_path, *arguments, run="plain")
    replays = request.getfixturevalue("replays")
    replayed = train(tmp_path, *arguments, run="replayed")
    assert len({tuple(indices.tolist()) for indices in replays}) == len(replays) >= 4
    assert all(len(indices) == 9 for indices in replays)  # the last batch of an epoch is smaller
    for name in ("train_loss", "train_accuracy", "test_loss"):
        assert column(replayed, name) == pytest.approx(column(plain, name), rel=2e-3), name
    assert json.loads((plain / "run.json").read_text())["no_cuda_graph"] == "the device is cpu"
    assert json.loads((replayed / "run.json").read_text())["no_cuda_graph"] is None
    (optimizer,) = torch.load(replayed / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"]
    assert all(group["capturable"] is False and isinstance(group["lr"], float) for group in optimizer["param_groups"])


def test_the_captured_forward_pass_has_the_precision_of_the_run(
    tmp_path: Path, arguments: tuple[str, ...], replays: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    precisions = set()

    def look(step: Callable[[], Tensor], _: object) -> tuple[Callable[[], None], Tensor]:
        replay, loss = record(step, None)
        calls = replay.__self__.calls  # type: ignore[attr-defined]  # of the tape
        precisions.update(values[0].dtype for function, values, *_ in calls if function is aten.convolution.default)
        return replay, loss

    monkeypatch.setattr(cuda_graph, "capture", look)
    train(tmp_path, *arguments, "trainer.precision=bf16-mixed", "trainer.max_epochs=1", run="run")
    assert replays
    assert precisions == {torch.bfloat16}


def test_an_optimizer_that_cannot_be_captured_steps_outside(
    tmp_path: Path, arguments: tuple[str, ...], request: Any
) -> None:
    options = ("optimizer=sgd", "optimizer.lr=1e-3", "scheduler=cosine", *HEAD_FIRST)
    plain = train(tmp_path, *arguments, *options, run="plain")
    replays = request.getfixturevalue("replays")
    replayed = train(tmp_path, *arguments, *options, run="replayed")
    assert len(replays) >= 4
    for name in ("train_loss", "train_accuracy", "test_loss"):
        assert column(replayed, name) == pytest.approx(column(plain, name), rel=1e-5), name


@pytest.mark.parametrize(
    "options",
    [
        (*STRONG, "task=subtype", "data.balance=loss"),
        ("optimizer=adamw", "scheduler=cosine", "training.frozen_epochs=1"),
    ],
    ids=["all that draws numbers", "a schedule"],
)
def test_no_number_of_a_step_is_frozen(
    tmp_path: Path,
    arguments: tuple[str, ...],
    options: tuple[str, ...],
    replays: list[Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replayed = train(tmp_path, *arguments, *options, run="replayed")
    assert len(replays) >= 4
    monkeypatch.setattr(cuda_graph, "capture", rerun)
    anew = train(tmp_path, *arguments, *options, run="anew")
    for name, value in weights(anew).items():
        assert torch.equal(weights(replayed)[name], value), name


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(
    tmp_path: Path, arguments: tuple[str, ...], replays: list[Tensor]
) -> None:
    whole = train(tmp_path, *arguments, *STRONG, run="whole")
    train(tmp_path, *arguments, *STRONG, "trainer.max_epochs=1", run="run")
    n_before = len(replays)
    outcome = run_program("train", "resume=run", "trainer.max_epochs=2", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    assert len(replays) > n_before
    for name, value in weights(whole).items():
        assert torch.equal(weights(tmp_path / "run")[name], value), name


def test_a_step_that_cannot_be_captured_trains_without_and_run_json_says_so(
    tmp_path: Path, arguments: tuple[str, ...], replays: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Classifier.train_loss

    def train_loss(classifier: Classifier, logits: Tensor, targets: Tensor, given: Tensor | None = None) -> Tensor:
        return plain(classifier, logits, targets, given) * (1.0 if logits.sum().item() else 2.0)

    monkeypatch.setattr(Classifier, "train_loss", train_loss)
    run = train(tmp_path, *arguments, run="run")
    assert replays == []
    assert "cannot be captured" in json.loads((run / "run.json").read_text())["no_cuda_graph"]
    outcome = run_program("train", *arguments, "trainer.cuda_graphs=true", "hydra.run.dir=required", cwd=tmp_path)
    assert outcome.status == 1
    assert "trainer.cuda_graphs=true" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_replay_that_differs_from_the_step_is_not_used(
    tmp_path: Path, arguments: tuple[str, ...], replays: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def do_nothing(step: Callable[[], Tensor], _: object) -> tuple[Callable[[], None], Tensor]:
        _, loss = record(step, None)
        return lambda: None, loss

    monkeypatch.setattr(cuda_graph, "capture", do_nothing)
    run = train(tmp_path, *arguments, run="run")
    assert replays == []
    assert "a replay differs" in json.loads((run / "run.json").read_text())["no_cuda_graph"]


def test_a_loss_that_is_not_finite_ends_a_replayed_run(
    tmp_path: Path, arguments: tuple[str, ...], replays: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = cuda_graph.StepGraph.__call__

    def spoil(graph: cuda_graph.StepGraph, indices: Tensor) -> Tensor:
        graph.parameters[0].data.fill_(torch.nan)
        return original(graph, indices)

    monkeypatch.setattr(cuda_graph.StepGraph, "__call__", spoil)
    outcome = run_program("train", *arguments, "hydra.run.dir=run", cwd=tmp_path)
    assert len(replays) == 1
    assert outcome.status == 1
    assert "is not finite" in outcome.err


def test_a_mixed_batch_holds_each_item_and_the_one_before_it() -> None:
    values = torch.tensor([[1.0], [2.0], [4.0]])
    assert mix(values, torch.tensor(0.75)).flatten().tolist() == [1.75, 1.75, 3.5]
    assert math.isclose(mix(values, torch.tensor(0.3)).sum().item(), 7.0, rel_tol=1e-6)


def test_an_optimizer_may_count_its_steps_on_the_host() -> None:
    checkpoint = {"optimizer_states": [{"param_groups": [{"lr": 0.1}], "state": {0: {"step": 3}, 1: {}}}]}
    saved = copy.deepcopy(checkpoint)
    CudaGraphs(batch_size=1, is_required=False).on_save_checkpoint(None, None, saved)  # type: ignore[arg-type]
    assert saved == checkpoint
