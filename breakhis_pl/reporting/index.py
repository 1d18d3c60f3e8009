"""outputs/index.html: all runs with result, date and link, the newest first."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from breakhis_pl.errors import RunFolderError
from breakhis_pl.metrics.evaluation import METRICS_JSON
from breakhis_pl.metrics.registry import shown
from breakhis_pl.reporting.pages import Cell, Section, Table, link, render
from breakhis_pl.reporting.runs import model_name
from breakhis_pl.run_folder import REPORT_PAGE, RUN_JSON, RunFolder, write_text

INDEX_PAGE = "index.html"
MAX_RUNS = 500
"""Runs that are listed."""


def write_index(folder: Path) -> Path:
    """Write index.html into a folder with run folders at any depth; an older one is replaced.

    Returns:
        Its path.
    """
    found = []
    for path in folder.rglob(RUN_JSON):
        with suppress(RunFolderError, ValueError):  # damaged
            found.append((RunFolder(path.parent).read(), path.parent, _metrics(path.parent)))
    found.sort(key=lambda each: each[0].started, reverse=True)
    comparisons = sorted(folder.rglob("comparison.html"), key=lambda path: path.stat().st_mtime, reverse=True)
    metrics = shown("paired")
    rows: list[list[Cell]] = [
        [
            link(run.relative_to(folder).as_posix(), run / REPORT_PAGE, folder),
            model_name(record.config),
            record.status,
            *(result.get(metric.name) for metric in metrics),
            record.started[:16].replace("T", " "),
        ]
        for record, run, result in found[:MAX_RUNS]
    ]
    headings = ["Run", "Network", "Status", *(metric.title for metric in metrics), "Started (UTC)"]
    caption = "Results on the test images of each run, which may differ; 95% intervals in parentheses"
    sections = [Section("runs", "Runs", tables=[Table(caption, headings, rows, texts={"Network", "Status"})])]
    if comparisons:
        links: list[list[Cell]] = [
            [link(path.parent.relative_to(folder).as_posix(), path, folder)] for path in comparisons
        ]
        sections.append(Section("comparisons", "Comparisons", tables=[Table("The newest first", ["Folder"], links)]))
    lead = [f"{len(found):,} runs." if len(found) <= MAX_RUNS else f"The newest {MAX_RUNS} of {len(found):,} runs."]
    page = render(
        "comparison.html.j2",
        title=folder.resolve().name,
        heading="Runs",
        lead=lead,
        checks=[],
        documentation=None,
        sections=sections,
        toc=[(section.key, section.heading) for section in sections],
    )
    write_text(folder / INDEX_PAGE, page)
    return folder / INDEX_PAGE


def _metrics(run: Path) -> dict[str, Any]:
    path = run / "test" / METRICS_JSON
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found
