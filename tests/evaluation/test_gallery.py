import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from breakhis_pl.errors import ConfigurationError, RunFolderError, ShapeError
from breakhis_pl.evaluation.gallery import (
    KINDS,
    GalleryEntry,
    choose_gallery,
    read_gallery,
    write_gallery,
)
from breakhis_pl.evaluation.predictions import Predictions

MISTAKE, HARDEST, RIGHT = KINDS

Row = tuple[str, str, int, float]
"""Image, patient, target, probability of "malignant"."""


def predictions_of(rows: list[Row]) -> Predictions:
    image, patient, target, prob_malignant = zip(*rows, strict=True)
    malignant = np.array(prob_malignant)
    return Predictions(
        image=image,
        patient=patient,
        case=patient,
        magnification=np.full(len(rows), 200),
        target=np.array(target),
        probabilities=np.stack([1 - malignant, malignant], axis=1),
        predicted=(malignant > 0.5).astype(np.int64),
    )


def chosen_of(rows: list[Row], kind: str, n_per_kind: int = 8) -> list[str]:
    return [entry.image for entry in choose_gallery(predictions_of(rows), n_per_kind=n_per_kind) if entry.kind == kind]


# patient p has 1 of 4 right, q 1 of 2, r 2 of 3, s and t all
ROWS: list[Row] = [
    ("p1", "p", 0, 0.99),
    ("p2", "p", 0, 0.95),
    ("p3", "p", 0, 0.90),
    ("p4", "p", 0, 0.10),
    ("q1", "q", 1, 0.03),
    ("q2", "q", 1, 0.80),
    ("r1", "r", 1, 0.40),
    ("r2", "r", 1, 0.70),
    ("r3", "r", 1, 0.97),
    ("s1", "s", 0, 0.01),
    ("s2", "s", 0, 0.02),
    ("t1", "t", 1, 0.90),
]


def test_the_surest_mistakes_come_first_two_of_a_patient_at_most() -> None:
    assert chosen_of(ROWS, MISTAKE) == ["p1", "q1", "p2", "r1"]
    assert chosen_of(ROWS, MISTAKE, n_per_kind=2) == ["p1", "q1"]


def test_the_hardest_patients_show_what_is_not_shown_yet() -> None:
    assert chosen_of(ROWS, HARDEST) == ["p3"]
    assert chosen_of(ROWS, HARDEST, n_per_kind=2) == ["p2", "r1"]
    assert chosen_of(ROWS, HARDEST, n_per_kind=1) == ["p2"]


def test_the_hardest_patient_is_the_one_with_the_smallest_share_of_right_images() -> None:
    # a has more wrong images, b the smaller share of right ones; c fills the mistakes
    rows = [("c1", "c", 0, 0.99), ("c2", "c", 0, 0.99)]
    rows += [(f"a{index}", "a", 0, 0.6) for index in range(3)] + [(f"a{index}", "a", 0, 0.1) for index in range(3, 9)]
    rows += [("b1", "b", 0, 0.7), ("b2", "b", 0, 0.8), ("b3", "b", 0, 0.2)]

    assert chosen_of(rows, HARDEST, n_per_kind=2) == ["b2", "a0"]


def test_patients_with_few_hard_ones_show_two_images_each() -> None:
    rows = [(f"{patient}{index}", patient, 0, 0.9) for patient in "ab" for index in range(6)]

    assert chosen_of(rows, HARDEST, n_per_kind=4) == ["a2", "a3", "b2", "b3"]
    assert chosen_of(rows, HARDEST, n_per_kind=3) == ["a2", "a3", "b1"]


def test_right_images_are_the_surest_of_both_classes_by_turns_each_of_another_patient() -> None:
    assert chosen_of(ROWS, RIGHT) == ["s1", "r3", "p4", "t1", "q2"]
    assert chosen_of(ROWS, RIGHT, n_per_kind=3) == ["s1", "r3", "p4"]


