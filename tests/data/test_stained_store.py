import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from breakhis_pl.config import AugmentationConfig, SyntheticDataConfig
from breakhis_pl.data import stained_store
from breakhis_pl.data.breakhis import Subset
from breakhis_pl.data.datamodule import BreakHisDataModule
from breakhis_pl.data.stain import ESTIMATES, fitted_target
from breakhis_pl.errors import StorageError

CONFIG = SyntheticDataConfig(magnification=(200,), image_size=32, images_per_patient=1, width=64)


def opened(cache: Path, stain: str = "macenko", *, fold: int = 2) -> BreakHisDataModule:
    config = replace(CONFIG, cache_dir=str(cache), stain=stain, fold=fold)
    module = BreakHisDataModule(config, AugmentationConfig(), seed=0, show_progress=False)
    module.setup()
    return module


@pytest.fixture(scope="module")
def cache(drawn_cache: Path) -> Path:
    return drawn_cache


def stores(cache: Path, stain: str) -> list[Path]:
    return sorted(cache.glob(f"*px-*-{stain}-*"))


@pytest.mark.parametrize("stain", ESTIMATES)
def test_the_fit_is_to_train_images_alone_and_every_image_is_brought_to_it(cache: Path, stain: str) -> None:
    plain, data = opened(cache, "none"), opened(cache, stain)
    rows = data.split.indices(Subset.TRAIN)
    target = fitted_target(stain, [ESTIMATES[stain](plain.store.pixels[row]) for row in rows])
    assert data.stain == target
    assert np.array_equal(data.store.pixels, [target.applied(image) for image in plain.store.pixels])
    assert data.n_stain_unchanged == sum(
        np.array_equal(*each) for each in zip(plain.store.pixels, data.store.pixels, strict=True)
    )
    train = data.store.pixels[list(rows)] / 255
    assert data.mean == pytest.approx(train.mean(axis=(0, 1, 2)).tolist(), abs=1e-9)
    assert data.mean != plain.mean


def test_a_store_is_made_once_and_another_fit_makes_another(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(cache)
    n_stores = len(stores(cache, "macenko"))
    with monkeypatch.context() as patch:
        patch.setattr(stained_store, "ESTIMATES", {})  # nothing is fitted again
        again = opened(cache)
    assert not again.store.built
    assert len(stores(cache, "macenko")) == n_stores
    other = opened(cache, fold=1)
    assert other.stain != again.stain
    assert len(stores(cache, "macenko")) == n_stores + 1


@pytest.mark.parametrize("damage", ["a flipped bit", "cut short"])
def test_a_damaged_store_is_made_again(cache: Path, damage: str) -> None:
    whole = opened(cache, "reinhard")
    pixels = whole.store.folder / "pixels.npy"
    content = bytearray(pixels.read_bytes())
    content[-7] ^= 1
    pixels.write_bytes(content if damage == "a flipped bit" else content[:-1])
    again = opened(cache, "reinhard")
    assert again.store.built
    assert np.array_equal(again.store.pixels, whole.store.pixels)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"method": "reinhard"}', b'{"method": "macenko"}'])
def test_a_damaged_fit_is_made_again(cache: Path, content: bytes) -> None:
    whole = opened(cache)
    notes = [note for note in cache.glob("stain-macenko-*.json") if json.loads(note.read_text()) == whole.stain.plain()]  # type: ignore[union-attr]
    notes[0].write_bytes(content)
    assert opened(cache).stain == whole.stain
    assert json.loads(notes[0].read_text()) == whole.stain.plain()  # type: ignore[union-attr]


def test_what_came_from_a_checkpoint_is_used_instead_of_a_fit(cache: Path) -> None:
    target = opened(cache, fold=1).stain
    config = replace(CONFIG, cache_dir=str(cache), stain="macenko")
    module = BreakHisDataModule(config, AugmentationConfig(), seed=0, show_progress=False)
    module.stain = target
    module.setup()
    assert module.stain is target
    assert module.state_dict()["stain"] == target.plain()  # type: ignore[union-attr]


def test_a_fit_that_cannot_be_kept_is_said(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stained_store, "write_text", full)
    with pytest.raises(StorageError, match=r"cannot take what was fitted .*No space left.*data\.cache_dir"):
        opened(cache, "reinhard", fold=4)
