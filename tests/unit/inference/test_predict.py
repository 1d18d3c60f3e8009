import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from breakhis_pl.config import PredictConfig
from breakhis_pl.data.stain import fit_stain
from breakhis_pl.errors import CheckpointError, DataError, RunFolderError
from breakhis_pl.evaluate import load_classifier
from breakhis_pl.inference.ood import OODDetector
from breakhis_pl.inference.predict import decode_batches, predict

Configure = Callable[..., PredictConfig]
MakeRun = Callable[..., Path]
Patch = pytest.MonkeyPatch
Predicted = Callable[..., pd.DataFrame]


def read(folder: Path, name: str = "predictions.csv") -> pd.DataFrame:
    return pd.read_csv(folder / name, keep_default_na=False)


@pytest.fixture
def predicted(configure: Configure, tmp_path: Path) -> Predicted:
    """Run predict.py's function; return its table."""

    def predict_one(images: Path | list[Path], folder: str = "out", **changes: object) -> pd.DataFrame:
        predict(configure(images, **changes), tmp_path / folder)
        return read(tmp_path / folder)

    return predict_one


def test_probabilities_are_those_of_the_network(run: Path, pictures: Path, predicted: Predicted) -> None:
    table = predicted(pictures)
    classifier, statistics = load_classifier(run / "checkpoints/last.ckpt", memory_format=torch.contiguous_format)
    mean, std = (torch.tensor(statistics[name]).view(3, 1, 1) for name in ("mean", "std"))
    for row in table.itertuples():
        image = torch.from_numpy(np.array(Image.open(row.image))).permute(2, 0, 1)[None]
        resized = torch.nn.functional.interpolate(image, (32, 32), mode="bilinear", antialias=True)
        with torch.inference_mode():
            expected = classifier((resized / 255 - mean) / std).softmax(dim=1)[0]
        np.testing.assert_allclose([row.prob_benign, row.prob_malignant], expected, atol=1e-5)
        assert (row.height, row.width) == image.shape[2:]
        assert row.predicted == ["benign", "malignant"][int(expected.argmax())]


def test_a_folder_gives_the_visible_pictures_below_it_once(pictures: Path, predicted: Predicted) -> None:
    table = predicted([pictures, pictures / "a.png", pictures / "*.png"])
    names = [str(Path(name).relative_to(pictures)) for name in table.image]
    assert names == ["a.png", "b.PNG", "c.png", "below/<e> & 'f',g.png", "below/d.png"]


def test_decision_and_calibrated_probability_follow_the_calibration(pictures: Path, predicted: Predicted) -> None:
    table = predicted(pictures)
    odds = (table.prob_malignant / table.prob_benign) ** (1 / 2.0)
    np.testing.assert_allclose(table.prob_malignant_calibrated, odds / (1 + odds), atol=1e-6)
    assert list(table.decision) == ["malignant" if odd / (1 + odd) >= 0.4 else "benign" for odd in odds]


