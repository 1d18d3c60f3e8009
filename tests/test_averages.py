"""evaluate.py over views of an image and over runs, as its user calls it."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch

from breakhis_pl import composition
from breakhis_pl.data.datamodule import BreakHisDataModule
from breakhis_pl.evaluation.predictions import read_predictions
from breakhis_pl.training.checkpoints import load_checkpoint
from tests.evaluation.written_runs import drawn_predictions, write_run
from tests.programs import run_program


def files_and_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_views_are_averaged_into_a_folder_of_their_own(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    before = {name: files_and_bytes(run / name) for name in ("", "test")}

    outcome = run_program("evaluate", f"run={run}", "tta=dihedral", "trainer.accelerator=cpu", cwd=tmp_path)

    assert outcome.status == 0, outcome.err
    assert {path.name for path in (run / "test_dihedral").iterdir()} == {
        *("predictions.csv", "metrics.json", "confusion_matrix.png"),
    }
    assert {name: files_and_bytes(run / name) for name in before} == before
    found = read_predictions(run / "test_dihedral" / "predictions.csv")
    expected = mean_over_eight_views(run, found.image)
    assert np.allclose(found.probabilities, expected, atol=1e-5, rtol=0)
    assert not np.allclose(read_predictions(run / "test/predictions.csv").probabilities, expected, atol=1e-4, rtol=0)
    metrics = json.loads((run / "test_dihedral" / "metrics.json").read_text())
    assert (metrics["subset"], metrics["n_images"]) == ("test", len(found))


def mean_over_eight_views(run: Path, images: tuple[str, ...]) -> np.ndarray:
    """Computed from the checkpoint, a turn and a mirror image at a time; (n_images, 2)."""
    config = composition.restored("train", json.loads((run / "run.json").read_text())["config"])
    data = BreakHisDataModule(config.data, config.augmentation, seed=config.seed)
    data.setup()
    network = load_checkpoint(run / "checkpoints/last.ckpt").classifier.eval()
    row_of = {record.name.file_name: row for row, record in enumerate(data.records)}
    pixels = data.batch(torch.tensor([row_of[image] for image in images])).images
    with torch.no_grad():
        views = [torch.rot90(side, k, (2, 3)) for k in range(4) for side in (pixels, pixels.flip(3))]
        return np.mean([network(view).double().softmax(1).numpy() for view in views], axis=0)


def test_runs_are_averaged_and_refused_where_their_images_differ(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path / f"seed{seed}", drawn_predictions(seed=seed))
    write_run(tmp_path / "other", drawn_predictions(images_per_patient=2, seed=3))

    outcome = run_program("evaluate", "runs=[seed0,seed1]", "ensemble=true", "out=both", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    assert "| ensemble | seed0 | weighted F1 |" in outcome.out
    assert (tmp_path / "both/ensemble.json").is_file()

    outcome = run_program("evaluate", "runs=[seed0,seed1,other]", "ensemble=true", cwd=tmp_path)
    assert outcome.status == 1
    assert "the test images differ: 84 only in seed0, 0 only in other" in outcome.err
    assert not (tmp_path / "outputs").exists()
