import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from breakhis_pl.data.domain import FEATURES, Domain
from breakhis_pl.evaluation.calibration import Calibration
from breakhis_pl.evaluation.csv_tables import read_columns
from breakhis_pl.prediction.facts import NetworkFacts
from breakhis_pl.prediction.rows import COLUMNS, GrowingTable, rows_of, softmax
from breakhis_pl.prediction.stream import Decoded

N = len(FEATURES)
DOMAIN = Domain((0.0,) * N, tuple(tuple(row) for row in np.eye(N).tolist()), 2.0, 50, 5)
CALIBRATION = Calibration(2.0, 0.4, 0.95, 20, 5, 0.5, 0.4, 1.0, 0.5)
FACTS = NetworkFacts("resnet18", 32, (0.5,) * 3, (0.1,) * 3, None, None)


def image(path: str = "a.png", *, distance: float = 0.0) -> Decoded:
    features = np.zeros(N)
    features[FEATURES.index("sharpness")] = distance
    return Decoded(path, 30, 20, np.zeros((32, 32, 3), np.uint8), features)


def row(facts: NetworkFacts, logits: tuple[float, float] = (0.0, 1.0), **looks: float) -> dict[str, str]:
    probabilities = softmax(np.array([logits], dtype=np.float32))
    (cells,) = rows_of([image(**looks)], probabilities, facts, [""])
    return dict(zip(COLUMNS, cells, strict=True))


def test_a_row_says_what_was_predicted_by_the_larger_probability() -> None:
    cells = row(FACTS)
    assert float(cells["prob_malignant"]) == pytest.approx(np.exp(1) / (1 + np.exp(1)), abs=1e-9)
    assert float(cells["prob_benign"]) + float(cells["prob_malignant"]) == pytest.approx(1, abs=1e-8)
    assert (cells["width"], cells["height"], cells["predicted"]) == ("30", "20", "malignant")


def test_what_is_not_known_stays_empty() -> None:
    cells = row(FACTS)
    empty = {name for name, cell in cells.items() if cell == ""}
    assert empty == set(COLUMNS[6:])


def test_the_decision_is_made_on_the_calibrated_probability() -> None:
    facts = replace(FACTS, calibration=CALIBRATION)
    assert row(facts)["decision"] == "malignant"
    cells = row(facts, logits=(0.5, 0.0))  # at temperature 2: a logit of -0.25, a probability of 0.438
    assert (cells["predicted"], cells["decision"]) == ("benign", "malignant")
    assert float(cells["prob_malignant_calibrated"]) == pytest.approx(1 / (1 + np.exp(0.25)), abs=1e-6)
    assert row(facts, logits=(2.0, 0.0))["decision"] == "benign"


def test_a_flag_comes_with_its_reason_and_only_a_flag_does() -> None:
    facts = replace(FACTS, domain=DOMAIN)
    flagged, usual = row(facts, distance=-5.0), row(facts, distance=1.0)
    assert (flagged["out_of_domain"], flagged["out_of_domain_score"]) == ("true", "2.5")
    assert flagged["out_of_domain_reason"] == "sharpness -5.0 sd"
    assert (usual["out_of_domain"], usual["out_of_domain_score"], usual["out_of_domain_reason"]) == ("false", "0.5", "")


def test_softmax_is_that_of_large_logits_too() -> None:
    assert softmax(np.array([[1000.0, 0.0]], dtype=np.float32)).tolist() == [[1.0, 0.0]]


def test_a_table_bears_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    with GrowingTable(path, ("image", "reason")) as table:
        table.add([("a", "b")])
        assert (tmp_path / "predictions.partial.csv").read_text() == "image,reason\na,b\n"  # while it is open
    assert not path.exists()
    assert (tmp_path / "predictions.partial.csv").read_text() == "image,reason\na,b\n"
    with GrowingTable(path, ("image", "reason")) as table:
        table.finish()
    assert [entry.name for entry in tmp_path.iterdir()] == ["predictions.csv"]


def test_any_name_comes_back_from_a_table(tmp_path: Path) -> None:
    names = ['say "x", y', "a\nb", "a\r", os.fsdecode(b"\xff\xfe"), " ", "ä", "=1+1", "a\r\nb,"]
    with GrowingTable(tmp_path / "t.csv", ("image", "reason")) as table:
        table.add((name, "r") for name in names)
        table.finish()
    assert [cells["image"] for _, cells in read_columns(tmp_path / "t.csv", ("image",))] == names
