"""Stain normalization against references written from the papers by other means: numpy.linalg on whole arrays."""

import json

import numpy as np
import numpy.typing as npt
import pytest

from breakhis_pl.data.stain import GLASS_LEVEL, MAX_SCALE, MIN_DENSITY, StainTarget, estimate_statistics, fit_stain
from breakhis_pl.errors import DataError

UInt8Array = npt.NDArray[np.uint8]
METHODS = ("macenko", "reinhard")
HEMATOXYLIN = np.array([0.65, 0.70, 0.29]) / np.linalg.norm([0.65, 0.70, 0.29])
EOSIN = np.array([0.07, 0.99, 0.11]) / np.linalg.norm([0.07, 0.99, 0.11])
TARGETS = {
    "macenko": StainTarget("macenko", ((0.5626, 0.7201, 0.4062, 1.9705), (0.2159, 0.8012, 0.5581, 1.0308))),
    "reinhard": StainTarget("reinhard", ((-0.3, -0.05, 0.01), (0.09, 0.02, 0.005))),
}


def stained(seed: int, *, hematoxylin: float = 1.2, eosin: float = 0.8, size: int = 64) -> UInt8Array:
    """An image of known stains in random amounts."""
    amounts = np.random.default_rng(seed).beta(0.5, 0.8, (size * size, 2)) * (hematoxylin, eosin)
    levels = GLASS_LEVEL * np.exp(-amounts @ np.stack([HEMATOXYLIN, EOSIN])) - 1
    return np.rint(levels).clip(0, 255).astype(np.uint8).reshape(size, size, 3)


def macenko_reference(image: UInt8Array) -> UInt8Array:
    """Macenko et al. 2009; pixels count as stained as the module documents."""
    densities = -np.log((image.reshape(-1, 3).astype(float) + 1) / GLASS_LEVEL)
    mean = densities.mean(axis=1)
    counted = densities[(mean >= MIN_DENSITY) & (densities[:, 1] >= mean)]
    plane = np.linalg.eigh(np.cov(counted.T))[1][:, [2, 1]]
    plane[:, 0] *= np.sign(plane[:, 0].sum())
    projected = counted @ plane
    ends = np.percentile(np.arctan2(projected[:, 1], projected[:, 0]), [1, 99])
    one, other = (plane @ [np.cos(angle), np.sin(angle)] for angle in ends)
    stains = np.stack([one, other] if one[0] > other[0] else [other, one])
    amounts = np.linalg.lstsq(stains.T, densities.T, rcond=None)[0]
    target = np.array(TARGETS["macenko"].statistics)
    amounts *= (target[:, 3] / np.percentile(amounts, 99, axis=1))[:, None]
    levels = GLASS_LEVEL * np.exp(-(target[:, :3].T @ amounts)) - 1
    return np.rint(levels.T).clip(0, 255).astype(np.uint8).reshape(image.shape)


def reinhard_reference(image: UInt8Array) -> UInt8Array:
    """Reinhard et al. 2001, for an image all of whose pixels are stained."""
    to_lms = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
    to_lab = np.diag([1 / 3**0.5, 1 / 6**0.5, 1 / 2**0.5]) @ np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]])
    lab = to_lab @ np.log10(to_lms @ (np.maximum(image.reshape(-1, 3).T, 1) / 255))
    mean, std = np.array(TARGETS["reinhard"].statistics)[..., None]
    moved = (lab - lab.mean(1, keepdims=True)) / lab.std(1, keepdims=True) * std + mean
    levels = 255 * np.linalg.solve(to_lms, 10 ** np.linalg.solve(to_lab, moved))
    return np.rint(levels.T).clip(0, 255).astype(np.uint8).reshape(image.shape)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("method", "reference"), [("macenko", macenko_reference), ("reinhard", reinhard_reference)])
def test_an_image_is_normalized_as_in_the_paper(method: str, reference: object, seed: int) -> None:
    image = stained(seed)
    if method == "reinhard":
        image = np.minimum(image, (150, 90, 150)).astype(np.uint8)  # stained everywhere
    difference = TARGETS[method].normalize(image).astype(int) - reference(image)  # type: ignore[operator]
    assert np.abs(difference).max() <= 1
    assert (difference == 0).mean() > 0.99


