from pathlib import Path

import numpy as np
from PIL import Image

from breakhis_pl.data.breakhis import SUBTYPES, official_patients, parse_file_name
from breakhis_pl.data.synthetic import generate_image, synthetic_folder

NAMES = {
    code: next(f"{patient}-200-001.png" for patient in official_patients() if f"_{code}-" in patient)
    for code in SUBTYPES
}


def test_an_image_is_a_function_of_name_width_and_seed() -> None:
    name = parse_file_name(NAMES["F"])
    image = generate_image(name, width=70, seed=0)
    assert image.shape == (46, 70, 3)
    assert np.array_equal(image, generate_image(name, width=70, seed=0))
    assert not np.array_equal(image, generate_image(name, width=70, seed=1))
    assert not np.array_equal(image, generate_image(parse_file_name(NAMES["A"]), width=70, seed=0))


def test_a_folder_has_all_patients_and_is_generated_once(tmp_path: Path) -> None:
    def generate() -> Path:
        return synthetic_folder(
            tmp_path, magnifications=(100, 200), images_per_patient=1, width=32, seed=0, progress_bar=False
        )

    folder = generate()
    names = [parse_file_name(path.name) for path in folder.rglob("*.png")]
    assert {(name.patient, name.magnification) for name in names} == {
        (patient, magnification) for patient in official_patients() for magnification in (100, 200)
    }
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    assert generate() == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")} == times
    with Image.open(next(folder.rglob("*.png"))) as image:
        assert "synthetic" in image.info["Comment"]


def test_the_classes_differ_in_a_simple_statistic() -> None:
    darkness = {"benign": [], "malignant": []}  # type: dict[str, list[float]]
    for patient in official_patients():
        name = parse_file_name(f"{patient}-200-001.png")
        darkness[name.class_name].append(255 - float(generate_image(name, width=70, seed=0).mean()))
    benign, malignant = (np.array(darkness[name]) for name in ("benign", "malignant"))
    spread = np.sqrt((benign.var() + malignant.var()) / 2)
    assert abs(malignant.mean() - benign.mean()) > 0.5 * spread
