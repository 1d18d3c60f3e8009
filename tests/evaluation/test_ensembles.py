import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from breakhis_pl.errors import PredictionsError, RunFolderError
from breakhis_pl.evaluation.comparison import collect_runs, write_comparison
from breakhis_pl.evaluation.ensemble_file import ENSEMBLE_JSON, read_ensemble_json
from breakhis_pl.evaluation.ensembles import average, read_members, write_ensemble
from breakhis_pl.evaluation.metrics import evaluate, write_metrics
from breakhis_pl.evaluation.predictions import Predictions, read_predictions, table_checksum, write_predictions
from breakhis_pl.evaluation.run_metrics import evaluate_table
from tests.evaluation.written_runs import drawn_predictions, write_run


def with_probabilities(rows: Predictions, malignant: list[float]) -> Predictions:
    probabilities = np.column_stack([1 - np.array(malignant), malignant])
    return replace(rows, probabilities=probabilities, predicted=probabilities.argmax(axis=1))


def three_rows() -> Predictions:
    return drawn_predictions(images_per_patient=1).take(np.array([0, 1, 2]))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs on the same images and the ensemble of them."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        write_run(folder / f"seed{seed}", drawn_predictions(seed=seed), config={"seed": seed})
    write_ensemble(folder / "all", [folder / f"seed{seed}" for seed in range(3)])
    return folder


@pytest.fixture
def runs(written: Path, tmp_path: Path) -> list[Path]:
    """Copies of the three runs that a test may damage."""
    return [shutil.copytree(written / f"seed{seed}", tmp_path / f"seed{seed}") for seed in range(3)]


def change_rows(run: Path, rows: Predictions, *, place: str = "test", **metrics: object) -> None:
    (run / place).mkdir(exist_ok=True)
    write_predictions(run / place / "predictions.csv", rows)
    write_metrics(run / place / "metrics.json", evaluate(rows, with_intervals=False) | metrics)


def test_probabilities_are_averaged_and_the_larger_mean_decides() -> None:
    rows = three_rows()
    tables = [with_probabilities(rows, malignant) for malignant in ([0.9, 0.6, 0.1], [0.4, 0.3, 0.2], [0.4, 0.3, 0.3])]

    mean = average(tables)

    assert mean.prob_malignant.tolist() == pytest.approx([1.7 / 3, 0.4, 0.2])
    assert mean.predicted.tolist() == [1, 0, 0]  # most of the three call the first benign
    assert mean.image == rows.image


def test_rows_are_matched_by_image_whatever_their_order() -> None:
    rows = with_probabilities(three_rows(), [0.1, 0.5, 0.9])

    mean = average([rows, rows.take(np.array([2, 0, 1]))])

    assert mean.prob_malignant.tolist() == [0.1, 0.5, 0.9]


def test_the_folder_holds_the_files_of_a_result_and_of_a_comparison(written: Path) -> None:
    assert {path.name for path in (written / "all").iterdir()} == {
        *("ensemble.json", "predictions.csv", "metrics.json", "confusion_matrix.png"),
        *("comparison.csv", "comparison.md", "comparison.html", "forest.png"),
    }
    tables = [read_predictions(written / f"seed{seed}/test/predictions.csv") for seed in range(3)]
    mean = np.mean([table.probabilities for table in tables], axis=0)
    found = read_predictions(written / "all/predictions.csv")
    assert np.allclose(found.probabilities, mean, atol=1e-9, rtol=0)
    assert np.array_equal(found.predicted, mean.argmax(axis=1))
    metrics = json.loads((written / "all/metrics.json").read_text())
    assert metrics["accuracy"]["value"] == pytest.approx((mean.argmax(axis=1) == found.target).mean())


def test_ensemble_json_names_members_with_checksums_of_their_tables(written: Path) -> None:
    document = json.loads((written / "all" / ENSEMBLE_JSON).read_text())

    assert (document["averaged"], document["subset"], document["table"]) == (
        "probabilities",
        "test",
        "test/predictions.csv",
    )
    assert [(member["name"], member["model"], member["seed"]) for member in document["members"]] == [
        (f"seed{seed}", "resnet18", seed) for seed in range(3)
    ]
    for member in document["members"]:
        assert member["predictions_checksum"] == table_checksum(Path(member["folder"]) / "test/predictions.csv")
    assert (document["fold"], document["split"], document["synthetic"], document["complete"]) == (
        2,
        "official",
        False,
        True,
    )