def test_equally_sure_images_come_by_name_in_whatever_order_the_rows_are() -> None:
    rows = [(f"{patient}{index}", patient, index % 2, 0.9) for patient in "dbca" for index in (3, 1, 2, 0)]

    assert choose_gallery(predictions_of(rows)) == choose_gallery(predictions_of(rows[::-1]))
    assert chosen_of(rows, MISTAKE) == ["a0", "a2", "b0", "b2", "c0", "c2", "d0", "d2"]


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from([0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), st.integers(0, 1)),
        min_size=1,
        max_size=60,
    ),
    st.integers(1, 9),
)
def test_a_gallery_keeps_its_promises(cells: list[tuple[int, float, int]], n_per_kind: int) -> None:
    rows = [(f"{index:02}.png", f"patient {patient}", target, p) for index, (patient, p, target) in enumerate(cells)]
    predictions = predictions_of(rows)

    entries = choose_gallery(predictions, n_per_kind=n_per_kind)

    images = [entry.image for entry in entries]
    assert len(set(images)) == len(images)
    assert [KINDS.index(entry.kind) for entry in entries] == sorted(KINDS.index(entry.kind) for entry in entries)
    assert [entry.file for entry in entries] == [f"gallery/{n:02}.jpg" for n in range(1, len(entries) + 1)]
    assert all((entry.target == entry.predicted) == (entry.kind == RIGHT) for entry in entries)
    assert max(Counter(entry.kind for entry in entries).values()) <= n_per_kind
    per_patient = Counter((entry.kind, entry.patient) for entry in entries)
    assert all(n <= (1 if kind == RIGHT else 2) for (kind, _), n in per_patient.items())
    n_wrong_patients = len({p for p, right in zip(predictions.patient, predictions.correct, strict=True) if not right})
    assert sum(entry.kind == MISTAKE for entry in entries) >= min(n_per_kind, n_wrong_patients)
    n_right_patients = len({p for p, right in zip(predictions.patient, predictions.correct, strict=True) if right})
    assert sum(entry.kind == RIGHT for entry in entries) == min(n_per_kind, n_right_patients)


def test_an_entry_says_what_the_image_is_and_what_became_of_it() -> None:
    rows = [
        ("SOB_M_PC-14-9146-200-001.png", "SOB_M_PC-14-9146", 1, 0.002),
        ("SOB_M_PC-14-9146-200-002.png", "SOB_M_PC-14-9146", 1, 0.9999),
        ("drawn.png", "patient 7", 0, 0.25),
    ]

    first, *_, last = choose_gallery(predictions_of(rows))

    assert first == GalleryEntry(
        file="gallery/01.jpg",
        kind="surest mistake",
        image="SOB_M_PC-14-9146-200-001.png",
        patient="SOB_M_PC-14-9146",
        target="malignant",
        predicted="benign",
        prob_malignant=0.002,
        caption="Malignant (papillary carcinoma, 200X), called benign (99.8%). "
        "Patient SOB_M_PC-14-9146: 1 of 2 images right.",
    )
    assert last.caption == (
        "Malignant (papillary carcinoma, 200X), rightly called malignant (>99.9%). "
        "Patient SOB_M_PC-14-9146: 1 of 2 images right."
    )
    assert choose_gallery(predictions_of(rows[2:]))[0].caption == (
        "Benign (200X), rightly called benign (75.0%). Patient patient 7: 1 of 1 image right."
    )


def test_a_gallery_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="n_per_kind=0"):
        choose_gallery(predictions_of(ROWS), n_per_kind=0)
    with pytest.raises(ShapeError, match="no predictions"):
        choose_gallery(predictions_of(ROWS).select(np.zeros(len(ROWS), dtype=bool)))


def entries_of(n: int) -> list[GalleryEntry]:
    return choose_gallery(predictions_of([(f"{i}.png", f"patient {i}", i % 2, 0.9) for i in range(n)]))


