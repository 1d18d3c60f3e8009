import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from breakhis_pl.data import store as store_module
from breakhis_pl.data.index import ImageRecord, index_images
from breakhis_pl.data.store import Store, channel_statistics, decode, open_store, pixel_sums, verify_store
from breakhis_pl.errors import ImageError, StorageError

NAMES = [f"SOB_B_A-14-22549AB-200-{number:03d}.png" for number in range(1, 8)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Seven noisy images of 70x46 pixels."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in NAMES:
        Image.fromarray(rng.integers(0, 256, (46, 70, 3), dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def opened(tree: Path, tmp_path: Path) -> Callable[[], tuple[Store, tuple[ImageRecord, ...]]]:
    """Indexes the tree and opens its store."""

    def open_again() -> tuple[Store, tuple[ImageRecord, ...]]:
        records = index_images(tree, [200])
        return open_store(records, image_size=32, cache_dir=tmp_path / "cache"), records

    return open_again


def test_pixels_are_what_torchvisions_resize_gives_within_a_level(opened, tree: Path) -> None:
    store, _ = opened()
    resize = v2.Resize((32, 32), interpolation=v2.InterpolationMode.BILINEAR)
    for row, name in enumerate(NAMES):
        with Image.open(tree / name) as image:
            of_pillow, of_tensor = np.asarray(resize(image)), resize(v2.functional.pil_to_tensor(image))
        assert np.array_equal(store.pixels[row], of_tensor.permute(1, 2, 0).numpy())
        assert np.abs(store.pixels[row].astype(int) - of_pillow.astype(int)).max() <= 1


def test_a_store_is_built_once_and_opening_it_reads_no_image(opened, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = opened()

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("an image was opened")

    monkeypatch.setattr(Image, "open", refuse)
    second, _ = opened()
    assert (first.built, second.built) == (True, False)
    assert np.array_equal(first.pixels, second.pixels)


def test_stores_are_equal_from_one_thread_and_from_several(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = []
    for n_threads in (1, 2, 5):
        monkeypatch.setattr(store_module, "n_cores", lambda n=n_threads: n)
        stores.append(open_store(index_images(tree, [200]), image_size=32, cache_dir=tmp_path / str(n_threads)))
    for other in stores[1:]:
        assert np.array_equal(other.pixels, stores[0].pixels)
        assert np.array_equal(other.sums, stores[0].sums)
        assert other.checksum() == stores[0].checksum()


@pytest.mark.parametrize("change", ["modification time", "content", "one image less", "image size"])
def test_any_change_makes_another_store(opened, tree: Path, tmp_path: Path, change: str) -> None:
    first, records = opened()
    match change:
        case "modification time":
            os.utime(tree / NAMES[0], ns=(1, 1))
        case "content":
            Image.new("RGB", (70, 46), "red").save(tree / NAMES[0])
        case "one image less":
            (tree / NAMES[0]).unlink()
        case _:
            assert open_store(records, image_size=48, cache_dir=tmp_path / "cache").folder != first.folder
            return
    second, _ = opened()
    assert second.built
    assert second.folder != first.folder


@pytest.mark.parametrize(
    "damage", ["flipped bit", "cut short", "no description", "other version", "other names", "other size"]
)
def test_a_damaged_store_is_noticed_and_built_again(opened, damage: str) -> None:
    first, _ = opened()
    pixels, description = first.folder / "pixels.npy", first.folder / "store.json"
    content = bytearray(pixels.read_bytes())
    facts = json.loads(description.read_text())
    match damage:
        case "flipped bit":
            content[-1000] ^= 1
            pixels.write_bytes(content)
        case "cut short":
            pixels.write_bytes(content[:-1000])
        case "no description":
            description.unlink()
        case "other version":
            description.write_text(json.dumps(facts | {"version": 0}))
        case "other names":
            description.write_text(json.dumps(facts | {"names": facts["names"][::-1]}))
        case _:
            np.save(pixels, first.pixels[:, :16, :16])
    second, _ = opened()
    assert second.built
    assert np.array_equal(first.pixels, second.pixels)


def test_all_bad_files_are_named_at_once_and_nothing_is_left(opened, tree: Path, tmp_path: Path) -> None:
    whole = (tree / NAMES[0]).read_bytes()
    (tree / NAMES[0]).write_bytes(whole[: len(whole) // 2])
    (tree / NAMES[1]).write_bytes(b"")
    (tree / NAMES[2]).write_text("I am a text, not an image")
    Image.new("L", (70, 46)).save(tree / NAMES[3])
    Image.new("RGB", (70, 46)).save(tree / NAMES[4], format="JPEG")
    with pytest.raises(ImageError, match=r"5 of 7 files are no usable images") as caught:
        opened()
    text = str(caught.value)
    for name, reason in zip(
        NAMES[:5], ["truncated", "empty file", "no PNG", "8-bit gray", "no PNG but JPEG"], strict=True
    ):
        line = next(line for line in text.splitlines() if name in line)
        assert reason in line
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_full_disk_is_noticed_before_anything_is_decoded(opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(StorageError, match=r"1 MB free, 50 MB needed for decoded images; .*data\.cache_dir"):
        opened()


def test_processes_that_build_the_same_store_do_not_disturb_each_other(tree: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from breakhis_pl.data.index import index_images; "
        "from breakhis_pl.data.store import open_store; "
        "records = index_images(Path(sys.argv[1]), [200]); "
        "store = open_store(records, image_size=32, cache_dir=Path(sys.argv[2])); print(store.checksum())"
    )
    cache = tmp_path / "cache"
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(tree), str(cache)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = {process.communicate()[0] for process in started}
    assert [process.returncode for process in started] == [0] * 3
    assert len(answers) == 1
    assert len(list(cache.iterdir())) == 1


def test_a_whole_store_of_another_process_stays(opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, records = opened()
    inode = first.folder.stat().st_ino
    really_opened, answers = store_module._opened, [None]  # at first it seems not to be there

    def opened_later(*arguments: object) -> Store | None:
        return answers.pop() if answers else really_opened(*arguments)

    monkeypatch.setattr(store_module, "_opened", opened_later)
    again = open_store(records, image_size=32, cache_dir=tmp_path / "cache")
    assert np.array_equal(first.pixels, again.pixels)
    assert again.folder.stat().st_ino == inode


def test_more_than_ten_bad_files_are_counted(tmp_path: Path) -> None:
    for number in range(1, 14):
        (tmp_path / f"SOB_B_A-14-22549AB-200-{number:03d}.png").write_bytes(b"")
    with pytest.raises(ImageError, match="and 3 more"):
        open_store(index_images(tmp_path, [200]), image_size=32, cache_dir=tmp_path / "cache")


def test_an_image_too_large_to_be_right_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (8000, 7000)).save(path)
    with pytest.raises(ImageError, match=r"large\.png: 8000x7000 pixels"):
        decode(path, 32)


def test_verification_names_the_images_that_are_no_longer_the_same(opened, tree: Path) -> None:
    store, records = opened()
    verify_store(store, records)
    Image.new("RGB", (70, 46), "red").save(tree / NAMES[2])
    with pytest.raises(ImageError, match=rf"1 of 7 images are not those of the store .*{NAMES[2]}"):
        verify_store(store, records)


def test_statistics_are_those_of_all_pixels_of_the_chosen_images() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (9, 20, 30, 3), dtype=np.uint8)
    rows = [0, 3, 8]
    sums = np.stack([pixel_sums(image) for image in pixels])
    mean, std = channel_statistics(sums[rows], n_pixels=3 * 20 * 30)
    chosen = torch.from_numpy(pixels[rows]).double() / 255
    assert mean == pytest.approx(chosen.mean(dim=(0, 1, 2)).tolist(), abs=1e-12)
    assert std == pytest.approx(chosen.std(dim=(0, 1, 2), correction=0).tolist(), abs=1e-12)


def test_real_images_keep_their_published_checksums(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "breakhis_200x_224px"
    with (folder / "index.csv").open() as table:
        expected = {row["filename"]: row["pixel_sha256"] for row in csv.DictReader(table)}
    records = index_images(folder, [200])[::40]
    store = open_store(records, image_size=224, cache_dir=tmp_path)
    for record, image in zip(records, store.pixels, strict=True):
        assert hashlib.sha256(image.tobytes()).hexdigest() == expected[record.name.file_name]


def test_originals_of_all_magnifications_are_decoded(real_data: Path, tmp_path: Path) -> None:
    records = index_images(real_data / "breakhis_originals", [40, 100, 200, 400])
    assert len(records) == 69
    store = open_store(records, image_size=64, cache_dir=tmp_path)
    assert store.pixels.shape == (69, 64, 64, 3)
    assert 120 < store.pixels.mean() < 230  # stained tissue on a bright ground
