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

OpenCache = Callable[..., ImageCache]
Records = tuple[ImageRecord, ...]
NAMES = [f"SOB_B_A-14-22549AB-200-{number:03}.png" for number in range(1, 6)]


@pytest.fixture
def records(write_images: Callable[..., Path]) -> Records:
    return open_breakhis(write_images(*NAMES), task="binary", magnifications=[200], require_complete=False).records


@pytest.fixture
def open_cache(records: Records, tmp_path: Path) -> OpenCache:
    def open_cache(**changes: int) -> ImageCache:
        return ImageCache.open(records, folder=tmp_path / "cache", progress_bar=False, **{"image_size": 8, **changes})

    return open_cache


def test_pixels_are_those_of_the_decoded_files(open_cache: OpenCache, records: Records) -> None:
    built, opened = open_cache(), open_cache()
    assert (built.was_built, opened.was_built) == (True, False)
    for cache in (built, opened):
        expected = np.stack([resize(read_image(record.path), 8) for record in records])
        np.testing.assert_array_equal(cache.pixels.numpy(), expected)
    assert built.checksum() == opened.checksum()
    assert torch.equal(built.sums, opened.sums)


def test_mean_and_std_are_those_of_numpy(open_cache: OpenCache) -> None:
    cache = open_cache()
    mean, std = cache.channel_statistics([0, 3])
    values = cache.pixels.numpy()[[0, 3]] / 255
    assert mean == pytest.approx(values.mean(axis=(0, 1, 2)), rel=1e-12)
    assert std == pytest.approx(values.std(axis=(0, 1, 2)), rel=1e-12)


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at:][1:]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "pixels": lambda content: flipped(content, len(content) - 1),
    "sums": lambda content: flipped(content, 8 + int.from_bytes(content[:8], "little")),  # after header and its length
    "truncated": lambda content: content[:-100],
    "empty": lambda _: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_built_again(open_cache: OpenCache, damage: str) -> None:
    cache = open_cache()
    checksum = cache.checksum()
    cache.path.write_bytes(DAMAGES[damage](cache.path.read_bytes()))
    again = open_cache()
    assert (again.was_built, again.path, again.checksum()) == (True, cache.path, checksum)
    assert not open_cache().was_built


def test_another_size_and_changed_files_have_caches_of_their_own(open_cache: OpenCache, records: Records) -> None:
    paths = [open_cache().path, open_cache(image_size=10).path]
    os.utime(records[0].path, (1, 1))
    paths.append(open_cache().path)
    assert len(set(paths)) == 3


def test_all_unreadable_images_are_named_at_once(open_cache: OpenCache, records: Records, tmp_path: Path) -> None:
    records[1].path.write_bytes(b"no image")
    records[2].path.unlink()
    records[2].path.symlink_to("nowhere")
    records[4].path.write_bytes(records[4].path.read_bytes()[:60])
    with pytest.raises(DataError) as caught:
        open_cache()
    assert [name for name in NAMES if name in str(caught.value)] == [NAMES[1], NAMES[2], NAMES[4]]
    assert not list((tmp_path / "cache").glob("*.safetensors*"))


def test_equal_pixels_of_two_patients_are_reported(
    write_images: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["SOB_B_A-14-22549AB-200-001.png", "SOB_B_A-14-22549AB-200-002.png", "SOB_B_A-14-22549CD-200-001.png"]
    root = write_images(*names)
    dataset = open_breakhis(root, task="binary", magnifications=[200], require_complete=False)
    paths = [record.path for record in dataset.records]

    def reported() -> str:
        caplog.clear()
        ImageCache.open(dataset.records, image_size=8, folder=tmp_path / "cache", progress_bar=False)
        return caplog.text

    paths[1].write_bytes(paths[0].read_bytes())
    assert not reported()
    paths[2].write_bytes(paths[0].read_bytes())
    for text in (reported(), reported()):  # of a cache that was built, and of one that was there
        assert f"in 1 of 3 images, for example {names[0]} and {names[2]};" in text


def test_transformed_images_are_cached_by_key(open_cache: OpenCache) -> None:
    plain = open_cache()
    inverted = plain.transform(lambda image: 255 - image, key="inverted", progress_bar=False)
    assert torch.equal(inverted.pixels, 255 - plain.pixels)
    assert not plain.transform(lambda image: image, key="inverted", progress_bar=False).was_built
    assert plain.transform(lambda image: image, key="other", progress_bar=False).was_built


def test_a_folder_that_cannot_be_written_is_refused(records: Records, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"data\.cache_dir"):
        ImageCache.open(records, image_size=8, folder=tmp_path / "file", progress_bar=False)


def test_real_images_have_the_pixels_of_their_files(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "breakhis_originals"
    dataset = open_breakhis(root, task="binary", magnifications=[40, 100, 200, 400], require_complete=False)
    cache = ImageCache.open(dataset.records, image_size=64, folder=tmp_path, progress_bar=False)
    cache.verify(dataset.records, progress_bar=False)
    assert len(cache.pixels) == 69
