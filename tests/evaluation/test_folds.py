import csv
import json
import statistics
from pathlib import Path

import pytest

from breakhis_pl.data.breakhis import FOLDS, official_patients
from breakhis_pl.evaluation.comparison import DEVIATION, MEAN, collect_runs, write_comparison
from breakhis_pl.evaluation.fold_tables import is_comparable, overlap_sentence
from breakhis_pl.evaluation.published import FOLD_RESULTS
from breakhis_pl.evaluation.repetitions import over_folds, repetitions
from breakhis_pl.evaluation.run_summary import Estimate
from tests.evaluation.run_folders import metrics_document, run_document, table, write_run

ACCURACY = {1: 0.90, 2: 0.88, 3: 0.86, 4: 0.92, 5: 0.94}


def n_test_images(fold: int) -> int:
    """Published test images of a fold at 200X."""
    return sum(each.n_images[200] for each in official_patients().values() if each.subsets[fold] == "test")


def write_fold(sweep: Path, fold: int, *, model: str = "resnet18", seed: int = 0, shift: float = 0.0, **data: object):
    accuracy = ACCURACY[fold] + shift
    metrics = metrics_document(accuracy, n_images=n_test_images(fold))
    metrics["accuracy"]["ci95"] = [accuracy - 0.1, accuracy + 0.05]
    metrics["case_accuracy"] = {"value": 0.8 + fold / 100, "ci95": None}
    document = run_document(model, fold=fold, seed=seed, **data)
    return write_run(sweep, f"{fold}_{model}_{seed}", document, metrics)


def page_of(sweep: Path) -> str:
    return write_comparison(sweep).read_text(encoding="utf-8")


def section_of(page: str) -> str:
    return page.split("## Over the five folds")[1].split("\n## ", maxsplit=1)[0]


def cells(section: str, start: str) -> list[str]:
    line = next(line for line in section.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_each_fold_stands_with_its_interval_beside_the_mean(tmp_path: Path) -> None:
    for fold in FOLDS:
        write_fold(tmp_path, fold)

    section = section_of(page_of(tmp_path))

    assert cells(section, "accuracy (images)") == [
        "accuracy (images)",
        "0.900 ± 0.032",
        "0.893 ± 0.021",
        *(f"{value:.3f} ({value - 0.1:.2f} to {value + 0.05:.2f})" for value in ACCURACY.values()),
    ]
    assert cells(section, "case accuracy (cases)")[:4] == ["case accuracy (cases)", "0.830 ± 0.016", "-", "0.810"]
    assert cells(section, "AUROC (images)")[1:] == ["-"] * 7
    assert cells(section, "test images, patients, cases")[3:] == ["744", "597", "659", "679", "770"]
    assert "is incomplete" not in section


def test_the_deviation_is_said_to_be_no_standard_error_and_why() -> None:
    patients = official_patients().values()
    n_tests = [sum(subset == "test" for subset in patient.subsets.values()) for patient in patients]

    assert (n_tests.count(0), n_tests.count(4), max(n_tests)) == (13, 5, 4)
    assert overlap_sentence() == (
        "The standard deviation over folds is no standard error: the five test sets are no partition but overlap "
        "(13 of the 82 patients are in none of them, 5 in four)."
    )


def test_seeds_are_averaged_within_a_fold_before_folds_are(tmp_path: Path) -> None:
    for fold, shifts in ((1, (0.0, 0.04)), (2, (0.0, 0.02)), (3, (0.0,))):
        for seed, shift in enumerate(shifts):
            write_fold(tmp_path, fold, seed=seed, shift=shift)

    (group,) = over_folds(collect_runs(tmp_path))

    of_folds = [0.92, 0.89, 0.86]
    found = group.over_folds("accuracy")
    assert found is not None
    assert (found.mean, found.deviation) == pytest.approx((0.89, statistics.stdev(of_folds)))
    estimate = group.on_fold(1, "accuracy")
    assert isinstance(estimate, Estimate)
    assert (estimate.value, estimate.interval) == (pytest.approx(0.92), pytest.approx((0.82, 0.97)))
    # within folds: variances 0.0008 and 0.0002, one degree of freedom each
    assert group.over_seeds("accuracy") == pytest.approx(0.0005**0.5)
    section = section_of(page_of(tmp_path))
    assert cells(section, "accuracy (images)")[1:3] == ["0.890 ± 0.030", "0.022"]
    assert "| fold 1 (2 runs) | fold 2 (2 runs) | fold 3 |" in section
    assert "fold 3 without seed 1." in section
    assert "its value is their mean first" in section


def test_a_single_seed_has_no_deviation_over_seeds(tmp_path: Path) -> None:
    for fold in (1, 2):
        write_fold(tmp_path, fold)

    (group,) = over_folds(collect_runs(tmp_path))

    assert group.over_seeds("accuracy") is None
    assert "sd over seeds" not in page_of(tmp_path)


def test_a_metric_that_a_fold_lacks_counts_the_others_and_says_so(tmp_path: Path) -> None:
    for fold in (1, 2, 3):
        write_fold(tmp_path, fold)
    path = tmp_path / "2_resnet18_0/test/metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mcc": None, "balanced_accuracy": None}))

    section = section_of(page_of(tmp_path))

    assert cells(section, "balanced accuracy (images)")[1:] == ["0.825 ± 0.000 (n = 2)", "0.825", "-", "0.825"]


