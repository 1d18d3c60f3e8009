"""Run folders written from arrays, and pages taken apart."""

import copy
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from breakhis_pl.data.breakhis import SUBTYPES
from breakhis_pl.metrics.calibration import fit_calibration, write_calibration
from breakhis_pl.metrics.evaluation import evaluate_table, write_metrics
from breakhis_pl.metrics.predictions import Predictions, write_predictions
from breakhis_pl.reporting.gallery import choose_images, write_gallery
from breakhis_pl.reporting.run_report import SUBTYPE_FILES, write_report, write_results
from breakhis_pl.run_folder import RunFolder, RunRecord

CONFIG: dict[str, Any] = {
    "data": {"magnification": [200], "test_magnification": None, "split": "official", "fold": 2, "group": "case"},
    "model": {"backbone": "resnet18", "library": "torchvision", "freeze": False, "head": "mlp"},
    "optimizer": {"_target_": "torch.optim.Adamax", "lr": 0.0005},
    "trainer": {"limit_train_batches": None},
    "task": "binary",
    "seed": 0,
}

HISTORY = pd.DataFrame(
    {
        "epoch": [1, 2, 3],
        "train_loss": [0.6, 0.4, 0.3],
        "test_loss": [0.5, 0.4, 0.35],
        "train_accuracy": [0.7, 0.8, 0.9],
        "test_accuracy": [0.75, 0.8, 0.85],
        "images_per_second": [2.0, 6.0, 3.0],
    }
)


def make_table(
    *,
    skill: float = 1.5,
    seed: int = 0,
    n_patients: int = 8,
    n_cases: int = 6,
    n_images: int = 5,
    magnifications: Sequence[int] = (200,),
    prefix: str = "",
) -> Predictions:
    """Draw predictions for patients that are benign and malignant in turn; the last patients share cases.

    `skill` is the mean distance of the logits from 0, whose standard deviation is 1 (images) and 0.5 (patients).
    """
    rng = np.random.default_rng(seed)
    patient = np.arange(n_patients).repeat(n_images)
    target = (patient % 2).astype(np.int64)
    logit = skill * (2 * target - 1) + rng.normal(0, 0.5, n_patients)[patient] + rng.normal(0, 1, len(patient))
    positive = np.round(1 / (1 + np.exp(-logit)), 6)
    letters = [("B_TA", "M_DC")[index] for index in target]
    case = [f"14-{1000 + index % n_cases}" for index in patient]
    names = [
        f"SOB_{letter}-{name}{'ABCD'[index // n_cases]}"
        for letter, name, index in zip(letters, case, patient, strict=True)
    ]
    numbers = [f"{prefix}{name}-200-{number:03}.png" for number, name in enumerate(names)]
    return Predictions(
        classes=("benign", "malignant"),
        image=np.array(numbers, dtype=object),
        patient=np.array(names, dtype=object),
        case=np.array(case, dtype=object),
        magnification=np.resize(magnifications, len(patient)).astype(np.int64),
        target=target,
        probabilities=np.stack([1 - positive, positive], axis=1),
        predicted=(positive > 0.5).astype(np.int64),
    )


def constant_table(**options: Any) -> Predictions:
    """Draw predictions of a network that calls every image malignant."""
    table = make_table(**options)
    table.probabilities[:, 1] = 0.51 + 0.04 * table.probabilities[:, 1]
    table.probabilities[:, 0] = 1 - table.probabilities[:, 1]
    table.predicted[:] = 1
    return table


def with_decisions(table: Predictions, other: Predictions) -> Predictions:
    """Return the images of a table with the probabilities of another one."""
    return replace(table, probabilities=other.probabilities, predicted=other.predicted)


def subtype_table() -> Predictions:
    """Draw predictions of the eight tumor types for the images of `make_table`."""
    table = make_table()
    probabilities = np.random.default_rng(0).dirichlet(np.ones(8), len(table))
    target = np.where(table.target == 0, 3, 4)  # TA, DC
    return replace(
        table, classes=tuple(SUBTYPES), target=target, probabilities=probabilities, predicted=probabilities.argmax(1)
    )


