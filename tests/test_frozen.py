import csv
import json
from pathlib import Path

import pytest
import torch
from torchvision import models

from breakhis_pl.composition import compose_checked, register
from breakhis_pl.errors import ConfigurationError
from breakhis_pl.evaluation.predictions import read_predictions
from breakhis_pl.evaluation.run_summary import summarize_run
from tests.programs import TINY, Outcome, run_program

SMALL_IMAGES = TINY[:-1]
"""Without the key for weights."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a ResNet-18 that stand for pretrained ones."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(models.resnet18().state_dict(), path)
    return path


def train(folder: Path, cache: Path, *arguments: str) -> Outcome:
    return run_program(
        "train", *SMALL_IMAGES, f"data.cache_dir={cache}", "trainer=cpu", *arguments, "hydra.run.dir=run", cwd=folder
    )


@pytest.fixture(scope="module")
def baseline(weights: Path, drawn_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("work")
    arguments = ("experiment=frozen", "data=synthetic", f"model.weights={weights}", "data.val_fraction=0.2")
    return folder / "run", train(folder, drawn_cache, *arguments)


def test_the_baseline_is_a_run_like_any_other(baseline: tuple[Path, Outcome]) -> None:
    folder, outcome = baseline
    assert outcome.status == 0, outcome.err
    assert "512 features of 82 images" in outcome.out
    assert "head solved for in" in outcome.out
    expected = "run.json history.csv curves.png report.html checkpoints/last.ckpt test/gallery/01.jpg val/metrics.json"
    assert [name for name in expected.split() if not (folder / name).is_file()] == []
    run = json.loads((folder / "run.json").read_text())
    assert (run["status"], run["model"]["n_trained"]) == ("finished", 2 * 513)
    with (folder / "history.csv").open() as table:
        (row,) = csv.DictReader(table)
    metrics = json.loads((folder / "test" / "metrics.json").read_text())
    assert float(row["test_accuracy"]) == pytest.approx(metrics["accuracy"]["value"])
    assert float(row["train_accuracy"]) > 0.7
    assert "ResNet-18, frozen, linear head, 200X, fold 2" in outcome.out
    assert summarize_run(folder).model == "resnet18 (frozen, linear)"


def test_the_network_below_the_head_is_the_one_that_was_given(baseline: tuple[Path, Outcome], weights: Path) -> None:
    state = torch.load(baseline[0] / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, value in torch.load(weights, weights_only=True).items():
        if not name.startswith("fc."):
            assert torch.equal(state[f"network.{name}"], value), name


def test_an_evaluation_without_known_features_gives_the_same_bits(baseline: tuple[Path, Outcome]) -> None:
    folder, _ = baseline
    before = (folder / "test" / "predictions.csv").read_bytes()
    outcome = run_program("evaluate", f"run={folder}", "gallery=0", "trainer.accelerator=cpu", cwd=folder.parent)
    assert outcome.status == 0, outcome.err
    assert (folder / "test" / "predictions.csv").read_bytes() == before


def test_a_finished_baseline_and_one_that_was_cut_are_resumed(baseline: tuple[Path, Outcome]) -> None:
    folder, _ = baseline
    assert "is finished" in run_program("train", f"resume={folder}", cwd=folder.parent).out
    before = (folder / "test" / "predictions.csv").read_bytes()
    content = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(content | {"status": "failed"}))
    outcome = run_program("train", f"resume={folder}", cwd=folder.parent)
    assert outcome.status == 0, outcome.err
    assert (folder / "test" / "predictions.csv").read_bytes() == before


def test_its_views_are_averaged(baseline: tuple[Path, Outcome]) -> None:
    folder, _ = baseline
    arguments = (f"run={folder}", "tta=flips", "trainer.accelerator=cpu")
    outcome = run_program("evaluate", *arguments, cwd=folder.parent)
    assert outcome.status == 0, outcome.err
    views, once = (read_predictions(folder / name / "predictions.csv") for name in ("test_flips", "test"))
    assert views.image == once.image
    assert float(abs(views.probabilities - once.probabilities).max()) > 1e-4


def test_a_head_that_is_trained_by_epochs_goes_on_with_the_features_it_began_with(
    weights: Path, drawn_cache: Path, tmp_path: Path
) -> None:
    arguments = ("model.freeze=true", "augmentation=none", f"model.weights={weights}", "gallery=0")
    for name, n_epochs in (("whole", 2), ("cut", 1)):
        (tmp_path / name).mkdir()
        outcome = train(tmp_path / name, drawn_cache, *arguments, f"trainer.max_epochs={n_epochs}")
        assert outcome.status == 0, outcome.err
    outcome = run_program("train", "resume=cut/run", "trainer.max_epochs=2", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    whole, cut = (tmp_path / name / "run" for name in ("whole", "cut"))
    states = [torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in (whole, cut)]
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())
    assert (cut / "test/predictions.csv").read_bytes() == (whole / "test/predictions.csv").read_bytes()


@pytest.mark.parametrize(("augmentation", "head"), [("report", "svm"), ("none", "report")])
def test_other_frozen_networks_train_their_head_by_epochs(
    augmentation: str, head: str, weights: Path, drawn_cache: Path, tmp_path: Path
) -> None:
    outcome = train(
        tmp_path,
        drawn_cache,
        "model.freeze=true",
        f"model.head={head}",
        f"augmentation={augmentation}",
        f"model.weights={weights}",
        "trainer.max_epochs=2",
        "gallery=0",
    )
    assert outcome.status == 0, outcome.err
    assert ("512 features of 82 images" in outcome.out) == (augmentation == "none")
    content = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    given = torch.load(weights, weights_only=True)
    for name in ("layer4.1.conv2.weight", "bn1.running_mean", "bn1.num_batches_tracked"):
        assert torch.equal(content["state_dict"][f"network.{name}"], given[name])
    (optimizer,) = content["optimizer_states"]
    assert len(optimizer["state"]) == (6 if head == "report" else 2)


def test_a_vision_transformer_of_timm_is_trained_evaluated_and_shown_without_heat(
    drawn_cache: Path, tmp_path: Path
) -> None:
    outcome = train(
        tmp_path,
        drawn_cache,
        "model=timm",
        "model.backbone=vit_tiny_patch16_224",
        "model.arguments={img_size: 32, depth: 2}",
        "model.weights=none",
        "trainer.max_epochs=1",
        "gallery=1",
    )
    assert outcome.status == 0, outcome.err
    folder = tmp_path / "run"
    assert "without heat maps" in (folder / "report.html").read_text()
    before = (folder / "test" / "predictions.csv").read_bytes()
    evaluated = run_program("evaluate", f"run={folder}", "gallery=0", "trainer.accelerator=cpu", cwd=tmp_path)
    assert evaluated.status == 0, evaluated.err
    assert (folder / "test" / "predictions.csv").read_bytes() == before
    assert summarize_run(folder).model == "vit_tiny_patch16_224 (timm, linear)"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.freeze=true", "model.weights=none"], r"model\.weights=none is random numbers"),
        (["experiment=frozen", "trainer.max_epochs=3"], r"trainer\.max_epochs=3: .*solves for the head at once"),
        (["experiment=frozen", "trainer.limit_train_batches=1"], r"limit_train_batches=1: .*from all train images"),
        (["model.freeze=true", "trainer.compile=true"], r"trainer\.compile=true is for networks that are trained"),
        (["model.freeze=true", "trainer.cuda_graphs=true"], r"trainer\.cuda_graphs=true is for networks that are"),
        (
            ["model.freeze=true", "augmentation=none", "trainer=ddp", "trainer.devices=2"],
            r"trainer\.devices=2 trainer\.num_nodes=1: model\.freeze=true without augmentation computes",
        ),
        (
            ["experiment=frozen", "trainer=ddp", "trainer.num_nodes=2"],
            r"trainer\.num_nodes=2: model",
        ),
        (["model.head=tree"], r"model\.head=tree is not possible; expected one of report, linear, svm"),
        (["model.l2=0.1"], r"model\.l2=0\.1 is for heads that are solved for at once, as by experiment=frozen"),
        (["model.l2=0"], r"model\.l2=0\.0 is not possible; expected a number above 0"),
        (["model=torchvision", "model.backbone=alexnet", "data.image_size=32"], "expected at least 63"),
        (["model=timm", "model.arguments={pretrained: true}"], r"model\.arguments has 'pretrained'"),
    ],
)
def test_what_does_not_go_together_is_refused_at_the_door(overrides: list[str], expected: str) -> None:
    register()
    with pytest.raises(ConfigurationError, match=expected):
        compose_checked("train", overrides)


def test_a_train_batch_of_one_image_is_refused_where_batch_norm_cannot_take_it(
    drawn_cache: Path, tmp_path: Path
) -> None:
    arguments = ("model=torchvision", "model.backbone=inception_v3", "model.weights=none", "data.image_size=75")
    for more, size, n_train in (((), 53, 54), (("data.balance=downsample",), 29, 30)):
        outcome = train(tmp_path, drawn_cache, *arguments, *more, f"data.batch_size={size}")
        assert outcome.status == 1
        assert f"data.batch_size={size} leaves a batch of a single image ({n_train} train images)" in outcome.err