def test_calibration_and_detector_belong_to_a_checkpoint(
    run: Path, pictures: Path, predicted: Predicted, tmp_path: Path
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    n = 64 + 128 + 256
    OODDetector(np.zeros(n), np.ones(n), np.eye(1, n), np.ones(1), 1.0, limit=1e9).save(copy / "ood.npz")
    selected = predicted(pictures, run=copy)
    shutil.copy(copy / "checkpoints/last.ckpt", copy / "checkpoints/best.ckpt")
    other = predicted(pictures, "other", run=copy, checkpoint="last")
    assert not selected.out_of_distribution.any()
    columns = ["prob_malignant_calibrated", "decision", "out_of_distribution", "out_of_distribution_distance"]
    assert (other[columns] == "").all(axis=None)
    assert (selected[columns] != "").all(axis=None)


def test_an_unreadable_picture_is_listed_and_does_not_stop_the_others(
    pictures: Path, configure: Configure, tmp_path: Path
) -> None:
    (pictures / "b1.png").write_bytes((pictures / "a.png").read_bytes()[:500])
    (pictures / "b2.svs").write_bytes(b"slide")
    with pytest.raises(DataError, match=r"b1\.png.*b2\.svs"):
        predict(configure(pictures), tmp_path / "out")
    assert len(read(tmp_path / "out")) == 5
    failures = read(tmp_path / "out", "unreadable.csv")
    assert [Path(name).name for name in failures.image] == ["b1.png", "b2.svs"]
    assert (failures.reason != "").all()


def test_a_folder_of_unreadable_pictures_gives_a_table_without_rows(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"broken")
    with pytest.raises(DataError, match="broken"):
        predict(configure(tmp_path / "broken.png"), tmp_path / "out")
    assert len(read(tmp_path / "out")) == 0
    assert (tmp_path / "out/predictions.html").exists()


def test_images_that_lead_to_nothing_are_named(pictures: Path, configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.*\*\.tif"):
        predict(configure([pictures, tmp_path / "nowhere", pictures / "*.tif"]), tmp_path / "out")
    assert not (tmp_path / "out/predictions.csv").exists()


def test_a_folder_with_predictions_is_not_written_again(pictures: Path, configure: Configure, tmp_path: Path) -> None:
    predict(configure(pictures), tmp_path / "out")
    before = (tmp_path / "out/predictions.csv").read_bytes()
    with pytest.raises(RunFolderError, match="out"):
        predict(configure(pictures / "a.png"), tmp_path / "out")
    assert (tmp_path / "out/predictions.csv").read_bytes() == before


def test_rows_before_an_interruption_are_kept_under_another_name(
    pictures: Path, configure: Configure, tmp_path: Path, monkeypatch: Patch
) -> None:
    def interrupt(decode: object, paths: list[Path], **_: object) -> object:
        yield from decode_batches(decode, paths[:2], size=2, n_threads=1)  # type: ignore[arg-type, type-var]
        raise KeyboardInterrupt

    monkeypatch.setattr("breakhis_pl.inference.predict.decode_batches", interrupt)
    with pytest.raises(KeyboardInterrupt):
        predict(configure(pictures), tmp_path / "out")
    assert len(read(tmp_path / "out", "predictions.partial.csv")) == 2
    assert not (tmp_path / "out/predictions.csv").exists()


def test_overlays_are_written_for_the_first_pictures(pictures: Path, predicted: Predicted, tmp_path: Path) -> None:
    table = predicted(pictures, gradcam=3)
    assert (table.gradcam != "").tolist() == [True, True, True, False, False]
    assert table.gradcam[0] == "gradcam/000001_a.jpg"
    assert len({(tmp_path / "out" / name).read_bytes() for name in table.gradcam[:3]}) == 3


def test_the_page_is_escaped_and_starts_with_the_least_certain(
    pictures: Path, predicted: Predicted, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr("breakhis_pl.inference.predict.N_SHOWN", 3)
    table, page = predicted(pictures), (tmp_path / "out/predictions.html").read_text(encoding="utf-8")
    certainty = table[["prob_benign", "prob_malignant"]].max(axis=1)
    expected = [Path(name).name.replace("&", "&amp;") for name in table.image[certainty.argsort()[:3]]]
    shown = [Path(name).name for name in re.findall(r"<figcaption><code>(.*?)</code>", page)]
    assert [name.replace("&lt;e&gt;", "<e>").replace("&#39;", "'") for name in shown] == expected
    assert "<e>" not in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert page.count("data:image/jpeg") == 3


def test_pictures_get_the_stain_of_the_run(make_run: MakeRun, pictures: Path, predicted: Predicted) -> None:
    rng = np.random.default_rng(0)
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    tissue = (255 * np.exp(-rng.gamma(1.0, 0.5, (32, 32, 2)) @ stains)).astype(np.uint8)
    Image.fromarray(tissue).save(pictures / "tissue.png")
    target = fit_stain("macenko", [(tissue.astype(float) * [0.6, 0.8, 1.0]).astype(np.uint8)])
    other = make_run(stain=target.to_plain())
    Image.fromarray(target.normalize(tissue)).save(pictures / "normalized.png")
    columns = ["prob_benign", "prob_malignant"]
    found = predicted(pictures / "tissue.png", run=other)[columns]
    pd.testing.assert_frame_equal(found, predicted(pictures / "normalized.png", "without", run=make_run())[columns])


def test_outputs_that_are_not_finite_are_refused(make_run: MakeRun, pictures: Path, predicted: Predicted) -> None:
    broken = make_run()
    checkpoint = torch.load(broken / "checkpoints/last.ckpt", weights_only=True)
    checkpoint["state_dict"]["network.backbone.conv1.weight"].fill_(torch.nan)
    torch.save(checkpoint, broken / "checkpoints/last.ckpt")
    with pytest.raises(CheckpointError, match="resnet18"):
        predicted(pictures, run=broken)