def test_configurations_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    for fold in (1, 2):
        write_fold(tmp_path, fold)
        for rate in (0.1, 0.2):
            for target in ("torch.optim.SGD", "torch.optim.AdamW"):
                run = run_document("wide_resnet50", fold=fold)
                run["config"]["optimizer"] = {"_target_": target, "lr": rate}
                run["config"]["trainer"] = {"max_epochs": 5}
                write_run(tmp_path, f"{fold}_{rate}_{target[-3:]}", run)

    names = [group.name for group in repetitions(collect_runs(tmp_path))]

    assert sorted(names) == [
        "resnet18",
        "wide_resnet50, optimizer=AdamW, optimizer.lr=0.1",
        "wide_resnet50, optimizer=AdamW, optimizer.lr=0.2",
        "wide_resnet50, optimizer=SGD, optimizer.lr=0.1",
        "wide_resnet50, optimizer=SGD, optimizer.lr=0.2",
    ]


def test_a_name_says_something_of_every_group_that_differs(tmp_path: Path) -> None:
    options = {
        "plain": {"augmentation": {"blur": 0.0, "zoom": 0.0}, "training": {"ema_decay": None, "mixup": 0.0}},
        "best": {"augmentation": {"blur": 1.0, "zoom": 0.2}, "training": {"ema_decay": 0.9, "mixup": 0.2}},
    }
    for name, groups in options.items():
        run = run_document("resnet18", fold=1)
        run["config"] |= groups
        write_run(tmp_path, name, run)

    names = [group.name for group in repetitions(collect_runs(tmp_path))]

    assert sorted(names) == [
        "resnet18, augmentation.blur=0.0, training.ema_decay=null, training.mixup=0.0",
        "resnet18, augmentation.blur=1.0, training.ema_decay=0.9, training.mixup=0.2",
    ]


@pytest.mark.parametrize(("group", "key"), [("trainer", "progress_bar"), ("data", "cache_dir"), ("data", "verify")])
def test_what_changes_no_network_divides_no_configuration(tmp_path: Path, group: str, key: str) -> None:
    for fold in (1, 2):
        run = run_document(fold=fold)
        run["config"].setdefault(group, {})[key] = fold
        write_run(tmp_path, f"fold{fold}", run)

    assert [each.folds for each in over_folds(collect_runs(tmp_path))] == [(1, 2)]


def test_several_configurations_are_summed_up_in_one_table(tmp_path: Path) -> None:
    for fold in FOLDS:
        write_fold(tmp_path, fold)
        write_fold(tmp_path, fold, model="wide_resnet50", shift=-0.05)

    section = section_of(page_of(tmp_path))

    assert cells(section, "resnet18")[1] == "0.900 ± 0.032"
    assert cells(section, "wide\\_resnet50" if "wide\\_" in section else "wide_resnet50")[1] == "0.850 ± 0.032"
    published = cells(section, "Calderaro et al., Cognitive Computation 2024 (published)")
    assert published[1:] == ["0.893 ± 0.021", "-", "-", "-", "-", "-", "5"]


def test_missing_and_failed_folds_are_named(tmp_path: Path) -> None:
    for fold in (1, 2):
        write_fold(tmp_path, fold)
        write_fold(tmp_path, fold, model="wide_resnet50")
    failed = write_fold(tmp_path, 3)
    (failed / "test/metrics.json").unlink()
    (failed / "run.json").write_text(json.dumps(run_document(fold=3) | {"status": "failed", "error": "no memory"}))
    (write_fold(tmp_path, 4) / "test/metrics.json").unlink()

    section = section_of(page_of(tmp_path))

    assert (
        "- resnet18 is incomplete: no result on fold 3, 4, 5; 3_resnet18_0 is failed; 4_resnet18_0 is without a result."
    ) in section
    assert "- wide_resnet50 is incomplete: no result on fold 3, 4, 5." in section
    assert "published" not in section.lower()


