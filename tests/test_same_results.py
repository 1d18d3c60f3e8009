"""The fast path against a plain loop: same seed, same draws, same results within rounding."""

from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from breakhis_pl.config import AugmentationConfig, SyntheticDataConfig
from breakhis_pl.data.augment import draw_augmentation
from breakhis_pl.data.breakhis import Subset
from breakhis_pl.data.datamodule import BreakHisDataModule
from breakhis_pl.models.classifier import Classifier
from breakhis_pl.randomness import derived_seed

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),  # Lightning 2.6.6, deprecated by torch 2.15
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # the loaders hand out numbers
]

N_EPOCHS = 2
LR = 1e-4
"""Small, because the first steps of Adamax go by the sign of a gradient, which rounding can turn."""
TOLERANCE = 2e-3
TOLERANCE_BF16 = 5e-3
"""Relative, of losses; ten and five times what was seen."""


@pytest.fixture(scope="module")
def data(drawn_cache: Path) -> BreakHisDataModule:
    config = SyntheticDataConfig(
        cache_dir=str(drawn_cache), magnification=(200,), image_size=64, images_per_patient=1, width=64, batch_size=20
    )
    module = BreakHisDataModule(config, AugmentationConfig(), seed=0)
    module.setup()
    return module


class Losses(L.Callback):
    """Train and test loss of every epoch."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        self.rows.append((pl_module.loss_and_accuracy("train")[0], pl_module.loss_and_accuracy("test")[0]))


def classifier(memory_format: torch.memory_format) -> Classifier:
    return Classifier(
        "resnet18",
        dropout=0.4,
        memory_format=memory_format,
        make_optimizers=lambda parameters: torch.optim.Adamax(parameters, lr=LR),
    )


def fast(data: BreakHisDataModule, *, memory_format: torch.memory_format, precision: str) -> list[tuple[float, float]]:
    """Train and test loss of every epoch by the Trainer, the data module and everything that makes them fast."""
    network, losses = classifier(memory_format), Losses()
    data.memory_format = memory_format
    data.release()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=N_EPOCHS,
        precision=precision,  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[losses],
    )
    trainer.fit(network, datamodule=data)
    return losses.rows


def plain_images(data: BreakHisDataModule, rows: list[int], *, epoch: int | None) -> Tensor:
    """One image after the other, one transform after the other; (n_images, 3, size, size)."""
    draws = draw_augmentation(len(data.records), AugmentationConfig(), seed=0, epoch=epoch or 0)
    images = []
    for row in rows:
        image = torch.from_numpy(data.store.pixels[row]).permute(2, 0, 1).float() / 255
        if epoch is not None:
            image = transforms.horizontal_flip(image) if draws.horizontal_flip[row] else image
            image = transforms.vertical_flip(image) if draws.vertical_flip[row] else image
            image = transforms.rotate(image, float(draws.angle[row]), interpolation=InterpolationMode.BILINEAR)
        images.append(transforms.normalize(image, list(data.mean), list(data.std)))
    return torch.stack(images)


def plain(data: BreakHisDataModule) -> list[tuple[float, float]]:
    """The same by a loop in float32 that does one thing at a time."""
    network = classifier(torch.contiguous_format).network
    optimizer = torch.optim.Adamax(network.parameters(), lr=LR, foreach=False)
    targets = torch.tensor([record.name.target for record in data.records])
    train, test = (list(data.split.indices(subset)) for subset in (Subset.TRAIN, Subset.TEST))
    rows = []
    for epoch in range(N_EPOCHS):
        network.train()
        total = 0.0
        for step, batch in enumerate(batches(train, epoch)):
            torch.manual_seed(derived_seed(0, "dropout", epoch, step))
            loss = functional.cross_entropy(network(plain_images(data, batch, epoch=epoch)), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        network.eval()
        with torch.no_grad():
            logits = network(plain_images(data, test, epoch=None))
        rows.append((total / len(train), functional.cross_entropy(logits, targets[test]).item()))
    return rows


def batches(rows: list[int], epoch: int) -> Iterator[list[int]]:
    generator = torch.Generator().manual_seed(derived_seed(0, "shuffle", epoch))
    order = torch.randperm(len(rows), generator=generator).tolist()
    for start in range(0, len(rows), 20):
        yield [rows[place] for place in order[start : start + 20]]


@pytest.fixture(scope="module")
def of_the_plain_loop(data: BreakHisDataModule) -> list[tuple[float, float]]:
    return plain(data)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_logits_are_those_of_the_plain_network_within_float32_rounding(
    data: BreakHisDataModule, memory_format: torch.memory_format
) -> None:
    rows = list(data.split.indices(Subset.TRAIN))
    data.memory_format = memory_format
    for epoch in (None, 1):
        images = data.batch(torch.tensor(rows), epoch=epoch).images
        with torch.inference_mode():
            ours = classifier(memory_format).eval()(images)
            theirs = classifier(torch.contiguous_format).network.eval()(plain_images(data, rows, epoch=epoch))
        scale = theirs.abs().max()
        assert (ours - theirs).abs().max() <= 1e-4 * scale  # coordinates of the one resampling round differently


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_losses_of_the_fast_path_are_those_of_the_plain_loop(
    data: BreakHisDataModule,
    of_the_plain_loop: list[tuple[float, float]],
    memory_format: torch.memory_format,
) -> None:
    losses = fast(data, memory_format=memory_format, precision="32-true")
    assert np.allclose(losses, of_the_plain_loop, rtol=TOLERANCE, atol=0)


@pytest.mark.slow  # a minute where the processor has no bf16 of its own
def test_losses_in_bf16_stay_near_those_of_the_plain_loop(
    data: BreakHisDataModule, of_the_plain_loop: list[tuple[float, float]]
) -> None:
    losses = fast(data, memory_format=torch.channels_last, precision="bf16-mixed")
    assert np.allclose(losses, of_the_plain_loop, rtol=TOLERANCE_BF16, atol=0)
    assert not np.array_equal(losses, of_the_plain_loop)


def test_other_augmentation_is_seen_in_the_losses(
    data: BreakHisDataModule, of_the_plain_loop: list[tuple[float, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "augmentation", AugmentationConfig(rotation=0))
    losses = fast(data, memory_format=torch.contiguous_format, precision="32-true")
    assert not np.allclose(losses, of_the_plain_loop, rtol=TOLERANCE_BF16, atol=0)


def test_pixels_on_the_host_give_the_same_batches_as_on_the_device(data: BreakHisDataModule) -> None:
    rows = torch.tensor([5, 0, 40])
    data.release()
    expected = data.batch(rows, epoch=2)
    data.release()
    data.is_resident = False
    try:
        sent = data.transfer_batch_to_device(rows, torch.device("cpu"), 0)
        on_arrival = data.batch(sent[0], epoch=2, pixels=sent[1])
        for found in (on_arrival, data.batch(rows, epoch=2)):
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    finally:
        data.is_resident = True
        data.release()
