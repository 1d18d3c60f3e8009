import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from breakhis_pl.errors import PredictionsError, RunFolderError
from breakhis_pl.evaluation.comparison import COLUMNS, collect_runs, summarize_runs, write_comparison
from breakhis_pl.evaluation.comparison_markdown import escaped
from breakhis_pl.evaluation.difference_tables import MOST_SENTENCES
from breakhis_pl.evaluation.paired import MOST_RUNS_IN_ALL_PAIRS
from breakhis_pl.evaluation.run_summary import Estimate
from tests.evaluation.run_folders import HISTORY, metrics_document, run_document, table, write_run


def csv_rows(sweep: Path) -> list[dict[str, str]]:
    with (sweep / "comparison.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def page_of(sweep: Path) -> str:
    return write_comparison(sweep).read_text(encoding="utf-8")


def table_line(page: str, start: str) -> list[str]:
    """Cells of the first table row that starts so."""
    line = next(line for line in page.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_a_finished_run_is_read_from_its_four_files(tmp_path: Path) -> None:
    write_run(tmp_path, "resnet18")

    (run,) = collect_runs(tmp_path)

    assert (run.name, run.status, run.error, run.model, run.seed, run.fold) == (
        "resnet18",
        "finished",
        None,
        "resnet18",
        0,
        2,
    )
    assert (run.split, run.magnification, run.is_synthetic, run.is_complete) == ("official", (200,), False, True)
    assert (run.n_train_images, run.n_test_images, run.n_parameters) == (1416, 597, 11_333_702)
    assert run.metrics["accuracy"] == Estimate(0.893, (0.82, 0.9614))
    assert run.metrics["recall_benign"] == Estimate(0.708)
    assert run.metrics["mcc"] == Estimate(0.68)
    assert "auroc" not in run.metrics
    assert run.confusion_matrix == ((119, 49), (25, 404))
    assert (run.train_accuracy, run.test_accuracy) == (0.95, 0.875)
    assert run.train_minus_test_accuracy == pytest.approx(0.075)
    assert (run.seconds, run.seconds_total) == (61.25, 75.5)


def test_images_per_second_are_all_images_over_all_time(tmp_path: Path) -> None:
    write_run(tmp_path, "a")

    (run,) = collect_runs(tmp_path)

    assert run.images_per_second == pytest.approx(2 / (1 / 100 + 1 / 300))


def test_runs_are_sorted_and_other_entries_are_no_runs(tmp_path: Path) -> None:
    for name in ("b", "c", "a"):
        write_run(tmp_path, name)
    (tmp_path / "multirun.yaml").write_text("x", encoding="utf-8")
    (tmp_path / "notes").mkdir()
    write_run(tmp_path / "notes", "two_deep")

    assert [run.name for run in collect_runs(tmp_path)] == ["a", "b", "c"]


def test_csv_has_all_digits_and_empty_cells_where_a_value_is_absent(tmp_path: Path) -> None:
    write_run(tmp_path, "a")
    write_comparison(tmp_path)

    (row,) = csv_rows(tmp_path)

    assert tuple(row) == COLUMNS
    assert float(row["weighted_f1"]) == 1 / 3
    assert (row["auroc"], row["parameters"], row["seconds"]) == ("", "11333702", "61.25")
    assert (row["f1_malignant"], row["train_accuracy"], row["test_accuracy"]) == ("0.916", "0.95", "0.875")


def test_page_shows_values_with_their_intervals(tmp_path: Path) -> None:
    write_run(tmp_path, "a")

    page = page_of(tmp_path)

    assert table_line(page, "a ") == [
        "a", "resnet18", "0.333", "0.893 (0.82 to 0.96)", "-", "0.871 (0.80 to 0.94)", "0.825", "0.680",
        "597", "2", "0",
    ]  # fmt: skip
    assert "BreakHis at 200X, the authors' fold 2: 1,416 train and 597 test images." in page
    assert "Warning" not in page


def test_a_failed_run_is_listed_with_the_first_line_of_its_reason(tmp_path: Path) -> None:
    write_run(tmp_path, "good")
    (tmp_path / "bad").mkdir()
    failed = {
        "status": "failed",
        "error": "CUDA out of memory | tried 3 GB\nTraceback",
        "config": run_document()["config"],
    }
    (tmp_path / "bad" / "run.json").write_text(json.dumps(failed), encoding="utf-8")

    page = page_of(tmp_path)

    assert "| bad | failed | resnet18 | CUDA out of memory \\| tried 3 GB |" in page
    assert "Traceback" not in page
    assert [(row["run"], row["status"], row["accuracy"]) for row in csv_rows(tmp_path)] == [
        ("bad", "failed", ""),
        ("good", "finished", "0.893"),
    ]


def test_a_refused_run_is_listed_with_the_text_of_its_error(tmp_path: Path) -> None:
    for name in ("told", "untold"):
        (tmp_path / name / ".hydra").mkdir(parents=True)
    line = "[2026-01-01 00:00:00,000][breakhis_pl.command_line][{}] - {}\n"
    log = line.format("INFO", "hello") + line.format("ERROR", "data.fold=7 is not possible")
    (tmp_path / "told" / "train.log").write_text(log, encoding="utf-8")

    page = page_of(tmp_path)

    assert "| told | refused | - | data.fold=7 is not possible |" in page
    assert "| untold | refused | - | refused before it began |" in page
    assert "0 of 2 runs with a result." in page
    assert "No run says what data it was given." in page


def test_an_unfinished_run_is_listed_as_running(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "a", {**run_document(), "status": "running", "seconds": None})
    (folder / "test" / "metrics.json").unlink()

    page = page_of(tmp_path)

    assert "| a | running | resnet18 | still going on, or cut off |" in page
    assert "## Results" not in page
    assert csv_rows(tmp_path)[0]["train_accuracy"] == "0.95"


def test_a_finished_run_without_metrics_is_listed(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "a", history=None)
    (folder / "test" / "metrics.json").unlink()

    assert "| a | finished | resnet18 | holds no test/metrics.json |" in page_of(tmp_path)


def test_a_run_that_failed_without_a_word_has_no_reason(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.json").write_text('{"status": "failed", "error": " "}', encoding="utf-8")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "run.json").write_text('{"status": "failed"}', encoding="utf-8")

    assert page_of(tmp_path).count("no reason given") == 2


@pytest.mark.parametrize(
    ("file_name", "content", "fault"),
    [
        ("run.json", '{"status": "fin', "run.json is damaged: Unterminated string"),
        ("run.json", "[1]", "run.json is damaged: it holds a list; expected an object"),
        ("run.json", '{"status": "finished", "error": 3}', "error is 3; expected a text"),
        ("run.json", '{"status": "failed", "config": {"seed": "zero"}}', "config.seed is 'zero'; expected a number"),
        (
            "run.json",
            '{"status": "failed", "config": {"data": {"magnification": "all"}}}',
            "config.data.magnification is 'all'",
        ),
        (
            "run.json",
            '{"status": "failed", "data": {"synthetic": "no"}}',
            "data.synthetic is 'no'; expected true or false",
        ),
        ("test/metrics.json", "", "test/metrics.json is damaged: Expecting value"),
        ("test/metrics.json", '{"accuracy": {"value": 1, "ci95": [1]}}', r"accuracy.ci95 is \[1\]"),
        ("test/metrics.json", '{"confusion_matrix": 3}', "confusion_matrix is 3; expected rows of counts"),
        (
            "history.csv",
            HISTORY.replace("0.80", "high"),
            "history.csv is damaged: line 2, column 'train_accuracy': 'high'",
        ),
        ("history.csv", HISTORY + "3,0.5,0.6\n", "history.csv is damaged: line 4 has 3 values, not 7"),
        ("history.csv", "", "history.csv is damaged: column epoch, train_loss, .* is missing"),
        ("run.json", '{"status": "done"}', "status is 'done'; expected one of running, finished, failed"),
        ("run.json", "{}", "status is None"),
    ],
)
def test_a_damaged_file_is_named_and_the_comparison_still_written(
    tmp_path: Path, file_name: str, content: str, fault: str
) -> None:
    write_run(tmp_path, "whole")
    (write_run(tmp_path, "torn") / file_name).write_text(content, encoding="utf-8")

    torn = collect_runs(tmp_path)[0]

    assert re.search(fault, "\n".join([torn.error or "", *torn.damage]))
    assert torn.status == ("unreadable" if file_name == "run.json" else "finished")
    assert "damaged" in page_of(tmp_path)


def test_an_empty_history_has_no_accuracy(tmp_path: Path) -> None:
    write_run(tmp_path, "a", history=HISTORY.splitlines()[0] + "\n")
    write_run(tmp_path, "b", history=f"{HISTORY.splitlines()[0]}\n1,0.5,,0.5,nan,0.1,\n")

    for run in collect_runs(tmp_path):
        assert (run.train_accuracy, run.test_accuracy, run.images_per_second) == (None, None, None)
        assert run.train_minus_test_accuracy is None


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no run in .*; expected the folder of a sweep"):
        write_comparison(tmp_path)
    with pytest.raises(RunFolderError, match="nowhere is no folder"):
        collect_runs(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_one_run_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="is the folder of one run; a comparison needs the folder above it"):
        collect_runs(write_run(tmp_path, "a"))


def test_synthetic_images_are_warned_of_and_not_set_beside_the_report(tmp_path: Path) -> None:
    write_run(tmp_path, "a", run_document(synthetic=True))

    page = page_of(tmp_path)

    assert "**Warning. Synthetic images, no tissue.** These numbers say nothing about pathology." in page
    assert "Synthetic images at 200X" in page
    assert "Beside published results" not in page


def test_an_incomplete_archive_is_warned_of(tmp_path: Path) -> None:
    write_run(tmp_path, "a", run_document(complete=False), metrics_document(n_images=501))

    page = page_of(tmp_path)

    assert "**Warning. Incomplete archive.** Images are missing" in page
    assert "The test images are not the report's 597 (a: 501): the comparison is indicative only." in page


def test_runs_on_the_reports_split_stand_beside_its_results(tmp_path: Path) -> None:
    write_run(tmp_path, "mine")

    page = page_of(tmp_path)

    section = page.split("## Beside published results")[1]
    assert "| ResNet-18, the report | 0.876 | 0.873 | 0.763 | 0.916 | 119, 49; 25, 404 | - |" in section
    assert "| Wide-ResNet-50, the report | 0.725 | 0.739 | 0.627 | 0.782 | 138, 30; 134, 295 | - |" in section
    assert (
        section.index("| ResNet-18, the report") < section.index("| mine |") < section.index("| ResNeXt-50, the report")
    )
    assert "Calderaro et al., Cognitive Computation 2024 | 0.908 | 0.910 | 0.956 | 0.905 |" in section
    assert "not the report's 597" not in page


@pytest.mark.parametrize(("key", "value"), [("split", "ratio"), ("fold", 1), ("magnification", [40, 200])])
def test_runs_on_another_split_do_not_stand_beside_the_report(tmp_path: Path, key: str, value: object) -> None:
    run = run_document()
    run["config"]["data"][key] = value
    write_run(tmp_path, "a", run)

    assert "Beside published results" not in page_of(tmp_path)


def test_a_ratio_split_has_no_fold(tmp_path: Path) -> None:
    run = run_document()
    run["config"]["data"]["split"] = "ratio"
    write_run(tmp_path, "a", run)

    page = page_of(tmp_path)

    assert "a split by case: 1,416 train" in page
    assert csv_rows(tmp_path)[0]["fold"] == ""


def test_runs_that_differ_in_seed_alone_are_averaged(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.87, 0.89, 0.91)):
        write_run(tmp_path, f"seed{seed}", run_document(seed=seed), metrics_document(accuracy))
    write_run(tmp_path, "wide", run_document("wide_resnet50_2"))

    page = page_of(tmp_path)

    row = table_line(page, "mean ± sd, n = 3: seed0, seed1, seed2")
    assert row[1:4] == ["resnet18", "0.333 ± 0.000", "0.890 ± 0.020"]
    assert page.count("mean ± sd") == 2  # one by table: results, classes


def test_runs_that_differ_in_fold_are_averaged_and_named(tmp_path: Path) -> None:
    for fold in (1, 2):
        write_run(tmp_path, f"fold{fold}", run_document(fold=fold))

    page = page_of(tmp_path)

    assert "| mean ± sd over 2 folds: resnet18 |" in page.split("## By class")[1]
    assert "mean ± sd" not in page.split("## Results")[1].split("\n## ")[0]
    assert "the authors' folds 1, 2: 1,416 train" in page
    assert "The runs have different train and test images" in page


def test_runs_that_differ_in_more_than_seed_and_fold_are_not_averaged(tmp_path: Path) -> None:
    for seed, lr in ((0, 0.1), (1, 0.2)):
        run = run_document(seed=seed)
        run["config"]["optimizer"] = {"lr": lr}
        write_run(tmp_path, f"lr{seed}", run)

    assert "mean ± sd" not in page_of(tmp_path)


def test_a_mean_says_its_n_where_a_metric_is_not_defined_in_every_run(tmp_path: Path) -> None:
    for seed, mcc in enumerate((0.5, 0.7, None)):
        write_run(tmp_path, f"seed{seed}", run_document(seed=seed), {**metrics_document(), "mcc": mcc})

    row = table_line(page_of(tmp_path), "mean ± sd")

    assert row[6:8] == ["0.825 ± 0.000", "0.600 ± 0.141 (n = 2)"]


def test_the_claim_of_overtraining_is_set_against_the_gaps(tmp_path: Path) -> None:
    write_run(tmp_path, "small")
    worse = HISTORY.replace("0.95,0.4,0.875", "0.99,0.4,0.700")
    write_run(tmp_path, "wide", run_document("wide_resnet50_2"), history=worse)

    page = page_of(tmp_path)

    assert "+0.075 for ResNet-18, +0.290 for Wide-ResNet-50: positive and larger than ResNet-18's for Wide" in page
    assert table_line(page.split("## Size")[1], "wide")[2:7] == ["11,333,702", "0.990", "0.700", "+0.290", "61.2"]


def test_a_network_that_is_no_better_on_train_does_not_overtrain(tmp_path: Path) -> None:
    write_run(tmp_path, "small", history=HISTORY.replace("0.95,0.4,0.875", "0.60,0.4,0.875"))
    write_run(tmp_path, "wide", run_document("wide_resnet50_2"), history=HISTORY.replace("0.95,0.4", "0.80,0.4"))

    assert "-0.275 for ResNet-18, -0.075 for Wide-ResNet-50: positive and larger than ResNet-18's for none" in page_of(
        tmp_path
    )


def test_the_claim_of_overtraining_needs_a_small_and_a_large_network(tmp_path: Path) -> None:
    write_run(tmp_path, "small")

    assert "these runs cannot say" in page_of(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b", r"a\|b"),
        ("`rm`", r"\`rm\`"),
        ("two\r\nlines", "two lines"),
        ("line\u2028separator\x07", "line separator"),
        ("<script>&", "&lt;script&gt;&amp;"),
        ("p < 0.001", "p < 0.001"),
        ("resnet18_0", "resnet18_0"),
        ("_x_ *y* [z]", r"\_x\_ \*y\* \[z\]"),
        ("back\\|slash", r"back\\\|slash"),
    ],
)
def test_text_from_names_is_escaped(text: str, expected: str) -> None:
    assert escaped(text) == expected


def test_odd_folder_names_break_no_table(tmp_path: Path) -> None:
    write_run(tmp_path, 'a|b`c\nd,"e"')

    page = page_of(tmp_path)

    assert r'| a\|b\`c d,"e" | resnet18 |' in page
    assert csv_rows(tmp_path)[0]["run"] == 'a|b`c\nd,"e"'


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no file names that are not text")
def test_a_folder_name_that_is_no_text_is_written_with_marks(tmp_path: Path) -> None:
    write_run(tmp_path, os.fsdecode(b"caf\xe9"))

    page_of(tmp_path)

    assert csv_rows(tmp_path)[0]["run"] == r"caf\udce9"


def test_writing_again_replaces_the_files_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_run(tmp_path, "a", predictions=table())
    first = page_of(tmp_path)
    assert files_of(tmp_path) == ["comparison.csv", "comparison.html", "comparison.md"]
    folder = write_run(tmp_path, "b", predictions=table((1,)))

    assert page_of(tmp_path) != first
    assert files_of(tmp_path) == ["comparison.csv", "comparison.html", "comparison.md", "forest.png"]

    (folder / "test" / "predictions.csv").unlink()
    assert "forest.png" not in page_of(tmp_path)
    assert "a and b are not compared: no usable test/predictions.csv in b." in page_of(tmp_path)
    assert files_of(tmp_path) == ["comparison.csv", "comparison.html", "comparison.md"]


def test_a_long_reason_is_cut(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.json").write_text(json.dumps({"status": "failed", "error": "x" * 5000}), encoding="utf-8")

    assert len(page_of(tmp_path)) < 1000


def test_pairs_on_the_same_images_are_compared_in_a_sentence_a_table_and_a_figure(tmp_path: Path) -> None:
    write_run(tmp_path, "good", predictions=table())
    write_run(tmp_path, "poor", predictions=table(range(0, 20, 2)))
    write_run(tmp_path, "worse", predictions=table(range(1, 18)))

    section = page_of(tmp_path).split("## Differences")[1].split("## Beside")[0]

    assert "- good is better than worse: weighted F1 higher by 0.85" in section
    assert "- good is better than poor: weighted F1 higher by 0.500 (" in section
    assert "p < 0.001, after Holm's correction for 3 pairs p < 0.001." in section
    assert table_line(section, "good | poor | accuracy")[3:] == [
        "+0.500", "-", "10", "-", "-", "0.002", "no interval, as every draw of cases gives the same difference",
    ]  # fmt: skip
    assert section.count("| good | worse |") == 4
    assert "![Differences of weighted F1 of 3 pairs of runs with 95 % intervals, and a line at 0: good minus" in section
    assert [table_line(section, f"good | worse | {metric}")[5] for metric in ("accuracy", "AUROC")] == ["10", "5"]
    with Image.open(tmp_path / "forest.png") as figure:
        assert figure.width > 500


def test_pairs_on_other_images_have_a_reason_and_no_figure(tmp_path: Path) -> None:
    write_run(tmp_path, "a", predictions=table())
    write_run(tmp_path, "b", predictions=table(first=5))

    section = page_of(tmp_path).split("## Differences")[1].split("## ")[0].strip()

    assert section == "- a and b are not compared: the test images differ: 5 only in a, 5 only in b."
    assert not (tmp_path / "forest.png").exists()


def test_one_result_beside_failed_and_unfinished_runs_makes_no_pair(tmp_path: Path) -> None:
    write_run(tmp_path, "a", predictions=table())
    (write_run(tmp_path, "b", {**run_document(), "status": "running"}) / "test" / "metrics.json").unlink()
    (tmp_path / "c" / ".hydra").mkdir(parents=True)

    page = page_of(tmp_path)

    assert "## Differences" not in page
    assert "| b | running |" in page
    assert "| c | refused |" in page


def test_a_damaged_table_of_predictions_is_named_without_its_folder(tmp_path: Path) -> None:
    write_run(tmp_path, "a", predictions=table())
    folder = write_run(tmp_path, "b", predictions=table())
    (folder / "test" / "predictions.csv").write_text("image\nx.png\n", encoding="utf-8")

    page = page_of(tmp_path)

    assert "| b | finished | resnet18 | test/predictions.csv is damaged: predictions.csv, line 1: column" in page
    assert "no usable test/predictions.csv in b" in page
    assert str(tmp_path) not in page


def test_many_pairs_are_counted_instead_of_spelled_out(tmp_path: Path) -> None:
    for i in range(6):
        write_run(tmp_path, f"run{i}", predictions=table((i,)))
    write_run(tmp_path, "other", predictions=table((1,), first=100))
    write_run(tmp_path, "perfect", predictions=table(n_cases=40, first=1000))

    section = page_of(tmp_path).split("## Differences")[1].split("## ")[0]
    points = [line for line in section.splitlines() if line.startswith("- ")]

    assert points[0] == "- Pairs in which no difference in weighted F1 can be shown: 15."
    assert sum("are not compared: the test images differ" in point for point in points) == MOST_SENTENCES
    assert points[-1] == "- More pairs that are not compared: 3."


def test_of_many_shown_differences_the_first_are_spelled_out(tmp_path: Path) -> None:
    half = MOST_RUNS_IN_ALL_PAIRS // 2
    for i in range(half):
        write_run(tmp_path, f"good{i}", predictions=table((i,), n_cases=40))
        write_run(tmp_path, f"poor{i}", predictions=table(range(i, 80, 2), n_cases=40))

    section = page_of(tmp_path).split("## Differences")[1].split("## ")[0]
    points = [line for line in section.splitlines() if line.startswith("- ")]

    assert all("is better than" in point for point in points[:MOST_SENTENCES])
    assert points[MOST_SENTENCES].startswith("- More pairs in which a difference can be shown: ")
    n_shown = MOST_SENTENCES + int(points[MOST_SENTENCES].split()[-1].rstrip("."))
    assert points[-1] == f"- Pairs in which no difference in weighted F1 can be shown: {28 - n_shown}."


def test_of_more_than_eight_runs_the_page_says_which_are_compared(tmp_path: Path) -> None:
    for i in range(MOST_RUNS_IN_ALL_PAIRS + 1):
        write_run(tmp_path, f"run{i}", predictions=table((i,)))

    page = page_of(tmp_path)

    assert "each is compared with the first of them only" in page
    assert [page.count(f"| run0 | run{i} | weighted F1 |") for i in range(1, MOST_RUNS_IN_ALL_PAIRS + 1)] == [1] * 8
    assert "| run1 | run2 |" not in page


def test_the_reports_figure_is_judged_by_the_interval_of_the_run(tmp_path: Path) -> None:
    metrics = {**metrics_document(), "weighted_f1": {"value": 0.91, "ci95": [0.88, 0.95]}}
    write_run(tmp_path, "mine", metrics=metrics)

    section = page_of(tmp_path).split("## Beside published results")[1]

    assert (
        "- mine: weighted F1 0.910 (0.88 to 0.95); the 0.873 of the report's ResNet-18 lies outside the interval."
        in section
    )
    assert table_line(section, "mine")[-1] == "not weighted F1"
    assert "indicative" not in section


@pytest.mark.parametrize(
    ("accuracy", "weighted_f1", "cell"),
    [
        ([0.8, 0.9], [0.8, 0.9], "yes (accuracy, weighted F1)"),
        ([0.9, 0.95], [0.9, 0.95], "no"),
        (None, None, "-"),
    ],
)
def test_the_table_says_which_of_the_reports_figures_lie_inside(
    tmp_path: Path, accuracy: list[float] | None, weighted_f1: list[float] | None, cell: str
) -> None:
    metrics = metrics_document()
    metrics["accuracy"] = {"value": 0.9, "ci95": accuracy}
    metrics["weighted_f1"] = {"value": 0.9, "ci95": weighted_f1}
    write_run(tmp_path, "mine", metrics=metrics)

    assert table_line(page_of(tmp_path).split("## Beside")[1], "mine")[-1] == cell


def test_runs_anywhere_are_compared_in_a_folder_of_their_own(tmp_path: Path) -> None:
    one = write_run(tmp_path / "monday", "run", predictions=table())
    two = write_run(tmp_path / "tuesday", "run", predictions=table((1, 2)))
    write_run(tmp_path / "sweep", "seed0", predictions=table((3,)))

    page = write_comparison(tmp_path / "new" / "folder", [one, tmp_path / "sweep", two])

    assert page == tmp_path / "new" / "folder" / "comparison.md"
    assert [row["run"] for row in csv_rows(page.parent)] == ["monday_run", "sweep_seed0", "tuesday_run"]
    assert "monday_run and sweep_seed0: no difference" in page.read_text(encoding="utf-8")
    assert files_of(page.parent) == ["comparison.csv", "comparison.html", "comparison.md", "forest.png"]


def test_runs_that_are_none_or_named_twice_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path, "a")

    with pytest.raises(RunFolderError, match="no run is named; expected folders of runs"):
        summarize_runs([])
    with pytest.raises(RunFolderError, match=r"gone is no folder; expected that of a sweep, .*, or of a run"):
        write_comparison(tmp_path / "out", [run, tmp_path / "gone"])
    with pytest.raises(PredictionsError, match="a is given more than once"):
        write_comparison(tmp_path / "out", [run, run])
    assert not (tmp_path / "out").exists()


def test_comparison_imports_no_torch() -> None:
    code = "import sys, breakhis_pl.evaluation.comparison; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
