from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from breakhis_pl.config import AugmentationConfig, BreakHisDataConfig, SyntheticDataConfig
from breakhis_pl.data.balance import TrainOrder
from breakhis_pl.data.breakhis import Subset
from breakhis_pl.data.datamodule import BreakHisDataModule
from breakhis_pl.data.domain import restored_domain
from breakhis_pl.data.drawn import synthetic_folder
from breakhis_pl.data.row_loading import ShuffledSampler
from breakhis_pl.errors import ConfigurationError, DataFolderError, ImageError, IncompleteDataError
from breakhis_pl.models.backbones import BACKBONES, build_network


@pytest.fixture(scope="module")
def config(drawn_cache: Path) -> SyntheticDataConfig:
    """One tiny drawn image per patient."""
    return SyntheticDataConfig(
        cache_dir=str(drawn_cache), magnification=(200,), image_size=32, images_per_patient=1, width=64
    )


@pytest.fixture
def data(config: SyntheticDataConfig) -> BreakHisDataModule:
    module = BreakHisDataModule(config, AugmentationConfig(), seed=0)
    module.setup()
    return module


def test_images_are_drawn_once(config: SyntheticDataConfig) -> None:
    first = synthetic_folder(config)
    times = {path: path.stat().st_mtime_ns for path in first.rglob("*.png")}
    assert len(times) == 82
    assert synthetic_folder(config) == first
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*.png")} == times