@pytest.mark.parametrize(
    "change",
    [
        {"complete": False},
        {"synthetic": True},
        {"complete": None},
    ],
)
def test_published_folds_stand_beside_complete_real_images_alone(tmp_path: Path, change: dict[str, object]) -> None:
    for fold in FOLDS:
        write_fold(tmp_path, fold, **change)

    assert "Calderaro" not in section_of(page_of(tmp_path))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("magnification", [100], False),
        ("magnification", [100, 200], False),
        ("test_magnification", [100], False),
        ("test_magnification", [100, 200], False),
        ("test_magnification", [200], True),
        ("test_magnification", 200, True),
        ("test_magnification", None, True),
    ],
)
def test_published_folds_stand_beside_runs_tested_at_their_magnification(
    tmp_path: Path, key: str, value: object, expected: bool
) -> None:
    for fold in FOLDS:
        run = write_fold(tmp_path, fold) / "run.json"
        document = json.loads(run.read_text())
        document["config"]["data"][key] = value
        run.write_text(json.dumps(document))

    (group,) = over_folds(collect_runs(tmp_path))

    assert [is_comparable(group, result) for result in FOLD_RESULTS] == [expected]


def test_test_images_of_another_number_are_not_the_published_ones(tmp_path: Path) -> None:
    for fold in FOLDS:
        write_fold(tmp_path, fold)
    path = tmp_path / "4_resnet18_0/test/metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n_images": 678}))

    assert "Calderaro" not in section_of(page_of(tmp_path))


def test_ratio_splits_and_single_folds_have_no_such_section(tmp_path: Path) -> None:
    for seed in (0, 1):
        run = run_document(seed=seed)
        run["config"]["data"]["split"] = "ratio"
        write_run(tmp_path, f"ratio{seed}", run)
        write_fold(tmp_path, 2, seed=seed)

    page = page_of(tmp_path)

    assert "Over the five folds" not in page
    assert "mean ± sd, n = 2: ratio0, ratio1" in page


def test_csv_ends_with_mean_and_deviation_in_all_digits(tmp_path: Path) -> None:
    for fold in (1, 2):
        write_fold(tmp_path, fold, seed=7)
    write_fold(tmp_path, 2, model="wide_resnet50")
    write_comparison(tmp_path)

    with (tmp_path / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))

    assert [row["status"] for row in rows] == ["finished"] * 3 + [MEAN, DEVIATION]
    assert (rows[3]["run"], rows[3]["fold"], rows[3]["seed"], rows[3]["auroc"]) == ("resnet18", "1 2", "7", "")
    assert float(rows[3]["accuracy"]) == pytest.approx(0.89, abs=1e-12)
    assert float(rows[4]["accuracy"]) == pytest.approx(0.02 / 2**0.5, abs=1e-12)
    assert float(rows[0]["case_accuracy"]) == 0.81


def test_networks_are_compared_within_a_fold_and_folds_are_not(tmp_path: Path) -> None:
    for fold in (1, 2):
        for model, wrong in (("resnet18", (0,)), ("wide_resnet50", (1, 2, 5))):
            rows = table(wrong, first=100 * fold)
            write_run(tmp_path, f"{fold}_{model}", run_document(model, fold=fold), predictions=rows)

    section = page_of(tmp_path).split("## Differences")[1].split("\n## ")[0]

    points = [line for line in section.splitlines() if line.startswith("- ")]
    assert len(points) == 3
    assert points[0].startswith("- 1_resnet18 and 1_wide_resnet50: no difference")
    assert points[2] == (
        "- Runs of different folds (1, 2) have different test images and are not compared in pairs; pairs of the same "
        "fold are."
    )


def test_where_no_two_runs_share_a_fold_the_page_says_why_there_is_no_pair(tmp_path: Path) -> None:
    for fold in (1, 2, 3):
        write_run(tmp_path, f"fold{fold}", run_document(fold=fold), predictions=table(first=100 * fold))

    section = page_of(tmp_path).split("## Differences")[1].split("\n## ")[0].strip()

    assert section == (
        "- Runs of different folds (1, 2, 3) have different test images and are not compared in pairs; and no two runs "
        "share a fold."
    )
    assert not (tmp_path / "forest.png").exists()