def write_run(
    folder: Path,
    table: Predictions | None = None,
    *overrides: str,
    data: dict[str, Any] | None = None,
    history: pd.DataFrame | None = HISTORY,
    trained_on: Sequence[tuple[str, str]] = (),
    with_val: bool = True,
    **record: Any,
) -> Path:
    """Write the folder of a run; without a table, it has no result.

    Args:
        folder: Folder to create.
        table: Its test predictions.
        *overrides: Values of the configuration, "data.fold=3".
        data: Facts on the images in run.json.
        history: Rows of history.csv.
        trained_on: Image and case of further train images.
        with_val: Whether the split has a validation subset.
        **record: Values of run.json.
    """
    config = OmegaConf.to_container(OmegaConf.merge(copy.deepcopy(CONFIG), OmegaConf.from_dotlist(list(overrides))))
    counts = {"train": {"benign": 20, "malignant": 40}, "test": {"benign": 20, "malignant": 20}}
    if with_val:
        counts["val"] = {"benign": 1, "malignant": 1}
    facts = {"synthetic": False, "complete": True, "n_images": counts, **(data or {})}
    folder.mkdir(parents=True)
    run = RunFolder(folder)
    run.write(
        RunRecord(
            **{
                "status": "finished",
                "command": "uv run train.py",
                "started": "2026-01-02T03:04:05+00:00",
                "seconds": {"total": 75.5, "training": 60.0},
                "config": config,
                "data": facts,
                "model": {"n_parameters": 11_333_702},
                **record,
            }
        )
    )
    if history is not None:
        history.to_csv(run.history_csv, index=False)
    if table is not None:
        rows = [(*names, "test") for names in zip(table.image, table.patient, table.case, strict=True)]
        rows += [("a-200-001.png", "a", "13-1", "train")] + [(image, "x", case, "train") for image, case in trained_on]
        rows += [("b-200-001.png", "b", "13-2", "val"), ("c-200-001.png", "c", "13-3", "val")] if with_val else []
        pd.DataFrame(rows, columns=["image", "patient", "case", "subset"]).to_csv(run.split_csv, index=False)
        write_table(folder / "test", table)
    return folder


def write_table(folder: Path, table: Predictions) -> None:
    """Write predictions.csv and metrics.json, with few draws."""
    folder.mkdir()
    write_predictions(folder / "predictions.csv", table)
    write_metrics(folder / "metrics.json", evaluate_table(folder / "predictions.csv", n_draws=200))


def add_gallery(folder: Path, table: Predictions, *, n_per_kind: int = 8, has_heat: bool = True) -> None:
    """Write a gallery of noise, which compresses worst."""
    chosen = choose_images(table, n_per_kind=n_per_kind)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (len(chosen), 224, 224, 3), dtype=np.uint8)
    heat = rng.random((len(chosen), 224, 224), dtype=np.float32)
    write_gallery(folder / "test", table, chosen, pixels, heat if has_heat else None)


def add_calibration(folder: Path) -> None:
    """Fit a calibration on other rows, and evaluate the test table with it."""
    write_calibration(folder / "calibration.json", fit_calibration(make_table(seed=9)))
    write_metrics(folder / "test/metrics.json", evaluate_table(folder / "test/predictions.csv", n_draws=200))


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read metrics.json of a run."""
    metrics: dict[str, Any] = json.loads((folder / "test/metrics.json").read_text())
    return metrics


@pytest.fixture(scope="session")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every file that report.html shows, and the page."""
    table = make_table(skill=0.3, n_patients=12, n_cases=8, magnifications=(100, 200))
    command = "uv run train.py <script>alert(1)</script> " + "a_long_override=" * 20
    runs = tmp_path_factory.mktemp("runs")
    folder = write_run(runs / "run", table, command=command, trained_on=[("train.png", "14-1001")])
    add_gallery(folder, table)
    add_calibration(folder)
    write_results(folder / "test", subtype_table(), title="types", note=None, files=SUBTYPE_FILES)
    write_report(folder)
    return folder


class ParsedPage(HTMLParser):
    """Elements, tables and text of a page; `unclosed` lists elements that are not closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.headings: list[str] = []
        self.text = ""
        self.unclosed: list[str] = []
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "link", "img", "br", "input"):
            self.unclosed.append(tag)
        match tag:
            case "table":
                self._rows, self._caption = [], ""
            case "tr":
                self._rows.append([])
            case "th" | "td":
                self._rows[-1].append("")
            case "h1" | "h2" | "h3":
                self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        if self.unclosed[-1] == tag:
            self.unclosed.pop()
        if tag == "table":
            self.tables[self._caption.strip()] = self._rows

    def handle_data(self, data: str) -> None:
        self.text += data
        if "caption" in self.unclosed:
            self._caption += data
        elif {"th", "td"} & set(self.unclosed):
            self._rows[-1][-1] += data.strip()
        elif {"h1", "h2", "h3"} & set(self.unclosed):
            self.headings[-1] += data

    def attributes(self, name: str) -> list[str]:
        """Return all values of an attribute."""
        return [attributes[name] for _, attributes in self.elements if name in attributes]

    @property
    def tags(self) -> Counter[str]:
        """Number of elements by tag."""
        return Counter(tag for tag, _ in self.elements)

    @property
    def sections(self) -> set[str]:
        """Ids of the sections."""
        return {attributes["id"] for tag, attributes in self.elements if tag == "section"}