def test_the_ensemble_is_compared_with_its_members_in_pairs(written: Path) -> None:
    page = (written / "all/comparison.md").read_text()

    assert "ensemble: the mean of the probabilities of seed0, seed1, seed2, from their test/predictions.csv." in page
    assert "| ensemble | ensemble of 3 |" in page
    assert all(f"| ensemble | seed{seed} | weighted F1 |" in page for seed in range(3))
    value = json.loads((written / "all/metrics.json").read_text())["weighted_f1"]["value"]
    assert f"| ensemble | ensemble of 3 | {value:.3f} (" in page


def test_numbers_of_an_ensemble_are_recomputed_with_its_siblings(written: Path) -> None:
    metrics = json.loads((written / "all/metrics.json").read_text())

    assert evaluate_table(written / "all/predictions.csv") == metrics
    of_member = json.loads((written / "seed0/test/metrics.json").read_text())
    assert metrics["without_siblings"]["n_images"] == of_member["without_siblings"]["n_images"] < metrics["n_images"]


def test_an_image_is_a_sibling_where_any_member_has_trained_on_its_case(runs: list[Path], tmp_path: Path) -> None:
    rows = read_predictions(runs[0] / "test/predictions.csv")
    before = {name for run in read_members(runs) for name in _siblings_of(run.folder)}
    image, case = next((image, case) for image, case in zip(rows.image, rows.case, strict=True) if image not in before)
    with (runs[2] / "split.csv").open("a") as split:
        split.write(f"another.png,SOB_B_A-14-1,{case},train\n")

    write_ensemble(tmp_path / "out", runs)

    assert image in read_ensemble_json(tmp_path / "out").siblings


def _siblings_of(run: Path) -> frozenset[str]:
    from breakhis_pl.evaluation.siblings import siblings_from_split

    return siblings_from_split(run / "split.csv")


def test_an_ensemble_is_written_again_in_its_place_and_nowhere_else(runs: list[Path], tmp_path: Path) -> None:
    write_ensemble(tmp_path / "out", runs)
    write_ensemble(tmp_path / "out", runs[:2])
    assert len(read_ensemble_json(tmp_path / "out").members) == 2

    with pytest.raises(RunFolderError, match=r"out=.*seed2 holds other files and no ensemble\.json"):
        write_ensemble(runs[2], runs[:2])
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError, match="file is no folder; name a new one"):
        write_ensemble(tmp_path / "file", runs)


def test_an_ensemble_stands_among_runs_and_is_no_member(runs: list[Path], tmp_path: Path) -> None:
    write_ensemble(tmp_path / "all", runs)

    page = write_comparison(tmp_path).read_text()

    assert [run.name for run in collect_runs(tmp_path)] == ["all", "seed0", "seed1", "seed2"]
    assert "| all | ensemble of 3 |" in page
    assert [member.summary.name for member in read_members([tmp_path])] == ["seed0", "seed1", "seed2"]
    with pytest.raises(PredictionsError, match="all is an ensemble itself; name its members"):
        read_members([tmp_path / "all", runs[0]])


def test_one_run_and_the_same_run_twice_are_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(PredictionsError, match="seed0 is one run; an ensemble needs two or more"):
        read_members(runs[:1])
    with pytest.raises(PredictionsError, match="seed0 is given more than once"):
        read_members([runs[0], runs[0]])
    shutil.copytree(runs[0], tmp_path / "copy")
    with pytest.raises(PredictionsError, match=r"seed0, copy have the same predictions\.csv, byte by byte"):
        read_members([runs[0], runs[1], tmp_path / "copy"])
    assert not (tmp_path / "out").exists()


def test_other_test_images_are_refused_by_name(runs: list[Path]) -> None:
    rows = read_predictions(runs[1] / "test/predictions.csv")
    change_rows(runs[1], replace(rows, image=("strange.png", *rows.image[1:])))

    with pytest.raises(PredictionsError, match=r"1 only in seed0, 1 only in seed1 \(such as SOB_.*, strange\.png\)"):
        read_members(runs)


def test_another_truth_is_refused_by_name(runs: list[Path]) -> None:
    rows = read_predictions(runs[1] / "test/predictions.csv")
    target = rows.target.copy()
    target[3] = 1 - target[3]
    change_rows(runs[1], replace(rows, target=target))

    with pytest.raises(PredictionsError, match=rf"seed0 and seed1: {rows.image[3]}: of another class or case"):
        read_members(runs)