def noise(n: int, size: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def flat(n: int, size: int, value: float = 0.0) -> np.ndarray:
    return np.full((n, size, size), value, dtype=np.float32)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    entries = entries_of(5)
    entries[0] = replace(entries[0], image="Übersicht 图 \udcff.png")

    write_gallery(tmp_path / "run" / "test", entries, noise(5, 16), flat(5, 16))

    assert read_gallery(tmp_path / "run" / "test") == entries
    gallery = tmp_path / "run" / "test" / "gallery"
    assert sorted(path.name for path in gallery.iterdir()) == [
        *(f"{n:02}.jpg" for n in range(1, 6)),
        "gallery.json",
    ]
    assert [path.name for path in gallery.parent.iterdir()] == ["gallery"]


def test_an_older_gallery_is_replaced_whole(tmp_path: Path) -> None:
    write_gallery(tmp_path, entries_of(5), noise(5, 16), flat(5, 16))

    write_gallery(tmp_path, entries_of(2), noise(2, 16), flat(2, 16))

    assert read_gallery(tmp_path) == entries_of(2)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["01.jpg", "02.jpg", "gallery", "gallery.json"]


def test_a_gallery_that_cannot_be_written_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gallery(tmp_path, entries_of(2), noise(2, 16), flat(2, 16))

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_gallery(tmp_path, entries_of(5), noise(5, 16), flat(5, 16))

    assert read_gallery(tmp_path) == entries_of(2)
    assert [path.name for path in tmp_path.iterdir()] == ["gallery"]


def test_a_folder_without_a_gallery_has_no_entries(tmp_path: Path) -> None:
    assert read_gallery(tmp_path) == []
    assert read_gallery(tmp_path / "missing") == []


def picture(folder: Path, image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    write_gallery(folder, entries_of(1), image[None], heat[None])
    with Image.open(folder / "gallery" / "01.jpg") as opened:
        assert (opened.format, opened.mode) == ("JPEG", "RGB")
        return np.asarray(opened).astype(int)


def test_the_left_half_is_the_image_and_the_right_half_gray_where_there_is_no_heat(tmp_path: Path) -> None:
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    image[:32] = (200, 120, 180)
    image[32:] = (90, 40, 130)

    shown = picture(tmp_path, image, np.zeros((64, 64), dtype=np.float32))

    assert shown.shape == (64, 64 + 8 + 64, 3)
    np.testing.assert_allclose(shown[8:24, 8:56].mean(axis=(0, 1)), (200, 120, 180), atol=4)
    np.testing.assert_allclose(shown[40:56, 8:56].mean(axis=(0, 1)), (90, 40, 130), atol=4)
    assert shown[:, 66:70].min() > 250
    right = shown[:, 72:]
    assert np.ptp(right[8:56, 8:56], axis=2).max() <= 4
    assert right[8:24].mean() > right[40:56].mean() + 30


def test_heat_is_yellow_and_hides_no_tissue(tmp_path: Path) -> None:
    image = np.full((64, 64, 3), 220, dtype=np.uint8)
    image[:, ::8] = 60  # dark lines, as of membranes
    heat = np.zeros((64, 64), dtype=np.float32)
    heat[:, 32:] = 1.0

    right = picture(tmp_path, image, heat)[:, 72:]

    red, green, blue = right[:, 40:].mean(axis=(0, 1))
    assert min(red, green) > blue + 60
    assert np.ptp(right[:, 8:24].mean(axis=(0, 1))) < 6
    brightness = right[8:56].mean(axis=(0, 2))
    lines, between = np.arange(40, 64, 8), np.arange(44, 64, 8)
    assert brightness[between].mean() > brightness[lines].mean() + 40


def test_more_heat_is_further_from_gray(tmp_path: Path) -> None:
    heat = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))

    right = picture(tmp_path, np.full((64, 64, 3), 200, dtype=np.uint8), heat)[:, 72:]

    colors = right.mean(axis=0)[::9]  # (8, 3), from no heat to the most
    distance = np.linalg.norm(colors - colors[0], axis=1)
    assert (np.diff(distance) > 3).all()


def test_pictures_of_large_images_are_small(tmp_path: Path) -> None:
    shown = picture(tmp_path, noise(1, 460)[0], flat(1, 460)[0])

    assert shown.shape == (256, 256 + 8 + 256, 3)


