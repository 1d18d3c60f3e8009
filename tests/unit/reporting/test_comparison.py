"""Comparison of runs: table, Markdown, page, and what is concluded."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from breakhis_pl.errors import PredictionsError, RunFolderError
from breakhis_pl.metrics.paired import holm, mcnemar, pooled_differences
from breakhis_pl.metrics.registry import METRICS
from breakhis_pl.reporting import pairs
from breakhis_pl.reporting.comparison import write_comparison
from breakhis_pl.reporting.comparison_page import lead_sentences
from breakhis_pl.reporting.pairs import compare_configurations, compare_runs, conclusions
from breakhis_pl.reporting.repeats import repeats
from breakhis_pl.reporting.runs import Run, read_run
from tests.unit.reporting.conftest import ParsedPage, constant_table, make_table, metrics_of, with_decisions, write_run

pytestmark = pytest.mark.usefixtures("undrawn")

HOSTILE = "a|b `c` *d* <img src=x> [e](f) \u202e"


def add_runs(folder: Path, n_runs: int, *overrides: str) -> list[Path]:
    """Write runs on the same images, each with other probabilities."""
    tables = [with_decisions(make_table(), make_table(skill=0.8, seed=seed)) for seed in range(n_runs)]
    return [write_run(folder / f"run{seed}", table, f"seed={seed}", *overrides) for seed, table in enumerate(tables)]


def read_runs(folder: Path) -> list[Run]:
    return [read_run(path) for path in sorted(folder.iterdir())]


def read_csv(folder: Path) -> pd.DataFrame:
    table = pd.read_csv(folder / "comparison.csv")
    return table.set_index(table["folder"].map(lambda path: Path(path).name, na_action="ignore"))


def markdown_tables(path: Path) -> list[list[list[str]]]:
    """Split every table of a Markdown file into cells."""
    blocks = [block.splitlines() for block in path.read_text(encoding="utf-8").split("\n\n") if block.startswith("| ")]
    return [[re.split(r"(?<!\\)\|", line)[1:-1] for line in lines] for lines in blocks]


def test_comparison_csv_has_all_digits_of_every_run(tmp_path: Path) -> None:
    runs = add_runs(tmp_path, 3, "data.split=ratio")
    write_comparison(tmp_path)
    table = read_csv(tmp_path)
    assert list(table.index) == ["run0", "run1", "run2"]
    assert table.columns.is_unique
    for run in runs:
        row, metrics = table.loc[run.name], metrics_of(run)
        for name, metric in METRICS.items():
            of_classes = {f"{name}_{each}": of.get(name) for each, of in metrics["per_class"].items()}
            for column, estimate in (of_classes if metric.per_class else {name: metrics[name]}).items():
                assert row[column] == pytest.approx(estimate["value"], rel=1e-11)
        assert (row["status"], row["model"], row["n_test_images"]) == ("finished", "resnet18", 40)
        assert (row["parameters"], row["seconds"], row["images_per_second"]) == (11_333_702, 60, 3)
        assert row["train_minus_test_accuracy"] == pytest.approx(0.05)
    assert table["seed"].tolist() == [0, 1, 2]
    assert table["run"].tolist() == ["resnet18 seed 0", "resnet18 seed 1", "resnet18 seed 2"]


def test_comparison_csv_ends_with_mean_and_deviation_over_folds(tmp_path: Path) -> None:
    for fold in (1, 2, 5):
        write_run(tmp_path / f"fold{fold}", make_table(seed=fold), f"data.fold={fold}")
    write_comparison(tmp_path)
    table = read_csv(tmp_path)
    assert len(table) == 5
    for name in ("accuracy", "f1_benign", "patient_recognition_rate"):
        values = table[name].iloc[:3]
        assert table[name].iloc[3:].tolist() == pytest.approx([values.mean(), values.std()])
    assert table["fold"].iloc[3] == "1 2 5"


def test_pages_have_even_tables_and_links_to_reports(tmp_path: Path) -> None:
    runs = add_runs(tmp_path, 2)
    write_run(tmp_path / HOSTILE, make_table(seed=7), f"model.backbone={HOSTILE}")
    write_run(tmp_path / "failed", status="failed", error=f"{HOSTILE}\nTraceback")
    (runs[0] / "report.html").write_text("page")
    path, checks = write_comparison(tmp_path)
    tables = markdown_tables(path)
    page = ParsedPage(tmp_path / "comparison.html")
    assert len(tables) == len(page.tables) >= 5
    for rows in [*tables, *page.tables.values()]:
        assert len({len(row) for row in rows}) == 1
    assert all(source.startswith("data:") for source in page.attributes("src"))
    links = {link for link in page.attributes("href") if link.endswith("report.html")}
    assert links == {"run0/report.html"} == set(re.findall(r"<([^>]*report\.html)>", path.read_text(encoding="utf-8")))
    anchors = [link[1:] for link in page.attributes("href") if link.startswith("#")]
    assert set(anchors) == page.sections | {"content"}
    codes = [check.code for check in checks]
    assert codes == sorted(set(codes))
    assert all(code in page.text for code in codes)
    for name in ("comparison.md", "comparison.html"):
        assert "\u202e" not in (tmp_path / name).read_text(encoding="utf-8")


def test_a_pair_has_the_differences_of_its_metrics(tmp_path: Path) -> None:
    add_runs(tmp_path, 2)
    runs = read_runs(tmp_path)
    (pair,) = compare_runs(runs)
    assert (pair.first, pair.second) == ("run0", "run1")
    metrics = [metrics_of(run.folder) for run in runs]
    for name, difference in pair.differences.items():
        assert difference.value == pytest.approx(metrics[0][name]["value"] - metrics[1][name]["value"])
        assert pair.p_holm[name] == difference.p
    first, second = (run.predictions for run in runs)
    assert pair.mcnemar_p == mcnemar(first.correct, second.correct)


def test_p_values_are_corrected_over_the_pairs(tmp_path: Path) -> None:
    add_runs(tmp_path, 4)
    pairs = compare_runs(read_runs(tmp_path))
    assert len(pairs) == 6
    for name in ("weighted_f1", "auroc"):
        p_values = [pair.differences[name].p for pair in pairs]
        assert [pair.p_holm[name] for pair in pairs] == holm([p for p in p_values if p is not None])


def test_of_more_than_eight_runs_each_is_compared_with_the_first(tmp_path: Path) -> None:
    add_runs(tmp_path, 9)
    runs = read_runs(tmp_path)
    assert len(compare_runs(runs[:8])) == 28
    assert [(pair.first, pair.second) for pair in compare_runs(runs)] == [("run0", f"run{n}") for n in range(1, 9)]


def test_runs_of_different_folds_make_no_pair(tmp_path: Path) -> None:
    for name, fold in (("a", 1), ("b", 1), ("c", 2), ("d", 3)):
        write_run(tmp_path / name, make_table(prefix=str(fold)), f"data.fold={fold}", f"optimizer.lr={ord(name)}")
    assert [(pair.first, pair.second) for pair in compare_runs(read_runs(tmp_path))] == [("a", "b")]


def test_a_few_runs_on_other_images_are_named_with_a_reason(tmp_path: Path) -> None:
    for number, name in enumerate("ab"):
        write_run(tmp_path / name, make_table(prefix=str(number)), "data.split=ratio", f"seed={number}")
    (pair,) = compare_runs(read_runs(tmp_path))
    assert pair.reason is not None
    assert pair.differences == {}


@pytest.mark.parametrize("is_constant", [False, True])
def test_a_pair_with_a_network_that_predicts_one_class_is_not_tested(tmp_path: Path, is_constant: bool) -> None:
    write_run(tmp_path / "a", make_table(skill=3))
    write_run(tmp_path / "b", make_table(skill=0))
    write_run(tmp_path / "c", constant_table() if is_constant else make_table(skill=1, seed=3))
    pairs = {(pair.first, pair.second): pair for pair in compare_runs(read_runs(tmp_path))}
    assert bool(pairs["a", "c"].reason) is is_constant
    assert bool(pairs["a", "c"].differences) is not is_constant
    tested = pairs["a", "b"]
    p = tested.differences["weighted_f1"].p
    assert p is not None
    assert (tested.p_holm["weighted_f1"] == p) is is_constant  # Holm counts tests, not pairs


def test_of_many_pairs_those_with_a_difference_are_named_and_the_others_counted(tmp_path: Path) -> None:
    write_run(tmp_path / "a", make_table(skill=4, n_cases=8))
    for number in range(4):
        write_run(tmp_path / f"b{number}", make_table(skill=-2, seed=number, n_cases=8), f"seed={number}")
    write_run(tmp_path / "c", constant_table(n_cases=8))
    first, *others = conclusions(pairs := compare_runs(read_runs(tmp_path)))
    assert len(pairs) == 15
    n_shown = sum(pair.is_shown for pair in pairs)
    assert n_shown >= 3
    assert f"{n_shown} of 10 " in first
    assert len(others) == n_shown
    assert not any("c " in text for text in others)


@pytest.mark.parametrize("is_constant", [False, True])
def test_nothing_is_concluded_from_networks_that_predict_one_class(tmp_path: Path, is_constant: bool) -> None:
    write_run(tmp_path / "resnet18", make_table(skill=3))
    other = constant_table() if is_constant else make_table(skill=0)
    write_run(tmp_path / "other", other, "model.backbone=wide_resnet50_2")
    (pair,) = compare_runs(read_runs(tmp_path))
    text = write_comparison(tmp_path)[0].read_text(encoding="utf-8")
    points = "".join(re.findall("^- .*$", text.split("## Differences")[1].split("##")[0], re.MULTILINE))
    assert (pair.reason is not None) is is_constant
    assert ("p = " in points or "p < " in points) is not is_constant
    assert ("Wide-ResNet-50" in text.split("## Size")[1]) is not is_constant


def test_runs_without_a_result_are_listed_and_do_not_stop_the_others(tmp_path: Path) -> None:
    add_runs(tmp_path, 2)
    write_run(tmp_path / "failed", status="failed", error="CUDA out of memory")
    write_run(tmp_path / "running", status="running", finished=None)
    (tmp_path / "refused" / ".hydra").mkdir(parents=True)
    (tmp_path / "refused" / "train.log").write_text("INFO\nERROR data.fold=7\n")
    (write_run(tmp_path / "unreadable") / "run.json").write_text('{"status": "fini')
    (write_run(tmp_path / "no metrics", make_table()) / "test/metrics.json").write_text('{"weighted_f1": ')
    (write_run(tmp_path / "damaged", make_table()) / "test/predictions.csv").write_text("image\n1.png\n")
    write_run(tmp_path / "without test")
    (tmp_path / "no run").mkdir()
    path, _ = write_comparison(tmp_path)
    table = read_csv(tmp_path)
    status = {name: name for name in ("failed", "running", "refused", "unreadable")}
    status |= dict.fromkeys(("damaged", "without test", "no metrics"), "finished")
    assert table["status"].to_dict() == status | {"run0": "finished", "run1": "finished"}
    assert set(table.index[table["accuracy"].isna()]) == set(status)
    listed = {row[0].strip(): row[-1].strip() for row in markdown_tables(path)[-1][2:]}
    assert listed.keys() == status.keys()
    assert all(listed.values())
    assert "CUDA" in listed["failed"]
    assert "data.fold=7" in listed["refused"]
    assert "run.json" in listed["unreadable"]
    assert "predictions.csv" in listed["damaged"]


def test_a_damaged_history_costs_the_curves_alone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", make_table())
    (run / "history.csv").write_text("")
    found = read_run(run)
    assert found.history.empty
    assert found.metrics is not None


def test_a_copy_is_not_tested_and_runs_of_other_images_make_no_pair(tmp_path: Path) -> None:
    write_run(tmp_path / "a", make_table(), "seed=0")
    write_run(tmp_path / "b", make_table(), "seed=1")
    (pair,) = compare_runs(read_runs(tmp_path))
    assert pair.reason is not None
    assert not pair.differences
    write_run(tmp_path / "other" / "a", make_table(), "data.fold=1")
    write_run(tmp_path / "other" / "b", make_table(prefix="x"), "data.fold=2")
    path, _ = write_comparison(tmp_path / "other")
    assert "## Differences" in path.read_text(encoding="utf-8")


def test_configurations_over_folds_are_compared_over_their_pooled_images(tmp_path: Path) -> None:
    first = [make_table(seed=seed) for seed in range(3)]
    tables = {"resnet18": first, "resnet50": [with_decisions(table, make_table(seed=9)) for table in first]}
    for name, of_folds in tables.items():
        for fold, table in enumerate(of_folds, start=1):
            write_run(tmp_path / f"{name}_{fold}", table, f"data.fold={fold}", f"model.backbone={name}")
    runs = read_runs(tmp_path)
    (pair,) = compare_configurations(repeats(runs))
    assert {pair.first, pair.second} == {"resnet18", "resnet50"}
    assert "auroc" not in pair.differences
    (expected,) = pooled_differences(list(zip(*tables.values(), strict=True)), [METRICS["accuracy"]])
    correct = [np.mean([table.correct.mean() for table in tables[name]]) for name in (pair.first, pair.second)]
    assert pair.differences["accuracy"].value == pytest.approx(expected.value) == pytest.approx(correct[0] - correct[1])
    assert pair.differences["accuracy"].p == pytest.approx(expected.p)
    page = ParsedPage(write_comparison(tmp_path)[0].with_suffix(".html"))
    assert "folds" in page.sections
    by_fold = next(rows for caption, rows in page.tables.items() if caption.startswith("resnet18 "))
    assert by_fold[0][1:4] == ["Fold 1", "Fold 2", "Fold 3"]
    assert compare_configurations(repeats(runs[:4])) == []  # one fold in common


def test_of_many_configurations_each_is_compared_with_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "MAX_RUNS_IN_PAIRS", 2)
    for number in range(6):
        backbone = f"model.backbone=resnet{number // 2}"
        write_run(tmp_path / str(number), make_table(seed=number), f"data.fold={number % 2 + 1}", backbone)
    found = compare_configurations(repeats(read_runs(tmp_path)))
    assert [(pair.first, pair.second) for pair in found] == [("resnet0", "resnet1"), ("resnet0", "resnet2")]


def test_a_refused_run_says_nothing_of_cases() -> None:
    refused = Run("a", Path(), None, "refused", error="no images")
    assert not any("cases" in sentence for sentence in lead_sentences([refused]))


def test_runs_of_several_folders_get_names_of_their_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        add_runs(tmp_path / name, 1)
    write_comparison(tmp_path / "out", [tmp_path / "a", tmp_path / "b" / "run0"])
    assert read_csv(tmp_path / "out")["run"].tolist() == ["a", "b"]
    with pytest.raises(PredictionsError, match="run0"):
        write_comparison(tmp_path / "out", [tmp_path / "a", tmp_path / "a" / "run0"])
    with pytest.raises(RunFolderError, match="runs"):
        write_comparison(tmp_path / "out", [])
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "nowhere"):
        with pytest.raises(RunFolderError, match=folder):
            write_comparison(tmp_path / folder)


def test_runs_on_another_drive_of_windows_are_linked_by_their_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, start: str) -> str:
        raise ValueError(f"path is on mount {path}, start on mount {start}")

    pages = [run / "report.html" for run in add_runs(tmp_path, 2)]
    for page in pages:
        page.touch()
    monkeypatch.setattr("os.path.relpath", refuse)
    write_comparison(tmp_path)
    text = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert all(page.resolve().as_uri() in text for page in pages)


def test_each_class_of_each_run_has_a_row(tmp_path: Path) -> None:
    runs = add_runs(tmp_path, 2)
    rows = ParsedPage(write_comparison(tmp_path)[0].with_suffix(".html")).tables["Metrics of each class"]
    assert rows[0] == ["Run", "Class", "Precision", "Recall", "F1"]
    assert [row[1] for row in rows[1:]] == ["benign", "benign", "malignant", "malignant"]
    recall = metrics_of(runs[1])["per_class"]["malignant"]["recall"]["value"]
    assert rows[4][3].startswith(f"{recall:.3f}")


def test_runs_of_other_classes_are_named_and_not_tested(tmp_path: Path) -> None:
    write_run(tmp_path / "a", make_table())
    write_run(tmp_path / "b", replace(make_table(skill=1), classes=("healthy", "malignant")), "data.split=ratio")
    path, _ = write_comparison(tmp_path)
    lead = path.read_text(encoding="utf-8").split("\n\n")[1]
    assert "different classes" in lead
    assert "healthy" in lead
    (pair,) = compare_runs(read_runs(tmp_path))
    assert pair.reason == "other classes"
