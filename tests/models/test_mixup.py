import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional

from breakhis_pl.data.datamodule import Batch
from breakhis_pl.models.classifier import Classifier
from breakhis_pl.models.mixup import mixed, mixup_share


def batch(n_images: int = 6) -> Batch:
    images = torch.randn((n_images, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.tensor([0, 0, 1, 1, 0, 1])[:n_images], torch.arange(n_images))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_of_a_beta_distribution(alpha: float) -> None:
    shares = [mixup_share(alpha, seed=0, epoch=epoch, step=step) for epoch in range(20) for step in range(100)]
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_a_share_follows_seed_epoch_and_step_and_nothing_else() -> None:
    first = mixup_share(0.4, seed=1, epoch=2, step=3)
    np.random.default_rng().random()
    assert mixup_share(0.4, seed=1, epoch=2, step=3) == first
    others = [mixup_share(0.4, seed=s, epoch=e, step=t) for s, e, t in ((0, 2, 3), (1, 0, 3), (1, 2, 0))]
    assert first not in others
    assert mixup_share(0, seed=1, epoch=2, step=3) == 1


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_an_image_is_mixed_with_the_one_before_it(memory_format: torch.memory_format) -> None:
    images = batch().images.contiguous(memory_format=memory_format)
    found = mixed(images, 0.7)
    for index in range(6):
        assert torch.allclose(found[index], 0.7 * images[index] + 0.3 * images[index - 1], atol=1e-6)
    assert found.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("share", [0.8, 0.3])
def test_the_loss_is_that_of_both_classes_in_their_shares(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("breakhis_pl.models.classifier.mixup_share", lambda *_, **__: share)
    classifier, given = Classifier("resnet18", dropout=0.0, mixup=0.4).eval(), batch()
    loss = classifier.training_step(given, 0)
    logits = classifier(share * given.images + (1 - share) * given.images.roll(1, 0))
    own, others = functional.one_hot(given.targets, 2), functional.one_hot(given.targets.roll(1), 2)
    expected = -((share * own + (1 - share) * others) * logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert torch.allclose(loss, expected, atol=1e-5)
    heavier = given.targets if share > 0.5 else given.targets.roll(1)
    shown_loss, shown_accuracy = classifier.loss_and_accuracy("train")
    assert shown_loss == pytest.approx(functional.cross_entropy(logits, heavier).item(), abs=1e-5)
    assert shown_accuracy == (logits.argmax(dim=1) == heavier).float().mean().item()


def test_smoothed_targets_are_spread_over_the_classes_and_what_is_shown_is_plain() -> None:
    classifier, given = Classifier("resnet18", dropout=0.0, label_smoothing=0.2).eval(), batch()
    loss = classifier.training_step(given, 0)
    logits = classifier(given.images)
    targets = 0.8 * functional.one_hot(given.targets, 2) + 0.2 / 2
    assert torch.allclose(loss, -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean(), atol=1e-6)
    plain = functional.cross_entropy(logits, given.targets).item()
    assert classifier.loss_and_accuracy("train")[0] == pytest.approx(plain, abs=1e-6)
    assert loss.item() != pytest.approx(plain, abs=1e-4)
