import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from breakhis_pl.data import resampling
from breakhis_pl.data.resampling import resized


def by_torch(image: np.ndarray, size: int) -> np.ndarray:
    """As `data.store.decode` resizes."""
    batch = torch.from_numpy(image).permute(2, 0, 1)[None]
    return functional.interpolate(batch, (size, size), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(32, 96), st.integers(0, 2**32))
def test_every_pixel_is_the_one_that_torch_computes(height: int, width: int, size: int, seed: int) -> None:
    image = noise(height, width, seed)
    # torch has several kernels, one for each kind of processor; they may differ by a level
    difference = np.abs(resized(image, size).astype(int) - by_torch(image, size))
    assert difference.max() <= 1
    if torch.backends.cpu.get_cpu_capability() in {"AVX2", "AVX512"}:
        assert difference.max() == 0


@pytest.mark.parametrize(("height", "width"), [(460, 700), (1, 1), (3, 2000)])
def test_shapes_far_from_a_square_are_the_same_too(height: int, width: int) -> None:
    image = noise(height, width)
    assert np.abs(resized(image, 224).astype(int) - by_torch(image, 224)).max() <= 1


def test_large_images_are_worked_on_in_bands_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise(90, 70)
    whole = resized(image, 32)
    monkeypatch.setattr(resampling, "_MOST_VALUES", 3 * 70 * 7)
    assert np.array_equal(resized(image, 32), whole)


@pytest.mark.parametrize(("height", "width"), [(60_000, 1), (1, 60_000)])
def test_a_very_long_image_takes_little_more_memory_than_its_square(height: int, width: int) -> None:
    image = np.zeros((height, width, 3), dtype=np.uint8)
    tracemalloc.start()
    try:
        resized(image, 224)
        assert tracemalloc.get_traced_memory()[1] < 150_000_000
    finally:
        tracemalloc.stop()


def test_an_image_of_that_size_stays_as_it_is() -> None:
    image = noise(40, 40)
    assert np.array_equal(resized(image, 40), image)
