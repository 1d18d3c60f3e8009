import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from breakhis_pl.data.breakhis import open_breakhis
from breakhis_pl.data.dataset import ImageRecord
from breakhis_pl.data.image_cache import ImageCache
from breakhis_pl.data.images import read_image, resize
from breakhis_pl.errors import DataError

NAMES = [f"SOB_B_A-14-22549AB-200-{number:03}.png" for number in range(1, 6)]


@pytest.fixture
def records(write_images: Callable[..., Path]) -> tuple[ImageRecord, ...]:
    return open_breakhis(write_images(*NAMES), task="binary", magnifications=[200], require_complete=False).records


@pytest.fixture
def open_cache(records: tuple[ImageRecord, ...], tmp_path: Path) -> Callable[..., ImageCache]:
    def open_cache(**changes: int) -> ImageCache:
        return ImageCache.open(records, folder=tmp_path / "cache", progress_bar=False, **{"image_size": 8, **changes})

    return open_cache


def test_pixels_are_those_of_the_decoded_files(
    open_cache: Callable[..., ImageCache], records: tuple[ImageRecord, ...]
) -> None:
    built, opened = open_cache(), open_cache()

    assert (built.was_built, opened.was_built) == (True, False)
    for cache in (built, opened):
        expected = np.stack([resize(read_image(record.path), 8) for record in records])
        np.testing.assert_array_equal(cache.pixels.numpy(), expected)
    assert built.checksum() == opened.checksum()
    assert torch.equal(built.sums, opened.sums)


def test_mean_and_std_are_those_of_numpy(open_cache: Callable[..., ImageCache]) -> None:
    cache = open_cache()
    mean, std = cache.channel_statistics([0, 3])

    values = cache.pixels.numpy()[[0, 3]] / 255
    assert mean == pytest.approx(values.mean(axis=(0, 1, 2)), rel=1e-12)
    assert std == pytest.approx(values.std(axis=(0, 1, 2)), rel=1e-12)


def change_pixels(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def change_sums(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[8 + int.from_bytes(content[:8], "little")] ^= 1  # after the header and its length
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [change_pixels, change_sums, truncate, empty])
def test_a_damaged_cache_is_built_again(open_cache: Callable[..., ImageCache], damage: Callable[[Path], None]) -> None:
    cache = open_cache()
    checksum = cache.checksum()
    damage(cache.path)

    again = open_cache()
    assert (again.was_built, again.path, again.checksum()) == (True, cache.path, checksum)
    assert not open_cache().was_built


def test_another_size_and_changed_files_have_caches_of_their_own(
    open_cache: Callable[..., ImageCache], records: tuple[ImageRecord, ...]
) -> None:
    paths = [open_cache().path, open_cache(image_size=10).path]
    os.utime(records[0].path, (1, 1))
    paths.append(open_cache().path)

    assert len(set(paths)) == 3


def test_all_unreadable_images_are_named_at_once(
    open_cache: Callable[..., ImageCache], records: tuple[ImageRecord, ...], tmp_path: Path
) -> None:
    records[1].path.write_bytes(b"no image")
    records[2].path.unlink()
    records[2].path.symlink_to("nowhere")
    records[4].path.write_bytes(records[4].path.read_bytes()[:60])

    with pytest.raises(DataError) as caught:
        open_cache()
    assert [name for name in NAMES if name in str(caught.value)] == [NAMES[1], NAMES[2], NAMES[4]]
    assert not list((tmp_path / "cache").glob("*.safetensors*"))


def test_verify_names_images_whose_files_have_other_pixels(
    open_cache: Callable[..., ImageCache], records: tuple[ImageRecord, ...]
) -> None:
    cache = open_cache()
    cache.verify(records, progress_bar=False)
    records[3].path.write_bytes(records[0].path.read_bytes())

    with pytest.raises(DataError) as caught:
        cache.verify(records, progress_bar=False)
    assert [name for name in NAMES if name in str(caught.value)] == [NAMES[3]]


def test_transformed_images_are_cached_by_key(open_cache: Callable[..., ImageCache]) -> None:
    plain = open_cache()
    inverted = plain.transform(lambda image: 255 - image, key="inverted", progress_bar=False)

    assert torch.equal(inverted.pixels, 255 - plain.pixels)
    assert not plain.transform(lambda image: image, key="inverted", progress_bar=False).was_built
    assert plain.transform(lambda image: image, key="other", progress_bar=False).was_built


def test_a_folder_that_cannot_be_written_is_refused(records: tuple[ImageRecord, ...], tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(DataError, match=r"data\.cache_dir"):
        ImageCache.open(records, image_size=8, folder=tmp_path / "file", progress_bar=False)


def test_real_images_have_the_pixels_of_their_files(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "breakhis_originals"
    dataset = open_breakhis(root, task="binary", magnifications=[40, 100, 200, 400], require_complete=False)
    cache = ImageCache.open(dataset.records, image_size=64, folder=tmp_path, progress_bar=False)

    cache.verify(dataset.records, progress_bar=False)
    assert len(cache.pixels) == 69
