import hashlib
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter
from sklearn.metrics import roc_auc_score

from breakhis_pl.config import SyntheticDataConfig
from breakhis_pl.data import synthetic
from breakhis_pl.data.architecture import build, draw_traits
from breakhis_pl.data.breakhis import IMAGE_SIZE, SUBTYPES, archive_folder, official_patients, parse_file_name
from breakhis_pl.data.drawn import synthetic_folder
from breakhis_pl.data.synthetic import DESCRIPTION, draw_tissue, write_synthetic
from breakhis_pl.data.tissue import Canvas, Flow
from breakhis_pl.errors import ConfigurationError, StorageError

SMALL = (32, 21)
BENIGN = "SOB_B_F-14-9133"
MALIGNANT = "SOB_M_DC-14-2523"


def first_patient(subtype: str) -> str:
    return next(patient for patient in official_patients() if patient.split("_")[2].startswith(f"{subtype}-"))


def checksums(root: Path) -> dict[str, str]:
    return {str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest() for file in root.rglob("*.png")}


def large_nuclei_share(image: np.ndarray) -> float:
    """Share of dark pixels that stay dark after a thin rim is taken off every dark spot."""
    red = image[..., 0]
    dark = Image.fromarray(((red < np.percentile(red, [2, 70]).mean()) * 255).astype(np.uint8))
    kept = np.asarray(dark.filter(ImageFilter.MinFilter(3))) > 0
    return float(kept.sum() / (np.asarray(dark) > 0).sum())


@pytest.mark.parametrize("subtype", SUBTYPES)
@pytest.mark.parametrize("magnification", [40, 400])
def test_every_subtype_can_be_drawn_at_every_end_of_the_magnifications(subtype: str, magnification: int) -> None:
    image = draw_tissue(first_patient(subtype), 1, magnification=magnification, size=SMALL)
    assert image.shape == (21, 32, 3)
    assert image.dtype == np.uint8
    assert image.std() > 10


@pytest.mark.parametrize("seed", range(30))
def test_every_subtype_can_be_drawn_with_any_seed(seed: int) -> None:
    for subtype in SUBTYPES:
        assert draw_tissue(first_patient(subtype), 1, size=(16, 16), seed=seed).shape == (16, 16, 3)


def test_the_default_size_is_that_of_breakhis() -> None:
    assert draw_tissue(MALIGNANT, 1).shape == (IMAGE_SIZE[1], IMAGE_SIZE[0], 3)


def test_the_same_arguments_draw_the_same_image() -> None:
    first = draw_tissue(BENIGN, 3, magnification=100, size=SMALL, seed=5)
    draw_tissue(MALIGNANT, 1, size=SMALL)
    np.testing.assert_array_equal(first, draw_tissue(BENIGN, 3, magnification=100, size=SMALL, seed=5))


def test_seed_patient_number_and_magnification_each_change_the_image() -> None:
    images = [
        draw_tissue(BENIGN, 1, size=SMALL),
        draw_tissue(BENIGN, 1, size=SMALL, seed=1),
        draw_tissue("SOB_B_F-14-14134", 1, size=SMALL),
        draw_tissue(BENIGN, 2, size=SMALL),
        draw_tissue(BENIGN, 1, size=SMALL, magnification=100),
    ]
    assert len({image.tobytes() for image in images}) == len(images)


@pytest.mark.parametrize("subtype", SUBTYPES)
def test_a_small_drawing_looks_like_the_large_one_made_small(subtype: str) -> None:
    patient = first_patient(subtype)
    large = Image.fromarray(draw_tissue(patient, 1)).resize((70, 46), Image.Resampling.BOX)
    small = Image.fromarray(draw_tissue(patient, 1, size=(175, 115))).resize((70, 46), Image.Resampling.BOX)
    other = Image.fromarray(draw_tissue(patient, 2)).resize((70, 46), Image.Resampling.BOX)
    same = np.corrcoef(np.ravel(large), np.ravel(small))[0, 1]
    assert same > 0.95
    assert same > np.corrcoef(np.ravel(large), np.ravel(other))[0, 1] + 0.2


def test_lower_magnification_shows_more_and_smaller_nuclei() -> None:
    patient = first_patient("DC")
    shares = [
        np.mean([large_nuclei_share(draw_tissue(patient, n, magnification=m, size=(175, 115))) for n in (1, 2, 3)])
        for m in (100, 200, 400)
    ]
    assert shares[0] < shares[1] < shares[2]


def test_nuclei_tell_the_classes_apart_and_mean_color_does_not() -> None:
    is_malignant = [parse_file_name(f"{patient}-200-001.png").target for patient in official_patients()]
    images = [draw_tissue(patient, 1, size=(175, 115)) for patient in official_patients()]
    color = np.array([image.mean(axis=(0, 1)) for image in images])  # (82, 3)
    color_auc = [roc_auc_score(is_malignant, color[:, channel]) for channel in range(3)]
    nuclei_auc = roc_auc_score(is_malignant, [large_nuclei_share(image) for image in images])
    assert max(max(auc, 1 - auc) for auc in color_auc) < 0.8
    assert nuclei_auc > 0.88


def test_the_architecture_of_an_unknown_subtype_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigurationError, match="subtype XY"):
        build(Canvas(200, SMALL), rng, "XY", draw_traits(rng, "DC"), Flow.draw(rng))


