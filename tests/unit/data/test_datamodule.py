import io
import os
import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from breakhis_pl.data.breakhis import official_patients
from breakhis_pl.data.datamodule import Batch, BreakHisDataModule
from breakhis_pl.data.dataset import Subset
from breakhis_pl.errors import ConfigurationError, DataError
from tests.configs import train_config

CPU = torch.device("cpu")
NAMES = [f"{patient}-200-001.png" for patient in official_patients()]
MakeData = Callable[..., BreakHisDataModule]


@pytest.fixture
def make_data(write_images: Callable[..., Path], tmp_path: Path) -> MakeData:
    """Set up a datamodule on an image of random pixels per patient: 54 for train and 28 for test."""
    root = write_images(*NAMES)

    def make(*overrides: str, seed: int = 0, **arguments: object) -> BreakHisDataModule:
        keys = (f"data.root={root}", "data.require_complete=false", f"data.cache_dir={tmp_path / 'cache'}")
        config = train_config(*keys, "data.image_size=32", "data.batch_size=5", *overrides)
        options: Any = {"seed": seed, "task": config.task, "progress_bar": False, **arguments}
        data = BreakHisDataModule(config.data, config.augmentation, **options)
        data.setup()
        return data

    return make


def fake_trainer(*, epoch: int = 0, rank: int = 0, world_size: int = 1, training: bool = True) -> SimpleNamespace:
    strategy = SimpleNamespace(root_device=CPU)
    return SimpleNamespace(
        current_epoch=epoch, global_rank=rank, world_size=world_size, training=training, strategy=strategy
    )


def train_indices(data: BreakHisDataModule, **trainer: int) -> list[int]:
    data.trainer = fake_trainer(**trainer)  # type: ignore[assignment, arg-type]
    return torch.cat(list(data.train_dataloader())).tolist()