@pytest.mark.parametrize("method", METHODS)
def test_images_of_different_stain_strengths_become_similar(method: str) -> None:
    pale, strong = stained(0, hematoxylin=0.8, eosin=0.6), stained(0, hematoxylin=1.7, eosin=1.2)
    target = fit_stain(method, [pale, strong])
    before = np.abs(pale.astype(int) - strong).mean()
    assert np.abs(target.normalize(pale).astype(int) - target.normalize(strong)).mean() < before / 2


@pytest.mark.parametrize("method", METHODS)
def test_the_image_that_a_target_was_fitted_to_hardly_changes(method: str) -> None:
    image = stained(1)
    assert np.abs(fit_stain(method, [image]).normalize(image).astype(int) - image).max() <= 3


UNSTAINED = {
    "white": np.full((32, 32, 3), 255, dtype=np.uint8),
    "glass": np.full((32, 32, 3), 238, dtype=np.uint8),
    "one dark pixel": np.pad(np.zeros((1, 1, 3), dtype=np.uint8), ((0, 31), (0, 31), (0, 0)), constant_values=255),
    "noise on glass": np.random.default_rng(0).integers(230, 256, (32, 32, 3), dtype=np.uint8),
    "greenish glass": np.full((32, 32, 3), (200, 225, 200), dtype=np.uint8),
}


@pytest.mark.parametrize("kind", UNSTAINED)
@pytest.mark.parametrize("method", METHODS)
def test_an_image_without_stain_is_unchanged(method: str, kind: str) -> None:
    assert np.array_equal(TARGETS[method].normalize(UNSTAINED[kind]), UNSTAINED[kind])


def test_an_image_of_one_stain_is_unchanged_by_macenko() -> None:
    amounts = np.random.default_rng(0).uniform(0.2, 1.5, (32, 32, 1))
    image = np.rint(GLASS_LEVEL * np.exp(-amounts * EOSIN) - 1).clip(0, 255).astype(np.uint8)
    assert np.array_equal(TARGETS["macenko"].normalize(image), image)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("level", [0, 1, 100])
def test_an_image_of_one_color_stays_one(method: str, level: int) -> None:
    normalized = TARGETS[method].normalize(np.full((16, 16, 3), level, dtype=np.uint8))
    assert (normalized.dtype, normalized.shape) == (np.uint8, (16, 16, 3))
    assert len(np.unique(normalized.reshape(-1, 3), axis=0)) == 1


@pytest.mark.parametrize(("method", "columns"), [("macenko", slice(3, None)), ("reinhard", slice(None))])
def test_amounts_and_spreads_are_scaled_within_limits(method: str, columns: slice) -> None:
    image = stained(0)
    own = estimate_statistics(method, image)
    assert own is not None

    def normalized(factor: float) -> UInt8Array:
        statistics = own.copy()
        row = slice(1, None) if method == "reinhard" else slice(None)
        statistics[row, columns] *= factor
        return StainTarget.from_plain({"method": method, "statistics": statistics}).normalize(image)

    assert np.array_equal(normalized(100), normalized(MAX_SCALE))
    assert not np.array_equal(normalized(MAX_SCALE / 2), normalized(MAX_SCALE))


def test_the_target_is_the_median_of_the_images_with_separable_stains() -> None:
    images = [stained(seed) for seed in range(5)]
    statistics = np.array([estimate_statistics("macenko", image) for image in images])
    target = np.array(fit_stain("macenko", [UNSTAINED["white"], *images]).statistics)
    assert np.allclose(target[:, 3], np.median(statistics[:, :, 3], axis=0))
    assert np.allclose(target[:, :3], np.median(statistics[:, :, :3], axis=0), atol=1e-3)
    assert np.allclose(np.linalg.norm(target[:, :3], axis=1), 1)


@pytest.mark.parametrize("method", METHODS)
def test_images_without_stain_are_refused(method: str) -> None:
    with pytest.raises(DataError, match=r"data\.stain"):
        fit_stain(method, UNSTAINED.values())


@pytest.mark.parametrize("method", METHODS)
def test_a_target_survives_json_and_is_the_same_every_time(method: str) -> None:
    images = [stained(seed) for seed in range(8)]
    target = fit_stain(method, images)
    assert (
        StainTarget.from_plain(json.loads(json.dumps(target.to_plain()))) == target == fit_stain(method, iter(images))
    )
