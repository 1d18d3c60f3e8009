"""Run folders written from arrays, and pages taken apart."""

import copy
import html
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from breakhis_pl.data.breakhis import SUBTYPES
from breakhis_pl.metrics.calibration import Calibration, fit_calibration, write_calibration
from breakhis_pl.metrics.evaluation import evaluate_table, write_metrics
from breakhis_pl.metrics.predictions import Predictions, write_predictions
from breakhis_pl.reporting.gallery import choose_images, write_gallery
from breakhis_pl.reporting.results import SUBTYPE_FILES, write_results
from breakhis_pl.reporting.run_report import write_report
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
    [(1, 0.6, 0.5, 0.7, 0.75, 2.0), (2, 0.4, 0.4, 0.8, 0.8, 6.0), (3, 0.3, 0.35, 0.9, 0.85, 3.0)],
    columns=["epoch", "train_loss", "test_loss", "train_accuracy", "test_accuracy", "images_per_second"],
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
    case = [f"14-{1000 + index % n_cases}" for index in patient]
    suffixes = ["ABCD"[index // n_cases] for index in patient]
    letters = np.array(["B_TA", "M_DC"])[target]
    names = [f"SOB_{each}-{name}{suffix}" for each, name, suffix in zip(letters, case, suffixes, strict=True)]
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
    """Draw predictions of a network that predicts every image as malignant."""
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
    drawn = np.random.default_rng(0).dirichlet(np.ones(8), len(table))
    target = np.where(table.target == 0, 3, 4)  # TA, DC
    return replace(table, classes=tuple(SUBTYPES), target=target, probabilities=drawn, predicted=drawn.argmax(1))


def write_run(
    folder: Path,
    table: Predictions | None = None,
    *overrides: str,
    data: dict[str, Any] | None = None,
    history: pd.DataFrame | None = HISTORY,
    trained_on: Sequence[tuple[str, str]] = (),
    missing: Sequence[str] = (),
    with_val: bool = True,
    is_calibrated: bool = False,
    **record: Any,
) -> Path:
    """Write the folder of a run; without a table, it has no result.

    `overrides` and `record` change configuration and run.json; `trained_on`: image and case of further train images;
    `missing`: test images that are not in the table.
    """
    config = OmegaConf.to_container(OmegaConf.merge(copy.deepcopy(CONFIG), OmegaConf.from_dotlist(list(overrides))))
    counts = {"train": {"benign": 20, "malignant": 40}, "test": {"benign": 20, "malignant": 20}}
    if table is not None:
        named = Counter(np.where(table.target == 0, "benign", "malignant").tolist())
        counts["test"] = dict(named)
    if with_val:
        counts["val"] = {"benign": 1, "malignant": 1}
    values: dict[str, Any] = {
        **{"status": "finished", "command": "uv run train.py", "started": "2026-01-02T03:04:05+00:00"},
        **{"seconds": {"total": 75.5, "training": 60.0}, "model": {"n_parameters": 11_333_702}, "config": config},
        "data": {"synthetic": False, "complete": True, "n_images": counts, **(data or {})},
    }
    folder.mkdir(parents=True)
    run = RunFolder(folder)
    run.write(RunRecord(**values | record))
    if history is not None:
        history.to_csv(run.history_csv, index=False)
    if table is not None:
        rows = [(*names, "test") for names in zip(table.image, table.patient, table.case, strict=True)]
        rows += [("a-200-001.png", "a", "13-1", "train")] + [(image, "x", case, "train") for image, case in trained_on]
        rows += [(image, "y", "13-4", "test") for image in missing]
        rows += [("b-200-001.png", "b", "13-2", "val"), ("c-200-001.png", "c", "13-3", "val")] if with_val else []
        pd.DataFrame(rows, columns=["image", "patient", "case", "subset"]).to_csv(run.split_csv, index=False)
        write_table(folder / "test", table)
        if is_calibrated:
            add_calibration(folder)
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


def add_calibration(folder: Path, calibration: Calibration | None = None) -> None:
    """Write a calibration, fitted on other rows if none is given, and evaluate the test table with it."""
    write_calibration(folder / "calibration.json", calibration or fit_calibration(make_table(seed=9)))
    write_metrics(folder / "test/metrics.json", evaluate_table(folder / "test/predictions.csv", n_draws=200))


def metrics_of(folder: Path) -> dict[str, Any]:
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


class ParsedPage:
    """Elements, tables and text of a page. An element that is not closed in order raises an error."""

    def __init__(self, path: Path) -> None:
        text = re.sub(r"(<(?:meta|link|img|br|input)\b[^>]*)>", r"\1/>", path.read_text(encoding="utf-8"))
        text = re.sub(r"&(?:middot|nbsp|ndash);", lambda entity: html.unescape(entity[0]), text)  # unknown to XML
        root = ElementTree.fromstring(text)  # noqa: S314 - our own page
        self.text = "".join(root.itertext())
        self.elements = [(each.tag, each.attrib) for each in root.iter()]
        self.tags = Counter(tag for tag, _ in self.elements)
        self.sections = {attributes["id"] for tag, attributes in self.elements if tag == "section"}
        self.headings = {"".join(each.itertext()) for tag in ("h1", "h2", "h3") for each in root.iter(tag)}
        self.tables = {
            "".join(table[0].itertext()).strip(): [
                ["".join(map(str.strip, cell.itertext())) for cell in row] for row in table.iter("tr")
            ]
            for table in root.iter("table")
        }

    def attributes(self, name: str) -> list[str]:
        """Return all values of an attribute."""
        return [attributes[name] for _, attributes in self.elements if name in attributes]
