"""Runs that tell the eight tumor types apart, as a user has them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from breakhis_pl.data.breakhis import SUBTYPES, TASKS, parse_file_name
from breakhis_pl.evaluation.predictions import read_predictions
from breakhis_pl.evaluation.run_summary import summarize_run
from breakhis_pl.evaluation.subtypes import CODES, SUBTYPES_CSV, read_subtypes
from breakhis_pl.models.classifier import Classifier
from breakhis_pl.models.tasks import SummedTypes, summed
from breakhis_pl.training.checkpoints import load_checkpoint
from tests.programs import TINY, run_program


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, drawn_cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("subtype")
    arguments = ("task=subtype", "trainer=cpu", "trainer.max_epochs=1", "gallery=1", "hydra.run.dir=run")
    outcome = run_program("train", *TINY, f"data.cache_dir={drawn_cache}", *arguments, cwd=folder)
    assert outcome.status == 0, outcome.err
    return folder / "run"


def test_probabilities_of_types_are_summed_to_classes() -> None:
    logits = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    of_types = torch.softmax(logits.double(), dim=1)
    benign = [place for place, code in enumerate(CODES) if SUBTYPES[code].class_name == "benign"]
    expected = of_types[:, benign].sum(1)
    assert torch.allclose(torch.softmax(summed(logits.double(), "subtype"), dim=1)[:, 0], expected)
    assert torch.equal(summed(logits[:, :2], "binary"), logits[:, :2])


def test_a_type_belongs_to_its_class() -> None:
    name = parse_file_name("SOB_M_PC-14-9146-200-001.png")
    assert (name.target_of("binary"), TASKS["subtype"][name.target_of("subtype")]) == (1, "PC")


def test_a_classifier_answers_with_two_logits_whatever_it_tells_apart() -> None:
    classifier = Classifier("resnet18", dropout=0.0, task="subtype").eval()
    images = torch.zeros(2, 3, 32, 32)
    assert classifier.network(images).shape == (2, 8)
    assert classifier(images).shape == (2, 2)
    assert torch.equal(classifier.binary_network()(images), classifier(images))
    assert isinstance(classifier.binary_network(), SummedTypes)


def test_a_run_is_evaluated_by_class_and_by_type(run: Path) -> None:
    by_class, by_type = read_predictions(run / "test/predictions.csv"), read_subtypes(run / "test" / SUBTYPES_CSV)
    assert sorted(by_class.image) == list(by_type.image)
    of_image = dict(zip(by_class.image, by_class.prob_malignant, strict=True))
    malignant = [place for place, code in enumerate(CODES) if SUBTYPES[code].class_name == "malignant"]
    sums = by_type.probabilities[:, malignant].sum(1)
    assert np.allclose([of_image[image] for image in by_type.image], sums, atol=1e-7)
    assert summarize_run(run).model == "resnet18 (subtype)"
    metrics = json.loads((run / "test/subtype_metrics.json").read_text())
    assert metrics["n_images"] == len(by_class.image)
    assert "Told apart by the network" in (run / "report.html").read_text(encoding="utf-8")


def test_its_checkpoint_is_evaluated_to_the_same_rows(run: Path) -> None:
    before = [(run / "test" / name).read_bytes() for name in ("predictions.csv", SUBTYPES_CSV)]
    outcome = run_program("evaluate", f"run={run}", "gallery=0", cwd=run.parent)
    assert outcome.status == 0, outcome.err
    assert [(run / "test" / name).read_bytes() for name in ("predictions.csv", SUBTYPES_CSV)] == before
    assert load_checkpoint(run / "checkpoints/last.ckpt").classifier.spec.task == "subtype"
