"""outputs/index.html."""

from pathlib import Path

import pytest

from breakhis_pl.metrics.evaluation import format_estimate
from breakhis_pl.reporting.comparison import write_comparison
from breakhis_pl.reporting.index import write_index
from tests.unit.reporting.conftest import ParsedPage, make_table, metrics_of, write_run


@pytest.mark.usefixtures("undrawn")
def test_all_runs_are_listed_with_result_date_and_link_the_newest_first(tmp_path: Path) -> None:
    old = write_run(tmp_path / "2026-01-01" / "old", make_table(), started="2026-01-01T10:00:00+00:00")
    write_run(tmp_path / "sweeps" / "a" / "new", make_table(seed=1), started="2026-02-01T10:00:00+00:00")
    write_run(tmp_path / "failed", status="failed", started="2025-01-01T10:00:00+00:00")
    (write_run(tmp_path / "damaged") / "run.json").write_text("{")
    (old / "report.html").write_text("page")
    write_comparison(tmp_path / "sweeps" / "a")
    page = ParsedPage(write_index(tmp_path))
    first, second = page.tables.values()
    assert [row[0] for row in first[1:]] == ["sweeps/a/new", "2026-01-01/old", "failed"]
    assert first[2][2] == "finished"
    assert first[2][3] == format_estimate(metrics_of(old)["weighted_f1"]).replace(" (", "(")
    assert first[2][-1] == "2026-01-01 10:00"
    assert {"2026-01-01/old/report.html", "sweeps/a/comparison.html"} <= set(page.attributes("href"))
    assert [row[0] for row in second[1:]] == ["sweeps/a"]


def test_of_many_runs_the_newest_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("breakhis_pl.reporting.index.MAX_RUNS", 2)
    for day in (1, 3, 2):
        write_run(tmp_path / f"day{day}", status="failed", started=f"2026-01-0{day}T10:00:00+00:00")
    (rows,) = ParsedPage(write_index(tmp_path)).tables.values()
    assert [row[0] for row in rows[1:]] == ["day3", "day2"]
