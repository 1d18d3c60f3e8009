import copy
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from breakhis_pl.data.breakhis import Subset, official_patients
from breakhis_pl.data.domain import (
    FEATURES,
    FEWEST_CASES,
    FEWEST_IMAGES,
    Domain,
    appearance,
    appearances,
    fit_domain,
    plain_domain,
    restored_domain,
)
from breakhis_pl.data.index import index_images
from breakhis_pl.data.pictures import read_picture
from breakhis_pl.data.resampling import resized
from breakhis_pl.data.splits import official_split
from breakhis_pl.data.synthetic import draw_tissue

SIZE = 96


def strangers() -> dict[str, np.ndarray]:
    """Pictures that are no tissue; uint8, (height, width, 3) each."""
    found = importlib.util.find_spec("sklearn")  # its photographs; importing it takes long
    assert found is not None
    assert found.origin is not None
    photographs = Path(found.origin).parent / "datasets" / "images"
    rng = np.random.default_rng(0)
    return {
        "china": read_picture(photographs / "china.jpg").pixels,
        "flower": read_picture(photographs / "flower.jpg").pixels,
        "white": np.full((460, 700, 3), 255, np.uint8),
        "glass": np.clip(rng.normal(238, 2, (460, 700, 3)), 0, 255).astype(np.uint8),
        "black": np.zeros((460, 700, 3), np.uint8),
        "noise": rng.integers(0, 256, (460, 700, 3), dtype=np.uint8),
        "one color": np.full((460, 700, 3), (200, 150, 190), np.uint8),
    }


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, list[str]]:
    """Drawn tissue of every patient, and its cases."""
    patients = list(official_patients())
    images = [resized(draw_tissue(patient, 1, size=(140, 92)), SIZE) for patient in patients]
    return np.stack(images), [patient[-12:] for patient in patients]


@pytest.fixture(scope="module")
def domain(drawn: tuple[np.ndarray, list[str]]) -> Domain:
    images, cases = drawn
    found = fit_domain(appearances(images, range(len(images)), n_threads=2), cases)
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["china", "flower", "white", "glass", "black", "noise", "one color"])
def test_what_is_no_tissue_is_flagged_with_a_reason(name: str, domain: Domain) -> None:
    features = appearance(resized(strangers()[name], SIZE))
    assert np.isfinite(features).all()
    assert domain.score(features) > 1
    assert " sd" in domain.reason(features)


def test_tissue_of_other_images_is_not_flagged(domain: Domain) -> None:
    others = [resized(draw_tissue(patient, 2, size=(140, 92)), SIZE) for patient in list(official_patients())[::4]]
    scores = [domain.score(appearance(image)) for image in others]
    assert np.mean(np.array(scores) > 1) < 0.1


def test_an_image_in_the_middle_of_the_train_images_has_no_single_reason(domain: Domain) -> None:
    assert domain.score(np.array(domain.mean)) == 0
    assert domain.reason(np.array(domain.mean)) == ("a combination of colors and texture that train images do not have")


def test_the_reason_names_what_is_farthest_off(domain: Domain) -> None:
    features = np.array(domain.mean)
    features[FEATURES.index("sharpness")] -= 7 * np.sqrt(domain.covariance[9][9])
    assert domain.reason(features) == "sharpness -7.0 sd"


def test_the_score_is_the_distance_by_an_independent_reference(domain: Domain) -> None:
    from scipy.spatial.distance import mahalanobis

    features = appearance(resized(strangers()["noise"], SIZE))
    expected = mahalanobis(features, domain.mean, np.linalg.inv(np.array(domain.covariance)))
    assert domain.score(features) == pytest.approx(expected / domain.limit, rel=1e-6)


def test_threads_change_nothing(drawn: tuple[np.ndarray, list[str]]) -> None:
    images, _ = drawn
    one, four = (appearances(images, range(12), n_threads=n) for n in (1, 4))
    assert np.array_equal(one, four)


def test_without_enough_images_or_cases_nothing_is_fitted() -> None:
    features = np.random.default_rng(0).normal(size=(FEWEST_IMAGES, len(FEATURES)))
    cases = [str(number % FEWEST_CASES) for number in range(FEWEST_IMAGES)]
    assert fit_domain(features, cases) is not None
    assert fit_domain(features[1:], cases[1:]) is None
    assert fit_domain(features, [str(number % (FEWEST_CASES - 1)) for number in range(FEWEST_IMAGES)]) is None
    one_has_nearly_all = ["a"] * (FEWEST_IMAGES - 4) + ["b", "c", "d", "e"]
    assert fit_domain(features, one_has_nearly_all) is None


def test_images_that_are_all_the_same_give_a_domain_of_their_own() -> None:
    features = np.zeros((FEWEST_IMAGES, len(FEATURES)))
    found = fit_domain(features, [str(number % 7) for number in range(FEWEST_IMAGES)])
    assert found is not None
    assert found.score(np.zeros(len(FEATURES))) == 0


def test_plain_values_give_the_same_domain_back(domain: Domain) -> None:
    assert restored_domain(plain_domain(domain)) == domain


CHANGES: list[tuple[str, Any, str]] = [
    ("features", ["other"], "not those of this version"),
    ("mean", [0.0], "mean of train images is not 11 numbers"),
    ("mean", [float("nan")] * 11, "of sensible size"),
    ("mean", [True] * 11, "of sensible size"),
    ("mean", [1e300] * 11, "of sensible size"),
    ("covariance", None, "not 11 rows of 11"),
    ("covariance", [[0.0] * 11] * 11, "not positive definite"),
    ("covariance", [[1.0] * 11] * 11, "not positive definite"),
    ("covariance", [["x"] * 11] * 11, "of sensible size"),
    ("limit", 0, "not above 0"),
    ("limit", "7", "of sensible size"),
    ("n_images", 0, "not above 0"),
    ("n_cases", 1.5, "not above 0"),
]


@pytest.mark.parametrize(("name", "value", "match"), CHANGES)
def test_values_from_strangers_are_refused(name: str, value: object, match: str, domain: Domain) -> None:
    values = copy.deepcopy(plain_domain(domain))
    values[name] = value
    with pytest.raises(ValueError, match=match):
        restored_domain(values)


def test_what_is_no_table_of_values_is_refused() -> None:
    with pytest.raises(ValueError, match="not those of this version"):
        restored_domain([1, 2])


def test_on_real_images_strangers_are_flagged_and_held_out_ones_are_not(real_data: Path) -> None:
    records = index_images(real_data / "breakhis_200x_224px", [200])
    split = official_split(records, fold=2)
    images = np.stack([resized(read_picture(record.path).pixels, 224) for record in records])
    train, test = (list(split.indices(subset)) for subset in (Subset.TRAIN, Subset.TEST))
    cases = [records[row].name.case for row in train]
    found = fit_domain(appearances(images, train, n_threads=2), cases)
    assert found is not None
    scores = [found.score(features) for features in appearances(images, test, n_threads=2)]
    assert sum(score > 1 for score in scores) / len(scores) < 0.02  # one of 316: nearly all glass
    originals = index_images(real_data / "breakhis_originals", [200])
    assert all(found.score(appearance(resized(read_picture(record.path).pixels, 224))) <= 1 for record in originals)
    for name, picture in strangers().items():
        assert found.score(appearance(resized(picture, 224))) > 1, name
    gray = np.asarray(Image.fromarray(images[test[0]]).convert("L").convert("RGB"))
    assert found.score(appearance(gray)) > 1
