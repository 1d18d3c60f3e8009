"""Images of a gallery: their choice, and their files."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from breakhis_pl.reporting import gallery
from tests.unit.reporting.conftest import make_table


@given(seed=st.integers(0, 10_000), skill=st.sampled_from([-1, 0, 0.5, 2, 5]), n_per_kind=st.integers(1, 9))
def test_images_are_chosen_once_and_as_their_kind_says(seed: int, skill: float, n_per_kind: int) -> None:
    table = make_table(seed=seed, skill=skill, n_patients=6, n_images=4)
    chosen = gallery.choose_images(table, n_per_kind=n_per_kind)
    rows = {
        kind: [row for each, row in chosen if each == kind]
        for kind in (gallery.MISTAKE, gallery.HARD_PATIENT, gallery.CORRECT)
    }
    assert len({row for _, row in chosen}) == len(chosen)
    assert [kind for kind, _ in chosen] == [kind for kind in rows for _ in rows[kind]]
    assert all(len(each) <= n_per_kind for each in rows.values())
    assert not table.correct[rows[gallery.MISTAKE] + rows[gallery.HARD_PATIENT]].any()
    assert table.correct[rows[gallery.CORRECT]].all()
    mistakes, hard, correct = (Counter(table.patient[rows[kind]]) for kind in rows)
    assert all(n <= gallery.IMAGES_PER_PATIENT for n in mistakes.values())
    assert all(n == 1 for n in (hard + Counter()).values())
    assert all(n == 1 for n in correct.values())
    confidence = table.probabilities.max(axis=1)
    assert list(confidence[rows[gallery.MISTAKE]]) == sorted(confidence[rows[gallery.MISTAKE]], reverse=True)
    fractions = [
        table.correct[table.patient == patient].mean() for patient in table.patient[rows[gallery.HARD_PATIENT]]
    ]
    assert fractions == sorted(fractions)


@given(seed=st.integers(0, 10_000))
def test_the_order_of_the_rows_does_not_change_the_choice(seed: int) -> None:
    table = make_table(skill=0.3)
    table.probabilities[:] = table.probabilities.round(1)  # ties
    shuffled = table.take(np.random.default_rng(seed).permutation(len(table)))
    names = [
        [(kind, each.image[row]) for kind, row in gallery.choose_images(each, n_per_kind=5)]
        for each in (table, shuffled)
    ]
    assert names[0] == names[1]


@pytest.mark.parametrize("has_heat", [True, False])
def test_a_gallery_is_read_as_it_was_written(tmp_path: Path, has_heat: bool) -> None:
    table = make_table(skill=0.5)
    chosen = gallery.choose_images(table, n_per_kind=3)
    pixels = np.full((len(chosen), 64, 64, 3), 200, dtype=np.uint8)
    heat = np.zeros((len(chosen), 64, 64), dtype=np.float32) if has_heat else None
    gallery.write_gallery(tmp_path, make_table(), [(gallery.CORRECT, 0)] * 20, pixels[[0] * 20], None)
    gallery.write_gallery(tmp_path, table, chosen, pixels, heat)  # replaces the longer one
    found = gallery.read_gallery(tmp_path)
    assert [(entry.kind, entry.image) for entry, _, _ in found] == [(kind, table.image[row]) for kind, row in chosen]
    assert len(list((tmp_path / "gallery").iterdir())) == len(chosen) + 1
    for (entry, content, size), (_, row) in zip(found, chosen, strict=True):
        assert entry.has_heat is has_heat
        assert size == ((2 * 64 + gallery.GAP) if has_heat else 64, 64)
        assert content.startswith(b"\xff\xd8")
        assert [entry.target, entry.predicted] == [table.classes[each[row]] for each in (table.target, table.predicted)]
        assert entry.probability == table.probabilities[row].max()
        of_patient = table.correct[table.patient == entry.patient]
        assert (entry.n_correct, entry.n_images) == (of_patient.sum(), len(of_patient))
        assert entry.target in entry.caption.lower()


def test_pictures_keep_the_aspect_of_the_image_and_stay_small(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    gallery.save_picture(tmp_path / "a.jpg", image, None, aspect=700 / 460)
    with Image.open(tmp_path / "a.jpg") as picture:
        assert picture.size == (256, 168)
    assert (tmp_path / "a.jpg").stat().st_size < 60_000


def test_heat_colors_the_image_and_no_heat_leaves_it_gray() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    heat = np.zeros((32, 32), dtype=np.float32)
    heat[:, 16:] = 1
    tinted = gallery.tint(image, heat).astype(int)
    saturation = tinted.max(axis=2) - tinted.min(axis=2)
    assert saturation[:, :16].max() == 0
    assert saturation[:, 16:].min() > 30
    luma = image[:, 16:] @ np.array([0.299, 0.587, 0.114])
    assert np.corrcoef(tinted[:, 16:].sum(axis=2).ravel(), luma.ravel())[0, 1] > 0.99  # tissue stays visible
