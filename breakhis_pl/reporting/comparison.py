"""Comparison of runs: comparison.csv with all digits, comparison.md and comparison.html to read."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from breakhis_pl.errors import join_truncated
from breakhis_pl.metrics.registry import METRICS
from breakhis_pl.reporting.checks import Check, documentation_link, run_checks
from breakhis_pl.reporting.comparison_page import class_names, lead_sentences, page_sections
from breakhis_pl.reporting.pages import Section, render, table_to_markdown, to_markdown
from breakhis_pl.reporting.repeats import over_folds, with_names
from breakhis_pl.reporting.runs import Run, distinct_names, find_runs, read_run, shorten
from breakhis_pl.run_folder import write_text

MAX_TEXTS = 3
"""Sentences of a check that differ from run to run."""


def write_comparison(folder: Path, runs: Sequence[Path] | None = None) -> tuple[Path, list[Check]]:
    """Write comparison.csv, comparison.md and comparison.html into a folder; older ones are replaced.

    Args:
        folder: Folder of a sweep; with `runs`, any folder.
        runs: Run folders, or folders of sweeps; None: the runs of the sweep.

    Returns:
        Path of comparison.md, and the checks that runs did not pass.

    Raises:
        RunFolderError: If a folder does not exist or holds no run.
        PredictionsError: If a run is given twice.
    """
    found = find_runs([folder] if runs is None else runs)
    names = shorten([path.name for path in found]) if runs is None else distinct_names(found)
    runs_read = [read_run(path, name=name) for path, name in zip(found, names, strict=True)]
    return write_runs(folder, with_names(runs_read))


def write_runs(folder: Path, runs: Sequence[Run], *, lead: str | None = None) -> tuple[Path, list[Check]]:
    """Write the comparison of runs that have been read, each with a name of its own.

    Args:
        folder: Where to write.
        runs: The runs.
        lead: A further sentence on what is compared.
    """
    folder.mkdir(parents=True, exist_ok=True)
    title, checks = "/".join(folder.resolve().parts[-2:]), _checks(runs)
    sentences, sections = [*lead_sentences(runs), *([lead] if lead else [])], list(page_sections(folder, runs))
    write_text(folder / "comparison.csv", comparison_table(runs).to_csv(index=False))
    page = render(
        "comparison.html.j2",
        title=title,
        heading="Comparison of runs",
        lead=sentences,
        checks=checks,
        documentation=documentation_link(folder),
        sections=sections,
        toc=[(section.key, section.heading) for section in sections],
    )
    write_text(folder / "comparison.html", page)
    path = folder / "comparison.md"
    write_text(path, _markdown(sentences, checks, sections))
    return path, checks


def comparison_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Return a row per run, then mean and standard deviation over folds of each configuration."""
    names = [
        *(metric.name for metric in METRICS.values() if not metric.per_class),
        *(f"{metric.name}_{name}" for name in class_names(runs) for metric in METRICS.values() if metric.per_class),
    ]
    rows: list[dict[str, Any]] = []
    for run in runs:
        facts: dict[str, Any] = {"run": run.name, "folder": str(run.folder), "status": run.status, "model": run.model}
        facts |= {"fold": run.fold, "seed": run.seed}
        estimates = {name: run.estimate(name) for name in names}
        rows.append(
            facts
            | {"n_test_images": None if run.metrics is None else run.metrics["n_images"]}
            | {name: estimate and estimate["value"] for name, estimate in estimates.items()}
            | run.costs
        )
    for group in over_folds(runs):
        spreads = {name: found for name in names if (found := group.over_folds(name)) is not None}
        facts = {
            "run": group.name,
            "model": group.runs[0].model,
            "fold": " ".join(map(str, group.folds)),
            "seed": " ".join(map(str, group.seeds)),
        }
        for status, place in (("mean over folds", 0), ("standard deviation over folds", 1)):
            rows.append(facts | {"status": status} | {name: found[place] for name, found in spreads.items()})
    table = pd.DataFrame(rows)
    return table.astype(dict.fromkeys(("n_test_images", "parameters"), "Int64"))


def _checks(runs: Sequence[Run]) -> list[Check]:
    """Merge the checks of the runs: one line for each code."""
    by_code: dict[str, list[tuple[Run, Check]]] = defaultdict(list)
    with_result = [run for run in runs if run.metrics is not None]
    for run in with_result:
        for check in run_checks(run):
            by_code[check.code].append((run, check))
    merged = []
    for code, found in sorted(by_code.items()):
        by_text: dict[str, list[str]] = defaultdict(list)
        for run, check in found:
            by_text[check.text].append(run.name)
        # sentences that all runs share stand once, before or after those of their own
        sentences = [re.split(r"(?<=\.) ", text) for text in by_text]
        shared = (
            [each for each in sentences[0] if all(each in other for other in sentences)] if len(by_text) > 1 else []
        )
        texts = []
        for text, names in list(by_text.items())[:MAX_TEXTS]:
            own = " ".join(each for each in re.split(r"(?<=\.) ", text) if each not in shared)
            everybody = "both runs" if len(names) == 2 else f"all {len(names)} runs"
            who = everybody if len(names) == len(with_result) > 1 else join_truncated(names, limit=3)
            texts.append(f"{who}: {own}")
        if len(by_text) > MAX_TEXTS:
            others = [name for names in list(by_text.values())[MAX_TEXTS:] for name in names]
            texts.append(f"Others too: {join_truncated(others, limit=3)}.")
        texts = [*shared, *texts] if sentences[0][0] in shared else [*texts, *shared]
        merged.append(Check(code, found[0][1].title, " ".join(texts)))
    return merged


def _markdown(lead: Sequence[str], checks: Sequence[Check], sections: Sequence[Section]) -> str:
    blocks = ["# Comparison", "\n".join(map(to_markdown, lead))]
    blocks += [f"**{check.code} {to_markdown(check.title)}:** {to_markdown(check.text)}" for check in checks]
    for section in sections:
        if not section.tables and not section.points:
            continue  # figures are in the HTML page
        blocks.append(f"## {section.heading}")
        if section.points:
            blocks.append("\n".join(f"- {to_markdown(point)}" for point in section.points))
        for table in section.tables:
            blocks += [f"{to_markdown(table.caption)}:", table_to_markdown(table)]
        blocks += map(to_markdown, section.notes)
    return "\n\n".join(blocks) + "\n"