def test_a_member_that_was_trained_on_a_test_image_is_refused(runs: list[Path]) -> None:
    image = read_predictions(runs[0] / "test/predictions.csv").image[4]
    split = runs[1] / "split.csv"
    lines = split.read_text().splitlines(keepends=True)
    split.write_text("".join(line.replace(",test\n", ",train\n") if line.startswith(image) else line for line in lines))

    with pytest.raises(PredictionsError, match=rf"seed1 was trained or validated on {image}"):
        read_members(runs)


def test_other_subsets_and_classes_are_refused_by_name(runs: list[Path]) -> None:
    rows = read_predictions(runs[1] / "test/predictions.csv")
    change_rows(runs[1], rows, subset="val")
    with pytest.raises(RunFolderError, match=r"seed1/test/predictions\.csv is of the subset 'val'; expected test"):
        read_members(runs)
    change_rows(runs[1], rows, class_names=["A", "F"])
    with pytest.raises(RunFolderError, match=r"is of the classes \['A', 'F'\]; expected benign, malignant"):
        read_members(runs)


def test_drawn_and_real_images_are_not_averaged(runs: list[Path]) -> None:
    document = json.loads((runs[1] / "run.json").read_text())
    document["data"]["synthetic"] = True
    (runs[1] / "run.json").write_text(json.dumps(document))

    with pytest.raises(PredictionsError, match="the images of seed1 are drawn, the others' are not"):
        read_members(runs)


def test_a_member_without_a_usable_result_is_named_with_what_to_do(runs: list[Path]) -> None:
    (runs[1] / "test/metrics.json").unlink()
    with pytest.raises(RunFolderError, match=r"no metrics\.json in .*seed1/test; write it with `uv run evaluate"):
        read_members(runs)
    (runs[1] / "test/predictions.csv").write_text("image\n")
    with pytest.raises(RunFolderError, match=r"seed1: test/predictions\.csv is damaged"):
        read_members(runs)
    (runs[1] / "test/predictions.csv").unlink()
    with pytest.raises(RunFolderError, match=r"no test/predictions\.csv in .*seed1; write it with `uv run evaluate"):
        read_members(runs)
    with pytest.raises(RunFolderError, match=r"no test_flips/predictions\.csv in .* run=.*seed0 tta=flips`"):
        read_members(runs, tta="flips")


def test_a_damaged_run_is_refused(runs: list[Path]) -> None:
    (runs[1] / "run.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"seed1: run\.json is damaged.*; leave the run out"):
        read_members(runs)


def test_tables_of_averaged_views_are_averaged_where_they_are(runs: list[Path], tmp_path: Path) -> None:
    for seed, run in enumerate(runs[:2]):
        change_rows(run, drawn_predictions(seed=10 + seed), place="test_flips")

    write_ensemble(tmp_path / "out", runs[:2], tta="flips")

    expected = average([drawn_predictions(seed=10), drawn_predictions(seed=11)])
    assert np.allclose(read_predictions(tmp_path / "out/predictions.csv").probabilities, expected.probabilities)
    page = (tmp_path / "out/comparison.md").read_text()
    assert "from their test_flips/predictions.csv." in page
    accuracy = json.loads((runs[0] / "test_flips/metrics.json").read_text())["accuracy"]["value"]
    assert f"{accuracy:.3f}" in next(line for line in page.splitlines() if line.startswith("| seed0 | resnet18"))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"members": []}, r"members is \[\]; expected a list of two runs or more"),
        ({"members": [1, 2]}, "members is 1; expected an object"),
        ({"members": [{}, {}]}, "name is missing; expected a text"),
        ({"table": None}, "table is missing; expected a text"),
        ({"magnification": "200"}, "magnification is '200'; expected numbers"),
        ({"siblings": [1]}, r"siblings is \[1\]; expected names of images"),
        ({"fold": "2"}, "fold is '2'; expected a number"),
    ],
)
def test_a_damaged_ensemble_json_is_named(written: Path, tmp_path: Path, change: dict[str, object], fault: str) -> None:
    folder = shutil.copytree(written / "all", tmp_path / "all")
    path = folder / ENSEMBLE_JSON
    path.write_text(json.dumps(json.loads(path.read_text()) | change))

    with pytest.raises(RunFolderError, match=rf"ensemble\.json is damaged: {fault}; write the ensemble anew"):
        evaluate_table(folder / "predictions.csv")
    (run,) = collect_runs(tmp_path)
    assert (run.status, (run.error or "").partition(" is damaged")[0]) == ("unreadable", ENSEMBLE_JSON)