def test_a_batch_is_normalized_with_the_statistics_of_the_train_images(data: BreakHisDataModule) -> None:
    rows = torch.tensor(data.split.indices(Subset.TRAIN))
    images = data.batch(rows).images
    assert images.shape == (54, 3, 32, 32)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(images.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(images.std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-4)


def test_targets_and_rows_go_with_their_images(data: BreakHisDataModule) -> None:
    rows = torch.tensor([5, 81, 40])
    batch = data.batch(rows)
    assert batch.targets.tolist() == [data.records[row].name.target for row in rows.tolist()]
    assert torch.equal(batch.rows, rows)


def test_evaluation_is_not_augmented_and_training_is(data: BreakHisDataModule) -> None:
    rows = torch.arange(20)
    plain = data.batch(rows).images
    assert torch.equal(plain, data.batch(rows).images)
    assert not torch.allclose(plain, data.batch(rows, epoch=0).images)
    data.trainer = SimpleNamespace(training=False, current_epoch=3)  # type: ignore[assignment]
    assert torch.equal(data.on_after_batch_transfer(rows, 0).images, plain)
    data.trainer = SimpleNamespace(training=True, current_epoch=3)  # type: ignore[assignment]
    assert torch.equal(data.on_after_batch_transfer(rows, 0).images, data.batch(rows, epoch=3).images)


def test_what_happens_to_an_image_does_not_depend_on_its_batch(data: BreakHisDataModule) -> None:
    together = data.batch(torch.arange(10), epoch=2).images
    alone = data.batch(torch.tensor([7]), epoch=2).images
    assert torch.allclose(together[7], alone[0], atol=1e-6)
    assert not torch.allclose(together, data.batch(torch.arange(10), epoch=3).images)


def test_without_augmentation_train_batches_are_plain(config: SyntheticDataConfig) -> None:
    nothing = AugmentationConfig(horizontal_flip=0, vertical_flip=0, rotation=0)
    module = BreakHisDataModule(config, nothing, seed=0)
    module.setup()
    rows = torch.arange(5)
    assert torch.equal(module.batch(rows, epoch=1).images, module.batch(rows).images)


def test_loaders_give_every_image_of_their_subset_once(data: BreakHisDataModule) -> None:
    train = torch.cat(list(data.train_dataloader())).tolist()
    (test_loader,) = data.val_dataloader()
    test = torch.cat(list(test_loader)).tolist()
    assert sorted(train) == list(data.split.indices(Subset.TRAIN))
    assert train != sorted(train)
    assert test == list(data.split.indices(Subset.TEST))
    assert not set(train) & set(test)


def test_the_order_follows_seed_and_epoch_and_leaves_the_global_stream_alone(data: BreakHisDataModule) -> None:
    def order(epoch: int, seed: int) -> list[int]:
        order = TrainOrder((0,) * 54, balance="none", seed=seed)
        return list(ShuffledSampler(order, epoch=lambda: epoch))

    before = torch.get_rng_state()
    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(1, 0)
    assert order(0, 0) != order(0, 1)
    next(iter(data.train_dataloader()))
    assert torch.equal(before, torch.get_rng_state())


def test_the_order_is_that_of_the_trainer_when_the_first_row_is_asked_for(data: BreakHisDataModule) -> None:
    def rows(iterator: Iterator[torch.Tensor]) -> list[int]:
        return torch.cat(list(iterator)).tolist()

    data.trainer = SimpleNamespace(current_epoch=0)  # type: ignore[assignment]
    first, early = rows(iter(data.train_dataloader())), iter(data.train_dataloader())
    data.trainer = SimpleNamespace(current_epoch=3)  # type: ignore[assignment]
    assert rows(early) == rows(iter(data.train_dataloader())) != first


def test_statistics_use_train_images_alone(data: BreakHisDataModule) -> None:
    train = data.store.pixels[list(data.split.indices(Subset.TRAIN))]
    everything = data.store.pixels
    assert data.mean == pytest.approx((train / 255).mean(axis=(0, 1, 2)).tolist(), abs=1e-9)
    assert data.mean != pytest.approx((everything / 255).mean(axis=(0, 1, 2)).tolist(), abs=1e-9)


def test_statistics_are_kept_in_the_checkpoint(data: BreakHisDataModule) -> None:
    kept = data.state_dict()
    domain = kept.pop("domain")
    assert restored_domain(domain).n_images == len(data.split.indices(Subset.TRAIN))
    assert data.state_dict()["domain"] is domain  # computed once
    assert kept == {
        "mean": list(data.mean),
        "std": list(data.std),
        "image_size": 32,
        "split_checksum": data.split.checksum(),
    }


def test_a_single_image_left_over_is_refused_where_batch_norm_cannot_take_it(config: SyntheticDataConfig) -> None:
    def check(batch_size: int, *, image_size: int = 32, limit: int | None = None) -> None:
        asked = replace(config, batch_size=batch_size, image_size=image_size)
        module = BreakHisDataModule(asked, AugmentationConfig(), seed=0)
        module.index()
        module.check_train_batches(limit=limit)

    with pytest.raises(ConfigurationError, match=r"data\.batch_size=53 leaves a batch of a single image \(54 train"):
        check(53)
    with pytest.raises(ConfigurationError, match=r"data\.batch_size=1 leaves"):
        check(1)
    check(54)
    check(53, limit=1)
    check(53, image_size=33)


@pytest.mark.parametrize("image_size", [32, 33, 63, 64])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_batch_norm_of_the_networks_takes_a_single_image_where_the_check_lets_it_pass(
    config: SyntheticDataConfig, backbone: str, image_size: int
) -> None:
    module = BreakHisDataModule(replace(config, batch_size=1, image_size=image_size), AugmentationConfig(), seed=0)
    module.index()
    with torch.device("meta"):  # shapes alone
        network = build_network(backbone, dropout=0.4).train()
        image = torch.empty(1, 3, image_size, image_size)
    if image_size > 32:
        module.check_train_batches()
        assert network(image).shape == (1, 2)
        return
    with pytest.raises(ConfigurationError, match=r"data\.batch_size=1 leaves a batch of a single image"):
        module.check_train_batches()
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        network(image)
    with torch.device("meta"):
        assert network(torch.empty(2, 3, image_size, image_size)).shape == (2, 2)


def write_images(folder: Path, *names: str, green: int | None = None) -> None:
    folder.mkdir()
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        if green is not None:
            pixels[:, :, 1] = green
        Image.fromarray(pixels).save(folder / name)


TRAIN = ("SOB_B_A-14-22549AB-200-001.png", "SOB_M_DC-14-2523-200-001.png")  # of fold 2
TEST = ("SOB_B_A-14-22549G-200-001.png", "SOB_M_DC-14-10926-200-001.png")


def folder_data(tmp_path: Path, **keys: Any) -> BreakHisDataModule:
    keys = {"magnification": (200,)} | keys
    asked = BreakHisDataConfig(
        root=str(tmp_path / "images"),
        cache_dir=str(tmp_path / "cache"),
        image_size=32,
        require_complete=False,
        **keys,
    )
    return BreakHisDataModule(asked, AugmentationConfig(), seed=0, show_progress=False)


def test_a_color_that_never_changes_cannot_be_normalized(tmp_path: Path) -> None:
    write_images(tmp_path / "images", *TRAIN, *TEST, green=51)
    with pytest.raises(ImageError, match=r"all pixels of all train images have green=0\.2 \(of 1\)"):
        folder_data(tmp_path).setup()


def test_a_magnification_without_images_is_refused_before_anything_is_decoded(tmp_path: Path) -> None:
    write_images(tmp_path / "images", *TRAIN, *TEST)
    text = r"data\.magnification=\[40, 200\]: no image at 40X; .*'data\.magnification=\[200\]'"
    with pytest.raises(DataFolderError, match=text):
        folder_data(tmp_path, magnification=(40, 200)).setup()
    assert not (tmp_path / "cache").exists()


def test_a_class_that_test_lacks_is_said_and_allowed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(tmp_path / "images", *TRAIN, TEST[1])
    folder_data(tmp_path).setup()
    assert "test has no benign image (data.split=official data.fold=2): metrics that need both" in caplog.text


def test_nothing_is_said_where_test_has_both_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(tmp_path / "images", *TRAIN, *TEST)
    folder_data(tmp_path).setup()
    assert caplog.text == ""


def test_the_real_images_are_split_as_published(real_data: Path, tmp_path: Path) -> None:
    config = BreakHisDataConfig(
        root=str(real_data / "breakhis_200x_224px"), magnification=(200,), cache_dir=str(tmp_path)
    )
    with pytest.raises(IncompleteDataError, match="200X benign: 202 of 623 images"):
        BreakHisDataModule(config, AugmentationConfig(), seed=0).index()
    config.require_complete = False
    module = BreakHisDataModule(config, AugmentationConfig(), seed=0)
    module.index()
    assert not module.is_complete
    assert module.split.counts() == {
        "train": {"benign": 89, "malignant": 434},
        "test": {"benign": 113, "malignant": 203},
    }
    assert np.unique([record.name.patient for record in module.records]).size == 48