def test_a_full_gallery_stays_small(tmp_path: Path) -> None:
    fine = np.kron(noise(24, 112), np.ones((1, 2, 2, 1), dtype=np.uint8))  # coarser than noise, finer than tissue
    tissue = (fine // 4 + 150).astype(np.uint8)
    rows = [(f"{i:02}.png", f"patient {i}", 0, 0.9 if i < 16 else 0.1) for i in range(24)]
    entries = choose_gallery(predictions_of(rows))
    assert len(entries) == 24

    write_gallery(tmp_path, entries, tissue, flat(24, 224, 0.5))

    assert sum(path.stat().st_size for path in tmp_path.rglob("*.*")) < 1_000_000


@pytest.mark.parametrize(
    ("pixels", "heat", "message"),
    [
        (noise(1, 8), flat(2, 8), r"2 entries, pixels of shape \(1, 8, 8, 3\)"),
        (noise(2, 8), flat(2, 4), r"heat of shape \(2, 4, 4\)"),
        (noise(2, 8)[:, :4], flat(2, 8)[:, :4], r"pixels of shape \(2, 4, 8, 3\)"),
        (noise(2, 8)[..., 0], flat(2, 8), r"pixels of shape \(2, 8, 8\)"),
        (noise(2, 8).astype(np.float32), flat(2, 8), "pixels are float32"),
        (noise(2, 8), flat(2, 8, 1.5), "heat lies in 0 to 1.5"),
        (noise(2, 8), flat(2, 8, -0.5), "heat lies in -0.5 to 0"),
        (noise(2, 8), flat(2, 8, float("nan")), "heat lies in nan"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(
    pixels: np.ndarray, heat: np.ndarray, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ShapeError, match=message):
        write_gallery(tmp_path, entries_of(2), pixels, heat)
    assert not list(tmp_path.iterdir())


def test_a_damaged_list_is_named(tmp_path: Path) -> None:
    write_gallery(tmp_path, entries_of(1), noise(1, 8), flat(1, 8))
    path = tmp_path / "gallery" / "gallery.json"
    for text, message in {
        "[{": "gallery.json is damaged: Expecting",
        "{}": "it holds a dict, not a list",
        "[3]": "3 is no entry",
        '[{"file": "gallery/01.jpg"}]': "is no entry",
        "[" * 100_000: "gallery.json is damaged",
        "\ud800": "gallery.json is damaged",
    }.items():
        path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
        with pytest.raises(RunFolderError, match=message):
            read_gallery(tmp_path)


CHANGES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    r"'\.\./\.\./secret\.jpg' is no picture": lambda entry: entry | {"file": "../../secret.jpg"},
    r"'gallery/\.\./01\.jpg' is no picture": lambda entry: entry | {"file": "gallery/../01.jpg"},
    r"'/etc/passwd' is no picture": lambda entry: entry | {"file": "/etc/passwd"},
    r"'gallery/01\.jpg\\n' is no picture": lambda entry: entry | {"file": "gallery/01.jpg\n"},
    r"'gallery/02\.jpg' is missing": lambda entry: entry | {"file": "gallery/02.jpg"},
    "'best' is none of surest mistake, hardest patient, right": lambda entry: entry | {"kind": "best"},
    "'b' is none of benign, malignant": lambda entry: entry | {"predicted": "b"},
    "target of": lambda entry: entry | {"target": 1},
    "prob_malignant 1.5": lambda entry: entry | {"prob_malignant": 1.5},
    "prob_malignant nan": lambda entry: entry | {"prob_malignant": float("nan")},
    "prob_malignant '0.5'": lambda entry: entry | {"prob_malignant": "0.5"},
    "prob_malignant True": lambda entry: entry | {"prob_malignant": True},
    "is no entry": lambda entry: entry | {"more": "x"},
}


@pytest.mark.parametrize("message", CHANGES)
def test_an_entry_that_cannot_be_right_is_refused(message: str, tmp_path: Path) -> None:
    entries = entries_of(1)
    write_gallery(tmp_path, entries, noise(1, 8), flat(1, 8))
    changed = CHANGES[message](asdict(entries[0]))
    (tmp_path / "gallery" / "gallery.json").write_text(json.dumps([changed]))

    with pytest.raises(RunFolderError, match=message):
        read_gallery(tmp_path)


def test_a_picture_that_is_a_link_out_of_the_gallery_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "test"
    write_gallery(folder, entries_of(1), noise(1, 8), flat(1, 8))
    (folder / "gallery" / "01.jpg").rename(tmp_path / "secret.jpg")
    (folder / "gallery" / "01.jpg").symlink_to(tmp_path / "secret.jpg")

    with pytest.raises(RunFolderError, match=r"'gallery/01\.jpg' is no picture inside gallery/"):
        read_gallery(folder)
