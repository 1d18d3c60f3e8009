import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from breakhis_pl.errors import PredictionsError
from breakhis_pl.evaluation.__main__ import main
from breakhis_pl.evaluation.comparison import write_comparison
from breakhis_pl.evaluation.predictions import Predictions, write_predictions
from breakhis_pl.evaluation.siblings import siblings_from_split

FAST = ["--draws", "200"]


def write_table(path: Path, *, seed=0, n_cases=8, benign_share=0.5):
    rng = np.random.default_rng(seed)
    case = np.arange(n_cases).repeat(5)
    target = (case >= benign_share * n_cases).astype(np.int64)
    prob = 1 / (1 + np.exp(-(2 * target - 1 + rng.normal(size=len(case)))))
    path.parent.mkdir(parents=True, exist_ok=True)
    predictions = Predictions(
        image=tuple(f"{i}.png" for i in range(len(case))),
        patient=tuple(f"patient {each}" for each in case),
        case=tuple(f"case {each}" for each in case),
        magnification=np.full(len(case), 200),
        target=target,
        probabilities=np.stack([1 - prob, prob], axis=1),
        predicted=(prob > 0.5).astype(np.int64),
    )
    write_predictions(path, predictions)
    return path


def files_under(folder: Path):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_one_table_is_printed_and_written_beside_itself(tmp_path, capsys):
    path = write_table(tmp_path / "predictions.csv")

    assert main([str(path), *FAST]) == 0

    printed = capsys.readouterr().out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    low, high = metrics["weighted_f1"]["ci95"]
    assert f"{metrics['weighted_f1']['value']:.3f}  [{low:.3f}, {high:.3f}]" in printed
    assert "40 images, 8 patients, 8 cases" in printed
    assert "malignant" in printed
    assert "paired" not in printed
    assert metrics["subset"] == "test"


def test_out_names_another_folder_that_need_not_exist(tmp_path):
    path = write_table(tmp_path / "run" / "predictions.csv")

    assert main([str(path), "--out", str(tmp_path / "new" / "folder"), *FAST]) == 0

    assert files_under(tmp_path) == ["new/folder/metrics.json", "run/predictions.csv"]


def test_several_tables_never_overwrite_each_others_metrics(tmp_path):
    paths = [write_table(tmp_path / name / "test" / "predictions.csv") for name in ("a", "b")]
    paths.append(write_table(tmp_path / "a" / "test" / "other.csv"))

    assert main([*map(str, paths), "--out", str(tmp_path / "out"), *FAST]) == 0
    assert main([*map(str, paths), *FAST]) == 0

    written = [name for name in files_under(tmp_path) if name.endswith(".json")]
    assert written == [
        "a/test/a_test_other.metrics.json",
        "a/test/a_test_predictions.metrics.json",
        "b/test/metrics.json",
        "out/a_test_other.metrics.json",
        "out/a_test_predictions.metrics.json",
        "out/b_test_predictions.metrics.json",
    ]


def test_tables_of_the_same_images_are_compared(tmp_path, capsys):
    paths = [write_table(tmp_path / f"{name}.csv", seed=seed) for seed, name in enumerate(("one", "two", "three"))]

    assert main([*map(str, paths), *FAST]) == 0

    printed = capsys.readouterr().out
    for pair in ("one - two", "one - three", "two - three"):
        assert pair in printed
    assert printed.count("McNemar") == 3
    assert printed.count("no difference in weighted F1 can be shown") == 3


def test_the_command_and_a_comparison_of_runs_give_the_same_numbers(tmp_path, capsys):
    paths = [write_table(tmp_path / name / "test" / "predictions.csv", seed=i) for i, name in enumerate(("a", "b"))]
    for path in paths:
        (path.parents[1] / "run.json").write_text('{"status": "finished"}')

    assert main([*map(str, paths)]) == 0
    page = write_comparison(tmp_path).read_text()

    printed = capsys.readouterr().out.split("paired differences")[1]
    for metric in ("weighted_f1", "accuracy", "auroc", "patient_recognition_rate"):
        numbers = re.search(rf"{metric} +(\S+)  \[(\S+), (\S+)\]  p (\S+), (\S+)", printed)
        difference, low, high, p, p_holm = numbers.groups()
        name = {"auroc": "AUROC", "weighted_f1": "weighted F1"}.get(metric, metric.replace("_", " "))
        n_cases = 4 if metric == "auroc" else 8
        assert f"| a | b | {name} | {difference} | {low} to {high} | {n_cases} | {p} | {p_holm} |" in page
    assert "40 images, 8 cases" in printed
    assert re.search(r"auroc .*  \(4 cases, of the rarer class\)\n", printed)
    assert printed.count("of the rarer class") == 1


