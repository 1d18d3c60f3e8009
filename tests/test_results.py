import json
import re
import runpy
from pathlib import Path

import pytest

from breakhis_pl.metrics.evaluation import evaluate_table
from tests.conftest import REPOSITORY

RUNS = sorted(path.parent for path in (REPOSITORY / "results").glob("*/*/run.json"))


def test_the_page_of_results_shows_the_table_of_its_runs() -> None:
    table = runpy.run_path(str(REPOSITORY / "results" / "table.py"))["table"]()
    assert table.count("\n") == 2 + len(RUNS)
    assert table in (REPOSITORY / "results" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_metrics_of_published_runs_follow_from_their_rows(run: Path) -> None:
    metrics = evaluate_table(run / "test" / "predictions.csv")
    assert json.loads(json.dumps(metrics)) == json.loads((run / "test" / "metrics.json").read_text())


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_published_runs_say_what_they_are(run: Path) -> None:
    facts = json.loads((run / "run.json").read_text())
    assert facts["status"] == "finished"
    assert facts["uncommitted_changes"] is False
    assert facts["data"]["complete"] is False
    assert len(facts["commit"]) == 40


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "conf" / "experiment").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_figure_that_an_experiment_expects_was_measured(path: Path) -> None:
    """In results/, in the table of docs/training_options.md, or in the output of the notebook."""
    header = " ".join(line[1:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    expected = re.search(r"weighted F1 (0\.\d+(?: \(0\.\d+ to 0\.\d+\)| ± 0\.\d+)?)", header)
    assert expected is not None
    assert f"experiment={path.stem}" in header
    places = ("results/README.md", "docs/training_options.md", "notebooks/first_look.ipynb")
    assert any(expected[1] in (REPOSITORY / place).read_text(encoding="utf-8") for place in places)
