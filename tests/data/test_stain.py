"""Stain normalization against references that were written from the papers with other means: matrices, numpy.linalg."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from breakhis_pl.data.stain import (
    ESTIMATES,
    LARGEST_SCALE,
    LEAST_DENSITY,
    LIGHT,
    MacenkoTarget,
    ReinhardTarget,
    fitted_target,
    from_lab,
    macenko_estimate,
    reinhard_estimate,
    restored_target,
    to_lab,
)
from breakhis_pl.data.synthetic import draw_tissue
from breakhis_pl.errors import ImageError

UInt8Array = npt.NDArray[np.uint8]
HEMATOXYLIN = np.array([0.65, 0.70, 0.29]) / np.linalg.norm([0.65, 0.70, 0.29])
EOSIN = np.array([0.07, 0.99, 0.11]) / np.linalg.norm([0.07, 0.99, 0.11])
TARGET = MacenkoTarget(((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581)), (1.9705, 1.0308))
TARGET_LAB = ReinhardTarget((-0.3, -0.05, 0.01), (0.09, 0.02, 0.005))


def stained(seed: int, *, hematoxylin: float = 1.2, eosin: float = 0.8, size: int = 64) -> UInt8Array:
    """An image of two stains in random amounts, that is known to be one."""
    rng = np.random.default_rng(seed)
    amounts = rng.beta(0.5, 0.8, (size * size, 2)) * (hematoxylin, eosin)
    densities = amounts @ np.stack([HEMATOXYLIN, EOSIN])
    return np.rint(LIGHT * np.exp(-densities) - 1).clip(0, 255).astype(np.uint8).reshape(size, size, 3)


def _reference_macenko(image: UInt8Array, target: MacenkoTarget) -> UInt8Array:
    """Macenko et al. 2009 with numpy.linalg; which pixels count as stained as the module documents it."""
    densities = -np.log((image.reshape(-1, 3).astype(float) + 1) / LIGHT)
    mean = densities.mean(axis=1)
    counted = densities[(mean >= LEAST_DENSITY) & (densities[:, 1] >= mean)]
    _, vectors = np.linalg.eigh(np.cov(counted.T))
    plane = vectors[:, [2, 1]]
    plane[:, 0] *= np.sign(plane[:, 0].sum())
    projected = counted @ plane
    angles = np.arctan2(projected[:, 1], projected[:, 0])
    one, other = (plane @ [np.cos(a), np.sin(a)] for a in (np.percentile(angles, 1), np.percentile(angles, 99)))
    stains = np.stack([one, other] if one[0] > other[0] else [other, one])
    amounts = np.linalg.lstsq(stains.T, densities.T, rcond=None)[0]
    amounts *= (np.array(target.largest) / np.percentile(amounts, 99, axis=1))[:, None]
    levels = LIGHT * np.exp(-(np.array(target.stains).T @ amounts)) - 1
    return np.rint(levels.T).clip(0, 255).astype(np.uint8).reshape(image.shape)


def _reference_reinhard(image: UInt8Array, target: ReinhardTarget) -> UInt8Array:
    """Reinhard et al. 2001 with matrices and their inverses, all pixels being stained."""
    to_lms = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
    to_lab_ = np.diag([1 / 3**0.5, 1 / 6**0.5, 1 / 2**0.5]) @ np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]])
    lab = to_lab_ @ np.log10(to_lms @ (np.maximum(image.reshape(-1, 3).T, 1) / 255))
    moved = (lab - lab.mean(1, keepdims=True)) / lab.std(1, keepdims=True)
    moved = moved * np.array(target.std)[:, None] + np.array(target.mean)[:, None]
    levels = 255 * np.linalg.solve(to_lms, 10 ** np.linalg.solve(to_lab_, moved))
    return np.rint(levels.T).clip(0, 255).astype(np.uint8).reshape(image.shape)


@pytest.mark.parametrize("seed", range(5))
def test_macenko_is_that_of_the_paper(seed: int) -> None:
    image = stained(seed)
    difference = TARGET.applied(image).astype(int) - _reference_macenko(image, TARGET)
    assert np.abs(difference).max() <= 1
    assert (difference == 0).mean() > 0.99


@pytest.mark.parametrize("seed", range(5))
def test_reinhard_is_that_of_the_paper(seed: int) -> None:
    image = np.minimum(stained(seed), 150)  # all of it counts as stained
    image[..., 1] = np.minimum(image[..., 1], 90)
    difference = TARGET_LAB.applied(image).astype(int) - _reference_reinhard(image, TARGET_LAB)
    assert np.abs(difference).max() <= 1
    assert (difference == 0).mean() > 0.99


def test_drawn_tissue_is_normalized_as_the_reference_does() -> None:
    image = draw_tissue("SOB_M_DC-14-2523", 1, size=(128, 84), seed=3)
    assert np.abs(TARGET.applied(image).astype(int) - _reference_macenko(image, TARGET)).max() <= 1


@pytest.mark.parametrize("seed", range(5))
def test_the_stains_of_an_image_made_of_two_are_found(seed: int) -> None:
    estimate = macenko_estimate(stained(seed, size=128))
    assert estimate is not None
    for found, made in zip(estimate.stains, (HEMATOXYLIN, EOSIN), strict=True):
        assert math.degrees(math.acos(min(1.0, float(np.dot(found, made))))) < 6


@pytest.mark.parametrize("method", ESTIMATES)
def test_images_of_other_stains_come_nearer_to_each_other(method: str) -> None:
    pale, strong = stained(0, hematoxylin=0.8, eosin=0.6), stained(0, hematoxylin=1.7, eosin=1.2)
    target = fitted_target(method, [ESTIMATES[method](image) for image in (pale, strong)])
    before = np.abs(pale.astype(int) - strong).mean()
    after = np.abs(target.applied(pale).astype(int) - target.applied(strong)).mean()
    assert after < before / 2


@pytest.mark.parametrize("method", ESTIMATES)
def test_an_image_that_has_the_target_already_hardly_changes(method: str) -> None:
    image = stained(1)
    target = fitted_target(method, [ESTIMATES[method](image)])
    assert np.abs(target.applied(image).astype(int) - image).max() <= 3


def plain_images() -> dict[str, UInt8Array]:
    rng = np.random.default_rng(0)
    white = np.full((32, 32, 3), 255, dtype=np.uint8)
    dot = white.copy()
    dot[0, 0] = 0
    return {
        "white": white,
        "glass": np.full((32, 32, 3), 238, dtype=np.uint8),
        "one dark pixel": dot,
        "noise on glass": rng.integers(230, 256, (32, 32, 3), dtype=np.uint8),
        "greenish glass": np.full((32, 32, 3), (200, 225, 200), dtype=np.uint8),
    }


@pytest.mark.parametrize("kind", plain_images())
@pytest.mark.parametrize("target", [TARGET, TARGET_LAB], ids=["macenko", "reinhard"])
def test_an_image_without_stain_stays_as_it_is(target: Any, kind: str) -> None:
    image = plain_images()[kind]
    assert np.array_equal(target.applied(image), image)


def test_an_image_of_one_stain_stays_as_it_is_under_macenko() -> None:
    amounts = np.random.default_rng(0).uniform(0.2, 1.5, (32, 32, 1))
    image = np.rint(LIGHT * np.exp(-amounts * EOSIN) - 1).clip(0, 255).astype(np.uint8)
    assert macenko_estimate(image) is None
    assert np.array_equal(TARGET.applied(image), image)
    assert TARGET_LAB.applied(image).shape == image.shape  # which needs no two stains


@pytest.mark.parametrize("target", [TARGET, TARGET_LAB], ids=["macenko", "reinhard"])
@pytest.mark.parametrize("level", [0, 1, 100])
def test_an_image_of_one_color_gives_an_image(target: Any, level: int) -> None:
    image = np.full((16, 16, 3), level, dtype=np.uint8)
    result = target.applied(image)
    assert (result.dtype, result.shape) == (np.uint8, image.shape)
    assert len(np.unique(result.reshape(-1, 3), axis=0)) == 1


def test_what_an_image_hardly_has_is_not_multiplied_without_end() -> None:
    image = stained(0, hematoxylin=1.2, eosin=0.02)
    own = reinhard_estimate(image)
    assert own is not None
    far = ReinhardTarget(own.mean, (own.std[0] * 100, own.std[1] * 100, own.std[2] * 100))
    near = ReinhardTarget(own.mean, tuple(value * LARGEST_SCALE for value in own.std))  # type: ignore[arg-type]
    assert np.array_equal(far.applied(image), near.applied(image))


def test_colors_come_back_from_l_alpha_beta() -> None:
    image = np.random.default_rng(0).integers(1, 256, (20, 20, 3), dtype=np.uint8)
    assert np.abs(from_lab(to_lab(image)).T.reshape(image.shape) - image).max() < 1e-9


def test_the_fit_is_the_median_so_that_one_odd_image_does_not_decide() -> None:
    estimates = [macenko_estimate(stained(seed)) for seed in range(6)]
    without, with_odd = (fitted_target("macenko", each) for each in (estimates, [*estimates, TARGET, None]))
    assert isinstance(without, MacenkoTarget)
    assert isinstance(with_odd, MacenkoTarget)
    assert np.abs(np.array(without.stains) - with_odd.stains).max() < 0.05
    assert np.linalg.norm(with_odd.stains, axis=1) == pytest.approx([1, 1])


@pytest.mark.parametrize("method", ESTIMATES)
def test_nothing_can_be_fitted_to_images_without_stain(method: str) -> None:
    with pytest.raises(ImageError, match=rf"data\.stain={method}: no train image has stains"):
        fitted_target(method, [ESTIMATES[method](plain_images()["white"])])


@pytest.mark.parametrize("target", [fitted_target("macenko", [macenko_estimate(stained(0))]), TARGET_LAB])
def test_a_target_comes_back_from_its_plain_values(target: MacenkoTarget | ReinhardTarget) -> None:
    assert restored_target(target.plain()) == target


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "vahadane"}, "neither macenko nor reinhard"),
        ({"method": None}, "neither macenko nor reinhard"),
        ({"stains": None}, "not two lists"),
        ({"stains": [[1, 0, 0]]}, "not two lists"),
        ({"stains": [[1, 0, 0], [1, 0]]}, "list of 3 numbers"),
        ({"stains": [[1, 0, 0], [0, float("nan"), 1]]}, "list of 3 numbers"),
        ({"stains": [[1, 0, 0], [0, 0.5, 0]]}, "not of length 1"),
        ({"stains": [[1, 0, 0], [1, 0, 0]]}, "cannot be told apart"),
        ({"largest": [1, 0]}, "list of 2 numbers"),
        ({"largest": [1, True]}, "list of 2 numbers"),
        ({"largest": "11"}, "list of 2 numbers"),
        ({"method": "reinhard"}, "stain.mean"),
        ({"method": "reinhard", "mean": [0, 0, 0], "std": [1, 1, float("inf")]}, "stain.std"),
    ],
)
def test_plain_values_from_a_stranger_are_checked(change: dict[str, Any], words: str) -> None:
    values = fitted_target("macenko", [macenko_estimate(stained(0))]).plain() | change
    with pytest.raises(ValueError, match=words):
        restored_target(values)


def test_real_images_stay_tissue(real_data: Path) -> None:
    paths = sorted((real_data / "breakhis_200x_224px").rglob("*.png"))[::60]
    images = [np.array(Image.open(path).convert("RGB")) for path in paths]
    for method, estimate in ESTIMATES.items():
        target = fitted_target(method, [estimate(image) for image in images])
        for image in images:
            result = target.applied(image)
            assert abs(float(result.mean()) - float(image.mean())) < 60
            assert (result == 255).all(axis=2).mean() < (image >= 250).all(axis=2).mean() + 0.3  # not bleached