def test_train_images_have_mean_0_and_standard_deviation_1(make_data: MakeData) -> None:
    data = make_data()
    images = torch.cat([data.batch(batch).images for batch in data.eval_batches(Subset.TRAIN, device=CPU)])
    assert images.shape == (54, 3, 32, 32)
    assert images.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert (images.std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("task", ["binary", "subtype"])
def test_a_batch_has_the_normalized_pixels_and_the_targets_of_its_indices(make_data: MakeData, task: str) -> None:
    data = make_data(f"task={task}")
    indices = torch.tensor([70, 3, 3])
    batch = data.batch(indices)
    pixels = data.cache.pixels[indices].permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
    torch.testing.assert_close(batch.images, ((pixels - mean) / std).float(), rtol=1e-5, atol=1e-5)
    assert batch.targets.tolist() == [data.dataset.records[index].target for index in indices]
    assert torch.equal(batch.indices, indices)


def test_augmentation_depends_on_seed_epoch_and_image_and_not_on_the_batch(make_data: MakeData) -> None:
    data, other_seed = make_data(), make_data(seed=1)
    indices = torch.tensor([4, 9])
    images = data.batch(indices, epoch=2).images
    assert torch.equal(data.batch(torch.tensor([1, 9, 4]), epoch=2).images[[2, 1]], images)
    for other in (data.batch(indices), data.batch(indices, epoch=3), other_seed.batch(indices, epoch=2)):
        assert not torch.equal(other.images, images)


@pytest.mark.parametrize("pixels", ["auto", "device", "host"])
def test_lightnings_hooks_make_augmented_batches_in_training_only(make_data: MakeData, pixels: str) -> None:
    data = make_data(f"data.pixels={pixels}")
    indices = torch.tensor([8, 2])

    def transfer(*, training: bool) -> Batch:
        data.trainer = fake_trainer(epoch=1, training=training)  # type: ignore[assignment, arg-type]
        return data.on_after_batch_transfer(data.transfer_batch_to_device(indices, CPU, 0), 0)

    expected = make_data()
    assert torch.equal(transfer(training=True).images, expected.batch(indices, epoch=1).images)
    assert torch.equal(transfer(training=False).images, expected.batch(indices).images)


def test_loaders_yield_the_split_and_train_images_in_a_new_order_in_every_epoch(make_data: MakeData) -> None:
    data = make_data("data.val_fraction=0.2", evaluate_on=(Subset.TEST, Subset.VAL))
    orders = [train_indices(data, epoch=epoch) for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == list(data.split.indices(Subset.TRAIN))
    assert data.evaluated_subsets == (Subset.TEST, Subset.VAL)
    for subset, loader in zip(data.evaluated_subsets, data.val_dataloader(), strict=True):
        batches = list(loader)
        assert tuple(torch.cat(batches).tolist()) == data.split.indices(subset)
        assert all(map(torch.equal, batches, data.eval_batches(subset, device=CPU)))
    assert make_data().evaluated_subsets == (Subset.TEST,)


def test_ranks_share_train_and_test_images(make_data: MakeData) -> None:
    data = make_data()
    train, test = [], []
    for rank in range(4):
        train.append(train_indices(data, rank=rank, world_size=4))
        test.append(torch.cat(list(data.val_dataloader()[0])).tolist())
    assert {len(share) for share in train} == {14}
    assert set(chain(*train)) == set(data.split.indices(Subset.TRAIN))
    assert sorted(chain(*test)) == list(data.split.indices(Subset.TEST))


def test_a_second_setup_reads_nothing(make_data: MakeData, tmp_path: Path) -> None:
    data = make_data()
    cache = data.cache
    shutil.rmtree(tmp_path / "images")
    data.setup("fit")
    assert data.cache is cache


@pytest.mark.parametrize("balance", ["none", "downsample", "sampler"])
def test_overfitting_uses_the_images_of_the_first_batches_in_every_epoch(make_data: MakeData, balance: str) -> None:
    first = train_indices(make_data(f"data.balance={balance}"))[:10]
    data = make_data(f"data.balance={balance}", overfit_batches=2)
    orders = [train_indices(data, epoch=epoch) for epoch in range(3)]
    assert [sorted(order) for order in orders] == [sorted(first)] * 3
    assert orders[1] != orders[2]
    assert [len(train_indices(data, rank=rank, world_size=2)) for rank in (0, 1)] == [10, 10]


def test_class_weights_belong_to_the_balance_loss(make_data: MakeData) -> None:
    weights = make_data("data.balance=loss").class_weights
    assert make_data().class_weights is None
    assert weights is not None
    assert weights[0] > 1 > weights[1]  # there are fewer benign patients


def test_a_checkpoint_names_the_split_and_restores_mean_and_std(make_data: MakeData) -> None:
    data, other = make_data(), make_data("data.fold=3")
    state = data.state_dict()
    assert (state["split_checksum"], state["stain"]) == (data.split.checksum(), None)
    saved = io.BytesIO()
    torch.save(state, saved)
    saved.seek(0)
    before = other.batch(torch.tensor([0])).images
    other.load_state_dict(torch.load(saved, weights_only=True))
    assert (other.mean, other.std) == (data.mean, data.std)
    assert torch.equal(other.batch(torch.tensor([0])).images, data.batch(torch.tensor([0])).images)
    assert not torch.equal(other.batch(torch.tensor([0])).images, before)


def test_stains_are_normalized_to_the_train_images_or_to_those_of_a_checkpoint(tmp_path: Path) -> None:
    def make(fold: int, stain: str = "macenko") -> BreakHisDataModule:
        keys = ("data=synthetic", "data.images_per_patient=1", "data.width=64", "data.image_size=64")
        config = train_config(*keys, f"data.cache_dir={tmp_path}", f"data.stain={stain}", f"data.fold={fold}")
        data = BreakHisDataModule(config.data, config.augmentation, seed=0, progress_bar=False)
        data.setup()
        return data

    data, other, plain = make(1), make(2), make(1, "none")
    assert data.dataset.is_synthetic
    assert data.stain is not None
    expected = data.stain.normalize(plain.cache.pixels[5].numpy())
    assert (data.cache.pixels[5].numpy() == expected).all()
    assert not torch.equal(data.cache.pixels, plain.cache.pixels)
    assert make(1).stain == data.stain
    assert other.stain != data.stain
    other.load_state_dict(data.state_dict())
    assert other.stain == data.stain
    assert torch.equal(other.cache.pixels, data.cache.pixels)
    assert torch.equal(other.batch(torch.tensor([5])).images, data.batch(torch.tensor([5])).images)


def test_verify_compares_the_files_with_the_cache(make_data: MakeData) -> None:
    path = make_data().dataset.records[0].path
    status = path.stat()
    Image.new("RGB", (20, 16)).save(path)
    path.write_bytes(path.read_bytes().ljust(status.st_size, b"\0"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    make_data()  # same name, size and time
    with pytest.raises(DataError, match=path.name):
        make_data("data.verify=true")


def test_a_last_batch_of_one_smallest_image_is_refused(make_data: MakeData) -> None:
    def open_loader(size: int, world_size: int, *overrides: str, overfit_batches: int = 0) -> None:
        data = make_data(f"data.batch_size={size}", *overrides, overfit_batches=overfit_batches)
        train_indices(data, world_size=world_size)

    for size, world_size in ((53, 1), (26, 2)):
        with pytest.raises(ConfigurationError, match=rf"data\.batch_size={size}"):
            open_loader(size, world_size)
    open_loader(53, 2)
    open_loader(53, 1, "data.image_size=33")
    open_loader(53, 1, overfit_batches=1)


def test_train_images_without_contrast_are_refused(make_data: MakeData, tmp_path: Path) -> None:
    for path in (tmp_path / "images").iterdir():
        Image.new("RGB", (20, 16), "pink").save(path)
    with pytest.raises(DataError):
        make_data()


def test_a_gpu_evaluates_larger_batches(make_data: MakeData) -> None:
    data = make_data()
    assert [data._eval_batch_size(torch.device(each)) for each in ("cpu", "cuda")] == [5, 20]