def test_files_lie_in_the_archives_folders_under_names_that_parse(tmp_path: Path) -> None:
    root = write_synthetic(tmp_path / "new", images_per_patient=1, size=(16, 16))
    files = sorted(file for file in root.rglob("*") if file.is_file())
    names = [parse_file_name(file.name) for file in files]
    assert {name.patient for name in names} == set(official_patients())
    assert len(names) == 82
    for file, name in zip(files, names, strict=True):
        assert file.parent == root / archive_folder(name)
        assert file.name.endswith("-200-001.png")


def test_files_are_rgb_png_of_the_size_and_say_that_they_are_drawn(tmp_path: Path) -> None:
    write_synthetic(tmp_path, images_per_patient=1, size=SMALL, patients=[BENIGN], seed=2)
    (file,) = tmp_path.rglob("*.png")
    with Image.open(file) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", SMALL)
        assert image.info["Description"] == DESCRIPTION
        np.testing.assert_array_equal(np.asarray(image), draw_tissue(BENIGN, 1, size=SMALL, seed=2))


def test_files_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    few = {"images_per_patient": 5, "size": SMALL, "patients": [BENIGN, MALIGNANT]}
    one = checksums(write_synthetic(tmp_path / "one", workers=1, **few))
    two = checksums(write_synthetic(tmp_path / "two", workers=2, **few))
    assert len(one) == 10
    assert one == two


def test_without_a_number_per_patient_the_published_counts_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blank = np.zeros((16, 16, 3), dtype=np.uint8)
    monkeypatch.setattr(synthetic, "draw_tissue", lambda *_args, **_kwargs: blank)
    patients = [BENIGN, MALIGNANT]
    write_synthetic(
        tmp_path, images_per_patient=None, magnifications=(400, 40), size=(16, 16), patients=patients, workers=1
    )
    names = [parse_file_name(file.name) for file in tmp_path.rglob("*.png")]
    for patient in patients:
        for magnification in (40, 400):
            written = [name for name in names if (name.patient, name.magnification) == (patient, magnification)]
            assert len(written) == official_patients()[patient].n_images[magnification]
    assert {name.magnification for name in names} == {40, 400}


def test_no_patient_gets_more_images_than_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blank = np.zeros((16, 16, 3), dtype=np.uint8)
    monkeypatch.setattr(synthetic, "draw_tissue", lambda *_args, **_kwargs: blank)
    write_synthetic(tmp_path, images_per_patient=900, size=(16, 16), patients=[BENIGN], workers=1)
    assert len(list(tmp_path.rglob("*.png"))) == official_patients()[BENIGN].n_images[200]


def test_progress_ends_at_the_number_of_images(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_synthetic(
        tmp_path,
        images_per_patient=5,
        size=(16, 16),
        patients=[BENIGN],
        on_progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(4, 5), (5, 5)]


def test_an_existing_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    write_synthetic(tmp_path, images_per_patient=1, size=(16, 16), patients=[BENIGN])
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    good = file.read_bytes()
    file.write_bytes(b"cut off")
    write_synthetic(tmp_path, images_per_patient=1, size=(16, 16), patients=[BENIGN])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]
    assert file.read_bytes() == good


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ({"size": (175, 15)}, "175x15"),
        ({"seed": -1}, "seed -1"),
        ({"magnification": 250}, "magnification 250"),
        ({"patient": "SOB_B_TA-14-1"}, "SOB_B_TA-14-1"),
        ({"number": 0}, "number 0"),
        ({"number": 1000}, "number 1000"),
    ],
)
def test_an_image_that_cannot_be_drawn_is_refused(arguments: dict[str, object], value: str) -> None:
    with pytest.raises(ConfigurationError, match=value):
        draw_tissue(**({"patient": BENIGN, "number": 1} | arguments))


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ({"size": (15, 460)}, "15x460"),
        ({"seed": -7}, "seed -7"),
        ({"magnifications": (40, 50, 60)}, "magnification 50, 60"),
        ({"magnifications": ()}, "magnifications .* empty"),
        ({"patients": ["SOB_X", BENIGN, "SOB_Y"]}, "SOB_X, SOB_Y"),
        ({"patients": []}, "patients .* empty"),
        ({"images_per_patient": 0}, "images_per_patient 0"),
        ({"workers": 0}, "workers 0"),
    ],
)
def test_images_that_cannot_be_written_are_refused_before_anything_is(
    tmp_path: Path, arguments: dict[str, object], value: str
) -> None:
    with pytest.raises(ConfigurationError, match=value):
        write_synthetic(tmp_path / "root", **arguments)
    assert not (tmp_path / "root").exists()


def test_a_process_that_is_killed_while_it_draws_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killing(root: Path, **asked: Any) -> Path:
        def kill(done: int, total: int) -> None:
            assert done < total
            for child in multiprocessing.active_children():
                child.kill()

        return write_synthetic(root, **{**asked, "on_progress": kill, "workers": 2})

    monkeypatch.setattr("breakhis_pl.data.drawn.write_synthetic", killing)
    asked = SyntheticDataConfig(cache_dir=str(tmp_path), magnification=(200,), width=32, images_per_patient=4)
    with pytest.raises(StorageError, match=r"^a process that draws images was ended from outside"):
        synthetic_folder(asked, show_progress=False)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
