"""Checkpoints and weights from other hands, as those who evaluate and train meet them; and mutated ones."""

import copy
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from breakhis_pl.data.breakhis import CLASS_NAMES
from breakhis_pl.errors import CheckpointError, WeightsError
from breakhis_pl.models import backbones
from breakhis_pl.models.backbones import Backbone, build_network, load_pretrained
from breakhis_pl.models.classifier import Classifier
from breakhis_pl.training.checkpoints import load_checkpoint
from tests.evaluation.mutations import mutated_bytes
from tests.models.hostile_files import hostile_files, nested, saved
from tests.programs import TINY, Outcome, run_program

KINDS = (
    "a pickle that calls",
    "an archive that calls",
    "a program",
    "safetensors",
    "memory for the asking",
    "compressed",
)
WEIGHT = "network.conv1.weight"
N_SHORT, N_LONG = 200, 2_000
LONGEST_S = 5
STRANGE = (
    None,
    True,
    -1,
    2**80,
    1e308,
    float("nan"),
    "",
    "x" * 1_000_000,
    "\x1b[31m\n",
    [],
    [1, 2, 3],
    {},
    b"resnet18",
)


class Small(nn.Module):
    """Stands for a torchvision network: a convolution, batch norm, and a last layer to be replaced."""

    def __init__(self, weights: None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.bn1 = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 10)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes resnet18 so small that thousands of its checkpoints can be written."""
    imagenet: Any = None
    monkeypatch.setattr(backbones, "BACKBONES", {"resnet18": Backbone("small", Small, imagenet)})


def whole_content() -> dict[str, Any]:
    """What training writes, without optimizer and progress."""
    return {
        "epoch": 4,
        "state_dict": dict(Classifier("resnet18", dropout=0.4).state_dict()),
        "breakhis_pl": {"backbone": "resnet18", "dropout": 0.4, "class_names": list(CLASS_NAMES)},
        "BreakHisDataModule": {
            "mean": [0.7, 0.6, 0.7],
            "std": [0.1, 0.2, 0.1],
            "image_size": 32,
            "split_checksum": "sha256:0",
        },
    }


def evaluate(run: Path, checkpoint: Path) -> Outcome:
    return run_program("evaluate", f"run={run}", f"checkpoint={checkpoint}", "gallery=0", cwd=checkpoint.parent)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_refuses_a_strangers_checkpoint_in_one_line_and_nothing_runs(
    finished_run: Path, tmp_path: Path, kind: str
) -> None:
    content, expected = hostile_files(tmp_path / "ran")[kind]
    (tmp_path / "a.ckpt").write_bytes(content)
    outcome = evaluate(finished_run, tmp_path / "a.ckpt")
    assert outcome.status == 1
    assert outcome.err.startswith(f"{tmp_path / 'a.ckpt'} is no checkpoint: it ")
    assert expected in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_train_refuses_a_strangers_weights_in_one_line_and_nothing_runs(
    tmp_path: Path, drawn_cache: Path, kind: str
) -> None:
    content, _ = hostile_files(tmp_path / "ran")[kind]
    (tmp_path / "a.pth").write_bytes(content)
    arguments = (*TINY[:-1], f"data.cache_dir={drawn_cache}", f"model.weights={tmp_path / 'a.pth'}", "trainer=cpu")
    outcome = run_program("train", *arguments, "hydra.run.dir=run", cwd=tmp_path)
    assert outcome.status == 1
    assert outcome.err.startswith(f"model.weights={tmp_path / 'a.pth'} is no state dict: it ")
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "run" / "run.json").exists()


def test_targets_and_settings_of_a_strangers_checkpoint_are_not_looked_at(finished_run: Path, tmp_path: Path) -> None:
    content = torch.load(finished_run / "checkpoints" / "last.ckpt", weights_only=True)
    target = {"_target_": "os.mkdir", "path": str(tmp_path / "ran")}
    own = {key: content[key] for key in ("epoch", "state_dict", "breakhis_pl", "BreakHisDataModule")}
    strange = {"hyper_parameters": target, "optimizer_states": [target], "callbacks": target, "loops": target}
    own["breakhis_pl"] = own["breakhis_pl"] | target
    torch.save(own | strange, tmp_path / "a.ckpt")
    outcome = evaluate(finished_run, tmp_path / "a.ckpt")
    assert outcome.status == 0, outcome.err
    assert not (tmp_path / "ran").exists()
    own["breakhis_pl"]["backbone"] = target
    torch.save(own, tmp_path / "b.ckpt")
    outcome = evaluate(finished_run, tmp_path / "b.ckpt")
    assert outcome.status == 1
    assert "backbone is a dict, not one of resnet18" in outcome.err
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_not_finite_are_not_evaluated(finished_run: Path, tmp_path: Path) -> None:
    content = torch.load(finished_run / "checkpoints" / "last.ckpt", weights_only=True)
    del content["optimizer_states"]
    content["state_dict"]["network.conv1.weight"][0, 0, 0, 0] = torch.nan
    torch.save(content, tmp_path / "a.ckpt")
    outcome = evaluate(finished_run, tmp_path / "a.ckpt")
    assert outcome.status == 1
    assert "its weights do not fit resnet18; not finite: network.conv1.weight; expected a checkpoint" in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.usefixtures("small")
def test_what_training_wrote_is_rebuilt(tmp_path: Path) -> None:
    torch.save(whole_content(), tmp_path / "a.ckpt")
    found = load_checkpoint(tmp_path / "a.ckpt")
    assert (found.mean, found.std) == ((0.7, 0.6, 0.7), (0.1, 0.2, 0.1))
    assert (found.image_size, found.split_checksum, found.epoch) == (32, "sha256:0", 5)
    assert found.classifier.dropout == 0.4


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("part", "key", "value", "expected"),
    [
        ("breakhis_pl", "class_names", ["malignant", "benign"], r"class_names is not \['benign', 'malignant'\]"),
        ("breakhis_pl", "class_names", nested(list), "class_names is not"),
        ("breakhis_pl", "backbone", "x" * 1_000_000, r"backbone is 'x{60}…' \(1,000,000 characters\), not"),
        ("breakhis_pl", "backbone", ["resnet18"], "backbone is a list, not one of"),
        ("breakhis_pl", "backbone", "os.system\n", r"backbone is 'os\.system\\n', not one of"),
        ("breakhis_pl", "dropout", 1.0, "dropout is 1.0"),
        ("breakhis_pl", "dropout", float("nan"), "dropout is nan"),
        ("breakhis_pl", "dropout", False, "dropout is False"),
        ("breakhis_pl", "dropout", torch.zeros(()), "dropout is a Tensor"),
        ("BreakHisDataModule", "mean", [0.5, 0.5], "mean is a list, not a list of three numbers"),
        ("BreakHisDataModule", "mean", [0.5, 0.5, "0.5"], "mean is '0.5'"),
        ("BreakHisDataModule", "mean", [0.5, 0.5, 10**300], "mean is 1000000"),
        ("BreakHisDataModule", "std", [0.5, 0.5, 0.0], "std is 0.0"),
        ("BreakHisDataModule", "std", [0.5, 0.5, float("inf")], "std is inf"),
        ("BreakHisDataModule", "std", {"a": 1}, "std is a dict"),
        ("BreakHisDataModule", "image_size", 10**9, "image_size is 1000000000, not a whole number from 32 to 4,096"),
        ("BreakHisDataModule", "image_size", 32.0, "image_size is 32.0"),
        ("BreakHisDataModule", "split_checksum", 1, "split_checksum is 1, not a text"),
        (None, "epoch", -1, "epoch is -1, not a whole number from 0"),
        (None, "epoch", True, "epoch is True"),
        (None, "epoch", "5", "epoch is '5'"),
        (None, "state_dict", [1], "is no checkpoint of breakhis_pl"),
        (None, "breakhis_pl", None, "is no checkpoint of breakhis_pl"),
        (None, "BreakHisDataModule", "x", "is no checkpoint of breakhis_pl"),
        ("state_dict", WEIGHT, torch.zeros(4, 3, 5, 5), r"shape: network\.conv1\.weight \(4, 3, 5, 5\) "),
        ("state_dict", WEIGHT, torch.zeros(1).expand(10**9), r"shape: network\.conv1\.weight \(1000000000,"),
        ("state_dict", WEIGHT, torch.zeros(4, 3, 3, 3).long(), "type: network.conv1.weight int64 instead"),
        ("state_dict", WEIGHT, nested(list), r"type: network\.conv1\.weight list instead of float32"),
        ("state_dict", "network.bn1.running_var", torch.full((4,), torch.inf), "not finite: network.bn1.running_var"),
        ("state_dict", "x" * 1_000_000, torch.zeros(1), r"unexpected: 'x{60}…' \(1,000,000 characters\)"),
        ("state_dict", "a\n\x1b[31m", torch.zeros(1), r"unexpected: 'a\\n\\x1b\[31m'"),
        ("state_dict", 7, torch.zeros(1), "unexpected: 7"),
    ],
)  # fmt: skip
def test_values_that_training_never_writes_are_named(
    tmp_path: Path, part: str | None, key: Any, value: object, expected: str
) -> None:
    content = whole_content()
    (content if part is None else content[part])[key] = value
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=expected) as caught:
        load_checkpoint(tmp_path / "a.ckpt")
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'a.ckpt'} ")
    assert text.isprintable()
    assert len(text) < 500 + len(str(tmp_path))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("part", ["breakhis_pl", "BreakHisDataModule", "state_dict", None])
def test_values_that_are_missing_are_named(tmp_path: Path, part: str | None) -> None:
    whole = whole_content()
    for key in whole if part is None else whole[part]:
        content = copy.deepcopy(whole)
        del (content if part is None else content[part])[key]
        torch.save(content, tmp_path / "a.ckpt")
        if key == "split_checksum":
            assert load_checkpoint(tmp_path / "a.ckpt").split_checksum is None
            continue
        with pytest.raises(CheckpointError, match="is no checkpoint" if part is None and key != "epoch" else key):
            load_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            torch.zeros(1).expand(10**9),
            r"belongs to another network than resnet18; shape: conv1\.weight \(1000000000,\)",
        ),
        (
            torch.zeros(4, 3, 3, 3, dtype=torch.int8),
            r"another network than resnet18; type: conv1\.weight int8 instead of",
        ),
        (torch.full((4, 3, 3, 3), torch.nan), r"holds values that are not finite: conv1\.weight"),
    ],
    ids=["shape", "type", "not finite"],
)
def test_weights_that_do_not_fit_are_named_before_anything_is_computed(
    tmp_path: Path, value: Tensor, expected: str
) -> None:
    state = Small().state_dict() | {"conv1.weight": value}
    torch.save(dict(state), tmp_path / "a.pth")
    began = time.monotonic()
    with pytest.raises(WeightsError, match=expected):
        load_pretrained(build_network("resnet18", dropout=0.4), name="resnet18", weights=str(tmp_path / "a.pth"))
    assert time.monotonic() - began < LONGEST_S


def content_of(**facts: Any) -> dict[str, Any]:
    """A checkpoint that says of its network what is given, with next to no weights."""
    content = whole_content()
    content["state_dict"] = {"network.backbone.conv1.weight": torch.zeros(2)}
    content["breakhis_pl"] |= facts
    return content


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"library": "os"}, "library is 'os', not one of report, torchvision, timm"),
        ({"library": ["timm"]}, "library is a list, not one of"),
        ({"head": "a.b.Head"}, "head is 'a.b.Head', not one of report, linear, svm"),
        ({"is_frozen": 1}, "is_frozen is 1, neither true nor false"),
        ({"arguments": [1]}, "arguments is no short dict"),
        ({"arguments": {str(number): 1 for number in range(100)}}, "arguments is no short dict"),
        ({"arguments": {"img_size": 32}}, r"model\.arguments=.* is for model=timm"),
        ({"library": "torchvision", "backbone": "os.system"}, r"model\.backbone=os\.system is not possible"),
        ({"library": "torchvision", "backbone": "resnet50.x"}, r"model\.backbone=resnet50\.x is not possible"),
        ({"library": "timm", "backbone": "hf-hub:a/b"}, "model.backbone=hf-hub:a/b is not possible"),
        ({"library": "timm", "backbone": "resnet10t", "arguments": {"pretrained": True}}, "has 'pretrained'"),
        ({"library": "timm", "backbone": "resnet10t", "arguments": {"checkpoint_path": "/a"}}, "has 'checkpoint_path'"),
        ({"library": "timm", "backbone": "resnet10t", "arguments": {"depth": 2}}, "cannot be built with"),
        (
            {"library": "timm", "backbone": "vit_tiny_patch16_224", "arguments": {"depth": 10**6}},
            "depth=1000000 is not",
        ),
        ({"library": "timm", "backbone": "vit_tiny_patch16_224", "arguments": {"img_size": nested(list)}}, "a list is"),
        ({"library": "torchvision", "backbone": "regnet_y_128gf"}, "regnet_y_128gf has more weights than the file has"),
        ({"library": "torchvision", "backbone": "squeezenet1_1"}, "squeezenet1_1 has more weights than the file has"),
    ],
)
def test_networks_that_nobody_can_have_trained_are_refused_before_they_are_built(
    tmp_path: Path, facts: dict[str, Any], expected: str
) -> None:
    torch.save(content_of(**facts), tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=expected) as caught:
        load_checkpoint(tmp_path / "a.ckpt")
    assert str(caught.value).isprintable()


def test_weights_of_another_network_are_named_before_it_is_built(tmp_path: Path) -> None:
    content = content_of(library="torchvision", backbone="squeezenet1_1")
    content["state_dict"]["network.backbone.features.0.weight"] = torch.zeros(2_000_000)
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(
        CheckpointError, match=r"do not fit squeezenet1_1; missing: .*unexpected: conv1|backbone\.conv1"
    ):
        load_checkpoint(tmp_path / "a.ckpt")


def mutated(chance: random.Random, content: dict[str, Any], whole: bytes, old: bytes) -> bytes:
    """A checkpoint whose bytes are changed, or whose values are."""
    if chance.random() < 0.5:
        return mutated_bytes(chance.choice((whole, old)), chance)
    changed = copy.deepcopy(content)
    for _ in range(chance.choice((1, 1, 3))):
        part = chance.choice([changed, *(value for value in changed.values() if isinstance(value, dict))])
        key = chance.choice(list(part) or ["a"])
        tensors = (torch.zeros(3), torch.zeros(2).expand(10**6, 2), torch.tensor([torch.nan]), torch.zeros(0))
        if chance.random() < 0.2:
            part.pop(key, None)
        else:
            part[key] = chance.choice((*STRANGE, *tensors))
    return saved(changed, legacy=chance.random() < 0.2)


def load_mutated(folder: Path, numbers: range) -> tuple[int, int]:
    """How many mutated checkpoints were refused and how many were loaded, as checkpoint and as weights."""
    content = whole_content()
    whole, old = saved(content), saved(content, legacy=True)
    messages, n_loaded = [], 0
    for number in numbers:
        path = folder / "a.ckpt"
        path.write_bytes(mutated(random.Random(number), content, whole, old))
        began = time.monotonic()
        loads: list[Callable[[], object]] = [
            lambda path=path: load_checkpoint(path),
            lambda path=path: load_pretrained(Small(), name="resnet18", weights=str(path)),
        ]
        for load in loads:
            try:
                load()
            except (CheckpointError, WeightsError) as error:
                messages.append(str(error))
            else:
                n_loaded += 1
        assert time.monotonic() - began < LONGEST_S, number
    assert all(message.isprintable() for message in messages)
    assert max(map(len, messages)) < 800
    return len(messages), n_loaded


@pytest.mark.usefixtures("small")
def test_a_mutated_checkpoint_is_refused_or_loaded(tmp_path: Path) -> None:
    n_refused, n_loaded = load_mutated(tmp_path, range(N_SHORT))
    assert n_refused > N_SHORT
    assert n_loaded > 0


@pytest.mark.usefixtures("small")
@pytest.mark.slow
def test_two_thousand_mutated_checkpoints_are_refused_or_loaded(tmp_path: Path) -> None:
    n_refused, n_loaded = load_mutated(tmp_path, range(N_SHORT, N_SHORT + N_LONG))
    assert n_refused > N_LONG
    assert n_loaded > 0