def test_tables_of_other_images_are_not_compared_and_the_reason_is_printed(tmp_path, capsys):
    paths = [write_table(tmp_path / "a.csv"), write_table(tmp_path / "b.csv", n_cases=9)]

    assert main([*map(str, paths), *FAST]) == 0

    printed = capsys.readouterr().out
    assert "a and b are not compared: the test images differ: 0 only in a, 5 only in b." in printed
    assert "McNemar" not in printed


def test_tables_of_one_class_are_evaluated_and_the_missing_comparison_is_explained(tmp_path, capsys):
    paths = [write_table(tmp_path / f"{name}.csv", seed=seed, benign_share=0) for seed, name in enumerate("ab")]

    assert main([*map(str, paths), *FAST]) == 0

    printed = capsys.readouterr().out
    assert "auroc                     not defined: a class has no images" in printed
    assert "specificity               not defined: no images" in printed
    assert re.search(r"benign +0\.00 +- +- +0\n", printed)
    assert "auroc                     not defined, as the test images are all of one class" in printed
    assert "a and b: no difference in weighted F1 can be shown" in printed


def test_without_intervals_values_stand_alone(tmp_path, capsys):
    path = write_table(tmp_path / "predictions.csv")

    assert main([str(path), "--no-intervals"]) == 0

    assert "[" not in capsys.readouterr().out.split("cases\n", 1)[1]
    assert json.loads((tmp_path / "metrics.json").read_text())["accuracy"]["ci95"] is None


def test_seed_and_draws_reach_the_metrics(tmp_path):
    path = write_table(tmp_path / "predictions.csv")

    assert main([str(path), "--seed", "3", "--draws", "150"]) == 0

    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["seed"], metrics["n_draws"]) == (3, 150)


def test_the_split_beside_the_subsets_folder_tells_the_siblings(tmp_path, capsys):
    path = write_table(tmp_path / "run" / "test" / "predictions.csv")
    split = ["image,patient,case,subset", "x.png,p,case 0,train", "y.png,p,case 1,val"]
    split += [f"{i}.png,patient {i // 5},case {i // 5},test" for i in range(40)]
    (tmp_path / "run" / "split.csv").write_text("\n".join(split) + "\n")

    assert main([str(path), *FAST]) == 0

    assert json.loads((path.parent / "metrics.json").read_text())["without_siblings"]["n_images"] == 30
    assert "30 images" in capsys.readouterr().out
    assert siblings_from_split(tmp_path / "run" / "split.csv") == {f"{i}.png" for i in range(10)}


def test_the_folders_name_tells_the_subset(tmp_path):
    path = write_table(tmp_path / "val" / "predictions.csv")

    assert main([str(path), *FAST]) == 0

    assert json.loads((path.parent / "metrics.json").read_text())["subset"] == "val"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.csv"], "nothing.csv cannot be read (No such file or directory); expected a predictions.csv"),
        (["good.csv", "good.csv"], "good.csv is given more than once; name each once"),
        (["good.csv", "--draws", "3"], "3 draws; expected at least 100"),
        (["good.csv", "--seed", "-4"], "seed -4 is negative"),
        (["bad.csv"], "bad.csv, line 1: column patient is missing"),
        (["good.csv", "--out", "bad.csv"], "bad.csv"),
    ],
)
def test_errors_go_to_stderr_with_status_1(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "good.csv")
    (tmp_path / "bad.csv").write_text("image\na.png\n")

    assert main(arguments) == 1

    output = capsys.readouterr()
    assert message in output.err
    assert output.out == ""
    assert files_under(tmp_path) == ["bad.csv", "good.csv"]


def test_a_split_that_cannot_be_used_is_refused(tmp_path):
    with pytest.raises(PredictionsError, match=r"split.csv cannot be read .No such file"):
        siblings_from_split(tmp_path / "split.csv")
    (tmp_path / "split.csv").write_text("image,subset\n")
    with pytest.raises(PredictionsError, match=r"column patient, case is missing; expected the split.csv"):
        siblings_from_split(tmp_path / "split.csv")


def test_the_command_imports_neither_torch_nor_scipy(tmp_path):
    path = write_table(tmp_path / "predictions.csv")
    code = (
        "import sys\n"
        "from breakhis_pl.evaluation.__main__ import main\n"
        "status = main(sys.argv[1:])\n"
        "print(*sorted({'torch', 'scipy', 'sklearn', 'matplotlib', 'lightning', 'hydra'} & set(sys.modules)))\n"
        "sys.exit(status)\n"
    )

    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == ""


def test_the_command_runs_as_a_module_and_fails_without_traceback(tmp_path):
    command = [sys.executable, "-m", "breakhis_pl.evaluation"]

    done = subprocess.run([*command, str(tmp_path / "none.csv")], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert done.stderr.startswith(f"{tmp_path}{os.sep}none.csv cannot be read")
    assert "Traceback" not in done.stderr
