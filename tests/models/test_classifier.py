import pytest
import torch
from torch.nn import functional

from breakhis_pl.data.datamodule import Batch
from breakhis_pl.models.classifier import Classifier


def batch(n_images: int = 6, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn((n_images, 3, 32, 32), generator=generator)
    return Batch(images, torch.arange(n_images) % 2, torch.arange(n_images) + 10 * seed)


def test_initial_weights_follow_the_seed_and_leave_the_global_stream_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (Classifier("resnet18", dropout=0.4, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.network.conv1.weight, again.network.conv1.weight)
    assert not torch.equal(first.network.conv1.weight, other.network.conv1.weight)


def test_the_loss_is_cross_entropy() -> None:
    classifier = Classifier("resnet18", dropout=0.0).train()
    images = batch()
    expected = functional.cross_entropy(classifier(images.images), images.targets)
    assert torch.allclose(classifier.training_step(images, 0), expected, atol=1e-5)


def test_dropout_is_a_function_of_seed_epoch_and_step() -> None:
    classifier = Classifier("resnet18", dropout=0.5).train()
    images = batch()

    def logits(step: int) -> torch.Tensor:
        classifier.on_train_batch_start(images, step)
        return classifier(images.images)

    first = logits(3)
    torch.rand(5)
    assert torch.equal(first, logits(3))
    assert not torch.equal(first, logits(4))


def test_metrics_are_means_over_images_not_over_batches() -> None:
    classifier = Classifier("resnet18", dropout=0.0).eval()
    classifier.on_validation_epoch_start()
    batches = [batch(6, 0), batch(2, 1)]
    with torch.no_grad():
        for index, images in enumerate(batches):
            classifier.validation_step(images, index)
        logits = torch.cat([classifier(images.images) for images in batches])
    targets = torch.cat([images.targets for images in batches])
    loss, accuracy = classifier.loss_and_accuracy("test")
    assert loss == pytest.approx(functional.cross_entropy(logits, targets).item(), abs=1e-6)
    assert accuracy == (logits.argmax(dim=1) == targets).float().mean().item()
    rows, kept = classifier.evaluated_logits("test")
    assert rows.tolist() == [0, 1, 2, 3, 4, 5, 10, 11]
    assert torch.allclose(kept, logits, atol=1e-6)


def test_every_evaluation_starts_anew() -> None:
    classifier = Classifier("resnet18", dropout=0.0).eval()
    for _ in range(2):
        classifier.on_validation_epoch_start()
        with torch.no_grad():
            classifier.validation_step(batch(), 0)
    assert len(classifier.evaluated_logits("test")[0]) == 6


def test_a_subset_of_its_own_has_metrics_of_its_own() -> None:
    classifier = Classifier("resnet18", dropout=0.0, evaluated=("val", "test")).eval()
    classifier.on_validation_epoch_start()
    with torch.no_grad():
        classifier.validation_step(batch(4, 0), 0, dataloader_idx=0)
        classifier.validation_step(batch(6, 1), 0, dataloader_idx=1)
    assert len(classifier.evaluated_logits("val")[0]) == 4
    assert len(classifier.evaluated_logits("test")[0]) == 6


def test_a_checkpoint_holds_the_plain_values_that_rebuild_the_network() -> None:
    content: dict[str, object] = {}
    Classifier("resnet18", dropout=0.25).on_save_checkpoint(content)
    assert content["breakhis_pl"] == {
        "backbone": "resnet18",
        "library": "report",
        "arguments": {},
        "head": "report",
        "is_frozen": False,
        "dropout": 0.25,
        "class_names": ["benign", "malignant"],
    }
